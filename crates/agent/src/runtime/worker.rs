//! One VM's worker: look, decide, act, report; then sleep until something happens.
//!
//! All that it knows is in [`State`], and all of that which must survive is in `Seen` in the store. It makes one call at a
//! time, so libvirt never gets two for the same VM from us.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use vmkeep_core::vm::{self, Act, Decision, DomainNow, HostPhase, Situation, Turn, Why};
use vmkeep_store::{keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::event::Level;
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause, Observed, Rest, Seen};
use vmkeep_types::order::Order;
use vmkeep_types::record::{Leaving, PowerWish, VmOrigin};

use super::apply::{self, NotStarted};
use super::clock::boottime_ms;
use super::guest_clock;
use super::node::Node;
use super::reboots::Reboots;
use super::remove;
use super::report::State;
use crate::hypervisor::{BY_HOST, HvError, HvEvent, Lifecycle};

/// Looks without a reason, to find what no event told: `virsh setmem --config` changes a description silently.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Decisions in a row before the worker lets others have the thread and looks at its inbox again.
const ACTS_IN_A_ROW: u32 = 20;
/// Between a panic and the next worker: what broke the first may well break the second.
const PANIC_REST: Duration = Duration::from_secs(5);
/// The wait for the right to start doubles so often: 16 s at the most, after which a store has its breath back.
const NOT_NOW_DOUBLINGS_MAX: u32 = 4;
/// Events kept for a busy worker; older ones are dropped, because a look finds out the same.
const INBOX_EVENTS_MAX: usize = 64;
/// Callers that wait for one look.
const LOOKERS_MAX: usize = 64;

/// What waits for a worker.
pub struct Mailbox {
    inbox: Mutex<Inbox>,
    notify: Notify,
}

struct Inbox {
    order: Option<Order>,
    events: Vec<HvEvent>,
    retired: bool,
    poked: bool,
    /// They wait for the next look.
    lookers: Vec<oneshot::Sender<()>>,
    /// The host slept.
    slept: bool,
}

impl Mailbox {
    pub fn new(order: Order) -> Self {
        let inbox = Inbox { order: Some(order), events: Vec::new(), retired: false, poked: false, lookers: Vec::new(), slept: false };
        Self { inbox: Mutex::new(inbox), notify: Notify::new() }
    }

    pub fn order(&self, order: Order) {
        self.with(|inbox| inbox.order = Some(order));
    }

    /// An order from before, unless a newer one came.
    fn order_again(&self, order: Order) {
        self.with(|inbox| inbox.order = inbox.order.take().or(Some(order)));
    }

    fn vm(&self) -> Option<VmId> {
        self.inbox.lock().expect("no panic holds this lock").order.as_ref().map(|order| order.vm)
    }

    pub fn event(&self, event: HvEvent) {
        self.with(|inbox| {
            if inbox.events.len() < INBOX_EVENTS_MAX {
                inbox.events.push(event);
            }
        });
    }

    pub fn poke(&self) {
        self.with(|inbox| inbox.poked = true);
    }

    /// Like [`Self::poke`]; the answer comes when it has looked and reported. A worker that ends gives none.
    pub fn look(&self) -> oneshot::Receiver<()> {
        let (looker, looked) = oneshot::channel();
        self.with(|inbox| {
            inbox.poked = true;
            // So many wait for the same look that one more may ask again.
            if inbox.lookers.len() < LOOKERS_MAX {
                inbox.lookers.push(looker);
            }
        });
        looked
    }

    /// The host slept: its guests have missed the time.
    pub fn slept(&self) {
        self.with(|inbox| inbox.slept = true);
    }

    /// The order is gone: the worker ends, the domain stays as it is.
    pub fn retire(&self) {
        self.with(|inbox| inbox.retired = true);
    }

