//! One of the three to five that may lead: watches renewals, seals, proves, places.
//!
//! ```text
//!  Beat(N) ──► heard o(r) ── silent ──► seal ──► proof: STONITH │ T_safe │ not armed │ operator ──► confirmed
//!                                                                                                     │
//!  Wish, Owner, Seen, Stopped ──► plan of each VM: order │ move │ leave │ recovery queue ──► place ◄──┘
//! ```
//! Every candidate hears; only the one whose name stands in `Leader` writes, and each of its writes compares that key's
//! revision. What it believes may be old: every transaction compares what it was decided from, so that an error costs a try.

mod known;
pub mod place;
mod recover;
mod scene;
pub mod view;
mod vms;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vmkeep_types::ids::{Epoch, Revision};
use vmkeep_types::name::Name;

use super::clock::Now;
use super::record::{Answer, Beat, Compare, Entry, Key, NodeNo, Outcome, Seat, Txn, TxnId, Value, VmNo};
use super::timers::{ANSWER_MS, Timers};
use super::vigil::{News, PowerIs, Step, Vigil, WritesAre};
use super::weakness::Weakness;
use known::Known;
use view::View;

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
    /// The storage has come back.
    Writes {
        node: NodeNo,
        epoch: Epoch,
        are: WritesAre,
    },
    /// The node answered a ping.
    Pong(NodeNo),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseIs {
    Kept,
    Gone,
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
    RefuseWrites {
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
    vigil: Vigil,
    lead: Lead,
    lease_ok: Option<Now>,
    lease_asked: Option<Now>,
    led_since: Now,
    canary_asked: Option<Now>,
    pending: BTreeMap<TxnId, (Txn, Subject, Now)>,
    busy: BTreeSet<Subject>,
    next: u64,
    listing: Option<(u64, Now)>,
    listed: Option<Now>,
    stale: bool,
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
            vigil: Vigil::new(me, timers, weak),
            lead: Lead::No,
            lease_ok: None,
            lease_asked: None,
            led_since: Now::default(),
            canary_asked: None,
            pending: BTreeMap::new(),
            busy: BTreeSet::new(),
            next: salt,
            listing: None,
            listed: None,
            stale: true,
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
            Event::Writes { node, epoch, are } => self.refusal_done(now, Seat { node, epoch }, are, &mut out),
            Event::Pong(node) => self.vigil.pong(node, now),
        }
        if self.is_leader() && (look || self.vms.dirty) {
            self.lead(now, &mut out);
        }
        out
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.lead, Lead::Yes(_))
    }

    /// Since it last heard of the node; None: never.
    pub fn silent_ms(&self, now: Now, node: NodeNo) -> Option<u64> {
        self.vigil.silent_ms(now, node)
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
        let nodes = (0..self.view.settings().map_or(0, |settings| settings.sizes.len())).filter_map(|n| u16::try_from(n).ok()).map(NodeNo);
        let epochs = nodes.map(|node| (node, self.view.epoch(node).map_or(Epoch(0), |(record, _)| record.epoch)));
        self.vigil.tick(now, epochs);
        self.read(now, out);
        self.sing(now, out);
        self.keep_lease(now, out);
    }

    fn read(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.listing.is_some_and(|(_, at)| now.longest_since(at) > ANSWER_MS) {
            self.listing = None;
        }
        // Watch events get lost: before the leader takes a node for silent it reads what there is.
        let every = if self.is_leader() && self.misses_somebody(now) { self.timers.renew_ms } else { LIST_EVERY_MS };
        let due = self.listed.is_none_or(|at| now.longest_since(at) >= every);
        if self.listing.is_none() && (self.stale || due) {
            self.next += 1;
            self.listing = Some((self.next, now));
            out.push(Action::List(self.next));
        }
    }

    /// The renewal of a node that may renew is overdue.
    fn misses_somebody(&self, now: Now) -> bool {
        let may_renew = |node: NodeNo| {
            let epoch = self.view.epoch(node).filter(|(record, _)| !record.closed).map(|(record, _)| record.epoch);
            epoch.is_some_and(|epoch| self.view.fence(node, epoch).is_none() && !self.view.has(Key::Confirmed(node, epoch)))
        };
        self.vigil.late(now).any(may_renew)
    }

    /// The canary: silence of nodes counts only while the store answers us.
    fn sing(&mut self, now: Now, out: &mut Vec<Action>) {
        let every = self.timers.renew_ms;
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
                self.vigil.canary(sent, now);
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
        if done {
            self.vms.dirty = true;
            self.view.apply(&txn.then, answer.revision);
        } else if let Outcome::Refused(found) = answer.outcome {
            // Decided anew from what was refuted it would be refused again, as often as the store can say so: it reads first.
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

    fn hear(&mut self, node: NodeNo, beat: Beat, revision: Revision, now: Now) {
        self.vms.dirty |= self.vigil.hear(node, beat, revision, now) == News::Change;
    }

    /// What the vigil wants, as the leader.
    fn carry_out(&mut self, now: Now, steps: Vec<Step>, out: &mut Vec<Action>) {
        for step in steps {
            match step {
                Step::Say(words) => self.say(out, words),
                Step::Ping(node) => out.push(Action::Ping(node)),
                Step::CutPower { node, epoch } => out.push(Action::Stonith { node, epoch }),
                Step::RefuseWrites { node, epoch } => out.push(Action::RefuseWrites { node, epoch }),
                Step::Write { node, txn } => {
                    let own = self.as_leader();
                    let compare = own.compare.into_iter().chain(txn.compare).collect();
                    self.send(now, Subject::Node(node), Txn { id: own.id, compare, ..txn }, out);
                }
            }
        }
    }

    fn stonith_done(&mut self, now: Now, node: NodeNo, epoch: Epoch, power: PowerIs, out: &mut Vec<Action>) {
        let mut steps = Vec::new();
        self.vigil.power_cut(now, &Known { view: &self.view, roster: &self.roster }, node, epoch, power, &mut steps);
        self.note(now, steps, out);
    }

    fn refusal_done(&mut self, now: Now, seat: Seat, are: WritesAre, out: &mut Vec<Action>) {
        let mut steps = Vec::new();
        self.vigil.writes_refused(now, &Known { view: &self.view, roster: &self.roster }, seat, are, &mut steps);
        self.note(now, steps, out);
    }

    /// What came of an attempt; who leads no more only remembers it.
    fn note(&mut self, now: Now, mut steps: Vec<Step>, out: &mut Vec<Action>) {
        steps.retain(|step| self.is_leader() || !matches!(step, Step::Write { .. }));
        self.carry_out(now, steps, out);
    }

    /// One look of the leader: nodes first, then VMs.
    fn lead(&mut self, now: Now, out: &mut Vec<Action>) {
        if !self.vigil.is_steady() || self.listed.is_none_or(|at| at < self.led_since) {
            return;
        }
        let (known, mut steps) = (Known { view: &self.view, roster: &self.roster }, Vec::new());
        let nodes = self.vigil.look(now, &known, &mut steps);
        self.vigil.fence(now, &known, &nodes, |node| self.busy.contains(&Subject::Node(node)), &mut steps);
        self.carry_out(now, steps, out);
        if self.vms.needs_look(&nodes) {
            self.look_at_vms(now, nodes, out);
        }
    }
}

fn record_memory(txn: Txn, vm: VmNo, memory: super::record::Memory) -> Txn {
    txn.put(Key::Memory(vm), Value::Memory(memory))
}
