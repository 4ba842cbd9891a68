//! VMs that are off move between real hosts with the disks that only their host has, while agents and the leader are killed. The data
//! is the same to the byte afterwards, the source keeps none of it, and the guest starts from it.

use std::path::Path;

use serde_json::Value;
use vmkeep_e2e::cluster::Cluster;
use vmkeep_e2e::ha::RECOVERED;
use vmkeep_e2e::host::text;
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest};
use super::killed_moves::{Whom, struck};

pub(super) const POOL: &str = "/var/lib/libvirt/images/vmkeep";
/// 24 MB of a disk take long enough to be met in the middle.
const SLOW: &str = "4M";

fn node_of(vm: &Value) -> usize {
    vm["status"]["node"].as_str().and_then(|node| node.strip_prefix("node")?.parse::<usize>().ok()).expect("a node") - 1
}

/// Files of a VM that go along.
fn files(cluster: &Cluster, vm: &str) -> Vec<String> {
    let volumes = cluster.host(0).json(["volume", "list", "-o", "json"]);
    let mine =
        volumes.as_array().into_iter().flatten().filter(|v| v["name"].as_str().is_some_and(|name| name.starts_with(&format!("{vm}-"))));
    let mut files: Vec<String> =
        mine.map(|v| format!("{POOL}/{}.{}", v["id"].as_str().expect("an id"), v["format"].as_str().expect("a format"))).collect();
    let id = cluster.host(0).vm(vm)["id"].as_str().expect("an id").to_owned();
    files.push(format!("/var/lib/libvirt/qemu/nvram/{id}_VARS.fd"));
    files.push(format!("/var/lib/libvirt/swtpm/{id}/tpm2/tpm2-00.permall"));
    files
}

/// Checksum of each of them that is on the host.
fn sums(cluster: &Cluster, host: usize, files: &[String]) -> Vec<String> {
    let sum = |file: &String| {
        let out = text(&cluster.host(host).exec(["sha256sum", file]).stdout);
        out.split_whitespace().next().map(|sum| format!("{} {sum}", Path::new(file).extension().expect("one").to_string_lossy()))
    };
    files.iter().filter_map(sum).collect()
}

/// Moves it while somebody is killed; all is there, and nothing of it stays.
fn moved(cluster: &mut Cluster, vm: &str, whom: Whom) {
    let from = node_of(&cluster.host(0).vm(vm));
    let (to, asked) = ((from + 1) % 3, cluster.beside(from));
    let files = files(cluster, vm);
    let before = sums(cluster, from, &files);
    assert!(before.len() > 1, "{before:?}");
    let op = struck(cluster, (vm, SLOW), (from, to), whom, |cluster| {
        // Their sums would take as long as the copy.
        let there = text(&cluster.host(from).exec(["ls", "--"].into_iter().chain(files.iter().map(String::as_str))).stdout);
        assert_eq!(there.lines().count(), before.len(), "the source has it all: {there}");
    });
    assert_eq!(op["state"], "done", "{op}\n{}", cluster.logs());
    assert_eq!(sums(cluster, to, &files), before, "byte for byte, {whom:?} killed");
    assert_eq!(node_of(&cluster.host(asked).vm(vm)), to);
    until("the source keeps nothing", RECOVERED, || {
        let left = sums(cluster, from, &files);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}\n{}", cluster.logs())) }
    });
    println!("{vm}, {whom:?} killed: {} files on node{} as they were on node{}", before.len(), to + 1, from + 1);
}

fn on(cluster: &Cluster, vm: &str, phase: &str) -> usize {
    node_of(&cluster.host(0).phase(vm, phase, BOOT))
}

#[test]
fn vms_that_are_off_take_their_disks_along_whoever_is_killed() {
    let mut cluster = Cluster::new("cold", "");
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    let disks = "disks: [{name: root, image: tiny}, {name: data, empty: true, size: 256M, format: raw}]\n";
    cluster.host(0).apply(&manifest("data", &format!("run: on-failure\nnics: []\n{disks}")));
    cluster
        .host(0)
        .apply("kind: vm\nname: efi\nfirmware: uefi\ntpm: true\nmemory: 128M\nnics: []\ndisks: [{name: root, empty: true, size: 64M}]\n");
    for vm in ["data", "efi"] {
        cluster.host(0).ok(["vm", "start", vm]);
        let host = on(&cluster, vm, "running");
        cluster.host(0).ok(["vm", "stop", vm, "--force"]);
        cluster.host(0).phase(vm, "stopped", BOOT);
        // What a guest has written, at its disk's begin and behind a hole.
        for file in files(&cluster, vm).iter().filter(|file| file.ends_with(".raw")) {
            for seek in ["seek=0", "seek=200"] {
                let of = format!("of={file}");
                let out = cluster.host(host).exec(["dd", "if=/dev/urandom", &of, "bs=1M", "count=12", seek, "conv=notrunc"]);
                assert!(out.status.success(), "{}", text(&out.stderr));
            }
        }
    }
    for whom in [Whom::Source, Whom::Destination, Whom::Leader] {
        moved(&mut cluster, "data", whom);
        cluster.until_nodes(0, "online online online");
    }
    // One that runs is shut down for it, and runs again there.
    cluster.host(0).ok(["vm", "start", "data"]);
    let before = on(&cluster, "data", "running");
    cluster.host(0).ok(["vm", "migrate", "data", "--cold"]);
    let after = on(&cluster, "data", "running");
    assert_ne!(before, after);

    // A host is emptied of those that are off, too.
    let efi = on(&cluster, "efi", "stopped");
    let kept = files(&cluster, "efi");
    let variables = sums(&cluster, efi, &kept);
    assert_eq!(variables.len(), 3, "a disk, UEFI variables and what the TPM keeps: {variables:?}");
    let owner = |host: usize| text(&cluster.host(host).exec(["stat", "-c", "%U:%G", &kept[2]]).stdout);
    let was = owner(efi);
    cluster.host(0).ok(["node", "drain", &format!("node{}", efi + 1)]);
    let now = on(&cluster, "efi", "stopped");
    assert_ne!(now, efi);
    assert_eq!(sums(&cluster, now, &kept), variables, "as they were");
    assert_eq!(owner(now), was, "swtpm does not run as root");
    until("the source keeps nothing", RECOVERED, || {
        let left = sums(&cluster, efi, &kept);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    cluster.host(0).ok(["vm", "start", "efi"]);
    assert_eq!(on(&cluster, "efi", "running"), now);
}
