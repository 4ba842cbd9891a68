//! From one host to three: formed under a running VM, joined, one lost and back; and a formation killed at every step.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use vmkeep_e2e::host::{Host, Net, tail, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest};

pub(super) const SETTLE: Duration = Duration::from_secs(120);
/// `member.toml` is read anew every 2 s.
const ENDPOINTS: Duration = Duration::from_secs(4);
/// Longer than a node may be silent before it is told offline.
const SILENT: Duration = Duration::from_secs(30);

pub(super) fn host(switch: &Switch, n: u8) -> Host {
    let mut host = Host::without_daemon(&format!("form{n}"));
    host.configure_as(&format!("node{n}"), "");
    host.link(switch, &format!("10.77.0.{n}/24"));
    host.start_daemon();
    host
}

pub(super) fn init(host: &Host) {
    host.ok(["cluster", "init", "--address", "10.77.0.1", "--yes"]);
}

pub(super) fn join(host: &Host, token: &str) -> std::process::Output {
    host.vmkeep(["cluster", "join", "10.77.0.1", "--token", token])
}

/// With a token of `by`, and it is let in.
pub(super) fn joins(host: &Host, by: &Host, more: &[&str]) {
    let joined = host.vmkeep([&["cluster", "join", "10.77.0.1", "--token", &token(by)], more].concat());
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&host.daemon_log()));
}

pub(super) fn token(host: &Host) -> String {
    host.ok(["cluster", "token"]).trim().to_owned()
}

/// `node1:leader node2:follower …`, sorted; the leader counts as a follower.
fn health(host: &Host) -> String {
    let out = host.vmkeep(["cluster", "status", "-o", "json"]);
    let Ok(view) = serde_json::from_slice::<Value>(&out.stdout) else { return text(&out.stderr) };
    let of = |m: &Value| {
        let etcd = m["etcd"]["health"].as_str().unwrap_or("-").replace("leader", "follower");
        format!("{}:{}:{etcd}", m["node"].as_str().unwrap_or_default(), m["state"].as_str().unwrap_or_default())
    };
    view["members"].as_array().into_iter().flatten().map(of).collect::<Vec<_>>().join(" ")
}

pub(super) fn until_healthy(host: &Host, wanted: &str) {
    until(&format!("the cluster is {wanted}"), SETTLE, || {
        let found = health(host);
        if found == wanted { Ok(()) } else { Err(format!("{found}\n{}", tail(&host.daemon_log()))) }
    });
}

/// The moment between two lives of its daemon is not that.
pub(super) fn until_no_api(host: &Host) {
    until("it has no API", SETTLE, || {
        let told = text(&host.vmkeep(["vm", "list"]).stderr);
        if told.contains("has no control plane") { Ok(()) } else { Err(told + &tail(&host.daemon_log())) }
    });
}

pub(super) fn refusal(out: &std::process::Output) -> String {
    assert!(!out.status.success(), "{}", text(&out.stdout));
    text(&out.stderr)
}

