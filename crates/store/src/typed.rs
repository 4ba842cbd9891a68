//! JSON values: how records lie in the store, and how versions get along.
//!
//! A value is the record's JSON object. The version is one for the whole store: `cluster/level` (see [`agree_on_level`]).
//!
//! | who | does |
//! |---|---|
//! | writer | emits the store's level, never a higher one |
//! | reader | passes over fields it does not know: [`decode`] |
//! | one who changes a record | keeps those fields: its store is a [`crate::keep::Keeping`] one, or [`rewrite`] instead of [`put`] |
//! | anyone, of a newer level | refuses the store: [`StoreError::Newer`] |
//!
//! A value that does not parse is [`StoreError::Corrupt`], naming its key.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vmkeep_types::ids::Revision;
use vmkeep_types::manifest;

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

/// A record as far as this version knows it: unknown fields are passed over, at whatever depth.
///
/// # Errors
/// `Corrupt`, naming its key.
pub fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Result<T, StoreError> {
    let corrupt = |e: serde_json::Error| StoreError::Corrupt(format!("the value of '{}' does not parse: {e}", kv.key));
    serde_json::from_slice(&kv.value).or_else(|strict| {
        // Wishes of people refuse what they do not know, so that nobody mistypes; in the store it is a newer version's.
        let known = serde_json::from_slice(&kv.value).ok().and_then(manifest::known_from_json);
        known.ok_or_else(|| corrupt(strict))
    })
}

/// A write of `value`.
pub fn put<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Op {
    Op::Put(key.into(), serde_json::to_vec(value).expect("records are plain data with string keys"))
}

/// A write of `value` over `old` that keeps the fields of `old` which `T` does not know, at whatever depth of objects and of
/// lists whose elements have names. Other lists are replaced as a whole.
///
/// # Errors
/// `old` is not a `T`.
pub fn rewrite<T: Serialize + DeserializeOwned>(old: &KeyValue, value: &T) -> Result<Op, StoreError> {
    let new = serde_json::to_vec(value).expect("records are plain data with string keys");
    Ok(Op::Put(old.key.clone(), merge::<T>(old, new)?))
}

/// `new`, a `T`, with what `old` holds beyond a `T`.
///
/// # Errors
/// `old` or `new` is not a `T`.
pub fn merge<T: Serialize + DeserializeOwned>(old: &KeyValue, new: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let raw: Value = decode(old)?;
    let plain: Value = decode(&KeyValue { value: new.clone(), ..old.clone() })?;
    if !has_more(&raw, &plain) {
        return Ok(new);
    }
    let before: T = decode(old)?;
    let mut kept = plain.clone();
    keep_unknown(&mut kept, &raw, &to_json(&before));
    let kept = serde_json::to_vec(&kept).expect("it came from JSON");
    // A field that T knows under another name (an alias, a renamed field) must not come back beside its new name.
    let read: Result<T, _> = decode(&KeyValue { value: kept.clone(), ..old.clone() });
    Ok(if read.is_ok_and(|read| to_json(&read) == plain) { kept } else { new })
}

fn to_json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("records are plain data with string keys")
}

/// Elements of two lists that have the same name.
fn same_names<'a>(of: &'a [Value], name: &Value) -> Option<&'a Value> {
    of.iter().find(|other| other.get("name").is_some_and(|other| other == name))
}

/// Whether `old` has a field that `new` has not: unknown, or taken away.
fn has_more(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.iter().any(|(name, field)| new.get(name).is_none_or(|same| has_more(field, same))),
        (Value::Array(old), Value::Array(new)) => {
            let named = old.iter().filter_map(|item| Some((item, same_names(new, item.get("name")?)?)));
            named.into_iter().any(|(item, same)| has_more(item, same))
        }
        _ => false,
    }
}

