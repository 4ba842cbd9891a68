//! What the agent and the guard's process say to each other: one packet each way, fixed in size, made without allocation.
//!
//! ```text
//!  agent ── Ask ──► vmkeep-fenced      version kind │ boottime raw │ kill pet pet_every watchdog
//!        ◄── Word ──                   version outcome errno │ mode kind realtime │ numbers │ identity
//! ```
//! Numbers are little-endian. A packet of another size or version is refused: both programs come in one package, and a guard that
//! runs on over an upgrade is exec'ed anew by it.

use vmkeep_types::ha::WatchdogKind;

use super::super::clock::Now;
use super::super::timers::{Profile, TimerError, Timers};
use super::{Fenced, Mode};

pub const ASK_BYTES: usize = 34;
pub const WORD_BYTES: usize = 57;
/// Of a guard's state, as it goes from one program to its successor.
pub const SAVED_BYTES: usize = 50;
/// Of a watchdog's name, as the kernel gives it.
pub const IDENTITY_BYTES: usize = 32;

const VERSION: u8 = 1;

/// The timers that the guard lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub kill_ms: u32,
    pub pet_ms: u32,
    pub pet_every_ms: u32,
    pub watchdog_ms: u32,
}

impl Limits {
    /// A time that is too long for 32 bits (49 days) is cut: the guard then acts earlier.
    pub fn of(timers: &Timers) -> Self {
        let [kill_ms, pet_ms, pet_every_ms, watchdog_ms] =
            [timers.kill_ms, timers.pet_ms, timers.pet_every_ms, timers.watchdog_ms].map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
        Self { kill_ms, pet_ms, pet_every_ms, watchdog_ms }
    }

    pub fn timers(self) -> Timers {
        let [kill_ms, pet_ms, pet_every_ms, watchdog_ms] = [self.kill_ms, self.pet_ms, self.pet_every_ms, self.watchdog_ms].map(u64::from);
        Timers { kill_ms, pet_ms, pet_every_ms, watchdog_ms, ..Timers::of(Profile::Standard) }
    }

    /// The guard's own part of [`Timers::check`].
    ///
    /// # Errors
    /// The kill would not come before the reset, or one late pet would reset the host.
    pub fn check(self) -> Result<(), TimerError> {
        let ordered = |first, first_ms: u64, second, second_ms: u64, why| {
            if first_ms < second_ms { Ok(()) } else { Err(TimerError::Order { first, first_ms, second, second_ms, why }) }
        };
        ordered("T_kill", self.kill_ms.into(), "T_pet", self.pet_ms.into(), "the kill must come before the reset")?;
        let twice = 2 * u64::from(self.pet_every_ms);
        ordered("two pets", twice, "the watchdog's time-out", self.watchdog_ms.into(), "one late pet must not reset the host")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    State,
    Arm { sent: Now, limits: Limits },
    Renewed { sent: Now },
    Disarm,
    Sealed,
}

/// What became of the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// There is no watchdog on this host.
    NoWatchdog,
    /// The watchdog did not open; mostly because another program has it.
    NotOpened,
    /// The watchdog would bite later than it must.
    TooSlow,
    /// The timers make no sense, or are not those of this epoch.
    BadTimers,
    /// The renewal was sent in the future.
    Future,
}

const OUTCOMES: [Outcome; 6] =
    [Outcome::Done, Outcome::NoWatchdog, Outcome::NotOpened, Outcome::TooSlow, Outcome::BadTimers, Outcome::Future];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Idle,
    Armed,
    /// Ends in a reset.
    Sealed,
}

const STANDINGS: [Standing; 3] = [Standing::Idle, Standing::Armed, Standing::Sealed];

impl From<&Fenced> for Standing {
    fn from(fenced: &Fenced) -> Self {
        match fenced.mode {
            Mode::Idle => Self::Idle,
            Mode::Armed => Self::Armed,
            Mode::Sealed => Self::Sealed,
        }
    }
}

/// Can the guard be late?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It runs before everything else on the host.
    Realtime,
    /// The kernel did not allow that.
    Usual,
}

