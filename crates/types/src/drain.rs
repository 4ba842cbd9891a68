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
