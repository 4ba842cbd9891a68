//! The node's agent: renews, arms, claims, starts, stops, and says what it sees.
//!
//! ```text
//!  Reading ──► Joining ──► Live ──── renewal refused: sealed ──► Ended (reset by fenced)
//!     ▲  own epoch, not sealed ─┘ │
//!     └── sealed, but never armed ┘  host leaves: VMs gone ──► epoch closed ──► power off
//! ```
//! It takes orders from the store only, and those of its own epoch; nothing that a leader says otherwise starts a VM. Each
//! start is claimed in a transaction and noted on disk before libvirt hears of it. What it does not know (a domain's state
//! before the first list, the outcome of a transaction) it does not act upon.

mod epoch;
mod vms;

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_types::ids::{Epoch, Generation, Revision};

use super::clock::Now;
use super::fenced;
use super::life;
use super::record::{
    Answer, Armed, DisarmMode, Entry, EpochRecord, Farewell, Health, Key, NodeNo, Outcome, Txn, TxnId, VmNo, WatchdogKind,
};
use super::timers::{Profile, Timers};
use super::weakness::Weakness;

/// A transaction that was not answered in this time has an unknown outcome, ms.
const ANSWER_MS: u64 = 2_500;

/// Orders are read this often although no watch event came: events get lost.
const LIST_EVERY_MS: u64 = 5_000;

/// Domains are listed this often, ms; libvirt that does not answer for as long again is not well.
const DOMAINS_EVERY_MS: u64 = 10_000;

/// A node that owns nothing stays armed for so long: VMs come and go, ms.
const DISARM_AFTER_MS: u64 = 10_000;

/// An orderly goodbye that takes longer goes on without it: the host is then taken for dead, which is safe, ms.
const FAREWELL_MS: u64 = 300_000;

/// A domain as libvirt shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    Running(Generation),
    /// A guest that has arrived here whole and waits to be resumed.
    Arrived(Generation),
    /// A guest that is still arriving.
    Incoming(Generation),
}

/// Why a domain is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gone {
    Ended,
    /// To another host, whoever asked for it.
    Moved,
}

/// What libvirt is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Start(Generation),
    Resume(Generation),
    Stop,
    Kill,
    MoveTo(NodeNo),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallEnd {
    Done,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    Tick,
    Answer(Answer),
    /// What [`Action::List`] found; None: the store could not be read.
    Listed {
        id: u64,
        found: Option<(Revision, Vec<Entry>)>,
    },
    /// A watch event: something that this agent reads has changed.
    Changed,
    Domains(Vec<(VmNo, Domain)>),
    Domain {
        vm: VmNo,
        is: Result<Domain, Gone>,
    },
    Called {
        id: u64,
        vm: VmNo,
        end: CallEnd,
    },
    /// The watchdog is open and its time-out is as wanted.
    WatchdogOpen(WatchdogKind),
    /// There is none, or none that would do.
    WatchdogUnusable,
    Storage(Health),
    /// Somebody shuts the host down in order.
    HostLeaves(Farewell),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Txn(Txn),
    /// Read all keys that are [`Key::is_for_agent`], and the beat.
    List(u64),
    ListDomains,
    /// Ends what a dead agent may have asked for.
    RestartLibvirt,
    /// On disk, before the call that follows.
    NoteIntent(VmNo),
    DropIntent(VmNo),
    Call {
        id: u64,
        vm: VmNo,
        call: Call,
    },
    /// The running domain is of this generation from now on.
    Relabel(VmNo, Generation),
    Fenced(fenced::Event),
    Power(Farewell),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Reading,
    Joining(TxnId, Now),
    Live,
    /// Sealed: nothing is done any more.
    Ended,
    /// The last transaction of an orderly goodbye.
    Closing(TxnId, Now),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Arming {
    No,
    Opening(Now),
    Open(WatchdogKind),
    Writing(WatchdogKind, TxnId, Now),
    Yes(WatchdogKind),
    Erasing(WatchdogKind, TxnId, Now),
    /// There is no watchdog; whoever asked does not know yet.
    Excusing(TxnId, Now),
    /// That is known.
    Never,
}

/// What the store said of this node, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Known {
    epoch: Option<(EpochRecord, Revision)>,
    fenced: BTreeSet<Epoch>,
    confirmed: BTreeSet<Epoch>,
    armed: BTreeMap<Epoch, Armed>,
    unusable: BTreeSet<Epoch>,
    arm_wanted: bool,
    disarm: Option<DisarmMode>,
    /// The leader was told that this boot waits.
    waiting: bool,
}

