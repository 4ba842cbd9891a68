//! A store in which secrets lie sealed: passwords, and text in which people put them.
//!
//! ```text
//!  put vm/…, order ──► secret fields ──► sealed:1:… for its readers ──► store, backups, etcd
//!  get, list, watch ◄── opened ◄── those this process may read
//! ```
//! | module | is |
//! |---|---|
//! | [`text`] | one sealed text |
//! | [`ring`] | the control plane's keys, and who holds them |
//! | [`fields`] | where secrets lie in a record |
//!
//! Who reads: the control plane, and of what lies under `n/NODE/` that node. What a process may not open it passes on closed,
//! and writes as it is. Values from before sealing are read as they are and sealed when they are written next.

pub mod fields;
pub mod ring;
pub mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::mpsc;
use vmkeep_types::ids::Revision;

use self::fields::{Fields, Path, texts};
use self::text::{MARK, PublicKey, SecretKey, is_sealed, open, seal};
use crate::{
    Change, KeyValue, Leadership, Listing, Op, Store, StoreError, StoreId, Txn, TxnOutcome, Visitor, WATCH_QUEUE_MAX, Watch, WatchBatch,
    keys,
};

/// What this process opens, and seals for.
#[derive(Debug, Default)]
pub struct Keys {
    opens: RwLock<Vec<SecretKey>>,
    /// The control plane's; None: this process seals nothing.
    control: RwLock<Option<PublicKey>>,
}

impl Keys {
    /// A node that only reads what is meant for it.
    pub fn of_node(own: SecretKey) -> Arc<Self> {
        Arc::new(Self { opens: RwLock::new(vec![own]), control: RwLock::default() })
    }

    /// From now on it reads what the control plane reads, and seals.
    pub fn take_ring(&self, ring: &ring::Opened) {
        let mut opens = self.opens.write().expect("nobody panics with it");
        opens.truncate(1);
        opens.extend(ring.keys.iter().cloned());
        *self.control.write().expect("nobody panics with it") = Some(ring.current.clone());
    }

    fn control(&self) -> Option<PublicKey> {
        self.control.read().expect("nobody panics with it").clone()
    }

    fn open(&self, mut kv: KeyValue, fields: Fields) -> KeyValue {
        let paths = fields(&kv.key);
        if !paths.is_empty() && mentions(&kv.value, [MARK]) {
            let keys = self.opens.read().expect("nobody panics with it");
            let place = place_of(&kv.key).to_owned();
            change(&mut kv.value, paths, &mut |name, text| {
                if let Some(opened) = open(text, &format!("{place}/{name}"), &keys) {
                    *text = opened;
                }
            });
        }
        kv
    }
}

/// Does it still hold a text that this process could not open?
pub fn is_closed(kv: &KeyValue) -> bool {
    mentions(&kv.value, [&format!("\"{MARK}")])
}

/// Whose record it is: the last part of its key.
fn place_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// The node that reads what lies under a key, beside the control plane.
fn reader_of(key: &str) -> Option<&str> {
    key.strip_prefix(keys::ALL_NODES)?.split('/').next()
}

fn mentions<const N: usize>(value: &[u8], any_of: [&str; N]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| any_of.iter().any(|what| text.contains(what)))
}

/// Has it one of the fields at all? Most records have none, and are not taken apart.
fn may_have(value: &[u8], paths: &[Path]) -> bool {
    let last = |path: &Path| path.iter().rev().find(|name| **name != "*").copied().unwrap_or_default();
    paths.iter().any(|path| mentions(value, [&format!("\"{}\":", last(path))]))
}

fn change(value: &mut Vec<u8>, paths: &[Path], each: &mut dyn FnMut(&str, &mut String)) {
    let Ok(mut json) = serde_json::from_slice::<Value>(value) else { return };
    let mut changed = false;
    texts(&mut json, paths, &mut |name, text| {
        let before = text.clone();
        each(name, text);
        changed |= *text != before;
    });
    if changed {
        *value = serde_json::to_vec(&json).expect("it came from JSON");
    }
}

