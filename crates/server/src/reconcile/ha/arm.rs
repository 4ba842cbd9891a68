//! A node arms its watchdog before it is given highly available VMs.
//!
//! ```text
//!  a VM is to go to N ─► n/N/arm-wanted ─► (agent) n/N/armed/E = watchdog │ unusable ─► owner N, in a transaction that compares that word
//!                             └─ no word for 15 s: as though it were unusable        └─ the wish is taken back after a minute
//! ```
//! The rules are `core::ha::ready`'s, which the simulated leader drives too. The wish is written anew with each owner: an agent that disarms
//! in this moment compares that there is none. Where no node renews its life (a host alone) nobody is asked.

use vmkeep_core::ha::ready::{self, Ready};
use vmkeep_core::ha::record::{NodeNo, Seat};
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::ha::{ArmWanted, Armed};
use vmkeep_types::name::Name;
use vmkeep_types::record::VmRecord;

use super::ledger::Known;
use super::storage::NoStorageFence;
use crate::reconcile::view::{ClusterView, Kept, Touched};

/// An agent that has not answered by then does not: it is of an older version, or in trouble.
const IN_VAIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(15);
/// The order that a node was asked for has come by then.
const TAKEN_BACK: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// May the VM go there now?
#[derive(Debug)]
pub enum Turn {
    Go(Clearance),
    /// What is written first.
    Ask(Txn),
    /// Why not yet.
    Wait(String),
}

/// What a transaction that makes a node an owner compares and writes beside.
#[derive(Debug, Default)]
pub struct Clearance {
    guard: Option<Compare>,
    wish: Option<Op>,
}

impl Clearance {
    pub fn under(self, mut txn: Txn) -> Txn {
        txn.compare.extend(self.guard);
        txn.then.extend(self.wish);
        txn
    }
}

/// Before `node` becomes the VM's owner, its destination, or its owner in a new epoch.
pub fn turn(view: &ClusterView, vm: &VmRecord, node: &Name, now: jiff::Timestamp) -> Turn {
    let Some(keys) = view.nodes.get(node).filter(|_| vm.spec.ha.is_some() && view.renews()) else { return Turn::Go(Clearance::default()) };
    let (Some(life), wanted) = (&keys.life, typed::put(keys::arm_wanted(node), &ArmWanted { at: now })) else {
        return Turn::Go(Clearance::default());
    };
    if of(view, node) == Some(Ready::ArmsFirst) && !view.asked_in_vain.contains(node) {
        return match &keys.arm_wanted {
            Some(_) => Turn::Wait(format!("{node} arms its watchdog first")),
            None => Turn::Ask(Txn::default().when(Compare::Absent(keys::arm_wanted(node))).then(wanted)),
        };
    }
    let epoch = life.value.epoch;
    let guard = keys.armed.get(&epoch).map(|armed| Compare::ModifiedAt(keys::armed(node, epoch), armed.modified));
    Turn::Go(Clearance { guard, wish: Some(wanted) })
}

/// The node that a transaction asks to arm.
pub fn asked(txn: &Txn) -> Option<Name> {
    txn.then.iter().find_map(|op| match op {
        Op::Put(key, _) => key.strip_prefix("n/")?.strip_suffix("/arm-wanted")?.parse().ok(),
        _ => None,
    })
}

/// None: it has not joined.
fn of(view: &ClusterView, node: &Name) -> Option<Ready> {
    let life = view.nodes.get(node)?.life.as_ref()?;
    let known = Known { view, names: std::slice::from_ref(node), storage: &NoStorageFence };
    Some(ready::of_epoch(&known, Seat { node: NodeNo(0), epoch: life.value.epoch }, None))
}

/// Why the node's death could not be proved, in words, if that is known.
pub fn unprovable(view: &ClusterView, node: &Name) -> Option<String> {
    let keys = view.nodes.get(node)?;
    match of(view, node)? {
        Ready::Yes => None,
        Ready::ArmsFirst => view.asked_in_vain.contains(node).then(|| "it does not say whether its watchdog can be armed".into()),
        Ready::Unprovable => Some(match keys.armed.get(&keys.life.as_ref()?.value.epoch).map(|armed| &armed.value) {
            Some(Armed::Unusable { why }) => format!("its watchdog cannot be armed: {why}"),
            _ => "its watchdog is a software one, which proves nothing while the whole host stands still".into(),
        }),
    }
}

/// Wishes that nobody answers, and those that are old.
pub fn look(view: &mut ClusterView, touched: &mut Touched, now: jiff::Timestamp) -> Vec<Txn> {
    let asked: Vec<(Name, Kept<ArmWanted>)> =
        view.nodes.iter().filter_map(|(node, keys)| Some((node.clone(), keys.arm_wanted.clone()?))).collect();
    let mut txns = Vec::new();
    for (node, wanted) in asked {
        let age = now.duration_since(wanted.value.at);
        if age >= IN_VAIN && of(view, &node) == Some(Ready::ArmsFirst) {
            view.ask_in_vain(&node, touched);
        }
        if age >= TAKEN_BACK && !view.expects_protected(&node) {
            let key = keys::arm_wanted(&node);
            txns.push(Txn::default().when(Compare::ModifiedAt(key.clone(), wanted.modified)).then(Op::Delete(key)));
        }
    }
    txns
}

#[cfg(test)]
mod tests;
