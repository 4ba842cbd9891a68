//! `cpus: 2` for `cpus: {count: 2}`: fields that take a short scalar or the whole struct.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

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
