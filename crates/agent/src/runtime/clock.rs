//! Time and boot identity of the host, injected so that test hosts on one kernel can have their own.

use std::path::PathBuf;

use nix::time::ClockId;
use vmkeep_core::ha::clock::Now;

/// A shorter sleep moves no guest's clock by more than it drifts anyway.
const SLEEP_MS_MIN: u64 = 1_000;

/// Milliseconds of CLOCK_BOOTTIME: goes on while the host sleeps, never steps.
pub fn boottime_ms() -> u64 {
    clock_ms(ClockId::CLOCK_BOOTTIME)
}

/// Both clocks by which a life of the node is measured.
pub fn now() -> Now {
    Now { boottime_ms: boottime_ms(), raw_ms: clock_ms(ClockId::CLOCK_MONOTONIC_RAW) }
}

/// How long the host has slept since its boot.
pub fn slept_ms() -> u64 {
    // In this order the time between the two reads is no sleep.
    let boottime = clock_ms(ClockId::CLOCK_BOOTTIME);
    boottime.saturating_sub(clock_ms(ClockId::CLOCK_MONOTONIC))
}

/// Tells a sleep of the host: a monotonic clock stands still meanwhile.
#[derive(Debug)]
pub struct SleepWatch {
    slept_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    None,
    Ended,
}

impl SleepWatch {
    pub fn new(slept_ms: u64) -> Self {
        Self { slept_ms }
    }

    /// Whether a sleep has ended since the last look.
    pub fn look(&mut self, slept_ms: u64) -> Sleep {
        if slept_ms.saturating_sub(self.slept_ms) < SLEEP_MS_MIN {
            return Sleep::None;
        }
        self.slept_ms = slept_ms;
        Sleep::Ended
    }
}

fn clock_ms(clock: ClockId) -> u64 {
    let time = nix::time::clock_gettime(clock).expect("every Linux has these clocks");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec() / 1_000_000).unwrap_or(0);
    seconds * 1000 + millis
}

/// Where the boot id is read from: the kernel's, or a file that a test host renews at each of its boots.
#[derive(Clone, Debug)]
pub struct BootId(pub PathBuf);

impl Default for BootId {
    fn default() -> Self {
        Self(PathBuf::from("/proc/sys/kernel/random/boot_id"))
    }
}

impl BootId {
    /// # Errors
    /// When the file cannot be read: without an identity of this boot no decision about past times is safe.
    pub fn read(&self) -> std::io::Result<String> {
        Ok(std::fs::read_to_string(&self.0)?.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_told_once() {
        let mut watch = SleepWatch::new(10_000);
        let told = [10_000, 10_900, 9_990, 11_000, 11_000, 11_500, 3_611_500, 3_611_499].map(|slept| watch.look(slept));
        let (no, yes) = (Sleep::None, Sleep::Ended);
        assert_eq!(told, [no, no, no, yes, no, no, yes, no]);
    }
}
