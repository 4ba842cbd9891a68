//! A store restored from a backup, or from what one member still had: what it says may be older than what runs.
//!
//! ```text
//!  begin_life (nobody else has the store yet): incarnation, recovery ─► epochs gone, generations raised, moves ended, lost etcd
//!  members gone ─► each node says what it has, or is confirmed lost ─► leader: owners follow what runs ─► recovery gone
//! ```
//! While `cluster/recovery` is there no claim is granted and nothing is placed. Every step can be repeated.

use std::collections::BTreeSet;

use jiff::Timestamp;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::cluster::{Incarnation, MemberRecord, Recovery, Rejoined};
use vmkeep_types::error::Error;
use vmkeep_types::ids::Generation;
use vmkeep_types::migration::Migration;
use vmkeep_types::name::Name;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::record::Owner;

use super::{commit, get, list, node, store_error};

/// Records changed in one transaction.
const PER_TXN: usize = 50;

/// Begins the incarnation `number` of a store that nobody else uses yet; `survivor` is the only member of etcd that stays.
///
/// # Errors
/// The store's; the whole can be repeated.
pub async fn begin_life(store: &dyn Store, survivor: &Name, number: u64, lost: &BTreeSet<Name>, now: Timestamp) -> Result<(), Error> {
    let nodes = node::names(store).await?;
    let before = get::<Incarnation>(store, keys::CLUSTER_INCARNATION).await?;
    if before.is_none_or(|before| before.value.number < number) {
        let recovery = Recovery {
            incarnation: number,
            since: now,
            nodes: nodes.iter().cloned().collect(),
            lost: lost.iter().filter(|node| nodes.contains(node)).cloned().collect(),
        };
        let life = Incarnation { number, id: uuid::Uuid::new_v4() };
        let txn = Txn::default().then(typed::put(keys::CLUSTER_RECOVERY, &recovery));
        commit(store, txn.then(typed::put(keys::CLUSTER_INCARNATION, &life))).await?;
    }
    for node in &nodes {
        commit(store, Txn::default().then(Op::Delete(keys::epoch(node))).then(Op::Delete(keys::rejoined(node)))).await?;
    }
    for member in list::<MemberRecord>(store, keys::ALL_MEMBERS).await?.iter().map(|member| &member.value) {
        if member.node != *survivor && member.has_etcd() {
            let gone = Txn::default().then(Op::Delete(keys::member(&member.node))).then(Op::Delete(keys::word(&member.node)));
            commit(store, gone.then(Op::Delete(keys::control(&member.node)))).await?;
        }
    }
    end_moves(store, &nodes, now).await?;
    raise(store, Generation::first_of(number)).await
}

/// A guest that was on its way is where it runs now.
async fn end_moves(store: &dyn Store, nodes: &[Name], now: Timestamp) -> Result<(), Error> {
    for stored in list::<Migration>(store, keys::ALL_MIGRATIONS).await? {
        let moving = &stored.value;
        for nodes in nodes.chunks(PER_TXN) {
            let parts = nodes.iter().flat_map(|node| [keys::move_order(node, moving.vm), keys::move_seen(node, moving.vm)]);
            commit(store, Txn { then: parts.map(Op::Delete).collect(), ..Txn::default() }).await?;
        }
        let mut txn = Txn::default().then(Op::Delete(stored.key));
        if let Some(op) = get::<Operation>(store, &keys::op(&moving.project, moving.op)).await?.filter(|op| !op.value.state.is_over()) {
            let error = Some(Error::conflict("the cluster was recovered from a backup meanwhile"));
            let over = Operation { state: OpState::Failed, error, ended_at: Some(now), blocked: None, ..op.value };
            txn = txn.then(typed::put(op.key, &over));
        }
        commit(store, txn).await?;
    }
    Ok(())
}

/// No right to run that was given after the backup is as high.
async fn raise(store: &dyn Store, floor: Generation) -> Result<(), Error> {
    let owners = list::<Owner>(store, keys::ALL_OWNERS).await?;
    let low: Vec<_> = owners.into_iter().filter(|owner| owner.value.generation < floor || owner.value.to.is_some()).collect();
    for part in low.chunks(PER_TXN) {
        let txn = part.iter().fold(Txn::default(), |txn, owner| {
            let raised = Owner { generation: owner.value.generation.max(floor), to: None, ..owner.value.clone() };
            txn.when(Compare::ModifiedAt(owner.key.clone(), owner.modified)).then(typed::put(owner.key.clone(), &raised))
        });
        commit(store, txn).await?;
    }
    Ok(())
}

/// The nodes that a recovery still waits for; None: there is none.
///
/// # Errors
/// The store's.
pub async fn waits_for(store: &dyn Store) -> Result<Option<Vec<Name>>, Error> {
    let Some(recovery) = get::<Recovery>(store, keys::CLUSTER_RECOVERY).await? else { return Ok(None) };
    let mut silent = Vec::new();
    for node in recovery.value.nodes.difference(&recovery.value.lost) {
        if !has_told(store, node, recovery.value.incarnation).await? {
            silent.push(node.clone());
        }
    }
    Ok(Some(silent))
}

async fn has_told(store: &dyn Store, node: &Name, incarnation: u64) -> Result<bool, Error> {
    Ok(get::<Rejoined>(store, &keys::rejoined(node)).await?.is_some_and(|told| told.value.incarnation == incarnation))
}

/// An operator's word that a node is gone for good: nobody waits for what it has.
///
/// # Errors
/// No recovery waits for it; the store's.
pub async fn lose(store: &dyn Store, node: &Name) -> Result<(), Error> {
    let none = || Error::conflict(format!("nobody waits for '{node}'")).hint("vmkeep cluster status says for whom");
    let found = get::<Recovery>(store, keys::CLUSTER_RECOVERY).await?.ok_or_else(none)?;
    if !found.value.nodes.contains(node) {
        return Err(none());
    }
    if has_told(store, node, found.value.incarnation).await? {
        return Err(Error::conflict(format!("'{node}' lives: it has said what it runs")));
    }
    let mut recovery = found.value;
    recovery.lost.insert(node.clone());
    let txn = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).when(Compare::Absent(keys::rejoined(node)));
    match commit(store, txn.then(typed::put(found.key, &recovery))).await? {
        Some(_) => Ok(()),
        None => Err(Error::conflict("the recovery goes on at this moment; try again")),
    }
}

/// For a status: the store's word on it, whatever else is wrong.
///
/// # Errors
/// The store's.
pub async fn incarnation(store: &dyn Store) -> Result<u64, Error> {
    let found = typed::get_json::<Incarnation>(store, keys::CLUSTER_INCARNATION).await.map_err(store_error)?;
    Ok(found.map_or(0, |found| found.value.number))
}
