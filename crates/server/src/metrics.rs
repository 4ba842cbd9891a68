//! The daemon's own numbers, as Prometheus text (Prometheus exposition format 0.0.4).

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds; from a read of one VM to a slow transaction.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RouteLabels {
    route: &'static str,
    status: u16,
}

pub struct Metrics {
    registry: Registry,
    requests: Family<RouteLabels, Counter<u64, AtomicU64>>,
    seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vmkeep");
        let requests = Family::<RouteLabels, Counter<u64, AtomicU64>>::default();
        let seconds = Histogram::new(BUCKETS);
        registry.register("api_requests", "Requests by route and status", requests.clone());
        registry.register("api_seconds", "Time to answer a request", seconds.clone());
        Self { registry, requests, seconds }
    }
}

impl Metrics {
    pub fn note(&self, route: &'static str, status: u16, elapsed: std::time::Duration) {
        self.requests.get_or_create(&RouteLabels { route, status }).inc();
        self.seconds.observe(elapsed.as_secs_f64());
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        encode(&mut out, &self.registry).expect("a string takes all");
        out
    }
}
