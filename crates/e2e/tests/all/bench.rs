//! The benches that start what they measure.

use std::process::Command;

use vmkeep_e2e::host::bin;

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
