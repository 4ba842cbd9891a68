//! The leader's transactions about owners. `Owner`, `Own` and `Order` are written together or not at all.

use vmkeep_types::ids::Revision;

use super::super::record::{Compare, Key, NodeNo, Order, Owner, Parked, Rule, Seat, Strictness, Txn, Value, VmNo, Want, Wish};
use super::super::vigil::NodeNow;
use super::super::weakness::Weakness;
use super::Candidate;

/// A VM as the leader decides about it.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub vm: VmNo,
    pub wish: Wish,
    pub owner: Owner,
    pub revision: Revision,
}

impl Candidate {
    fn about(&mut self, case: &Case) -> Txn {
        self.as_leader().when(Compare::Absent(Key::Disarm)).when(Compare::Revision(Key::Owner(case.vm), case.revision))
    }

    fn order(case: &Case, at: Seat, want: Want) -> Order {
        Order { generation: case.owner.generation, epoch: at.epoch, want, max_restart: case.wish.max_restart }
    }

    /// The same owner, told something else.
    pub(super) fn told(&mut self, case: &Case, want: Want) -> Txn {
        let txn = self.about(case).put(Key::Owner(case.vm), Value::Owner(case.owner));
        match case.owner.seat {
            Some(seat) => txn.put(Key::Order(seat.node, case.vm), Value::Order(Self::order(case, seat, want))),
            None => txn,
        }
    }

    /// Nobody's: until its node is back, or (no `parked`) until there is a place for it.
    pub(super) fn let_go(&mut self, case: &Case, parked: Option<Parked>) -> Txn {
        let txn = self.about(case);
        let txn = self.cleared(txn, case, None);
        let owner = Owner { seat: None, to: None, parked, ..case.owner };
        without(txn, case, None).put(Key::Owner(case.vm), Value::Owner(owner))
    }

    pub(super) fn deleted(&mut self, case: &Case) -> Txn {
        let txn = self.about(case);
        let txn = self.cleared(txn, case, None);
        let keys = [Key::Owner(case.vm), Key::Wish(case.vm), Key::Memory(case.vm), Key::Move(case.vm)];
        keys.into_iter().fold(without(txn, case, None), Txn::delete)
    }

    /// Everybody who may run it has been proved dead or has promised not to.
    fn cleared(&self, mut txn: Txn, case: &Case, target: Option<NodeNo>) -> Txn {
        if let Some(seat) = case.owner.seat {
            txn = match self.weak {
                Some(Weakness::PlaceWithoutProof) => txn.when(Compare::Present(Key::Fence(seat.node, seat.epoch))),
                _ => self.end_of(txn, case, seat),
            };
        }
        match case.owner.to {
            Some(to) if Some(to.node) != target => self.end_of(txn, case, to),
            Some(_) | None => txn,
        }
    }

    fn end_of(&self, txn: Txn, case: &Case, seat: Seat) -> Txn {
        let promise = Key::Stopped(seat.node, case.vm, case.owner.generation);
        if self.view.has(promise) {
            txn.when(Compare::Present(promise))
        } else {
            txn.when(Compare::Present(Key::Confirmed(seat.node, seat.epoch)))
        }
    }

    fn at_target(mut txn: Txn, node: NodeNo, is: &NodeNow) -> Txn {
        txn = txn.when(Compare::Revision(Key::Epoch(node), is.epoch_revision)).when(Compare::Absent(Key::Fence(node, is.epoch)));
        // As it said how it would die.
        txn.when(Compare::Present(if is.armed { Key::Armed(node, is.epoch) } else { Key::Unusable(node, is.epoch) }))
    }

    /// Where the VMs of its strict rules are must still be true when it is written.
    fn with_partners(&self, mut txn: Txn, vm: VmNo) -> Txn {
        let Some(settings) = self.view.settings() else { return txn };
        for rule in &settings.rules {
            let (Rule::Together { vms, how: Strictness::Strict } | Rule::Apart { vms, how: Strictness::Strict }) = rule else { continue };
            if !vms.contains(&vm) {
                continue;
            }
            for other in vms.iter().filter(|other| **other != vm) {
                let owner = self.view.owner(*other);
                let key = Key::Owner(*other);
                txn = txn.when(owner.map_or(Compare::Absent(key), |(_, revision)| Compare::Revision(key, revision)));
            }
        }
        txn
    }

    /// A new owner, one generation on.
    pub(super) fn placed(&mut self, case: &Case, node: NodeNo, is: &NodeNow, want: Want) -> Txn {
        let txn = self.about(case);
        let txn = self.with_partners(Self::at_target(self.cleared(txn, case, Some(node)), node, is), case.vm);
        let generation = case.owner.generation.next();
        let owner = Owner { seat: Some(Seat { node, epoch: is.epoch }), generation, to: None, parked: None };
        let order = Order { generation, epoch: is.epoch, want, max_restart: case.wish.max_restart };
        let txn = without(txn, case, Some(node)).delete(Key::ArmWanted(node));
        let txn = txn.put(Key::Owner(case.vm), Value::Owner(owner)).put(Key::Own(node, case.vm), Value::Mark);
        txn.put(Key::Order(node, case.vm), Value::Order(order))
    }

    /// The guest is sent to another node; the owner stays who it is.
    pub(super) fn moving(&mut self, case: &Case, from: Seat, node: NodeNo, is: &NodeNow) -> Txn {
        let txn = self.about(case);
        let txn = self.with_partners(Self::at_target(txn, node, is), case.vm);
        let to = Seat { node, epoch: is.epoch };
        let owner = Owner { to: Some(to), ..case.owner };
        let txn = txn.put(Key::Owner(case.vm), Value::Owner(owner)).put(Key::Own(node, case.vm), Value::Mark).delete(Key::ArmWanted(node));
        let txn = txn.put(Key::Order(from.node, case.vm), Value::Order(Self::order(case, from, Want::MoveOut(node))));
        txn.put(Key::Order(node, case.vm), Value::Order(Self::order(case, to, Want::MoveIn)))
    }

    /// The move is called off; the source keeps the guest.
    pub(super) fn stays(&mut self, case: &Case, to: NodeNo) -> Txn {
        let owner = Owner { to: None, ..case.owner };
        let kept = Case { owner, ..*case };
        self.told(&kept, Want::Run).delete(Key::Own(to, case.vm)).delete(Key::Order(to, case.vm))
    }

    pub(super) fn arm_wanted(&mut self, node: NodeNo) -> Txn {
        self.as_leader().put(Key::ArmWanted(node), Value::Mark)
    }
}

/// Takes the VM from the nodes that had it, but for `keep`.
fn without(mut txn: Txn, case: &Case, keep: Option<NodeNo>) -> Txn {
    for seat in [case.owner.seat, case.owner.to].into_iter().flatten() {
        if Some(seat.node) != keep {
            txn = txn.delete(Key::Own(seat.node, case.vm)).delete(Key::Order(seat.node, case.vm)).delete(Key::Seen(seat.node, case.vm));
        }
    }
    txn
}
