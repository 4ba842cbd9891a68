//! The leader does not wait for one write before it sends the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Barrier;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{KeyValue, Leadership, Listing, Store, StoreError, StoreId, Txn, TxnOutcome, Watch, keys, typed};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::Revision;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;

use super::carry_out;
use super::view::{ClusterView, PREFIXES};

const NODES: usize = 3;

/// Whose first writes answer only when all of them are there.
struct Gathering {
    store: EmbeddedStore,
    all: Barrier,
    written: AtomicUsize,
}

#[async_trait]
impl Store for Gathering {
    fn id(&self) -> StoreId {
        self.store.id()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        self.store.first(prefix, count).await
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        self.store.list_many(prefixes).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.all.wait().await;
        self.written.fetch_add(1, Ordering::SeqCst);
        self.store.txn(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }

    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        self.store.lead(candidate, ttl).await
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        self.store.resign(lead).await
    }
}

#[tokio::test]
async fn writes_that_do_not_depend_on_each_other_go_together() {
    let store = EmbeddedStore::in_memory().expect("memory");
    for n in 0..NODES {
        let node: Name = format!("node{n}").parse().expect("a name");
        let event = Event {
            at: jiff::Timestamp::UNIX_EPOCH,
            resource: ResourceRef { kind: "node".into(), project: Name::known("default"), name: node.clone(), uid: uuid::Uuid::nil() },
            level: Level::Info,
            code: "node.told".into(),
            message: "something".into(),
            node: Some(node.clone()),
        };
        store.txn(Txn::default().then(typed::put(keys::node_event(&node, n), &event))).await.expect("written");
    }
    let store = Arc::new(Gathering { store, all: Barrier::new(NODES), written: AtomicUsize::new(0) });
    let lead = store.lead("c", Duration::from_secs(9)).await.expect("an answer").expect("nobody else leads");
    let listing = store.list_many(&PREFIXES).await.expect("a listing");
    let (mut view, mut touched) = ClusterView::new(listing.revision, &listing.items);
    let done = carry_out(store.as_ref(), &lead, &mut view, &mut touched);
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("they wait for each other").expect("written");
    assert_eq!(store.written.load(Ordering::SeqCst), NODES);
    assert!(store.list("n/").await.expect("a list").items.is_empty(), "the event of each node is filed");
}
