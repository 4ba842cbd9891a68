//! The whole cluster in one thread: a queue of events in true time, and the models around the real state machines.
//!
//! ```text
//!  queue ──► event ──► agent │ fenced │ candidate .step() ──► actions ──► store, libvirt, watchdog, power ──► queue
//!                                                               │
//!                                                               └──► checks (every change), story
//! ```
//! Everything is ordered: events by time and then by number, maps by key. The seed decides the rest, and nothing else does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use vmkeep_core::ha::agent::{self, Agent};
use vmkeep_core::ha::candidate::{self, Candidate, Roster};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::fenced::{self, Fenced};
use vmkeep_core::ha::record::{Key, NodeNo, Op, Seat, Settings, Txn, Value, VmNo};
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_core::ha::vigil::{PowerIs, WritesAre};
use vmkeep_core::ha::weakness::Weakness;

use crate::check::Checks;
use crate::dice::Dice;
use crate::host::Host;
use crate::log::{Log, Telling};
use crate::power::Opened;
use crate::store::Store;

/// Who asks the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    Agent(NodeNo),
    Candidate(NodeNo),
    Operator,
}

#[derive(Clone, Debug)]
pub enum Ask {
    Txn(Txn),
    List(u64),
    KeepAlive,
}

#[derive(Clone, Debug)]
pub enum Event {
    AgentTick(NodeNo, u32),
    FencedTick(NodeNo, u32),
    CandidateTick(NodeNo, u32),
    ToAgent(NodeNo, u32, agent::Event),
    ToFenced(NodeNo, u32, fenced::Event),
    ToCandidate(NodeNo, u32, candidate::Event),
    /// A request arrives at the store.
    Asked(Client, u32, Ask),
    /// libvirt is done with a job of this boot.
    Job(NodeNo, u64, u64),
    /// The pet that was decided earlier is written now.
    Pet(NodeNo, u64),
    WatchdogCheck(NodeNo, u64),
    Booted(NodeNo),
    AgentRestart(NodeNo),
    CandidateRestart(NodeNo),
    StonithDone {
        by: NodeNo,
        life: u32,
        node: NodeNo,
        epoch: vmkeep_types::ids::Epoch,
        power: PowerIs,
    },
    /// The storage's answer to `by`.
    RefusalDone {
        by: NodeNo,
        life: u32,
        seat: Seat,
        are: WritesAre,
    },
    PowerOn(NodeNo),
    /// The script's or the fault plan's next entry.
    Next(usize),
    /// A fault ends.
    Heal(usize),
    Second,
}

