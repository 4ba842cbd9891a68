//! What a node's silence means. The leader measures it on its own clock, from when it saw the last heartbeat.

use vmkeep_types::host::NodeHealth;

/// Between two heartbeats.
pub const BEAT_MS: u64 = 3_000;
/// One heartbeat was missed, and its next is late.
pub const SUSPECT_MS: u64 = 2 * BEAT_MS;
/// etcd changes its leader in 1 to 3 s, a busy host stalls: none of that is an outage.
pub const OFFLINE_MS: u64 = 15_000;

/// The health of a node that has been silent for so long.
pub fn judge(silent_ms: u64) -> NodeHealth {
    if silent_ms <= SUSPECT_MS {
        NodeHealth::Online
    } else if silent_ms <= OFFLINE_MS {
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
        let told: Vec<_> = [0, 3_000, 6_000, 6_001, 15_000, 15_001, u64::MAX].map(judge).to_vec();
        use NodeHealth::{Offline, Online, Suspect};
        assert_eq!(told, [Online, Online, Online, Suspect, Suspect, Offline, Offline]);
    }
}
