//! What a worker knows of its VM, and how it is written down: `Seen` and events, in one transaction, only when they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use vmkeep_core::vm::{Act, Decision, DomainNow, Why};
use vmkeep_store::{Compare, Held, Op, Txn, keys, typed};
use vmkeep_types::addresses::Form;
use vmkeep_types::error::Error;
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::{Revision, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, ExitCause, FieldChange, Observed, PauseCause, QemuFacts, RestartCount, Seen, VmMemory, VolumeSeen};
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::order::Order;
use vmkeep_types::record::{PowerWish, VmChoices};

use super::clock::boottime_ms;
use super::node::Node;
use super::reboots::Reboots;

/// Events that wait for the store; more are dropped, oldest first.
const EVENTS_MAX: usize = 100;
/// Between tries while the store does not take a report.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Tries before the worker goes on with its VM and reports later.
const STORE_TRIES: u32 = 3;

pub struct State {
    pub order: Order,
    pub memory: VmMemory,
    pub domain: Observed<DomainNow>,
    pub paused: Option<PauseCause>,
    /// Addresses that DHCP keeps for its NICs here.
    /// DHCP is to be told of its NICs: a second or two, because libvirt loads all firewall rules of the network anew, so it is done
    /// when the start has been reported. A guest that was faster keeps what DHCP gave it.
    pub addresses_due: bool,
    pub addresses: BTreeMap<Name, IpAddr>,
    /// MACs of NICs that the wish let go of, until DHCP has forgotten them.
    pub gone_macs: BTreeSet<String>,
    /// The domain carries our metadata for this VM (or does not exist).
    pub ours: bool,
    /// Its name in libvirt, which a rename may have left behind.
    pub name_there: Option<String>,
    /// From the last stop event, for a libvirt that forgot.
    pub exit_hint: Option<ExitCause>,
    /// QEMU was told to quit and its guest was not asked, in the run that ends or has ended.
    pub told_to_quit: bool,
    /// libvirt would start it by itself at its own start.
    pub autostart: bool,
    /// We asked the guest to stop, or killed it; what its stop event is told as.
    pub asked_stop: bool,
    pub doing: Option<Doing>,
    /// How often the right to start was not had, one time after the other.
    pub not_now: u32,
    pub error: Option<Error>,
    pub steps: Vec<String>,
    pub choices: VmChoices,
    pub pending: Vec<FieldChange>,
    pub drift: Vec<FieldChange>,
    /// The drift that an event has told of last.
    pub told_drift: Vec<FieldChange>,
    /// Changes of the running domain that were made, as long as it does not show them: a guest takes its time.
    pub asked_live: Vec<FieldChange>,
    /// libvirt keeps its description when it is off.
    pub persistent: bool,
    pub conflicts: Vec<FieldChange>,
    pub qemu: Option<QemuFacts>,
    pub volumes: BTreeMap<VolumeId, VolumeSeen>,
    pub also_open: Option<BTreeSet<String>>,
    /// What the last comparison with the wish went by; None: something was done since, or it was not compared.
    pub compared: Option<u64>,
    pub restarts: RestartCount,
    pub warnings: Vec<String>,
    pub reboots: Reboots,
    since: jiff::Timestamp,
    events: Vec<Event>,
    written: Option<Seen>,
    event_sequence: u32,
}

impl State {
    pub fn new(order: Order, seen: Option<Seen>, now: jiff::Timestamp) -> Self {
        let choices = order.choices.clone();
        let mut state = Self {
            order,
            memory: VmMemory::default(),
            domain: Observed::Unknown,
            paused: None,
            addresses_due: false,
            addresses: BTreeMap::new(),
            gone_macs: BTreeSet::new(),
            ours: true,
            name_there: None,
            exit_hint: None,
            told_to_quit: false,
            autostart: false,
            asked_stop: false,
            doing: None,
            not_now: 0,
            error: None,
            steps: Vec::new(),
            choices,
            pending: Vec::new(),
            drift: Vec::new(),
            told_drift: Vec::new(),
            asked_live: Vec::new(),
            persistent: true,
            conflicts: Vec::new(),
            qemu: None,
            volumes: BTreeMap::new(),
            also_open: None,
            compared: None,
            restarts: RestartCount::default(),
            warnings: Vec::new(),
            reboots: Reboots::default(),
            since: now,
            events: Vec::new(),
            written: None,
            event_sequence: 0,
        };
        // Whatever life or generation it was: a disk that was made here once is not made again.
        state.volumes = seen.as_ref().map(|seen| seen.volumes.clone()).unwrap_or_default();
        let generation = state.order.generation;
        match (seen.filter(|seen| seen.generation >= generation), state.order.handed.clone()) {
            (Some(seen), _) => state.recall(seen),
            (None, Some(handed)) => {
                state.memory = handed.memory;
                state.restarts = handed.restarts;
            }
            (None, None) => {}
        }
        state
    }

