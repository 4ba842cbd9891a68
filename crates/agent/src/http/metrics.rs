//! Counters of running VMs, as JSON and for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use vmkeep_api::body::VmStats;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;

use super::NodeHttp;
use super::answer::Answer;
use crate::domain::parse_metadata;
use crate::hypervisor::{DomainBrief, DomainStats, HvError};
use crate::runtime::clock;
use crate::runtime::standing::{Stand, Watchdog};

/// OpenMetrics: what the control plane adds its own to.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Our domains and what libvirt counted of those that run.
async fn gather(node: &NodeHttp) -> Result<(BTreeMap<VmId, DomainBrief>, Vec<DomainStats>), HvError> {
    let ours = node.hv().list().await?.into_iter().filter(|d| d.metadata.is_some()).map(|d| (d.uuid, d)).collect();
    Ok((ours, node.hv().stats().await?))
}

pub async fn stats(State(node): State<Arc<NodeHttp>>) -> Answer<Json<Vec<VmStats>>> {
    let at = jiff::Timestamp::now();
    let (ours, stats) = gather(&node).await?;
    let view = |s: DomainStats| {
        let brief = ours.get(&s.uuid?)?;
        Some(VmStats {
            id: brief.uuid,
            name: name(brief),
            at,
            cpu_time_ns: s.cpu_time_ns,
            vcpus: s.vcpus,
            memory_bytes: s.memory_kib << 10,
            rss_bytes: s.rss_kib << 10,
            disk_read_bytes: s.disk_read_bytes,
            disk_write_bytes: s.disk_write_bytes,
            disk_read_ops: s.disk_read_ops,
            disk_write_ops: s.disk_write_ops,
            net_rx_bytes: s.net_rx_bytes,
            net_tx_bytes: s.net_tx_bytes,
        })
    };
    Ok(Json(stats.into_iter().filter_map(view).collect()))
}

/// Somebody may have renamed the domain to what is no name.
fn name(brief: &DomainBrief) -> Name {
    brief.name.parse().unwrap_or_else(|_| format!("vm-{}", brief.uuid).parse().expect("vm- and a uuid are a name"))
}

pub async fn metrics(State(node): State<Arc<NodeHttp>>) -> Response {
    let mut text = String::new();
    let gathered = gather(&node).await;
    family(&mut text, "vmkeep_node_libvirt_up", "gauge", "libvirt answers", [(node_label(&node), u8::from(gathered.is_ok()).to_string())]);
    write_life(&mut text, &node_label(&node), &node.config.guests.stand());
    if let Ok((ours, stats)) = gathered {
        write_vms(&mut text, &ours, &stats);
    }
    text.push_str("# EOF\n");
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

fn node_label(node: &NodeHttp) -> String {
    format!("node=\"{}\"", node.config.node)
}

/// How the host would die, and how long ago the store heard of it. A host alone renews nothing.
fn write_life(text: &mut String, node: &str, stand: &Stand) {
    let is = match &stand.watchdog {
        Watchdog::Idle => "idle",
        Watchdog::Open | Watchdog::Armed(_) => "armed",
        Watchdog::Unusable(_) => "unusable",
    };
    let states = ["idle", "armed", "unusable"].map(|state| (format!("{node},state=\"{state}\""), u8::from(state == is).to_string()));
    family(text, "vmkeep_node_watchdog", "gauge", "What would reset this host: 1 for the state that it is in", states);
    let age = stand.renewed.map(|sent| clock::now().longest_since(sent));
    let age = age.map(|ms| (node.to_owned(), format!("{}.{:03}", ms / 1000, ms % 1000)));
    family(text, "vmkeep_node_renewal_age_seconds", "gauge", "Since the last renewal that the store took was sent", age);
}

/// A family's name, type, help, and how its value is read.
type Counter = (&'static str, &'static str, &'static str, fn(&DomainStats) -> String);

const COUNTERS: [Counter; 10] = [
    ("vmkeep_vm_cpu_seconds_total", "counter", "CPU time used, seconds", |s| {
        format!("{}.{:09}", s.cpu_time_ns / 1_000_000_000, s.cpu_time_ns % 1_000_000_000)
    }),
    ("vmkeep_vm_vcpus", "gauge", "Virtual CPUs in use", |s| s.vcpus.to_string()),
    ("vmkeep_vm_memory_bytes", "gauge", "Memory given to the guest now", |s| (s.memory_kib << 10).to_string()),
    ("vmkeep_vm_resident_bytes", "gauge", "Resident memory of QEMU", |s| (s.rss_kib << 10).to_string()),
    ("vmkeep_vm_disk_read_bytes_total", "counter", "Bytes read from disks", |s| s.disk_read_bytes.to_string()),
    ("vmkeep_vm_disk_written_bytes_total", "counter", "Bytes written to disks", |s| s.disk_write_bytes.to_string()),
    ("vmkeep_vm_disk_reads_total", "counter", "Read requests", |s| s.disk_read_ops.to_string()),
    ("vmkeep_vm_disk_writes_total", "counter", "Write requests", |s| s.disk_write_ops.to_string()),
    ("vmkeep_vm_network_received_bytes_total", "counter", "Bytes received by NICs", |s| s.net_rx_bytes.to_string()),
    ("vmkeep_vm_network_sent_bytes_total", "counter", "Bytes sent by NICs", |s| s.net_tx_bytes.to_string()),
];

fn write_vms(text: &mut String, ours: &BTreeMap<VmId, DomainBrief>, stats: &[DomainStats]) {
    let running = ours.values().map(|brief| (labels(brief), u8::from(brief.state.is_live()).to_string()));
    family(text, "vmkeep_vm_running", "gauge", "A QEMU process exists", running);
    for (name, kind, help, value) in COUNTERS {
        let rows = stats.iter().filter_map(|s| Some((labels(ours.get(&s.uuid?)?), value(s))));
        family(text, name, kind, help, rows);
    }
}

fn labels(brief: &DomainBrief) -> String {
    let project = brief.metadata.as_deref().and_then(parse_metadata).map_or_else(|| "default".to_owned(), |meta| meta.project.to_string());
    format!("vm=\"{}\",project=\"{project}\",id=\"{}\"", escaped(&brief.name), brief.uuid)
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn family(text: &mut String, name: &str, kind: &str, help: &str, rows: impl IntoIterator<Item = (String, String)>) {
    // A counter's family is named without the ending of its samples.
    let of = name.strip_suffix("_total").unwrap_or(name);
    let _ = writeln!(text, "# HELP {of} {help}\n# TYPE {of} {kind}");
    for (labels, value) in rows {
        let _ = writeln!(text, "{name}{{{labels}}} {value}");
    }
}
