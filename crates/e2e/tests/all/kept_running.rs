//! VMs come back after whatever happens to them, or stay off when a person wanted that.

use std::time::Duration;

use vmkeep_e2e::host::Host;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, host_with_tiny, manifest, serial_says};

/// Back-off begins at 1 s; the rest is a slow machine.
const BACK: Duration = Duration::from_secs(60);

fn restarted(host: &Host, vm: &str, old_pids: &[u32]) {
    until(&format!("{vm} runs again"), BACK, || {
        let pids = host.qemu_pids(vm);
        let phase = host.vm(vm)["status"]["phase"].clone();
        if phase == "running" && !pids.is_empty() && pids != old_pids { Ok(()) } else { Err(format!("{phase} {pids:?}")) }
    });
}

#[test]
fn qemu_killed_daemon_killed_libvirtd_restarted() {
    let mut host = host_with_tiny("back");
    host.apply(&manifest("a", "run: always\n"));
    host.phase("a", "running", BOOT);

    let first = host.qemu_pids("a");
    host.kill_qemu("a");
    restarted(&host, "a", &first);
    let vm = host.vm("a");
    assert_eq!(vm["status"]["restarts"]["count"], 1, "{}", vm["status"]);
    assert!(vm["status"]["restarts"]["last_reason"].as_str().is_some_and(|r| r.contains("QEMU")), "{}", vm["status"]);

    let second = host.qemu_pids("a");
    host.kill_daemon();
    host.start_daemon();
    host.phase("a", "running", BACK);
    assert_eq!(host.qemu_pids("a"), second, "a daemon's death never touches a VM");

    host.kill_daemon();
    host.kill_qemu("a");
    host.start_daemon();
    restarted(&host, "a", &second);

    let third = host.qemu_pids("a");
    host.restart_libvirtd();
    host.phase("a", "running", BACK);
    assert_eq!(host.qemu_pids("a"), third);
    host.kill_qemu("a");
    restarted(&host, "a", &third);
    let events = host.ok(["vm", "events", "a"]);
    assert!(events.contains("vm.crashed") || events.contains("QEMU"), "{events}");
}

#[test]
fn a_stop_is_a_hold_and_a_start_ends_it() {
    let mut host = host_with_tiny("hold");
    host.apply(&manifest("a", "run: always\nstop_timeout: 60s\n"));
    serial_says(&host, "a", "hello from a");
    host.ok(["vm", "stop", "a"]);
    host.phase("a", "stopped", BACK);
    host.boot();
    host.restart_daemon();
    std::thread::sleep(Duration::from_secs(2));
    let vm = host.phase("a", "stopped", BACK);
    assert!(vm["status"]["text"].as_str().is_some_and(|t| t.contains("held by")), "{}", vm["status"]);
    host.ok(["vm", "start", "a"]);
    host.phase("a", "running", BACK);

    host.virsh(["destroy", "a"]);
    let vm = host.phase("a", "stopped", BACK);
    assert!(vm["status"]["text"].as_str().is_some_and(|t| t.contains("virsh")), "{}", vm["status"]);
    host.virsh(["start", "a"]);
    host.phase("a", "running", BACK);
    let pids = host.qemu_pids("a");
    host.kill_qemu("a");
    restarted(&host, "a", &pids);
}

#[test]
fn a_host_boot_starts_what_should_run() {
    let mut host = host_with_tiny("boot");
    host.apply(&(manifest("a", "start: {order: 10}\n") + "---\n" + &manifest("m", "run: manual\n")));
    host.ok(["vm", "start", "m"]);
    host.phase("a", "running", BOOT);
    host.phase("m", "running", BOOT);
    host.kill_daemon();
    host.kill_qemu("a");
    host.kill_qemu("m");
    host.boot();
    host.start_daemon();
    host.phase("a", "running", BACK);
    host.phase("m", "stopped", BACK);
}
