//! Facts of a host and the rows of `vmkeep host check`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Epoch;
use crate::name::Name;
use crate::units::ByteCount;

/// A node as its agent describes it, at `n/NODE/facts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeFacts {
    pub name: Name,
    pub epoch: Epoch,
    /// Kernel's boot id: a new one means the host was booted.
    pub boot_id: String,
    pub cpus: u32,
    pub memory: ByteCount,
    pub kvm: KvmState,
    pub libvirt_version: Option<String>,
    pub qemu_version: Option<String>,
    pub vmkeep_version: String,
    /// libvirt answers.
    pub hypervisor_up: bool,
    /// Where the members of its cluster reach the agent: `ADDRESS:PORT`. None: a host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum KvmState {
    Usable,
    /// TCG is used instead, and this is why.
    Unusable {
        why: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckLevel {
    Ok,
    Warn,
    Fail,
}

/// One row of `vmkeep host check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckRow {
    /// Stable word: `kvm`, `memory`, `apparmor`.
    pub id: String,
    pub level: CheckLevel,
    /// What was found.
    pub found: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// The command that mends it.
    pub mend: Option<String>,
}