    /// Goes on from what was reported before a restart of the agent.
    fn recall(&mut self, seen: Seen) {
        self.memory = seen.memory.clone();
        self.error.clone_from(&seen.error);
        self.steps.clone_from(&seen.steps);
        self.pending.clone_from(&seen.pending);
        self.told_drift.clone_from(&seen.drift);
        self.qemu.clone_from(&seen.qemu);
        self.addresses.clone_from(&seen.addresses);
        self.restarts = seen.restarts.clone();
        self.warnings.clone_from(&seen.warnings);
        self.since = seen.since;
        self.written = Some(seen);
    }

    /// A newer order; true when the domain should be compared with it.
    pub fn take_order(&mut self, order: Order) -> bool {
        self.not_now = 0;
        self.compared = None;
        let new_wish = order.spec_revision != self.order.spec_revision;
        let new_command = order.power.cycle != self.order.power.cycle;
        if new_wish || new_command {
            self.steps.clear();
            self.error = None;
        }
        if new_command {
            self.restarts = RestartCount::default();
        }
        let through = self.order.moving.is_some() && order.moving.is_none();
        let stay: BTreeSet<&String> = order.choices.macs.values().collect();
        self.gone_macs.extend(self.order.choices.macs.values().filter(|mac| !stay.contains(mac)).cloned());
        self.choices = order.choices.clone();
        self.order = order;
        new_wish || through
    }

    pub fn saw(&mut self, domain: Observed<DomainNow>, now: jiff::Timestamp) {
        if domain.known().map(|d| d.state) != self.domain.known().map(|d| d.state) && self.domain != Observed::Unknown {
            self.since = now;
        }
        let off = match &domain {
            Observed::Known(d) => !d.state.is_live(),
            Observed::Absent => true,
            Observed::Unknown => false,
        };
        if off {
            // What waits for a cold start is what the next start takes.
            self.pending.clear();
        }
        self.domain = domain;
    }

    pub fn step(&mut self, text: impl Into<String>) {
        self.steps.push(text.into());
    }

    pub fn fail(&mut self, error: Error) {
        tracing::warn!(vm = %self.order.spec.name, error = %error.message, "failed");
        self.error = Some(error);
    }

    pub fn event(&mut self, level: Level, code: &str, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(vm = %self.order.spec.name, code, message);
        if self.events.len() >= EVENTS_MAX {
            self.events.remove(0);
        }
        let resource = ResourceRef {
            kind: "vm".into(),
            project: self.order.project.clone(),
            name: self.order.spec.name.clone(),
            uid: self.order.vm.0,
        };
        self.events.push(Event { at: jiff::Timestamp::now(), resource, level, code: code.into(), message, node: None });
    }

    /// The report as it would be written now.
    pub fn seen(&self, node: &Node) -> Seen {
        Seen {
            vm: self.order.vm,
            generation: self.order.generation,
            epoch: node.epoch(),
            spec_revision: self.order.spec_revision,
            power_cycle: self.memory.power_cycle,
            ordered_cycle: self.order.power.cycle,
            domain: match self.domain {
                Observed::Absent => Observed::Absent,
                Observed::Unknown => Observed::Unknown,
                Observed::Known(d) => Observed::Known(d.state),
            },
            paused: self.paused,
            addresses: self.addresses.clone(),
            doing: self.doing.clone(),
            held: match &self.memory.rest {
                Some(vmkeep_types::observed::Rest::Held(hold)) => Some(hold.clone()),
                _ => None,
            },
            error: self.error.clone(),
            steps: self.steps.clone(),
            choices: self.told_choices(),
            pending: self.pending.clone(),
            drift: self.drift.clone(),
            conflicts: self.conflicts.clone(),
            qemu: self.qemu.clone(),
            volumes: self.volumes.clone(),
            also_open: self.also_open.clone(),
            restarts: self.restarts.clone(),
            memory: self.memory.clone(),
            since: self.since,
            warnings: self.warnings.clone(),
        }
    }

