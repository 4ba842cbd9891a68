//! A store whose records keep what a newer version wrote into them, whoever writes them next.
//!
//! ```text
//!  txn: put vm/… ──► which type lies there? ──► the old value ──► fields that the type does not know go into the new one
//! ```
//! Every transaction that puts a record costs one read before it, of all its records at once. Between that read and the write
//! somebody else may have written: those who change what they read compare its revision, and then nothing is written at all.
//! An old value that does not parse is kept by nobody: whoever writes over it knows why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use vmkeep_types::ids::Revision;

use crate::{KeyValue, Leadership, Listing, Op, Store, StoreError, StoreId, Txn, TxnOutcome, Visitor, Watch};

/// [`crate::typed::merge`] for one type.
pub type Merge = fn(&KeyValue, Vec<u8>) -> Result<Vec<u8>, StoreError>;

/// The type that lies under a key; None: nothing of it is kept.
pub type Types = fn(&str) -> Option<Merge>;

/// How the old values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Key by key, beside the writer: a file of this host.
    Here,
    /// All in one question: a server far away.
    Away,
}

pub struct Keeping {
    store: Arc<dyn Store>,
    types: Types,
    look: Look,
}

impl Keeping {
    pub fn over(store: Arc<dyn Store>, types: Types, look: Look) -> Arc<Self> {
        Arc::new(Self { store, types, look })
    }

    /// What lies under the keys that the transaction puts records to.
    async fn before(&self, txn: &Txn) -> Result<BTreeMap<String, KeyValue>, StoreError> {
        let put = txn.then.iter().chain(&txn.otherwise).filter_map(|op| match op {
            Op::Put(key, _) if (self.types)(key).is_some() => Some(key.as_str()),
            _ => None,
        });
        let keys: Vec<&str> = put.collect();
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found: Vec<KeyValue> = match self.look {
            // A key is a prefix of its own; what else begins so is not asked for below.
            Look::Here => self.store.list_many(&keys).await?.items,
            Look::Away => {
                let asks = keys.into_iter().map(|key| Op::Get(key.to_owned())).collect();
                self.store.txn(Txn { then: asks, ..Txn::default() }).await?.gets.into_iter().flatten().collect()
            }
        };
        Ok(found.into_iter().map(|kv| (kv.key.clone(), kv)).collect())
    }
}

#[async_trait]
impl Store for Keeping {
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

    async fn visit(&self, prefixes: &[&str], part: &mut Visitor<'_>) -> Result<Revision, StoreError> {
        self.store.visit(prefixes, part).await
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnOutcome, StoreError> {
        let before = self.before(&txn).await?;
        for op in txn.then.iter_mut().chain(&mut txn.otherwise) {
            let Op::Put(key, value) = op else { continue };
            let (Some(old), Some(merge)) = (before.get(key.as_str()), (self.types)(key)) else { continue };
            match merge(old, value.clone()) {
                Ok(merged) => *value = merged,
                Err(error) => tracing::warn!(%error, "nothing of the old value is kept"),
            }
        }
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
