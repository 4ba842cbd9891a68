//! Byte counts and durations, written the way administrators write them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A number of bytes. Text form: a whole number and a binary suffix, `512M`, `2G`, `2GiB`; bare numbers are refused
/// because nobody agrees on their unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteCount(u64);

const UNITS: [(u64, &str); 5] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"), (1, "B")];

impl ByteCount {
    pub const ZERO: Self = Self(0);

    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    pub const fn from_gib(gib: u64) -> Self {
        Self(gib << 30)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whole KiB, rounded up: the unit of libvirt's memory elements.
    pub const fn kib(self) -> u64 {
        self.0.div_ceil(1024)
    }

    pub const fn mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }

    /// For people: one decimal in the largest unit that fits (`1.5G`), not exact.
    pub fn human(self) -> String {
        for (size, unit) in UNITS {
            if self.0 >= size && size > 1 {
                let tenths = (self.0 as u128 * 10 / size as u128) as u64;
                return if tenths.is_multiple_of(10) {
                    format!("{}{unit}", tenths / 10)
                } else {
                    format!("{}.{}{unit}", tenths / 10, tenths % 10)
                };
            }
        }
        format!("{}B", self.0)
    }
}

impl fmt::Display for ByteCount {
    /// Exact: the largest unit that divides the count, so that it reads back to the same number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0B");
        }
        for (size, unit) in UNITS {
            if self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        unreachable!("1 divides every count")
    }
}

/// Why a text is no size or duration. The message stands alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

impl FromStr for ByteCount {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(digits);
        if number.is_empty() {
            return Err(UnitError(format!("'{text}' is not a size; write a whole number and a unit, like 512M or 20G")));
        }
        let size: u64 = match suffix.trim() {
            "" => return Err(UnitError(format!("'{text}' has no unit; write {text}M or {text}G"))),
            "B" | "b" => 1,
            "K" | "k" | "KiB" => 1 << 10,
            "M" | "m" | "MiB" => 1 << 20,
            "G" | "g" | "GiB" => 1 << 30,
            "T" | "t" | "TiB" => 1 << 40,
            other => return Err(UnitError(format!("unknown unit '{other}' in '{text}'; use K, M, G or T (binary)"))),
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(size))
            .map(Self)
            .ok_or_else(|| UnitError(format!("'{text}' is larger than 2^64 bytes")))
    }
}

/// A length of time in whole seconds. Text form: `0s`, `120s`, `10m`, `2h`, `7d`, or `off`-free combinations like `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(u64);

impl Seconds {
    pub const fn new(seconds: u64) -> Self {
        Self(seconds)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub const fn millis(self) -> u64 {
        self.0.saturating_mul(1000)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n.is_multiple_of(86400) => write!(f, "{}d", n / 86400),
            n if n > 0 && n.is_multiple_of(3600) => write!(f, "{}h", n / 3600),
            n if n > 0 && n.is_multiple_of(60) => write!(f, "{}m", n / 60),
            n => write!(f, "{n}s"),
        }
    }
}

impl FromStr for Seconds {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError(format!("'{text}' is not a duration; write a number and s, m, h or d, like 120s or 10m"));
        let mut rest = text.trim();
        let mut total = 0u64;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let (number, tail) = rest.split_at(digits);
            let factor = match tail.chars().next() {
                Some('s') => 1,
                Some('m') => 60,
                Some('h') => 3600,
                Some('d') => 86400,
                _ => return Err(bad()),
            };
            let number: u64 = number.parse().map_err(|_| bad())?;
            total = number.checked_mul(factor).and_then(|n| total.checked_add(n)).ok_or_else(bad)?;
            rest = &tail[1..];
        }
        Ok(Self(total))
    }
}

macro_rules! text_unit {
    ($type:ty, $name:literal, $expect:literal, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expect)
                    }
                    fn visit_str<E: de::Error>(self, v: &str) -> Result<$type, E> {
                        v.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, v: u64) -> Result<$type, E> {
                        v.to_string().parse().map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, v: i64) -> Result<$type, E> {
                        v.to_string().parse().map_err(E::custom)
                    }
                }
                d.deserialize_any(Text)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "description": $expect, "pattern": $pattern})
            }
        }
    };
}

text_unit!(ByteCount, "ByteCount", "a size like 512M or 20G (binary units)", "^[0-9]+ ?(B|b|[KkMmGgTt]|[KMGT]iB)$");
text_unit!(Seconds, "Seconds", "a duration like 120s, 10m or 2h", "^([0-9]+[smhd])+$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_what_they_print() {
        for text in ["0B", "512M", "2G", "1T", "3K", "1536M", "7B"] {
            assert_eq!(text.parse::<ByteCount>().expect(text).to_string(), text);
        }
        assert_eq!("2GiB".parse::<ByteCount>(), Ok(ByteCount::from_gib(2)));
        assert_eq!(ByteCount::from_mib(1536).human(), "1.5G");
    }

    #[test]
    fn a_size_without_unit_or_sense_is_refused() {
        for text in ["2048", "-1G", "", "G", "1.5G", "1X", "99999999999999T"] {
            assert!(text.parse::<ByteCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!("1h30m".parse::<Seconds>(), Ok(Seconds::new(5400)));
        assert_eq!(Seconds::new(120).to_string(), "2m");
        for text in ["", "5", "5x", "m", "-1s"] {
            assert!(text.parse::<Seconds>().is_err(), "{text}");
        }
    }
}
