//! Three hosts are one system: any control plane serves all nodes, leaders may die, nodes may be cut off.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use vmkeep_e2e::cluster::Cluster;
use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::ticks::{self, Run};
use vmkeep_e2e::wait::until;

use super::cold_moves::POOL;
use super::consoles::answers;
use super::hello::{BOOT, manifest, serial_says};

/// Silence, a new leader's patience and what two cores add.
const NOTICED: Duration = Duration::from_secs(90);
/// Typed in a guest's shell, and what it says then.
const ECHO: (&str, &str) = ("echo far-$((40+2))", "far-42");

fn node_of(vm: &serde_json::Value) -> usize {
    vm["status"]["node"].as_str().and_then(|node| node.strip_prefix("node")?.parse::<usize>().ok()).expect("a node") - 1
}

#[test]
fn vms_spread_over_three_hosts_and_every_control_plane_reaches_them() {
    let image = tiny();
    let mut cluster = Cluster::new("tri", "");
    // Imported on one node, needed on all: the others fetch it.
    cluster.host(1).ok(["image".as_ref(), "import".as_ref(), image.as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    let data = a_disk_is_written_before_its_guest_runs(&cluster);
    for name in ["b", "c"] {
        cluster.host(0).apply(&manifest(name, "run: always\n"));
    }
    let placed: Vec<_> = ["a", "b", "c"].map(|name| node_of(&cluster.host(0).phase(name, "running", BOOT))).to_vec();
    assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), 3, "spread: {placed:?}\n{}", cluster.logs());
    let ops = cluster.host(2).ok(["op", "list", "-o", "json"]);
    assert!(ops.contains("image tiny: fetched from node2"), "{ops}");

    // Serial log and console of a VM on another node than the API's.
    let far = ["a", "b", "c"][placed.iter().position(|node| *node != 0).expect("one is elsewhere")];
    serial_says(cluster.host(0), far, &format!("hello from {far}"));
    answers(cluster.host(0), far, ECHO.0, ECHO.1).expect("the far console answers");

    // The leader dies; another leads and carries a new wish out.
    let leader = cluster.leader();
    cluster.members[leader].kill_control();
    let asked = (leader + 1) % 3;
    cluster.host(asked).apply(&manifest("d", "run: always\n"));
    cluster.host(asked).phase("d", "running", BOOT);
    assert_ne!(cluster.leader(), leader);
    cluster.members[leader].start_control();
    cluster.until_nodes(leader, "online online online");

    placement_is_told(cluster.host(1), placed[0]);
    a_cut_node_is_told_and_comes_back(&cluster, placed[1]);
    a_host_is_emptied_while_its_guests_run(&cluster, placed[0], &data);
    for name in ["a", "b", "c", "d"] {
        cluster.host(0).ok(["vm", "delete", name, "--yes"]);
    }
    cluster.host(0).ok(["image", "delete", "tiny", "--yes"]);
    for member in &cluster.members {
        let left = text(&member.host.exec(["find", "/var/lib/libvirt/images/vmkeep/images", "-type", "f"]).stdout);
        assert_eq!(left.trim(), "", "the image is deleted wherever it was copied to");
    }
}