    fn with(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox.lock().expect("no panic holds this lock"));
        self.notify.notify_one();
    }

    fn take(&self) -> Inbox {
        let mut inbox = self.inbox.lock().expect("no panic holds this lock");
        let retired = inbox.retired;
        let (poked, slept) = (std::mem::take(&mut inbox.poked), std::mem::take(&mut inbox.slept));
        let lookers = std::mem::take(&mut inbox.lookers);
        Inbox { order: inbox.order.take(), events: std::mem::take(&mut inbox.events), retired, poked, lookers, slept }
    }
}

/// [`run`], begun anew from the store when it panics: the VM goes on meanwhile, and nobody else would look after it.
pub async fn keep(node: Arc<Node>, mailbox: Arc<Mailbox>, mut seen: Option<Seen>, stop: CancellationToken) {
    let Some(id) = mailbox.vm() else { return };
    loop {
        let working = run(node.clone(), mailbox.clone(), seen.take(), stop.clone());
        if AssertUnwindSafe(working).catch_unwind().await.is_ok() {
            return;
        }
        tracing::error!(vm = %id, "its worker panicked; a new one takes over");
        let Some(order) = order_after_panic(&node, id, &stop).await else { return };
        seen = typed::get_json(node.store.as_ref(), &keys::seen(&node.name, id)).await.ok().flatten().map(|stored| stored.value);
        mailbox.order_again(order);
    }
}

/// None: it is gone, or the agent stops.
async fn order_after_panic(node: &Node, id: VmId, stop: &CancellationToken) -> Option<Order> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(PANIC_REST) => {}
        }
        match typed::get_json::<Order>(node.store.as_ref(), &keys::order(&node.name, id)).await {
            Ok(order) => return order.map(|stored| stored.value),
            Err(error) => tracing::warn!(vm = %id, %error, "its order cannot be read"),
        }
    }
}

/// Works for one VM until its order is gone or the agent stops.
pub(super) async fn run(node: Arc<Node>, mailbox: Arc<Mailbox>, seen: Option<Seen>, stop: CancellationToken) {
    let first = mailbox.take();
    let Some(order) = first.order else { return };
    let id = order.vm;
    let mut state = State::new(order, seen, jiff::Timestamp::now());
    let mut phase = node.going_down.subscribe();
    let mut inspect = true;
    loop {
        let inbox = mailbox.take();
        if inbox.retired {
            node.board.forget(id);
            return;
        }
        inspect |= inbox.poked;
        if let Some(order) = inbox.order {
            inspect |= state.take_order(order);
        }
        node.board.note_order(id, &state.order.spec);
        if was_resumed(&state, &inbox.events) || (inbox.slept && runs(&state)) {
            guest_clock::set(&node, id).await;
        }
        inspect |= take_events(&node, &mut state, inbox.events);
        let wake = settle(&node, &mut state, std::mem::take(&mut inspect)).await;
        // Who does not wait any more needs no answer.
        for looker in inbox.lookers {
            let _ = looker.send(());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = mailbox.notify.notified() => {}
            _ = phase.changed() => {}
            () = tokio::time::sleep(wake.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) => inspect = wake.is_none_or(|w| w >= LOOK_EVERY),
        }
    }
}

/// Decides and acts until there is nothing to do now; how long it may sleep.
async fn settle(node: &Node, state: &mut State, inspect: bool) -> Option<Duration> {
    for _ in 0..ACTS_IN_A_ROW {
        look(node, state).await;
        autostart_off(node, state).await;
        let decision = decide(node, state);
        note_boot_progress(node, state, &decision);
        let started_outside = |rest: &Option<Rest>| *rest == Some(Rest::StartedOutside);
        if started_outside(&decision.memory.rest) && !started_outside(&state.memory.rest) {
            state.event(Level::Info, "vm.started-outside", "started by virsh or another tool");
        }
        state.memory = decision.memory.clone();
        state.doing = super::report::doing(&decision, &state.memory, &state.order);
        if decision.act == Act::Nothing {
            if decision.why == Why::AsWished && (inspect || state.also_open.is_none()) {
                // Somebody waits for the word that it runs; the comparison can wait for that.
                super::report::write(node, state).await;
                apply::inspect(node, state).await;
            }
            super::report::write(node, state).await;
            return decision.wake_at_ms.map(|at| Duration::from_millis(at.saturating_sub(boottime_ms())));
        }
        state.compared = None;
        if !act(node, state, decision.act).await {
            super::report::write(node, state).await;
            return Some(again_after(state.not_now));
        }
    }
    Some(Duration::ZERO)
}

