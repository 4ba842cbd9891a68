//! What a node does next with one VM.
//!
//! ```text
//!            order (wish, power, generation)      domain (libvirt's word)      memory (what we did)
//!                               └──────────────┬──────────────┘────────────────────┘
//!                                        decide(situation)
//!                                              │
//!                    Decision { act, memory, doing, wake_at_ms }
//!                                              │
//!           runtime carries out `act`, notes its outcome with `started` / `start_failed` …, looks again
//! ```
//! The *intent* (on or off) is derived, never stored: a power cycle that was not carried out yet is a person's command and
//! wins; after it, why the VM rests decides together with the run policy. The table is in docs/concepts/run-policy.md.
//!
//! How it fails: a start that fails, or a QEMU that dies, counts as a failure; failures back off (1, 2, 4 … 60 s) and
//! `restart.max` of them within `restart.within` end in [`Doing`] `gave up` until a person starts it. An unknown domain
//! state is never acted upon.

use vmkeep_types::ids::OperationId;
use vmkeep_types::migration::{Moving, Travel};
use vmkeep_types::observed::{DomainState, ExitCause, Observed, Rest, StopFor, Stopping, VmMemory};
use vmkeep_types::order::Order;
use vmkeep_types::record::{Hold, Leaving, PowerWish};
use vmkeep_types::vm::RunPolicy;

/// First wait after a failure; doubled with each further one.
pub const BACKOFF_FIRST_MS: u64 = 1_000;
/// The longest wait: a VM whose disk came back should not lie down for long.
pub const BACKOFF_MAX_MS: u64 = 60_000;
/// A guest that ignores ACPI while it boots hears it once it is up.
pub const ASK_AGAIN_MS: u64 = 10_000;
/// A power-off longer than this after the guest was asked is its own.
pub const ASKED_MS_MAX: u64 = 300_000;
/// A wish that could not be applied is tried again after this.
pub const APPLY_AGAIN_MS: u64 = 15_000;
/// An unknown state is looked at again after this.
pub const LOOK_AGAIN_MS: u64 = 1_000;

/// The domain as the node sees it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainNow {
    pub state: DomainState,
    /// Why it is off; None while live or never started.
    pub exit: Option<ExitCause>,
}

/// Whose turn it is while the host boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Mine,
    /// Earlier start orders come first.
    Wait,
}

/// Whether the host takes starts at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPhase {
    Up,
    /// The host is going down: nothing starts, everything that runs is stopped.
    GoingDown,
}

/// Everything one decision is made from.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    pub order: &'a Order,
    pub domain: Observed<DomainNow>,
    pub memory: VmMemory,
    pub host: HostPhase,
    pub turn: Turn,
    pub boot_id: &'a str,
    /// CLOCK_BOOTTIME.
    pub now_ms: u64,
    /// Wall clock, for the hold that people read.
    pub now: jiff::Timestamp,
}

/// One thing to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Make volumes, seed, networks and the stored description match the wish; live changes too where it runs.
    Apply,
    /// Apply, claim, start.
    Start,
    /// Ask the guest to power down.
    AskDown,
    /// Pull the plug.
    Kill,
    /// Undefine, and with `Delete` also remove volumes, seed, NVRAM and TPM state.
    Remove(Leaving),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub act: Act,
    pub memory: VmMemory,
    pub why: Why,
    /// Look again at this BOOTTIME even if nothing happens.
    pub wake_at_ms: Option<u64>,
}

