//! High availability, as the control plane drives `core::ha`: which node is dead, and where its VMs run again.
//!
//! ```text
//!  n/NODE/hb ──watch──► ears (every control node) ──► Vigil: o(r), is the store steady?
//!                                                       │ look, each second, the leader only
//!  ClusterView ──► ledger ─────────────────────────────►┤
//!                                                       ├─► seal, prove: Txn + leader compare ──► fence/N/E, confirmed/N/E
//!                                                       └─► cut power, refuse at the storage, ping
//!  confirmed/N/E ──► rescue: by priority, a few at a time ──► owner, generation + 1
//! ```
//! The [`Vigil`] is the code that the simulator runs. What it believes may be old: each of its transactions compares what it was
//! decided from, and the leader's key. A control node that restarts or could not hear waits as long as if it had never heard.

pub mod arm;
pub mod ears;
pub mod farewell;
pub mod ledger;
pub mod policy;
pub mod power;
pub mod rescue;
pub mod storage;
#[cfg(test)]
pub(crate) mod tests;
mod translate;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::record::{Beat, Health, NodeNo, Seat};
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_core::ha::turns::Turns;
use vmkeep_core::ha::vigil::{NodeNow, PowerIs, Step, Vigil, WritesAre};
use vmkeep_store::Txn;
use vmkeep_types::host::Heartbeat;
use vmkeep_types::ids::{Epoch, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::pool::PoolSpec;

use super::view::ClusterView;
use ledger::Known;
use power::Power;
use storage::StorageFence;

/// Both clocks of this host; injected, so that tests can let time pass.
pub type Clock = Arc<dyn Fn() -> Now + Send + Sync>;

/// This host's.
pub fn host_clock() -> Clock {
    Arc::new(crate::clock::now)
}

/// What one control node knows of all nodes, whether it leads or not.
pub struct Desk {
    inner: Mutex<Inner>,
    levers: Levers,
    clock: Clock,
}

/// What a control node can do to another node from outside.
pub struct Levers {
    pub power: Arc<dyn Power>,
    pub storage: Arc<dyn StorageFence>,
}

struct Inner {
    /// The place of a name is its number.
    names: Vec<Name>,
    vigil: Vigil,
    /// The newest epoch of each node that was heard of.
    epochs: BTreeMap<NodeNo, Epoch>,
    /// A node has renewed at some time: a host alone does not, and its silence means nothing.
    heard: bool,
    /// Answers of fence agents that were not looked at yet.
    cut: Vec<(NodeNo, Epoch, PowerIs)>,
    /// The same of the storage.
    refused: Vec<(Seat, WritesAre)>,
    turns: Turns,
}

/// What is to be done after one look.
#[derive(Debug, Default)]
pub struct Todo {
    /// About nodes; each to be written with the leader's compare.
    pub txns: Vec<Txn>,
    pub pings: Vec<Name>,
    pub cuts: Vec<(Name, Epoch)>,
    /// With all pools that must refuse the node.
    pub refusals: Vec<(Name, Epoch, Vec<PoolSpec>)>,
}

impl Inner {
    fn number(&mut self, name: &Name) -> NodeNo {
        let at = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.clone());
            self.names.len() - 1
        });
        NodeNo(u16::try_from(at).expect("a cluster has fewer nodes than that"))
    }

    fn note_epoch(&mut self, node: NodeNo, epoch: Epoch) {
        let known = self.epochs.entry(node).or_insert(epoch);
        *known = epoch.max(*known);
    }

    fn tick(&mut self, now: Now) {
        let Self { vigil, epochs, .. } = self;
        vigil.tick(now, epochs.iter().map(|(node, epoch)| (*node, *epoch)));
    }
}

impl Desk {
    /// `me`: the node of this control plane.
    pub fn new(me: &Name, levers: Levers, clock: Clock) -> Arc<Self> {
        let vigil = Vigil::new(NodeNo(0), Timers::of(Profile::Standard), None);
        let inner = Inner {
            names: vec![me.clone()],
            vigil,
            epochs: BTreeMap::new(),
            heard: false,
            cut: Vec::new(),
            refused: Vec::new(),
            turns: Turns::default(),
        };
        Arc::new(Self { inner: Mutex::new(inner), levers, clock })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic holds this lock")
    }

    pub fn now(&self) -> Now {
        (self.clock)()
    }

    /// A renewal that stands in the store at `revision`.
    pub fn hear(&self, node: &Name, beat: Heartbeat, revision: Revision) {
        let (mut inner, now) = (self.lock(), self.now());
        let node = inner.number(node);
        inner.heard = true;
        inner.note_epoch(node, beat.epoch);
        // libvirt's health and the storage's are in the node's facts.
        let beat = Beat { epoch: beat.epoch, seq: beat.seq, hypervisor: Health::Good, storage: Health::Good, profile: beat.profile };
        inner.vigil.hear(node, beat, revision, now);
    }

