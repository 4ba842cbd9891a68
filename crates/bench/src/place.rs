//! Placement in a cluster that is in memory only: the leader's view and planner, fed with changes as its watch brings them.
//!
//! Nothing is written and no agent answers: what is measured is the thinking, not the store.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};
use vmkeep_core::place::{self, Choice, Fleet, Guest, capacity};
use vmkeep_server::reconcile::view::{ClusterView, Touched};
use vmkeep_server::reconcile::{Whose, plan};
use vmkeep_store::{Change, KeyValue, Op, Txn, keys};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::{NetworkId, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::node::{NodeRecord, NodeSpec};
use vmkeep_types::record::VmRecord;
use vmkeep_types::units::ByteCount;

use crate::report::{Report, Samples, Wanted};

/// What a host with QEMU 10 tells: that many models of CPUs, features that guests can have, machine types and PCI devices.
const MODELS: usize = 110;
const FEATURES: usize = 170;
const MACHINES: usize = 90;
const DEVICES: usize = 60;
/// Wanted of one VM, milliseconds.
const ONE_MS: f64 = 5.0;
/// Wanted of the VMs of a lost node, milliseconds.
const LOST_MS: f64 = 50.0;
/// VMs of a node that is lost.
const LOST_VMS: usize = 50;
const NODE_CPUS: u32 = 32;
const NODE_GIB: u64 = 128;

#[derive(clap::Args)]
pub struct Args {
    /// Nodes, each with 32 CPUs and 128 GiB, in racks of 20.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// VMs that have a node already; 1 to 4 vCPUs, 1 to 4 GiB, on a bridge that each node has, with a CPU that was chosen for them; one
    /// in ten with rules.
    #[arg(long, default_value_t = 20_000)]
    vms: usize,
    /// Choices that are measured.
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// Fill nodes with VMs of this many GiB and one vCPU per two until none fits, and say how many did; nothing else is measured.
    #[arg(long, value_name = "GIB")]
    fill: Option<u64>,
}

pub fn run(args: &Args) -> anyhow::Result<Report> {
    anyhow::ensure!(args.nodes > 1 && args.rounds > 0, "a choice needs two nodes and one round");
    let mut report = Report::default();
    if let Some(gib) = args.fill {
        fill(args, gib, &mut report);
        return Ok(report);
    }
    let (mut view, begun) = timed(|| filled(args));
    report.number("facts of a node", bytes(&facts(0)) as f64 / 1024.0, "KiB", None);
    report.number("view of the whole cluster", milliseconds(begun), "ms", None);
    let one = repeat(args.rounds, |n| one_more(&mut view, args.vms + n));
    report.number("one VM, change to plan, p99", milliseconds(one.percentile(99)), "ms", Some(Wanted::AtMost(ONE_MS)));
    report.samples("one VM, change to plan", one);
    let lost = repeat((args.rounds / LOST_VMS).clamp(1, 100), |n| lose(&mut view, n * LOST_VMS));
    report.number(format!("{LOST_VMS} lost VMs, p99"), milliseconds(lost.percentile(99)), "ms", Some(Wanted::AtMost(LOST_MS)));
    report.samples(format!("{LOST_VMS} lost VMs"), lost);
    let facts = repeat(args.rounds, |n| changed_facts(&mut view, n % args.nodes));
    report.samples("a node's facts change", facts);
    let fleet = view.fleet();
    let guest = planned(args.vms * 2 + 1);
    report.samples("choose alone", repeat(args.rounds, |_| timed(|| place::choose(fleet, &guest)).1));
    report.samples("explain", repeat(args.rounds.min(100), |_| timed(|| place::explain(fleet, &guest)).1));
    let (may_fail, took) = timed(|| capacity::capacity(fleet).may_fail);
    report.number(format!("capacity (N+{may_fail})"), milliseconds(took), "ms", None);
    Ok(report)
}

fn repeat(rounds: usize, mut once: impl FnMut(usize) -> Duration) -> Samples {
    let begin = Instant::now();
    let latencies = (0..rounds).map(&mut once).collect();
    Samples::new(latencies, begin.elapsed())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let done = work();
    (done, begin.elapsed())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn kv<T: Serialize>(key: String, value: &T) -> KeyValue {
    let value = serde_json::to_vec(value).expect("records are plain data");
    KeyValue { key, value, created: Revision(1), modified: Revision(1) }
}

fn node_name(n: usize) -> Name {
    format!("node{n:04}").parse().expect("a word and a number make a name")
}

fn bytes<T: Serialize>(record: &T) -> usize {
    serde_json::to_vec(record).expect("records are plain data").len()
}

/// Of two generations of CPUs: the older one has fewer features, and two more models that are not whole.
fn offers(n: usize) -> Value {
    let names = |what: &str, from: usize, to: usize| (from..to).map(|n| format!("{what}{n}")).collect::<Vec<_>>();
    let old = n % 2;
    let without: BTreeMap<String, Vec<String>> =
        (0..10 + 2 * old).map(|m| (format!("Generation-Server-v{m}"), names("feature-", m, m + 4))).collect();
    json!({
        "arch": "x86_64", "cpu_models": names("Generation-Server-v", 20, MODELS), "cpu_model": "Generation-Server-v0",
        "cpu_guest_features": names("feature-", 10 * old, FEATURES), "cpu_models_without": without, "machines": names("pc-q35-", 0, MACHINES),
        "bridges": ["vmbr0"], "pci": (0..DEVICES).map(|n| format!("0000:{n:02x}:00.0")).collect::<Vec<_>>()
    })
}

fn facts(n: usize) -> NodeFacts {
    let facts = json!({
        "offers": offers(n),
        "name": node_name(n), "epoch": 1, "boot_id": "b", "cpus": NODE_CPUS, "memory": ByteCount::from_gib(NODE_GIB), "kvm": {"is": "usable"},
        "libvirt_version": "11.3", "qemu_version": "10.0", "vmkeep_version": "0.1.0", "hypervisor_up": true
    });
    serde_json::from_value(facts).expect("facts as an agent writes them")
}

fn record(n: usize) -> NodeRecord {
    let failure_domain = Some(format!("rack{}", n / 20));
    NodeRecord { spec: NodeSpec { failure_domain, ..NodeSpec::named(node_name(n)) }, cordon: None }
}

fn id(n: usize) -> VmId {
    VmId(uuid::Uuid::from_u128(n as u128 + 1))
}

/// One of ten belongs to a group of ten that is to be kept apart.
fn spec(n: usize) -> Value {
    let placement = if n.is_multiple_of(10) {
        json!({"anti_affinity": [{"labels": {"group": format!("g{}", n / 100)}, "strict": true}]})
    } else {
        json!({})
    };
    json!({
        "name": format!("vm{n}"), "cpus": {"count": 1 + n % 4}, "memory": {"size": ByteCount::from_gib(1 + (n as u64 / 3) % 4)},
        "nics": [{"name": "lan", "network": "lan"}],
        "labels": {"group": format!("g{}", n / 100), "app": format!("a{}", n % 50)}, "placement": placement
    })
}

fn vm_record(n: usize) -> VmRecord {
    let record = json!({
        "id": id(n), "project": "default", "spec": spec(n), "volumes": {}, "created_at": "2026-01-01T00:00:00Z", "origin": "created", "leaving": null
    });
    serde_json::from_value(record).expect("a record as the server writes it")
}

fn planned(n: usize) -> Guest {
    let record = vm_record(n);
    Guest::planned(record.id, record.project, &record.spec)
}

fn vm(n: usize) -> [KeyValue; 3] {
    let power = json!({"want": "on", "cycle": 1, "held": null});
    let without: String = (0..4).map(|f| format!("<feature policy='disable' name='feature-{f}'/>")).collect();
    let with = "<feature policy='require' name='feature-99'/>";
    let cpu = format!("<cpu mode='custom' match='exact'><model>Generation-Server-v0</model>{without}{with}</cpu>");
    let choices = json!({"macs": {"lan": format!("52:54:00:00:{:02x}:{:02x}", n / 256 % 256, n % 256)}, "serials": {}, "domain_type": "kvm", "cpu_xml": cpu});
    [kv(keys::vm(&Name::known("default"), id(n)), &vm_record(n)), kv(keys::power(id(n)), &power), kv(keys::choices(id(n)), &choices)]
}

/// That all nodes know of: each new one among them is written once, and looks at all VMs on it.
fn network(nodes: usize) -> KeyValue {
    let id = NetworkId(uuid::Uuid::from_u128(1));
    let project = Name::known("default");
    let spec = json!({"name": "lan", "mode": "bridge", "bridge": "vmbr0"});
    let record = json!({"id": id, "project": project, "spec": spec, "nodes": (0..nodes).map(node_name).collect::<Vec<_>>(), "created_at": "2026-01-01T00:00:00Z"});
    kv(keys::network(&project, id), &record)
}

fn owner(n: usize, node: &Name) -> KeyValue {
    kv(keys::owner(id(n)), &json!({"vm": id(n), "project": "default", "node": node, "epoch": 1, "generation": 1}))
}

/// VMs go round the nodes, so that those with rules are apart.
fn filled(args: &Args) -> ClusterView {
    let mut items: Vec<KeyValue> = (0..args.vms).flat_map(vm).collect();
    items.push(network(args.nodes));
    items.extend((0..args.vms).map(|n| owner(n, &node_name((n * 7) % args.nodes))));
    items.extend((0..args.nodes).map(|n| kv(keys::facts(&node_name(n)), &facts(n))));
    items.extend((0..args.nodes).map(|n| kv(keys::node(&node_name(n)), &record(n))));
    ClusterView::new(Revision(1), &items).0
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

/// Takes changes in and plans; the watch then brings what was planned.
fn look(view: &mut ClusterView, changes: &[Change]) -> (Vec<(Whose, Txn)>, Duration) {
    let begin = Instant::now();
    let mut touched = Touched::default();
    view.apply(Revision(2), changes, &mut touched);
    let txns = plan(view, &mut touched, now());
    let took = begin.elapsed();
    let written = txns.iter().flat_map(|(_, txn)| &txn.then).filter_map(|op| match op {
        Op::Put(key, value) => {
            Some(Change::Put(KeyValue { key: key.clone(), value: value.clone(), created: Revision(3), modified: Revision(3) }))
        }
        _ => None,
    });
    let written: Vec<Change> = written.collect();
    view.apply(Revision(3), &written, &mut Touched::default());
    (txns, took)
}

fn one_more(view: &mut ClusterView, n: usize) -> Duration {
    let (txns, took) = look(view, &vm(n).map(Change::Put));
    assert!(txns.iter().any(|(whose, _)| matches!(whose, Whose::Seat(_))), "the VM gets a node");
    took
}

fn lose(view: &mut ClusterView, from: usize) -> Duration {
    let gone = |n: usize| Change::Deleted { key: keys::owner(id(n)), at: Revision(2) };
    let changes: Vec<Change> = (from..from + LOST_VMS).map(gone).collect();
    let (txns, took) = look(view, &changes);
    assert_eq!(txns.iter().filter(|(whose, _)| matches!(whose, Whose::Seat(_))).count(), LOST_VMS, "each gets a node again");
    took
}

fn changed_facts(view: &mut ClusterView, n: usize) -> Duration {
    look(view, &[Change::Put(kv(keys::facts(&node_name(n)), &facts(n)))]).1
}

/// Like Ganeti's `hspace`: the same VM again and again, until none fits.
fn fill(args: &Args, gib: u64, report: &mut Report) {
    let mut fleet = Fleet::default();
    for n in 0..args.nodes {
        fleet.set_node(facts(n), NodeRecord::named(node_name(n)));
    }
    let spec = json!({"name": "fill", "cpus": {"count": (gib / 2).max(1)}, "memory": {"size": ByteCount::from_gib(gib)}, "nics": []});
    let spec = serde_json::from_value(spec).expect("a small wish");
    let begin = Instant::now();
    let mut placed = 0;
    loop {
        let guest = Guest::planned(id(placed), Name::known("default"), &spec);
        let Choice::Node(node) = place::choose(&fleet, &guest) else { break };
        fleet.set_owner(guest.id, Some(&node));
        fleet.set_guest(guest);
        placed += 1;
    }
    report.number(format!("VMs of {gib} GiB on {} nodes", args.nodes), placed as f64, "VMs", None);
    report.number("time to fill", milliseconds(begin.elapsed()), "ms", None);
}
