//! The cluster as placement and high availability see it, kept by the cache's watch: a question costs what it asks, not a reading of the
//! whole cluster.
//!
//! ```text
//!  first question ──► asked ──► follower: one reading, between two batches of its watch ──► kept; each later batch goes into it
//! ```
//! An answer is worked out over a snapshot, which costs nothing to take; a batch that comes while one is held changes a copy.
//! Nothing is kept before somebody asks: it takes memory, and most hosts are never asked. How it fails: a watch that broke forgets it,
//! a reading that failed is made anew for the next question; until it is there, questions are answered from the store.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use vmkeep_core::place::Fleet;
use vmkeep_store::{Change, Store, WatchBatch};

use crate::app::placement;
use crate::reconcile::view::{ClusterView, Touched};

/// For the first reading: a thousand nodes and 20 000 VMs take some seconds, and the asker's own would take as long.
const READ_PATIENCE: Duration = Duration::from_secs(10);

pub struct KeptFleet {
    view: Mutex<Option<Arc<ClusterView>>>,
    wanted: Notify,
    /// Moves on with each reading, whatever came of it.
    read: watch::Sender<u64>,
}

impl Default for KeptFleet {
    fn default() -> Self {
        Self { view: Mutex::default(), wanted: Notify::new(), read: watch::Sender::new(0) }
    }
}

impl KeptFleet {
    /// Has it read by whoever follows the store.
    pub async fn ask(&self) {
        let mut read = self.read.subscribe();
        self.wanted.notify_one();
        let _ = tokio::time::timeout(READ_PATIENCE, read.changed()).await;
    }

    /// As it was at the last batch, where it is kept.
    pub fn get(&self) -> Option<Arc<ClusterView>> {
        self.lock().clone()
    }

    /// Only what placement asks for: who holds it makes a batch copy less.
    pub fn fleet(&self) -> Option<Arc<Fleet>> {
        self.lock().as_ref().map(|view| view.snapshot())
    }

    pub fn is_kept(&self) -> bool {
        self.lock().is_some()
    }

    /// Until somebody asks for it and it is not there.
    pub async fn wanted(&self) {
        loop {
            self.wanted.notified().await;
            if !self.is_kept() {
                return;
            }
        }
    }

    /// Reads it; between two batches, so that none is missed.
    pub async fn begin(&self, store: &dyn Store) {
        match placement::parts(store).await {
            Ok((revision, items)) => *self.lock() = Some(Arc::new(ClusterView::new(revision, &items).0)),
            Err(error) => tracing::warn!(%error, "placement and high availability are answered from the store"),
        }
        self.read.send_modify(|count| *count += 1);
    }

    pub fn take(&self, batch: &WatchBatch) {
        let mut kept = self.lock();
        let Some(view) = kept.as_mut().filter(|view| view.revision < batch.revision) else { return };
        let key = |change: &Change| match change {
            Change::Put(kv) => placement::matters(&kv.key),
            Change::Deleted { key, .. } => placement::matters(key),
        };
        let mut changes = batch.changes.iter().filter(|change| key(change)).peekable();
        // Heartbeats and reports, mostly: no reason to copy anything.
        if changes.peek().is_some() {
            Arc::make_mut(view).apply(batch.revision, changes, &mut Touched::default());
        }
    }

    pub fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<ClusterView>>> {
        self.view.lock().expect("no panic holds this lock")
    }
}