/// The reason, as data; words are made where they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    AsWished,
    Unknown,
    ToApply,
    ToStart,
    WaitingTurn,
    HostGoingDown,
    Stopping {
        kill_at_ms: Option<u64>,
    },
    Backoff {
        at_ms: u64,
        attempt: u32,
        max: u32,
    },
    GaveUp {
        max: u32,
    },
    Leaving,
    /// Hands off: it is sent to another node, or has just come from one.
    Moving {
        op: OperationId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    On,
    Off(Manner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Gently,
    AtOnce,
}

/// The next thing to do with one VM. Total: every situation has an answer.
pub fn decide(s: &Situation<'_>) -> Decision {
    let mut memory = s.memory.clone();
    let domain = match s.domain {
        Observed::Unknown => return Decision { act: Act::Nothing, memory, why: Why::Unknown, wake_at_ms: Some(s.now_ms + LOOK_AGAIN_MS) },
        Observed::Absent => None,
        Observed::Known(d) => Some(d),
    };
    note_boot(s, &mut memory);
    if let Some(moving) = s.order.moving {
        return on_its_way(s, memory, domain, moving);
    }
    note_exit(s, &mut memory, domain);
    if let Some(leaving) = s.order.leaving {
        return leave(s, memory, domain, leaving);
    }
    note_new_command(s, &mut memory);
    let live = domain.is_some_and(|d| d.state.is_live());
    note_life(s, &mut memory, live);
    if s.host == HostPhase::GoingDown {
        return going_down(s, memory, live);
    }
    match (intent(s, &memory), domain) {
        (Intent::On, Some(d)) if d.state == DomainState::Crashed => {
            fail(s, &mut memory, "the guest panicked");
            memory.alive = false;
            act(memory, Act::Kill, Why::ToStart)
        }
        (Intent::On, Some(_)) if live => {
            if let Some(stopping) = memory.stopping.take() {
                memory.called_off_ms = Some(stopping.asked_ms);
            }
            settle(s, memory)
        }
        (Intent::On, _) => start(s, memory),
        (Intent::Off(manner), _) if live => stop(s, memory, manner),
        (Intent::Off(_), _) => {
            memory.stopping = None;
            settle(s, memory)
        }
    }
}

fn act(memory: VmMemory, act: Act, why: Why) -> Decision {
    Decision { act, memory, why, wake_at_ms: None }
}

/// Nothing is done to a VM that is on its way, except that one that goes cold is shut down first. What happens to the guest
/// meanwhile is judged when it is over.
fn on_its_way(s: &Situation<'_>, mut memory: VmMemory, domain: Option<DomainNow>, moving: Moving) -> Decision {
    let live = domain.is_some_and(|d| d.state.is_live());
    if moving.travel == Travel::Off {
        memory.alive = live;
        if live {
            return stop(s, memory, Manner::Gently);
        }
        memory.stopping = None;
    }
    act(memory, Act::Nothing, Why::Moving { op: moving.op })
}

/// Another boot: times mean nothing any more, and what ran is down.
fn note_boot(s: &Situation<'_>, memory: &mut VmMemory) {
    if memory.boot_id == s.boot_id {
        return;
    }
    let first_look_ever = memory.boot_id.is_empty();
    s.boot_id.clone_into(&mut memory.boot_id);
    memory.stopping = None;
    memory.asked_outside_ms = None;
    memory.called_off_ms = None;
    memory.failures_ms.clear();
    memory.next_try_ms = None;
    memory.gave_up = false;
    if first_look_ever {
        return;
    }
    memory.alive = false;
    match memory.rest {
        Some(Rest::Held(_) | Rest::GuestOff) => {}
        None | Some(Rest::Failed | Rest::HostBoot | Rest::StartedOutside) => memory.rest = Some(Rest::HostBoot),
    }
}

/// It ran and now it does not: find out why.
fn note_exit(s: &Situation<'_>, memory: &mut VmMemory, domain: Option<DomainNow>) {
    let live = domain.is_some_and(|d| d.state.is_live());
    if live || !memory.alive {
        return;
    }
    memory.alive = false;
    let (asked, called_off) = (memory.asked_outside_ms.take(), memory.called_off_ms.take());
    let ordered = memory.stopping.take().is_some() || s.order.power.cycle > memory.power_cycle || s.order.leaving.is_some();
    if ordered {
        return;
    }
    match domain.and_then(|d| d.exit).unwrap_or(ExitCause::Unknown) {
        ExitCause::Shutdown if obeyed(s, asked) => memory.rest = Some(held_outside(s)),
        // It heard of a stop, and not that the stop was called off: it is started again.
        ExitCause::Shutdown if obeyed(s, called_off) => {}
        ExitCause::Shutdown => {
            memory.rest = Some(Rest::GuestOff);
            if s.order.spec.run == RunPolicy::Always {
                note_failure(s, memory, "the guest powered itself off");
            }
        }
        ExitCause::Destroyed | ExitCause::Saved | ExitCause::Migrated => memory.rest = Some(held_outside(s)),
        ExitCause::Crashed => fail(s, memory, "QEMU crashed or was killed"),
        ExitCause::Killed => fail(s, memory, "QEMU was killed"),
        ExitCause::Failed => fail(s, memory, "QEMU failed"),
        ExitCause::Unknown => fail(s, memory, "QEMU was gone"),
    }
}

/// A guest that was asked and went down within [`ASKED_MS_MAX`] obeyed.
fn obeyed(s: &Situation<'_>, asked_ms: Option<u64>) -> bool {
    asked_ms.is_some_and(|at| s.now_ms.saturating_sub(at) < ASKED_MS_MAX)
}

fn held_outside(s: &Situation<'_>) -> Rest {
    Rest::Held(Hold { by: "virsh".into(), at: s.now })
}

fn fail(s: &Situation<'_>, memory: &mut VmMemory, reason: &str) {
    memory.rest = Some(Rest::Failed);
    note_failure(s, memory, reason);
}

/// Counts a failure and sets when the next try is due.
fn note_failure(s: &Situation<'_>, memory: &mut VmMemory, reason: &str) {
    let limit = &s.order.spec.restart;
    let window_ms = limit.within.millis();
    memory.failures_ms.retain(|at| s.now_ms.saturating_sub(*at) < window_ms);
    memory.failures_ms.push(s.now_ms);
    memory.last_failure = Some(reason.to_owned());
    let count = u32::try_from(memory.failures_ms.len()).unwrap_or(u32::MAX);
    memory.gave_up = count > s.order.spec.restarts_max();
    memory.next_try_ms = Some(s.now_ms + backoff_ms(count));
}

/// 1, 2, 4 … 60 s.
pub fn backoff_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_FIRST_MS << doublings).min(BACKOFF_MAX_MS)
}

