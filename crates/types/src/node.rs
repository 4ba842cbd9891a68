//! What is decided about a node by people, and what is measured on it. Its own description is [`crate::host::NodeFacts`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::VmId;
use crate::name::Name;
use crate::scalar::{self, Short};
use crate::units::ByteCount;

/// The wish for a node; a node without one has every default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    /// For `placement.node_selector` of VMs.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Keep VMs away that do not bear them (`placement.tolerations`).
    #[serde(default)]
    pub taints: Vec<Taint>,
    #[serde(default)]
    pub overcommit: Overcommit,
    #[serde(default)]
    pub reserve: Reserve,
    /// What fails together: a rack, a room. Default: the node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
}

impl NodeSpec {
    /// Every default.
    pub fn named(name: Name) -> Self {
        Self {
            name,
            description: String::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            overcommit: Overcommit::default(),
            reserve: Reserve::default(),
            failure_domain: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default)]
    pub effect: TaintEffect,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaintEffect {
    /// No VM is placed here that does not bear it.
    #[default]
    Refuse,
    /// Only when no other node will do.
    Avoid,
}

/// How much more is promised than there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overcommit {
    /// vCPUs per CPU. Default: 8; one host alone has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Ratio>,
    /// Memory of VMs per memory of the host. Default: 1; one host alone has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Ratio>,
}

/// What the host keeps for itself, before overcommitting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reserve {
    /// CPUs.
    pub cpus: u32,
    pub memory: ByteCount,
}

/// A factor in steps of 1/100, from 0.01 to 100: `1.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u32);

impl Ratio {
    pub const ONE: Self = Self(100);

    pub const fn from_hundredths(hundredths: u32) -> Self {
        Self(hundredths)
    }

    pub const fn hundredths(self) -> u32 {
        self.0
    }

    /// `amount` times this, rounded down.
    pub fn of(self, amount: u64) -> u64 {
        u64::try_from(u128::from(amount) * u128::from(self.0) / 100).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 100.0)
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no = || format!("'{text}' is no factor; write a number from 0.01 to 100, like 1.5");
        let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
        if part.is_empty() || part.len() > 2 || !part.bytes().chain(whole.bytes()).all(|b| b.is_ascii_digit()) {
            return Err(no());
        }
        let whole: u32 = whole.parse().map_err(|_| no())?;
        let hundredths: u32 = format!("{part:0<2}").parse().map_err(|_| no())?;
        let all = whole.checked_mul(100).and_then(|n| n.checked_add(hundredths)).ok_or_else(no)?;
        if (1..=10_000).contains(&all) { Ok(Self(all)) } else { Err(no()) }
    }
}

impl Short for Ratio {
    const EXPECT: &'static str = "a factor like 1.5";
    fn from_short(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        scalar::alone(d)
    }
}

impl Serialize for Ratio {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl JsonSchema for Ratio {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Ratio".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"description": "A factor like 1.5", "type": ["string", "number"], "pattern": "^[0-9]+(\\.[0-9]{1,2})?$"})
    }
}

/// What is stored of a node at `node/NODE`: the wish, and what was ordered of it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRecord {
    pub spec: NodeSpec,
    /// No VM is placed here while this is set; those that are here stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<Cordon>,
}

impl NodeRecord {
    pub fn named(name: Name) -> Self {
        Self { spec: NodeSpec::named(name), cordon: None }
    }
}

/// Who closed a node to new VMs, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cordon {
    pub by: String,
    pub at: jiff::Timestamp,
    #[serde(default)]
    pub why: String,
    #[serde(default)]
    pub closure: Closure,
}

/// What a node is closed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Closure {
    /// Nothing new comes; what is there stays or was drained.
    #[default]
    Cordon,
    /// Somebody works on the host: it may be off at any moment.
    Maintenance,
}

/// What a node measured, at `n/NODE/load`: written once a minute at most, apart from the facts, so that those stay still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeLoad {
    pub at: jiff::Timestamp,
    /// Of all CPUs of the host.
    pub cpu: Averages,
    /// Not available to new programs, caches left out.
    pub memory_used: ByteCount,
    /// Share of time in which something waited (the kernel's pressure stall information); zero where the kernel has none.
    #[serde(default)]
    pub cpu_stall: Averages,
    #[serde(default)]
    pub memory_stall: Averages,
    #[serde(default)]
    pub io_stall: Averages,
    /// Each VM that runs here.
    #[serde(default)]
    pub vms: BTreeMap<VmId, VmLoad>,
}

/// 1/1000, over two spans: what is high in both lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Averages {
    pub minute: u32,
    pub five_minutes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmLoad {
    /// 1/1000 of one CPU, over five minutes.
    pub cpu: u32,
    pub memory: ByteCount,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_read_and_written() {
        for (text, hundredths) in [("1", 100), ("1.5", 150), ("0.01", 1), ("8.25", 825), ("100", 10_000)] {
            let ratio: Ratio = text.parse().expect("a factor");
            assert_eq!((ratio.hundredths(), ratio.to_string().as_str()), (hundredths, text));
            let json = serde_json::to_string(&ratio).expect("plain data");
            assert_eq!(serde_json::from_str::<Ratio>(&json).expect("it reads back"), ratio);
        }
        for bad in ["", "0", "1.", ".5", "1.234", "-1", "101", "x", "1e3"] {
            assert!(bad.parse::<Ratio>().is_err(), "{bad}");
        }
        assert_eq!(Ratio::from_hundredths(150).of(10), 15);
        assert_eq!(serde_json::from_str::<Ratio>("2").expect("a number"), Ratio::from_hundredths(200));
    }
}
