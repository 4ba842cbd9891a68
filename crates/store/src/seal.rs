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
//! | [`rotation`] | how all of them are renewed |
//! | [`fields`] | where secrets lie in a record |
//!
//! Who reads: the control plane, and of what lies under `n/NODE/` that node. What a process may not open it passes on closed,
//! and writes as it is. Values from before sealing are read as they are and sealed when they are written next.

pub mod fields;
pub mod ring;
pub mod rotation;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::mpsc;
use vmkeep_types::ids::Revision;

use self::fields::{Fields, Path, texts};
use self::text::{MARK, PublicKey, SecretKey, is_sealed, open, seal};
use crate::{
    Change, Compare, Held, KeyValue, Leadership, Listing, Op, Store, StoreError, StoreId, Txn, TxnOutcome, Visitor, WATCH_QUEUE_MAX, Watch,
    WatchBatch, keys,
};

/// What this process opens, and seals for.
#[derive(Debug, Default)]
pub struct Keys {
    /// The host's, the newest first: what was sealed to one before is still read.
    own: RwLock<Vec<SecretKey>>,
    /// The control plane's.
    ring: RwLock<Vec<SecretKey>>,
    /// The newest of those; None: this process seals nothing.
    control: RwLock<Option<PublicKey>>,
}

impl Keys {
    /// A node that only reads what is meant for it.
    pub fn of_node(own: SecretKey) -> Arc<Self> {
        Arc::new(Self { own: RwLock::new(vec![own]), ..Self::default() })
    }

    /// From now on it reads what the control plane reads, and seals.
    pub fn take_ring(&self, ring: &ring::Opened) {
        self.ring.write().expect("nobody panics with it").clone_from(&ring.keys);
        *self.control.write().expect("nobody panics with it") = Some(ring.current.clone());
    }

    /// The host has a new key.
    pub fn take_own(&self, new: SecretKey) {
        let mut own = self.own.write().expect("nobody panics with it");
        if own.iter().all(|key| key.public() != new.public()) {
            own.insert(0, new);
        }
    }

    /// The host's keys, the newest first.
    pub fn own(&self) -> Vec<SecretKey> {
        self.own.read().expect("nobody panics with it").clone()
    }

    fn control(&self) -> Option<PublicKey> {
        self.control.read().expect("nobody panics with it").clone()
    }

    fn open(&self, mut kv: KeyValue, fields: Fields) -> (KeyValue, Left) {
        let (paths, mut left) = (fields(&kv.key), Left::Nothing);
        if !paths.is_empty() && mentions(&kv.value, [MARK]) {
            let (own, ring) = (self.own(), self.ring.read().expect("nobody panics with it").clone());
            let place = place_of(&kv.key).to_owned();
            change(&mut kv.value, paths, &mut |name, text| {
                let place = format!("{place}/{name}");
                match open(text, &place, &ring).or_else(|| open(text, &place, &own)) {
                    Some(opened) => *text = opened,
                    None if is_sealed(text) => left = Left::Closed,
                    None => {}
                }
            });
        }
        (kv, left)
    }
}

/// What of a record could not be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Closed,
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

/// Opens what comes out of a store.
#[derive(Clone)]
struct Opener {
    store: Arc<dyn Store>,
    fields: Fields,
    keys: Arc<Keys>,
}

impl Opener {
    async fn one(&self, kv: KeyValue) -> KeyValue {
        let (opened, left) = self.keys.open(kv, self.fields);
        if left == Left::Closed && self.catch_up().await { self.keys.open(opened, self.fields).0 } else { opened }
    }

    async fn all(&self, kvs: Vec<KeyValue>) -> Vec<KeyValue> {
        let mut all = Vec::with_capacity(kvs.len());
        let mut any = Left::Nothing;
        for kv in kvs {
            let (opened, left) = self.keys.open(kv, self.fields);
            any = if left == Left::Closed { left } else { any };
            all.push(opened);
        }
        if any == Left::Closed && self.catch_up().await {
            all = all.into_iter().map(|kv| self.keys.open(kv, self.fields).0).collect();
        }
        all
    }

    async fn batch(&self, batch: WatchBatch) -> WatchBatch {
        let mut changes = Vec::with_capacity(batch.changes.len());
        for change in batch.changes {
            changes.push(match change {
                Change::Put(kv) => Change::Put(self.one(kv).await),
                gone @ Change::Deleted { .. } => gone,
            });
        }
        WatchBatch { changes, ..batch }
    }

