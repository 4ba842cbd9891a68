//! What a candidate knows of the store: an old copy, in the store's own words.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmkeep_types::ids::{Epoch, Generation, Revision};

use super::super::record::{
    Armed, DisarmMode, Entry, EpochRecord, Farewell, Fence, Key, Memory, MoveWish, NodeNo, Op, Order, Owner, Phase, Proof, RunWish, Seen,
    Settings, Trouble, Value, VmNo, Want, Wish,
};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct View {
    entries: BTreeMap<Key, (Value, Revision)>,
    pub(super) revision: Revision,
}

macro_rules! getter {
    ($name:ident($($arg:ident: $of:ty),*) -> $type:ty = $key:expr, $variant:ident) => {
        pub fn $name(&self $(, $arg: $of)*) -> Option<(&$type, Revision)> {
            match self.entries.get(&$key) {
                Some((Value::$variant(value), revision)) => Some((value, *revision)),
                _ => None,
            }
        }
    };
}

impl View {
    pub fn new(revision: Revision, entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut view = Self::default();
        view.replace(revision, entries);
        view
    }

    pub(super) fn replace(&mut self, revision: Revision, entries: impl IntoIterator<Item = Entry>) {
        self.entries = entries
            .into_iter()
            .filter(|e| !matches!(e.key, Key::Beat(_) | Key::Canary(_)))
            .map(|e| (e.key, (e.value, e.revision)))
            .collect();
        self.revision = revision;
    }

    pub(super) fn set(&mut self, key: Key, value: Option<Value>, revision: Revision) {
        if self.entries.get(&key).is_some_and(|(_, known)| *known > revision) {
            return;
        }
        match value {
            Some(value) => drop(self.entries.insert(key, (value, revision))),
            None => drop(self.entries.remove(&key)),
        }
    }

    /// Our own transaction, which succeeded.
    pub(super) fn apply(&mut self, ops: &[Op], revision: Revision) {
        self.revision = self.revision.max(revision);
        for op in ops {
            match op {
                Op::Put(key, value) => self.set(*key, Some(value.clone()), revision),
                Op::Delete(key) => self.set(*key, None, revision),
            }
        }
    }

    getter!(epoch(node: NodeNo) -> EpochRecord = Key::Epoch(node), Epoch);
    getter!(fence(node: NodeNo, epoch: Epoch) -> Fence = Key::Fence(node, epoch), Fence);
    getter!(confirmed(node: NodeNo, epoch: Epoch) -> Proof = Key::Confirmed(node, epoch), Confirmed);
    getter!(armed(node: NodeNo, epoch: Epoch) -> Armed = Key::Armed(node, epoch), Armed);
    getter!(leaving(node: NodeNo) -> Farewell = Key::Leaving(node), Leaving);
    getter!(disarm() -> DisarmMode = Key::Disarm, Disarm);
    getter!(wish(vm: VmNo) -> Wish = Key::Wish(vm), Wish);
    getter!(owner(vm: VmNo) -> Owner = Key::Owner(vm), Owner);
    getter!(order(node: NodeNo, vm: VmNo) -> Order = Key::Order(node, vm), Order);
    getter!(move_wish(vm: VmNo) -> MoveWish = Key::Move(vm), Move);
    getter!(memory(vm: VmNo) -> Memory = Key::Memory(vm), Memory);

    pub fn settings(&self) -> Option<&Arc<Settings>> {
        match self.entries.get(&Key::Settings) {
            Some((Value::Settings(settings), _)) => Some(settings),
            _ => None,
        }
    }

    pub fn has(&self, key: Key) -> bool {
        self.entries.contains_key(&key)
    }

    /// What the node says of this generation.
    pub fn phase(&self, node: NodeNo, vm: VmNo, generation: Generation) -> Option<Phase> {
        match self.entries.get(&Key::Seen(node, vm)) {
            Some((Value::Seen(Seen { generation: of, phase }), _)) if *of == generation => Some(*phase),
            _ => None,
        }
    }

    /// A node where it runs although it was not ordered.
    pub fn runs_foreign(&self, vm: VmNo, nodes: usize) -> Option<NodeNo> {
        let foreign = |node: &NodeNo| self.phase(*node, vm, Generation(0)) == Some(Phase::Foreign);
        (0..nodes).filter_map(|n| u16::try_from(n).ok().map(NodeNo)).find(foreign)
    }

    pub fn vms(&self) -> impl Iterator<Item = (VmNo, &Wish)> {
        self.entries.range(Key::Wish(VmNo(0))..=Key::Wish(VmNo(u32::MAX))).filter_map(|(key, (value, _))| match (key, value) {
            (Key::Wish(vm), Value::Wish(wish)) => Some((*vm, wish)),
            _ => None,
        })
    }

    /// The state of a VM in one word.
    pub fn vm_state(&self, vm: VmNo) -> VmState {
        let Some((wish, _)) = self.wish(vm) else { return VmState::Deleted };
        let Some((owner, _)) = self.owner(vm) else { return VmState::Recovery };
        if wish.run == RunWish::Ignored || self.disarm().is_some_and(|(mode, _)| *mode == DisarmMode::Ignore) {
            return VmState::Ignored;
        }
        if self.disarm().is_some() {
            return VmState::Frozen;
        }
        if self
            .memory(vm)
            .is_some_and(|(memory, _)| memory.error.is_some_and(|trouble| trouble != Trouble::DoesNotStop || wish.run != RunWish::Disabled))
        {
            return VmState::Error;
        }
        let Some(seat) = owner.seat else {
            return match (wish.run, owner.parked) {
                (RunWish::Disabled | RunWish::Stopped, _) => VmState::Stopped,
                (_, Some(_)) => VmState::Frozen,
                (_, None) => VmState::Recovery,
            };
        };
        if self.has(Key::Confirmed(seat.node, seat.epoch)) || self.has(Key::Stopped(seat.node, vm, owner.generation)) {
            return VmState::Recovery;
        }
        if self.has(Key::Fence(seat.node, seat.epoch)) {
            return VmState::FenceWait;
        }
        if owner.to.is_some() {
            return VmState::Migrating;
        }
        let phase = self.phase(seat.node, vm, owner.generation);
        match (self.order(seat.node, vm).map(|(order, _)| order.want), phase) {
            (Some(Want::Run), Some(Phase::Running)) => VmState::Started,
            (Some(Want::Off), Some(Phase::Off)) => VmState::Stopped,
            (Some(Want::Off | Want::Leave), _) => VmState::Stopping,
            (Some(Want::HandsOff), _) => VmState::Ignored,
            (_, _) => VmState::Starting,
        }
    }
}

/// What is true of a VM, for people and programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VmState {
    Stopped,
    Starting,
    Started,
    Stopping,
    Migrating,
    /// Its node is sealed and not yet proved dead.
    FenceWait,
    /// Nobody's: it waits for a place or for its turn.
    Recovery,
    /// High availability leaves it alone for a while: its node is being rebooted, or it is disarmed.
    Frozen,
    Ignored,
    /// A person is needed.
    Error,
    Deleted,
}

impl VmState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Migrating => "migrating",
            Self::FenceWait => "fence-wait",
            Self::Recovery => "recovery",
            Self::Frozen => "frozen",
            Self::Ignored => "ignored",
            Self::Error => "error",
            Self::Deleted => "deleted",
        }
    }
}