/// A store that is slow must not hear of all VMs again at once.
fn again_after(not_now: u32) -> Duration {
    Duration::from_millis(vm::LOOK_AGAIN_MS << not_now.min(NOT_NOW_DOUBLINGS_MAX))
}

/// libvirt's word on the domain; without an answer it is unknown.
async fn look(node: &Node, state: &mut State) {
    let domain = match node.hv.find(state.order.vm).await {
        Ok(brief) => {
            let exit = match (brief.exit, state.exit_hint) {
                (Some(ExitCause::Shutdown), _) if state.told_to_quit => Some(ExitCause::Killed),
                (None | Some(ExitCause::Unknown), Some(hint)) => Some(hint),
                (told, _) => told,
            };
            state.autostart = brief.autostart;
            state.paused = brief.paused;
            state.persistent = brief.persistent;
            state.name_there = Some(brief.name);
            state.ours = crate::domain::marks(brief.metadata.as_deref(), state.order.vm);
            Observed::Known(DomainNow { state: brief.state, exit })
        }
        Err(HvError::NoDomain(_)) => {
            state.ours = true;
            state.autostart = false;
            state.paused = None;
            state.name_there = None;
            Observed::Absent
        }
        Err(error) => {
            tracing::debug!(vm = %state.order.vm, %error, "cannot look at the domain");
            Observed::Unknown
        }
    };
    if domain.known().is_some_and(|d| d.state.is_live()) {
        state.exit_hint = None;
    }
    state.saw(domain, jiff::Timestamp::now());
}

/// Who starts a VM of ours is decided here: libvirt would start it over a hold, without a claim.
async fn autostart_off(node: &Node, state: &mut State) {
    if !state.autostart || !state.ours || state.order.leaving.is_some() || state.order.moving.is_some() {
        return;
    }
    match node.hv.set_autostart(state.order.vm, false).await {
        Ok(()) => {
            state.autostart = false;
            state.event(Level::Warn, "vm.autostart", "libvirt's autostart was switched off; `run` and `start` say when it is started");
        }
        Err(error) => tracing::warn!(vm = %state.order.spec.name, %error, "cannot switch libvirt's autostart off"),
    }
}

fn situation<'a>(node: &'a Node, state: &'a State) -> Situation<'a> {
    let now_ms = boottime_ms();
    let down = *node.going_down.borrow();
    let host = if down.is_some_and(|order| state.order.spec.start.order >= order) { HostPhase::GoingDown } else { HostPhase::Up };
    Situation {
        order: &state.order,
        domain: state.domain.clone(),
        memory: state.memory.clone(),
        host,
        turn: if down.is_some() { Turn::Wait } else { node.board.turn(state.order.vm, now_ms) },
        boot_id: &node.boot_id,
        now_ms,
        now: jiff::Timestamp::now(),
    }
}

fn decide(node: &Node, state: &State) -> Decision {
    vm::decide(&situation(node, state))
}

fn note_boot_progress(node: &Node, state: &State, decision: &Decision) {
    let id = state.order.vm;
    let live = state.domain.known().is_some_and(|d| d.state.is_live());
    match decision.why {
        Why::ToStart | Why::WaitingTurn | Why::Unknown => {}
        _ if live => node.board.running(id, boottime_ms()),
        _ => node.board.out_of_the_way(id),
    }
}