    /// The control plane may have a newer key, which another control node has sealed with before this one has heard of it. True: it has.
    async fn catch_up(&self) -> bool {
        let Some(known) = self.keys.control() else { return false };
        match ring::find(self.store.as_ref(), &self.keys.own()).await {
            Ok(Some(ring)) if ring.current != known => {
                self.keys.take_ring(&ring);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }
}

/// Opens what it reads and seals what it writes.
pub struct Sealing {
    opener: Opener,
}

impl Sealing {
    pub fn over(store: Arc<dyn Store>, fields: Fields, keys: Arc<Keys>) -> Arc<Self> {
        Arc::new(Self { opener: Opener { store, fields, keys } })
    }

    fn store(&self) -> &dyn Store {
        self.opener.store.as_ref()
    }

    /// What lies under `prefix` sealed to one of these keys is sealed to those of now. How many were written by others meanwhile, and are
    /// to be looked at again.
    ///
    /// # Errors
    /// The store's.
    pub async fn seal_anew(&self, prefix: &str, retired: &BTreeSet<String>) -> Result<usize, StoreError> {
        let mut missed = 0;
        for kv in self.store().list(prefix).await?.items {
            let of_retired = retired.iter().any(|id| mentions(&kv.value, [&format!("{id}=")]));
            if !(of_retired && mentions(&kv.value, [MARK])) {
                continue;
            }
            let unchanged = Compare::ModifiedAt(kv.key.clone(), kv.modified);
            let opened = self.opener.one(kv).await;
            // What nobody reads any more stays as it is.
            if is_closed(&opened) {
                continue;
            }
            let written = self.txn(Txn::default().when(unchanged).then(Op::Put(opened.key, opened.value))).await?;
            missed += usize::from(written.held == Held::No);
        }
        Ok(missed)
    }

    /// The keys of the nodes that a transaction writes secrets for. A node without one is of a version before sealing, and gets
    /// its secrets as that version reads them.
    async fn readers(&self, txn: &Txn) -> Result<BTreeMap<String, Option<PublicKey>>, StoreError> {
        let mut readers = BTreeMap::new();
        for op in txn.then.iter().chain(&txn.otherwise) {
            let Op::Put(key, value) = op else { continue };
            let Some(node) = reader_of(key) else { continue };
            if !readers.contains_key(node) && may_have(value, (self.opener.fields)(key)) {
                let found = self.store().get(&keys::seal_key_of(node)).await?;
                let public = found.and_then(|kv| PublicKey::parse(std::str::from_utf8(&kv.value).ok()?));
                readers.insert(node.to_owned(), public);
            }
        }
        Ok(readers)
    }

    fn seal(&self, op: &mut Op, control: &PublicKey, readers: &BTreeMap<String, Option<PublicKey>>) {
        let Op::Put(key, value) = op else { return };
        let paths = (self.opener.fields)(key);
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
}

#[async_trait]
impl Store for Sealing {
    fn id(&self) -> StoreId {
        self.store().id()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        match self.store().get(key).await? {
            Some(kv) => Ok(Some(self.opener.one(kv).await)),
            None => Ok(None),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let listing = self.store().list(prefix).await?;
        Ok(Listing { items: self.opener.all(listing.items).await, ..listing })
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        Ok(self.opener.all(self.store().first(prefix, count).await?).await)
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        let listing = self.store().list_many(prefixes).await?;
        Ok(Listing { items: self.opener.all(listing.items).await, ..listing })
    }

    /// What cannot be opened at once comes as the last part.
    async fn visit(&self, prefixes: &[&str], part: &mut Visitor<'_>) -> Result<Revision, StoreError> {
        let mut closed = Vec::new();
        let mut opened = |found: Vec<KeyValue>| {
            let mut whole = Vec::with_capacity(found.len());
            for kv in found {
                match self.opener.keys.open(kv, self.opener.fields) {
                    (kv, Left::Nothing) => whole.push(kv),
                    (kv, Left::Closed) => closed.push(kv),
                }
            }
            part(whole);
        };
        let revision = self.store().visit(prefixes, &mut opened).await?;
        if !closed.is_empty() {
            part(self.opener.all(closed).await);
        }
        Ok(revision)
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        if let Some(control) = self.opener.keys.control() {
            let readers = self.readers(&txn).await?;
            txn.then.iter_mut().chain(&mut txn.otherwise).for_each(|op| self.seal(op, &control, &readers));
        }
        let mut outcome = self.store().txn(txn).await?;
        for got in outcome.gets.iter_mut().flatten() {
            *got = self.opener.one(got.clone()).await;
        }
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let mut closed = self.store().watch(prefix, from).await?;
        let (told, watch) = mpsc::channel(WATCH_QUEUE_MAX);
        let opener = self.opener.clone();
        tokio::spawn(async move {
            loop {
                let batch = tokio::select! {
                    () = told.closed() => return,
                    batch = closed.recv() => batch,
                };
                let batch = match batch {
                    None => return,
                    Some(Ok(batch)) => Ok(opener.batch(batch).await),
                    Some(broken) => broken,
                };
                if told.send(batch).await.is_err() {
                    return;
                }
            }
        });
        Ok(watch)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store().revision().await
    }

    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        self.store().lead(candidate, ttl).await
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        self.store().resign(lead).await
    }
}

#[cfg(test)]
mod tests;
