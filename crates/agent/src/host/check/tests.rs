//! The whole check against the machine that runs the tests.

use vmkeep_types::host::CheckLevel;

use super::*;
use crate::hypervisor::fake::FakeHypervisor;

#[tokio::test]
async fn every_row_of_this_machine_says_what_why_and_how() {
    let pool = tempfile::tempdir().expect("a folder");
    let input =
        CheckInput { pool: pool.path().join("not/there/yet"), store: pool.path().to_owned(), tls_listen: None, migration_port: None };
    let rows = run(&input, Vec::new(), &FakeHypervisor::new()).await;
    let told = show(&rows);
    for id in [
        "kvm",
        "cpu",
        "memory",
        "kernel",
        "iommu",
        "libvirt",
        "qemu",
        "ovmf",
        "swtpm",
        "disk-space",
        "disk-type",
        "pool-access",
        "watchdog",
    ] {
        assert_eq!(rows.iter().filter(|row| row.id == id).count(), 1, "{id} in\n{told}");
    }
    for row in &rows {
        assert!(!row.found.is_empty(), "{}: nothing found\n{told}", row.id);
        assert_eq!(row.why.is_empty(), row.level == CheckLevel::Ok, "{}: a bad row says why\n{told}", row.id);
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("every Linux has it");
    let flags = crate::host::facts::cpu_flags(&cpuinfo);
    if !flags.contains(&"vmx") && !flags.contains(&"svm") {
        assert!(rows.iter().any(|row| row.id == "kvm" && row.level != CheckLevel::Ok), "{told}");
    }
    let space = rows.iter().find(|row| row.id == "disk-space").expect("asserted above");
    assert!(space.found.contains("not/there/yet"), "room of a pool that is not made yet: {}", space.found);
    assert!(std::fs::read_dir(pool.path()).expect("a folder").next().is_none(), "the check leaves nothing behind");
}
