//! Whose turn it is to start after a host boot: lower `start.order` first, then by `ha.priority`, each waited for by its own `wait_for`
//! and `delay`.
//!
//! Only VMs that are about to be started take part. A VM that fails, waits in back-off or takes longer than
//! [`TURN_MS_MAX`] gives its turn away, so that one broken guest never holds a host.

use vmkeep_types::vm::{VmSpec, WaitFor};

/// A VM may hold up later ones this long at most.
pub const TURN_MS_MAX: u64 = 120_000;

/// Who starts before whom: the lower first, equals together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub order: u16,
    /// As [`VmSpec::priority`].
    pub priority: u8,
}

impl Rank {
    const LAST: Self = Self { order: u16::MAX, priority: u8::MAX };

    pub fn of(spec: &VmSpec) -> Self {
        Self { order: spec.start.order, priority: spec.priority() }
    }
}

/// One VM that takes part in the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booting {
    pub rank: Rank,
    pub delay_ms: u64,
    pub wait_for: WaitFor,
    pub progress: BootProgress,
}

/// What is true of the guest, as far as the boot order cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProgress {
    /// Not started; its turn began (or will) at this time, None before it began.
    Waiting { turn_since_ms: Option<u64> },
    /// Runs since then; its agent has answered or not.
    Running { since_ms: u64, agent: AgentSeen },
    /// Failed, held or given up: counts as done.
    OutOfTheWay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentSeen {
    /// First at this time.
    Yes {
        at_ms: u64,
    },
    No,
}

/// The last rank that may start now.
pub fn open_rank(vms: &[Booting], now_ms: u64) -> Rank {
    vms.iter().filter(|vm| blocks(vm, now_ms)).map(|vm| vm.rank).min().unwrap_or(Rank::LAST)
}

fn blocks(vm: &Booting, now_ms: u64) -> bool {
    match vm.progress {
        BootProgress::OutOfTheWay => false,
        BootProgress::Waiting { turn_since_ms } => turn_since_ms.is_none_or(|since| now_ms.saturating_sub(since) < TURN_MS_MAX),
        BootProgress::Running { since_ms, agent } => {
            let for_ms = |at_ms| now_ms.saturating_sub(at_ms);
            match (vm.wait_for, agent) {
                (WaitFor::Running, _) => for_ms(since_ms) < vm.delay_ms,
                (WaitFor::Agent, AgentSeen::Yes { at_ms }) => for_ms(at_ms) < vm.delay_ms,
                (WaitFor::Agent, AgentSeen::No) => for_ms(since_ms) < TURN_MS_MAX,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(order: u16, progress: BootProgress) -> Booting {
        Booting { rank: Rank { order, priority: u8::MAX }, delay_ms: 5_000, wait_for: WaitFor::Running, progress }
    }

    fn open_order(vms: &[Booting], now_ms: u64) -> u16 {
        open_rank(vms, now_ms).order
    }

    #[test]
    fn later_orders_wait_for_earlier_ones_and_their_delay() {
        let waiting = BootProgress::Waiting { turn_since_ms: None };
        let up = BootProgress::Running { since_ms: 1_000, agent: AgentSeen::No };
        assert_eq!(open_order(&[vm(10, waiting), vm(20, waiting)], 0), 10);
        assert_eq!(open_order(&[vm(10, up), vm(20, waiting)], 2_000), 10, "the delay is not over");
        assert_eq!(open_order(&[vm(10, up), vm(20, waiting)], 6_000), 20);
        assert_eq!(open_order(&[vm(10, up)], 6_000), u16::MAX);
    }

    #[test]
    fn of_one_order_the_highly_available_go_first_by_priority() {
        let rank = |order, priority| Rank { order, priority };
        let waiting = |rank| Booting { rank, ..vm(0, BootProgress::Waiting { turn_since_ms: None }) };
        let up = |rank| Booting { rank, delay_ms: 0, ..vm(0, BootProgress::Running { since_ms: 0, agent: AgentSeen::No }) };
        let (first, last, other) = (rank(100, 1), rank(100, 5), rank(100, u8::MAX));
        assert_eq!(open_rank(&[waiting(other), waiting(last), waiting(first)], 1), first);
        assert_eq!(open_rank(&[waiting(other), waiting(last), up(first)], 1), last);
        assert_eq!(open_rank(&[waiting(other), up(last), up(first)], 1), other);
        assert_eq!(open_rank(&[waiting(rank(99, u8::MAX)), waiting(first)], 1).order, 99, "the host's own order is asked first");
    }

    #[test]
    fn a_broken_vm_does_not_hold_the_host() {
        let stuck = BootProgress::Waiting { turn_since_ms: Some(0) };
        assert_eq!(open_order(&[vm(10, stuck)], TURN_MS_MAX - 1), 10);
        assert_eq!(open_order(&[vm(10, stuck)], TURN_MS_MAX), u16::MAX);
        assert_eq!(open_order(&[vm(10, BootProgress::OutOfTheWay)], 0), u16::MAX);
    }

    #[test]
    fn an_agent_is_waited_for_when_asked_and_the_delay_begins_with_it() {
        let up = |agent| Booting { wait_for: WaitFor::Agent, ..vm(10, BootProgress::Running { since_ms: 0, agent }) };
        assert_eq!(open_order(&[up(AgentSeen::No)], 20_000), 10);
        assert_eq!(open_order(&[up(AgentSeen::No)], TURN_MS_MAX), u16::MAX);
        assert_eq!(open_order(&[up(AgentSeen::Yes { at_ms: 20_000 })], 24_999), 10);
        assert_eq!(open_order(&[up(AgentSeen::Yes { at_ms: 20_000 })], 25_000), u16::MAX);
    }
}
