//! History in words. A capped ring per object; the audit log is apart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operation::ResourceRef;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    pub at: jiff::Timestamp,
    pub resource: ResourceRef,
    pub level: Level,
    /// Stable word for programs: `vm.started`, `vm.crashed`, `vm.drift`.
    pub code: String,
    /// For people.
    pub message: String,
    pub node: Option<crate::name::Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}