/// How the guard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub outcome: Outcome,
    /// Of the call that failed; 0 = none.
    pub errno: i32,
    pub standing: Standing,
    pub urgency: Urgency,
    /// The watchdog that is open, or that would be opened.
    pub watchdog: Option<WatchdogKind>,
    /// Its time-out as it was read back, ms; 0 = not open.
    pub watchdog_ms: u32,
    /// Since the last renewal was sent, ms; 0 = not armed.
    pub silent_ms: u32,
    /// How often the VMs' cgroup was killed since the guard's start.
    pub kills: u32,
    /// Allocations since the guard's start: none.
    pub allocations: u32,
    pub identity: [u8; IDENTITY_BYTES],
}

impl Word {
    /// The watchdog's name.
    pub fn identity(&self) -> String {
        let end = self.identity.iter().position(|byte| *byte == 0).unwrap_or(IDENTITY_BYTES);
        String::from_utf8_lossy(&self.identity[..end]).into_owned()
    }
}

/// Puts or takes numbers one after the other.
struct At<B>(B, usize);

impl At<&mut [u8]> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.0[self.1..self.1 + N].copy_from_slice(&bytes);
        self.1 += N;
    }
}

impl At<&[u8]> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.0[self.1..self.1 + N].try_into().expect("N bytes make N bytes");
        self.1 += N;
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn now(&mut self) -> Now {
        Now { boottime_ms: u64::from_le_bytes(self.take()), raw_ms: u64::from_le_bytes(self.take()) }
    }
}

fn place_of<T: PartialEq>(all: &[T], one: &T) -> u8 {
    u8::try_from(all.iter().position(|each| each == one).unwrap_or(0)).unwrap_or(0)
}

const WATCHDOGS: [Option<WatchdogKind>; 3] = [None, Some(WatchdogKind::Hardware), Some(WatchdogKind::Software)];
const URGENCIES: [Urgency; 2] = [Urgency::Realtime, Urgency::Usual];

impl Ask {
    pub fn encode(&self) -> [u8; ASK_BYTES] {
        let none = Limits { kill_ms: 0, pet_ms: 0, pet_every_ms: 0, watchdog_ms: 0 };
        let (kind, sent, limits) = match *self {
            Self::State => (0, Now::default(), none),
            Self::Arm { sent, limits } => (1, sent, limits),
            Self::Renewed { sent } => (2, sent, none),
            Self::Disarm => (3, Now::default(), none),
            Self::Sealed => (4, Now::default(), none),
        };
        let mut bytes = [0; ASK_BYTES];
        let mut at = At(bytes.as_mut_slice(), 0);
        at.put([VERSION, kind]);
        [sent.boottime_ms, sent.raw_ms].into_iter().for_each(|ms| at.put(ms.to_le_bytes()));
        [limits.kill_ms, limits.pet_ms, limits.pet_every_ms, limits.watchdog_ms].into_iter().for_each(|ms| at.put(ms.to_le_bytes()));
        bytes
    }

    /// None: not ours, or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ASK_BYTES] = bytes.try_into().ok()?;
        let mut at = At(bytes.as_slice(), 0);
        let [version, kind] = at.take();
        let sent = at.now();
        let limits = Limits { kill_ms: at.u32(), pet_ms: at.u32(), pet_every_ms: at.u32(), watchdog_ms: at.u32() };
        match (version, kind) {
            (VERSION, 0) => Some(Self::State),
            (VERSION, 1) => Some(Self::Arm { sent, limits }),
            (VERSION, 2) => Some(Self::Renewed { sent }),
            (VERSION, 3) => Some(Self::Disarm),
            (VERSION, 4) => Some(Self::Sealed),
            _ => None,
        }
    }
}

impl Word {
    pub fn encode(&self) -> [u8; WORD_BYTES] {
        let mut bytes = [0; WORD_BYTES];
        let mut at = At(bytes.as_mut_slice(), 0);
        let (outcome, standing) = (place_of(&OUTCOMES, &self.outcome), place_of(&STANDINGS, &self.standing));
        at.put([VERSION, outcome, standing, place_of(&URGENCIES, &self.urgency), place_of(&WATCHDOGS, &self.watchdog)]);
        at.put(self.errno.to_le_bytes());
        let numbers = [self.watchdog_ms, self.silent_ms, self.kills, self.allocations];
        numbers.into_iter().for_each(|number| at.put(number.to_le_bytes()));
        at.put(self.identity);
        bytes
    }

