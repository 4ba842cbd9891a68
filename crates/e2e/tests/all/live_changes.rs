//! Changes to a running VM, and drift.

use std::time::Duration;

use vmkeep_e2e::host::text;

use super::hello::{BOOT, host_with_tiny, manifest, serial_says};

#[test]
fn what_libvirt_can_change_live_is_changed_live() {
    let host = host_with_tiny("live");
    let sized = |more: &str| manifest("a", &format!("cpus: {{count: 1, max: 2}}\n{more}"));
    host.apply(&sized("disks: [{name: root, image: tiny}]\n"));
    serial_says(&host, "a", "hello from a");
    let pids = host.qemu_pids("a");

    host.apply(&sized("disks:\n- {name: root, image: tiny, size: 2G}\n- {name: data, empty: true, size: 64M}\n"));
    let blocks = host.virsh(["domblklist", "a"]);
    assert!(blocks.lines().count() >= 3, "the data disk is attached: {blocks}");
    let info = host.virsh(["domblkinfo", "a", "vda"]);
    assert!(info.contains(&(2u64 << 30).to_string()), "the root disk grew: {info}");

    let plan = host.ok(["vm", "set", "a", "cpus.count=2"]);
    let counts = host.virsh(["vcpucount", "a", "--current", "--live"]);
    assert_eq!(counts.trim(), "2", "{plan}");
    assert_eq!(host.qemu_pids("a"), pids, "nothing of that needs another QEMU");

    host.ok(["vm", "set", "a", "memory=256M"]);
    let vm = host.vm("a");
    assert!(vm["status"]["pending"].as_array().is_some_and(|p| !p.is_empty()), "more memory than the maximum waits: {}", vm["status"]);
    assert_eq!(host.qemu_pids("a"), pids);
    host.ok(["vm", "restart", "a"]);
    assert_eq!(host.vm("a")["status"]["pending"].as_array().map(Vec::len), Some(0), "a cold restart takes it in");
    assert!(host.virsh(["dominfo", "a"]).contains("262144 KiB"));
}

#[test]
fn drift_shows_and_apply_mends_it() {
    let host = host_with_tiny("drift");
    let wish = manifest("a", "run: manual\n");
    host.apply(&wish);
    let edited = host.virsh(["dumpxml", "a", "--inactive"]).replace("131072", "262144");
    let xml = host.path("edited.xml");
    std::fs::write(&xml, edited).expect("a file");
    host.virsh(["define", xml.to_str().expect("a path")]);
    vmkeep_e2e::wait::until("the drift shows", Duration::from_secs(30), || {
        let vm = host.vm("a");
        if vm["status"]["drift"].as_array().is_some_and(|d| !d.is_empty()) { Ok(()) } else { Err(vm["status"].to_string()) }
    });
    let file = host.path("wish.yaml");
    std::fs::write(&file, &wish).expect("a manifest");
    let plan = host.ok(["plan".as_ref(), "-f".as_ref(), file.as_os_str()]);
    assert!(plan.contains("memory"), "{plan}");
    host.apply(&wish);
    assert!(host.virsh(["dominfo", "a"]).contains("131072 KiB"));
    assert_eq!(host.vm("a")["status"]["drift"].as_array().map(Vec::len), Some(0));

    // No event of libvirt tells of this one.
    host.virsh(["setmaxmem", "a", "64M", "--config"]);
    let plan = host.ok(["plan".as_ref(), "-f".as_ref(), file.as_os_str()]);
    assert!(plan.contains("changed outside of vmkeep"), "{plan}");
    host.virsh(["undefine", "a", "--nvram"]);
    let plan = host.ok(["plan".as_ref(), "-f".as_ref(), file.as_os_str()]);
    assert!(plan.contains("domain: undefined -> defined"), "{plan}");
    host.apply(&wish);
    assert!(host.virsh(["dominfo", "a"]).contains("131072 KiB"));
}

#[test]
fn a_foreign_overlay_is_a_conflict_and_never_lost() {
    let host = host_with_tiny("overlay");
    host.apply(&manifest("a", "disks: [{name: root, image: tiny}, {name: data, empty: true, size: 8M, format: raw}]\n"));
    serial_says(&host, "a", "hello from a");
    host.virsh(["snapshot-create-as", "a", "backup", "--disk-only", "--atomic", "--no-metadata"]);
    let before = host.virsh(["domblklist", "a"]);
    assert!(before.contains(".backup"), "virsh made an overlay: {before}");
    let edit = host.vmkeep(["vm", "set", "a", "memory=256M"]);
    let told = String::from_utf8_lossy(&edit.stderr).into_owned();
    assert!(!edit.status.success() && told.contains("adopt"), "an edit never writes over the chain: {told}");
    host.vmkeep(["vm", "kill", "a", "--yes"]);
    host.phase("a", "stopped", BOOT);
    let out = host.vmkeep(["vm", "start", "a"]);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && told.contains("adopt"), "the start is refused with the way out: {told}");
    assert!(host.virsh(["domblklist", "a", "--inactive"]).contains(".backup"), "the overlay is still in the domain");
    host.ok(["vm", "adopt", "a", "--disks"]);
    host.ok(["vm", "start", "a"]);
    serial_says(&host, "a", "hello from a");
    assert!(host.virsh(["domblklist", "a"]).contains(".backup"), "accepted as it is");
    // The next description that vmkeep writes: read as raw, the guest would write into the overlay's own tables.
    host.ok(["vm", "set", "a", "description=again"]);
    let xml = host.virsh(["dumpxml", "a", "--inactive"]);
    let overlays: Vec<&str> = xml.split("<disk ").skip(1).filter(|disk| disk.contains(".backup")).collect();
    assert!(overlays.len() == 2 && overlays.iter().all(|disk| disk.contains("type='qcow2'")) && xml.contains("again"), "{xml}");
}

#[test]
fn a_rebuilt_vm_has_a_fresh_root_disk_and_nothing_of_the_old_one() {
    let host = host_with_tiny("rebuild");
    host.apply(&manifest("a", "disks: [{name: root, image: tiny}]\n"));
    let volumes = || host.json(["volume", "list", "-o", "json"]);
    let files = || text(&host.exec(["find", "/var/lib/libvirt/images/vmkeep", "-maxdepth", "1", "-name", "*.qcow2"]).stdout);
    let (old, mac) = (volumes()[0]["id"].clone(), host.vm("a")["choices"]["macs"].clone());
    let refused = host.vmkeep(["vm", "rebuild", "a", "--yes"]);
    assert!(text(&refused.stderr).contains("only a stopped VM"), "{}", text(&refused.stderr));
    host.ok(["vm", "stop", "a", "--timeout", "3s"]);
    host.ok(["vm", "rebuild", "a", "--yes"]);
    vmkeep_e2e::wait::until("the old volume is gone", Duration::from_secs(30), || {
        let (volumes, files) = (volumes(), files());
        let gone = volumes.as_array().map(Vec::len) == Some(1) && volumes[0]["id"] != old && files.lines().count() == 1;
        if gone { Ok(()) } else { Err(format!("{volumes} {files}")) }
    });
    host.ok(["vm", "start", "a"]);
    serial_says(&host, "a", "hello from a");
    let vm = host.vm("a");
    assert_eq!((vm["choices"]["macs"].clone(), vm["status"]["conflicts"].as_array().map(Vec::len)), (mac, Some(0)));
    host.ok(["vm", "reinit", "a"]);
}
