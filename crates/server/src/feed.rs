//! One watch of the store for all event streams of the process.
//!
//! ```text
//!  store ──watch──► cache ──publish──► Feed ──┬─► stream      a batch is shared, not copied
//!                                             └─► stream
//! ```
//! A stream that begins in the past brings itself to where the feed is with a watch of its own, and drops that then. How it
//! fails: a stream that falls [`BATCHES_MAX`] behind, or whose feed broke, ends; its reader comes back with its token.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::broadcast::{self, Receiver};
use vmkeep_store::{Store, StoreError, Watch, WatchBatch};
use vmkeep_types::ids::Revision;

/// As many as a watcher of the store may be behind.
const BATCHES_MAX: usize = vmkeep_store::WATCH_QUEUE_MAX;

/// What the cache has taken in, told to whoever joined.
#[derive(Default)]
pub struct Feed(Mutex<Option<Live>>);

struct Live {
    sender: broadcast::Sender<Arc<WatchBatch>>,
    at: Revision,
}

impl Feed {
    /// What is published from now on follows `at`.
    pub fn begin(&self, at: Revision) {
        *self.lock() = Some(Live { sender: broadcast::Sender::new(BATCHES_MAX), at });
    }

    pub fn publish(&self, batch: WatchBatch) {
        if let Some(live) = self.lock().as_mut() {
            live.at = batch.revision;
            // Nobody listens: fine.
            let _ = live.sender.send(Arc::new(batch));
        }
    }

    /// Ends whoever listens.
    pub fn end(&self) {
        *self.lock() = None;
    }

    fn join(&self) -> Option<(Receiver<Arc<WatchBatch>>, Revision)> {
        self.lock().as_ref().map(|live| (live.sender.subscribe(), live.at))
    }

    fn at(&self) -> Option<Revision> {
        self.lock().as_ref().map(|live| live.at)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.0.lock().expect("no panic holds this lock")
    }
}

/// The changes after a revision, as one stream gets them.
pub struct Source {
    /// Until the feed is reached; for good when there was none.
    own: Option<Watch>,
    shared: Option<(Receiver<Arc<WatchBatch>>, Revision)>,
    at: Revision,
}

/// It broke, or fell behind.
pub struct Broke;

impl Source {
    /// What follows `from`; `prefix` is enough for the stream.
    ///
    /// # Errors
    /// The store's; `Compacted` when `from` is too old.
    pub async fn open(feed: &Feed, store: &dyn Store, prefix: &str, from: Revision) -> Result<Self, StoreError> {
        let shared = feed.join();
        let own = match &shared {
            Some((_, joined)) if *joined <= from => None,
            // Every revision passes under the empty prefix: the one at which the feed was joined will be seen.
            Some(_) => Some(store.watch("", from.next()).await?),
            None => Some(store.watch(prefix, from.next()).await?),
        };
        Ok(Self { own, shared, at: from })
    }

    pub async fn next(&mut self) -> Result<Arc<WatchBatch>, Broke> {
        loop {
            let batch = match (&mut self.own, &mut self.shared) {
                (Some(own), _) => Arc::new(own.recv().await.and_then(Result::ok).ok_or(Broke)?),
                (None, Some((shared, _))) => shared.recv().await.map_err(|_| Broke)?,
                (None, None) => return Err(Broke),
            };
            if self.takes(&batch) {
                return Ok(batch);
            }
        }
    }

    /// True when it is new; moves over to the feed when that is reached.
    fn takes(&mut self, batch: &WatchBatch) -> bool {
        if self.shared.as_ref().is_some_and(|(_, joined)| *joined <= batch.revision) {
            self.own = None;
        }
        let new = batch.revision > self.at;
        self.at = self.at.max(batch.revision);
        new
    }

    /// What is there already, and the revision up to which nothing is missing then.
    pub async fn settle(&mut self, feed: &Feed, store: &dyn Store) -> Result<(Vec<Arc<WatchBatch>>, Revision), Broke> {
        let mut batches = Vec::new();
        // What is published up to this revision is in the queue already.
        let newest = match &self.own {
            Some(_) => store.revision().await.map_err(|_| Broke)?,
            None => feed.at().ok_or(Broke)?,
        };
        while let Some(batch) = self.ready()? {
            if self.takes(&batch) {
                batches.push(batch);
            }
        }
        // On its way over to the feed it may not have seen all of that.
        let settled = if self.shared.is_some() && self.own.is_some() { self.at } else { self.at.max(newest) };
        Ok((batches, settled))
    }

    fn ready(&mut self) -> Result<Option<Arc<WatchBatch>>, Broke> {
        use tokio::sync::{broadcast::error::TryRecvError as Shared, mpsc::error::TryRecvError as Own};
        match (&mut self.own, &mut self.shared) {
            (Some(own), _) => match own.try_recv() {
                Ok(batch) => Ok(Some(Arc::new(batch.map_err(|_| Broke)?))),
                Err(Own::Empty) => Ok(None),
                Err(Own::Disconnected) => Err(Broke),
            },
            (None, Some((shared, _))) => match shared.try_recv() {
                Ok(batch) => Ok(Some(batch)),
                Err(Shared::Empty) => Ok(None),
                Err(Shared::Closed | Shared::Lagged(_)) => Err(Broke),
            },
            (None, None) => Err(Broke),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_store::{Txn, typed};

    use super::*;

    async fn written(store: &EmbeddedStore, n: u64) -> Revision {
        store.txn(Txn::default().then(typed::put("x/y", &n))).await.expect("written").revision
    }

    fn batch(revision: Revision) -> WatchBatch {
        WatchBatch { revision, changes: Vec::new() }
    }

    #[tokio::test]
    async fn one_who_comes_from_the_past_moves_over_without_a_gap_or_a_double() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let feed = Feed::default();
        let from = written(&store, 0).await;
        let mut all = Vec::new();
        for n in 1..=5 {
            all.push(written(&store, n).await);
        }
        // The feed is behind the store: it tells of the last two again.
        feed.begin(all[2]);
        let mut source = Source::open(&feed, &store, "x/", from).await.expect("a source");
        assert!(source.own.is_some());
        feed.publish(batch(all[3]));
        feed.publish(batch(all[4]));
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(source.next().await.map_err(drop).expect("a batch").revision);
        }
        assert_eq!(seen, all);
        assert!(source.own.is_none(), "its own watch is gone");
        feed.end();
        assert!(source.next().await.is_err(), "a feed that broke ends its readers");
    }

    #[tokio::test]
    async fn one_who_is_too_far_behind_is_ended() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let feed = Feed::default();
        feed.begin(Revision(1));
        let mut source = Source::open(&feed, &store, "", Revision(1)).await.expect("a source");
        for n in 0..=BATCHES_MAX as u64 {
            feed.publish(batch(Revision(n + 2)));
        }
        assert!(source.next().await.is_err());
    }
}
