//! What one look of the leader at all VMs shares.

use std::collections::BTreeMap;

use super::super::record::{NodeNo, Seat};
use super::super::vigil::{NodeNow, NodeState};
use super::place::Board;
use super::write::Case;

pub(super) struct Scene {
    pub nodes: Vec<NodeNow>,
    pub board: Board,
    /// VMs that are being started, and moved away, by node.
    pub starting: BTreeMap<NodeNo, usize>,
    pub leaving: BTreeMap<NodeNo, usize>,
    pub moves: usize,
    pub queue: Vec<Case>,
}

impl Scene {
    pub(super) fn node(&self, node: NodeNo) -> Option<&NodeNow> {
        self.nodes.get(usize::from(node.0))
    }

    /// Does the epoch still hold its VMs, as far as is known?
    pub(super) fn lives(&self, seat: Seat) -> bool {
        let is = self.node(seat.node);
        is.is_some_and(|is| is.epoch == seat.epoch && matches!(is.state, NodeState::Online | NodeState::Suspect))
    }
}
