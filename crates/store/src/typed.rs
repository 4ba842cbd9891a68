//! JSON values: how records lie in the store.
//!
//! A value is the record's JSON object. Fields that this version does not know are left alone by readers; a writer emits
//! the level in `cluster/level`. A value that does not parse is [`StoreError::Corrupt`], naming its key.

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmkeep_types::ids::Revision;

use crate::{KeyValue, Op, Store, StoreError};

/// A decoded value and where it stands in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    pub key: String,
    pub value: T,
    pub created: Revision,
    pub modified: Revision,
}

pub fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Result<T, StoreError> {
    serde_json::from_slice(&kv.value).map_err(|e| StoreError::Corrupt(format!("the value of '{}' does not parse: {e}", kv.key)))
}

/// A write of `value`.
pub fn put<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Op {
    Op::Put(key.into(), serde_json::to_vec(value).expect("records are plain data with string keys"))
}

pub async fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<Stored<T>>, StoreError> {
    store.get(key).await?.map(stored).transpose()
}

pub async fn list_json<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Stored<T>>, StoreError> {
    store.list(prefix).await?.items.into_iter().map(stored).collect()
}

fn stored<T: DeserializeOwned>(kv: KeyValue) -> Result<Stored<T>, StoreError> {
    let value = decode(&kv)?;
    Ok(Stored { key: kv.key, value, created: kv.created, modified: kv.modified })
}
