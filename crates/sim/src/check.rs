//! The invariants, one function each, looked at whenever something changes that they are about.
//!
//! Checks know the truth (true time, every host, the store's one history) and nothing of what the state machines think.

use std::collections::BTreeMap;

use vmkeep_core::ha::agent::{Call, Domain};
use vmkeep_core::ha::candidate::view::View;
use vmkeep_core::ha::record::{
    Beat, EpochRecord, Fence, Key, NodeNo, Op, Owner, Phase, Proof, Rule, RunWish, Seat, Seen, Strictness, Txn, Value, VmNo, Want,
    WatchdogKind,
};
use vmkeep_core::ha::timers::DRIFT_PERMILLE;
use vmkeep_types::ids::{Epoch, Generation};

use crate::host::{Job, Stonith};
use crate::log::{At, Fenced, Recovery, Run};
use crate::store::Change;
use crate::world::{Client, World};

/// As the leader's: starts at once on one node (I9).
const STARTS_PER_NODE: usize = vmkeep_core::ha::turns::STARTS_PER_NODE;

/// A leader decides from what it knew so long ago: etcd may have elected meanwhile, ms.
const ELECTION_MS: u64 = 4_000;

/// So long after the last fault every life that it ended has been sealed, ms.
const SETTLED_MS: u64 = 150_000;

#[derive(Clone, Debug, Default)]
struct OfNode {
    /// True time at which the renewal under way was sent.
    sent: u64,
    /// The same of the last renewal that succeeded.
    valid: u64,
    /// Commit of the last renewal.
    beat: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Checks {
    nodes: Vec<OfNode>,
    /// Highest generation that ran, and where.
    generations: BTreeMap<VmNo, (Generation, NodeNo)>,
    running: BTreeMap<(VmNo, NodeNo), (u64, Generation)>,
    pub runs: Vec<Run>,
    fences: BTreeMap<(NodeNo, Epoch), usize>,
    pub fenced: Vec<Fenced>,
    lost: BTreeMap<VmNo, (NodeNo, u64)>,
    pub recoveries: Vec<Recovery>,
    /// VMs that came by a migration: no start of theirs is counted.
    handed: BTreeMap<VmNo, Generation>,
    /// Hosts whose power was reported off and is not: what happens then is the liar's.
    pub lied_about: Vec<NodeNo>,
    pub resets: u32,
}

impl Checks {
    pub fn new(nodes: usize) -> Self {
        Self { nodes: vec![OfNode::default(); nodes], ..Self::default() }
    }

    fn of(&mut self, n: NodeNo) -> &mut OfNode {
        &mut self.nodes[usize::from(n.0)]
    }

    pub fn note_sent(&mut self, n: NodeNo, txn: &Txn, now: u64) {
        if txn.then.iter().any(|op| matches!(op, Op::Put(Key::Beat(_), _))) {
            self.of(n).sent = now;
        }
    }

    pub fn last_generation(&self, vm: VmNo) -> Generation {
        self.generations.get(&vm).map_or(Generation(0), |(last, _)| *last)
    }

    pub fn sent_at(&self, n: NodeNo) -> u64 {
        self.nodes[usize::from(n.0)].sent
    }

    pub fn valid_since(&self, n: NodeNo) -> u64 {
        self.nodes[usize::from(n.0)].valid
    }

    /// Commit of the last renewal.
    pub fn renewed_at(&self, n: usize) -> u64 {
        self.nodes[n].beat
    }

    pub fn renewed(&mut self, n: NodeNo) {
        let of = self.of(n);
        of.valid = of.sent;
    }

    pub fn powered_off(&mut self, n: NodeNo) {
        self.lied_about.retain(|lied| *lied != n);
    }
}

/// ms as another clock may count them.
fn with_drift(ms: u64) -> u64 {
    ms * (1000 + DRIFT_PERMILLE) / 1000
}

impl World {
    fn violated(&mut self, invariant: &'static str, what: String) {
        self.log.violation(self.now, invariant, what);
    }

