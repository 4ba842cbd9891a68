//! The daemon's own numbers, in OpenMetrics text 1.0.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use vmkeep_types::ids::Revision;

/// Seconds; from a read of one VM to a slow transaction.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RouteLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PhaseLabels {
    phase: String,
}

type Counts<L> = Family<L, Counter<u64, AtomicU64>>;

pub struct Metrics {
    registry: Registry,
    requests: Counts<RouteLabels>,
    seconds: Histogram,
    operations: Counts<KindLabels>,
    vms: Family<PhaseLabels, Gauge>,
    revision: Gauge,
    disarmed: Gauge,
    watchdogs: Family<StateLabels, Gauge>,
    incidents: Family<StateLabels, Gauge>,
    recoveries: Family<StateLabels, Gauge>,
}

/// High availability in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HaNumbers {
    pub disarmed: bool,
    /// Nodes by what they say of their watchdog.
    pub armed: u32,
    pub idle: u32,
    pub unusable: u32,
    /// Deaths of nodes in the history.
    pub proved: u32,
    pub open: u32,
    /// VMs that had to go elsewhere in them.
    pub placed: u32,
    pub running: u32,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vmkeep");
        let (requests, operations, vms) = (Counts::default(), Counts::default(), Family::default());
        let (seconds, revision) = (Histogram::new(BUCKETS), Gauge::default());
        registry.register("api_requests", "Requests by route and status", requests.clone());
        registry.register("api_seconds", "Time to the head of the answer", seconds.clone());
        registry.register("operations", "Operations begun, by kind", operations.clone());
        registry.register("vms", "VMs of project default by phase", vms.clone());
        registry.register("store_revision", "Newest revision of the store", revision.clone());
        let (disarmed, watchdogs, incidents, recoveries) = Default::default();
        let metrics = Self { registry, requests, seconds, operations, vms, revision, disarmed, watchdogs, incidents, recoveries };
        metrics.with_ha()
    }
}

impl Metrics {
    fn with_ha(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("ha_disarmed", "High availability is switched off", self.disarmed.clone());
        registry.register("ha_nodes", "Nodes by what they say of their watchdog", self.watchdogs.clone());
        registry.register("ha_incidents", "Deaths of nodes in the history, proved or open", self.incidents.clone());
        registry.register("ha_recoveries", "VMs that had to go elsewhere in them, placed or running", self.recoveries.clone());
        self
    }

    /// High availability as it is now.
    pub fn note_ha(&self, is: &HaNumbers) {
        self.disarmed.set(i64::from(is.disarmed));
        let set = |of: &Family<StateLabels, Gauge>, state: &'static str, count: u32| {
            of.get_or_create(&StateLabels { state }).set(i64::from(count));
        };
        set(&self.watchdogs, "armed", is.armed);
        set(&self.watchdogs, "idle", is.idle);
        set(&self.watchdogs, "unusable", is.unusable);
        set(&self.incidents, "proved", is.proved);
        set(&self.incidents, "open", is.open);
        set(&self.recoveries, "placed", is.placed);
        set(&self.recoveries, "running", is.running);
    }

    pub fn note(&self, route: &'static str, status: u16, elapsed: std::time::Duration) {
        self.requests.get_or_create(&RouteLabels { route, status }).inc();
        self.seconds.observe(elapsed.as_secs_f64());
    }

    pub fn operation(&self, kind: &str) {
        self.operations.get_or_create(&KindLabels { kind: kind.to_owned() }).inc();
    }

    /// The numbers as they are now.
    pub fn text(&self, revision: Revision, phases: BTreeMap<String, i64>) -> String {
        self.revision.set(i64::try_from(revision.0).unwrap_or(i64::MAX));
        self.vms.clear();
        for (phase, count) in phases {
            self.vms.get_or_create(&PhaseLabels { phase }).set(count);
        }
        let mut out = String::new();
        encode(&mut out, &self.registry).expect("a string takes all");
        out
    }
}
