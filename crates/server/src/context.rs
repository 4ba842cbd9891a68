//! What every request may use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use vmkeep_api::body::BODY_BYTES_MAX;
use vmkeep_store::Store;
use vmkeep_types::name::Name;

use crate::app::ask::Admission;
use crate::audit::Audit;
use crate::cache::Cache;
use crate::cluster::HostCluster;
use crate::gate::NodeGate;
use crate::metrics::Metrics;
use crate::stonith::agent::FOLDER;
use crate::streams::Streams;

/// Room for the bodies of all requests under way, in KiB: eight of the largest. More wait; that bounds the daemon's memory.
const BODIES_KIB_MAX: usize = 8 * BODY_BYTES_MAX / 1024;

/// Shows that a quiet stream lives, well within the patience of proxies, and moves its token on.
const BOOKMARK_EVERY: Duration = Duration::from_secs(15);

pub struct Server {
    pub store: Arc<dyn Store>,
    pub gate: Arc<dyn NodeGate>,
    /// The node this control plane runs on.
    pub node: Name,
    pub audit: Audit,
    pub metrics: Metrics,
    pub cache: Cache,
    /// Permits are KiB.
    pub bodies: Arc<Semaphore>,
    /// Changes under way: they are carried out and noted although their client hang up, and the daemon's end waits for them.
    pub changes: TaskTracker,
    /// What the host does for its cluster; set by the daemon before it serves.
    pub cluster: OnceLock<Arc<dyn HostCluster>>,
    /// Where fence agents are; set by the daemon, else where Debian puts them.
    pub fence_agents: OnceLock<PathBuf>,
    /// Who must agree to a change.
    pub admission: Admission,
    pub streams: Streams,
    /// Between two bookmarks of an event stream.
    pub bookmark_every: Duration,
}

impl Server {
    /// Called within a runtime: the cache follows the store as long as the server lives.
    pub fn new(store: Arc<dyn Store>, gate: Arc<dyn NodeGate>, node: Name, audit: Audit) -> Arc<Self> {
        let cache = Cache::follow(store.clone());
        let bodies = Arc::new(Semaphore::new(BODIES_KIB_MAX));
        Arc::new(Self {
            store,
            gate,
            node,
            audit,
            metrics: Metrics::default(),
            cache,
            bodies,
            changes: TaskTracker::new(),
            cluster: OnceLock::new(),
            fence_agents: OnceLock::new(),
            admission: Admission::default(),
            streams: Streams::default(),
            bookmark_every: BOOKMARK_EVERY,
        })
    }

    pub fn fence_agents(&self) -> &Path {
        self.fence_agents.get().map_or(Path::new(FOLDER), PathBuf::as_path)
    }
}
