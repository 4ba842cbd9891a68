//! Existing domains: never touched unless adopted, taken over without stopping, given back on release.

use vmkeep_e2e::host::Host;

use super::hello::{host_with_tiny, manifest};

/// A domain that an administrator made with virsh; the name of its qcow2 file says something else.
pub(super) fn foreign(host: &Host, name: &str) -> String {
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/{name}.img'/>\
         <target dev='vda' bus='virtio'/></disk><serial type='pty'/></devices></domain>"
    );
    let file = host.path(&format!("{name}.xml"));
    std::fs::write(&file, xml).expect("a file");
    assert!(host.exec(["qemu-img", "create", "-q", "-f", "qcow2", &format!("/var/lib/libvirt/images/{name}.img"), "64M"]).status.success());
    host.virsh(["define", file.to_str().expect("a path")]);
    host.virsh(["start", name]);
    host.virsh(["domuuid", name]).trim().to_owned()
}

#[test]
fn adopted_without_a_stop_and_released_again() {
    let host = Host::new("adopt");
    let uuid = foreign(&host, "old");
    let listed = host.ok(["vm", "list", "-A"]);
    assert!(listed.contains("old"), "{listed}");
    let pids = host.qemu_pids("old");
    host.ok(["vm", "adopt", "old"]);
    let vm = host.vm("old");
    assert_eq!(vm["id"], uuid.as_str());
    assert_eq!(vm["status"]["phase"], "running");
    assert_eq!(host.qemu_pids("old"), pids, "adoption does not stop it");
    host.kill_qemu("old");
    vmkeep_e2e::wait::until("it is kept running now", std::time::Duration::from_secs(30), || {
        let now = host.qemu_pids("old");
        if !now.is_empty() && now != pids { Ok(()) } else { Err(format!("{now:?} {}", host.vm("old")["status"])) }
    });
    host.ok(["vm", "set", "old", "description=ours now", "disks[vda].size=96M"]);
    let disk = host.virsh(["dumpxml", "old", "--inactive"]);
    let qcow2 = disk.contains("type='qcow2'") && disk.contains("/old.img") && disk.contains("ours now");
    assert!(qcow2, "vmkeep's own description reads the file as what it is, whatever its name: {disk}");
    assert!(host.virsh(["domblkinfo", "old", "vda"]).contains(&(96u64 << 20).to_string()), "and it grows");
    host.ok(["vm", "release", "old", "--yes"]);
    assert!(!host.qemu_pids("old").is_empty(), "a released domain goes on");
    assert!(!host.virsh(["dumpxml", "old"]).contains("vmkeep:"), "without our mark");
}

#[test]
fn a_foreign_domain_is_never_touched() {
    let host = host_with_tiny("foreign");
    let uuid = foreign(&host, "web1");
    let file = host.path("m.yaml");
    std::fs::write(&file, manifest("web1", "")).expect("a manifest");
    let out = host.vmkeep(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && told.contains("adopt"), "a taken name is refused with the hint: {told}");
    assert_eq!(host.virsh(["domuuid", "web1"]).trim(), uuid);
    host.vmkeep(["vm", "delete", "web1", "--yes"]);
    assert!(!host.qemu_pids("web1").is_empty(), "deleting ours does not touch theirs");
}

#[test]
fn what_a_lost_store_knew_is_taken_back_as_it_runs() {
    let mut host = host_with_tiny("lost");
    let cloud_init = "cloud_init: {user: alice, password: s3cret, packages: [nginx], user_data: \"#!/bin/sh\\nls\\n\"}\n";
    host.apply(&manifest("a", cloud_init));
    let pids = host.qemu_pids("a");
    let seed = seed_sum(&host, &host.vm("a")["id"]);
    let volume = host.json(["volume", "show", "a-root", "-o", "json"])["id"].as_str().expect("an id").to_owned();
    host.kill_daemon();
    let gone = host.exec(["find", "/var/lib/vmkeep", "-name", "vmkeep.db*", "-print", "-delete"]);
    assert!(!gone.stdout.is_empty(), "there was a store");
    host.start_daemon();
    let listed = host.ok(["vm", "list", "-A"]);
    assert!(listed.contains("running (ours, but not in the store)"), "{listed}");
    host.ok(["vm", "adopt", "a"]);
    let vm = host.vm("a");
    assert_eq!((&vm["status"]["phase"], host.qemu_pids("a")), (&serde_json::json!("running"), pids), "{vm}");
    assert_eq!(vm["status"]["drift"], serde_json::json!([]), "a VM that was taken back is as wished");
    assert_eq!(host.json(["volume", "show", "a-root", "-o", "json"])["id"], volume.as_str(), "its disk is that volume again");
    assert_eq!((&vm["spec"]["cloud_init"]["user"], &vm["spec"]["cloud_init"]["packages"][0]), (&"alice".into(), &"nginx".into()), "{vm}");
    host.ok(["vm", "set", "a", "description=back again"]);
    let stored = host.virsh(["dumpxml", "a", "--inactive"]);
    assert!(stored.contains("back again") && stored.contains("vmkeep-seed"), "its seed stays with it: {stored}");
    assert_eq!(seed_sum(&host, &vm["id"]), seed, "as it was, to the byte");
    host.ok(["vm", "delete", "a", "--yes"]);
    let id = vm["id"].as_str().expect("an id");
    let left = host.exec(["find", "/var/lib/libvirt/images", "-name", &format!("{volume}*"), "-o", "-name", &format!("{id}*")]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "and both leave with their VM");
}

fn seed_sum(host: &Host, vm: &serde_json::Value) -> String {
    let file = format!("/var/lib/libvirt/images/vmkeep/seeds/{}-seed.img", vm.as_str().expect("an id"));
    let sum = host.exec(["sha256sum", &file]);
    assert!(sum.status.success(), "{}", String::from_utf8_lossy(&sum.stderr));
    String::from_utf8_lossy(&sum.stdout).into_owned()
}
