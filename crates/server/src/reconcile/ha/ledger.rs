//! The cluster's view as a [`Vigil`](vmkeep_core::ha::vigil::Vigil) reads it.

use vmkeep_core::ha::record::{self, EpochRecord, Farewell, NodeNo, Seat};
use vmkeep_core::ha::vigil::{Ledger, Stake};
use vmkeep_types::ha::Armed;
use vmkeep_types::ids::{Epoch, Revision};
use vmkeep_types::name::Name;
use vmkeep_types::node::Closure;

use super::storage::{self, StorageFence};
use crate::reconcile::view::{ClusterView, FenceIs, NodeKeys};

/// The view, with the numbers of its nodes.
pub struct Known<'a> {
    pub view: &'a ClusterView,
    pub names: &'a [Name],
    pub storage: &'a dyn StorageFence,
}

impl Known<'_> {
    pub fn node(&self, node: NodeNo) -> &Name {
        &self.names[usize::from(node.0)]
    }

    fn keys(&self, node: NodeNo) -> Option<&NodeKeys> {
        self.view.nodes.get(self.node(node))
    }
}

impl Ledger for Known<'_> {
    fn nodes(&self) -> usize {
        self.names.len()
    }

    fn name(&self, node: NodeNo) -> &str {
        self.node(node).as_str()
    }

    fn epoch(&self, node: NodeNo) -> Option<(EpochRecord, Revision)> {
        let life = self.keys(node)?.life.as_ref()?;
        // Which boot it was is between the node's agent and its host.
        Some((EpochRecord { epoch: life.value.epoch, boot: 0, closed: life.value.closed }, life.modified))
    }

    fn fence(&self, node: NodeNo, epoch: Epoch) -> Option<(record::Fence, Revision)> {
        let fence = self.view.fences.get(&(self.node(node).clone(), epoch))?;
        Some((record::Fence { beat: fence.value.beat, by: NodeNo(0) }, fence.modified))
    }

    fn armed(&self, node: NodeNo, epoch: Epoch) -> Option<(record::Armed, Revision)> {
        let armed = self.keys(node)?.armed.get(&epoch)?;
        match armed.value {
            Armed::None | Armed::Unusable { .. } => None,
            Armed::Watchdog { pet_ms, watchdog_ms, kind } => Some((record::Armed { pet_ms, watchdog_ms, kind }, armed.modified)),
        }
    }

    fn cannot_arm(&self, node: NodeNo, epoch: Epoch) -> bool {
        self.keys(node).and_then(|keys| keys.armed.get(&epoch)).is_some_and(|armed| matches!(armed.value, Armed::Unusable { .. }))
    }

    fn is_confirmed(&self, node: NodeNo, epoch: Epoch) -> bool {
        self.view.confirmed.contains_key(&(self.node(node).clone(), epoch))
    }

    fn is_waiting(&self, node: NodeNo) -> bool {
        self.keys(node).is_some_and(|keys| keys.waiting)
    }

    fn in_maintenance(&self, node: NodeNo) -> bool {
        let cordon = self.keys(node).and_then(|keys| keys.record.as_ref()?.value.cordon.as_ref());
        cordon.is_some_and(|cordon| cordon.closure == Closure::Maintenance)
    }

    fn leaving(&self, node: NodeNo) -> Option<Farewell> {
        self.view.departure(self.node(node)).map(|departure| departure.value.farewell)
    }

    fn is_disarmed(&self) -> bool {
        self.view.disarmed.is_some()
    }

    fn can_cut(&self, node: NodeNo) -> bool {
        self.view.fenceable.contains_key(self.node(node))
    }

    fn can_refuse(&self, node: NodeNo) -> bool {
        storage::pools_of(self.view, self.storage, self.node(node)).is_some()
    }

    fn cut_is_tested(&self, node: NodeNo) -> bool {
        self.view.fenceable.get(self.node(node)) == Some(&FenceIs::Tested)
    }

    fn stake(&self, seat: Seat) -> Stake {
        if self.view.owns_protected(self.node(seat.node)) { Stake::Vms } else { Stake::Others }
    }

    fn owns_any(&self, node: NodeNo) -> bool {
        self.view.fleet().seat(self.node(node)).is_none_or(|seat| !seat.owned.is_empty() || !seat.coming.is_empty())
    }
}