#[test]
fn three_hosts_become_one_and_the_loss_of_any_stops_nothing() {
    let switch = Switch::new("form");
    let (one, mut two) = (host(&switch, 1), host(&switch, 2));
    let image = tiny();
    one.ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    one.apply(&manifest("a", "run: always\n"));
    one.phase("a", "running", BOOT);
    let (pids, daemon) = (one.qemu_pids("a"), one.daemon_pid());

    assert!(refusal(&one.vmkeep(["cluster", "init", "--address", "10.77.0.9", "--yes"])).contains("cannot listen on 10.77.0.9"));
    init(&one);
    assert_eq!((one.qemu_pids("a"), one.daemon_pid()), (pids.clone(), daemon), "neither the guest nor the daemon's process ended");
    one.phase("a", "running", BOOT);
    until_healthy(&one, "node1:member:follower");

    // Refused: nothing changes on either side.
    let good = token(&one);
    let wrong = format!("{}{}", &good[..18], good[18..].replacen(['0', '1', '2', '3'], "4", 1));
    assert!(refusal(&join(&two, &wrong)).contains("token is wrong"), "{wrong}");
    let of_another = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    assert!(refusal(&join(&two, &of_another)).contains("is not who the token was made by"), "{of_another}");
    assert!(refusal(&join(&two, "vmkj_nonsense")).contains("no join token"));
    two.configure_as("node1", "");
    two.restart_daemon();
    assert!(refusal(&join(&two, &good)).contains("a member 'node1' already"));
    assert!(!two.exec(["test", "-e", "/var/lib/vmkeep/cluster"]).status.success(), "nothing stays of it");
    assert_eq!(health(&one), "node1:member:follower");
    two.configure_as("node2", "");
    two.restart_daemon();

    let joined = join(&two, &good);
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&two.daemon_log()));
    let three = host(&switch, 3);
    assert!(refusal(&join(&three, &good)).contains("was used by 'node2'"));
    let joined = join(&three, &token(&two));
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&three.daemon_log()));
    let all = "node1:member:follower node2:member:follower node3:member:follower";
    for host in [&one, &two, &three] {
        until_healthy(host, all);
    }
    assert_eq!(three.vm("a")["status"]["phase"], "running", "any member shows all");

    the_first_member_lives_without_its_own_etcd(&one, &three);

    // libvirt's hook: what belongs to the cluster starts by the cluster's word only.
    one.apply(
        "kind: vm\nname: h\nrun: manual\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
         disks: [{name: root, empty: true, size: 1M}]\nplacement: {node_selector: {node: node1}}\n",
    );
    one.phase("h", "stopped", BOOT);
    let by_hand = refusal(&one.exec(["virsh", "-c", "qemu:///system", "start", "h"]));
    assert!(by_hand.contains("'h' belongs to a cluster"), "{by_hand}");
    one.ok(["vm", "start", "h"]);
    one.phase("h", "running", BOOT);
    one.ok(["vm", "kill", "h"]);

    // One is lost: every verb works on the others.
    two.power_off();
    until_healthy(&one, "node1:member:follower node2:member:silent node3:member:follower");
    for n in 0..10 {
        one.apply(&manifest("a", &format!("run: always\ndescription: change {n}\n")));
        assert_eq!(three.vm("a")["spec"]["description"], format!("change {n}"));
    }
    assert_eq!(one.qemu_pids("a"), pids, "the guest knows nothing of it");
    every_verb_works_on(&one, &three);
    a_guest_moves_encrypted_without_a_setting(&one, &three);
    a_host_is_emptied(&three, &one);
    two.power_on();
    two.start_daemon();
    until_healthy(&two, all);
}

/// The third is off. Only defragmentation waits for it: with one member away, none of the others may pause.
fn every_verb_works_on(one: &Host, three: &Host) {
    assert!([one, three].iter().all(|host| token(host).starts_with("vmkj_")));
    let copy = three.ok(["cluster", "backup"]);
    assert!(three.exec(["test", "-s", copy.trim()]).status.success(), "{copy}");
    let refused = refusal(&one.vmkeep(["cluster", "defrag"]));
    assert!(refused.contains("etcd on 'node2' does not answer") && refused.contains("another must not pause"), "{refused}");
    let file = one.path("small.raw");
    std::fs::write(&file, [7; 1 << 20]).expect("written");
    three.ok(["image".as_ref(), "import".as_ref(), file.as_os_str(), "--name".as_ref(), "small".as_ref()]);
    // Its image is fetched from the other one.
    three.ok(["volume", "create", "spare", "--image", "small", "--node", "node1"]);
    assert_eq!(one.json(["volume", "show", "spare", "-o", "json"])["image"], "small");
    one.ok(["volume", "delete", "spare", "--yes"]);
    one.ok(["image", "delete", "small", "--yes"]);
    one.ok(["network", "create", "back"]);
    three.ok(["network", "delete", "back", "--yes"]);
}

/// The third is off still: nothing goes there.
fn a_host_is_emptied(from: &Host, to: &Host) {
    to.ok(["node", "drain", "node3"]);
    assert_eq!(to.phase("a", "running", BOOT)["status"]["node"], "node1");
    assert_eq!((from.qemu_pids("a").len(), to.qemu_pids("a").len()), (0, 1));
    from.ok(["node", "uncordon", "node3"]);
}