    /// A node has renewed at some time: a host alone does not.
    pub fn has_heard(&self) -> bool {
        self.lock().heard
    }

    /// The cluster's profile, as it stands in the store.
    pub fn set_profile(&self, profile: Profile) {
        self.lock().vigil.set_timers(Timers::of(profile));
    }

    /// The cluster's, as far as was read.
    pub fn timers(&self) -> Timers {
        self.lock().vigil.timers()
    }

    /// A write of this control node's own, sent then, was taken.
    pub fn canary(&self, sent: Now) {
        let (mut inner, now) = (self.lock(), self.now());
        inner.vigil.canary(sent, now);
    }

    pub fn tick(&self) {
        let (mut inner, now) = (self.lock(), self.now());
        inner.tick(now);
    }

    /// Nodes whose renewal is overdue, as far as was heard.
    pub fn late(&self) -> Vec<Name> {
        let (inner, now) = (self.lock(), self.now());
        inner.vigil.late(now).map(|node| inner.names[usize::from(node.0)].clone()).collect()
    }

    pub fn pong(&self, node: &Name) {
        let (mut inner, now) = (self.lock(), self.now());
        let node = inner.number(node);
        inner.vigil.pong(node, now);
    }

    /// The fence agent has come back.
    pub fn power_cut(&self, node: &Name, epoch: Epoch, power: PowerIs) {
        let mut inner = self.lock();
        let node = inner.number(node);
        inner.cut.push((node, epoch, power));
    }

    /// The storage has come back.
    pub fn writes_refused(&self, node: &Name, epoch: Epoch, writes: WritesAre) {
        let mut inner = self.lock();
        let node = inner.number(node);
        inner.refused.push((Seat { node, epoch }, writes));
    }

    pub fn levers(&self) -> &Levers {
        &self.levers
    }

    /// The leader's look at all nodes.
    pub fn look(&self, view: &ClusterView, wall: jiff::Timestamp) -> Todo {
        let (mut guard, now) = (self.lock(), self.now());
        let inner = &mut *guard;
        if !inner.heard {
            return Todo::default();
        }
        for (name, keys) in &view.nodes {
            if let Some(life) = &keys.life {
                let node = inner.number(name);
                inner.note_epoch(node, life.value.epoch);
            }
        }
        inner.vigil.set_timers(Timers::of(view.ha_settings.profile));
        inner.tick(now);
        let (cuts, refused) = (std::mem::take(&mut inner.cut), std::mem::take(&mut inner.refused));
        let Inner { names, vigil, .. } = inner;
        let known = Known { view, names, storage: self.levers.storage.as_ref() };
        let mut steps = Vec::new();
        for (node, epoch, power) in cuts {
            vigil.power_cut(now, &known, node, epoch, power, &mut steps);
        }
        refused.into_iter().for_each(|(seat, writes)| vigil.writes_refused(now, &known, seat, writes, &mut steps));
        let mut nodes = Vec::new();
        if vigil.is_steady() && view.recovery.is_none() {
            nodes = vigil.look(now, &known, &mut steps);
            // The leader waits for each write before it looks again.
            vigil.fence(now, &known, &nodes, |_| false, &mut steps);
        }
        todo(&known, steps, &nodes, wall)
    }

    /// The VMs of dead nodes that get another one now.
    pub fn rescue(&self, view: &ClusterView, wall: jiff::Timestamp) -> Vec<(VmId, Txn)> {
        let (mut inner, now) = (self.lock(), self.now());
        rescue::next(view, &mut inner.turns, now, wall)
    }
}

fn todo(known: &Known<'_>, steps: Vec<Step>, nodes: &[NodeNow], wall: jiff::Timestamp) -> Todo {
    let heard = |node: NodeNo| nodes.get(usize::from(node.0)).map(|is| is.silent_ms).filter(|ms| *ms > 0).map(|ms| before(wall, ms));
    let name = |node: NodeNo| known.names[usize::from(node.0)].clone();
    let mut todo = Todo::default();
    for step in steps {
        match step {
            Step::Say(words) => tracing::warn!("{words}"),
            Step::Ping(node) => todo.pings.push(name(node)),
            Step::CutPower { node, epoch } => todo.cuts.push((name(node), epoch)),
            Step::RefuseWrites { node, epoch } => {
                // Never none of them: that would be a proof out of nothing.
                let pools = storage::pools_of(known.view, known.storage, &name(node));
                todo.refusals.extend(pools.map(|pools| (name(node), epoch, pools)));
            }
            Step::Write { node, txn } => todo.txns.push(translate::txn(known, node, txn, heard(node), wall)),
        }
    }
    todo
}

fn before(wall: jiff::Timestamp, ms: u64) -> jiff::Timestamp {
    wall - jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap_or(0))
}