/// A person's new command clears what happened before. It stays new until it is carried out or failed, and only its own
/// failure can come in between, which ends it.
fn note_new_command(s: &Situation<'_>, memory: &mut VmMemory) {
    if s.order.power.cycle > memory.power_cycle {
        memory.rest = None;
        // A stop that virsh asked for before it, and that the guest passed over, is called off by it.
        memory.asked_outside_ms = None;
        memory.failures_ms.clear();
        memory.last_failure = None;
        memory.next_try_ms = None;
        memory.gave_up = false;
    }
}

/// Alive or not, as seen now; a domain that lives although it should rest was started by somebody else.
fn note_life(s: &Situation<'_>, memory: &mut VmMemory, live: bool) {
    if !live {
        if s.order.power.want == PowerWish::Restart && s.order.power.cycle > memory.power_cycle {
            memory.restart_seen_off = s.order.power.cycle;
        }
        return;
    }
    let news = !memory.alive;
    memory.alive = true;
    let commanded = s.order.power.cycle > memory.power_cycle;
    if news && !commanded && memory.stopping.is_none() && matches!(intent(s, memory), Intent::Off(_)) {
        memory.rest = Some(Rest::StartedOutside);
    }
}

fn intent(s: &Situation<'_>, memory: &VmMemory) -> Intent {
    let power = &s.order.power;
    let run = s.order.spec.run;
    if run == RunPolicy::Halted {
        return Intent::Off(Manner::Gently);
    }
    if power.cycle > memory.power_cycle {
        return match power.want {
            PowerWish::On => Intent::On,
            PowerWish::Off => Intent::Off(Manner::Gently),
            PowerWish::Killed => Intent::Off(Manner::AtOnce),
            PowerWish::Restart if memory.restart_seen_off >= power.cycle => Intent::On,
            PowerWish::Restart => Intent::Off(Manner::Gently),
        };
    }
    let on = match &memory.rest {
        Some(Rest::StartedOutside) => true,
        Some(Rest::Held(_)) => false,
        _ if matches!(power.want, PowerWish::Off | PowerWish::Killed) => false,
        Some(Rest::GuestOff) => run == RunPolicy::Always,
        Some(Rest::Failed | Rest::HostBoot) => matches!(run, RunPolicy::Always | RunPolicy::OnFailure),
        None => true,
    };
    if on { Intent::On } else { Intent::Off(Manner::Gently) }
}

