//! Two hosts, each with an agent, a guard and a candidate, one VM, and a store that a witness keeps going: small enough that all that
//! may happen to them can be tried.
//!
//! ```text
//!  a second: one fault or none ─► what was held up arrives ─► watchdogs ─► each process ticks, and what follows from that at once
//! ```
//! The processes are those of `core::ha`, which the simulator and the daemon run; only time is coarser: everything happens at whole
//! seconds, under the timers of `fast`. No kill of a QEMU ever succeeds: that one does is luck, and nothing may count on it.

use std::collections::VecDeque;
use std::sync::Arc;

use vmkeep_core::ha::agent::{self, Agent, Call, CallEnd, Domain, Gone};
use vmkeep_core::ha::candidate::{self, Candidate, LeaseIs, Roster};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::fenced::{self, Fenced};
use vmkeep_core::ha::record::{
    Answer, Key, NodeNo, Op, Outcome, Owner, Parked, ParkedWhy, RunWish, Settings, ShutdownPolicy, StorageCan, Txn, Value, VmNo,
    WatchdogKind, Wish,
};
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_core::ha::weakness::Weakness;
use vmkeep_sim::store::{Change, Store};
use vmkeep_types::ids::{Epoch, Generation};
use vmkeep_types::name::Name;

pub const HOSTS: [NodeNo; 2] = [NodeNo(0), NodeNo(1)];
pub const VM: VmNo = VmNo(0);

const SECOND_MS: u64 = 1_000;
/// A host is up again after its power was cut, or its watchdog bit.
const BOOT_MS: u64 = 3_000;
/// Between the look of the guard and its pet, when that is held up: the watchdog bites after 4 s.
const GAP_MS: u64 = 2_000;
/// Processes of one second that wait for each other: more of them are a loop.
const EVENTS_MAX: usize = 2_000;

/// What befalls a host in one second, and for how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Cut(u64),
    PowerOff,
    AgentStands(u64),
    CandidateStands(u64),
    /// All of it, its QEMU too; the watchdog counts on.
    Stands(u64),
    /// The guard stands still between its look at the clock and its pet.
    Gap,
    /// What it asks the store for is done, and it does not hear of it.
    AnswersLost,
    /// What it asks the store for in this second arrives so much later, and it does not hear of it.
    Late(u64),
    AgentCrashes,
    CandidateCrashes,
}

/// One second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second {
    Calm,
    Trouble(NodeNo, Fault),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    agent: Option<Agent>,
    fenced: Fenced,
    candidate: Option<Candidate>,
    boot: u64,
    /// None: it has power.
    boots_at: Option<u64>,
    cut_until: u64,
    stands_until: u64,
    agent_until: u64,
    candidate_until: u64,
    /// Of the watchdog; None: closed.
    petted: Option<u64>,
    /// A pet that was decided and is not written yet.
    pet_at: Option<u64>,
    qemu: Option<Generation>,
    /// Calls of libvirt that are under way.
    jobs: Vec<(u64, Call)>,
    /// On disk.
    intent: bool,
    /// What an agent that stands still hears later.
    unheard: Vec<agent::Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Who {
    Agent(NodeNo),
    Candidate(NodeNo),
}

