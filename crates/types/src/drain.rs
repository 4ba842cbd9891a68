//! Emptying a node: what people ask for, and what the leader remembers of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{OperationId, VmId};
use crate::migration::{MoveManner, Stop};
use crate::name::Name;

/// The leader's record of a node that is being emptied, at `drain/NODE`. Its VMs are told to go one after another, each by a
/// migration of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drain {
    pub node: Name,
    /// In project `default`, as all that is the cluster's.
    pub op: OperationId,
    /// Migrations at once.
    pub at_once: u32,
    pub manner: MoveManner,
    #[serde(default, skip_serializing_if = "Whom::is_all")]
    pub whom: Whom,
    /// No VM is told to go any more from then on; None: no limit.
    pub deadline: Option<jiff::Timestamp>,
    /// Why it is to end before the node is empty.
    pub stop: Option<Stop>,
    pub by: String,
    /// VMs that were told, with the newest operation of each.
    pub told: BTreeMap<VmId, Told>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    pub op: OperationId,
    /// How often it was told.
    pub tries: u32,
}

/// Which VMs of the node go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Whom {
    #[default]
    All,
    /// Those that are highly available: their host is being shut down.
    Protected,
}

impl Whom {
    fn is_all(&self) -> bool {
        *self == Self::All
    }
}
