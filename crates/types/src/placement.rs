//! Where a VM may run, and where it should: the `placement` of its manifest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::Name;

/// Which nodes may and should run the VM. Looked at when a node is chosen; a change moves no VM by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementWish {
    /// Labels that a node must have, with these values: `{disk: ssd}`. The label `node` is every node's own name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that this VM bears.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// VMs to be together with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<VmRule>,
    /// VMs to be apart from. It holds both ways: they do not come to this one either.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<VmRule>,
}

impl PlacementWish {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// Key of the taint.
    pub key: String,
    /// null = whatever its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Other VMs of the same project, by name or by labels. Exactly one of `vm` and `labels`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRule {
    /// A VM by name; it need not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
    /// VMs that have all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// true: rather nowhere than against it. false: as far as possible.
    #[serde(default)]
    pub strict: bool,
    /// What counts as one place.
    #[serde(default)]
    pub within: Within,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Within {
    #[default]
    Node,
    /// All nodes of one `failure_domain`: a rack, a room.
    FailureDomain,
}
