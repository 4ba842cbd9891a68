//! JSON values: how records lie in the store, and how versions get along.
//!
//! A value is the record's JSON object. The version is one for the whole store: `cluster/level` (see [`agree_on_level`]).
//!
//! | who | does |
//! |---|---|
//! | writer | emits the store's level, never a higher one |
//! | reader | ignores fields it does not know |
//! | one who changes a record | keeps those fields: [`rewrite`] instead of [`put`] |
//! | anyone, of a newer level | refuses the store: [`StoreError::Newer`] |
//!
//! A value that does not parse is [`StoreError::Corrupt`], naming its key.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vmkeep_types::ids::Revision;

use crate::keys::{LEVEL, LEVEL_NOW};
use crate::{Compare, Held, KeyValue, Op, Store, StoreError, Txn};

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

/// A write of `value` over `old` that keeps the fields of `old` which `T` does not know, at whatever depth of objects.
/// Lists are replaced as a whole.
///
/// # Errors
/// `old` is not a `T`.
pub fn rewrite<T: Serialize + DeserializeOwned>(old: &KeyValue, value: &T) -> Result<Op, StoreError> {
    let before: T = decode(old)?;
    let raw: Value = decode(old)?;
    let plain = to_json(value);
    let mut kept = plain.clone();
    keep_unknown(&mut kept, &raw, &to_json(&before));
    // A field that T knows under another name (an alias, a renamed field) must not come back beside its new name.
    let same = T::deserialize(&kept).is_ok_and(|read| to_json(&read) == plain);
    Ok(put(old.key.clone(), if same { &kept } else { &plain }))
}

fn to_json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("records are plain data with string keys")
}

/// Adds to `new` what `raw` has and `known`, the same value as `T` writes it, has not.
fn keep_unknown(new: &mut Value, raw: &Value, known: &Value) {
    let (Value::Object(new), Value::Object(raw), Value::Object(known)) = (new, raw, known) else { return };
    for (name, field) in raw {
        match (known.get(name), new.get_mut(name)) {
            (None, None) => drop(new.insert(name.clone(), field.clone())),
            (Some(known), Some(new)) => keep_unknown(new, field, known),
            (None, Some(_)) | (Some(_), None) => {}
        }
    }
}

pub async fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<Stored<T>>, StoreError> {
    store.get(key).await?.map(stored).transpose()
}

pub async fn list_json<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Stored<T>>, StoreError> {
    store.list(prefix).await?.items.into_iter().map(stored).collect()
}

/// As [`list_json`], without the values that do not parse: each is logged. For showing only; a decision must not be made
/// over a record that it cannot read.
pub async fn list_readable<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Stored<T>>, StoreError> {
    Ok(store.list(prefix).await?.items.into_iter().filter_map(|kv| readable(stored(kv))).collect())
}

/// What was decoded; what was not is logged.
pub fn readable<T>(decoded: Result<T, StoreError>) -> Option<T> {
    decoded.inspect_err(|error| tracing::error!(%error, "a record is left out")).ok()
}

/// A value that was read, with its place.
///
/// # Errors
/// `Corrupt`, naming its key.
pub fn stored<T: DeserializeOwned>(kv: KeyValue) -> Result<Stored<T>, StoreError> {
    let value = decode(&kv)?;
    Ok(Stored { key: kv.key, value, created: kv.created, modified: kv.modified })
}

/// The level that writers of this store emit; a new store gets ours. Called once, before anything else is read.
///
/// # Errors
/// [`StoreError::Newer`] when the store is of a level that this code does not know.
pub async fn agree_on_level(store: &dyn Store) -> Result<u64, StoreError> {
    let first = Txn::default().when(Compare::Absent(LEVEL.into())).then(put(LEVEL, &LEVEL_NOW)).otherwise(Op::Get(LEVEL.into()));
    let outcome = store.txn(first).await?;
    if outcome.held == Held::Yes {
        return Ok(LEVEL_NOW);
    }
    let found = outcome.gets.into_iter().flatten().next();
    let level: u64 = found.as_ref().map(decode).transpose()?.unwrap_or(LEVEL_NOW);
    if level > LEVEL_NOW {
        return Err(StoreError::Newer(format!("its level is {level}, this vmkeep knows {LEVEL_NOW}; install the newer one again")));
    }
    Ok(level)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use serde::Deserialize;

    use super::*;
    use crate::embedded::EmbeddedStore;

    #[derive(Serialize, Deserialize)]
    struct Disk {
        size: u64,
    }

    #[derive(Serialize, Deserialize)]
    struct Record {
        #[serde(alias = "title")]
        name: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tags: Vec<String>,
        #[serde(default)]
        disks: BTreeMap<String, Disk>,
    }

    fn kv(value: &str) -> KeyValue {
        KeyValue { key: "vm/default/x".into(), value: value.into(), created: Revision(1), modified: Revision(1) }
    }

    fn check(old: &str, change: impl FnOnce(&mut Record), wanted: Expect) {
        let old = kv(old);
        let told = decode::<Record>(&old).and_then(|mut record| {
            change(&mut record);
            rewrite(&old, &record)
        });
        wanted.assert_eq(&match told {
            Ok(Op::Put(key, value)) => format!("{key} = {}", String::from_utf8(value).expect("JSON")),
            other => format!("{other:?}"),
        });
    }

    #[test]
    fn unknown_fields_survive_a_rewrite() {
        check(
            r#"{"name":"a","later":{"x":1},"disks":{"root":{"size":1,"tier":"fast"},"data":{"size":2,"tier":"slow"}}}"#,
            |record| {
                record.name = "b".into();
                record.disks.remove("data");
                record.disks.get_mut("root").expect("root").size = 9;
            },
            expect![[r#"vm/default/x = {"disks":{"root":{"size":9,"tier":"fast"}},"later":{"x":1},"name":"b"}"#]],
        );
    }

    #[test]
    fn known_fields_that_were_emptied_stay_away() {
        check(
            r#"{"name":"a","tags":["x"],"disks":{}}"#,
            |record| record.tags.clear(),
            expect![[r#"vm/default/x = {"disks":{},"name":"a"}"#]],
        );
    }

    #[test]
    fn an_old_name_does_not_come_back_beside_the_new_one() {
        check(r#"{"title":"a","later":1}"#, |record| record.name = "b".into(), expect![[r#"vm/default/x = {"disks":{},"name":"b"}"#]]);
    }

    #[test]
    fn a_broken_value_names_its_key() {
        check(
            r#"{"name":7}"#,
            |_| {},
            expect![[
                r#"Err(Corrupt("the value of 'vm/default/x' does not parse: invalid type: integer `7`, expected a string at line 1 column 9"))"#
            ]],
        );
    }

    #[tokio::test]
    async fn a_newer_level_is_refused() {
        let store = EmbeddedStore::in_memory().expect("memory");
        assert_eq!(agree_on_level(&store).await, Ok(LEVEL_NOW));
        assert_eq!(agree_on_level(&store).await, Ok(LEVEL_NOW), "the second start reads it");
        store.txn(Txn::default().then(put(LEVEL, &(LEVEL_NOW + 1)))).await.expect("a write");
        let refused = agree_on_level(&store).await.expect_err("newer");
        let told = "the store was written by a newer vmkeep: its level is 3, this vmkeep knows 2; install the newer one again";
        assert_eq!(refused.to_string(), told);
    }
}