/// Adds to `new` what `raw` has and `known`, the same value as `T` writes it, has not.
fn keep_unknown(new: &mut Value, raw: &Value, known: &Value) {
    match (new, raw, known) {
        (Value::Object(new), Value::Object(raw), Value::Object(known)) => {
            for (name, field) in raw {
                match (known.get(name), new.get_mut(name)) {
                    (None, None) => drop(new.insert(name.clone(), field.clone())),
                    (Some(known), Some(new)) => keep_unknown(new, field, known),
                    (None, Some(_)) | (Some(_), None) => {}
                }
            }
        }
        (Value::Array(new), Value::Array(raw), Value::Array(known)) => {
            for item in new {
                let Some(name) = item.get("name").cloned() else { continue };
                if let (Some(raw), Some(known)) = (same_names(raw, &name), same_names(known, &name)) {
                    keep_unknown(item, raw, known);
                }
            }
        }
        _ => {}
    }
}

/// A setting that was read: the default where nobody has said anything. None: it does not parse, which is a newer version's, and whoever
/// reads it goes on as it was.
pub fn setting<T: DeserializeOwned + Default>(read: Option<KeyValue>) -> Option<T> {
    read.map_or_else(|| Some(T::default()), |kv| decode(&kv).ok())
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
    // A store that is full takes no transaction that would write, whether it writes or not.
    if let Some(found) = get_json::<u64>(store, LEVEL).await? {
        return known(found.value);
    }
    let first = Txn::default().when(Compare::Absent(LEVEL.into())).then(put(LEVEL, &LEVEL_NOW)).otherwise(Op::Get(LEVEL.into()));
    let outcome = store.txn(first).await?;
    if outcome.held == Held::Yes {
        return Ok(LEVEL_NOW);
    }
    let found = outcome.gets.into_iter().flatten().next();
    known(found.as_ref().map(decode).transpose()?.unwrap_or(LEVEL_NOW))
}

fn known(level: u64) -> Result<u64, StoreError> {
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

    /// As people's wishes do, so that they mistype nothing.
    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        name: String,
        #[serde(default)]
        parts: Vec<Part>,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
    enum Part {
        Disk { name: String, size: u64 },
    }

    #[test]
    fn what_a_strict_record_does_not_know_survives_too() {
        let old = kv(r#"{"name":"a","later":{"x":1},"parts":[{"kind":"disk","name":"root","size":1,"tier":"fast"}]}"#);
        let mut record: Strict = decode(&old).expect("a newer version's");
        record.name = "b".into();
        let Part::Disk { size, .. } = &mut record.parts[0];
        *size = 2;
        record.parts.push(Part::Disk { name: "data".into(), size: 3 });
        let Ok(Op::Put(_, value)) = rewrite(&old, &record) else { panic!("a write") };
        expect![[r#"{"later":{"x":1},"name":"b","parts":[{"kind":"disk","name":"root","size":2,"tier":"fast"},{"kind":"disk","name":"data","size":3}]}"#]]
            .assert_eq(&String::from_utf8(value).expect("JSON"));
        assert!(decode::<Strict>(&kv(r#"{"name":7,"later":1}"#)).is_err(), "what is wrong is not passed over");
    }

    #[test]
    fn an_old_name_does_not_come_back_beside_the_new_one() {
        check(r#"{"title":"a","later":1}"#, |record| record.name = "b".into(), expect![[r#"vm/default/x = {"name":"b","disks":{}}"#]]);
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

    #[test]
    fn a_setting_that_nobody_made_is_the_default_and_one_that_is_not_understood_is_none() {
        assert_eq!(setting::<u64>(None), Some(0));
        assert_eq!(setting::<u64>(Some(kv("7"))), Some(7));
        assert_eq!(setting::<u64>(Some(kv(r#""seven""#))), None);
    }

    #[tokio::test]
    async fn a_newer_level_is_refused() {
        let store = EmbeddedStore::in_memory().expect("memory");
        assert_eq!(agree_on_level(&store).await, Ok(LEVEL_NOW));
        assert_eq!(agree_on_level(&store).await, Ok(LEVEL_NOW), "the second start reads it");
        store.txn(Txn::default().then(put(LEVEL, &(LEVEL_NOW + 1)))).await.expect("a write");
        let refused = agree_on_level(&store).await.expect_err("newer");
        let told = "the store was written by a newer vmkeep: its level is 9, this vmkeep knows 8; install the newer one again";
        assert_eq!(refused.to_string(), told);
    }
}