/// Carries out one decision; false when the same decision would only fail again right now.
async fn act(node: &Node, state: &mut State, act: Act) -> bool {
    let id = state.order.vm;
    let foreign = !state.ours && state.order.origin == VmOrigin::Created;
    // A release that was cut off has removed our mark already.
    if foreign && act != Act::Remove(Leaving::Release) {
        let hint = "take it over with `vmkeep vm adopt`, or remove it with virsh";
        state.fail(Error::new(Code::Conflict, format!("libvirt has a domain with the UUID {id} that vmkeep did not make")).hint(hint));
        return false;
    }
    state.asked_stop |= matches!(act, Act::AskDown | Act::Kill);
    match act {
        Act::Nothing => true,
        Act::Apply => {
            let outcome = apply::apply(node, state).await;
            let mut memory = state.memory.clone();
            match outcome {
                Ok(()) => vm::applied(&mut memory, &state.order),
                Err(error) => {
                    vm::apply_failed(&situation(node, state), &mut memory);
                    state.fail(error);
                }
            }
            state.memory = memory;
            true
        }
        Act::Start => start(node, state).await == Tried::Yes,
        Act::AskDown => quiet(state, node.hv.shutdown(id).await, "ask the guest to shut down"),
        Act::Kill => quiet(state, node.hv.destroy(id).await, "kill the domain"),
        Act::Remove(leaving) => match remove::remove(node, state, leaving).await {
            Ok(()) => {
                state.memory.removed = true;
                true
            }
            Err(error) => {
                state.fail(error);
                false
            }
        },
    }
}