    /// What the order does not say already, in the form that its reader's version reads: with 20 000 VMs, what is said twice fills the store.
    /// Nothing is no news to any leader; older ones compare it anew each time.
    fn told_choices(&self) -> VmChoices {
        let form = if self.order.level >= keys::LEVEL_SHORT { Form::Short } else { Form::Long };
        let choices = self.choices.clone();
        let told = VmChoices { addresses: choices.addresses.in_form(form), ..choices };
        if form == Form::Short && told == self.order.choices { VmChoices::default() } else { told }
    }

    /// The state "unknown", as it stands before a call that changes the domain.
    pub fn unknown_op(&mut self, node: &Node, doing: Doing) -> Op {
        let seen = Seen { domain: Observed::Unknown, doing: Some(doing), ..self.seen(node) };
        let op = typed::put(keys::seen(&node.name, self.order.vm), &seen);
        self.written = Some(seen);
        op
    }

    /// The wish it has taken up.
    pub fn wish(&self) -> Revision {
        self.order.spec_revision
    }
}

/// Writes the report and the events if there is news. A store that does not answer delays the report, never the VM.
pub async fn write(node: &Node, state: &mut State) {
    let seen = state.seen(node);
    if state.written.as_ref() == Some(&seen) && state.events.is_empty() {
        return;
    }
    // An order that was taken back took its report along: one that comes late would stay for ever.
    let ordered = Compare::Present(keys::order(&node.name, state.order.vm));
    let mut events = Txn::default();
    for event in &state.events {
        state.event_sequence = state.event_sequence.wrapping_add(1);
        let stamp = format!("{:020}-{}-{:06}", event.at.as_nanosecond(), &state.order.vm.to_string()[..8], state.event_sequence);
        let event = Event { node: Some(node.name.clone()), ..event.clone() };
        events = events.then(typed::put(keys::node_event(&node.name, stamp), &event));
    }
    let mut txn = Txn::default().when(ordered).then(typed::put(keys::seen(&node.name, state.order.vm), &seen));
    txn.then.extend(events.then.iter().cloned());
    for _ in 0..STORE_TRIES {
        match node.store.txn(txn.clone()).await {
            // What happened is told all the same.
            Ok(outcome) if outcome.held == Held::No && !events.then.is_empty() => txn = events.clone(),
            Ok(_) => {
                state.written = Some(seen);
                state.events.clear();
                return;
            }
            Err(error) => {
                tracing::warn!(vm = %state.order.spec.name, %error, "the store does not take the report");
                tokio::time::sleep(STORE_AGAIN).await;
            }
        }
    }
}

/// A decision's reason as it is shown.
pub fn doing(decision: &Decision, memory: &VmMemory, order: &Order) -> Option<Doing> {
    let reason = || memory.last_failure.clone().unwrap_or_else(|| "it was down".into());
    match decision.why {
        Why::AsWished | Why::Unknown => None,
        // It failed and waits for another try: the error says so, and the domain is what it is.
        Why::ToApply if decision.act == Act::Nothing => None,
        Why::ToApply => Some(Doing::Preparing { what: "applying the wish".into() }),
        Why::ToStart => Some(Doing::Starting),
        Why::WaitingTurn => Some(Doing::Preparing { what: "waiting for earlier start orders".into() }),
        // Off, and so it stays; a start that is asked for now waits.
        Why::HostGoingDown if order.power.cycle > memory.power_cycle && order.power.want == PowerWish::On => {
            Some(Doing::Preparing { what: "waiting: this host is going down".into() })
        }
        Why::HostGoingDown => None,
        Why::Stopping { kill_at_ms } => Some(Doing::Stopping { kill_at: kill_at_ms.map(wall_clock) }),
        Why::Backoff { at_ms, attempt, max } => Some(Doing::Backoff { at: wall_clock(at_ms), attempt, max, reason: reason() }),
        Why::GaveUp { max } => Some(Doing::GaveUp { reason: format!("{} ({max} restarts are the limit)", reason()) }),
        Why::Leaving => Some(Doing::Deleting),
        Why::Moving { op } => Some(Doing::Moving { op }),
    }
}

/// A BOOTTIME as wall clock, to the second, so that the same moment reads the same at each report.
fn wall_clock(at_ms: u64) -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    let ahead_ms = i64::try_from(at_ms).unwrap_or(i64::MAX).saturating_sub(i64::try_from(boottime_ms()).unwrap_or(i64::MAX));
    let at = now.checked_add(jiff::SignedDuration::from_millis(ahead_ms)).unwrap_or(now);
    jiff::Timestamp::from_second((at.as_millisecond() + 500) / 1000).unwrap_or(at)
}
