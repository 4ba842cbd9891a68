//! Bodies about placement: why a node was chosen, how much room there is, what would fit, which moves would help.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmkeep_types::migration::MoveManner;
use vmkeep_types::name::Name;
use vmkeep_types::node::Closure;
use vmkeep_types::units::{ByteCount, Seconds};

/// Every node for one VM, with a reason for each.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PlacementAnswer {
    pub vm: Name,
    /// The node that owns it.
    pub node: Option<Name>,
    /// The node it would get now; None: none can take it.
    pub choice: Option<Name>,
    /// The best one first; then those that cannot take it, by name.
    pub nodes: Vec<NodeVerdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerdict {
    pub node: Name,
    pub fits: bool,
    /// How well it would do, or why it cannot have it.
    pub text: String,
}

/// How many nodes may fail.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CapacityAnswer {
    pub vms: usize,
    /// VMs that no node owns.
    pub homeless: usize,
    /// VMs whose disks only one node reaches: if it fails they wait for it, whatever room there is.
    pub bound: usize,
    /// Nodes that may fail at once with a place for every VM on the others; at most 2 are tried.
    pub may_fail: usize,
    /// False: of larger sets of failed nodes only those with the fullest nodes were tried.
    pub all_tried: bool,
    /// What happens when one more fails.
    pub breaks: Option<CapacityBreak>,
    pub largest: Option<LargestVm>,
    pub nodes: Vec<NodeRoom>,
    /// What a new VM with `cpu: {model: cluster}` gets; None: the daemon is too old to tell.
    #[serde(default)]
    pub cpu: Option<CpuBaseline>,
}

/// The CPU that guests can have on every node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CpuBaseline {
    /// None: there is none, and VMs get their node's.
    pub model: Option<String>,
    /// Beyond the model.
    pub features: Vec<String>,
    /// Why there is none.
    pub why_not: Option<String>,
    /// Nodes that joined later and cannot run what VMs have been given.
    pub strangers: Vec<CpuStranger>,
}

/// A node to which VMs with the CPU of the cluster cannot come.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CpuStranger {
    pub node: Name,
    /// How many they are.
    pub vms: usize,
    /// What the node lacks of the CPU of one of them.
    pub text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CapacityBreak {
    pub failed: Vec<Name>,
    /// VMs that find no other node.
    pub left_over: Vec<Name>,
}

/// The largest VM that there is room for now.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LargestVm {
    pub node: Name,
    pub memory: ByteCount,
    pub vcpus: u64,
}

/// What VMs take of a node, and how much of it may be promised.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeRoom {
    pub node: Name,
    pub vms: u32,
    pub memory_taken: ByteCount,
    /// None: no limit.
    pub memory_limit: Option<ByteCount>,
    pub vcpus_taken: u64,
    pub vcpus_limit: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimulateRequest {
    /// Placed one after another, in this order.
    pub add: Vec<SimulatedVms>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimulatedVms {
    pub count: u32,
    /// A VM's manifest; only what placement looks at counts, and nothing that it names need exist.
    pub spec: serde_json::Value,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SimulateAnswer {
    pub wanted: u32,
    pub placed: u32,
    /// Node to how many of them it would get.
    pub by_node: BTreeMap<Name, u32>,
    pub broken: Option<SimulateBreak>,
    /// Nodes that may fail, before and with what was placed.
    pub may_fail_before: usize,
    pub may_fail_after: usize,
}

/// The first VM that fits nowhere.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SimulateBreak {
    pub vm: Name,
    pub nodes: Vec<NodeVerdict>,
}

/// Proposals; nothing is moved.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BalanceAnswer {
    /// The one that helps most first.
    pub moves: Vec<ProposedMove>,
    /// 1/1000 of pressure that lasts, by node.
    pub pressure: BTreeMap<Name, u32>,
    /// Nodes without a fresh measurement: nothing is moved from or to them.
    pub not_measured: Vec<Name>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProposedMove {
    pub vm: Name,
    pub project: Name,
    pub from: Name,
    pub to: Name,
    /// 1/1000 of pressure taken off the worse of the two nodes.
    pub gain: u32,
    pub from_before: u32,
    pub from_after: u32,
    pub to_before: u32,
    pub to_after: u32,
}

/// Body of `POST /v1/nodes/{name}/actions/{action}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeActionRequest {
    /// cordon: told to everybody who asks why nothing is placed there.
    pub why: Option<String>,
}

/// Body of `POST /v1/nodes/{name}/drain`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// Told to everybody who asks why nothing is placed there.
    pub why: Option<String>,
    /// `maintenance`: the host may be off at any moment from then on.
    pub closure: Closure,
    /// Migrations at once, 1 to 3; default: 2.
    pub at_once: Option<u32>,
    /// Of VMs that run; those that are off move as they are.
    pub manner: MoveManner,
    /// No VM is told to go any more after so long; default: no limit.
    pub timeout: Option<Seconds>,
}
