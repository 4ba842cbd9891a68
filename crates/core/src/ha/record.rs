//! What the protocol keeps in the store, and the transactions that it asks for.
//!
//! | key | value | written by |
//! |---|---|---|
//! | `Leader` | who leads; bound to a lease | candidate |
//! | `Epoch(N)` | [`EpochRecord`]: one life of a node | agent |
//! | `Beat(N)` | [`Beat`]; its revision is the renewal's name | agent |
//! | `Fence(N, E)` | [`Fence`]: after it no renewal of E succeeds | leader |
//! | `Confirmed(N, E)` | [`Proof`]: E is dead; create-only | leader, operator |
//! | `Armed(N, E)` | [`Armed`]: how E would die; written before the first claim | agent |
//! | `Unusable(N, E)` | mark: it was asked to arm and cannot | agent |
//! | `ArmWanted(N)` | mark: VMs are about to be placed there | leader |
//! | `Owner(V)`, `Own(N, V)`, `Order(N, V)` | who may run it; always written in one transaction, so that all have one revision | leader |
//! | `Run(N, V)`, `Stopped(N, V, G)`, `Seen(N, V)` | claim, promise, what it sees | agent |
//! | `Wish(V)`, `Move(V)`, `Policy(N)`, `Disarm`, `Settings` | what people want | operator |
//! | `Memory(V)` | what the leader must not forget about a VM | leader |
//! | `Leaving(N)` | the host is being shut down | agent |
//! | `Waiting(N)` | a new boot of the host waits for the proof that the last one has ended | agent |
//!
//! etcd compares whole values and revisions, never fields: so whatever a transaction must compare is a key of its own. Nodes
//! and VMs are numbers here; whoever drives the machines keeps the table of their names.

use std::sync::Arc;

pub use vmkeep_types::ha::{Farewell, Parting, Proof, ShutdownPolicy, WatchdogKind};
use vmkeep_types::ids::{Epoch, Generation, Revision};

use super::timers::{DRIFT_PERMILLE, Profile, RESET_LATENCY_MS};

/// A node, by its place in the driver's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNo(pub u16);

/// A VM, by its place in the driver's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmNo(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Leader,
    Settings,
    Disarm,
    Canary(NodeNo),
    Epoch(NodeNo),
    Beat(NodeNo),
    Fence(NodeNo, Epoch),
    Confirmed(NodeNo, Epoch),
    Armed(NodeNo, Epoch),
    Unusable(NodeNo, Epoch),
    ArmWanted(NodeNo),
    Policy(NodeNo),
    Leaving(NodeNo),
    Waiting(NodeNo),
    Wish(VmNo),
    Move(VmNo),
    Memory(VmNo),
    Owner(VmNo),
    Own(NodeNo, VmNo),
    Order(NodeNo, VmNo),
    Run(NodeNo, VmNo),
    Stopped(NodeNo, VmNo, Generation),
    Seen(NodeNo, VmNo),
}

impl Key {
    /// Does the node's agent read it?
    pub fn is_for_agent(self, node: NodeNo) -> bool {
        match self {
            Self::Disarm => true,
            Self::Epoch(n)
            | Self::Fence(n, _)
            | Self::Confirmed(n, _)
            | Self::Armed(n, _)
            | Self::Unusable(n, _)
            | Self::ArmWanted(n)
            | Self::Waiting(n)
            | Self::Order(n, _) => n == node,
            _ => false,
        }
    }

