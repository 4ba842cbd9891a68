//! May a node be given highly available VMs, and must it arm its watchdog first?
//!
//! | its watchdog | its power can be cut | it cannot |
//! |---|---|---|
//! | hardware, armed | [`Ready::Yes`] | [`Ready::Yes`] |
//! | software, armed; or none that can be armed | [`Ready::Yes`] | [`Ready::Unprovable`] |
//! | nobody has asked | [`Ready::ArmsFirst`] | [`Ready::ArmsFirst`] |
//!
//! A node that owns VMs before it is armed may die in between, and nobody could prove it. So it is asked, answers, and is given
//! VMs only then, in a transaction that compares the answer. One whose death could not be proved comes last: a VM that runs
//! there waits for a person when the node dies, which is better than not to run at all. The simulated leader and the daemon's
//! decide by these same rules.

use super::record::{Seat, WatchdogKind};
use super::vigil::Ledger;
use super::weakness::Weakness;

/// What a node says of its watchdog in this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Watchdog {
    /// It is not armed, and nobody has asked.
    Unasked,
    Armed(WatchdogKind),
    /// It was asked, and there is none, or none that would do.
    Unusable,
}

/// Is it known that the node's power can be cut from elsewhere?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Power {
    CanBeCut,
    Stays,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ready {
    Yes,
    /// It is asked to arm its watchdog, or to say that it cannot.
    ArmsFirst,
    /// If it dies only a person can say so: only where no other node will do.
    Unprovable,
}

/// Of one epoch of a node, as the store tells of it.
pub fn of_epoch(ledger: &impl Ledger, Seat { node, epoch }: Seat, weak: Option<Weakness>) -> Ready {
    let watchdog = match ledger.armed(node, epoch) {
        Some(_) if weak == Some(Weakness::SoftwareWatchdog) => Watchdog::Armed(WatchdogKind::Hardware),
        Some((armed, _)) => Watchdog::Armed(armed.kind),
        None if ledger.cannot_arm(node, epoch) => Watchdog::Unusable,
        None => Watchdog::Unasked,
    };
    ready(watchdog, if ledger.cut_is_tested(node) { Power::CanBeCut } else { Power::Stays })
}

pub fn ready(watchdog: Watchdog, power: Power) -> Ready {
    match (watchdog, power) {
        (Watchdog::Unasked, _) => Ready::ArmsFirst,
        (Watchdog::Armed(WatchdogKind::Hardware), _) | (_, Power::CanBeCut) => Ready::Yes,
        (Watchdog::Armed(WatchdogKind::Software) | Watchdog::Unusable, Power::Stays) => Ready::Unprovable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_owns_vms_only_after_it_has_said_how_it_would_die() {
        let told = |watchdog| [Power::CanBeCut, Power::Stays].map(|power| ready(watchdog, power));
        assert_eq!(told(Watchdog::Unasked), [Ready::ArmsFirst, Ready::ArmsFirst]);
        assert_eq!(told(Watchdog::Armed(WatchdogKind::Hardware)), [Ready::Yes, Ready::Yes]);
        assert_eq!(told(Watchdog::Armed(WatchdogKind::Software)), [Ready::Yes, Ready::Unprovable]);
        assert_eq!(told(Watchdog::Unusable), [Ready::Yes, Ready::Unprovable]);
    }
}