/// How the host leaves, since when that is known, and the transaction that tells the leader.
type Goodbye = (Farewell, Now, Option<(TxnId, Now)>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    me: NodeNo,
    boot: u64,
    profile: Profile,
    timers: Timers,
    weak: Option<Weakness>,
    stage: Stage,
    arming: Arming,
    known: Known,
    /// Ours, once live, with its record's revision.
    epoch: Epoch,
    epoch_revision: Revision,
    beat: Option<(u64, Revision)>,
    renewing: Option<(TxnId, Now)>,
    tried: Option<Now>,
    /// `t_send` of the last renewal that succeeded.
    renewed: Option<Now>,
    vms: BTreeMap<VmNo, vms::Local>,
    next: u64,
    listing: Option<(u64, Now, Revision)>,
    listed: Option<Now>,
    stale: bool,
    revision: Revision,
    domains_asked: Option<Now>,
    domains_heard: Option<Now>,
    /// libvirt is to be restarted before anything is believed.
    open_intents: bool,
    hypervisor: Health,
    storage: Health,
    empty_since: Option<Now>,
    farewell: Option<Goodbye>,
}

impl Agent {
    /// A fresh process. `intents`: calls that an agent before may have begun, from its disk. `salt` makes its numbers differ
    /// from those of the process before.
    pub fn new(me: NodeNo, boot: u64, salt: u64, profile: Profile, intents: bool, weak: Option<Weakness>) -> Self {
        Self {
            me,
            boot,
            profile,
            timers: Timers::of(profile),
            weak,
            stage: Stage::Reading,
            arming: Arming::No,
            known: Known::default(),
            epoch: Epoch(0),
            epoch_revision: Revision(0),
            beat: None,
            renewing: None,
            tried: None,
            renewed: None,
            vms: BTreeMap::new(),
            next: salt,
            listing: None,
            listed: None,
            stale: true,
            revision: Revision(0),
            domains_asked: None,
            domains_heard: None,
            open_intents: intents && weak != Some(Weakness::ForgetIntent),
            hypervisor: Health::Good,
            storage: Health::Good,
            empty_since: None,
            farewell: None,
        }
    }