    /// I1, I2: a QEMU begins to write.
    pub fn starts_to_run(&mut self, vm: VmNo, n: NodeNo, generation: Generation) {
        let (now, name, on) = (self.now, self.roster.vm(vm).to_owned(), self.roster.node(n).to_owned());
        if !self.hosts[usize::from(n.0)].writes_count() {
            return self.log.tell(now, || format!("{name} runs on {on} (generation {generation}), and the storage takes nothing of it"));
        }
        self.log.tell(now, || format!("{name} runs on {on} (generation {generation})"));
        let other =
            self.hosts.iter().find(|host| host.node != n && host.powered && host.runs(vm) && host.writes_count()).map(|host| host.node);
        if let Some(other) = other {
            let lie = if [other, n].iter().any(|host| self.checks.lied_about.contains(host)) {
                "; a fence agent lied about its power"
            } else {
                ""
            };
            let other = self.roster.node(other);
            self.violated("I1", format!("{name} runs on {other} and on {on}{lie}"));
        }
        let before = self.checks.generations.insert(vm, (generation, n));
        if let Some((last, at)) = before
            && (generation < last || generation == last && at != n)
        {
            self.violated("I2", format!("{name} starts on {on} with generation {generation} after {last} on {}", self.roster.node(at)));
        }
        self.checks.running.insert((vm, n), (now, generation));
        if let Some((from, silent_at)) = self.checks.lost.remove(&vm) {
            let from = self.roster.node(from).to_owned();
            self.checks.recoveries.push(Recovery { vm: name, from, to: on, silent_at: At(silent_at), running_at: At(now) });
        }
    }

    pub fn ran_until_now(&mut self, vm: VmNo, n: NodeNo) {
        if let Some((from, generation)) = self.checks.running.remove(&(vm, n)) {
            let (vm, node) = (self.roster.vm(vm).to_owned(), self.roster.node(n).to_owned());
            self.checks.runs.push(Run { vm, node, from: At(from), to: At(self.now), generation: generation.0 });
        }
    }

    /// Those that still run, as though they ended now.
    pub fn close_runs(&mut self) {
        let open: Vec<(VmNo, NodeNo)> = self.checks.running.keys().copied().collect();
        open.into_iter().for_each(|(vm, n)| self.ran_until_now(vm, n));
        self.checks.runs.sort_by(|a, b| (a.from, &a.vm).cmp(&(b.from, &b.vm)));
    }

    /// I6: a start is asked for.
    pub fn check_call(&mut self, n: NodeNo, job: &Job) {
        let (Call::Start(generation) | Call::Resume(generation)) = job.call else { return };
        let age = self.now - self.checks.of(n).valid;
        let (vm, node) = (self.roster.vm(job.vm).to_owned(), self.roster.node(n).to_owned());
        if age > with_drift(self.timers.start_window_ms) + 50 {
            self.violated("I6", format!("{node} starts {vm} {age} ms after its last renewal was sent"));
        }
        let claimed = matches!(self.store.get(Key::Run(n, job.vm)), Some(Value::Claim(claim)) if claim.generation == generation);
        // A promise takes the claim away with it; it may come while libvirt's answer is on its way, never before the call.
        if !claimed {
            self.violated("I6", format!("{node} starts {vm} of generation {generation} without a claim"));
        }
    }

    pub fn check_commit(&mut self, client: Client, change: &Change) {
        if let Client::Candidate(by) = client
            && change.key.is_leaders()
            && self.leader() != Some(by)
        {
            self.violated("I7", format!("{} does not lead and wrote {:?}", self.roster.node(by), change.key));
        }
        match (change.key, &change.before, &change.after) {
            (Key::Beat(n), _, Some(Value::Beat(beat))) => self.check_beat(n, *beat),
            (Key::Epoch(n), Some(Value::Epoch(before)), Some(Value::Epoch(after))) => self.check_epoch(n, *before, *after),
            (Key::Fence(n, epoch), None, Some(Value::Fence(fence))) => self.sealed(n, epoch, *fence, client),
            (Key::Confirmed(n, epoch), None, Some(Value::Confirmed(proof))) => {
                if let Some(of) = self.checks.fences.get(&(n, epoch)) {
                    let fenced = &mut self.checks.fenced[*of];
                    (fenced.confirmed_at, fenced.by) = (Some(At(self.now)), Some(proof.as_str()));
                }
                self.log.tell(self.now, || format!("{} is dead for certain (by {})", self.roster.node(n), proof.as_str()));
                self.check_confirmed(n, epoch, *proof);
            }
            (Key::Armed(n, epoch), Some(_), None) => self.check_disarmed(n, epoch),
            (Key::Owner(vm), before, Some(Value::Owner(after))) => {
                let before = before.as_ref().and_then(|value| if let Value::Owner(owner) = value { Some(*owner) } else { None });
                self.check_owner(vm, before, *after, client);
            }
            _ => {}
        }
    }

    /// I4
    fn check_beat(&mut self, n: NodeNo, beat: Beat) {
        self.checks.of(n).beat = self.now;
        if self.store.get(Key::Fence(n, beat.epoch)).is_some() {
            self.violated("I4", format!("a renewal of {} succeeds after its seal", self.roster.node(n)));
        }
    }

