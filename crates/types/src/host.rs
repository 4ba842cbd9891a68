//! Facts of a host and the rows of `vmkeep host check`.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ha::TimerProfile;
use crate::ids::{Epoch, PoolId, PoolMark};
use crate::migration::MigrationAddress;
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
    /// Where migrations are sent to; None: no other host can reach its libvirt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationAddress>,
    /// What VMs may need of it.
    #[serde(default)]
    pub offers: NodeOffers,
}

impl NodeFacts {
    /// A host that can run VMs, in its first epoch, as long as nothing else is told of it.
    pub fn of(name: Name, cpus: u32, memory: ByteCount) -> Self {
        Self {
            name,
            epoch: Epoch(1),
            boot_id: String::new(),
            cpus,
            memory,
            kvm: KvmState::Usable,
            libvirt_version: None,
            qemu_version: None,
            vmkeep_version: String::new(),
            hypervisor_up: true,
            address: None,
            migration: None,
            offers: NodeOffers::default(),
        }
    }
}

/// What a VM may need of a node, as far as the node knows; an empty list of names is "not known" and refuses nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeOffers {
    /// `x86_64`; empty = not known.
    pub arch: String,
    /// CPU models that libvirt says guests can have here.
    pub cpu_models: BTreeSet<String>,
    /// Versioned machine types of its QEMU, `pc-q35-10.0`.
    pub machines: BTreeSet<String>,
    /// Features that the host's CPU has beyond its own model.
    pub cpu_features: BTreeSet<String>,
    /// Its own model: the nearest one to the CPU that guests get here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpu_model: String,
    /// All features that guests can have here, those of its own model too.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cpu_guest_features: BTreeSet<String>,
    /// Models that guests can have without a few features, and those features; what is nowhere named guests cannot have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cpu_models_without: BTreeMap<String, BTreeSet<String>>,
    pub numa: Vec<NumaNode>,
    /// Bridges that networks of `mode: bridge` can be plugged into.
    pub bridges: BTreeSet<String>,
    /// Host devices by PCI address.
    pub pci: BTreeSet<String>,
    /// Shared pools whose folder is here, with the mark in it; None: it has not looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_marks: Option<BTreeMap<PoolId, PoolMark>>,
    /// Memory in reserved huge pages.
    pub hugepages: ByteCount,
    /// The earliest that its hardware watchdog bites, s, as its driver says; None: there is none, or its driver says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog_min_s: Option<u32>,
}

impl NodeOffers {
    /// Not when it has looked, and what it found is another folder, or none.
    pub fn may_have(&self, pool: PoolId, mark: PoolMark) -> bool {
        self.pool_marks.as_ref().is_none_or(|marks| marks.get(&pool) == Some(&mark))
    }
}

/// CPUs and the memory that is near to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NumaNode {
    pub id: u32,
    pub cpus: u32,
    pub memory: ByteCount,
}

/// `n/NODE/epoch`: one life of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochRecord {
    pub epoch: Epoch,
    /// Of the kernel.
    pub boot_id: String,
    /// It ended by its agent's own goodbye: nothing ran any more, and nothing of it ever will.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closed: bool,
}

/// The agent's sign of life, at `n/NODE/hb`: it lives, and it has the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    pub epoch: Epoch,
    /// + 1 with each.
    pub seq: u64,
    /// What the node lives by; others wait for no less.
    #[serde(default, skip_serializing_if = "TimerProfile::is_standard")]
    pub profile: TimerProfile,
}

/// What the leader makes of a node's heartbeats, at `state/NODE`; written when it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeState {
    pub state: NodeHealth,
    /// The last sign of life before it, or the first after silence.
    pub since: jiff::Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeHealth {
    /// Its heartbeat comes.
    Online,
    /// It missed one: nothing new is placed there. Its VMs may well run.
    Suspect,
    /// It has been silent for long. Nobody knows whether its VMs run.
    Offline,
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