/// Why a VM is where it is, what may fail and what would fit: in words, and as data.
fn placement_is_told(asked: &Host, of_a: usize) {
    let own = format!("node{}", of_a + 1);
    let nodes = ["node1", "node2", "node3"];
    let explained = asked.json(["vm", "explain", "a", "-o", "json"]);
    let mut told: Vec<&str> = explained["nodes"].as_array().expect("nodes").iter().filter_map(|n| n["node"].as_str()).collect();
    told.sort_unstable();
    assert_eq!((&explained["node"], told), (&own.as_str().into(), nodes.to_vec()), "{explained}");
    let words = asked.ok(["vm", "explain", "a"]);
    let here: Vec<&str> = words.lines().filter(|line| line.contains(" * ")).collect();
    assert!(here.len() == 1 && here[0].starts_with(&own) && here[0].contains("yes"), "{words}");
    assert_eq!(words.matches("its volumes are on another node").count(), 2, "{words}");

    let capacity = asked.json(["cluster", "capacity", "-o", "json"]);
    assert_eq!((&capacity["vms"], &capacity["homeless"], &capacity["may_fail"]), (&4.into(), &0.into(), &2.into()), "{capacity}");
    let per_node: u64 = capacity["nodes"].as_array().expect("nodes").iter().filter_map(|node| node["vms"].as_u64()).sum();
    assert_eq!(per_node, 4, "{capacity}");
    let words = asked.ok(["cluster", "capacity"]);
    assert!(nodes.iter().all(|node| words.contains(node)) && words.contains("2 nodes may fail at once"), "{words}");
    assert!(words.contains("4 of 4 VMs have their disks on one node only"), "{words}");

    let add = |vms: &str| ["cluster", "simulate", "--add", vms].map(str::to_owned).to_vec();
    let small = add("3xcpus=1,memory=64M");
    let words = asked.ok(&small);
    assert!(words.contains("All 3 fit.") && words.contains("Nodes that may fail: 2 now, 2 with them."), "{words}");
    let answer = asked.json(small.into_iter().chain(["-o", "json"].map(str::to_owned)));
    assert_eq!((&answer["placed"], &answer["broken"]), (&3.into(), &serde_json::Value::Null), "{answer}");
    let everywhere: u64 = answer["by_node"].as_object().expect("nodes").values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(everywhere, 3, "{answer}");
    let words = asked.ok(add("2xcpus=1,memory=9T"));
    assert!(words.contains("0 of 2 fit; 'sim1-1' is the first that finds no node:"), "{words}");
    for node in nodes {
        assert!(words.contains(&format!("  {node}: needs 9T of memory, the host has ")), "{words}");
    }
    assert!(!asked.ok(["vm", "list"]).contains("sim"), "nothing was made");
}

/// The second disk of `a`: the guest's ticks are in its first 64 KiB, what was there before the guest behind a hole and another one.
struct Data {
    file: String,
    sum: String,
}

impl Data {
    fn at(&self, host: &Host) -> PathBuf {
        host.lab_folder().join(&self.file[1..])
    }

    /// Of all but the ticks.
    fn sum_on(&self, host: &Host) -> String {
        text(&host.exec(["sh", "-c", &format!("tail -c +1048577 {} | sha256sum", self.file)]).stdout)
    }

    /// One boot's, without a hole.
    fn ticks(&self, host: &Host) -> Run {
        let mut runs = ticks::runs(&self.at(host)).expect("whole ticks");
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }
}

