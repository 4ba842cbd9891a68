//! `cpus: 2` for `cpus: {count: 2}`: fields that take a short scalar or the whole struct.

use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::units::ByteCount;

/// A struct with a short form. Use with `#[serde(deserialize_with = "scalar::or_struct")]`.
pub trait Short: for<'de> Deserialize<'de> {
    /// What a reader may write, for errors: "a size like 2G or a struct".
    const EXPECT: &'static str;
    /// From the scalar's text; an error is shown as it is.
    fn from_short(text: &str) -> Result<Self, String>;
}

struct ShortVisitor<T>(PhantomData<T>);

impl<'de, T: Short> Visitor<'de> for ShortVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECT)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<T, E> {
        T::from_short(v).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<T, E> {
        T::from_short(&v.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<T, E> {
        T::from_short(&v.to_string()).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

pub fn or_struct<'de, D: Deserializer<'de>, T: Short>(d: D) -> Result<T, D::Error> {
    d.deserialize_any(ShortVisitor(PhantomData))
}

struct AloneVisitor<T>(PhantomData<T>);

impl<T: Short> Visitor<'_> for AloneVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECT)
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<T, E> {
        T::from_short(v).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<T, E> {
        T::from_short(&v.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<T, E> {
        T::from_short(&v.to_string()).map_err(E::custom)
    }
}

/// For types that have the short form only. Their `Deserialize` must be this one: with [`or_struct`] a map would be handed
/// to itself without end.
pub fn alone<'de, D: Deserializer<'de>, T: Short>(d: D) -> Result<T, D::Error> {
    d.deserialize_any(AloneVisitor(PhantomData))
}

/// The schema of a struct whose short form is a number. Use with `#[schemars(transform = …)]`.
pub fn or_number(schema: &mut schemars::Schema) {
    or(schema, serde_json::json!({"type": "integer", "minimum": 1}));
}

/// The schema of a struct whose short form is a size.
pub fn or_size(schema: &mut schemars::Schema) {
    // Written out: a reference would depend on the document around it.
    or(schema, ByteCount::json_schema(&mut schemars::SchemaGenerator::default()).to_value());
}

/// The schema of a size that may be a bare 0.
pub fn or_zero(schema: &mut schemars::Schema) {
    or(schema, serde_json::json!({"const": 0}));
}

fn or(schema: &mut schemars::Schema, short: serde_json::Value) {
    let object = schema.ensure_object();
    let outside: serde_json::Map<String, serde_json::Value> =
        ["title", "description", "default"].into_iter().filter_map(|k| Some((k.to_owned(), object.remove(k)?))).collect();
    let whole = std::mem::take(object);
    *object = outside;
    object.insert("anyOf".into(), serde_json::json!([short, whole]));
}
