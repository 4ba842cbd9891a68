//! Networks that NICs attach to.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{NetworkId, OperationId};
use crate::name::Name;

/// A network that NICs attach to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub mode: NetworkMode,
    /// nat: the host's bridge, `vmk…`, chosen when omitted. bridge: an existing bridge of the host (admin only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// nat: CIDR of the gateway, `10.77.3.1/24`; a free /24 is chosen once when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// nat: CIDR of the gateway; a ULA /64 is chosen once when omitted. Comes up when the host may forward IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// DNS domain of the VMs' names.
    #[serde(default = "default_domain")]
    pub domain: String,
}

fn default_domain() -> String {
    "vmk".into()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A private subnet with DHCP and DNS behind the host's address.
    #[default]
    Nat,
    /// Plugged into an existing bridge of the host.
    Bridge,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkRecord {
    pub id: NetworkId,
    pub project: Name,
    pub spec: NetworkSpec,
    /// The operation that deletes it; no VM comes onto it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<OperationId>,
    /// Nodes on which a VM was plugged into it: it is defined there until it is deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub nodes: BTreeSet<Name>,
    pub created_at: jiff::Timestamp,
}
