//! What is tried on nodes from elsewhere after their seal, each by one epoch: once at a time, and again some time after it failed.

use std::collections::BTreeMap;

use vmkeep_types::ids::Epoch;

use super::clock::Now;
use super::record::NodeNo;

/// Between the end of one that failed and the next, ms.
const AGAIN_MS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Attempt {
    UnderWay,
    Failed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attempts(BTreeMap<NodeNo, (Epoch, Now, Attempt)>);

impl Attempts {
    pub fn is_due(&self, now: Now, node: NodeNo, epoch: Epoch) -> bool {
        self.0.get(&node).is_none_or(|(of, at, is)| *of != epoch || *is == Attempt::Failed && now.longest_since(*at) >= AGAIN_MS)
    }

    pub fn begin(&mut self, now: Now, node: NodeNo, epoch: Epoch) {
        self.0.insert(node, (epoch, now, Attempt::UnderWay));
    }

    /// What came of it is written by whoever knows; until that stands there it counts as failed.
    pub fn end(&mut self, now: Now, node: NodeNo, epoch: Epoch) {
        self.0.insert(node, (epoch, now, Attempt::Failed));
    }
}
