//! Time as a candidate measures the silence of nodes: both raw clocks of this host, never the wall's.

use nix::time::{ClockId, clock_gettime};
use vmkeep_core::ha::clock::Now;

pub fn now() -> Now {
    Now { boottime_ms: ms(ClockId::CLOCK_BOOTTIME), raw_ms: ms(ClockId::CLOCK_MONOTONIC_RAW) }
}

fn ms(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every Linux has these clocks");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec() / 1_000_000).unwrap_or(0)
}
