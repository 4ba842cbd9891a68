//! Who is silent, who is sealed, who is dead: the part of a candidate that decides about nodes, and the brake.
//!
//! ```text
//!  renewal ──► hear o(r) ── silent, store steady ──► seal ──► proof: STONITH │ storage │ T_safe │ not armed │ (operator) ──► confirmed
//! ```
//! Every candidate hears; only the leader looks and writes. What it reads of the store comes through a [`Ledger`], what it wants is a
//! list of [`Step`]s; whoever drives it adds to each [`Step::Write`] that the leader's key is its own. The simulated candidate and
//! the daemon's control plane drive this same code. What it believes may be old: every write compares what it was decided from.

mod proof;

use std::collections::BTreeMap;

use vmkeep_types::ids::{Epoch, Revision};

use super::attempts::Attempts;
use super::brake::Brake;
use super::clock::Now;
use super::pings::Pings;
use super::ready::{self, Ready};
use super::record::{Armed, Beat, Compare, EpochRecord, Farewell, Fence, Health, Key, NodeNo, Seat, Txn, TxnId, Value};
use super::timers::Timers;
use super::weakness::Weakness;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeState {
    /// It has no epoch that may own anything: it never joined, or said goodbye.
    Away,
    Online,
    /// It missed renewals: nothing new comes there.
    Suspect,
    /// It can renew no more.
    Sealed,
    /// Its epoch has ended for certain.
    Dead,
}

/// One node at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeNow {
    pub state: NodeState,
    pub epoch: Epoch,
    pub epoch_revision: Revision,
    /// Since the last renewal was seen, ms.
    pub silent_ms: u64,
    pub hypervisor: Health,
    pub storage: Health,
    pub maintenance: bool,
    pub leaving: Option<Farewell>,
    pub armed: bool,
    /// May it be given VMs?
    pub ready: Ready,
    /// A new boot of it has the store and waits for the end of this epoch.
    pub waiting: bool,
}

impl NodeNow {
    /// May something new come here?
    pub fn takes_vms(&self) -> bool {
        self.state == NodeState::Online
            && !self.maintenance
            && self.leaving.is_none()
            && self.hypervisor == Health::Good
            && self.storage == Health::Good
    }

    /// Why not, in words.
    pub fn why_not(&self) -> &'static str {
        match self.state {
            NodeState::Away => "it has not joined",
            NodeState::Suspect => "it does not answer",
            NodeState::Sealed => "it is being fenced",
            NodeState::Dead => "it is dead",
            NodeState::Online if self.maintenance => "it is in maintenance",
            NodeState::Online if self.leaving.is_some() => "it is being shut down",
            NodeState::Online if self.hypervisor == Health::Bad => "its libvirt does not answer",
            NodeState::Online if self.storage == Health::Bad => "it has lost the storage",
            NodeState::Online => "it takes VMs",
        }
    }
}

/// What a vigil reads of the store, as it is known here.
pub trait Ledger {
    /// They are numbered from 0.
    fn nodes(&self) -> usize;
    fn name(&self, node: NodeNo) -> &str;
    fn epoch(&self, node: NodeNo) -> Option<(EpochRecord, Revision)>;
    fn fence(&self, node: NodeNo, epoch: Epoch) -> Option<(Fence, Revision)>;
    /// None: it has no watchdog that would end it.
    fn armed(&self, node: NodeNo, epoch: Epoch) -> Option<(Armed, Revision)>;
    /// It was asked to arm its watchdog in this epoch, and cannot.
    fn cannot_arm(&self, node: NodeNo, epoch: Epoch) -> bool;
    fn is_confirmed(&self, node: NodeNo, epoch: Epoch) -> bool;
    fn is_waiting(&self, node: NodeNo) -> bool;
    fn in_maintenance(&self, node: NodeNo) -> bool;
    fn leaving(&self, node: NodeNo) -> Option<Farewell>;
    fn is_disarmed(&self) -> bool;
    /// Its power can be cut from elsewhere.
    fn can_cut(&self, node: NodeNo) -> bool;
    /// All that its VMs write lies where its writes can be refused.
    fn can_refuse(&self, node: NodeNo) -> bool;
    /// And the last test of it did not fail.
    fn cut_is_tested(&self, node: NodeNo) -> bool;
    fn stake(&self, seat: Seat) -> Stake;
    /// Owns it a VM, in whatever epoch?
    fn owns_any(&self, node: NodeNo) -> bool;
}