    fn check_epoch(&mut self, n: NodeNo, before: EpochRecord, after: EpochRecord) {
        let ended = before.closed || self.store.get(Key::Confirmed(n, before.epoch)).is_some();
        if after.epoch != before.epoch && !ended {
            self.violated("I4", format!("{} begins an epoch before its last one is known to have ended", self.roster.node(n)));
        }
    }

    /// Who is called dead is dead.
    fn check_confirmed(&mut self, n: NodeNo, epoch: Epoch, proof: Proof) {
        let host = &self.hosts[usize::from(n.0)];
        let same_life =
            matches!(self.store.get(Key::Epoch(n)), Some(Value::Epoch(record)) if record.epoch == epoch && record.boot == host.boot);
        let writes = host.writes_count() && host.qemus.values().any(|qemu| matches!(qemu.domain, Domain::Running(_)));
        if !host.powered || !same_life || !(writes || proof == Proof::Watchdog && host.watchdog.petted.is_some()) {
            return;
        }
        if host.stonith == Stonith::Lies && proof == Proof::Stonith {
            self.checks.lied_about.push(n);
            return self.log.tell(self.now, || format!("a fence agent lies: {} has power and runs on", self.roster.node(n)));
        }
        self.violated("I3", format!("{} is called dead by {} and lives", self.roster.node(n), proof.as_str()));
    }

    /// I4: the seal names the last renewal.
    fn sealed(&mut self, n: NodeNo, epoch: Epoch, fence: Fence, client: Client) {
        let last = self.store.map.get(&Key::Beat(n)).map_or(fence.beat, |(_, revision)| *revision);
        if last != fence.beat && client != Client::Operator {
            self.violated("I4", format!("{} is sealed at a renewal that was not its last", self.roster.node(n)));
        }
        if let Client::Candidate(by) = client {
            self.check_brake(n, by);
        }
        let node = self.roster.node(n).to_owned();
        // Watch events may still get lost: renewals are read then.
        if self.healed_at.is_some_and(|at| self.now > at + SETTLED_MS) {
            self.violated("L3", format!("{node} is fenced long after all faults were over"));
        }
        let silent_at = At(self.checks.of(n).beat);
        self.checks.fences.insert((n, epoch), self.checks.fenced.len());
        self.checks.fenced.push(Fenced { node, silent_at, sealed_at: At(self.now), confirmed_at: None, by: None });
    }

    /// L3: a watchdog that bites again and again has no cause that is over.
    pub fn was_reset(&mut self, n: NodeNo) {
        self.checks.resets += 1;
        if self.healed_at.is_some_and(|at| self.now > at + SETTLED_MS) {
            self.violated("L3", format!("{} is reset by its watchdog long after all faults were over", self.roster.node(n)));
        }
    }

    /// I9: while more than half are silent, as far as the leader has heard, nobody is sealed.
    fn check_brake(&mut self, n: NodeNo, by: NodeNo) {
        let host = &self.hosts[usize::from(by.0)];
        let (Some(leader), reading) = (&host.candidate.is, host.clocks.read(self.now)) else { return };
        if self.store.get(Key::Waiting(n)).is_some() {
            return;
        }
        let (mut live, mut silent) = (0, 0);
        for of in self.hosts.iter().map(|host| host.node) {
            let Some(Value::Epoch(EpochRecord { epoch, closed: false, .. })) = self.store.get(Key::Epoch(of)) else { continue };
            let waits = self.store.get(Key::Waiting(of)).is_some();
            if self.store.get(Key::Confirmed(of, *epoch)).is_some() && !waits {
                continue;
            }
            live += 1;
            // A life that has just begun is silent only by its predecessor's clock.
            let renewed = matches!(self.store.get(Key::Beat(of)), Some(Value::Beat(beat)) if beat.epoch == *epoch);
            let quiet_ms =
                leader.silent_ms(reading, of).filter(|_| renewed).unwrap_or(0).min(self.now - self.checks.renewed_at(usize::from(of.0)));
            silent += usize::from(quiet_ms > self.timers.suspect_ms + ELECTION_MS && !waits);
        }
        if silent * 2 > live {
            self.violated("I9", format!("{} is sealed while {silent} of {live} nodes are silent", self.roster.node(n)));
        }
    }

    /// I8
    fn check_disarmed(&mut self, n: NodeNo, _epoch: Epoch) {
        if self.store.get(Key::Disarm).is_none() && self.store.owned(n).next().is_some() {
            self.violated("I8", format!("{} disarms and owns VMs", self.roster.node(n)));
        }
    }

