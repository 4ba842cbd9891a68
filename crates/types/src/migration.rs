//! A VM's way from one node to another: what people ask for, what is stored of it, and what both nodes are told and say.
//!
//! ```text
//!  migrate/UID        Migration          the leader's record, from the wish to its end
//!  n/NODE/move/UID    MoveOrder          what this side does now
//!  n/NODE/moved/UID   MoveSeen           what this side says
//! ```

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{Generation, OperationId, VmId, VolumeId};
use crate::name::Name;
use crate::observed::{DomainState, Observed, RestartCount, VmMemory};
use crate::order::{Holder, Order, Progress};
use crate::units::{ByteCount, Seconds};

/// What a person asks of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MigrateOptions {
    /// Node to move to; default: the one that placement chooses.
    pub to: Option<Name>,
    pub manner: MoveManner,
    /// Bytes per second at most; default: what the network gives.
    pub bandwidth: Option<ByteCount>,
    /// Slow the guest down when it writes faster than its memory can be copied.
    pub auto_converge: bool,
    /// Called off when it is not through by then; default: an hour.
    pub timeout: Option<Seconds>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MoveManner {
    /// The guest runs on; one that is off moves as it is.
    #[default]
    Live,
    /// Shut down, moved, started again.
    Cold,
    /// Live where that can be, else cold.
    LiveOrCold,
}

/// The leader's record of one migration, at `migrate/UID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Migration {
    pub op: OperationId,
    pub vm: VmId,
    pub project: Name,
    pub options: MigrateOptions,
    pub phase: MovePhase,
    /// Chosen when it leaves [`MovePhase::Asked`].
    pub way: Option<Way>,
    /// Why it is to end before it is through.
    pub stop: Option<Stop>,
    /// What broke it, while the source takes the guest back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broke: Option<Error>,
    /// When it is called off.
    pub deadline: jiff::Timestamp,
}

/// Where a migration stands; what is true of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MovePhase {
    /// Nothing has been chosen; the VM is the source's alone.
    Asked,
    /// The guest is at the source; the destination makes ready and the source's worker takes its hands off.
    Preparing,
    /// The guest is off at the source and stays so, while the destination copies what lies there.
    Fetching,
    /// The source sends. The guest runs at the source, or is paused on both sides at the very end.
    Copying,
    /// The destination owns the VM and may resume it; the source has promised never to run it again.
    Arriving,
    /// The source takes the guest back that a broken migration left paused there.
    Returning,
}

/// From where to where, and what goes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Way {
    pub from: Name,
    pub to: Name,
    /// The source's right to run it; the destination gets the next.
    pub generation: Generation,
    pub travel: Travel,
    /// The newest command when it set out; a later one to stop calls it off.
    pub power_cycle: u64,
    /// Disks whose data is copied, because only the source reaches their pool.
    pub copy: BTreeSet<Name>,
    /// Files of the source's libvirt that are copied, because the guest is off.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub state: BTreeSet<LocalState>,
    /// What the source remembered; set when the destination becomes the owner.
    pub handed: Option<Handed>,
}

/// What libvirt keeps of a VM that is off, in files of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LocalState {
    /// UEFI variables.
    Nvram,
    /// What its TPM keeps.
    Tpm,
}

/// How the guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Travel {
    /// Running, and it runs on.
    Running,
    /// Paused by a person, and it stays so.
    Paused,
    /// Off, or shut down for this.
    Off,
}

/// Why a migration ends before it is through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Stop {
    /// Somebody cancelled its operation.
    Cancelled { by: String },
    /// It was not through at its deadline.
    Late,
    /// The VM is wanted otherwise: stopped, deleted.
    Against { why: String },
}

/// What a node remembered of a VM, for the one that has it next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Handed {
    pub memory: VmMemory,
    pub restarts: RestartCount,
}

/// In an order: the VM is on its way, and its worker keeps its hands off it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Moving {
    pub op: OperationId,
    pub travel: Travel,
}

/// How other hosts reach this one's libvirt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationAddress {
    /// `qemu+tls://10.0.0.2/system`; with tls the guest's memory is encrypted on its way too.
    pub connect: String,
    /// `tcp://10.0.0.2`: where QEMU listens. By address: host names need not resolve.
    pub data: String,
}

impl MigrationAddress {
    /// Whether what goes there is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.connect.starts_with("qemu+tls:")
    }
}

/// What one side of a migration does now, at `n/NODE/move/UID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveOrder {
    pub op: OperationId,
    pub vm: VmId,
    pub part: MovePart,
    /// The VM as this node is to know it.
    pub order: Order,
    pub travel: Travel,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum MovePart {
    /// Destination: networks, seed and, for a guest that runs, empty volumes for the disks that are copied.
    Prepare {
        copy: BTreeSet<Name>,
        /// The source; None: its address is not known, or the leader is older.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Holder>,
    },
    /// Destination: copy what lies at the source, where the guest is off.
    Fetch { from: Holder, copy: BTreeSet<Name>, state: BTreeSet<LocalState>, bandwidth: Option<ByteCount> },
    /// Source: send it.
    Send { to: MigrationAddress, copy: BTreeSet<Name>, bandwidth: Option<ByteCount>, auto_converge: bool },
    /// Source: call the sending off, and say how it ended.
    Halt,
    /// Source: resume the guest that is paused here.
    TakeBack,
    /// Destination, which is the owner: resume the guest that is paused here.
    Resume,
    /// Not the owner: take away what is here of the VM, and these volumes.
    Forget { volumes: BTreeMap<VolumeId, Name> },
}

impl MovePart {
    pub fn kind(&self) -> PartKind {
        match self {
            Self::Prepare { .. } => PartKind::Prepare,
            Self::Fetch { .. } => PartKind::Fetch,
            Self::Send { .. } => PartKind::Send,
            Self::Halt => PartKind::Halt,
            Self::TakeBack => PartKind::TakeBack,
            Self::Resume => PartKind::Resume,
            Self::Forget { .. } => PartKind::Forget,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    Prepare,
    Fetch,
    Send,
    Halt,
    TakeBack,
    Resume,
    Forget,
}

/// What one side says, at `n/NODE/moved/UID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveSeen {
    pub op: OperationId,
    pub vm: VmId,
    /// What it was told to do.
    pub part: PartKind,
    pub said: MoveSaid,
    pub progress: Option<MoveProgress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum MoveSaid {
    /// Under way. Of the source: libvirt was or is about to be asked.
    Working,
    /// Destination: everything is there, and on its disks.
    Ready,
    /// It cannot be done here, and nothing was.
    Refused { error: Error },
    /// Source: the guest has left, and this node never runs this generation again.
    Sent,
    /// Source: no migration is under way any more, and the domain is this.
    Kept { domain: Observed<DomainState>, error: Option<Error> },
    /// The guest is here as it was: after `TakeBack` or `Resume`.
    Resumed,
    /// Destination: there was nothing to resume.
    Lost { error: Error },
    /// Nothing is left here.
    Clean,
}

/// How far the copying is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MoveProgress {
    /// Memory and disks, bytes.
    pub done: u64,
    pub total: u64,
    /// Bytes per second that the guest writes to its memory, as QEMU measured last.
    pub dirty_rate: u64,
    /// Milliseconds that the guest would stand still if it were switched over now.
    pub expected_downtime_ms: u64,
}

impl MoveProgress {
    pub fn bytes(&self) -> Progress {
        Progress { done: self.done, total: self.total }
    }
}