/// Of three hosts; the file is written some seconds after they joined.
pub(super) fn until_it_knows_all_etcd(host: &Host) {
    until("it knows the others' etcd", SETTLE, || {
        let file = text(&host.exec(["cat", "/var/lib/vmkeep/cluster/member.toml"]).stdout);
        if file.contains("10.77.0.2:2379") && file.contains("10.77.0.3:2379") { Ok(()) } else { Err(file) }
    });
}

/// Its processes began when there was no other etcd than its own, and go on with those that came later.
fn the_first_member_lives_without_its_own_etcd(one: &Host, other: &Host) {
    until_it_knows_all_etcd(one);
    std::thread::sleep(ENDPOINTS);
    assert_eq!(one.signal_etcd("-STOP"), 1);
    let begin = std::time::Instant::now();
    let told = || {
        let node = other.vmkeep(["node", "show", "node1", "-o", "json"]);
        let shown: Value = serde_json::from_slice(&node.stdout).unwrap_or_default();
        let state = shown["state"]["state"].as_str().unwrap_or_default().to_owned();
        (state, format!("{shown}{}\n{}", text(&node.stderr), tail(&one.daemon_log())))
    };
    // While the two others agree on a leader it may miss a beat, and `other` an answer.
    while begin.elapsed() < SILENT {
        let (state, why) = told();
        assert_ne!(state, "offline", "{why}");
        std::thread::sleep(Duration::from_secs(1));
    }
    until("it is online", SETTLE, || {
        let (state, why) = told();
        if state == "online" { Ok(()) } else { Err(why) }
    });
    let changed = one.vmkeep(["node", "show", "node1", "-o", "json"]);
    assert!(changed.status.success(), "its control plane answers too: {}", text(&changed.stderr));
    assert_eq!(one.signal_etcd("-CONT"), 1);
}

/// Certificates are the cluster's. Test hosts have no systemd, which would open libvirt's socket: it is restarted here.
fn a_guest_moves_encrypted_without_a_setting(from: &Host, to: &Host) {
    let closed = "VMs cannot move to this host: libvirt does not listen on port 16514";
    let status = || text(&from.vmkeep(["cluster", "status"]).stderr);
    until("it is told that libvirt listens to nobody", SETTLE, || {
        let told = status();
        if told.contains(&format!("'node3': {closed}")) { Ok(()) } else { Err(told + &tail(&to.daemon_log())) }
    });
    from.restart_libvirtd();
    to.restart_libvirtd();
    until("it is told that it does", SETTLE, || {
        let told = status();
        if told.contains("'node3': ") || told.contains("'node1': ") { Err(told + &tail(&to.daemon_log())) } else { Ok(()) }
    });
    let address = from.json(["node", "show", "node3", "-o", "json"])["facts"]["migration"].clone();
    assert_eq!(address["connect"], "qemu+tls://10.77.0.3/system", "{address}");
    // Its disk lies over an image that the other host has not; it fetches it before the guest comes.
    from.ok(["vm", "migrate", "a", "--to", "node3"]);
    assert_eq!(from.phase("a", "running", BOOT)["status"]["node"], "node3");
    assert_eq!((from.qemu_pids("a").len(), to.qemu_pids("a").len()), (0, 1));
}

