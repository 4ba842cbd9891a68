//! Bodies about high availability: who would be reset, what happens when a node dies, what happened when one did.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmkeep_types::ha::{Confirmed, Disarm, HaSettings, Incident, Rescue, ShutdownPolicy, TimerProfile};
use vmkeep_types::host::NodeState;
use vmkeep_types::ids::Epoch;
use vmkeep_types::name::Name;

/// How high availability stands.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HaStatus {
    /// The control node that decides; None: none at this moment.
    pub leader: Option<String>,
    /// There while nothing is fenced or recovered.
    pub disarmed: Option<Disarm>,
    /// There where nothing is ever armed or recovered, in words: a host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<String>,
    pub settings: HaSettings,
    pub timers: HaTimers,
    pub brake: HaBrake,
    /// Where the profile does not fit the cluster, in words.
    #[serde(default)]
    pub problems: Vec<String>,
    pub nodes: Vec<HaNode>,
    /// VMs whose node is dead, first whose turn is first.
    pub queue: Vec<HaWaiting>,
}

/// Many nodes that fall silent at once are rather a broken network: then they are not fenced like one that dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaBrake {
    /// Nodes that do not renew their lives.
    pub silent: usize,
    /// Nodes that are not proved dead, the silent ones among them.
    pub live: usize,
    /// So many may be silent at once before it is put on.
    pub limit: usize,
    /// Why nodes are not fenced now, in words; None: it is off.
    pub why: Option<String>,
}

/// What all nodes work with, ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaTimers {
    pub renew_ms: u64,
    pub seal_ms: u64,
    pub kill_ms: u64,
    pub pet_ms: u64,
    pub watchdog_ms: u64,
    pub safe_ms: u64,
    /// Why no VM runs twice, with its numbers.
    pub inequality: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaNode {
    pub node: Name,
    pub epoch: Option<Epoch>,
    pub state: HaNodeState,
    /// What its heartbeat says.
    pub health: Option<NodeState>,
    /// How it would be proved dead, after how long, or why nobody could tell: in words.
    pub proof: String,
    /// Highly available VMs that it owns.
    pub vms: usize,
    pub confirmed: Option<Confirmed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HaNodeState {
    /// It has not joined, or has said goodbye.
    Away,
    Online,
    /// It is being shut down in order.
    Leaving,
    /// It does not renew its life.
    Silent,
    /// It can renew no more; its end is not proved yet.
    Sealed,
    /// Its end is proved.
    Dead,
    /// It has booted anew and waits for the proof that its life before has ended.
    Waiting,
}

/// A VM that waits for another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaWaiting {
    pub project: Name,
    pub vm: Name,
    pub from: Name,
    pub priority: u8,
    pub why: String,
}

/// What would become of each highly available VM if its node died now.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HaCheck {
    pub vms: Vec<HaForecast>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaForecast {
    pub project: Name,
    pub vm: Name,
    pub node: Option<Name>,
    pub protected: bool,
    /// Where it would run again.
    pub to: Option<Name>,
    /// Silence until another node may start it, ms; None: a person must say that the node is dead.
    pub after_ms: Option<u64>,
    /// All of it in words: where, after how long, by which proof, or what blocks it.
    pub text: String,
}

/// The deaths of nodes, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HaHistory {
    pub incidents: Vec<HaIncident>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaIncident {
    pub incident: Incident,
    pub confirmed: Option<Confirmed>,
    pub vms: Vec<Rescue>,
}

/// Switches high availability off for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HaDisarm {
    pub why: Option<String>,
}

/// Changes how high availability is set; what is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HaChange {
    pub shutdown_policy: Option<ShutdownPolicy>,
    pub profile: Option<TimerProfile>,
}

/// A person says that a node is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmDead {
    /// The node's name once more, as it was typed.
    pub typed: String,
}