/// Whether the wish is to be carried into the domain.
enum Wish {
    Applied,
    Due,
    /// It failed and is tried again then.
    Later {
        at_ms: u64,
    },
}

fn wish(s: &Situation<'_>, memory: &VmMemory) -> Wish {
    // A network that has changed changes what is written of its NICs, as if the VM's own wish had.
    let as_then = memory.networks.is_none_or(|then| then == s.order.networks_hash());
    if memory.applied >= s.order.spec_revision && as_then {
        return Wish::Applied;
    }
    let failed_before = memory.apply_failed == Some(s.order.spec_revision);
    match memory.next_apply_ms.filter(|at| failed_before && *at > s.now_ms) {
        Some(at_ms) => Wish::Later { at_ms },
        None => Wish::Due,
    }
}

/// The domain is on or off as it should be: carry the wish into it and call the command done.
fn settle(s: &Situation<'_>, mut memory: VmMemory) -> Decision {
    match wish(s, &memory) {
        Wish::Due => return act(memory, Act::Apply, Why::ToApply),
        Wish::Later { at_ms } => {
            memory.power_cycle = memory.power_cycle.max(s.order.power.cycle);
            return Decision { act: Act::Nothing, memory, why: Why::ToApply, wake_at_ms: Some(at_ms) };
        }
        Wish::Applied => {}
    }
    memory.power_cycle = memory.power_cycle.max(s.order.power.cycle);
    if memory.alive && memory.rest != Some(Rest::StartedOutside) {
        memory.rest = None;
    }
    act(memory, Act::Nothing, Why::AsWished)
}

fn start(s: &Situation<'_>, memory: VmMemory) -> Decision {
    let max = s.order.spec.restarts_max();
    if memory.gave_up {
        return not_now(s, memory, Why::GaveUp { max }, None);
    }
    if let Some(at_ms) = memory.next_try_ms.filter(|at| *at > s.now_ms) {
        let attempt = u32::try_from(memory.failures_ms.len()).unwrap_or(u32::MAX);
        return not_now(s, memory, Why::Backoff { at_ms, attempt, max }, Some(at_ms));
    }
    let commanded = s.order.power.cycle > memory.power_cycle;
    if s.turn == Turn::Wait && !commanded {
        return Decision { act: Act::Nothing, memory, why: Why::WaitingTurn, wake_at_ms: Some(s.now_ms + LOOK_AGAIN_MS) };
    }
    act(memory, Act::Start, Why::ToStart)
}

/// No start yet; a wish that came meanwhile does not wait for it.
fn not_now(s: &Situation<'_>, memory: VmMemory, why: Why, wake_at_ms: Option<u64>) -> Decision {
    match wish(s, &memory) {
        Wish::Due => act(memory, Act::Apply, Why::ToApply),
        Wish::Later { at_ms } => {
            let wake_at_ms = Some(wake_at_ms.map_or(at_ms, |at| at.min(at_ms)));
            Decision { act: Act::Nothing, memory, why, wake_at_ms }
        }
        Wish::Applied => Decision { act: Act::Nothing, memory, why, wake_at_ms },
    }
}

fn stop(s: &Situation<'_>, mut memory: VmMemory, manner: Manner) -> Decision {
    let cause = StopFor::Order { cycle: s.order.power.cycle };
    if manner == Manner::AtOnce {
        stopping(s, &mut memory, cause);
        return act(memory, Act::Kill, Why::Stopping { kill_at_ms: Some(s.now_ms) });
    }
    let patience = s.order.power.stop_timeout.unwrap_or(s.order.spec.stop_timeout);
    ask_or_kill(s, memory, cause, patience.millis())
}

