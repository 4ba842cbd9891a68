//! From guests that burn a host's CPUs to the move that relieves it: measured by the agents, proposed from what they tell, and carried
//! out by hand.

use std::time::Duration;

use serde_json::Value;
use vmkeep_e2e::cluster::{Cluster, Load, Plan, Watchdogs};
use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

use super::consoles::answers;
use super::hello::{BOOT, manifest, serial_says};

/// Agents tell once a minute, and what is told is the mean of up to five.
const MEASURED: Duration = Duration::from_secs(240);
/// Each wants half of the machine's CPUs: together more than there are, and none of them is the host's whole load.
const BURNERS: [&str; 3] = ["burn1", "burn2", "burn3"];

fn vcpus() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2))
}

#[test]
fn a_host_whose_guests_burn_its_cpus_is_relieved_by_the_move_that_is_proposed() {
    let image = tiny();
    let cluster = Cluster::planned("bal", Plan { watchdogs: Watchdogs::None, load: Load::Own, ..Plan::default() });
    let host = cluster.host(1);
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    host.ok(["node", "cordon", "node2", "node3"]);
    for vm in BURNERS {
        host.apply(&manifest(vm, &format!("run: always\ncpus: {}\n", vcpus())));
        assert_eq!(host.phase(vm, "running", BOOT)["status"]["node"], "node1");
    }
    host.ok(["node", "uncordon", "node2", "node3"]);
    let calm = until("all three are measured", MEASURED, || {
        let answer = proposed(host);
        if answer["not_measured"] == serde_json::json!([]) { Ok(answer) } else { Err(answer.to_string()) }
    });
    assert_eq!(calm["moves"], serde_json::json!([]), "guests that do nothing are moved nowhere: {calm}");
    let told = host.vmkeep(["cluster", "balance", "--dry-run"]);
    assert!(text(&told.stderr).contains("no move would help enough") && text(&told.stdout).contains("node3"), "{told:?}");

    BURNERS.iter().for_each(|vm| burn(host, vm));
    let hot = until("a move is proposed", MEASURED, || {
        let answer = proposed(host);
        if answer["moves"][0].is_object() { Ok(answer) } else { Err(format!("{answer} {}", load(host, "node1"))) }
    });
    let (vm, to) = the_move_helps(&hot);
    for burner in BURNERS {
        plausible(host, "node1", burner);
    }
    // What is measured meanwhile may make it another of the three.
    let told = host.ok(["cluster", "balance", "--dry-run"]);
    assert!(told.lines().any(|line| line.starts_with("burn") && line.contains(" node1 ") && line.contains("% -> ")), "{told}");
    let refused = host.vmkeep(["cluster", "balance"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("does not move VMs by itself"), "{refused:?}");
    assert_eq!(host.vm(&vm)["status"]["node"], "node1", "what is proposed is not done");
    host.ok(["vm", "migrate", &vm, "--to", &to]);
    assert_eq!(host.phase(&vm, "running", BOOT)["status"]["node"], to.as_str());
    let there = cluster.members.iter().position(|member| !member.host.qemu_pids(&vm).is_empty()).expect("it runs");
    assert_eq!(format!("node{}", there + 1), to);

    let next = proposed(host);
    let again = next["moves"].as_array().expect("moves").iter().any(|found| found["vm"] == vm.as_str());
    assert!(!again, "one that was moved rests: {next}");
    plausible(host, &to, &vm);
}

fn proposed(host: &Host) -> Value {
    host.json(["cluster", "balance", "--dry-run", "-o", "json"])
}

fn load(host: &Host, node: &str) -> Value {
    host.json(["node", "show", node, "-o", "json"])["load"].clone()
}

/// Which VM goes where by the first of the moves.
fn the_move_helps(answer: &Value) -> (String, String) {
    let found = &answer["moves"][0];
    let word = |field: &str| found[field].as_str().expect("a word").to_owned();
    let number = |field: &str| found[field].as_u64().expect("a number");
    let (vm, from, to) = (word("vm"), word("from"), word("to"));
    assert!(BURNERS.contains(&vm.as_str()) && from == "node1" && to != from, "{answer}");
    assert!(number("from_before") > number("from_after") && number("to_before") < number("to_after"), "{answer}");
    assert!(number("to_after") < number("from_before") && number("gain") >= 50, "{answer}");
    assert_eq!(answer["pressure"]["node1"], found["from_before"], "{answer}");
    (vm, to)
}

/// The node tells of the VM what a guest uses that never rests, on a machine that has others to run.
fn plausible(host: &Host, node: &str, vm: &str) {
    let id = host.vm(vm)["id"].as_str().expect("an id").to_owned();
    until(&format!("{node} tells of {vm}"), MEASURED, || {
        let load = load(host, node);
        let (cpu, memory) = (&load["vms"][&id]["cpu"], &load["vms"][&id]["memory"]);
        let busy = cpu.as_u64().is_some_and(|permille| (150..=1100 * vcpus() as u64).contains(&permille));
        if busy && memory.is_string() { Ok(()) } else { Err(load.to_string()) }
    });
}

/// Typed at its console.
fn burn(host: &Host, vm: &str) {
    serial_says(host, vm, &format!("hello from {vm}"));
    let line = format!("for n in $(seq {}); do while :; do :; done & done; echo it-burns-$((40+2))", vcpus());
    answers(host, vm, &line, "it-burns-42").expect("its shell has taken it");
}
