//! The cable of one host: pulled, nothing of it reaches the store any more, and a watchdog that is there as far as anybody is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use vmkeep_agent::runtime::guard::{Guard, Holds, Opened};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::timers::Timers;
use vmkeep_store::{KeyValue, Leadership, Listing, Store, StoreError, StoreId, Txn, TxnOutcome, Watch};
use vmkeep_types::ha::WatchdogKind;
use vmkeep_types::ids::Revision;

/// All connections of a host.
#[derive(Clone, Default)]
pub struct Plug(Arc<AtomicBool>);

impl Plug {
    pub fn pull(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_in(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.is_in() { Ok(()) } else { Err(StoreError::Unavailable("the host has no power".into())) }
    }
}

/// A store behind such a cable. A watch that is open goes on: what the host hears changes nothing any more.
pub struct Plugged {
    pub inner: Arc<dyn Store>,
    pub plug: Plug,
}

#[async_trait]
impl Store for Plugged {
    fn id(&self) -> StoreId {
        self.inner.id()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.plug.check()?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.plug.check()?;
        self.inner.list(prefix).await
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        self.plug.check()?;
        self.inner.first(prefix, count).await
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        self.plug.check()?;
        self.inner.list_many(prefixes).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.plug.check()?;
        self.inner.txn(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.plug.check()?;
        self.inner.watch(prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.plug.check()?;
        self.inner.revision().await
    }

    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        self.plug.check()?;
        self.inner.lead(candidate, ttl).await
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        self.plug.check()?;
        self.inner.resign(lead).await
    }
}

/// It says that it would reset the host. Whoever pulls the plug ends what runs there, so that is true.
pub struct Promise;

#[async_trait]
impl Guard for Promise {
    async fn arm(&self, _: Now, timers: &Timers) -> Result<Opened, String> {
        Ok(Opened { kind: WatchdogKind::Hardware, pet_ms: timers.pet_ms, watchdog_ms: timers.watchdog_ms })
    }

    async fn renewed(&self, _: Now) -> Result<Holds, String> {
        Ok(Holds::Nothing)
    }

    async fn disarm(&self) -> Result<(), String> {
        Ok(())
    }

    async fn sealed(&self) {}
}
