//! What changes of the store ask the planner to look at, and whose turn it is.
//!
//! ```text
//!  named by a change ──────────────────────────► half of a look ───┐
//!  of the first listing: without a node, busy ─► half of the rest ─┼─► next_vms
//!                        settled ──────────────► what is left ─────┘
//! ```
//! After a change of leaders all VMs there are count as touched. Somebody waits for those that a change names; nobody waits for one that
//! is settled. None is left out for ever: each kind has its share of every look, and within it nobody comes twice before all others came.

use std::collections::BTreeSet;
use std::ops::Bound;

use vmkeep_types::ids::{OperationId, Revision, VmId};
use vmkeep_types::name::Name;

use super::ClusterView;

/// What changes asked the planner to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Named by a change.
    pub vms: Turns,
    /// Touched with all others, and with something to do: without a node, on their way, with an open operation.
    pub busy: Turns,
    /// Touched with all others; most likely there is nothing to do.
    pub settled: Turns,
    /// All VMs that have no node, whoever they are when it comes to it: thousands may wait while a thousand nodes change, and each change
    /// concerns them all.
    pub homeless: bool,
    pub tasks: BTreeSet<(Name, OperationId)>,
    /// Deletions of images and networks.
    pub deletions: BTreeSet<OperationId>,
    pub nodes_with_events: BTreeSet<Name>,
    /// Nodes that the index may not know yet.
    pub joiners: BTreeSet<Name>,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        !self.has_vms()
            && !self.homeless
            && self.tasks.is_empty()
            && self.deletions.is_empty()
            && self.nodes_with_events.is_empty()
            && self.joiners.is_empty()
    }

    fn has_vms(&self) -> bool {
        [&self.vms, &self.busy, &self.settled].iter().any(|kind| !kind.is_empty())
    }

    /// So many VMs, and no more of them next time before all others of their kind had their turn.
    pub fn next_vms(&mut self, count: usize) -> Vec<VmId> {
        let mut next = self.vms.take(share(count, self.busy.len() + self.settled.len()));
        // One look is enough, whatever it was touched for.
        self.busy.leave_out(&next);
        self.settled.leave_out(&next);
        let busy = self.busy.take(share(count - next.len(), self.settled.len()));
        self.settled.leave_out(&busy);
        next.extend(busy);
        next.extend(self.settled.take(count - next.len()));
        self.vms.leave_out(&next);
        next
    }

    pub fn forget_vms(&mut self) {
        [&mut self.vms, &mut self.busy, &mut self.settled].into_iter().for_each(|kind| kind.0.clear());
        self.homeless = false;
    }

    pub fn clear_all_but_vms(&mut self) {
        self.homeless = false;
        self.tasks.clear();
        self.deletions.clear();
        self.nodes_with_events.clear();
        self.joiners.clear();
    }
}

impl ClusterView {
    /// What was listed is all there is, at this revision.
    pub fn begun(&mut self, revision: Revision, touched: &mut Touched) {
        self.revision = revision;
        self.stage = Stage::Following;
        self.seat_all();
        let named = touched.vms.drain();
        self.touch_all(named, touched);
    }

    /// All VMs there are, and these: for no reason of their own.
    pub(super) fn touch_all(&self, also: BTreeSet<VmId>, touched: &mut Touched) {
        let (settled, busy): (BTreeSet<VmId>, BTreeSet<VmId>) = self.vms.keys().copied().chain(also).partition(|id| self.is_settled(*id));
        touched.settled.extend(settled);
        touched.busy.extend(busy);
    }

    /// It has a node, is not on its way, and nobody waits for it.
    fn is_settled(&self, id: VmId) -> bool {
        let stays = self.vms.get(&id).is_some_and(|vm| vm.value.leaving.is_none());
        let asked = self.open_ops.contains_key(&id) || self.moves.contains_key(&id) || self.memories.contains_key(&id);
        stays && self.owners.contains_key(&id) && !asked
    }
}

/// A VM has several keys, and each says where it belongs: while all of them come, that is worked out once, at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    Listing,
    #[default]
    Following,
}

/// Of `count` places, those that the first kind may have while `others` wait: all but half, or what they need.
fn share(count: usize, others: usize) -> usize {
    count - others.min(count / 2)
}

/// VMs of one kind, and who of them was looked at last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turns(BTreeSet<VmId>, Option<VmId>);

impl Turns {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn insert(&mut self, id: VmId) {
        self.0.insert(id);
    }

    pub fn drain(&mut self) -> BTreeSet<VmId> {
        std::mem::take(&mut self.0)
    }

    fn leave_out(&mut self, ids: &[VmId]) {
        for id in ids {
            self.0.remove(id);
        }
    }

    fn take(&mut self, count: usize) -> Vec<VmId> {
        let mut next: Vec<VmId> = match self.1 {
            Some(last) => self.0.range((Bound::Excluded(last), Bound::Unbounded)).take(count).copied().collect(),
            None => self.0.iter().take(count).copied().collect(),
        };
        if next.len() < count {
            let more = count - next.len();
            let first = next.first().copied();
            next.extend(self.0.iter().take(more).take_while(|id| first.is_none_or(|first| **id < first)));
        }
        for id in &next {
            self.0.remove(id);
        }
        self.1 = next.last().copied().or(self.1);
        next
    }
}

impl Extend<VmId> for Turns {
    fn extend<I: IntoIterator<Item = VmId>>(&mut self, ids: I) {
        self.0.extend(ids);
    }
}

impl<'a> Extend<&'a VmId> for Turns {
    fn extend<I: IntoIterator<Item = &'a VmId>>(&mut self, ids: I) {
        self.0.extend(ids);
    }
}

impl FromIterator<VmId> for Turns {
    fn from_iter<I: IntoIterator<Item = VmId>>(ids: I) -> Self {
        Self(ids.into_iter().collect(), None)
    }
}
