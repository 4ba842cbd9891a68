//! A store that notes how long its transactions take.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use vmkeep_store::{KeyValue, Leadership, Listing, Store, StoreError, StoreId, Txn, TxnOutcome, Watch};
use vmkeep_types::ids::Revision;

pub struct Timed {
    inner: Arc<dyn Store>,
    took: Mutex<Vec<Duration>>,
}

impl Timed {
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, took: Mutex::new(Vec::new()) }
    }

    /// What was noted since the last call; a transaction that failed counts too.
    pub fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.took.lock().expect("no panic holds this lock"))
    }
}

#[async_trait]
impl Store for Timed {
    fn id(&self) -> StoreId {
        self.inner.id()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.inner.list(prefix).await
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        self.inner.first(prefix, count).await
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        self.inner.list_many(prefixes).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let begin = Instant::now();
        let outcome = self.inner.txn(txn).await;
        self.took.lock().expect("no panic holds this lock").push(begin.elapsed());
        outcome
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        self.inner.lead(candidate, ttl).await
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        self.inner.resign(lead).await
    }
}
