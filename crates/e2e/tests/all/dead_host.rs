//! A host loses its power, and its highly available VM runs on another one.

use std::time::Duration;

use vmkeep_e2e::cluster::{Cluster, Plan, Watchdogs};
use vmkeep_e2e::ha::Home;
use vmkeep_e2e::host::text;
use vmkeep_e2e::wait::until;

use super::hello::BOOT;

/// Silence, a seal, a person's word, a start, and what two cores add.
const NOTICED: Duration = Duration::from_secs(120);

const VM: &str = "kind: vm\nname: web\nrun: always\nha: {priority: 1}\nfirmware: bios\nmemory: 16M\ncloud_init: null\ndisplay: null\n\
                  rng: false\nagent: false\nnics: []\ndisks: []\n";

#[test]
fn a_vm_of_a_host_without_power_runs_elsewhere_by_the_proof_of_its_watchdog_alone() {
    let mut cluster = Cluster::new("dog", "");
    cluster.host(0).apply(VM);
    let before = Home::of(&cluster.host(0).phase("web", "running", BOOT)).expect("it runs");
    let asked = cluster.beside(before.host);
    until("its host is armed", NOTICED, || {
        let told = cluster.host(asked).ok(["ha", "check"]);
        if told.contains("watchdog") { Ok(()) } else { Err(format!("{told}\n{}", cluster.logs())) }
    });
    cluster.members[before.host].host.power_off();
    let now = cluster.until_recovered(asked, "web", before);
    assert_ne!(now.host, before.host);
    assert_eq!(now.generation, before.generation + 1);
    let death = cluster.death(asked, &before.node(), "web");
    println!("power off: {death}");
    assert_eq!(death.proof, "watchdog");
    let told = cluster.host(asked).ok(["ha", "history"]);
    assert!(told.contains("dead, by watchdog") && told.contains("web runs on"), "{told}");

    cluster.members[before.host].power_on();
    cluster.until_nodes(asked, "online online online");
    until("its host has begun its next life and runs nothing of it", NOTICED, || {
        let left = cluster.host(before.host).virsh(["list", "--all", "--name"]);
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(Home::of(&cluster.host(asked).vm("web")), Some(now), "it stays where it is");
}

#[test]
fn a_vm_of_a_host_without_power_runs_elsewhere_when_its_death_is_confirmed() {
    let mut cluster = Cluster::planned("dead", Plan { watchdogs: Watchdogs::None, ..Plan::default() });
    cluster.host(0).apply(VM);
    let before = cluster.host(0).phase("web", "running", BOOT);
    let node = before["status"]["node"].as_str().expect("a node").to_owned();
    let home: usize = node.trim_start_matches("node").parse::<usize>().expect("a number") - 1;
    let asked = (home + 1) % 3;
    let confirm = ["ha", "confirm-dead", &node, "--typed", &node];
    let refused = cluster.host(asked).vmkeep(confirm);
    assert!(text(&refused.stderr).contains("is not dead"), "{}", text(&refused.stderr));
    let forecast = cluster.host(asked).ok(["ha", "check"]);
    assert!(forecast.contains("runs again on"), "{forecast}");

    cluster.members[home].host.power_off();
    until("a person's word is taken", NOTICED, || {
        let out = cluster.host(asked).vmkeep(confirm);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
    });
    until("it runs on another host", NOTICED, || {
        let vm = cluster.host(asked).shown("web")?;
        let (phase, at) = (vm["status"]["phase"].as_str(), vm["status"]["node"].as_str());
        if phase == Some("running") && at != Some(node.as_str()) { Ok(()) } else { Err(format!("{}\n{}", vm["status"], cluster.logs())) }
    });
    let (generation, was) = (&cluster.host(asked).vm("web")["status"]["generation"], &before["status"]["generation"]);
    assert_eq!(generation.as_u64(), was.as_u64().map(|was| was + 1));
    until("the history tells it", NOTICED, || {
        let told = cluster.host(asked).ok(["ha", "history"]);
        if told.contains("dead, by operator") && told.contains("web runs on") { Ok(()) } else { Err(told) }
    });
    let status = cluster.host(asked).ok(["ha", "status"]);
    assert!(status.contains("dead since"), "{status}");
}
