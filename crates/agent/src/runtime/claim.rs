//! The claim before every start, local restarts included: no QEMU runs without one.
//!
//! One transaction: *if* the owner record is the one this order came from, this epoch is current, not fenced and armed, and
//! nothing promised never to run this generation again, *then* the claim is written. libvirt is called only if it
//! succeeded and less than [`CLAIM_VALID_MS`] have passed since it was sent (docs/concepts/ownership.md).

use vmkeep_store::{Compare, Held, Op, StoreError, Txn, keys, typed};
use vmkeep_types::order::Order;
use vmkeep_types::record::{Claim, Owner};

use super::clock::boottime_ms;
use super::node::Node;

/// A claim older than this starts nothing.
pub const CLAIM_VALID_MS: u64 = 10_000;

/// Why a claim was not had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("this node no longer owns the VM")]
    NotOwner,
    #[error("the claim was not granted: the node is fenced, or the generation is stopped")]
    NotGranted,
    #[error("the store: {0}")]
    Store(#[from] StoreError),
}

/// A granted claim; good for [`CLAIM_VALID_MS`] from when it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    asked_ms: u64,
}

impl Granted {
    pub fn is_fresh(self) -> bool {
        boottime_ms().saturating_sub(self.asked_ms) < CLAIM_VALID_MS
    }
}

/// Claims the right to start `order.vm` once; `also` is written in the same transaction (the state "unknown").
pub async fn claim(node: &Node, order: &Order, also: Option<Op>) -> Result<Granted, ClaimError> {
    let asked_ms = boottime_ms();
    let owner_key = keys::owner(order.vm);
    let kv = node.store.get(&owner_key).await?.ok_or(ClaimError::NotOwner)?;
    let owner: Owner = typed::decode(&kv)?;
    let epoch = node.epoch();
    if owner.node != node.name || owner.generation != order.generation {
        return Err(ClaimError::NotOwner);
    }
    let life = node.this_life().await?.ok_or(ClaimError::NotGranted)?;
    let claim = Claim { generation: order.generation, epoch, start: uuid::Uuid::new_v4() };
    let mut txn = Txn::default()
        .when(Compare::ModifiedAt(owner_key, kv.modified))
        .when(life)
        .when(Compare::Absent(keys::fence(&node.name, epoch)))
        .when(Compare::Absent(keys::stopped(&node.name, order.vm, order.generation)))
        .when(Compare::Present(keys::armed(&node.name, epoch)))
        .then(typed::put(keys::run(&node.name, order.vm), &claim));
    txn.then.extend(also);
    match node.store.txn(txn).await?.held {
        Held::Yes => Ok(Granted { asked_ms }),
        Held::No => Err(ClaimError::NotGranted),
    }
}
