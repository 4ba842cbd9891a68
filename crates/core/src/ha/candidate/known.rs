//! The store as a simulated candidate knows it, as a [`Vigil`](crate::ha::vigil::Vigil) reads it.

use vmkeep_types::ids::{Epoch, Revision};

use super::Roster;
use super::view::View;
use crate::ha::record::{Armed, EpochRecord, Farewell, Fence, Key, NodeNo, Seat, StorageCan};
use crate::ha::vigil::{Ledger, Stake};

/// The store as this candidate knows it, with names.
pub struct Known<'a> {
    pub view: &'a View,
    pub roster: &'a Roster,
}

impl Ledger for Known<'_> {
    fn nodes(&self) -> usize {
        self.view.settings().map_or(0, |settings| settings.sizes.len())
    }

    fn name(&self, node: NodeNo) -> &str {
        self.roster.node(node)
    }

    fn epoch(&self, node: NodeNo) -> Option<(EpochRecord, Revision)> {
        self.view.epoch(node).map(|(record, revision)| (*record, revision))
    }

    fn fence(&self, node: NodeNo, epoch: Epoch) -> Option<(Fence, Revision)> {
        self.view.fence(node, epoch).map(|(fence, revision)| (*fence, revision))
    }

    fn armed(&self, node: NodeNo, epoch: Epoch) -> Option<(Armed, Revision)> {
        self.view.armed(node, epoch).map(|(armed, revision)| (*armed, revision))
    }

    fn cannot_arm(&self, node: NodeNo, epoch: Epoch) -> bool {
        self.view.has(Key::Unusable(node, epoch))
    }

    fn is_confirmed(&self, node: NodeNo, epoch: Epoch) -> bool {
        self.view.has(Key::Confirmed(node, epoch))
    }

    fn is_waiting(&self, node: NodeNo) -> bool {
        self.view.has(Key::Waiting(node))
    }

    fn in_maintenance(&self, node: NodeNo) -> bool {
        self.view.has(Key::Policy(node))
    }

    fn leaving(&self, node: NodeNo) -> Option<Farewell> {
        self.view.leaving(node).map(|(farewell, _)| *farewell)
    }

    fn is_disarmed(&self) -> bool {
        self.view.disarm().is_some()
    }

    fn can_cut(&self, node: NodeNo) -> bool {
        self.view.settings().is_some_and(|settings| settings.stonith.contains(&node))
    }

    fn can_refuse(&self, _: NodeNo) -> bool {
        self.view.settings().is_some_and(|settings| settings.storage == StorageCan::RefuseNodes)
    }

    fn cut_is_tested(&self, node: NodeNo) -> bool {
        self.can_cut(node)
    }

    /// Of this epoch; what is left of one before is cleared by the recovery.
    fn stake(&self, seat: Seat) -> Stake {
        let holds = |vm| self.view.owner(vm).is_some_and(|(owner, _)| owner.seat == Some(seat) || owner.to == Some(seat));
        if self.view.vms().any(|(vm, _)| holds(vm)) { Stake::Vms } else { Stake::Nothing }
    }

    fn owns_any(&self, node: NodeNo) -> bool {
        self.view.vms().any(|(vm, _)| self.view.has(Key::Own(node, vm)))
    }
}