impl Who {
    fn node(self) -> NodeNo {
        match self {
            Self::Agent(n) | Self::Candidate(n) => n,
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Agent(NodeNo, agent::Event),
    Candidate(NodeNo, candidate::Event),
    Fenced(NodeNo, fenced::Event),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub now: u64,
    /// Faults that may still happen.
    pub budget: u8,
    pub broken: Option<String>,
    weak: Option<Weakness>,
    store: Store,
    hosts: [Host; 2],
    late: Vec<(u64, Who, Txn)>,
    roster: Arc<Roster>,
    salt: u64,
    newest: Generation,
}

fn at(n: NodeNo) -> usize {
    usize::from(n.0)
}

impl Host {
    fn new(weak: Option<Weakness>) -> Self {
        Self {
            agent: None,
            fenced: Fenced::new(&Timers::of(Profile::Fast), weak),
            candidate: None,
            boot: 0,
            boots_at: Some(0),
            cut_until: 0,
            stands_until: 0,
            agent_until: 0,
            candidate_until: 0,
            petted: None,
            pet_at: None,
            qemu: None,
            jobs: Vec::new(),
            intent: false,
            unheard: Vec::new(),
        }
    }

    fn powered(&self) -> bool {
        self.boots_at.is_none()
    }

    fn reaches(&self, now: u64) -> bool {
        self.powered() && self.cut_until <= now && self.stands_until <= now
    }

    fn loses_power(&mut self, now: u64, weak: Option<Weakness>) {
        let Self { boot, cut_until, intent, .. } = *self;
        *self = Self { boot, cut_until, intent, boots_at: Some(now + BOOT_MS), ..Self::new(weak) };
    }
}

impl World {
    /// The VM was made for the first host, and nothing runs yet.
    pub fn new(budget: u8, weak: Option<Weakness>) -> Self {
        let nodes = ["node1", "node2"].map(Name::known).to_vec();
        let roster = Arc::new(Roster { nodes, vms: [(VM, Name::known("vm1"))].into() });
        let settings = Settings {
            rules: Vec::new(),
            shutdown: ShutdownPolicy::Conditional,
            failback: false,
            sizes: vec![(4, 4096); HOSTS.len()],
            stonith: Vec::new(),
            storage: StorageCan::Nothing,
        };
        let wish = Wish { run: RunWish::Started, priority: 1, max_restart: 3, max_relocate: 3, failback: false, cpus: 1, memory_mib: 1024 };
        let owner = Owner { seat: None, generation: Generation(0), to: None, parked: Some(Parked { node: HOSTS[0], why: ParkedWhy::New }) };
        let mut store = Store::default();
        store.write(&[
            Op::Put(Key::Settings, Value::Settings(Arc::new(settings))),
            Op::Put(Key::Wish(VM), Value::Wish(wish)),
            Op::Put(Key::Owner(VM), Value::Owner(owner)),
        ]);
        let hosts = HOSTS.map(|_| Host::new(weak));
        Self { now: 0, budget, broken: None, weak, store, hosts, late: Vec::new(), roster, salt: 0, newest: Generation(0) }
    }

    pub fn runs_on(&self, n: NodeNo) -> bool {
        self.hosts[at(n)].powered() && self.hosts[at(n)].qemu.is_some()
    }

    fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    fn clock(&self) -> Now {
        Now { boottime_ms: self.now, raw_ms: self.now }
    }

    /// One second with what befalls a host in it.
    pub fn second(&mut self, second: Second) {
        self.now += SECOND_MS;
        if let Second::Trouble(n, fault) = second {
            self.befalls(n, fault);
        }
        if self.store.lease_until.is_some_and(|until| until <= self.now) {
            self.store.lease_until = None;
            let changes = self.store.write(&[Op::Delete(Key::Leader)]);
            let mut queue = VecDeque::new();
            self.committed(&changes, &mut queue);
            self.settle(queue, Second::Calm);
        }
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.late).into_iter().partition(|(at, ..)| *at <= self.now);
        self.late = later;
        for (_, _, txn) in due {
            let mut queue = VecDeque::new();
            self.commit(&txn, &mut queue);
            self.settle(queue, Second::Calm);
        }
        for n in HOSTS {
            self.host_second(n, second);
        }
    }

    fn befalls(&mut self, n: NodeNo, fault: Fault) {
        let (now, weak) = (self.now, self.weak);
        let host = &mut self.hosts[at(n)];
        match fault {
            Fault::Cut(ms) => host.cut_until = now + ms,
            Fault::PowerOff => host.loses_power(now, weak),
            Fault::AgentStands(ms) => host.agent_until = now + ms,
            Fault::CandidateStands(ms) => host.candidate_until = now + ms,
            Fault::Stands(ms) => host.stands_until = now + ms,
            Fault::AgentCrashes => host.agent = None,
            Fault::CandidateCrashes => host.candidate = None,
            Fault::Gap | Fault::AnswersLost | Fault::Late(_) => {}
        }
    }

    fn host_second(&mut self, n: NodeNo, second: Second) {
        let (now, weak) = (self.now, self.weak);
        let host = &mut self.hosts[at(n)];
        if host.boots_at.is_some_and(|at| at <= now) {
            (host.boots_at, host.boot) = (None, host.boot + 1);
        }
        if host.pet_at.is_some_and(|at| at <= now) && host.powered() && host.stands_until <= now {
            (host.pet_at, host.petted) = (None, Some(now));
        }
        let watchdog_ms = Timers::of(Profile::Fast).watchdog_ms;
        if host.petted.is_some_and(|petted| now - petted >= watchdog_ms) {
            host.loses_power(now, weak);
        }
        if !host.powered() || host.stands_until > now {
            return;
        }
        self.restarts(n);
        let host = &mut self.hosts[at(n)];
        let mut queue = VecDeque::new();
        if host.pet_at.is_none() {
            queue.push_back(Event::Fenced(n, fenced::Event::Tick));
        }
        if host.agent_until <= now {
            queue.extend(std::mem::take(&mut host.unheard).into_iter().map(|event| Event::Agent(n, event)));
            queue.push_back(Event::Agent(n, agent::Event::Tick));
        }
        queue.push_back(Event::Candidate(n, candidate::Event::Tick));
        self.jobs_end(n, &mut queue);
        self.settle(queue, second);
    }

    fn restarts(&mut self, n: NodeNo) {
        let (weak, roster) = (self.weak, self.roster.clone());
        let mut salt = self.salt;
        let host = &mut self.hosts[at(n)];
        if host.agent.is_none() {
            salt += 1_000_000;
            host.unheard.clear();
            host.agent = Some(Agent::new(n, host.boot, salt, Profile::Fast, host.intent, weak));
        }
        if host.candidate.is_none() {
            salt += 1_000_000;
            host.candidate = Some(Candidate::new(n, salt, Timers::of(Profile::Fast), roster, weak));
        }
        self.salt = salt;
    }

    /// A call takes until the next second, whoever asked for it.
    fn jobs_end(&mut self, n: NodeNo, queue: &mut VecDeque<Event>) {
        for (id, call) in std::mem::take(&mut self.hosts[at(n)].jobs) {
            let host = &mut self.hosts[at(n)];
            let mut told = |is| queue.push_back(Event::Agent(n, agent::Event::Domain { vm: VM, is }));
            match call {
                Call::Start(generation) if host.qemu.is_none() => {
                    host.qemu = Some(generation);
                    told(Ok(Domain::Running(generation)));
                    self.begins_to_run(n, generation);
                }
                Call::Start(_) => {}
                Call::Stop | Call::Kill => {
                    host.qemu = None;
                    told(Err(Gone::Ended));
                }
                Call::Resume(_) | Call::MoveTo(_) => unreachable!("nothing is moved here"),
            }
            queue.push_back(Event::Agent(n, agent::Event::Called { id, vm: VM, end: CallEnd::Done }));
        }
    }

    /// I1, I2
    fn begins_to_run(&mut self, n: NodeNo, generation: Generation) {
        let other = HOSTS[1 - at(n)];
        if self.runs_on(other) {
            self.breaks(format!("I1: the VM runs on node{} and on node{}", other.0 + 1, n.0 + 1));
        }
        if generation < self.newest {
            self.breaks(format!("I2: generation {generation} starts after {}", self.newest));
        }
        self.newest = self.newest.max(generation);
    }

    fn settle(&mut self, mut queue: VecDeque<Event>, second: Second) {
        for _ in 0..EVENTS_MAX {
            let Some(event) = queue.pop_front() else { return };
            match event {
                Event::Agent(n, event) => self.agent(n, event, second, &mut queue),
                Event::Candidate(n, event) => self.candidate(n, event, second, &mut queue),
                Event::Fenced(n, event) => self.fenced(n, event, second, &mut queue),
            }
        }
        self.breaks("a second does not end".into());
    }

    fn agent(&mut self, n: NodeNo, event: agent::Event, second: Second, queue: &mut VecDeque<Event>) {
        let (now, clock) = (self.now, self.clock());
        let host = &mut self.hosts[at(n)];
        if !host.powered() {
            return;
        }
        if host.agent_until > now || host.stands_until > now {
            return host.unheard.push(event);
        }
        let Some(agent) = &mut host.agent else { return };
        for action in agent.step(clock, event) {
            let host = &mut self.hosts[at(n)];
            match action {
                agent::Action::Txn(txn) => self.asks(Who::Agent(n), txn, second, queue),
                agent::Action::List(id) if host.reaches(now) => {
                    let found = Some(self.store.list(|key| key.is_for_agent(n) || key == Key::Beat(n), false));
                    queue.push_back(Event::Agent(n, agent::Event::Listed { id, found }));
                }
                agent::Action::ListDomains => {
                    let domains = host.qemu.map(|generation| (VM, Domain::Running(generation))).into_iter().collect();
                    queue.push_back(Event::Agent(n, agent::Event::Domains(domains)));
                }
                agent::Action::RestartLibvirt => host.jobs.clear(),
                agent::Action::NoteIntent(_) => host.intent = true,
                agent::Action::DropIntent(_) => host.intent = false,
                agent::Action::Call { id, call, .. } => host.jobs.push((id, call)),
                agent::Action::Relabel(_, generation) => host.qemu = Some(generation),
                agent::Action::Fenced(event) => queue.push_back(Event::Fenced(n, event)),
                agent::Action::Power(_) => return host.loses_power(now, self.weak),
                agent::Action::List(_) => {}
            }
        }
    }

    fn fenced(&mut self, n: NodeNo, event: fenced::Event, second: Second, queue: &mut VecDeque<Event>) {
        let (now, clock) = (self.now, self.clock());
        let host = &mut self.hosts[at(n)];
        if !host.powered() || host.stands_until > now || host.pet_at.is_some() {
            return;
        }
        let actions = host.fenced.step(clock, event);
        if actions.open {
            host.petted = Some(now);
            queue.push_back(Event::Agent(n, agent::Event::WatchdogOpen(WatchdogKind::Hardware)));
        }
        if actions.pet && second == Second::Trouble(n, Fault::Gap) {
            host.pet_at = Some(now + GAP_MS);
        } else if actions.pet {
            host.petted = Some(now);
        }
        if actions.close {
            host.petted = None;
        }
    }

    fn candidate(&mut self, n: NodeNo, event: candidate::Event, second: Second, queue: &mut VecDeque<Event>) {
        let (now, clock) = (self.now, self.clock());
        let host = &mut self.hosts[at(n)];
        // What one that stands still does not hear it reads later, as though the watch had lost it.
        if !host.powered() || host.candidate_until > now || host.stands_until > now {
            return;
        }
        let Some(candidate) = &mut host.candidate else { return };
        for action in candidate.step(clock, event) {
            let reaches = self.hosts[at(n)].reaches(now);
            match action {
                candidate::Action::Txn(txn) => self.asks(Who::Candidate(n), txn, second, queue),
                candidate::Action::List(id) if reaches => {
                    let found = Some(self.store.list(|_| true, false));
                    queue.push_back(Event::Candidate(n, candidate::Event::Listed { id, found }));
                }
                candidate::Action::KeepAlive if reaches => {
                    let holds = self.store.get(Key::Leader) == Some(&Value::Leader(n));
                    if holds {
                        self.store.lease_until = Some(now + Timers::of(Profile::Fast).lease_ms);
                    }
                    let is = if holds { LeaseIs::Kept } else { LeaseIs::Gone };
                    queue.push_back(Event::Candidate(n, candidate::Event::Lease(is)));
                }
                candidate::Action::Ping(to) if reaches && self.hosts[at(to)].reaches(now) => {
                    queue.push_back(Event::Candidate(n, candidate::Event::Pong(to)));
                }
                candidate::Action::List(_)
                | candidate::Action::KeepAlive
                | candidate::Action::Ping(_)
                | candidate::Action::Say(_)
                | candidate::Action::Stonith { .. }
                | candidate::Action::RefuseWrites { .. } => {}
            }
        }
    }

    fn asks(&mut self, who: Who, txn: Txn, second: Second, queue: &mut VecDeque<Event>) {
        if !self.hosts[at(who.node())].reaches(self.now) {
            return;
        }
        let befalls = |fault: fn(&Fault) -> bool| matches!(&second, Second::Trouble(n, of) if *n == who.node() && fault(of));
        if let Second::Trouble(n, Fault::Late(ms)) = second
            && n == who.node()
        {
            return self.late.push((self.now + ms, who, txn));
        }
        let answer = self.commit(&txn, queue);
        if befalls(|fault| *fault == Fault::AnswersLost) {
            return;
        }
        queue.push_back(match who {
            Who::Agent(n) => Event::Agent(n, agent::Event::Answer(answer)),
            Who::Candidate(n) => Event::Candidate(n, candidate::Event::Answer(answer)),
        });
    }

    fn commit(&mut self, txn: &Txn, queue: &mut VecDeque<Event>) -> Answer {
        let (outcome, changes) = self.store.commit(txn);
        if outcome == Outcome::Done {
            self.committed(&changes, queue);
        }
        Answer { id: txn.id, outcome, revision: self.store.revision }
    }

    fn committed(&mut self, changes: &[Change], queue: &mut VecDeque<Event>) {
        for Change { key, after, .. } in changes {
            match (*key, after) {
                (Key::Beat(n), Some(Value::Beat(beat))) if self.store.get(Key::Fence(n, beat.epoch)).is_some() => {
                    self.breaks(format!("I4: a renewal of node{} succeeds after its seal", n.0 + 1));
                }
                (Key::Confirmed(n, epoch), Some(_)) => self.called_dead(n, epoch),
                (Key::Leader, Some(_)) => self.store.lease_until = Some(self.now + Timers::of(Profile::Fast).lease_ms),
                _ => {}
            }
            if matches!(key, Key::Canary(_)) {
                continue;
            }
            for n in HOSTS.into_iter().filter(|n| self.hosts[at(*n)].reaches(self.now)) {
                if key.is_for_agent(n) {
                    queue.push_back(Event::Agent(n, agent::Event::Changed));
                }
                let event = candidate::Event::Watched { key: *key, value: after.clone(), revision: self.store.revision };
                queue.push_back(Event::Candidate(n, event));
            }
        }
    }

    /// I3: who is called dead is dead.
    fn called_dead(&mut self, n: NodeNo, epoch: Epoch) {
        let host = &self.hosts[at(n)];
        let this_life = matches!(self.store.get(Key::Epoch(n)), Some(Value::Epoch(is)) if is.epoch == epoch && is.boot == host.boot);
        if self.runs_on(n) && this_life {
            self.breaks(format!("I3: node{} is called dead and lives", n.0 + 1));
        }
    }
}
