//! Whose turn it is when many VMs have lost their nodes: by priority, a few at a time.

use super::clock::Now;

/// Starts at once on one node: disks and CPUs of the host are what a start waits for.
pub const STARTS_PER_NODE: usize = 4;

/// Starts at once in the cluster: what the store and the storage take.
pub const STARTS_MAX: usize = 256;

/// The next priority begins when the one before runs, or after so long, ms.
pub const TIER_MS: u64 = 10_000;

/// The priority whose turn it is, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Turns(Option<(u8, Now)>);

impl Turns {
    /// `lowest`: the first priority of which a VM waits or is being started.
    pub fn look(&mut self, lowest: Option<u8>, now: Now) {
        self.0 = match (lowest, self.0) {
            (None, _) => None,
            (Some(lowest), Some((tier, since))) if tier == lowest => Some((tier, since)),
            (Some(lowest), _) => Some((lowest, now)),
        };
    }

    /// May a VM of this priority be started?
    pub fn has_come(&self, priority: u8, now: Now) -> bool {
        let open = self.0.map_or(0, |(tier, since)| u64::from(tier) + now.longest_since(since) / TIER_MS);
        u64::from(priority) <= open
    }
}
