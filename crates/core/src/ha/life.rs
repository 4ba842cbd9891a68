//! One life of a node, an epoch: whether an agent goes on with it, begins the next one, or has lost it for good.
//!
//! ```text
//!  this boot's, not sealed ──────────────────► goes on
//!  this boot's, sealed, armed or not empty ──► ended: only a reset leads out of it
//!  proved dead, or closed by itself ─────────► the next one
//!  another boot's, not proved ───────────────► waits for the proof, and says so
//! ```
//! The simulated agent and the daemon's decide by these same rules.

use vmkeep_types::ha::{Farewell, Parting, ShutdownPolicy};

use super::clock::Now;
use super::timers::Timers;

/// The epoch that stands in the store, as an agent that has just started sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    pub boot: Boot,
    /// It ended by its agent's own goodbye.
    pub closed: bool,
    pub sealed: bool,
    pub confirmed: bool,
    pub armed: bool,
}

/// Whose epoch it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The boot that asks.
    This,
    Another,
}

/// Are there guests on the host that this epoch may not have?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    None,
    Some,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    GoOn,
    Next,
    /// It was sealed while it could run VMs: what follows is a reset.
    Ended,
    /// The boot before may still run VMs, as far as others know.
    Wait,
}

/// May this boot live on, or begin anew?
pub fn join(before: Before, guests: Guests) -> Join {
    let Before { boot, closed, sealed, confirmed, armed } = before;
    match boot {
        Boot::This if !closed && !sealed => Join::GoOn,
        Boot::This if sealed && (armed || guests == Guests::Some) => Join::Ended,
        _ if (confirmed || closed) && guests == Guests::None => Join::Next,
        Boot::This | Boot::Another => Join::Wait,
    }
}

/// What becomes of the highly available VMs of a host that goes down in order.
pub fn parting(policy: ShutdownPolicy, farewell: Farewell) -> Parting {
    match (policy, farewell) {
        (ShutdownPolicy::Migrate, _) => Parting::Migrate,
        (ShutdownPolicy::Freeze, _) | (ShutdownPolicy::Conditional, Farewell::Reboot) => Parting::Freeze,
        (ShutdownPolicy::Failover, _) | (ShutdownPolicy::Conditional, Farewell::Shutdown) => Parting::Failover,
    }
}

/// May a start that was asked for, or a renewal that was sent, at `then` still lead to one? None: there was none.
pub fn may_start(timers: &Timers, now: Now, then: Option<Now>) -> bool {
    then.is_some_and(|then| now.longest_since(then) < timers.start_window_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::timers::{Profile, Timers};

    const LIVES: Before = Before { boot: Boot::This, closed: false, sealed: false, confirmed: false, armed: true };

    #[test]
    fn a_life_goes_on_ends_or_begins() {
        let check = |before: Before, wanted: [Join; 2]| assert_eq!([Guests::None, Guests::Some].map(|guests| join(before, guests)), wanted);
        use Join::{Ended, GoOn, Next, Wait};
        check(LIVES, [GoOn, GoOn]);
        check(Before { sealed: true, ..LIVES }, [Ended, Ended]);
        check(Before { sealed: true, confirmed: true, ..LIVES }, [Ended, Ended]);
        check(Before { sealed: true, armed: false, ..LIVES }, [Wait, Ended]);
        check(Before { sealed: true, armed: false, confirmed: true, ..LIVES }, [Next, Ended]);
        check(Before { closed: true, ..LIVES }, [Next, Wait]);
        let rebooted = Before { boot: Boot::Another, ..LIVES };
        check(rebooted, [Wait, Wait]);
        check(Before { sealed: true, ..rebooted }, [Wait, Wait]);
        check(Before { sealed: true, confirmed: true, ..rebooted }, [Next, Wait]);
    }

    #[test]
    fn an_old_renewal_starts_nothing() {
        let (timers, at) = (Timers::of(Profile::Standard), |s: u64| Now { boottime_ms: s * 1000, raw_ms: s * 1000 });
        let told = [None, Some(at(5)), Some(at(10))].map(|then| may_start(&timers, at(15), then));
        assert_eq!(told, [false, false, true]);
    }
}
