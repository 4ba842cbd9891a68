//! The API's one address moves to a control node that answers. How long that takes is told (`--no-capture`) and not asserted.

use std::process::Command;
use std::time::{Duration, Instant};

use vmkeep_e2e::host::{Host, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, join, refusal, token, until_healthy};

const VIP: &str = "10.77.0.100";

/// Whom the members trust, on a member.
const CA: &str = "/var/lib/vmkeep/cluster/ca.pem";

/// Without a bearer it is refused: by our API, with the cluster's certificate, which names the address.
fn answers(host: &Host) -> Result<(), String> {
    answers_at(host, CA, VIP)
}

/// The same, asked at a host's own address for the name of the other.
fn answers_at(host: &Host, ca: &str, address: &str) -> Result<(), String> {
    let to = format!("{VIP}:7443:{address}:7443");
    let url = format!("https://{VIP}:7443/v1/version");
    let out = host.exec([
        "curl",
        "-s",
        // Nobody has the address for a moment: asked again soon.
        "--connect-timeout",
        "0.3",
        // A connection to whoever hangs is no answer, and must not hide the next one.
        "--max-time",
        "1",
        "--connect-to",
        &to,
        "--cacert",
        ca,
        "-w",
        "%{http_code}",
        &url,
    ]);
    let told = text(&out.stdout) + &text(&out.stderr);
    if told.ends_with("401") { Ok(()) } else { Err(format!("{:?} {told}", out.status)) }
}

fn has_it(host: &Host) -> bool {
    text(&host.exec(["ip", "-4", "-o", "address"]).stdout).contains(&format!("{VIP}/24"))
}

fn logs(host: &Host) -> String {
    let keepalived = text(&host.exec(["cat", "/var/lib/vmkeep/cluster/keepalived.log"]).stdout);
    format!("{}\n{}", tail(&host.daemon_log()), tail(&keepalived))
}

#[test]
fn the_api_has_one_address_that_moves() {
    let switch = Switch::new("vip");
    let (mut one, mut two) = (host(&switch, 1), host(&switch, 2));
    init(&one);
    let joined = join(&two, &token(&one));
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&two.daemon_log()));
    until_healthy(&one, "node1:member:follower node2:member:follower");
    assert!(refusal(&one.vmkeep(["cluster", "vip", "set", "10.77.0.1/24"])).contains("is the address of 'node1'"));
    assert!(refusal(&one.vmkeep(["cluster", "vip", "show"])).contains("no address of its own"));
    one.ok(["cluster", "vip", "set", &format!("{VIP}/24")]);
    assert_eq!(two.ok(["cluster", "vip", "show"]).trim(), format!("{VIP}/24"));
    until("one of them has it, and both reach the API there", SETTLE, || {
        if has_it(&one) == has_it(&two) {
            return Err(logs(&one) + &logs(&two));
        }
        answers(&one).and_then(|()| answers(&two)).map_err(|e| e + &logs(&one) + &logs(&two))
    });
    // A daemon that begins anew with its new certificate waits for etcd, which has no majority without the other host.
    for (host, address) in [(&one, "10.77.0.1"), (&two, "10.77.0.2")] {
        until("its certificate names the address", SETTLE, || answers_at(host, CA, address).map_err(|e| e + &logs(host)));
    }
    until("one of them has it", SETTLE, || if has_it(&one) == has_it(&two) { Err(logs(&one) + &logs(&two)) } else { answers(&one) });
    // A third machine asks.
    let client = Host::without_daemon("vip3");
    client.link(&switch, "10.77.0.3/24");
    let ca = client.path("ca.pem");
    std::fs::write(&ca, one.exec(["cat", CA]).stdout).expect("written");
    let ca = ca.to_str().expect("a path");

    let holder = if has_it(&one) { &mut one } else { &mut two };
    let killed = away(&client, ca, || holder.kill_daemon());
    holder.start_daemon();
    until_healthy(&one, "node1:member:follower node2:member:follower");
    for (host, address) in [(&one, "10.77.0.1"), (&two, "10.77.0.2")] {
        until("both answer again", SETTLE, || answers_at(host, CA, address).map_err(|e| e + &logs(host)));
    }
    let holder = if has_it(&one) { &one } else { &two };
    let hung = away(&client, ca, || signal(holder, "-STOP"));
    signal(holder, "-CONT");
    until("both answer again", SETTLE, || answers_at(&one, CA, "10.77.0.1").and_then(|()| answers_at(&two, CA, "10.77.0.2")));
    let holder = if has_it(&one) { &mut one } else { &mut two };
    let dead = away(&client, ca, || holder.power_off());
    eprintln!("the API's address answers again after: {killed:.1?} (daemon killed), {hung:.1?} (daemon hung), {dead:.1?} (host off)");
}

/// From the moment it is hurt until the API answers at its address.
fn away(client: &Host, ca: &str, hurt: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    hurt();
    until("the API answers at its address", SETTLE, || answers_at(client, ca, VIP));
    begin.elapsed()
}

fn signal(host: &Host, signal: &str) {
    let pid = host.daemon_pid().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
}
