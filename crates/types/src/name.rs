//! Names that people give: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`. Safe as file names, host names and URL segments.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// The longest name: what one DNS label may hold.
pub const NAME_BYTES_MAX: usize = 63;

/// A checked name of a VM, image, network, pool, disk, NIC, node or project.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a name: {why}")]
pub struct NameError {
    text: String,
    why: &'static str,
}

impl Name {
    /// For names that stand in our own source; panics on a bad one.
    pub fn known(text: &'static str) -> Self {
        text.parse().expect("a name in the source is well formed")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| Err(NameError { text: text.chars().take(80).collect(), why });
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > NAME_BYTES_MAX {
            return bad("it is longer than 63 characters");
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return bad("use lower case only");
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return bad("use only a-z, 0-9 and '-'");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return bad("it may not begin or end with '-'");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_names_pass() {
        for good in ["a", "web1", "a-b", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
