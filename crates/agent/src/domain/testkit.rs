//! Orders, hosts and the matrix of wishes that the tests of this module share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vmkeep_types::host::KvmState;
use vmkeep_types::ids::{Epoch, Generation, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::order::Order;
use vmkeep_types::record::{Power, PowerWish, VmChoices, VmOrigin};
use vmkeep_types::vm::VmSpec;

use super::{BuildInput, Built, DiskSource, HostFacts, HostProfile, build};
use crate::net::NetAttach;

const FIRMWARE: [(&str, &str); 2] = [("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"), ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")];

/// A host as libvirt 11.3 describes it; firmware at Debian's paths, whether this machine has it or not.
pub fn host(kvm: KvmState) -> HostProfile {
    let capabilities = match &kvm {
        KvmState::Usable => include_str!("testdata/domcaps-kvm.xml"),
        KvmState::Unusable { why: _ } => include_str!("testdata/domcaps-tcg.xml"),
    };
    let known = |path: &str| FIRMWARE.iter().any(|(code, vars)| path.ends_with(code) || path.ends_with(vars));
    let facts = HostFacts { kvm, descriptors: Vec::new(), exists: known, io_uring: true, vhost_net: true };
    HostProfile::from_capabilities(capabilities, &facts).expect("real capabilities")
}

pub fn kvm() -> HostProfile {
    host(KvmState::Usable)
}

pub fn tcg() -> HostProfile {
    host(KvmState::Unusable { why: "no vmx or svm in /proc/cpuinfo".into() })
}

pub fn spec(mut wish: Value) -> VmSpec {
    wish.as_object_mut().expect("a map").entry("name").or_insert(json!("vm1"));
    serde_json::from_value(wish).expect("a wish")
}

pub fn order(wish: Value) -> Order {
    let spec = spec(wish);
    let macs = spec.nics.iter().enumerate().map(|(n, nic)| (nic.name.clone(), format!("52:54:00:aa:bb:{n:02x}"))).collect();
    let serials = spec.disks.iter().map(|d| (d.name.clone(), format!("ser-{}", d.name))).collect();
    Order {
        vm: VmId(uuid::Uuid::from_u128(0x6b0e_0a52_1111_4222_8333_4444_5555_6666)),
        project: Name::known("default"),
        spec,
        spec_revision: Revision(7),
        generation: Generation(1),
        epoch: Epoch(1),
        choices: VmChoices { macs, serials, ..VmChoices::default() },
        power: Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None },
        origin: VmOrigin::Created,
        leaving: None,
        level: 0,
        instance: 0,
        volumes: BTreeMap::new(),
        images: BTreeMap::new(),
        networks: BTreeMap::new(),
        pools: BTreeMap::new(),
        moving: None,
        handed: None,
    }
}

/// Where the disks of test orders lie.
pub const IMAGES: &str = "/var/lib/libvirt/images/vmkeep";

pub fn try_build(order: &Order, host: &HostProfile) -> Result<Built, vmkeep_types::error::Error> {
    let path = |name: &Name| PathBuf::from(format!("{IMAGES}/{name}.qcow2"));
    let source = |name: &Name| DiskSource { path: path(name), format: "qcow2".into(), o_direct: true };
    let disks = order.spec.disks.iter().map(|d| (d.name.clone(), source(&d.name))).collect();
    let iso = |image: &Name| PathBuf::from(format!("{IMAGES}/{image}.iso"));
    let cdroms = order.spec.cdroms.iter().map(|c| (c.name.clone(), c.image.as_ref().map(iso))).collect();
    let attach = |network: &Name| match network.as_str() {
        "lan0" => NetAttach { libvirt_network: None, bridge: Some("br0".into()), mtu: Some(9000) },
        name => NetAttach { libvirt_network: Some(format!("vmkeep-{name}")), bridge: None, mtu: None },
    };
    let nics = order.spec.nics.iter().map(|n| (n.name.clone(), attach(&n.network))).collect();
    let seed = order.spec.cloud_init.is_some().then(|| PathBuf::from(format!("{IMAGES}/{}-seed.img", order.vm)));
    let run_dir = Path::new("/var/log/libvirt/qemu");
    let name = order.spec.name.as_str();
    build(&BuildInput { order, name, host, disks: &disks, cdroms: &cdroms, seed: seed.as_deref(), nics: &nics, run_dir })
}

pub fn built(order: &Order, host: &HostProfile) -> String {
    try_build(order, host).expect("the host has it all").xml
}

/// One wish of each kind; the name is that of its files in `testdata/golden`.
pub fn matrix() -> Vec<(String, Order, HostProfile)> {
    let mut all: Vec<(String, Order, HostProfile)> = Vec::new();
    for (accel, host) in [("tcg", tcg()), ("kvm", kvm())] {
        for (name, wish) in wishes() {
            let mut wish = wish;
            wish["name"] = json!(format!("{accel}-{name}"));
            let mut order = order(wish);
            order.vm = VmId(uuid::Uuid::from_u128(order.vm.0.as_u128() + all.len() as u128 + 1));
            all.push((format!("{accel}-{name}"), order, host.clone()));
        }
    }
    all
}

fn wishes() -> Vec<(&'static str, Value)> {
    let root = || json!([{"name": "root", "empty": true, "size": "1G"}]);
    vec![
        ("uefi", json!({"disks": root(), "memory": "128M"})),
        ("bios", json!({"firmware": "bios", "disks": root(), "memory": "128M", "description": "two\nlines & <more>"})),
        ("secure", json!({"secure_boot": true, "tpm": true, "disks": root(), "memory": {"size": "128M", "max": "256M"}})),
        (
            "windows",
            json!({"os": "windows", "disks": root(), "cdroms": [{"name": "cd0", "image": null}, {"name": "drivers", "image": "virtio-win"}],
                           "clock": "localtime", "memory": "256M"}),
        ),
        ("other", json!({"os": "other", "machine": "pc", "firmware": "bios", "disks": root(), "memory": "64M", "cloud_init": null})),
        ("pc-virtio", json!({"machine": "pc", "disks": root(), "memory": "64M", "watchdog": {"model": "i6300esb", "action": "poweroff"}})),
        (
            "buses",
            json!({"firmware": "bios", "memory": "128M", "boot": ["b", "lan"], "disks": [
            {"name": "a", "empty": true, "size": "1G", "bus": "scsi", "limits": {"iops": 500, "bandwidth": "50M"}},
            {"name": "b", "empty": true, "size": "1G", "bus": "sata", "cache": "writeback", "discard": false},
            {"name": "c", "empty": true, "size": "1G", "bus": "virtio", "read_only": true, "cache": "writethrough", "serial": "own-serial"},
            {"name": "d", "empty": true, "size": "1G", "bus": "scsi", "cache": "unsafe"}]}),
        ),
        (
            "cpus",
            json!({"firmware": "bios", "disks": root(), "memory": {"size": "128M", "balloon": false}, "cpu": {"model": "max", "features": {"svm": "off", "x2apic": "on"}},
                        "cpus": {"count": 2, "max": 8, "sockets": 2, "cores": 2, "threads": 2}, "agent": false, "rng": false, "serial": {"log": "0B"}}),
        ),
        (
            "named-cpu",
            json!({"firmware": "bios", "disks": root(), "memory": "128M", "cpu": {"model": "qemu64", "features": {"sse4.1": "on"}}}),
        ),
        (
            "nics",
            json!({"firmware": "bios", "disks": root(), "memory": "128M", "nics": [
            {"name": "lan", "queues": 2}, {"name": "old", "model": "rtl8139", "link": "down"},
            {"name": "e", "model": "e1000e", "mtu": 1400}, {"name": "ext", "network": "lan0", "mac": "52:54:00:12:34:AB"}]}),
        ),
        (
            "watchdog",
            json!({"firmware": "bios", "disks": root(), "memory": "128M", "watchdog": {"model": "i6300esb", "action": "poweroff"}}),
        ),
        (
            "itco",
            json!({"firmware": "bios", "disks": root(), "memory": "128M", "watchdog": {"model": "itco", "action": "pause"}, "display": null}),
        ),
        (
            "tcp-vnc",
            json!({"firmware": "bios", "disks": root(), "memory": "128M", "display": {"listen": "tcp", "password": "secret12", "video": "vga"}}),
        ),
        ("shares", json!({"firmware": "bios", "disks": root(), "memory": "128M", "shares": [{"name": "src", "path": "/srv"}]})),
        (
            "devices",
            json!({"firmware": "bios", "disks": root(), "memory": {"size": "128M", "hugepages": true},
                           "devices": {"pci": ["0000:03:00.0"], "usb": ["1d6b:0002"]}}),
        ),
        (
            "patched",
            json!({"firmware": "bios", "disks": root(), "memory": "128M", "libvirt_xml": [
            {"op": "add", "path": "devices", "value": "<sound model='ich9'/>"},
            {"op": "add", "path": "features", "value": "<pmu state='off'/>"},
            {"op": "replace", "path": "devices/disk[@alias=ua-disk-root]/driver/@io", "value": "threads"},
            {"op": "remove", "path": "devices/panic"}]}),
        ),
    ]
}
