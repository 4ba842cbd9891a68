//! Long work that a caller can follow, survive and cancel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{OperationId, Revision};
use crate::migration::MoveProgress;
use crate::name::Name;
use crate::order::Progress;

/// Kept 7 days and at most 20 per object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    pub id: OperationId,
    pub project: Name,
    /// `vm.create`, `vm.update`, `vm.start`, `image.import` …
    pub kind: String,
    pub resource: ResourceRef,
    pub state: OpState,
    /// What was done, in order.
    pub steps: Vec<String>,
    pub progress: Option<Progress>,
    /// Of a live migration while it copies: bytes, and how the guest stands in its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<MoveProgress>,
    /// Why it cannot go on yet, in the planner's words.
    pub blocked: Option<String>,
    pub error: Option<Error>,
    pub wanted: Wanted,
    pub by: String,
    pub created_at: jiff::Timestamp,
    pub ended_at: Option<jiff::Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceRef {
    /// `vm`, `image`, `volume`, `network`
    pub kind: String,
    pub project: Name,
    pub name: Name,
    pub uid: uuid::Uuid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OpState {
    Pending,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl OpState {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What makes the operation done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Wanted {
    /// The agent reports this wish carried out, and the power cycle too.
    Vm { spec_revision: Revision, power_cycle: u64 },
    /// The object is gone.
    Gone,
    /// The node's task ended.
    Task,
    /// The VM is on another node.
    Moved,
    /// The node owns no VM any more.
    Drained,
}