/// What hangs on the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stake {
    /// VMs that run again elsewhere when it is proved dead.
    Vms,
    /// Nothing but its own next epoch.
    Nothing,
    /// Only VMs that stay with it. Not armed it begins its next epoch by itself, so there is nothing to gain.
    Others,
}

/// What a vigil wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A transaction of the leader's, without the comparison of its key.
    Write {
        node: NodeNo,
        txn: Txn,
    },
    CutPower {
        node: NodeNo,
        epoch: Epoch,
    },
    /// The storage is to take no write of the node any more until it has booted anew.
    RefuseWrites {
        node: NodeNo,
        epoch: Epoch,
    },
    Ping(NodeNo),
    /// What is done and why, for people.
    Say(String),
}

/// What the storage says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WritesAre {
    /// Each disk's, begun ones too.
    Refused,
    Unknown,
}

/// What the fence agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerIs {
    Off,
    Unknown,
}

/// What a renewal told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// An older one than is known.
    Nothing,
    Renewal,
    /// Another epoch, or another state of its libvirt.
    Change,
}

/// When a candidate first saw a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heard {
    beat: Beat,
    revision: Revision,
    at: Now,
}

/// What one candidate knows of all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vigil {
    me: NodeNo,
    timers: Timers,
    weak: Option<Weakness>,
    heard: BTreeMap<NodeNo, Heard>,
    canary_ok: Option<Now>,
    /// The store has answered without a break since; None: it does not answer.
    steady_since: Option<Now>,
    stonith: Attempts,
    refusals: Attempts,
    pings: Pings,
    /// The words about the brake that were said last.
    brake: Brake,
    /// When the epoch that a node lives in was first seen: a new one has time for its first renewal.
    joined: BTreeMap<NodeNo, (Epoch, Now)>,
    /// Nodes whose waiting for a proof was told.
    told: BTreeMap<NodeNo, Epoch>,
}