    /// Is it a leader's to write?
    pub fn is_leaders(self) -> bool {
        matches!(self, Self::Fence(..) | Self::Owner(_) | Self::Own(..) | Self::Order(..) | Self::Memory(_) | Self::ArmWanted(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EpochRecord {
    pub epoch: Epoch,
    /// Kernel boot id, as a number.
    pub boot: u64,
    /// It ended by its agent's own goodbye: it owned nothing and was disarmed.
    pub closed: bool,
}

/// Is a part of a host all right?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    Good,
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beat {
    pub epoch: Epoch,
    pub seq: u64,
    /// libvirt answers.
    pub hypervisor: Health,
    /// The shared storage can be reached.
    pub storage: Health,
    /// What the node lives by.
    pub profile: Profile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Of the last renewal: the seal compared it.
    pub beat: Revision,
    pub by: NodeNo,
}

/// How an epoch would die. Immutable within it; T_safe is computed from nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Armed {
    pub pet_ms: u64,
    pub watchdog_ms: u64,
    pub kind: WatchdogKind,
}

impl Armed {
    /// Silence after which the node has been reset, in whole seconds; None: its watchdog proves nothing.
    pub fn safe_ms(&self) -> Option<u64> {
        let lives_ms = (self.pet_ms + 2 * self.watchdog_ms) * (1000 + DRIFT_PERMILLE) / 1000 + RESET_LATENCY_MS;
        (self.kind == WatchdogKind::Hardware).then(|| lives_ms.div_ceil(1000) * 1000)
    }

    /// As [`Self::safe_ms`] with one watchdog time-out forgotten.
    pub(super) fn unsafe_ms(&self) -> Option<u64> {
        let one = Self { watchdog_ms: self.watchdog_ms / 2, ..*self };
        one.safe_ms()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DisarmMode {
    /// Nothing is moved, recovered or fenced; VMs run on.
    Freeze,
    /// As though no VM were highly available; people may move them by hand.
    Ignore,
}

/// What people want of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunWish {
    Started,
    /// Off, and kept at a node that lives.
    Stopped,
    /// Off, and left where it is.
    Disabled,
    /// Not ours to touch.
    Ignored,
    Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wish {
    pub run: RunWish,
    /// 1 (first) to 5.
    pub priority: u8,
    /// Further attempts to start it on one node.
    pub max_restart: u8,
    /// Further nodes that are tried.
    pub max_relocate: u8,
    pub failback: bool,
    pub cpus: u32,
    pub memory_mib: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MoveWish {
    pub to: NodeNo,
    pub how: MoveHow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoveHow {
    Live,
    /// Stopped here, started there.
    Cold,
}

/// One epoch of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat {
    pub node: NodeNo,
    pub epoch: Epoch,
}

/// Who may run a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// None: nobody.
    pub seat: Option<Seat>,
    pub generation: Generation,
    /// The destination of a migration under way.
    pub to: Option<Seat>,
    /// Nobody's, and waiting for this node.
    pub parked: Option<Parked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parked {
    pub node: NodeNo,
    pub why: ParkedWhy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParkedWhy {
    /// New: this is where its disks were made.
    New,
    /// Its node is being rebooted and it stays with it.
    Frozen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    pub generation: Generation,
    /// Of the owner record: a later epoch of the node must not obey it.
    pub epoch: Epoch,
    pub want: Want,
    pub max_restart: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    Run,
    Off,
    /// Off, and the promise never to claim this generation again.
    Leave,
    MoveOut(NodeNo),
    MoveIn,
    /// Report, touch nothing.
    HandsOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub generation: Generation,
    pub epoch: Epoch,
    pub start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    pub generation: Generation,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Off,
    Starting,
    Running,
    Stopping,
    /// All attempts on this node failed.
    StartFailed,
    StopFailed,
    MoveFailed,
    /// Somebody moved it to another host by hand.
    MovedAway,
    /// It runs here and nobody ordered it.
    Foreign,
}

/// What the leader must not forget about a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Memory {
    pub relocated: u8,
    pub tried: Vec<NodeNo>,
    pub error: Option<Trouble>,
    /// It left this node for its maintenance and goes back.
    pub home: Option<NodeNo>,
    /// Where it goes when it has left its node.
    pub target: Option<NodeNo>,
    /// It stays with its node, which is being rebooted.
    pub park: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// Every allowed attempt on every allowed node failed.
    StartsNowhere,
    DoesNotStop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strictness {
    Strict,
    Preferred,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Nodes with their preference: the larger the better.
    Nodes {
        vms: Vec<VmNo>,
        nodes: Vec<(NodeNo, u32)>,
        how: Strictness,
    },
    Together {
        vms: Vec<VmNo>,
        how: Strictness,
    },
    Apart {
        vms: Vec<VmNo>,
        how: Strictness,
    },
}

impl Rule {
    pub fn vms(&self) -> &[VmNo] {
        match self {
            Self::Nodes { vms, .. } | Self::Together { vms, .. } | Self::Apart { vms, .. } => vms,
        }
    }
}

/// What the storage of all disks can do to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StorageCan {
    #[default]
    Nothing,
    RefuseNodes,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub rules: Vec<Rule>,
    pub shutdown: ShutdownPolicy,
    pub failback: bool,
    /// CPUs and memory (MiB) of each node.
    pub sizes: Vec<(u32, u64)>,
    /// Nodes whose power can be cut.
    pub stonith: Vec<NodeNo>,
    /// Whether the storage of all disks can refuse a node.
    pub storage: StorageCan,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    Mark,
    Leader(NodeNo),
    Settings(Arc<Settings>),
    Disarm(DisarmMode),
    Epoch(EpochRecord),
    Beat(Beat),
    Fence(Fence),
    Confirmed(Proof),
    Armed(Armed),
    Leaving(Farewell),
    Wish(Wish),
    Move(MoveWish),
    Memory(Memory),
    Owner(Owner),
    Order(Order),
    Claim(Claim),
    Seen(Seen),
}

/// A condition of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compare {
    Revision(Key, Revision),
    Absent(Key),
    Present(Key),
    /// The node owns nothing: no key in `Own(N, ..)`.
    OwnsNothing(NodeNo),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Put(Key, Value),
    Delete(Key),
}

/// A number that its sender chose; answers carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Txn {
    pub id: TxnId,
    pub compare: Vec<Compare>,
    pub then: Vec<Op>,
    /// Read when a comparison fails, in the same moment.
    pub otherwise: Vec<Key>,
}

impl Txn {
    pub fn new(id: TxnId) -> Self {
        Self { id, compare: Vec::new(), then: Vec::new(), otherwise: Vec::new() }
    }

    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compare.push(compare);
        self
    }

    #[must_use]
    pub fn put(mut self, key: Key, value: Value) -> Self {
        self.then.push(Op::Put(key, value));
        self
    }

    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.then.push(Op::Delete(key));
        self
    }

    #[must_use]
    pub fn else_get(mut self, keys: &[Key]) -> Self {
        self.otherwise.extend_from_slice(keys);
        self
    }
}

/// A key with what was read of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub key: Key,
    pub value: Value,
    pub revision: Revision,
}

/// The answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    pub id: TxnId,
    pub outcome: Outcome,
    /// Of the store, after it.
    pub revision: Revision,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    /// A comparison failed; what `otherwise` found.
    Refused(Vec<Entry>),
}
