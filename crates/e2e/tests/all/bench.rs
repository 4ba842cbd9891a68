//! The benches that start what they measure.

use std::process::Command;

use vmkeep_e2e::cluster::{Cluster, Plan, Watchdogs};
use vmkeep_e2e::host::{bin, text};
use vmkeep_e2e::image::tiny;

use super::hello::{BOOT, manifest};

/// The figures are those of a busy machine; that all of it was seen is what counts.
#[test]
fn a_small_cluster_is_measured_to_its_end() {
    let mut bench = Command::new(bin("vmkeep-bench"));
    bench.args(["cluster", "--nodes", "3", "--vms", "6", "--rounds", "2", "--idle-seconds", "7", "-o", "json", "--vmkeepd"]);
    let out = bench.arg(bin("vmkeepd")).output().expect("it runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let told = String::from_utf8_lossy(&out.stdout);
    for what in ["3 nodes joined after", "6 VMs run after", "renewal, p99", "VM, request to running", "… a new VM runs after"] {
        assert!(rows.as_array().expect("rows").iter().any(|row| row["what"] == what), "'{what}' is missing: {told}");
    }
}

/// A death by the watchdog's time takes 40 s.
#[test]
fn a_lost_node_is_measured_at_length() {
    let mut bench = Command::new(bin("vmkeep-bench"));
    bench.args(["cluster", "--nodes", "4", "--vms", "8", "--rounds", "1", "--idle-seconds", "7", "--lose", "1", "-o", "json", "--vmkeepd"]);
    let out = bench.arg(bin("vmkeepd")).output().expect("it runs");
    let told = text(&out.stdout);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(told.contains("1 nodes lost: all of their 2 VMs run again after"), "{told}");
}

/// Beside virsh, on two of three hosts that share a pool.
#[test]
fn a_migration_is_measured_beside_virsh() {
    let shared = tempfile::tempdir().expect("a folder");
    let more = format!("pool = \"{}\"\npool_shared = true\n", shared.path().display());
    let cluster =
        Cluster::planned("benchmove", Plan { more: &more, shared: &[shared.path()], watchdogs: Watchdogs::None, ..Plan::default() });
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    cluster.host(0).apply(&manifest("m", "run: always\nnics: []\n"));
    let node = cluster.host(0).phase("m", "running", BOOT)["status"]["node"].as_str().expect("a node").to_owned();
    let from: usize = node["node".len()..].parse().expect("a number");
    let to = from % 3 + 1;
    let uri = |n: usize| format!("qemu+tcp://10.77.0.{n}/system");
    let host = cluster.host(from - 1);
    let (program, socket) = (bin("vmkeep-bench").display().to_string(), host.socket().display().to_string());
    let (to_node, there, back) = (format!("node{to}"), uri(to), uri(from));
    let data = |n: usize| format!("tcp://10.77.0.{n}");
    let (there_data, back_data) = (data(to), data(from));
    let words = [&program, "migrate", "--socket", &socket, "--vm", "m", "--to", &to_node, "--there", &there, "--back", &back];
    let more = ["--there-data", &there_data, "--back-data", &back_data, "--rounds", "1", "-o", "json"];
    let out = host.exec(words.into_iter().chain(more));
    assert!(out.status.success(), "{}\n{}", text(&out.stderr), cluster.logs());
    let told = text(&out.stdout);
    for what in ["virsh migrate --live --p2p, p50", "migrate, p50", "migrate, times virsh"] {
        assert!(told.contains(what), "'{what}' is missing: {told}");
    }
    println!("{told}");
    assert_eq!(cluster.host(0).phase("m", "running", BOOT)["status"]["node"], node, "it runs again");
    cluster.host(0).ok(["vm", "delete", "m", "--yes"]);
}
