//! The keys of secrets are renewed, whenever the daemon dies on the way.

use std::time::Duration;

use vmkeep_e2e::host::{Host, Net, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::apart::{Roles, logs, two_members};
use super::cluster::until_healthy;

const SETTLE: Duration = Duration::from_secs(30);
const WISH: &str = "kind: vm\nname: a\nrun: manual\nfirmware: bios\nmemory: 16M\ncloud_init: null\nnics: []\nrng: false\nagent: false\n\
                    display: {listen: tcp, password: s3cr3t}\ndisks: [{name: root, empty: true, size: 1M}]\n";

fn key(host: &Host) -> String {
    text(&host.exec(["cat", "/var/lib/vmkeep/seal.key"]).stdout)
}

fn until_renewed(host: &Host) {
    until("no renewal is under way", SETTLE, || {
        let view = host.json(["secret", "show", "-o", "json"]);
        if view["rotation"].is_null() { Ok(()) } else { Err(view.to_string()) }
    });
}

/// The control plane reads the record and the agent its order: the password comes to libvirt.
fn password_is_read(host: &Host, there: &Host, round: usize) {
    host.ok(["vm", "set", "a", &format!("description=round {round}")]);
    let xml = there.virsh(["dumpxml", "a", "--inactive", "--security-info"]);
    assert!(xml.contains(&format!("round {round}")) && xml.contains("passwd='s3cr3t'"), "{xml}");
}

#[test]
fn keys_are_renewed_over_crashes_on_the_way() {
    let mut host = Host::new("secrets");
    host.apply(WISH);
    let log = host.path("points");
    host.kill_daemon();
    host.start_daemon_with(Net::Host, &[("VMKEEP_CRASH_LOG", log.to_str().expect("a path"))]);
    std::thread::sleep(Duration::from_millis(500));
    let before = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    let old = key(&host);
    let told = host.vmkeep(["secret", "rotate"]);
    assert!(told.status.success() && text(&told.stderr).contains("all hosts of the control plane have new keys"), "{}", text(&told.stderr));
    assert_ne!(key(&host), old);
    let points: Vec<String> = std::fs::read_to_string(&log).unwrap_or_default().lines().skip(before).map(str::to_owned).collect();
    assert!(points.len() >= 8, "too few points to prove anything: {points:?}");
    password_is_read(&host, &host, 0);

    // Each write has its test beside the code; here the real disk counts, and some writes between.
    let chosen = (1..=points.len()).filter(|n| points[n - 1].starts_with("seal") || n % 4 == 1);
    for n in chosen {
        host.kill_daemon();
        let (gate, at, old) = (host.path("gate"), n.to_string(), key(&host));
        let _ = std::fs::remove_file(&gate);
        host.start_daemon_with(Net::Host, &[("VMKEEP_CRASH_AT", &at), ("VMKEEP_CRASH_GATE", gate.to_str().expect("a path"))]);
        std::fs::write(&gate, b"").expect("the gate");
        let _ = host.vmkeep(["secret", "rotate", "--no-wait"]);
        if !host.wait_for_daemon_death(Duration::from_secs(5)) {
            host.kill_daemon();
        }
        host.start_daemon();
        // Again, as a user would whose command failed; one that is under way goes on.
        host.ok(["secret", "rotate"]);
        until_renewed(&host);
        assert_ne!(key(&host), old, "point {n}");
        password_is_read(&host, &host, n);
    }
    let files = text(&host.exec(["sh", "-c", "ls /var/lib/vmkeep | grep seal"]).stdout);
    assert_eq!(files.trim(), "seal.key", "nothing half-made stays");
    let audit = text(&host.exec(["cat", "/var/lib/vmkeep/audit.log"]).stdout);
    assert!(audit.contains("secret.rotate"), "{audit}");
    let (shown, told) = (host.ok(["secret", "show", "-o", "json"]), host.daemon_log());
    assert!(!shown.contains("s3cr3t") && !told.contains("s3cr3t") && !told.contains(key(&host).trim()), "{shown}");
}

/// One of them has its control plane and its agent in two processes.
#[test]
fn members_renew_their_keys_each_in_its_time() {
    let switch = Switch::new("keys");
    let (one, mut two) = two_members(&switch);
    one.apply(&format!("{WISH}placement: {{node_selector: {{node: node2}}}}\n"));
    let roles = Roles::of(&mut two);
    until_healthy(&two, "node1:member:follower node2:member:follower");
    password_is_read(&one, &two, 0);
    let before = [key(&one), key(&two)];
    let told = text(&one.vmkeep(["secret", "rotate"]).stderr);
    assert!(told.contains("all hosts of the control plane have new keys"), "{told}\n{}", logs(&two));
    let between = [key(&one), key(&two)];
    assert!(between[0] != before[0] && between[1] != before[1]);
    password_is_read(&one, &two, 1);

    // One that is away is waited for, and told of.
    drop(roles);
    let told = text(&one.vmkeep(["secret", "rotate", "--timeout", "15s"]).stderr);
    assert!(told.contains("waits for node2"), "{told}");
    assert_eq!(key(&two), between[1]);
    let _roles = Roles::of(&mut two);
    until_renewed(&one);
    assert!(key(&one) != between[0] && key(&two) != between[1]);
    password_is_read(&one, &two, 2);
}
