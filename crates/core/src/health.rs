//! What a node's silence means. The leader measures it on its own clock, from when it saw the last heartbeat.

use vmkeep_types::ha::TimerProfile;
use vmkeep_types::host::NodeHealth;

use super::ha::timers::Timers;

/// Between two heartbeats, by the timers of `standard`.
pub const BEAT_MS: u64 = Timers::of(TimerProfile::Standard).renew_ms;
/// One heartbeat was missed, and its next is late.
pub const SUSPECT_MS: u64 = Timers::of(TimerProfile::Standard).suspect_ms;

/// The health of a node that has been silent for so long, and lives by these timers.
pub fn judge(silent_ms: u64, timers: &Timers) -> NodeHealth {
    if silent_ms <= timers.suspect_ms {
        NodeHealth::Online
    } else if silent_ms <= timers.seal_ms {
        NodeHealth::Suspect
    } else {
        NodeHealth::Offline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_judged() {
        let told = |profile, silent_ms: [u64; 5]| silent_ms.map(|ms| judge(ms, &Timers::of(profile)));
        use NodeHealth::{Offline, Online, Suspect};
        assert_eq!(told(TimerProfile::Standard, [0, 6_000, 6_001, 15_000, 15_001]), [Online, Online, Suspect, Suspect, Offline]);
        assert_eq!(told(TimerProfile::Fast, [0, 2_000, 2_001, 4_000, u64::MAX]), [Online, Online, Suspect, Suspect, Offline]);
    }
}
