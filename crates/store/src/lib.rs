//! The store: revisioned key–value with compare-and-swap, prefix watch from a revision, and a leader lease; etcd's data
//! model behind one trait.
//!
//! ```text
//!   txn(compare, then, else) ──► one revision ──► watchers of the prefix
//! ```
//! Embedded (SQLite, WAL, synchronous=FULL) for one host; etcd for clusters. One conformance suite holds both to the same
//! behaviour. What is stored and under which key is written in [`keys`]; statistics are not stored at all.
//!
//! How it fails: a transaction either has a revision or left nothing behind; [`StoreError::Unknown`] means that its outcome
//! is unknown (etcd did not answer, or the disk failed while the commit was written) and the caller must read before it decides. A watcher that cannot keep up, or asks for a
//! compacted revision, gets [`StoreError::Compacted`] and lists again.

pub mod crash;
pub mod embedded;
pub mod etcd;
pub mod keep;
pub mod keys;
pub mod layout;
mod limits;
pub mod seal;
pub mod typed;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use vmkeep_types::ids::Revision;

/// One key with its value and the revisions at which it was created and last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: String,
    pub value: Vec<u8>,
    pub created: Revision,
    pub modified: Revision,
}

/// A condition of a transaction. Whole values and revisions only: what etcd can compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    Absent(String),
    Present(String),
    ModifiedAt(String, Revision),
    ValueIs(String, Vec<u8>),
    /// No key has this prefix.
    PrefixEmpty(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put(String, Vec<u8>),
    Delete(String),
    DeletePrefix(String),
    /// Its answer is in [`TxnOutcome::gets`], in the order of the ops.
    Get(String),
}

/// A transaction may hold at most this many compares, and as many ops in each branch: etcd's default `--max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;

/// The largest value: well under etcd's 1.5 MiB request limit.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Keys and values of a whole transaction, both branches: etcd takes requests up to 1.5 MiB, the frame around them included.
pub const TXN_BYTES_MAX: usize = 1400 << 10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

impl Txn {
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compare.push(compare);
        self
    }

    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Which branch ran.
    pub held: Held,
    /// Revision after it; a branch without writes does not raise it.
    pub revision: Revision,
    pub gets: Vec<Option<KeyValue>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// All compares held, `then` ran.
    Yes,
    /// One did not, `otherwise` ran.
    No,
}

/// A consistent listing: all keys of a prefix at one revision, in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub revision: Revision,
    pub items: Vec<KeyValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(KeyValue),
    /// Key and the revision of its deletion.
    Deleted {
        key: String,
        at: Revision,
    },
}

/// All changes of one transaction under the watched prefix, in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub changes: Vec<Change>,
}

/// Events wait here; a watcher that falls this far behind is closed with `Compacted` instead of eating memory.
pub const WATCH_QUEUE_MAX: usize = 4096;

/// Takes a part of a listing in.
pub type Visitor<'v> = dyn FnMut(Vec<KeyValue>) + Send + 'v;

pub type Watch = mpsc::Receiver<Result<WatchBatch, StoreError>>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("revision {asked} is compacted; the oldest kept is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// It answers, and lets this host do nothing: it does not know it, or knows it as another.
    #[error("the store refuses this host: {0}")]
    Denied(String),
    #[error("the outcome of a write is unknown: {0}")]
    Unknown(String),
    #[error("the transaction is over a limit: {0}")]
    TooLarge(String),
    /// One branch writes a key twice: etcd refuses that, so everybody does.
    #[error("the transaction contradicts itself: {0}")]
    Invalid(String),
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    #[error("the store was written by a newer vmkeep: {0}")]
    Newer(String),
    /// Nothing was written and nothing is lost; reads go on.
    #[error("the store takes no writes: {0}")]
    Full(String),
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Identity of this store's history; part of watch tokens, changes when a backup is restored or data move to etcd.
    fn id(&self) -> StoreId;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;

    /// All keys with this prefix at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// The first keys with this prefix, in order, `count` at most: to ask whether there are few costs no more where there are many.
    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError>;

    /// Several prefixes at one revision: the view of a planner.
    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError>;

    /// The same for whoever takes it in part by part: nobody holds all of it at once, and what comes next is on its way meanwhile. What was
    /// taken in before an error is worth nothing.
    async fn visit(&self, prefixes: &[&str], part: &mut Visitor<'_>) -> Result<Revision, StoreError> {
        let listing = self.list_many(prefixes).await?;
        part(listing.items);
        Ok(listing.revision)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Every change under `prefix` with a revision ≥ `from`, in order, without gaps. A revision that is gone is refused at once;
    /// one that goes later (a reader too slow, a break too long) ends the watch with [`StoreError::Compacted`].
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// Newest revision.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Takes or keeps the leader key for `ttl`. The returned key and revision are compared in every write of the leader:
    /// `Compare::ModifiedAt(lead.key, lead.revision)`.
    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError>;

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub key: String,
    pub revision: Revision,
}

/// Identity of one store's history: random, made when the store is created.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreId(pub String);