#[test]
fn a_formation_killed_at_every_step_ends_as_a_cluster_or_as_the_host_it_was() {
    let switch = Switch::new("formcrash");
    let mut one = host(&switch, 1);
    let wish = "kind: vm\nname: c\nrun: manual\nfirmware: bios\nmemory: 16M\nnics: []\ndisks: [{name: root, empty: true, size: 1M}]\n";
    one.apply(wish);
    let shell = |host: &Host, script: &str| {
        let out = host.exec(["sh", "-c", script]);
        assert!(out.status.success(), "{script}: {}", text(&out.stderr));
    };
    one.kill_daemon();
    shell(&one, "cp -a /var/lib/vmkeep /var/lib/libvirt/before");
    let again = |host: &mut Host| {
        host.kill_daemon();
        host.signal_etcd("-KILL");
        shell(host, "cd /var/lib/vmkeep && rm -rf ./* && cp -a /var/lib/libvirt/before/. .");
    };
    // First the daemon that prepares, until it dies where it would begin anew; then the one that moves.
    let mut prepared = 0;
    for at in 1..POINTS_MAX {
        again(&mut one);
        let passed = die(&mut one, "VMKEEP_CRASH_AT", &at.to_string());
        one.start_daemon();
        whole(&one);
        // Writes of the agent pass points too, some more or fewer each time: it may have come further.
        if passed.lines().any(|point| point == "form: prepared") {
            prepared = at;
            break;
        }
    }
    assert!(prepared > 2, "the preparation passes its points");
    let mut moved = 0;
    for at in 1..POINTS_MAX {
        again(&mut one);
        let passed = die(&mut one, "VMKEEP_CRASH_POINT", "form: prepared");
        assert!(passed.ends_with("form: prepared\n"), "{passed}");
        let log = one.path("points-of-move");
        let _ = std::fs::remove_file(&log);
        one.spawn_daemon(Net::Host, &[("VMKEEP_CRASH_AT", &at.to_string()), ("VMKEEP_CRASH_LOG", log.to_str().expect("a path"))]);
        one.wait_for_daemon_death(Duration::from_secs(20));
        one.kill_daemon();
        one.start_daemon();
        whole(&one);
        assert_eq!(health(&one), "node1:member:follower", "what was prepared is carried through");
        moved = at;
        if std::fs::read_to_string(&log).unwrap_or_default().contains("form: old store set aside") {
            break;
        }
    }
    assert!((5..POINTS_MAX - 1).contains(&moved), "{moved}");
}

const POINTS_MAX: u64 = 60;

/// A formation whose daemon dies at the n-th point of it, or at one by its name; the points that were passed.
fn die(one: &mut Host, at: &str, point: &str) -> String {
    let (gate, log) = (one.path("gate"), one.path("points"));
    let (_, _) = (std::fs::remove_file(&gate), std::fs::remove_file(&log));
    let path = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
    let env = [(at, point.to_owned()), ("VMKEEP_CRASH_GATE", path(&gate)), ("VMKEEP_CRASH_LOG", path(&log))];
    one.start_daemon_with(Net::Host, &env.each_ref().map(|(key, value)| (*key, value.as_str())));
    std::fs::write(&gate, b"").expect("the gate");
    let mut asked = one.cli();
    asked.args(["cluster", "init", "--address", "10.77.0.1", "--yes"]);
    let mut asked = asked.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("vmkeep runs");
    one.wait_for_daemon_death(Duration::from_secs(30));
    one.kill_daemon();
    let _ = asked.kill();
    let _ = asked.wait();
    std::fs::read_to_string(&log).unwrap_or_default()
}

/// A cluster of one or a single host; everything is there and can be changed.
fn whole(host: &Host) {
    let vm = host.vm("c");
    assert_eq!(vm["spec"]["name"], "c", "{vm}");
    let found = health(host);
    assert!(found.is_empty() || found == "node1:member:follower", "{found}");
    let has_folder = host.exec(["test", "-e", "/var/lib/vmkeep/cluster/member.toml"]).status.success();
    assert_eq!(has_folder, !found.is_empty());
    assert!(!host.exec(["test", "-e", "/var/lib/vmkeep/cluster/forming.toml"]).status.success(), "nothing is left open");
    host.ok(["vm", "set", "c", "description=changed"]);
}

/// Where a daemon is killed that takes its host out.
const LEAVING: [&str; 3] = ["leave: begun", "leave: forgotten", "leave: out of etcd"];

/// Where the daemons are killed, the control node's and the joiner's, each time that it joins anew.
const JOINING: [&[&str]; 3] =
    [&["admit: a learner", "join: admitted"], &["admit: a member", "join: certificates"], &["join: etcd started", "join: a member"]];