fn a_disk_is_written_before_its_guest_runs(cluster: &Cluster) -> Data {
    let disks = "disks: [{name: root, image: tiny}, {name: data, empty: true, size: 64M, format: raw}]\n";
    cluster.host(0).apply(&manifest("a", &format!("run: manual\n{disks}")));
    let host = cluster.host(node_of(&cluster.host(0).phase("a", "stopped", BOOT)));
    let id = cluster.host(0).json(["volume", "show", "a-data", "-o", "json"])["id"].as_str().expect("an id").to_owned();
    let mut data = Data { file: format!("{POOL}/{id}.raw"), sum: String::new() };
    let of = format!("of={}", data.file);
    for seek in ["seek=8", "seek=48"] {
        let out = host.exec(["dd", "if=/dev/urandom", &of, "bs=1M", "count=4", seek, "conv=notrunc"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }
    data.sum = data.sum_on(host);
    cluster.host(0).ok(["vm", "start", "a"]);
    cluster.host(0).phase("a", "running", BOOT);
    data
}

/// The disks are in a pool of each host: their data goes along, and nothing of it stays.
fn a_host_is_emptied_while_its_guests_run(cluster: &Cluster, from: usize, data: &Data) {
    let node = format!("node{}", from + 1);
    let before = data.ticks(cluster.host(from));
    cluster.host(0).ok(["node", "maintenance", &node, "on", "--why", "new disks"]);
    let ops = cluster.host(1).ok(["op", "list", "-o", "json"]);
    assert!(ops.contains(&format!("{node} -> ")) && ops.contains("live, 2 disks copied along"), "{ops}");
    for name in ["a", "b", "c", "d"] {
        assert_ne!(node_of(&cluster.host(0).phase(name, "running", NOTICED)), from, "{ops}");
    }
    answers(cluster.host(0), "a", ECHO.0, ECHO.1).expect("its console answers");
    its_data_came_along(cluster, data, &before);
    until("nothing stays there", NOTICED, || {
        let files = text(&cluster.host(from).exec(["find", POOL, "-maxdepth", "1", "-type", "f"]).stdout);
        let left = format!("{}{files}", cluster.host(from).virsh(["list", "--all", "--name"]));
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    let cordon = cluster.host(2).json(["node", "show", &node, "-o", "json"])["cordon"].clone();
    assert_eq!((&cordon["closure"], &cordon["why"]), (&"maintenance".into(), &"new disks".into()), "{cordon}");
    let nodes = cluster.host(0).ok(["node", "list"]);
    assert!(nodes.contains("maintenance"), "{nodes}");
    cluster.host(0).ok(["node", "maintenance", &node, "off"]);
    let nodes = cluster.host(0).ok(["node", "list"]);
    assert!(!nodes.contains("maintenance") && !nodes.contains("cordoned"), "{nodes}");
}

/// What was on its disk before it ran, and what it wrote before it moved, on its way and after.
fn its_data_came_along(cluster: &Cluster, data: &Data, before: &Run) {
    let host = cluster.host(node_of(&cluster.host(0).vm("a")));
    let arrived = data.ticks(host);
    until("it ticks on", BOOT, || {
        let now = data.ticks(host);
        if now.last > arrived.last { Ok(()) } else { Err(format!("{now:?}")) }
    });
    cluster.host(0).ok(["vm", "stop", "a", "--force"]);
    cluster.host(0).phase("a", "stopped", BOOT);
    let all = data.ticks(host);
    assert_eq!((&all.boot, all.first), (&before.boot, before.first), "{before:?} {all:?}");
    assert!(before.last.0 > 0 && all.last.0 > before.last.0, "{before:?} {all:?}");
    assert_eq!(data.sum_on(host), data.sum, "{}", data.file);
    println!("{all}; {} of them before it moved", before.last.0);
}

/// Its VMs stay, and are told as unknown; when the cable is in again they are found as they were.
fn a_cut_node_is_told_and_comes_back(cluster: &Cluster, cut: usize) {
    let (asked, name) = ((cut + 1) % 3, "b");
    let before = cluster.host(cut).qemu_pids(name);
    cluster.host(cut).cut();
    let words = format!("unknown: node 'node{}' is offline", cut + 1);
    until("the VM's node is told offline", NOTICED, || {
        let out = text(&cluster.host(asked).vmkeep(["vm", "show", name, "-o", "json"]).stdout);
        if out.contains(&words) { Ok(()) } else { Err(format!("{out}\n{}", cluster.logs())) }
    });
    let states: Vec<&str> = (0..3).map(|n| if n == cut { "offline" } else { "online" }).collect();
    cluster.until_nodes(asked, &states.join(" "));
    assert_eq!(cluster.host(cut).qemu_pids(name), before, "a guest does not need the cluster");
    cluster.host(cut).join();
    cluster.until_nodes(asked, "online online online");
    cluster.host(asked).phase(name, "running", NOTICED);
    assert_eq!(cluster.host(cut).qemu_pids(name), before, "it ran all the time");
}
