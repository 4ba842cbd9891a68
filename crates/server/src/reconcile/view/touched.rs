//! What changes of the store ask the planner to look at.

use std::collections::BTreeSet;
use std::ops::Bound;

use vmkeep_types::ids::{OperationId, VmId};
use vmkeep_types::name::Name;

/// What changes asked the planner to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub vms: BTreeSet<VmId>,
    /// All VMs that have no node, whoever they are when it comes to it: thousands may wait while a thousand nodes change, and each change
    /// concerns them all.
    pub homeless: bool,
    pub tasks: BTreeSet<(Name, OperationId)>,
    /// Deletions of images and networks.
    pub deletions: BTreeSet<OperationId>,
    pub nodes_with_events: BTreeSet<Name>,
    /// Nodes that the index may not know yet.
    pub joiners: BTreeSet<Name>,
    /// The VM that was looked at last.
    pub(super) turn: Option<VmId>,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        self.vms.is_empty()
            && !self.homeless
            && self.tasks.is_empty()
            && self.deletions.is_empty()
            && self.nodes_with_events.is_empty()
            && self.joiners.is_empty()
    }

    /// So many VMs, and no more of them next time before all others had their turn.
    pub fn next_vms(&mut self, count: usize) -> Vec<VmId> {
        let mut next: Vec<VmId> = match self.turn {
            Some(last) => self.vms.range((Bound::Excluded(last), Bound::Unbounded)).take(count).copied().collect(),
            None => self.vms.iter().take(count).copied().collect(),
        };
        if next.len() < count {
            let more = count - next.len();
            let first = next.first().copied();
            next.extend(self.vms.iter().take(more).take_while(|id| first.is_none_or(|first| **id < first)));
        }
        for id in &next {
            self.vms.remove(id);
        }
        self.turn = next.last().copied();
        next
    }

    pub fn clear_all_but_vms(&mut self) {
        self.homeless = false;
        self.tasks.clear();
        self.deletions.clear();
        self.nodes_with_events.clear();
        self.joiners.clear();
    }
}
