//! Time as one host measures it.
//!
//! NTP changes the rate of `CLOCK_BOOTTIME` by up to 10 %, `CLOCK_MONOTONIC_RAW` stands still while a host is suspended. So both
//! are read, and each side believes the one that is against it: a node that its time is up, a candidate that it is not.

/// One look at both clocks, in ms since the host's boot. Never compared between hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now {
    pub boottime_ms: u64,
    pub raw_ms: u64,
}

impl Now {
    /// ms since `then`, rather too many: for deadlines of the node itself.
    pub fn longest_since(self, then: Self) -> u64 {
        self.boottime_ms.saturating_sub(then.boottime_ms).max(self.raw_ms.saturating_sub(then.raw_ms))
    }

    /// ms since `then`, rather too few: for what a candidate waits for.
    pub fn shortest_since(self, then: Self) -> u64 {
        self.boottime_ms.saturating_sub(then.boottime_ms).min(self.raw_ms.saturating_sub(then.raw_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_believes_the_clock_that_is_against_it() {
        let then = Now { boottime_ms: 1_000, raw_ms: 1_000 };
        let now = Now { boottime_ms: 12_000, raw_ms: 11_000 };
        assert_eq!((now.longest_since(then), now.shortest_since(then)), (11_000, 10_000));
        assert_eq!(then.longest_since(now), 0);
    }
}