/// A domain that went away or changed state by itself in between is not an error: the next look sees it.
fn quiet(state: &mut State, result: Result<(), HvError>, what: &str) -> bool {
    match result {
        Ok(()) => true,
        Err(HvError::NoDomain(_) | HvError::WrongState(_)) => false,
        Err(error) => {
            state.fail(Error::refused(format!("cannot {what}: {error}")));
            false
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Yes,
    NotNow,
}

async fn start(node: &Node, state: &mut State) -> Tried {
    let _slot = node.starts.acquire().await.expect("the semaphore is never closed");
    let after_failure = state.memory.rest == Some(Rest::Failed) || state.memory.rest == Some(Rest::GuestOff);
    let why = state.memory.last_failure.clone().unwrap_or_default();
    match apply::start(node, state).await {
        Ok(()) => {
            state.not_now = 0;
            state.asked_stop = false;
            state.told_to_quit = false;
            let mut memory = state.memory.clone();
            vm::started(&mut memory, &state.order);
            state.memory = memory;
            if after_failure {
                state.restarts.count += 1;
                state.restarts.last_reason = Some(why.clone());
                state.restarts.last_at = Some(jiff::Timestamp::now());
                state.event(Level::Warn, "vm.restarted", format!("started again: {why}"));
            } else {
                state.event(Level::Info, "vm.started", "started");
            }
        }
        Err(NotStarted::NotNow(error)) => {
            state.not_now = state.not_now.saturating_add(1);
            if state.error.as_ref() != Some(&error) {
                state.fail(error);
            }
            return Tried::NotNow;
        }
        Err(NotStarted::Failed(error)) => {
            let mut memory = state.memory.clone();
            vm::start_failed(&situation(node, state), &mut memory, &error.message);
            state.memory = memory;
            state.event(Level::Error, "vm.start-failed", error.message.clone());
            state.fail(error);
        }
    }
    Tried::Yes
}

fn runs(state: &State) -> bool {
    state.ours && state.domain.known().is_some_and(|d| d.state == DomainState::Running)
}

/// Paused when it was last seen, and running since: by us, by virsh, or after the disk was full.
fn was_resumed(state: &State, events: &[HvEvent]) -> bool {
    let paused = state.domain.known().is_some_and(|d| matches!(d.state, DomainState::Paused | DomainState::Suspended));
    paused && events.iter().any(|event| matches!(event, HvEvent::Lifecycle { what: Lifecycle::Resumed, .. }))
}

/// What events tell beyond "look again". True when the stored description may have changed.
fn take_events(node: &Node, state: &mut State, events: Vec<HvEvent>) -> bool {
    let mut described_anew = false;
    for event in events {
        match event {
            HvEvent::Lifecycle { what: Lifecycle::Started, .. } => state.told_to_quit = false,
            HvEvent::Lifecycle { what: Lifecycle::ShuttingDown, detail, .. } => state.told_to_quit = detail == BY_HOST,
            HvEvent::Lifecycle { what: Lifecycle::Stopped(cause), detail, .. } => {
                let cause = if cause == ExitCause::Shutdown && state.told_to_quit { ExitCause::Killed } else { cause };
                state.exit_hint = Some(cause);
                // Its end here is told by the migration.
                if cause != ExitCause::Migrated || state.order.moving.is_none() {
                    told_stop(state, cause, &detail);
                }
            }
            HvEvent::Lifecycle { what: Lifecycle::Defined | Lifecycle::Undefined, .. } => described_anew = true,
            HvEvent::Lifecycle { what: Lifecycle::Crashed, detail, .. } => {
                state.event(Level::Error, "vm.panicked", format!("the guest panicked: {detail}"))
            }
            HvEvent::Lifecycle { .. } => {}
            HvEvent::PowerdownAsked(_) => vm::asked_down_outside(&mut state.memory, boottime_ms()),
            HvEvent::Rebooted(_) => {
                // libvirt asks for a power-down on the way to a reboot: that was no stop.
                state.memory.asked_outside_ms = None;
                if let Some(count) = state.reboots.another(boottime_ms()) {
                    state.event(Reboots::level(count), "vm.rebooted", Reboots::words(count));
                }
            }
            HvEvent::Watchdog(_, action) => state.event(Level::Warn, "vm.watchdog", format!("the guest's watchdog fired: {action}")),
            HvEvent::IoError { device, reason, .. } => {
                let disk = device.strip_prefix("ua-disk-").map_or_else(|| device.clone(), |disk| format!("disk {disk}"));
                state.event(Level::Error, "vm.io-error", format!("I/O error on {disk}: {reason}"));
            }
            HvEvent::Agent { connected: crate::hypervisor::AgentLink::Up, .. } => node.board.agent_answers(state.order.vm, boottime_ms()),
            HvEvent::Agent { .. } => {}
            HvEvent::DeviceRemoved { .. } => described_anew = true,
            HvEvent::Connected | HvEvent::Disconnected => {}
        }
    }
    described_anew
}

fn told_stop(state: &mut State, cause: ExitCause, detail: &str) {
    let ordered = state.asked_stop;
    let by = state.order.power.held.as_ref().map(|hold| format!(" (asked by {})", hold.by)).unwrap_or_default();
    let name = &state.order.spec.name;
    let (level, code, message) = match cause {
        ExitCause::Shutdown if ordered => (Level::Info, "vm.stopped", format!("stopped{by}")),
        ExitCause::Destroyed if ordered && state.order.power.want == PowerWish::Killed => (Level::Warn, "vm.killed", format!("killed{by}")),
        ExitCause::Destroyed if ordered => (Level::Warn, "vm.killed", format!("killed: the guest did not shut down in time{by}")),
        ExitCause::Shutdown => (Level::Info, "vm.powered-off", "the guest powered itself off".to_owned()),
        ExitCause::Destroyed => (Level::Warn, "vm.stopped-outside", "destroyed by virsh or another tool".to_owned()),
        ExitCause::Killed if ordered => (Level::Info, "vm.stopped", format!("stopped{by}")),
        ExitCause::Killed => (Level::Error, "vm.crashed", "QEMU was killed: it was told to quit, but not by its guest".to_owned()),
        ExitCause::Crashed | ExitCause::Failed => {
            (Level::Error, "vm.crashed", format!("QEMU died ({detail}); `vmkeep vm logs {name} --source qemu` has its last words"))
        }
        ExitCause::Migrated | ExitCause::Saved | ExitCause::Unknown => (Level::Warn, "vm.gone", format!("stopped: {detail}")),
    };
    if code == "vm.killed" && state.order.power.want == PowerWish::Off {
        state.step("killed: the guest did not shut down in time");
    }
    state.event(level, code, message);
}
