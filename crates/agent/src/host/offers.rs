//! What VMs may need of this host: its NUMA nodes, bridges, PCI devices and huge pages, and the CPUs that guests can have.
//!
//! Read from /sys and from libvirt's domain capabilities. What cannot be read stays empty, which refuses no VM.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use vmkeep_types::host::{NodeOffers, NumaNode};
use vmkeep_types::units::ByteCount;

use super::check::watchdog;
use super::facts::meminfo_field;
use crate::domain::HostProfile;

/// Devices that one host tells: the largest of today have some hundreds.
const DEVICES_MAX: usize = 4096;

/// What the kernel tells; libvirt's part is added by [`cpus`].
pub fn of_kernel(sys: &Path) -> NodeOffers {
    let net = sys.join("class/net");
    // Ours come and go with their networks, and nobody plugs a network into them.
    let theirs = |name: &String| net.join(name).join("bridge").is_dir() && !name.starts_with("vmk");
    let bridges = entries(&net).into_iter().filter(theirs).collect();
    NodeOffers {
        arch: std::env::consts::ARCH.to_owned(),
        numa: numa(&sys.join("devices/system/node")),
        bridges,
        pci: entries(&sys.join("bus/pci/devices")),
        hugepages: hugepages(&sys.join("kernel/mm/hugepages")),
        watchdog_min_s: watchdog::shortest_s(sys),
        ..NodeOffers::default()
    }
}

/// The CPUs that guests can have here, by libvirt's word.
pub fn cpus(offers: &mut NodeOffers, profile: &HostProfile) {
    offers.cpu_models.clone_from(&profile.usable_cpus);
    offers.machines.clone_from(&profile.machines);
    offers.cpu_features = profile.host_features();
    offers.cpu_model.clone_from(&profile.guest_cpus.own);
    offers.cpu_guest_features.clone_from(&profile.guest_cpus.features);
    offers.cpu_models_without.clone_from(&profile.guest_cpus.models_without);
}

fn entries(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().take(DEVICES_MAX);
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn numa(dir: &Path) -> Vec<NumaNode> {
    let node = |name: &str| {
        let id = name.strip_prefix("node")?.parse().ok()?;
        let at: PathBuf = dir.join(name);
        let cpus = entries(&at).iter().filter(|entry| entry.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok())).count();
        // `Node 0 MemTotal:  4030000 kB`
        let meminfo = fs::read_to_string(at.join("meminfo")).ok()?.replace(&format!("Node {id} "), "");
        Some(NumaNode { id, cpus: u32::try_from(cpus).ok()?, memory: meminfo_field(&meminfo, "MemTotal")? })
    };
    let mut nodes: Vec<NumaNode> = entries(dir).iter().filter_map(|name| node(name)).collect();
    nodes.sort_by_key(|node| node.id);
    nodes
}

/// Of all sizes of pages together.
fn hugepages(dir: &Path) -> ByteCount {
    let of_size = |name: &String| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages: u64 = fs::read_to_string(dir.join(name).join("nr_hugepages")).ok()?.trim().parse().ok()?;
        kib.checked_mul(1024)?.checked_mul(pages)
    };
    ByteCount::from_bytes(entries(dir).iter().filter_map(of_size).fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_sys_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        write("class/net/br0/bridge/stp_state", "0");
        write("class/net/eth0/mtu", "1500");
        write("bus/pci/devices/0000:03:00.0/vendor", "0x8086");
        write("kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n");
        write("kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1\n");
        write("class/watchdog/watchdog0/identity", "Software Watchdog\n");
        write("class/watchdog/watchdog0/min_timeout", "1\n");
        write("class/watchdog/watchdog1/identity", "iTCO_wdt\n");
        write("class/watchdog/watchdog1/min_timeout", "6\n");
        for node in 0..2 {
            write(&format!("devices/system/node/node{node}/meminfo"), &format!("Node {node} MemTotal:       1024 kB\n"));
            write(&format!("devices/system/node/node{node}/cpu{node}/online"), "1");
            write(&format!("devices/system/node/node{node}/cpumap"), "3");
        }
        let offers = of_kernel(dir.path());
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!((names(&offers.bridges).as_str(), names(&offers.pci).as_str()), ("br0", "0000:03:00.0"));
        assert_eq!(offers.hugepages, ByteCount::from_bytes((6 << 20) + (1 << 30)));
        assert_eq!(offers.watchdog_min_s, Some(6), "the kernel's own says nothing of the other one");
        let near = |id| NumaNode { id, cpus: 1, memory: ByteCount::from_mib(1) };
        assert_eq!(offers.numa, [near(0), near(1)]);
        assert_eq!(of_kernel(Path::new("/nowhere")).numa, []);
    }
}