/// It asks again with the same token, until it is a member.
fn joins_over_crashes(control: &mut Host, joiner: &mut Host, points: &[&str]) {
    let token = token(control);
    for point in points {
        let dies = if point.starts_with("admit") { &mut *control } else { &mut *joiner };
        dies.kill_daemon();
        dies.start_daemon_with(Net::Host, &[("VMKEEP_CRASH_POINT", point)]);
        // The control node's rights are kept by then, or the joiner could not be given its own.
        until_serves(control);
        let asked = join(joiner, &token);
        assert!(!asked.status.success(), "it dies at '{point}'");
        let dies = if point.starts_with("admit") { &mut *control } else { &mut *joiner };
        assert!(dies.wait_for_daemon_death(SETTLE), "it passes '{point}'");
        dies.start_daemon();
        until_serves(control);
    }
    let joined = join(joiner, &token);
    let told = text(&joined.stderr);
    // The last crash may have come when it was a member already.
    assert!(joined.status.success() || told.contains("of the cluster"), "{told}\n{}", tail(&joiner.daemon_log()));
}

fn until_serves(host: &Host) {
    until("it serves", SETTLE, || {
        let out = host.vmkeep(["cluster", "status"]);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr) + &tail(&host.daemon_log())) }
    });
}

#[test]
fn a_member_leaves_over_crashes_and_joins_again() {
    let switch = Switch::new("formleave");
    let (mut one, mut two) = (host(&switch, 1), host(&switch, 2));
    init(&one);
    assert!(refusal(&one.vmkeep(["cluster", "leave", "--yes"])).contains("would have no control node"));
    let joined = join(&two, &token(&one));
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&two.daemon_log()));
    let both = "node1:member:follower node2:member:follower";
    until_healthy(&one, both);
    assert!(refusal(&two.vmkeep(["cluster", "leave", "--forget", "--yes"])).contains("its cluster answers"));

    let wish = "kind: vm\nname: c\nrun: manual\nfirmware: bios\nmemory: 16M\nnics: []\ndisks: [{name: root, empty: true, size: 1M}]\nplacement: {node_selector: {node: node2}}\n";
    two.apply(wish);
    assert!(refusal(&two.vmkeep(["cluster", "leave", "--yes"])).contains("'node2' owns 1 VMs"));
    two.ok(["vm", "delete", "c", "--yes"]);

    for (point, joining) in LEAVING.into_iter().zip(JOINING) {
        two.kill_daemon();
        two.start_daemon_with(Net::Host, &[("VMKEEP_CRASH_POINT", point)]);
        let mut asked = two.cli();
        asked.args(["cluster", "leave", "--yes"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut asked = asked.spawn().expect("vmkeep runs");
        assert!(two.wait_for_daemon_death(SETTLE), "it passes '{point}'");
        let _ = asked.kill();
        let _ = asked.wait();
        two.start_daemon();
        until("the host is alone", SETTLE, || {
            let found = health(&two);
            if found.is_empty() && two.vmkeep(["version"]).status.success() { Ok(()) } else { Err(found + &tail(&two.daemon_log())) }
        });
        until_healthy(&one, "node1:member:follower");
        assert!(!two.exec(["test", "-e", "/var/lib/vmkeep/cluster"]).status.success(), "no key stays");
        let nodes = one.json(["node", "list", "-o", "json"]);
        assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
        joins_over_crashes(&mut one, &mut two, joining);
        until_healthy(&one, both);
    }

    // Taken out by the other one: it says so, and can join again when it has forgotten.
    one.ok(["cluster", "remove", "node2", "--yes"]);
    until("it is told", SETTLE, || {
        let out = two.vmkeep(["cluster", "status"]);
        let told = text(&out.stdout) + &text(&out.stderr);
        if told.contains("'node2' is no member") { Ok(()) } else { Err(told + &tail(&two.daemon_log())) }
    });
    two.ok(["cluster", "leave", "--forget", "--yes"]);
    let joined = join(&two, &token(&one));
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&two.daemon_log()));
    until_healthy(&two, both);
}
