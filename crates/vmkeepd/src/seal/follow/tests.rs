//! Keys are renewed whole: also by a host that dies at any of its writes, and by two that do not at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use serde_json::json;
use tempfile::TempDir;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{KeyValue, Leadership, Listing, StoreId, TxnOutcome, Watch};
use vmkeep_types::ids::{Revision, VmId};

use super::super::{Others, Secrets, show_node, take_ring};
use super::*;

const VM: VmId = VmId(uuid::Uuid::from_u128(7));
/// More looks than a renewal takes.
const LOOKS_MAX: usize = 10;

/// A store whose client dies after some writes.
struct Dying {
    store: Arc<EmbeddedStore>,
    writes_left: AtomicUsize,
}

#[async_trait]
impl Store for Dying {
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
        let left = self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| StoreError::Unavailable("it is dead".into()))?;
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

/// A host's disk.
struct Host {
    node: Name,
    dir: TempDir,
}

impl Host {
    fn new(node: &'static str) -> Self {
        Self { node: Name::known(node), dir: tempfile::tempdir().expect("a folder") }
    }

    /// Its daemon starts.
    async fn starts(&self, store: Arc<dyn Store>) -> anyhow::Result<Follower> {
        let secrets = Secrets::of_host(self.dir.path(), self.node.clone())?;
        let stop = CancellationToken::new();
        take_ring(store.as_ref(), &self.node, &secrets.own, &secrets.keys, Others::None, &stop).await?;
        show_node(store.as_ref(), &self.node, &secrets.own).await?;
        Ok(secrets.follower(store, Part::Both))
    }

    /// From a start to the death after so many writes, or to where nothing is left to do.
    async fn lives(&self, store: &Arc<EmbeddedStore>, writes: usize) -> anyhow::Result<Follower> {
        let follower = self.starts(Arc::new(Dying { store: store.clone(), writes_left: AtomicUsize::new(writes) })).await?;
        for _ in 0..LOOKS_MAX {
            if follower.look().await? == Left::Nothing {
                return Ok(follower);
            }
        }
        panic!("it goes on for ever");
    }

    fn key(&self) -> SecretKey {
        KeyFile::of(self.dir.path()).load().expect("a key")
    }
}

fn store() -> Arc<EmbeddedStore> {
    Arc::new(EmbeddedStore::in_memory().expect("memory"))
}

async fn write(follower: &Follower, key: &str, secret: &str) {
    let record = json!({"spec": {"cloud_init": {"password": secret}}}).to_string();
    follower.sealing.txn(Txn::default().then(Op::Put(key.into(), record.into_bytes()))).await.expect("written");
}

async fn read(store: &dyn Store, key: &str) -> String {
    store.get(key).await.expect("read").map_or_else(String::new, |kv| String::from_utf8(kv.value).expect("text"))
}

async fn is_under_way(store: &EmbeddedStore) -> bool {
    rotation::under_way(store).await.expect("read").is_some()
}

#[tokio::test]
async fn a_host_that_dies_at_any_write_has_renewed_its_key_in_the_end() {
    let record = keys::vm(&Name::known("default"), VM);
    for writes in 0.. {
        let (store, host) = (store(), Host::new("a"));
        let first = host.starts(store.clone()).await.expect("it starts");
        let order = keys::order(&host.node, VM);
        write(&first, &record, "s3cret").await;
        write(&first, &order, "s3cret").await;
        let old = host.key();
        rotation::begin(store.as_ref(), "alice", jiff::Timestamp::UNIX_EPOCH).await.expect("asked for");

        let lived = host.lives(&store, writes).await.is_ok();
        let last = host.lives(&store, usize::MAX).await.unwrap_or_else(|e| panic!("after {writes} writes: {e:#}"));
        let new = host.key();
        assert_ne!(new.public(), old.public(), "after {writes} writes");
        assert!(!is_under_way(&store).await);
        assert!(read(last.sealing.as_ref(), &record).await.contains("s3cret"), "after {writes} writes");
        assert!(ring::find(store.as_ref(), std::slice::from_ref(&old)).await.expect("read").is_none(), "the old key reads no more");
        assert_eq!(ring::ids(store.as_ref()).await.expect("read").len(), 2, "one key more, however often it was begun");
        let sealed = read(store.as_ref(), &order).await;
        // A restart in between takes the order away, and the leader writes it again.
        assert!(!sealed.contains(&old.public().id()) && (sealed.is_empty() || sealed.contains(&new.public().id())), "{sealed}");
        if lived {
            assert!(writes >= 5, "{writes} writes prove nothing");
            return;
        }
    }
}

#[tokio::test]
async fn two_hosts_renew_their_keys_each_in_its_time_and_read_all_the_while() {
    let (store, a, b) = (store(), Host::new("a"), Host::new("b"));
    let of_a = a.starts(store.clone()).await.expect("it starts");
    // b shows its key and is let in.
    let own = b.key();
    store.txn(Txn::default().then(Op::Put(keys::control(&b.node), own.public().to_text().into_bytes()))).await.expect("shown");
    of_a.look().await.expect("a look");
    let of_b = b.starts(store.clone()).await.expect("it starts");
    let (before, during, after) = ("vm/default/1", "vm/default/2", "vm/default/3");
    write(&of_a, before, "s3cret").await;
    rotation::begin(store.as_ref(), "alice", jiff::Timestamp::UNIX_EPOCH).await.expect("asked for");
    rotation::begin(store.as_ref(), "bob", jiff::Timestamp::UNIX_EPOCH).await.expect("asked for twice");

    for _ in 0..3 {
        assert_eq!(of_a.look().await.expect("a look"), Left::More);
    }
    let now = rotation::under_way(store.as_ref()).await.expect("read").expect("it waits for b");
    assert_eq!(now.value.by, "alice", "the first one is carried out");
    assert_eq!(rotation::waits_for(store.as_ref(), &now.value).await.expect("read"), [b.node.clone()].into());
    write(&of_a, during, "s3cret").await;
    assert!(read(of_b.sealing.as_ref(), during).await.contains("s3cret"));

    while of_b.look().await.expect("a look") == Left::More {}
    assert!(!is_under_way(&store).await);
    // With the new key, of which a has not heard yet.
    write(&of_b, after, "s3cret").await;
    for (whose, sealing) in [("a", &of_a.sealing), ("b", &of_b.sealing)] {
        for key in [before, during, after] {
            assert!(read(sealing.as_ref(), key).await.contains("s3cret"), "{key} by {whose}");
        }
    }
    assert!(ring::find(store.as_ref(), &[own]).await.expect("read").is_none());
}

#[tokio::test]
async fn an_agent_apart_takes_up_the_key_that_the_control_plane_has_made() {
    let (store, host) = (store(), Host::new("a"));
    let file = KeyFile::of(host.dir.path());
    let agent = Keys::of_node(host.key());
    let old = host.key();
    file.next().expect("made");
    file.promote().expect("renamed");
    take_up(store.as_ref(), &file, &host.node, &agent).await.expect("taken up");
    let own: Vec<_> = agent.own().iter().map(SecretKey::public).collect();
    assert_eq!(own, [host.key().public(), old.public()], "what lies sealed to the old one is still read");
    assert_eq!(read(store.as_ref(), &keys::seal_key(&host.node)).await, host.key().public().to_text());
}
