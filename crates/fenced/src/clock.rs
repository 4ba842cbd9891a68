//! The host's clocks.

use nix::time::{ClockId, clock_gettime};
use vmkeep_core::ha::clock::Now;

pub fn now() -> Now {
    Now { boottime_ms: ms(ClockId::CLOCK_BOOTTIME), raw_ms: ms(ClockId::CLOCK_MONOTONIC_RAW) }
}

/// Seconds since 1970, for people.
pub fn unix_s() -> i64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |time| time.tv_sec())
}

fn ms(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every Linux has these clocks");
    u64::try_from(time.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec() / 1_000_000).unwrap_or(0)
}