/// Opens what it reads and seals what it writes.
pub struct Sealing {
    store: Arc<dyn Store>,
    fields: Fields,
    keys: Arc<Keys>,
}

impl Sealing {
    pub fn over(store: Arc<dyn Store>, fields: Fields, keys: Arc<Keys>) -> Arc<Self> {
        Arc::new(Self { store, fields, keys })
    }

    /// The keys of the nodes that a transaction writes secrets for. A node without one is of a version before sealing, and gets
    /// its secrets as that version reads them.
    async fn readers(&self, txn: &Txn) -> Result<BTreeMap<String, Option<PublicKey>>, StoreError> {
        let mut readers = BTreeMap::new();
        for op in txn.then.iter().chain(&txn.otherwise) {
            let Op::Put(key, value) = op else { continue };
            let Some(node) = reader_of(key) else { continue };
            if !readers.contains_key(node) && may_have(value, (self.fields)(key)) {
                let found = self.store.get(&keys::seal_key_of(node)).await?;
                let public = found.and_then(|kv| PublicKey::parse(std::str::from_utf8(&kv.value).ok()?));
                readers.insert(node.to_owned(), public);
            }
        }
        Ok(readers)
    }

    fn seal(&self, op: &mut Op, control: &PublicKey, readers: &BTreeMap<String, Option<PublicKey>>) {
        let Op::Put(key, value) = op else { return };
        let paths = (self.fields)(key);
        if !may_have(value, paths) {
            return;
        }
        let mut for_whom = vec![control.clone()];
        if let Some(node) = reader_of(key) {
            let Some(Some(public)) = readers.get(node) else { return };
            for_whom.push(public.clone());
        }
        let place = place_of(key).to_owned();
        change(value, paths, &mut |name, text| {
            if !is_sealed(text) {
                *text = seal(text, &format!("{place}/{name}"), &for_whom);
            }
        });
    }

    fn open(&self, kv: KeyValue) -> KeyValue {
        self.keys.open(kv, self.fields)
    }

    fn opened(&self, listing: Listing) -> Listing {
        Listing { items: listing.items.into_iter().map(|kv| self.open(kv)).collect(), ..listing }
    }
}

#[async_trait]
impl Store for Sealing {
    fn id(&self) -> StoreId {
        self.store.id()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.store.get(key).await?.map(|kv| self.open(kv)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await.map(|listing| self.opened(listing))
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        Ok(self.store.first(prefix, count).await?.into_iter().map(|kv| self.open(kv)).collect())
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        self.store.list_many(prefixes).await.map(|listing| self.opened(listing))
    }

    async fn visit(&self, prefixes: &[&str], part: &mut Visitor<'_>) -> Result<Revision, StoreError> {
        let mut opened = |closed: Vec<KeyValue>| part(closed.into_iter().map(|kv| self.open(kv)).collect());
        self.store.visit(prefixes, &mut opened).await
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        if let Some(control) = self.keys.control() {
            let readers = self.readers(&txn).await?;
            txn.then.iter_mut().chain(&mut txn.otherwise).for_each(|op| self.seal(op, &control, &readers));
        }
        let mut outcome = self.store.txn(txn).await?;
        outcome.gets = outcome.gets.into_iter().map(|got| got.map(|kv| self.open(kv))).collect();
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let mut closed = self.store.watch(prefix, from).await?;
        let (told, watch) = mpsc::channel(WATCH_QUEUE_MAX);
        let (keys, fields) = (self.keys.clone(), self.fields);
        let opened = move |batch: WatchBatch| {
            let open = |change| match change {
                Change::Put(kv) => Change::Put(keys.open(kv, fields)),
                gone @ Change::Deleted { .. } => gone,
            };
            WatchBatch { changes: batch.changes.into_iter().map(open).collect(), ..batch }
        };
        tokio::spawn(async move {
            loop {
                let batch = tokio::select! {
                    () = told.closed() => return,
                    batch = closed.recv() => batch,
                };
                let Some(batch) = batch else { return };
                if told.send(batch.map(&opened)).await.is_err() {
                    return;
                }
            }
        });
        Ok(watch)
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

#[cfg(test)]
mod tests;
