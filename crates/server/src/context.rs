//! What every request may use.

use std::sync::Arc;

use vmkeep_store::Store;
use vmkeep_types::name::Name;

use crate::audit::Audit;
use crate::gate::NodeGate;
use crate::metrics::Metrics;

pub struct Server {
    pub store: Arc<dyn Store>,
    pub gate: Arc<dyn NodeGate>,
    /// The node this control plane runs on.
    pub node: Name,
    pub audit: Audit,
    pub metrics: Metrics,
}

impl Server {
    pub fn new(store: Arc<dyn Store>, gate: Arc<dyn NodeGate>, node: Name, audit: Audit) -> Arc<Self> {
        Arc::new(Self { store, gate, node, audit, metrics: Metrics::default() })
    }
}