pub struct Queued(u64, u64, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What a simulated VM will do wrong.
#[derive(Clone, Debug, Default)]
pub struct Mishaps {
    pub starts: u32,
    pub starts_on: Option<NodeNo>,
    pub stops: u32,
    pub moves: u32,
}

pub struct Setup {
    pub seed: u64,
    pub profile: Profile,
    pub weak: Option<Weakness>,
    pub telling: Telling,
    pub roster: Arc<Roster>,
    pub settings: Settings,
    pub hosts: Vec<Host>,
}

pub struct World {
    pub now: u64,
    pub dice: Dice,
    profile: Profile,
    pub timers: Timers,
    pub weak: Option<Weakness>,
    pub roster: Arc<Roster>,
    pub settings: Arc<Settings>,
    pub store: Store,
    pub hosts: Vec<Host>,
    pub mishaps: BTreeMap<VmNo, Mishaps>,
    pub log: Log,
    pub checks: Checks,
    /// Watch events that are lost, 1/1000.
    pub watch_loss_permille: u64,
    /// Answers that come twice, 1/1000.
    pub twice_permille: u64,
    pub events: u64,
    /// Nothing is left to happen.
    pub over: bool,
    /// All faults are over since.
    pub healed_at: Option<u64>,
    /// The host that etcd's own leader is on.
    pub etcd_leader: usize,
    /// Candidates' words about VMs, for the final report.
    queue: BinaryHeap<Reverse<Queued>>,
    numbers: u64,
    salt: u64,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let settings = Arc::new(setup.settings);
        let mut world = Self {
            now: 0,
            dice: Dice::new(setup.seed),
            profile: setup.profile,
            timers: Timers::of(setup.profile),
            weak: setup.weak,
            roster: setup.roster,
            settings: settings.clone(),
            store: Store::default(),
            checks: Checks::new(setup.hosts.len()),
            hosts: setup.hosts,
            mishaps: BTreeMap::new(),
            log: Log::new(setup.telling),
            watch_loss_permille: 0,
            twice_permille: 0,
            events: 0,
            over: false,
            healed_at: None,
            etcd_leader: 0,
            queue: BinaryHeap::new(),
            numbers: 0,
            salt: 0,
        };
        world.store.write(&[Op::Put(Key::Settings, Value::Settings(settings))]);
        world.at(1_000, Event::Second);
        world
    }

    /// Runs until `end`; `next` carries out the script's entries.
    pub fn run(&mut self, end: u64, next: &mut dyn FnMut(&mut Self, Event)) {
        while let Some(Reverse(Queued(at, ..))) = self.queue.peek() {
            if *at > end {
                break;
            }
            let Some(Reverse(Queued(at, _, event))) = self.queue.pop() else { break };
            self.now = at;
            self.events += 1;
            match event {
                Event::Next(_) | Event::Heal(_) => next(self, event),
                event => self.step(event),
            }
            // Nobody reads on: the first violation is what matters.
            if self.log.is_over() || self.over {
                return;
            }
        }
        self.now = end;
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.numbers += 1;
        self.queue.push(Reverse(Queued(at.max(self.now), self.numbers, event)));
    }

    pub fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    pub fn host(&mut self, node: NodeNo) -> &mut Host {
        &mut self.hosts[usize::from(node.0)]
    }

    pub fn name(&self, node: NodeNo) -> &str {
        self.roster.node(node)
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::AgentTick(n, life) => {
                if self.hosts[usize::from(n.0)].agent.life == life {
                    self.after(self.timers.tick_ms, Event::AgentTick(n, life));
                    self.hand_agent(n, life, agent::Event::Tick);
                }
            }
            Event::FencedTick(n, life) => {
                if self.hosts[usize::from(n.0)].fenced.life == life {
                    self.after(self.timers.pet_every_ms, Event::FencedTick(n, life));
                    self.hand_fenced(n, life, fenced::Event::Tick);
                }
            }
            Event::CandidateTick(n, life) => {
                if self.hosts[usize::from(n.0)].candidate.life == life {
                    self.after(self.timers.tick_ms, Event::CandidateTick(n, life));
                    self.hand_candidate(n, life, candidate::Event::Tick);
                }
            }
            Event::ToAgent(n, life, event) => self.hand_agent(n, life, event),
            Event::ToFenced(n, life, event) => self.hand_fenced(n, life, event),
            Event::ToCandidate(n, life, event) => self.hand_candidate(n, life, event),
            Event::Asked(client, life, ask) => self.asked(client, life, ask),
            Event::Job(n, boot, job) => self.job_done(n, boot, job),
            Event::Pet(n, boot) => self.pet(n, boot),
            Event::WatchdogCheck(n, boot) => self.watchdog_check(n, boot),
            Event::Booted(n) => self.booted(n),
            Event::AgentRestart(n) => self.start_agent(n),
            Event::CandidateRestart(n) => self.start_candidate(n),
            Event::StonithDone { by, life, node, epoch, power } => {
                self.stonith_done(node, power);
                self.hand_candidate(by, life, candidate::Event::Stonith { node, epoch, power });
            }
            Event::RefusalDone { by, life, seat: Seat { node, epoch }, are } => {
                self.refusal_done(node, epoch, are);
                self.hand_candidate(by, life, candidate::Event::Writes { node, epoch, are });
            }
            Event::PowerOn(n) => self.power_on(n),
            Event::Second => {
                self.after(1_000, Event::Second);
                self.every_second();
            }
            Event::Next(_) | Event::Heal(_) => unreachable!("these go to the script"),
        }
    }

    /// When a paused process or host goes on; None: it runs.
    fn paused(host: &Host, process_until: u64, now: u64) -> Option<u64> {
        Some(process_until.max(host.paused_until)).filter(|until| *until > now)
    }

    fn hand_agent(&mut self, n: NodeNo, life: u32, event: agent::Event) {
        let now = self.now;
        let host = self.host(n);
        if !host.powered || host.agent.life != life {
            return;
        }
        if let Some(until) = Self::paused(host, host.agent.paused_until, now) {
            // Ticks do not pile up: the next one comes anyway.
            if event != agent::Event::Tick {
                self.at(until, Event::ToAgent(n, life, event));
            }
            return;
        }
        let reading = host.clocks.read(now);
        let Some(agent) = &mut host.agent.is else { return };
        let before = agent.renewed();
        let actions = agent.step(reading, event);
        let renewed = agent.renewed().filter(|sent| before != Some(*sent));
        if renewed.is_some() {
            self.checks.renewed(n);
            self.check_renewed(n);
        }
        self.agent_does(n, life, actions);
    }

    fn agent_does(&mut self, n: NodeNo, life: u32, actions: Vec<agent::Action>) {
        for action in actions {
            match action {
                agent::Action::Txn(txn) => {
                    self.checks.note_sent(n, &txn, self.now);
                    self.ask(Client::Agent(n), life, Ask::Txn(txn));
                }
                agent::Action::List(id) => self.ask(Client::Agent(n), life, Ask::List(id)),
                agent::Action::Fenced(event) => {
                    let fenced = self.host(n).fenced.life;
                    if matches!(event, fenced::Event::Sealed) {
                        self.log.tell(self.now, || {
                            format!("{} learns that it is sealed: it kills its VMs and lets the watchdog bite", self.roster.node(n))
                        });
                    }
                    self.after(1, Event::ToFenced(n, fenced, event));
                }
                agent::Action::Power(farewell) => return self.leaves(n, farewell),
                action => self.libvirt(n, life, action),
            }
        }
    }

    fn hand_fenced(&mut self, n: NodeNo, life: u32, event: fenced::Event) {
        let now = self.now;
        let host = self.host(n);
        if !host.powered || host.fenced.life != life {
            return;
        }
        if let Some(until) = Self::paused(host, host.fenced.paused_until, now) {
            if event != fenced::Event::Tick {
                self.at(until, Event::ToFenced(n, life, event));
            }
            return;
        }
        let reading = host.clocks.read(now);
        let Some(fenced) = &mut host.fenced.is else { return };
        let actions = fenced.step(reading, event);
        self.fenced_does(n, reading, actions);
    }

    fn fenced_does(&mut self, n: NodeNo, reading: Now, actions: fenced::Actions) {
        let boot = self.host(n).boot;
        if actions.open && self.watchdog_opens(n) == Opened::Refused {
            // As the real one: it is as idle as before.
            if let Some(fenced) = &mut self.host(n).fenced.is {
                fenced.step(reading, fenced::Event::Disarm);
            }
            return;
        }
        if actions.kill {
            self.kill_vms(n, reading);
        }
        if actions.pet {
            self.check_pet(n);
            let gap = std::mem::take(&mut self.host(n).gap_ms);
            if gap == 0 {
                self.pet(n, boot);
            } else {
                let until = self.now + gap;
                self.host(n).fenced.paused_until = until;
                self.at(until, Event::Pet(n, boot));
            }
        }
        if actions.close {
            self.host(n).watchdog.petted = None;
            self.log.tell(self.now, || format!("{} disarms its watchdog", self.roster.node(n)));
        }
    }

    fn hand_candidate(&mut self, n: NodeNo, life: u32, event: candidate::Event) {
        let now = self.now;
        let host = self.host(n);
        if !host.powered || host.candidate.life != life {
            return;
        }
        if let Some(until) = Self::paused(host, host.candidate.paused_until, now) {
            if event != candidate::Event::Tick {
                self.at(until, Event::ToCandidate(n, life, event));
            }
            return;
        }
        let reading = host.clocks.read(now);
        let Some(candidate) = &mut host.candidate.is else { return };
        let actions = candidate.step(reading, event);
        for action in actions {
            match action {
                candidate::Action::Txn(txn) => self.ask(Client::Candidate(n), life, Ask::Txn(txn)),
                candidate::Action::List(id) => self.ask(Client::Candidate(n), life, Ask::List(id)),
                candidate::Action::KeepAlive => self.ask(Client::Candidate(n), life, Ask::KeepAlive),
                candidate::Action::Stonith { node, epoch } => self.stonith(n, life, node, epoch),
                candidate::Action::RefuseWrites { node, epoch } => self.refuse_writes(n, life, Seat { node, epoch }),
                candidate::Action::Ping(node) => {
                    let (from, to) = (&self.hosts[usize::from(n.0)], &self.hosts[usize::from(node.0)]);
                    if from.reachable(self.now) && to.reachable(self.now) {
                        self.after(2, Event::ToCandidate(n, life, candidate::Event::Pong(node)));
                    }
                }
                candidate::Action::Say(words) => self.log.tell(self.now, || words),
            }
        }
    }

    /// Processes of a host that has just booted.
    fn booted(&mut self, n: NodeNo) {
        if !self.host(n).powered {
            return;
        }
        self.host(n).paused_until = 0;
        self.start_fenced(n);
        self.start_agent(n);
        self.start_candidate(n);
    }

    pub fn start_fenced(&mut self, n: NodeNo) {
        let (timers, weak) = (self.timers, self.weak);
        let host = self.host(n);
        host.fenced.start(Fenced::new(&timers, weak));
        let life = host.fenced.life;
        self.after(0, Event::FencedTick(n, life));
    }

    pub fn start_agent(&mut self, n: NodeNo) {
        self.salt += 1_000_000;
        let (salt, profile, weak) = (self.salt, self.profile, self.weak);
        let host = self.host(n);
        if !host.powered || host.agent.is.is_some() || host.fenced.life == 0 {
            return;
        }
        let intents = !host.intents.is_empty();
        host.agent.start(Agent::new(n, host.boot, salt, profile, intents, weak));
        let life = host.agent.life;
        self.at(self.now, Event::AgentTick(n, life));
        self.tell_storage(n);
    }

    pub fn start_candidate(&mut self, n: NodeNo) {
        self.salt += 1_000_000;
        let (salt, timers, weak, roster) = (self.salt, self.timers, self.weak, self.roster.clone());
        let host = self.host(n);
        if !host.powered || !host.is_control || !host.candidate_wanted || host.candidate.is.is_some() {
            return;
        }
        host.candidate.start(Candidate::new(n, salt, timers, roster, weak));
        let life = host.candidate.life;
        self.at(self.now, Event::CandidateTick(n, life));
    }

    pub fn leader(&self) -> Option<NodeNo> {
        match self.store.get(Key::Leader) {
            Some(Value::Leader(node)) => Some(*node),
            _ => None,
        }
    }

    /// The leader's words about VMs that are not where they should be.
    pub fn reasons(&self) -> BTreeMap<VmNo, String> {
        let leader = self.leader().and_then(|n| self.hosts[usize::from(n.0)].candidate.is.as_ref());
        leader.map(|candidate| candidate.reasons().clone()).unwrap_or_default()
    }
}