/// The stop under way for this cause, begun now if there is none: the patience of an earlier one is not counted.
fn stopping<'m>(s: &Situation<'_>, memory: &'m mut VmMemory, cause: StopFor) -> &'m mut Stopping {
    let going_on = memory.stopping.filter(|stopping| stopping.cause == cause);
    memory.stopping.insert(going_on.unwrap_or(Stopping { since_ms: s.now_ms, asked_ms: s.now_ms, cause }))
}

/// Asks, asks again, and kills at the time-out (0 = never).
fn ask_or_kill(s: &Situation<'_>, mut memory: VmMemory, cause: StopFor, timeout_ms: u64) -> Decision {
    let first = memory.stopping.is_none_or(|stopping| stopping.cause != cause);
    let stopping = stopping(s, &mut memory, cause);
    let kill_at_ms = (timeout_ms > 0).then(|| stopping.since_ms.saturating_add(timeout_ms));
    let why = Why::Stopping { kill_at_ms };
    if kill_at_ms.is_some_and(|at| s.now_ms >= at) {
        return act(memory, Act::Kill, why);
    }
    let due = first || s.now_ms.saturating_sub(stopping.asked_ms) >= ASK_AGAIN_MS;
    if due {
        stopping.asked_ms = s.now_ms;
    }
    let again = stopping.asked_ms + ASK_AGAIN_MS;
    let wake = kill_at_ms.map_or(again, |at| at.min(again));
    Decision { act: if due { Act::AskDown } else { Act::Nothing }, memory, why, wake_at_ms: Some(wake) }
}

/// The host goes down: running guests are asked, then killed; the order stays as it is, so the next boot starts them again.
fn going_down(s: &Situation<'_>, memory: VmMemory, live: bool) -> Decision {
    if live {
        ask_or_kill(s, memory, StopFor::Host, s.order.spec.stop_timeout.millis())
    } else {
        act(memory, Act::Nothing, Why::HostGoingDown)
    }
}

fn leave(s: &Situation<'_>, mut memory: VmMemory, domain: Option<DomainNow>, leaving: Leaving) -> Decision {
    let live = domain.is_some_and(|d| d.state.is_live());
    if live && leaving != Leaving::Release {
        stopping(s, &mut memory, StopFor::Order { cycle: s.order.power.cycle });
        return act(memory, Act::Kill, Why::Leaving);
    }
    let act_now = if memory.removed { Act::Nothing } else { Act::Remove(leaving) };
    act(memory, act_now, Why::Leaving)
}

/// After a start that succeeded.
pub fn started(memory: &mut VmMemory, order: &Order) {
    memory.alive = true;
    memory.rest = None;
    memory.stopping = None;
    memory.asked_outside_ms = None;
    memory.called_off_ms = None;
    memory.next_try_ms = None;
    memory.power_cycle = memory.power_cycle.max(order.power.cycle);
    applied(memory, order);
}

/// After a start that failed: counted like a crash. The command counts as carried out, so that its operation ends with the
/// error; run policies other than `manual` try again.
pub fn start_failed(s: &Situation<'_>, memory: &mut VmMemory, reason: &str) {
    memory.alive = false;
    memory.power_cycle = memory.power_cycle.max(s.order.power.cycle);
    if memory.applied < s.order.spec_revision {
        apply_failed(s, memory);
    }
    fail(s, memory, reason);
}

/// After the stored description could not be made to match: tried again after [`APPLY_AGAIN_MS`].
pub fn apply_failed(s: &Situation<'_>, memory: &mut VmMemory) {
    memory.apply_failed = Some(s.order.spec_revision);
    memory.next_apply_ms = Some(s.now_ms + APPLY_AGAIN_MS);
}

/// After a stored description was made to match.
pub fn applied(memory: &mut VmMemory, order: &Order) {
    memory.apply_failed = None;
    memory.next_apply_ms = None;
    memory.applied = memory.applied.max(order.spec_revision);
    memory.networks = Some(order.networks_hash());
}

/// Somebody else asked the guest to power down: if it does, that is a hold and not the guest's own wish.
pub fn asked_down_outside(memory: &mut VmMemory, now_ms: u64) {
    if memory.stopping.is_none() && memory.alive {
        memory.asked_outside_ms = Some(now_ms);
    }
}

#[cfg(test)]
mod tests;
