//! Five control nodes: one by its wish at joining, one promoted; two lost at once; one demoted. A VM sees nothing of it.

use vmkeep_e2e::host::{Host, Net, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, joins, refusal, until_healthy, until_it_knows_all_etcd, until_no_api};
use super::hello::BOOT;

/// `follower` of all, but what is named.
fn view(others: &[(usize, &str)]) -> String {
    let of = |n: usize| others.iter().find(|(other, _)| *other == n).map_or("follower", |(_, health)| health);
    (1..=5).map(|n| format!("node{n}:member:{}", of(n))).collect::<Vec<_>>().join(" ")
}

fn here(host: &Host, script: &str) -> bool {
    host.exec(["sh", "-c", script]).status.success()
}

/// Its daemon will be killed there.
fn dies_at(host: &mut Host, point: &str) {
    host.kill_daemon();
    host.spawn_daemon(Net::Host, &[("VMKEEP_CRASH_POINT", point)]);
}

fn comes_back(host: &mut Host) {
    assert!(host.wait_for_daemon_death(SETTLE), "it passes the point");
    host.spawn_daemon(Net::Host, &[]);
}

fn runs_as(host: &Host, pids: &[u32]) {
    assert_eq!(host.qemu_pids("c"), pids, "its guest goes on");
}

#[test]
fn five_control_nodes_lose_two_at_once_and_a_role_comes_and_goes() {
    let switch = Switch::new("five");
    let mut hosts = [1, 2, 3, 4, 5].map(|n| host(&switch, n));
    init(&hosts[0]);
    until_healthy(&hosts[0], "node1:member:follower");
    for (n, more) in [(1, &[][..]), (2, &[]), (3, &[]), (4, &["--control"])] {
        joins(&hosts[n], &hosts[0], more);
    }
    until_healthy(&hosts[0], &view(&[(4, "-")]));
    hosts[0].apply(
        "kind: vm\nname: c\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
         disks: [{name: root, empty: true, size: 1M}]\nplacement: {node_selector: {node: node4}}\n",
    );
    hosts[0].phase("c", "running", BOOT);
    let pids = hosts[3].qemu_pids("c");
    assert!(refusal(&hosts[3].vmkeep(["vm", "list"])).contains("has no control plane"));

    dies_at(&mut hosts[3], "rise: admitted");
    hosts[0].ok(["cluster", "promote", "node4"]);
    comes_back(&mut hosts[3]);
    until_healthy(&hosts[0], &view(&[]));
    until("node4 has the API", SETTLE, || {
        let out = hosts[3].vmkeep(["vm", "list"]);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr) + &tail(&hosts[3].daemon_log())) }
    });
    runs_as(&hosts[3], &pids);
    hosts[0].ok(["cluster", "promote", "node4"]);
    hosts[2..].iter().for_each(until_it_knows_all_etcd);

    // Two of five at once, the first and with it perhaps the leader among them.
    hosts[0].power_off();
    hosts[1].power_off();
    until_healthy(&hosts[3], &view(&[(1, "silent"), (2, "silent")]));
    hosts[3].ok(["vm", "set", "c", "description=by a promoted one"]);
    assert_eq!(hosts[4].vm("c")["spec"]["description"], "by a promoted one");
    let stands = refusal(&hosts[2].vmkeep(["cluster", "demote", "node4", "--yes"]));
    assert!(stands.contains("2 answer: without this one it would stand still"), "{stands}");
    assert!(refusal(&hosts[3].vmkeep(["cluster", "demote", "node4", "--yes"])).contains("is this host"));
    for host in &mut hosts[..2] {
        host.power_on();
        host.spawn_daemon(Net::Host, &[]);
    }
    until_healthy(&hosts[2], &view(&[]));

    // Who is asked dies on the way: another one goes on with it.
    dies_at(&mut hosts[2], "demote: recorded");
    until_healthy(&hosts[2], &view(&[]));
    assert!(!hosts[2].vmkeep(["cluster", "demote", "node4", "--yes"]).status.success());
    comes_back(&mut hosts[2]);
    hosts[4].ok(["cluster", "demote", "node4", "--yes"]);
    until_healthy(&hosts[2], &view(&[(4, "-")]));
    until_no_api(&hosts[3]);
    assert!(
        !here(&hosts[3], "ls -d /var/lib/vmkeep/cluster/ca.key || ls -d /var/lib/vmkeep/cluster/etcd"),
        "neither key nor database stay"
    );
    assert!(!here(&hosts[3], "ss -ltn | grep -q ':2379 '"), "its etcd ended");
    runs_as(&hosts[3], &pids);
    hosts[2].ok(["vm", "set", "c", "description=still"]);
    assert_eq!(hosts[2].phase("c", "running", BOOT)["status"]["node"], "node4");
    // And once more: nothing of the first time is in the way.
    dies_at(&mut hosts[3], "roles: member.toml");
    hosts[2].ok(["cluster", "promote", "node4"]);
    comes_back(&mut hosts[3]);
    until_healthy(&hosts[2], &view(&[]));
    runs_as(&hosts[3], &pids);
}
