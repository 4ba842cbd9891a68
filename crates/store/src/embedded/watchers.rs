//! Who watches what, and what was published.
//!
//! One lock covers the list and the published revision: a watcher is added with its replay up to exactly that revision, and
//! everything later is published to it. So there is neither gap nor double.

use std::sync::Mutex;

use tokio::sync::mpsc;
use vmkeep_types::ids::Revision;

use crate::{Change, StoreError, WATCH_QUEUE_MAX, Watch, WatchBatch};

const FIRST: Revision = Revision(1);

pub struct Watchers {
    inner: Mutex<Inner>,
}

struct Inner {
    published: Revision,
    oldest: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    from: Revision,
    queue: mpsc::Sender<Result<WatchBatch, StoreError>>,
}

impl Watchers {
    pub fn new(published: Revision, oldest: Revision) -> Self {
        Self { inner: Mutex::new(Inner { published, oldest, watchers: Vec::new() }) }
    }

    pub fn published(&self) -> Revision {
        self.inner.lock().expect("no panic holds this lock").published
    }

    /// Said before the history is shortened, so that no replay reads what is being deleted.
    pub fn compacted(&self, oldest: Revision) {
        self.inner.lock().expect("no panic holds this lock").oldest = oldest;
    }

    pub fn add(
        &self,
        prefix: &str,
        from: Revision,
        replay: impl FnOnce(Revision) -> Result<Vec<WatchBatch>, StoreError>,
    ) -> Result<Watch, StoreError> {
        let mut inner = self.inner.lock().expect("no panic holds this lock");
        // Nothing was ever written at revision 0: who asks from there means the first.
        if from.max(FIRST) < inner.oldest {
            return Err(StoreError::Compacted { asked: from, oldest: inner.oldest });
        }
        let past = replay(inner.published)?;
        let (queue, watch) = mpsc::channel(past.len() + WATCH_QUEUE_MAX + 1);
        for batch in past {
            queue.try_send(Ok(batch)).expect("the queue was made large enough");
        }
        inner.watchers.push(Watcher { prefix: prefix.to_owned(), from, queue });
        Ok(watch)
    }

    pub fn publish(&self, batches: &[WatchBatch], revision: Revision) {
        let mut inner = self.inner.lock().expect("no panic holds this lock");
        inner.published = revision;
        let oldest = inner.oldest;
        inner.watchers.retain(|watcher| batches.iter().all(|batch| watcher.offer(batch, oldest)));
        inner.watchers.retain(|watcher| !watcher.queue.is_closed());
    }
}

impl Watcher {
    /// False when the watcher fell too far behind; it is told so with the last place in its queue.
    fn offer(&self, batch: &WatchBatch, oldest: Revision) -> bool {
        if batch.revision < self.from {
            return true;
        }
        let changes: Vec<Change> = batch.changes.iter().filter(|change| key_of(change).starts_with(&self.prefix)).cloned().collect();
        if changes.is_empty() {
            return true;
        }
        let last_place = self.queue.capacity() <= 1;
        let told = if last_place {
            Err(StoreError::Compacted { asked: batch.revision, oldest })
        } else {
            Ok(WatchBatch { revision: batch.revision, changes })
        };
        self.queue.try_send(told).is_ok() && !last_place
    }
}

fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(kv) => &kv.key,
        Change::Deleted { key, .. } => key,
    }
}
