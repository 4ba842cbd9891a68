//! The watchdog's guard: petted only while the store is known to have heard of this node.
//!
//! ```text
//!  idle ── Arm ──► armed: pets ── T_kill ──► kills every second, pets ── T_pet ──► kills every second ──► reset
//!    ▲              │  ▲ Renewed                                                   ▲
//!    └── Disarm ────┘  └────────────────────── Renewed ──┘         Sealed ─────────┘ (nothing leads back)
//! ```
//! Fixed in size and without allocation: the process around it allocates nothing after its start. It never decides that all
//! is well: without news from the agent it kills and lets the watchdog bite, whatever the reason for the silence.

pub mod wire;

use super::clock::Now;
use super::timers::Timers;
use super::weakness::Weakness;

/// The kill is repeated this often until the reset: a hung libvirtd may still fork a QEMU.
const KILL_EVERY_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// At least every `pet_every_ms`.
    Tick,
    /// The agent is about to own VMs; `sent` is its last good renewal's.
    Arm { sent: Now },
    /// A renewal that was sent then was answered with success.
    Renewed { sent: Now },
    /// A transaction has shown that this node owns nothing, or that high availability is switched off.
    Disarm,
    /// This epoch is sealed: it ends in a reset.
    Sealed,
}

/// What the process does, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Actions {
    /// Open the watchdog device and read its time-out back.
    pub open: bool,
    /// SIGKILL everything in the VMs' cgroup; never through libvirt.
    pub kill: bool,
    pub pet: bool,
    /// Close the device with the magic character: the one way without a reset.
    pub close: bool,
}

/// Why the host is about to be reset, for the file that survives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No renewal for so many ms.
    Silent { ms: u64 },
    /// Other nodes were told that this one is dead.
    Sealed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    Idle,
    Armed,
    Sealed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fenced {
    kill_ms: u64,
    pet_ms: u64,
    weak: Option<Weakness>,
    mode: Mode,
    sent: Now,
    killed: Option<Now>,
}

impl Fenced {
    pub fn new(timers: &Timers, weak: Option<Weakness>) -> Self {
        Self { kill_ms: timers.kill_ms, pet_ms: timers.pet_ms, weak, mode: Mode::Idle, sent: Now::default(), killed: None }
    }

    pub fn armed(&self) -> bool {
        self.mode != Mode::Idle
    }

    pub fn step(&mut self, now: Now, event: Event) -> Actions {
        let mut open = false;
        match (event, self.mode) {
            (Event::Arm { sent }, Mode::Idle) => {
                (self.mode, self.sent, open) = (Mode::Armed, sent, true);
            }
            (Event::Arm { sent } | Event::Renewed { sent }, Mode::Armed) => self.sent = self.sent.max(sent),
            (Event::Disarm, Mode::Armed) => {
                self.mode = Mode::Idle;
                self.killed = None;
                return Actions { close: true, ..Actions::default() };
            }
            (Event::Sealed, Mode::Armed) => self.mode = Mode::Sealed,
            (Event::Tick, _) | (_, Mode::Sealed) | (Event::Renewed { .. } | Event::Disarm | Event::Sealed, Mode::Idle) => {}
        }
        let (kill, pet) = self.due(now);
        if kill {
            self.killed = Some(now);
        }
        Actions { open, kill, pet, close: false }
    }

    fn due(&self, now: Now) -> (bool, bool) {
        let again = self.killed.is_none_or(|at| now.longest_since(at) >= KILL_EVERY_MS);
        match self.mode {
            Mode::Idle => (false, false),
            Mode::Sealed => (again, false),
            Mode::Armed => {
                let age = self.age_ms(now);
                let pet = age < self.pet_ms || self.weak == Some(Weakness::PetByTimer);
                (age >= self.kill_ms && again, pet)
            }
        }
    }

    fn age_ms(&self, now: Now) -> u64 {
        match self.weak {
            Some(Weakness::BoottimeOnly) => now.boottime_ms.saturating_sub(self.sent.boottime_ms),
            _ => now.longest_since(self.sent),
        }
    }

    /// Since the last good renewal was sent, ms; None: not armed.
    pub fn silent_ms(&self, now: Now) -> Option<u64> {
        self.armed().then(|| self.age_ms(now))
    }

    /// What would reset this host now.
    pub fn reason(&self, now: Now) -> Option<Reason> {
        match self.mode {
            Mode::Idle => None,
            Mode::Sealed => Some(Reason::Sealed),
            Mode::Armed => Some(self.age_ms(now)).filter(|ms| *ms >= self.kill_ms).map(|ms| Reason::Silent { ms }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::timers::{Profile, Timers};

    fn at(s: u64) -> Now {
        Now { boottime_ms: s * 1000, raw_ms: s * 1000 }
    }

    #[test]
    fn it_pets_kills_and_lets_go_by_the_age_of_the_last_renewal() {
        let mut fenced = Fenced::new(&Timers::of(Profile::Standard), None);
        assert_eq!(fenced.step(at(0), Event::Tick), Actions::default());
        assert_eq!(fenced.step(at(1), Event::Arm { sent: at(1) }), Actions { open: true, pet: true, ..Actions::default() });
        assert!(fenced.step(at(15), Event::Tick).pet);
        assert_eq!(fenced.step(at(16), Event::Tick), Actions { kill: true, pet: true, ..Actions::default() });
        assert_eq!(fenced.step(at(20), Event::Tick), Actions { kill: true, ..Actions::default() });
        assert_eq!(fenced.reason(at(20)), Some(Reason::Silent { ms: 19_000 }));
        assert!(fenced.step(at(21), Event::Renewed { sent: at(20) }).pet);
    }

    #[test]
    fn a_seal_is_the_end() {
        let mut fenced = Fenced::new(&Timers::of(Profile::Standard), None);
        fenced.step(at(1), Event::Arm { sent: at(1) });
        assert_eq!(fenced.step(at(2), Event::Sealed), Actions { kill: true, ..Actions::default() });
        assert_eq!(fenced.step(at(3), Event::Renewed { sent: at(3) }), Actions { kill: true, ..Actions::default() });
        assert_eq!(fenced.step(at(4), Event::Disarm), Actions { kill: true, ..Actions::default() });
    }

    #[test]
    fn an_older_renewal_takes_nothing_back() {
        let mut fenced = Fenced::new(&Timers::of(Profile::Standard), None);
        fenced.step(at(1), Event::Arm { sent: at(9) });
        fenced.step(at(10), Event::Renewed { sent: at(3) });
        assert!(!fenced.step(at(20), Event::Tick).kill);
    }
}
