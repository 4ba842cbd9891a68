//! Nodes as the leader sees them: silence, seals, proofs of death, and the brake.

use std::collections::BTreeMap;

use vmkeep_types::ids::{Epoch, Revision};

use super::super::clock::Now;
use super::super::record::{Armed, Compare, Farewell, Fence, Health, Key, NodeNo, Proof, Seat, Txn, Value, WatchdogKind};
use super::super::weakness::Weakness;
use super::{Action, Candidate, PowerIs, Subject};

/// More silent nodes than this at once are rather a network than so many dead hosts.
const BRAKE_NODES: usize = 5;

/// The same as a share of all nodes, 1/100.
const BRAKE_PERCENT: usize = 10;

/// Between two attempts to cut a node's power, ms.
const STONITH_AGAIN_MS: u64 = 10_000;

/// A node that answered a ping so long ago may still live, ms.
const PONG_MS: u64 = 5_000;

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

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Memory {
    stonith: BTreeMap<NodeNo, (Epoch, Now, Cut)>,
    pongs: BTreeMap<NodeNo, Now>,
    /// The words about the brake that were said last.
    brake: Brake,
    /// When the epoch that a node lives in was first seen: a new one has time for its first renewal.
    joined: BTreeMap<NodeNo, (Epoch, Now)>,
    /// Nodes whose waiting for a proof was told.
    told: BTreeMap<NodeNo, Epoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cut {
    UnderWay,
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Brake {
    #[default]
    Off,
    /// Nodes that answer pings are left alone.
    On,
    /// More than half are silent: nothing is sealed.
    Frozen,
}

impl Memory {
    pub(super) fn pong(&mut self, node: NodeNo, now: Now) {
        self.pongs.insert(node, now);
    }
}

impl Candidate {
    /// Every candidate keeps in mind since when it knows of an epoch.
    pub(super) fn note_epochs(&mut self, now: Now) {
        let count = self.view.settings().map_or(0, |settings| settings.sizes.len());
        for node in (0..count).filter_map(|n| u16::try_from(n).ok()).map(NodeNo) {
            let epoch = self.view.epoch(node).map_or(Epoch(0), |(record, _)| record.epoch);
            if self.nodes.joined.get(&node).is_none_or(|(known, _)| *known != epoch) {
                self.nodes.joined.insert(node, (epoch, now));
            }
        }
    }

    pub(super) fn look_at_nodes(&mut self, now: Now, out: &mut Vec<Action>) -> Vec<NodeNow> {
        let count = self.view.settings().map_or(0, |settings| settings.sizes.len());
        let nodes: Vec<NodeNow> = (0..count).filter_map(|n| u16::try_from(n).ok()).map(|n| self.look_at(now, NodeNo(n))).collect();
        let live = nodes.iter().filter(|n| matches!(n.state, NodeState::Online | NodeState::Suspect | NodeState::Sealed)).count();
        // One that has booted anew and waits is not silent: its network is well.
        let silent = nodes.iter().filter(|n| matches!(n.state, NodeState::Suspect | NodeState::Sealed) && !n.waiting).count();
        let brake = if silent * 2 > live {
            Brake::Frozen
        } else if silent > BRAKE_NODES.max(live * BRAKE_PERCENT / 100) {
            Brake::On
        } else {
            Brake::Off
        };
        if brake != self.nodes.brake {
            match brake {
                Brake::Off => {}
                Brake::On => self.say(out, format!("{silent} of {live} nodes are silent at once: those that answer pings are not fenced")),
                Brake::Frozen => self.say(out, format!("{silent} of {live} nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`")),
            }
        }
        self.nodes.brake = brake;
        nodes
    }

    fn look_at(&self, now: Now, node: NodeNo) -> NodeNow {
        let heard = self.heard.get(&node);
        let mut is = NodeNow {
            state: NodeState::Away,
            epoch: Epoch(0),
            epoch_revision: Revision(0),
            silent_ms: heard.map_or(0, |heard| now.shortest_since(heard.at)),
            hypervisor: heard.map_or(Health::Good, |heard| heard.beat.hypervisor),
            storage: heard.map_or(Health::Good, |heard| heard.beat.storage),
            maintenance: self.view.has(Key::Policy(node)),
            leaving: self.view.leaving(node).map(|(farewell, _)| *farewell),
            armed: false,
            waiting: self.view.has(Key::Waiting(node)),
        };
        let Some((record, revision)) = self.view.epoch(node) else { return is };
        (is.epoch, is.epoch_revision, is.armed) = (record.epoch, revision, self.view.has(Key::Armed(node, record.epoch)));
        is.state = if record.closed {
            NodeState::Away
        } else if self.view.has(Key::Confirmed(node, record.epoch)) {
            NodeState::Dead
        } else if self.view.has(Key::Fence(node, record.epoch)) {
            NodeState::Sealed
        } else if heard.is_none_or(|heard| heard.beat.epoch != record.epoch) || is.silent_ms >= self.timers.suspect_ms {
            NodeState::Suspect
        } else {
            NodeState::Online
        };
        is
    }

    /// Has the node been silent for long enough, while the store answered us?
    fn silent_enough(&self, now: Now, node: NodeNo) -> bool {
        let Some(steady) = self.steady_since else { return false };
        if self.view.has(Key::Waiting(node))
            && self.heard.get(&node).is_none_or(|heard| now.shortest_since(heard.at) >= self.timers.suspect_ms)
        {
            return true;
        }
        let steady_ms = now.shortest_since(steady);
        let epoch = self.view.epoch(node).map(|(record, _)| record.epoch);
        let known_ms = self.nodes.joined.get(&node).filter(|(of, _)| Some(*of) == epoch).map_or(0, |(_, at)| now.shortest_since(*at));
        if known_ms < self.timers.seal_ms {
            return false;
        }
        match self.heard.get(&node) {
            Some(heard) if heard.at >= steady => now.shortest_since(heard.at) >= self.timers.seal_ms,
            // After an outage everybody gets two more renewals.
            Some(_) | None => steady_ms >= self.timers.seal_ms + 2 * self.timers.renew_ms,
        }
    }

    fn answers_pings(&self, now: Now, node: NodeNo) -> bool {
        self.nodes.pongs.get(&node).is_some_and(|at| now.longest_since(*at) <= PONG_MS)
    }

    pub(super) fn fence(&mut self, now: Now, nodes: &[NodeNow], out: &mut Vec<Action>) {
        for (n, is) in nodes.iter().enumerate() {
            let node = NodeNo(u16::try_from(n).expect("nodes are numbered so"));
            if self.nodes.brake != Brake::Off && matches!(is.state, NodeState::Suspect | NodeState::Sealed) {
                out.push(Action::Ping(node));
            }
            if self.busy.contains(&Subject::Node(node)) {
                continue;
            }
            match is.state {
                NodeState::Suspect => self.seal(now, node, is, out),
                NodeState::Sealed => self.prove(now, node, is, out),
                NodeState::Away | NodeState::Online | NodeState::Dead => {}
            }
        }
    }

    fn seal(&mut self, now: Now, node: NodeNo, is: &NodeNow, out: &mut Vec<Action>) {
        let spared = match self.nodes.brake {
            Brake::Off => false,
            Brake::On => self.answers_pings(now, node),
            Brake::Frozen => true,
        };
        if spared && !is.waiting || !self.silent_enough(now, node) || self.view.disarm().is_some() {
            return;
        }
        let owns = self.owns_now(Seat { node, epoch: is.epoch });
        if owns && !is.armed && !self.has_stonith(node) {
            // No proof would ever come; when it is back it arms itself.
            if self.nodes.told.insert(node, is.epoch) != Some(is.epoch) {
                let name = self.roster.node(node);
                self.say(out, format!("{name} is silent, owns VMs and its watchdog is not armed: only a person can say that it is dead"));
            }
            return;
        }
        let heard = self.heard.get(&node);
        let beat = heard.map_or(Revision(0), |heard| heard.revision);
        let mut txn = self.as_leader().when(Compare::Absent(Key::Fence(node, is.epoch))).when(Compare::Absent(Key::Disarm));
        txn = txn.when(Compare::Revision(Key::Epoch(node), is.epoch_revision));
        if is.waiting {
            txn = txn.when(Compare::Present(Key::Waiting(node)));
        }
        if self.weak != Some(Weakness::SealWithoutRevision) {
            txn = txn.when(if beat == Revision(0) { Compare::Absent(Key::Beat(node)) } else { Compare::Revision(Key::Beat(node), beat) });
        }
        let fence = Fence { beat, by: self.me };
        txn = txn.put(Key::Fence(node, is.epoch), Value::Fence(fence)).else_get(&[Key::Beat(node), Key::Fence(node, is.epoch)]);
        self.say(out, format!("{} seals {}: silent for {} s", self.roster.node(self.me), self.roster.node(node), is.silent_ms / 1000));
        self.send(now, Subject::Node(node), txn, out);
    }

    fn owns_vms(&self, node: NodeNo) -> bool {
        self.view.vms().any(|(vm, _)| self.view.has(Key::Own(node, vm)))
    }

    /// Of this epoch; what is left of one before is cleared by the recovery.
    fn owns_now(&self, seat: Seat) -> bool {
        let holds = |vm| self.view.owner(vm).is_some_and(|(owner, _)| owner.seat == Some(seat) || owner.to == Some(seat));
        self.view.vms().any(|(vm, _)| holds(vm))
    }

    fn has_stonith(&self, node: NodeNo) -> bool {
        self.view.settings().is_some_and(|settings| settings.stonith.contains(&node))
    }

    fn prove(&mut self, now: Now, node: NodeNo, is: &NodeNow, out: &mut Vec<Action>) {
        let Some((fence, fence_revision)) = self.view.fence(node, is.epoch).map(|(fence, revision)| (*fence, revision)) else { return };
        let armed = self.view.armed(node, is.epoch).map(|(armed, revision)| (*armed, revision));
        // A host that has booted anew needs no cutting where waiting proves as much.
        if !is.waiting || armed.is_none_or(|(armed, _)| armed.safe_ms().is_none()) {
            self.cut_power(now, node, is.epoch, out);
        }
        let Some((armed, armed_revision)) = armed else {
            return self.prove_unarmed(now, node, is.epoch, out);
        };
        let safe_ms = match self.weak {
            Some(Weakness::OneWatchdog) => armed.unsafe_ms(),
            Some(Weakness::SoftwareWatchdog) => Armed { kind: WatchdogKind::Hardware, ..armed }.safe_ms(),
            _ => armed.safe_ms(),
        };
        let Some(safe_ms) = safe_ms else {
            if self.nodes.told.insert(node, is.epoch) != Some(is.epoch) && !self.has_stonith(node) {
                let name = self.roster.node(node);
                self.say(out, format!("{name} has a software watchdog, which proves nothing while the whole host stands still: only STONITH or a person can say that it is dead"));
            }
            return;
        };
        // Only the renewal that the seal named counts; who has not seen it waits from now on.
        let waited = match self.heard.get(&node) {
            Some(heard) if heard.revision == fence.beat => now.shortest_since(heard.at),
            _ if self.weak == Some(Weakness::SealWithoutRevision) => self.heard.get(&node).map_or(0, |heard| now.shortest_since(heard.at)),
            _ => 0,
        };
        if waited >= safe_ms {
            let txn = self.as_leader().when(Compare::Revision(Key::Fence(node, is.epoch), fence_revision));
            let txn = txn.when(Compare::Revision(Key::Armed(node, is.epoch), armed_revision));
            self.confirm(now, node, is.epoch, txn, Proof::Watchdog, out);
        }
    }

    /// It can have started nothing: it is not armed and owns nothing, in one moment, and can never arm again.
    fn prove_unarmed(&mut self, now: Now, node: NodeNo, epoch: Epoch, out: &mut Vec<Action>) {
        if self.weak != Some(Weakness::UnarmedIsDead) && self.owns_vms(node) {
            return;
        }
        let mut txn = self.as_leader().when(Compare::Present(Key::Fence(node, epoch))).when(Compare::Absent(Key::Armed(node, epoch)));
        if self.weak != Some(Weakness::UnarmedIsDead) {
            txn = txn.when(Compare::OwnsNothing(node));
        }
        self.confirm(now, node, epoch, txn, Proof::Unarmed, out);
    }

    fn confirm(&mut self, now: Now, node: NodeNo, epoch: Epoch, txn: Txn, proof: Proof, out: &mut Vec<Action>) {
        let key = Key::Confirmed(node, epoch);
        let txn = txn.when(Compare::Absent(key)).put(key, Value::Confirmed(proof));
        self.send(now, Subject::Node(node), txn, out);
    }

    fn cut_power(&mut self, now: Now, node: NodeNo, epoch: Epoch, out: &mut Vec<Action>) {
        let spared = match self.nodes.brake {
            Brake::Off => false,
            Brake::On | Brake::Frozen => self.answers_pings(now, node),
        };
        let again = match self.nodes.stonith.get(&node) {
            Some((of, _, Cut::UnderWay)) => *of != epoch,
            Some((of, at, Cut::Failed)) => *of != epoch || now.longest_since(*at) >= STONITH_AGAIN_MS,
            None => true,
        };
        if self.has_stonith(node) && again && !spared {
            self.nodes.stonith.insert(node, (epoch, now, Cut::UnderWay));
            self.say(out, format!("{} has the power of {} cut", self.roster.node(self.me), self.roster.node(node)));
            out.push(Action::Stonith { node, epoch });
        }
    }

    pub(super) fn stonith_done(&mut self, now: Now, node: NodeNo, epoch: Epoch, power: PowerIs, out: &mut Vec<Action>) {
        self.nodes.stonith.insert(node, (epoch, now, Cut::Failed));
        match power {
            PowerIs::Off if self.is_leader() => {
                let txn = self.as_leader().when(Compare::Present(Key::Fence(node, epoch)));
                self.confirm(now, node, epoch, txn, Proof::Stonith, out);
            }
            PowerIs::Off => {}
            PowerIs::Unknown => self.say(out, format!("the power of {} could not be cut", self.roster.node(node))),
        }
    }
}