    fn has_ended(&self, seat: Seat, vm: VmNo, generation: Generation) -> bool {
        let promise = Key::Stopped(seat.node, vm, generation);
        self.store.get(Key::Confirmed(seat.node, seat.epoch)).is_some() || self.store.get(promise).is_some()
    }

    /// I2, I3, I8, I9, I10
    fn check_owner(&mut self, vm: VmNo, before: Option<Owner>, after: Owner, client: Client) {
        let name = self.roster.vm(vm).to_owned();
        let Some(before) = before else { return };
        if before.seat == after.seat && before.to == after.to {
            return;
        }
        if before.seat != after.seat {
            for seat in [before.seat, before.to.filter(|to| Some(*to) != after.seat)].into_iter().flatten() {
                if !self.has_ended(seat, vm, before.generation) {
                    self.violated("I3", format!("{name} leaves {} before that is known to have ended", self.roster.node(seat.node)));
                }
            }
            if after.seat.is_some() && after.generation <= before.generation {
                self.violated("I2", format!("{name} gets generation {} after {}", after.generation, before.generation));
            }
        }
        self.note_lost(vm, before, after);
        let target = if before.seat == after.seat { after.to } else { after.seat };
        let Some(target) = target else { return };
        let said = [Key::Armed(target.node, target.epoch), Key::Unusable(target.node, target.epoch)];
        if said.iter().all(|key| self.store.get(*key).is_none()) && client != Client::Operator {
            self.violated("I8", format!("{name} goes to {}, which has not said how it would die", self.roster.node(target.node)));
        }
        let handed = before.to == after.seat && before.to.is_some();
        if handed {
            self.checks.handed.insert(vm, after.generation);
        } else {
            self.check_rules(vm, target.node);
        }
        if !handed && before.seat != after.seat {
            self.check_caps(target.node);
        }
    }

    /// Its node has died: from now on it is counted until it runs again.
    fn note_lost(&mut self, vm: VmNo, before: Owner, after: Owner) {
        let Some(old) = before.seat.filter(|_| before.seat != after.seat && after.parked.is_none()) else { return };
        let wanted = matches!(self.store.get(Key::Wish(vm)), Some(Value::Wish(wish)) if wish.run == RunWish::Started);
        if wanted && self.store.get(Key::Confirmed(old.node, old.epoch)).is_some() {
            let silent_at = self.checks.of(old.node).beat;
            let by_death = self.checks.fences.get(&(old.node, old.epoch)).map_or(silent_at, |of| self.checks.fenced[*of].silent_at.0);
            self.checks.lost.entry(vm).or_insert((old.node, by_death));
        }
    }

    /// I9
    fn check_caps(&mut self, n: NodeNo) {
        let orders = self.store.map.range(Key::Order(n, VmNo(0))..=Key::Order(n, VmNo(u32::MAX)));
        let starting = orders.filter(|(key, (value, _))| {
            let (Key::Order(_, vm), Value::Order(order)) = (key, value) else { return false };
            let seen = match self.store.get(Key::Seen(n, *vm)) {
                Some(Value::Seen(Seen { generation, phase })) if *generation == order.generation => Some(*phase),
                _ => None,
            };
            let done = matches!(seen, Some(Phase::Running | Phase::StartFailed)) || self.checks.handed.get(vm) == Some(&order.generation);
            order.want == Want::Run && !done
        });
        let starting = starting.count();
        if starting > STARTS_PER_NODE {
            self.violated("I9", format!("{starting} VMs are being started on {} at once", self.roster.node(n)));
        }
    }

    /// I10
    fn check_rules(&mut self, vm: VmNo, n: NodeNo) {
        if self.hosts[usize::from(n.0)].runs(vm) {
            return; // Moved here by hand: it is taken over where it is, and leaves again.
        }
        let settings = self.settings.clone();
        for rule in settings.rules.iter().filter(|rule| rule.vms().contains(&vm)) {
            let others: Vec<NodeNo> = rule.vms().iter().filter(|other| **other != vm).flat_map(|other| self.lives_at(*other)).collect();
            let broken = match rule {
                Rule::Nodes { nodes, how: Strictness::Strict, .. } => !nodes.iter().any(|(node, _)| *node == n),
                Rule::Together { how: Strictness::Strict, .. } => !others.is_empty() && !others.contains(&n),
                Rule::Apart { how: Strictness::Strict, .. } => others.contains(&n),
                Rule::Nodes { .. } | Rule::Together { .. } | Rule::Apart { .. } => false,
            };
            if broken {
                self.violated("I10", format!("{} goes to {} against a strict rule", self.roster.vm(vm), self.roster.node(n)));
            }
        }
    }

