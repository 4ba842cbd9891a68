//! One of the three to five that may lead: watches renewals, seals, proves, places.
//!
//! ```text
//!  Beat(N) ──► heard o(r) ── silent ──► seal ──► proof: STONITH │ T_safe │ not armed │ operator ──► confirmed
//!                                                                                                     │
//!  Wish, Owner, Seen, Stopped ──► plan of each VM: order │ move │ leave │ recovery queue ──► place ◄──┘
//! ```
//! Every candidate hears; only the one whose name stands in `Leader` writes, and each of its writes compares that key's
//! revision. What it believes may be old: every transaction compares what it was decided from, so that an error costs a try.

mod nodes;
pub mod place;
mod recover;
pub mod view;
mod vms;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vmkeep_types::ids::{Epoch, Revision};
use vmkeep_types::name::Name;

use super::clock::Now;
use super::record::{Answer, Beat, Compare, Entry, Key, NodeNo, Outcome, Txn, TxnId, Value, VmNo};
use super::timers::Timers;
use super::weakness::Weakness;
pub use nodes::{NodeNow, NodeState};
pub use recover::{STARTS_MAX, STARTS_PER_NODE, TIER_MS};
use view::View;

/// A transaction that was not answered in this time has an unknown outcome, ms.
const ANSWER_MS: u64 = 2_500;

/// Everything is read this often although watch events came: one may have been lost, ms.
const LIST_EVERY_MS: u64 = 10_000;

/// A leader that could not read for so long lets another one lead, ms.
const BLIND_MS: u64 = 20_000;

/// Names of nodes and VMs by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Roster {
    pub nodes: Vec<Name>,
    pub vms: BTreeMap<VmNo, Name>,
}

impl Roster {
    pub fn node(&self, node: NodeNo) -> &str {
        self.nodes.get(usize::from(node.0)).map_or("?", Name::as_str)
    }

