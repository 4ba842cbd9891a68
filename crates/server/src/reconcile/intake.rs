//! The leader's watch, read also while the leader writes.
//!
//! A watcher that falls behind is cut off by the store and must list everything again: with thousands of VMs on their way the
//! leader would do nothing else. What comes while it waits for the store is kept here, and taken in before the next look.

use std::collections::VecDeque;
use std::future::Future;

use vmkeep_store::{StoreError, Watch, WatchBatch};

/// Batches kept at the most, some 2 KiB each: far less than the listing that it saves. The store's own queue follows after.
const KEPT_MAX: usize = 32_768;

pub struct Intake {
    watch: Watch,
    kept: VecDeque<Result<WatchBatch, StoreError>>,
    /// What comes after this is nothing.
    ended: bool,
}

impl Intake {
    pub fn new(watch: Watch) -> Self {
        Self { watch, kept: VecDeque::new(), ended: false }
    }

    /// Does the work, and keeps what comes meanwhile.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                batch = self.watch.recv(), if !self.ended && self.kept.len() < KEPT_MAX => self.keep(batch),
            }
        }
    }

    fn keep(&mut self, batch: Option<Result<WatchBatch, StoreError>>) {
        let batch = batch.unwrap_or_else(|| Err(StoreError::Unavailable("the watch was closed".into())));
        self.ended = batch.is_err();
        self.kept.push_back(batch);
    }

    /// The next batch; waits for one. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// The watch ended: list again.
    pub async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        if self.kept.is_empty() && !self.ended {
            let batch = self.watch.recv().await;
            self.keep(batch);
        }
        self.at_hand().unwrap_or_else(|| Err(StoreError::Unavailable("the watch was closed".into())))
    }

    /// The next batch that is there already.
    pub fn at_hand(&mut self) -> Option<Result<WatchBatch, StoreError>> {
        if self.kept.is_empty() && !self.ended {
            self.kept.extend(self.watch.try_recv().ok());
        }
        self.kept.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};
    use vmkeep_types::ids::Revision;

    use super::*;

    fn batch(revision: u64) -> Result<WatchBatch, StoreError> {
        Ok(WatchBatch { revision: Revision(revision), changes: Vec::new() })
    }

    #[tokio::test]
    async fn what_comes_during_a_long_write_waits_in_order() {
        let (sender, watch) = mpsc::channel(2);
        let mut intake = Intake::new(watch);
        let (done, write) = oneshot::channel();
        let store = tokio::spawn(async move {
            // More than the queue holds.
            for revision in 1..=10 {
                sender.send(batch(revision)).await.expect("somebody reads");
            }
            done.send("written").expect("somebody waits");
            sender.send(Err(StoreError::Unavailable("the end".into()))).await.expect("somebody reads");
        });
        assert_eq!(intake.meanwhile(write).await, Ok("written"));
        for revision in 1..=10 {
            assert_eq!(intake.next().await.expect("a batch").revision, Revision(revision));
        }
        assert!(intake.next().await.is_err_and(|error| error.to_string().contains("the end")));
        assert!(intake.next().await.is_err(), "and so it stays");
        store.await.expect("no panic");
    }
}