impl Vigil {
    pub fn new(me: NodeNo, timers: Timers, weak: Option<Weakness>) -> Self {
        Self {
            me,
            timers,
            weak,
            heard: BTreeMap::new(),
            canary_ok: None,
            steady_since: None,
            stonith: Attempts::default(),
            refusals: Attempts::default(),
            pings: Pings::default(),
            brake: Brake::default(),
            joined: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// The cluster's.
    pub fn timers(&self) -> Timers {
        self.timers
    }

    /// The cluster lives by others from now on.
    pub fn set_timers(&mut self, timers: Timers) {
        self.timers = timers;
    }

    /// What counts for this node: its own, as it said with its last renewal, where they wait longer.
    fn timers_of(&self, node: NodeNo) -> Timers {
        self.heard.get(&node).map_or(self.timers, |heard| self.timers.or_longer(Timers::of(heard.beat.profile)))
    }

    /// A renewal that is newer than all that were seen: it was committed before now.
    pub fn hear(&mut self, node: NodeNo, beat: Beat, revision: Revision, now: Now) -> News {
        let before = self.heard.get(&node);
        if before.is_some_and(|heard| heard.revision >= revision) {
            return News::Nothing;
        }
        let first = before.is_none() && self.weak == Some(Weakness::FreshCandidate);
        let at = if first { Now::default() } else { now };
        let same = before.is_some_and(|heard| heard.beat.hypervisor == beat.hypervisor && heard.beat.epoch == beat.epoch);
        self.heard.insert(node, Heard { beat, revision, at });
        if same { News::Renewal } else { News::Change }
    }

    /// The node answered a ping.
    pub fn pong(&mut self, node: NodeNo, now: Now) {
        self.pings.answer(node, now);
    }

    /// Since a renewal of the node was last heard; None: never.
    pub fn silent_ms(&self, now: Now, node: NodeNo) -> Option<u64> {
        self.heard.get(&node).map(|heard| now.shortest_since(heard.at))
    }

    /// Nodes whose next renewal is overdue: it was not written, or it was and the watch lost it.
    pub fn late(&self, now: Now) -> impl Iterator<Item = NodeNo> {
        let late = move |node: &NodeNo, heard: &Heard| now.shortest_since(heard.at) >= self.timers_of(*node).late_ms();
        self.heard.iter().filter(move |(node, heard)| late(node, heard)).map(|(node, _)| *node)
    }

    /// A write of this candidate's own, sent then, was answered: silence of nodes counts only while that is so.
    pub fn canary(&mut self, sent: Now, now: Now) {
        self.canary_ok = Some(sent);
        self.steady_since = self.steady_since.or(Some(now));
    }

    /// Every candidate keeps in mind whether the store answers it, and since when it knows of an epoch.
    pub fn tick(&mut self, now: Now, epochs: impl Iterator<Item = (NodeNo, Epoch)>) {
        let late_ms = self.timers.canary_late_ms();
        if self.canary_ok.is_none_or(|at| now.longest_since(at) > late_ms) {
            self.steady_since = None;
        }
        for (node, epoch) in epochs {
            if self.joined.get(&node).is_none_or(|(known, _)| *known != epoch) {
                self.joined.insert(node, (epoch, now));
            }
        }
    }

    /// Does the store answer this candidate? Nothing is decided while it does not.
    pub fn is_steady(&self) -> bool {
        self.steady_since.is_some()
    }

    /// All nodes as they are now; the leader's first half of a look.
    pub fn look(&mut self, now: Now, ledger: &impl Ledger, out: &mut Vec<Step>) -> Vec<NodeNow> {
        let nodes: Vec<NodeNow> = numbers(ledger).map(|node| self.look_at(now, ledger, node)).collect();
        // One that has booted anew and waits is not silent: its network is well.
        let lives = |n: &&NodeNow| n.waiting || matches!(n.state, NodeState::Online | NodeState::Suspect | NodeState::Sealed);
        let live = nodes.iter().filter(lives).count();
        let silent = nodes.iter().filter(|n| matches!(n.state, NodeState::Suspect | NodeState::Sealed) && !n.waiting).count();
        let brake = if self.weak == Some(Weakness::NoBrake) { Brake::Off } else { Brake::of(silent, live) };
        if brake != self.brake {
            out.extend(brake.words(silent, live).map(Step::Say));
        }
        self.brake = brake;
        nodes
    }

    fn look_at(&self, now: Now, ledger: &impl Ledger, node: NodeNo) -> NodeNow {
        let heard = self.heard.get(&node);
        let mut is = NodeNow {
            state: NodeState::Away,
            epoch: Epoch(0),
            epoch_revision: Revision(0),
            silent_ms: heard.map_or(0, |heard| now.shortest_since(heard.at)),
            hypervisor: heard.map_or(Health::Good, |heard| heard.beat.hypervisor),
            storage: heard.map_or(Health::Good, |heard| heard.beat.storage),
            maintenance: ledger.in_maintenance(node),
            leaving: ledger.leaving(node),
            armed: false,
            ready: Ready::ArmsFirst,
            waiting: ledger.is_waiting(node),
        };
        let Some((record, revision)) = ledger.epoch(node) else { return is };
        (is.epoch, is.epoch_revision, is.armed) = (record.epoch, revision, ledger.armed(node, record.epoch).is_some());
        is.ready = ready::of_epoch(ledger, Seat { node, epoch: record.epoch }, self.weak);
        is.state = if record.closed {
            NodeState::Away
        } else if ledger.is_confirmed(node, record.epoch) {
            NodeState::Dead
        } else if ledger.fence(node, record.epoch).is_some() {
            NodeState::Sealed
        } else if heard.is_none_or(|heard| heard.beat.epoch != record.epoch) || is.silent_ms >= self.timers_of(node).suspect_ms {
            NodeState::Suspect
        } else {
            NodeState::Online
        };
        is
    }

    /// Has the node been silent for long enough, while the store answered us?
    fn silent_enough(&self, now: Now, ledger: &impl Ledger, node: NodeNo) -> bool {
        let Some(steady) = self.steady_since else { return false };
        let Timers { suspect_ms, seal_ms, renew_ms, .. } = self.timers_of(node);
        if ledger.is_waiting(node) && self.heard.get(&node).is_none_or(|heard| now.shortest_since(heard.at) >= suspect_ms) {
            return true;
        }
        let steady_ms = now.shortest_since(steady);
        let epoch = ledger.epoch(node).map(|(record, _)| record.epoch);
        let known_ms = self.joined.get(&node).filter(|(of, _)| Some(*of) == epoch).map_or(0, |(_, at)| now.shortest_since(*at));
        if known_ms < seal_ms {
            return false;
        }
        match self.heard.get(&node) {
            Some(heard) if heard.at >= steady => now.shortest_since(heard.at) >= seal_ms,
            // After an outage everybody gets two more renewals: who lives is heard with the first attempt that begins after its end.
            Some(heard) => {
                let grace_ms = if self.weak == Some(Weakness::NoGrace) { 0 } else { 2 * renew_ms };
                now.shortest_since(heard.at) >= seal_ms && steady_ms >= grace_ms
            }
            None => steady_ms >= seal_ms + 2 * renew_ms,
        }
    }

    /// Seals and proves; the leader's second half of a look. `busy`: a write about the node is under way.
    pub fn fence(&mut self, now: Now, ledger: &impl Ledger, nodes: &[NodeNow], busy: impl Fn(NodeNo) -> bool, out: &mut Vec<Step>) {
        for (node, is) in numbers(ledger).zip(nodes) {
            if self.brake != Brake::Off && matches!(is.state, NodeState::Suspect | NodeState::Sealed) {
                self.pings.ask(node, now);
                out.push(Step::Ping(node));
            } else {
                self.pings.spare(node);
            }
            if busy(node) {
                continue;
            }
            match is.state {
                NodeState::Suspect => self.seal(now, ledger, node, is, out),
                NodeState::Sealed => self.prove(now, ledger, node, is, out),
                NodeState::Away | NodeState::Online | NodeState::Dead => {}
            }
        }
    }

    fn seal(&mut self, now: Now, ledger: &impl Ledger, node: NodeNo, is: &NodeNow, out: &mut Vec<Step>) {
        let spared = match self.brake {
            Brake::Off => false,
            Brake::On => self.pings.may_answer(now, node),
            Brake::Frozen => true,
        };
        if spared && !is.waiting || !self.silent_enough(now, ledger, node) || ledger.is_disarmed() {
            return;
        }
        match ledger.stake(Seat { node, epoch: is.epoch }) {
            Stake::Others if !is.armed => return,
            Stake::Vms if !is.armed && !ledger.can_cut(node) => {
                // No proof would ever come; when it is back it arms itself.
                if self.told.insert(node, is.epoch) != Some(is.epoch) {
                    let name = ledger.name(node);
                    out.push(Step::Say(format!(
                        "{name} is silent, owns VMs and its watchdog is not armed: only a person can say that it is dead"
                    )));
                }
                return;
            }
            Stake::Vms | Stake::Nothing | Stake::Others => {}
        }
        let beat = self.heard.get(&node).map_or(Revision(0), |heard| heard.revision);
        let (fence, last) = (Key::Fence(node, is.epoch), Key::Beat(node));
        let mut txn = Txn::new(TxnId(0)).when(Compare::Absent(fence)).when(Compare::Absent(Key::Disarm));
        txn = txn.when(Compare::Revision(Key::Epoch(node), is.epoch_revision));
        if is.waiting {
            txn = txn.when(Compare::Present(Key::Waiting(node)));
        }
        if self.weak != Some(Weakness::SealWithoutRevision) {
            txn = txn.when(if beat == Revision(0) { Compare::Absent(last) } else { Compare::Revision(last, beat) });
        }
        let txn = txn.put(fence, Value::Fence(Fence { beat, by: self.me })).else_get(&[last, fence]);
        out.push(Step::Say(format!("{} seals {}: silent for {} s", ledger.name(self.me), ledger.name(node), is.silent_ms / 1000)));
        out.push(Step::Write { node, txn });
    }
}

fn numbers<L: Ledger>(ledger: &L) -> impl Iterator<Item = NodeNo> + use<L> {
    (0..ledger.nodes()).filter_map(|n| u16::try_from(n).ok()).map(NodeNo)
}