    /// None: not a guard's word, or of another version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; WORD_BYTES] = bytes.try_into().ok()?;
        let mut at = At(bytes.as_slice(), 0);
        let [version, outcome, standing, urgency, watchdog] = at.take();
        if version != VERSION {
            return None;
        }
        Some(Self {
            outcome: *OUTCOMES.get(usize::from(outcome))?,
            standing: *STANDINGS.get(usize::from(standing))?,
            urgency: *URGENCIES.get(usize::from(urgency))?,
            watchdog: *WATCHDOGS.get(usize::from(watchdog))?,
            errno: i32::from_le_bytes(at.take()),
            watchdog_ms: at.u32(),
            silent_ms: at.u32(),
            kills: at.u32(),
            allocations: at.u32(),
            identity: at.take(),
        })
    }
}

impl Fenced {
    /// For the program that takes over; see [`Fenced::restore`].
    pub fn save(&self) -> [u8; SAVED_BYTES] {
        let mut bytes = [0; SAVED_BYTES];
        let mut at = At(bytes.as_mut_slice(), 0);
        at.put([VERSION, place_of(&STANDINGS, &Standing::from(self))]);
        let killed = self.killed.unwrap_or_default();
        let numbers = [self.kill_ms, self.pet_ms, self.sent.boottime_ms, self.sent.raw_ms, killed.boottime_ms, killed.raw_ms];
        numbers.into_iter().for_each(|ms| at.put(ms.to_le_bytes()));
        bytes
    }

    /// None: of another version.
    pub fn restore(bytes: &[u8; SAVED_BYTES]) -> Option<Self> {
        let mut at = At(bytes.as_slice(), 0);
        let [version, standing] = at.take();
        if version != VERSION {
            return None;
        }
        let mode = match STANDINGS.get(usize::from(standing))? {
            Standing::Idle => Mode::Idle,
            Standing::Armed => Mode::Armed,
            Standing::Sealed => Mode::Sealed,
        };
        let [kill_ms, pet_ms] = [u64::from_le_bytes(at.take()), u64::from_le_bytes(at.take())];
        let (sent, killed) = (at.now(), at.now());
        Some(Self { kill_ms, pet_ms, weak: None, mode, sent, killed: Some(killed).filter(|at| *at != Now::default()) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Event;
    use super::*;

    fn at(s: u64) -> Now {
        Now { boottime_ms: s * 1000, raw_ms: s * 1000 + 1 }
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let limits = Limits::of(&Timers::of(Profile::Fast));
        for ask in [Ask::State, Ask::Arm { sent: at(7), limits }, Ask::Renewed { sent: at(8) }, Ask::Disarm, Ask::Sealed] {
            assert_eq!(Ask::decode(&ask.encode()), Some(ask));
        }
        let mut identity = [0; IDENTITY_BYTES];
        identity[..4].copy_from_slice(b"dog7");
        for (outcome, watchdog) in OUTCOMES.into_iter().zip(WATCHDOGS.into_iter().cycle()) {
            let word = Word {
                outcome,
                errno: -16,
                standing: Standing::Sealed,
                urgency: Urgency::Usual,
                watchdog,
                watchdog_ms: 8_000,
                silent_ms: 2,
                kills: 3,
                allocations: 4,
                identity,
            };
            assert_eq!(Word::decode(&word.encode()), Some(word));
            assert_eq!(word.identity(), "dog7");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for bytes in [&[] as &[u8], &[VERSION; ASK_BYTES + 1], &[9; ASK_BYTES], &[VERSION; WORD_BYTES - 1]] {
            assert_eq!(Ask::decode(bytes), None);
            assert_eq!(Word::decode(bytes), None);
        }
        assert_eq!(Fenced::restore(&[9; SAVED_BYTES]), None);
    }

    #[test]
    fn a_successor_goes_on_where_the_guard_was() {
        let mut fenced = Fenced::new(&Timers::of(Profile::Standard), None);
        for event in [Event::Tick, Event::Arm { sent: at(3) }, Event::Tick, Event::Sealed] {
            fenced.step(at(20), event);
            assert_eq!(Fenced::restore(&fenced.save()), Some(fenced.clone()));
        }
    }

    #[test]
    fn a_kill_after_the_reset_is_refused() {
        for profile in Profile::ALL {
            assert_eq!(Limits::of(&Timers::of(profile)).check(), Ok(()));
        }
        let limits = Limits::of(&Timers::of(Profile::Standard));
        assert!(Limits { kill_ms: 19_000, ..limits }.check().is_err());
        assert!(Limits { pet_every_ms: 4_000, ..limits }.check().is_err());
    }
}