    pub fn vm(&self, vm: VmNo) -> &str {
        self.vms.get(&vm).map_or("?", Name::as_str)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    Tick,
    Answer(Answer),
    Listed {
        id: u64,
        found: Option<(Revision, Vec<Entry>)>,
    },
    /// None: deleted.
    Watched {
        key: Key,
        value: Option<Value>,
        revision: Revision,
    },
    /// The store's word on the lease; it may come from a server that knows no better.
    Lease(LeaseIs),
    /// The fence agent has come back.
    Stonith {
        node: NodeNo,
        epoch: Epoch,
        power: PowerIs,
    },
    /// The node answered a ping.
    Pong(NodeNo),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseIs {
    Kept,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerIs {
    Off,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Txn(Txn),
    /// Read everything.
    List(u64),
    /// The key `Leader` lives as long as this is repeated.
    KeepAlive,
    Stonith {
        node: NodeNo,
        epoch: Epoch,
    },
    Ping(NodeNo),
    /// What is done and why, for people.
    Say(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lead {
    No,
    Asked,
    Yes(Revision),
}

/// When a candidate first saw a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Heard {
    beat: Beat,
    revision: Revision,
    at: Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Subject {
    Lead,
    Canary,
    Node(NodeNo),
    Arm(NodeNo),
    Vm(VmNo),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    me: NodeNo,
    timers: Timers,
    weak: Option<Weakness>,
    roster: Arc<Roster>,
    view: View,
    heard: BTreeMap<NodeNo, Heard>,
    lead: Lead,
    lease_ok: Option<Now>,
    lease_asked: Option<Now>,
    led_since: Now,
    canary_ok: Option<Now>,
    canary_asked: Option<Now>,
    /// The store has answered without a break since; None: it does not answer.
    steady_since: Option<Now>,
    pending: BTreeMap<TxnId, (Txn, Subject, Now)>,
    busy: BTreeSet<Subject>,
    next: u64,
    listing: Option<(u64, Now)>,
    listed: Option<Now>,
    stale: bool,
    nodes: nodes::Memory,
    vms: vms::Memory,
}

impl Candidate {
    /// A fresh process; `salt` makes its numbers differ from those of the one before.
    pub fn new(me: NodeNo, salt: u64, timers: Timers, roster: Arc<Roster>, weak: Option<Weakness>) -> Self {
        Self {
            me,
            timers,
            weak,
            roster,
            view: View::default(),
            heard: BTreeMap::new(),
            lead: Lead::No,
            lease_ok: None,
            lease_asked: None,
            led_since: Now::default(),
            canary_ok: None,
            canary_asked: None,
            steady_since: None,
            pending: BTreeMap::new(),
            busy: BTreeSet::new(),
            next: salt,
            listing: None,
            listed: None,
            stale: true,
            nodes: nodes::Memory::default(),
            vms: vms::Memory::default(),
        }
    }

    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        let look = event == Event::Tick;
        match event {
            Event::Tick => self.tick(now, &mut out),
            Event::Answer(answer) => self.answered(now, answer, &mut out),
            Event::Listed { id, found } => self.listed(now, id, found),
            Event::Watched { key, value, revision } => self.watched(now, key, value, revision),
            Event::Lease(is) => self.lease(now, is),
            Event::Stonith { node, epoch, power } => self.stonith_done(now, node, epoch, power, &mut out),
            Event::Pong(node) => self.nodes.pong(node, now),
        }
        if self.is_leader() && (look || self.vms.dirty) {
            self.lead(now, &mut out);
        }
        out
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.lead, Lead::Yes(_))
    }

    /// What keeps each VM from where it should be, in words.
    pub fn reasons(&self) -> &BTreeMap<VmNo, String> {
        &self.vms.why
    }

    fn say(&self, out: &mut Vec<Action>, words: String) {
        out.push(Action::Say(words));
    }

    fn id(&mut self) -> TxnId {
        self.next += 1;
        TxnId(self.next)
    }

    fn send(&mut self, now: Now, subject: Subject, txn: Txn, out: &mut Vec<Action>) {
        self.busy.insert(subject);
        self.pending.insert(txn.id, (txn.clone(), subject, now));
        out.push(Action::Txn(txn));
    }

    /// A transaction of the leader's: nothing without the key that says so, nothing while people have switched it all off.
    fn as_leader(&mut self) -> Txn {
        let id = self.id();
        let txn = Txn::new(id);
        match self.lead {
            Lead::Yes(revision) if self.weak != Some(Weakness::DeposedLeader) => txn.when(Compare::Revision(Key::Leader, revision)),
            _ => txn,
        }
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let late: Vec<TxnId> =
            self.pending.iter().filter(|(_, (.., sent))| now.longest_since(*sent) > ANSWER_MS).map(|(id, _)| *id).collect();
        for id in late {
            if let Some((_, subject, _)) = self.pending.remove(&id) {
                self.busy.remove(&subject);
                self.stale = true;
                self.lead = if subject == Subject::Lead { Lead::No } else { self.lead };
            }
        }
        self.note_epochs(now);
        self.read(now, out);
        self.sing(now, out);
        self.keep_lease(now, out);
    }

    fn read(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.listing.is_some_and(|(_, at)| now.longest_since(at) > ANSWER_MS) {
            self.listing = None;
        }
        let due = self.listed.is_none_or(|at| now.longest_since(at) >= LIST_EVERY_MS);
        if self.listing.is_none() && (self.stale || due) {
            self.next += 1;
            self.listing = Some((self.next, now));
            out.push(Action::List(self.next));
        }
    }

    /// The canary: silence of nodes counts only while the store answers us.
    fn sing(&mut self, now: Now, out: &mut Vec<Action>) {
        let every = self.timers.renew_ms;
        if self.canary_ok.is_none_or(|at| now.longest_since(at) > 2 * every + ANSWER_MS) {
            self.steady_since = None;
        }
        if self.canary_asked.is_none_or(|at| now.longest_since(at) >= every) && !self.busy.contains(&Subject::Canary) {
            self.canary_asked = Some(now);
            let id = self.id();
            let txn = Txn::new(id).when(Compare::Present(Key::Leader)).put(Key::Canary(self.me), Value::Mark);
            self.send(now, Subject::Canary, txn, out);
        }
    }

    fn keep_lease(&mut self, now: Now, out: &mut Vec<Action>) {
        let due = self.lease_asked.is_none_or(|at| now.longest_since(at) >= self.timers.lease_ms / 3);
        if self.lead != Lead::No && due {
            self.lease_asked = Some(now);
            out.push(Action::KeepAlive);
        }
        if self.weak == Some(Weakness::DeposedLeader) {
            return;
        }
        let expired = self.lease_ok.is_none_or(|at| now.longest_since(at) > self.timers.lease_ms);
        let blind = self.listed.is_none_or(|at| now.longest_since(at) > BLIND_MS);
        match self.lead {
            Lead::Yes(_) if expired => self.lead = Lead::No,
            Lead::Yes(_) if blind => {
                let txn = self.as_leader().delete(Key::Leader);
                self.lead = Lead::No;
                out.push(Action::Txn(txn));
            }
            Lead::No | Lead::Asked | Lead::Yes(_) => {}
        }
    }

    fn lease(&mut self, now: Now, is: LeaseIs) {
        match is {
            LeaseIs::Kept => self.lease_ok = self.lease_asked.or(Some(now)),
            LeaseIs::Gone if self.weak == Some(Weakness::DeposedLeader) => {}
            LeaseIs::Gone => self.lead = Lead::No,
        }
    }

    fn campaign(&mut self, now: Now, out: &mut Vec<Action>) {
        let sighted = self.listed.is_some_and(|at| now.longest_since(at) <= BLIND_MS);
        if self.lead != Lead::No || !sighted || self.busy.contains(&Subject::Lead) {
            return;
        }
        self.lead = Lead::Asked;
        (self.lease_asked, self.lease_ok) = (Some(now), Some(now));
        let id = self.id();
        let txn = Txn::new(id).when(Compare::Absent(Key::Leader)).put(Key::Leader, Value::Leader(self.me));
        self.send(now, Subject::Lead, txn, out);
    }

    fn answered(&mut self, now: Now, answer: Answer, out: &mut Vec<Action>) {
        let Some((txn, subject, sent)) = self.pending.remove(&answer.id) else { return };
        self.busy.remove(&subject);
        let done = answer.outcome == Outcome::Done;
        match subject {
            Subject::Canary => {
                self.canary_ok = Some(sent);
                self.steady_since = self.steady_since.or(Some(now));
                if !done {
                    self.campaign(now, out);
                }
                return;
            }
            Subject::Lead if done => {
                self.lead = Lead::Yes(answer.revision);
                (self.led_since, self.stale) = (now, true);
                self.vms.forget();
                self.say(out, format!("{} leads", self.roster.node(self.me)));
            }
            Subject::Lead => self.lead = Lead::No,
            Subject::Node(_) | Subject::Arm(_) | Subject::Vm(_) => {}
        }
        self.vms.dirty = true;
        if done {
            self.view.apply(&txn.then, answer.revision);
        } else if let Outcome::Refused(found) = answer.outcome {
            self.stale = true;
            found.into_iter().for_each(|entry| self.watched(now, entry.key, Some(entry.value), entry.revision));
        }
    }

    fn listed(&mut self, now: Now, id: u64, found: Option<(Revision, Vec<Entry>)>) {
        if self.listing.take_if(|(asked, _)| *asked == id).is_none() {
            return;
        }
        let Some((revision, entries)) = found else { return };
        // A server that lags behind what we know is no news.
        if revision < self.view.revision {
            return;
        }
        (self.listed, self.stale, self.vms.dirty) = (Some(now), false, true);
        for entry in &entries {
            if let (Key::Beat(node), Value::Beat(beat)) = (entry.key, &entry.value) {
                self.hear(node, *beat, entry.revision, now);
            }
        }
        self.view.replace(revision, entries);
    }

    fn watched(&mut self, now: Now, key: Key, value: Option<Value>, revision: Revision) {
        self.view.revision = self.view.revision.max(revision);
        match (key, &value) {
            (Key::Canary(_), _) => {}
            (Key::Beat(node), Some(Value::Beat(beat))) => self.hear(node, *beat, revision, now),
            _ => {
                self.vms.dirty = true;
                self.view.set(key, value, revision);
            }
        }
    }

    /// A renewal that is newer than all that were seen: it was committed before now.
    fn hear(&mut self, node: NodeNo, beat: Beat, revision: Revision, now: Now) {
        let before = self.heard.get(&node);
        if before.is_none_or(|heard| heard.revision < revision) {
            let first = before.is_none() && self.weak == Some(Weakness::FreshCandidate);
            let at = if first { Now::default() } else { now };
            self.vms.dirty |= before.is_none_or(|heard| heard.beat.hypervisor != beat.hypervisor || heard.beat.epoch != beat.epoch);
            self.heard.insert(node, Heard { beat, revision, at });
        }
    }

    /// One look of the leader: nodes first, then VMs.
    fn lead(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.steady_since.is_none() || self.listed.is_none_or(|at| at < self.led_since) {
            return;
        }
        let nodes = self.look_at_nodes(now, out);
        self.fence(now, &nodes, out);
        if self.vms.needs_look(&nodes) {
            self.look_at_vms(now, nodes, out);
        }
    }
}

fn record_memory(txn: Txn, vm: VmNo, memory: super::record::Memory) -> Txn {
    txn.put(Key::Memory(vm), Value::Memory(memory))
}
