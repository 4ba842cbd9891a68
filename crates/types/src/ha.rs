//! High availability as it lies in the store and is shown: how a life of a node would end, that it has ended, and what came of it.
//!
//! ```text
//!  n/NODE/armed/E ─► how E would die      fence/NODE/E ─► E renews no more      confirmed/NODE/E ─► E is dead, for ever
//! ```
//! What is decided from them is in `core::ha`; the key layout is in `vmkeep-store::keys`.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Generation, Revision, VmId};
use crate::name::Name;

/// How an epoch is known to have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// So much time has passed since its last sign of life that its watchdog has reset it.
    Watchdog,
    /// Its power was cut after it was sealed.
    Stonith,
    /// Since it was sealed the storage of all its disks refuses its writes. No driver of pools can do so yet: the first that can brings a
    /// level of the store with it, for members that do not know this word.
    Storage,
    /// It was not armed and owned nothing: it could start nothing.
    Unarmed,
    /// A person says so.
    Operator,
    /// Its host was shut down in order: its own last word is that nothing of it runs any more.
    Goodbye,
}

impl Proof {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Watchdog => "watchdog",
            Self::Stonith => "stonith",
            Self::Storage => "storage",
            Self::Unarmed => "unarmed",
            Self::Operator => "operator",
            Self::Goodbye => "goodbye",
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `confirmed/NODE/EPOCH`, created once and never changed: this epoch is dead, and its VMs may have another owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Confirmed {
    pub proof: Proof,
    /// The control node that saw the proof; of an operator's word, the person; of a goodbye, the node itself.
    pub by: String,
    /// By the clock of whoever wrote it; for people.
    pub at: jiff::Timestamp,
}

/// `fence/NODE/EPOCH`: from here on no renewal of this epoch succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fence {
    /// Of the last renewal, which the seal compared; 0: there was none.
    pub beat: Revision,
    /// The control node that led, or the person who confirmed the death.
    pub by: String,
    pub at: jiff::Timestamp,
}

/// What would reset the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WatchdogKind {
    /// It goes on while the host stands still.
    Hardware,
    /// Part of the kernel: it stands still while the whole host does, so that waiting proves nothing.
    Software,
}

/// `n/NODE/armed/EPOCH`, written by the agent: how this epoch would die. What others wait for is computed from nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub enum Armed {
    /// It would not: nobody waits for its death.
    None,
    /// It was asked to arm its watchdog and cannot; `why` is for people.
    Unusable { why: String },
    /// A watchdog resets the host `pet_ms` + 2 × `watchdog_ms` after its last renewal was sent, at the latest.
    Watchdog { pet_ms: u64, watchdog_ms: u64, kind: WatchdogKind },
}

impl Armed {
    /// Does a watchdog end this epoch?
    pub fn is_watchdog(&self) -> bool {
        matches!(self, Self::Watchdog { .. })
    }
}

/// `n/NODE/arm-wanted`: highly available VMs are about to be placed there, so it arms its watchdog or says why it cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArmWanted {
    /// By the leader's clock; it takes the wish back a while after.
    pub at: jiff::Timestamp,
}

/// What is done about a node while high availability is disarmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DisarmMode {
    /// Nothing is sealed, proved or recovered; VMs run on where they are.
    Freeze,
}

/// `cluster/ha/disarm`, there while high availability is switched off for work on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Disarm {
    pub mode: DisarmMode,
    pub by: String,
    pub at: jiff::Timestamp,
    /// As whoever did it explains it.
    #[serde(default)]
    pub why: String,
}

/// Why a host goes down in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Farewell {
    /// For longer, as far as anybody knows.
    #[default]
    Shutdown,
    /// It comes back by itself.
    Reboot,
}

impl Farewell {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Reboot => "reboot",
        }
    }
}

/// What becomes of a host's highly available VMs when it goes down in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownPolicy {
    /// They move away while they run, and the host waits for that; those that cannot go off and start elsewhere.
    Migrate,
    /// They go off and wait for their host.
    Freeze,
    /// They go off and start elsewhere.
    Failover,
    /// Freeze for a reboot, failover for a shutdown.
    #[default]
    Conditional,
}

impl ShutdownPolicy {
    pub const ALL: [Self; 4] = [Self::Migrate, Self::Freeze, Self::Failover, Self::Conditional];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Migrate => "migrate",
            Self::Freeze => "freeze",
            Self::Failover => "failover",
            Self::Conditional => "conditional",
        }
    }
}

/// Which timers, by name; their values and what they promise are `core::ha::timers`'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimerProfile {
    /// To 1000 nodes.
    #[default]
    Standard,
    /// To 64 nodes on a quiet network.
    Fast,
}

impl TimerProfile {
    pub const ALL: [Self; 2] = [Self::Standard, Self::Fast];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Fast => "fast",
        }
    }

    /// As a renewal says it: nothing for the default, so that older versions read it.
    pub fn is_standard(&self) -> bool {
        *self == Self::Standard
    }
}

/// What the policy comes to for one host that goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Parting {
    /// Its highly available VMs are on their way; it waits until another word stands here.
    Migrate,
    Freeze,
    Failover,
}

impl Parting {
    /// What is true of its highly available VMs.
    pub fn words(self) -> &'static str {
        match self {
            Self::Migrate => "its highly available VMs move away first",
            Self::Freeze => "its VMs wait for it",
            Self::Failover => "its highly available VMs start elsewhere",
        }
    }
}

/// `n/NODE/leaving`, written by the agent of a host that goes down in order, and answered by the leader. It means nothing to another
/// epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Departure {
    pub epoch: Epoch,
    pub farewell: Farewell,
    pub at: jiff::Timestamp,
    /// The leader's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Parting>,
}

/// `cluster/ha/settings`: how the cluster's high availability is set; every default where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HaSettings {
    pub shutdown_policy: ShutdownPolicy,
    pub profile: TimerProfile,
}

/// `cluster/ha/memory/UID`: what the leader must not forget about a highly available VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HaMemory {
    /// Nodes on which it did not start, in order.
    pub tried: Vec<Name>,
    /// The power cycle that this is true of: a person's command begins the counting anew.
    pub cycle: u64,
    /// No node is left, and that was told.
    pub told: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<GoesHome>,
}

/// It left a node for its maintenance, and goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GoesHome {
    pub node: Name,
    /// Its own since then; another one says that somebody else has moved it.
    pub generation: Generation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<jiff::Timestamp>,
}

/// One death of a node as a timeline, at `cluster/ha/incident/NODE/EPOCH`. For people: nothing is decided from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Incident {
    pub node: Name,
    pub epoch: Epoch,
    /// Its last sign of life, as the control node that sealed it saw it.
    pub silent_since: jiff::Timestamp,
    pub sealed_at: jiff::Timestamp,
    /// The control node that led, or the person who confirmed the death.
    pub sealed_by: String,
}

/// One VM that lost its node, at `cluster/ha/rescue/NODE/EPOCH/UID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rescue {
    pub vm: VmId,
    pub project: Name,
    pub name: Name,
    pub from: Name,
    pub to: Name,
    pub placed_at: jiff::Timestamp,
    /// When its new node said that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_at: Option<jiff::Timestamp>,
}