    /// One on its way is at both ends: it may still stay.
    fn lives_at(&self, vm: VmNo) -> impl Iterator<Item = NodeNo> {
        let owner = match self.store.get(Key::Owner(vm)) {
            Some(Value::Owner(owner)) => Some(owner),
            _ => None,
        };
        let ends = owner.into_iter().flat_map(|owner| [owner.seat, owner.to].into_iter().flatten().map(|seat| (seat, owner.generation)));
        ends.filter(move |(seat, generation)| !self.has_ended(*seat, vm, *generation)).map(|(seat, _)| seat.node)
    }

    /// I5, and what the world does once a second.
    pub fn every_second(&mut self) {
        self.etcd_second();
        let bound = with_drift(self.timers.pet_ms + 2 * self.timers.watchdog_ms) + 1_000;
        for i in 0..self.hosts.len() {
            let host = &self.hosts[i];
            let armed = host.powered && host.watchdog.petted.is_some() && host.watchdog.kind == Some(WatchdogKind::Hardware);
            let age = self.now - self.checks.nodes[i].valid;
            let (node, boot) = (host.node, host.boot);
            let open = host.powered && host.watchdog.petted.is_none() && self.wears_armor(node, boot);
            if open && self.store.owned(node).next().is_some() {
                let name = self.roster.node(node).to_owned();
                self.violated("I8", format!("{name} owns VMs, is armed by the store's word, and its watchdog is closed"));
            }
            let host = &self.hosts[i];
            if armed && age > bound {
                let name = self.roster.node(host.node).to_owned();
                self.violated("I5", format!("{name} lives on {age} ms after its last good renewal was sent"));
            }
        }
    }

    /// Does the store say that this life of the host is armed?
    fn wears_armor(&self, n: NodeNo, boot: u64) -> bool {
        match self.store.get(Key::Epoch(n)) {
            Some(Value::Epoch(record)) => record.boot == boot && self.store.get(Key::Armed(n, record.epoch)).is_some(),
            _ => false,
        }
    }

    /// I5: the watchdog is petted; the last good renewal must be young enough.
    pub fn check_pet(&mut self, n: NodeNo) {
        let age = self.now - self.checks.valid_since(n);
        if age > with_drift(self.timers.pet_ms) + 100 {
            self.violated("I5", format!("{} pets its watchdog {age} ms after its last good renewal was sent", self.roster.node(n)));
        }
    }

    /// I5: a renewal counts from before its question.
    pub fn check_renewed(&mut self, n: NodeNo) {
        let host = &self.hosts[usize::from(n.0)];
        let sent = host.clocks.read_past(self.checks.sent_at(n));
        let counted = host.agent.is.as_ref().and_then(|agent| agent.renewed());
        if let (Some(sent), Some(counted)) = (sent, counted)
            && counted.raw_ms > sent.raw_ms
        {
            self.violated("I5", format!("{} counts its renewal from later than it was sent", self.roster.node(n)));
        }
    }

    /// The store as a view, for states in words.
    pub fn view(&self) -> View {
        let (revision, entries) = self.store.list(|_| true, false);
        View::new(revision, entries)
    }

    /// Where a VM's guest runs.
    pub fn runs_at(&self, vm: VmNo) -> Option<NodeNo> {
        self.hosts
            .iter()
            .find(|host| host.powered && matches!(host.qemus.get(&vm).map(|q| q.domain), Some(Domain::Running(_))))
            .map(|h| h.node)
    }
}

impl World {
    /// Somebody migrates a guest with virsh: the source sees it go, the destination has a domain that nobody ordered.
    pub fn moved_by_hand(&mut self, vm: VmNo, to: NodeNo) {
        let now = self.now;
        let Some(from) = self.runs_at(vm).filter(|from| *from != to) else { return };
        let Some(qemu) = self.host(from).qemus.get(&vm).copied() else { return };
        if !self.host(to).reachable(now) || !self.host(from).reachable(now) {
            return;
        }
        self.ended(from, vm, vmkeep_core::ha::agent::Gone::Moved);
        self.host(to).qemus.insert(vm, qemu);
        if let Domain::Running(generation) = qemu.domain {
            self.checks.generations.insert(vm, (generation, to));
            self.checks.running.insert((vm, to), (now, generation));
        }
        let life = self.host(to).agent.life;
        let event = vmkeep_core::ha::agent::Event::Domain { vm, is: Ok(qemu.domain) };
        self.after(5, crate::world::Event::ToAgent(to, life, event));
    }
}