    pub fn step(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Tick => {}
            Event::Answer(answer) => self.answered(now, answer, &mut out),
            Event::Listed { id, found } => self.listed(now, id, found, &mut out),
            Event::Changed => self.stale = true,
            Event::Domains(domains) => self.domains(now, &domains, &mut out),
            Event::Domain { vm, is } => self.domain(vm, is, now),
            Event::Called { id, vm, end } => self.called(now, id, vm, end, &mut out),
            Event::WatchdogOpen(kind) => self.opened(kind),
            Event::WatchdogUnusable => self.excuse(now, &mut out),
            Event::Storage(health) => self.storage = health,
            Event::HostLeaves(farewell) => self.farewell = self.farewell.or(Some((farewell, now, None))),
        }
        self.act(now, &mut out);
        out
    }

    /// `t_send` of the last renewal that succeeded.
    pub fn renewed(&self) -> Option<Now> {
        self.renewed
    }

    pub fn epoch(&self) -> Option<Epoch> {
        (self.stage == Stage::Live).then_some(self.epoch)
    }

    fn id(&mut self) -> TxnId {
        self.next += 1;
        TxnId(self.next)
    }

    fn age_ms(&self, now: Now, then: Now) -> u64 {
        match self.weak {
            Some(Weakness::BoottimeOnly) => now.boottime_ms.saturating_sub(then.boottime_ms),
            _ => now.longest_since(then),
        }
    }

    /// May a start that was asked for at `then` still begin?
    fn fresh(&self, now: Now, then: Option<Now>) -> bool {
        match self.weak {
            Some(Weakness::StartLate) => true,
            Some(Weakness::BoottimeOnly) => then.is_some_and(|then| self.age_ms(now, then) < self.timers.start_window_ms),
            _ => life::may_start(&self.timers, now, then),
        }
    }

    fn answered(&mut self, now: Now, answer: Answer, out: &mut Vec<Action>) {
        self.revision = self.revision.max(answer.revision);
        match (self.stage, self.renewing) {
            (Stage::Joining(id, _), _) if id == answer.id => return self.joined(&answer),
            (Stage::Closing(id, _), _) if id == answer.id => return self.closed(&answer, out),
            (_, Some((id, sent))) if id == answer.id => return self.renewal(now, sent, answer, out),
            _ => {}
        }
        match self.arming {
            Arming::Writing(_, id, _) if id == answer.id => return self.armed(),
            Arming::Erasing(_, id, _) if id == answer.id => return self.disarmed(&answer, out),
            Arming::Excusing(id, _) if id == answer.id => return self.excused(),
            _ => {}
        }
        if let Some((_, _, goodbye)) = &mut self.farewell
            && goodbye.is_some_and(|(id, _)| id == answer.id)
        {
            // Told when it succeeded; else it is told again.
            *goodbye = matches!(answer.outcome, Outcome::Done).then_some((TxnId(0), now));
            return;
        }
        self.vm_answered(now, &answer, out);
    }

    fn listed(&mut self, now: Now, id: u64, found: Option<(Revision, Vec<Entry>)>, out: &mut Vec<Action>) {
        let Some((_, _, at_least)) = self.listing.filter(|(asked, ..)| *asked == id) else { return };
        self.listing = None;
        self.listed = Some(now);
        let Some((revision, entries)) = found.filter(|(revision, _)| *revision >= at_least) else { return };
        self.stale = false;
        self.revision = self.revision.max(revision);
        self.learn(&entries);
        if self.stage == Stage::Reading {
            self.try_join(now, &entries, out);
        }
    }

    fn act(&mut self, now: Now, out: &mut Vec<Action>) {
        self.ask(now, out);
        match self.stage {
            Stage::Joining(_, sent) if self.age_ms(now, sent) > ANSWER_MS => self.stage = Stage::Reading,
            Stage::Closing(_, sent) if self.age_ms(now, sent) > ANSWER_MS => self.stage = Stage::Live,
            Stage::Live => {
                self.renew(now, out);
                self.arm_or_disarm(now, out);
                self.act_on_vms(now, out);
                self.say_goodbye(now, out);
            }
            Stage::Reading if self.farewell.is_some() => out.extend(self.farewell.map(|(farewell, ..)| Action::Power(farewell))),
            Stage::Reading | Stage::Joining(..) | Stage::Closing(..) | Stage::Ended => {}
        }
    }

    /// Keeps reading: orders from the store, domains from libvirt.
    fn ask(&mut self, now: Now, out: &mut Vec<Action>) {
        let due = |at: Option<Now>, every: u64| at.is_none_or(|at| now.longest_since(at) >= every);
        if self.listing.is_some_and(|(_, at, _)| now.longest_since(at) > ANSWER_MS) {
            self.listing = None;
        }
        let again = if self.stage == Stage::Live { LIST_EVERY_MS } else { self.timers.tick_ms };
        if self.listing.is_none() && (self.stale && due(self.listed, 100) || due(self.listed, again)) {
            self.next += 1;
            self.listing = Some((self.next, now, self.revision));
            out.push(Action::List(self.next));
        }
        if due(self.domains_asked, DOMAINS_EVERY_MS) {
            self.domains_asked = Some(now);
            if std::mem::take(&mut self.open_intents) {
                out.push(Action::RestartLibvirt);
            }
            out.push(Action::ListDomains);
        }
        let late = self.domains_heard.is_some_and(|at| now.longest_since(at) > 2 * DOMAINS_EVERY_MS);
        self.hypervisor = if late { Health::Bad } else { Health::Good };
    }

    fn armed_record(&self, kind: WatchdogKind) -> Armed {
        Armed { pet_ms: self.timers.pet_ms, watchdog_ms: self.timers.watchdog_ms, kind }
    }

    fn owns_something(&self) -> bool {
        self.vms.values().any(vms::Local::is_ours)
    }

    fn learn(&mut self, entries: &[Entry]) {
        use super::record::Value;
        let mut known = Known::default();
        let mut orders = BTreeMap::new();
        for Entry { key, value, revision } in entries {
            match (key, value) {
                (Key::Epoch(_), Value::Epoch(record)) => known.epoch = Some((*record, *revision)),
                (Key::Fence(_, epoch), _) => drop(known.fenced.insert(*epoch)),
                (Key::Confirmed(_, epoch), _) => drop(known.confirmed.insert(*epoch)),
                (Key::Armed(_, epoch), Value::Armed(armed)) => drop(known.armed.insert(*epoch, *armed)),
                (Key::Unusable(_, epoch), _) => drop(known.unusable.insert(*epoch)),
                (Key::ArmWanted(_), _) => known.arm_wanted = true,
                (Key::Disarm, Value::Disarm(mode)) => known.disarm = Some(*mode),
                (Key::Order(_, vm), Value::Order(order)) => {
                    orders.insert(*vm, (*order, *revision));
                }
                (Key::Waiting(_), _) => known.waiting = true,
                _ => {}
            }
        }
        self.known = known;
        // Those of an epoch before this one are over, whatever they say.
        if self.weak != Some(Weakness::OldOrders) {
            orders.retain(|_, (order, _)| order.epoch == self.epoch);
        }
        self.take_orders(&orders);
    }
}
