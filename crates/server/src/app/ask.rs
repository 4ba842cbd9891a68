//! Who asks and under which conditions: `If-Match`, a key under which the request may be repeated, and who else must agree.
//!
//! ```text
//!  handler ─► Ask ─► app/<noun> ─► begin: admitted? ─ If-Match and key compared ─ one transaction
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{OperationId, Revision};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, ResourceRef};
use vmkeep_types::record::Caller;

use super::{commit, get, put_op};

/// Who asks, where, and under which conditions.
#[derive(Clone, Debug)]
pub struct Ask {
    pub project: Name,
    pub caller: Caller,
    /// What the caller says is there; anything else is refused.
    pub if_match: Option<IfMatch>,
    /// The request may come again and is carried out once.
    pub repeat: Option<Repeat>,
    pub admission: Admission,
    /// Names of domains that the only node has and vmkeep did not make; empty where nobody looked.
    pub foreign: BTreeSet<String>,
}

/// The condition of an `If-Match` header (RFC 9110, 13.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// `*`: the object is there.
    Exists,
    /// The revision the caller read.
    At(Revision),
}

/// An `Idempotency-Key` and the hash of what was asked with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    pub key: String,
    pub request: String,
}

/// Something that must agree before anything is changed: a quota.
pub trait Admit: Send + Sync {
    /// # Errors
    /// Its refusal, in words for the caller.
    fn check(&self, ask: &Ask, wish: &Wish<'_>) -> Result<(), Error>;
}

/// What is about to be written.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// `vm.create`, `network.put`, as operations are called.
    pub kind: &'a str,
    pub resource: &'a ResourceRef,
}

/// All that must agree, asked in order; the first refusal counts.
#[derive(Clone, Default)]
pub struct Admission(pub Arc<Vec<Box<dyn Admit>>>);

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Admission({} links)", self.0.len())
    }
}

/// What became of a request with a key.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    made: Made,
    request: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Made {
    Op(OperationId),
    Token(String),
}

/// Keys of requests that may be repeated.
const ALL_REPEATS: &str = "idem/";

impl Ask {
    /// Refuses when the caller read something older than what was `found`; else the condition for the transaction.
    ///
    /// # Errors
    /// `Stale`.
    pub fn expect<T>(&self, name: &Name, found: &Stored<T>) -> Result<Option<Compare>, Error> {
        match self.if_match {
            None => Ok(None),
            Some(IfMatch::At(read)) if read != found.modified => Err(stale(name, found.modified)),
            Some(_) => Ok(Some(Compare::ModifiedAt(found.key.clone(), found.modified))),
        }
    }

    /// # Errors
    /// The first refusal of the admission chain.
    pub fn admit(&self, kind: &str, resource: &ResourceRef) -> Result<(), Error> {
        self.admission.0.iter().try_for_each(|link| link.check(self, &Wish { kind, resource }))
    }

    fn repeat_key(&self, key: &str) -> String {
        format!("{ALL_REPEATS}{}/{key}", self.project)
    }

    fn remember(&self, txn: Txn, made: Made) -> Txn {
        let Some(repeat) = &self.repeat else { return txn };
        let key = self.repeat_key(&repeat.key);
        let begun = Begun { made, request: repeat.request.clone() };
        txn.when(Compare::Absent(key.clone())).then(typed::put(key, &begun))
    }

    /// The transaction that makes a token, under the caller's key.
    pub fn remember_token(&self, txn: Txn, id: &str) -> Txn {
        self.remember(txn, Made::Token(id.to_owned()))
    }
}

pub fn stale(name: &Name, now: Revision) -> Error {
    Error::new(Code::Stale, format!("'{name}' was changed by somebody else; it has revision {now} now"))
        .hint("read it again, merge, and send it with the new ETag")
}

/// What [`begin`] wrote.
pub struct Written {
    pub op: Operation,
    /// None: the request was a repetition, and nothing was written.
    pub at: Option<Revision>,
}

/// Admits a change and writes it with the operation that tells of it, once per key; `None` = a compare did not hold.
///
/// # Errors
/// A refusal of the admission chain; `Conflict` when the key was used for something else; the store's.
pub async fn write(store: &dyn Store, ask: &Ask, txn: Txn, op: Operation) -> Result<Option<Written>, Error> {
    ask.admit(&op.kind, &op.resource)?;
    let txn = ask.remember(txn.then(put_op(&op)), Made::Op(op.id));
    match commit(store, txn).await? {
        Some(revision) => Ok(Some(Written { op, at: Some(revision) })),
        // Two of one key at once: the second gets the first one's operation.
        None => Ok(repeated(store, ask).await?.map(|op| Written { op, at: None })),
    }
}

/// [`write`], where the revision does not matter.
///
/// # Errors
/// As [`write`].
pub async fn begin(store: &dyn Store, ask: &Ask, txn: Txn, op: Operation) -> Result<Option<Operation>, Error> {
    Ok(write(store, ask, txn, op).await?.map(|written| written.op))
}

/// The operation that the same request began before.
///
/// # Errors
/// `Conflict` when the key was used for another request, or for a token, whose secret is shown once.
pub async fn repeated(store: &dyn Store, ask: &Ask) -> Result<Option<Operation>, Error> {
    let Some(repeat) = &ask.repeat else { return Ok(None) };
    let Some(begun) = get::<Begun>(store, &ask.repeat_key(&repeat.key)).await?.map(|s| s.value) else { return Ok(None) };
    let op = match &begun.made {
        Made::Op(id) => get::<Operation>(store, &keys::op(&ask.project, *id)).await?.map(|s| s.value),
        Made::Token(id) => {
            return Err(Error::conflict(format!("this Idempotency-Key made token {id} already; its secret was shown then"))
                .hint("if it is lost: vmkeep token delete, and a new request with a new key"));
        }
    };
    match op {
        Some(op) if begun.request != repeat.request => {
            let was = format!("this Idempotency-Key was used for {} of '{}', and the request was another one", op.kind, op.resource.name);
            Err(Error::conflict(was).hint("a new request takes a new key"))
        }
        op => Ok(op),
    }
}

/// A key lives as long as what was made with it.
pub(super) async fn forget_repeats(store: &dyn Store) -> Result<Vec<String>, vmkeep_store::StoreError> {
    let mut gone = Vec::new();
    for kv in store.list(ALL_REPEATS).await?.items {
        let project = kv.key.split('/').nth(1).and_then(|p| p.parse::<Name>().ok());
        let kept = match (project, typed::decode::<Begun>(&kv).map(|begun| begun.made)) {
            (Some(project), Ok(Made::Op(id))) => store.get(&keys::op(&project, id)).await?.is_some(),
            (Some(_), Ok(Made::Token(id))) => store.get(&keys::token(&id)).await?.is_some(),
            _ => false,
        };
        if !kept {
            gone.push(kv.key);
        }
    }
    Ok(gone)
}
