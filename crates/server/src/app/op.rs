//! Operations: shown, cancelled, and forgotten in time.

use std::collections::BTreeMap;

use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{ImageId, NetworkId, OperationId, VolumeId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::operation::{OpState, Operation, Wanted};
use vmkeep_types::pool::VolumeRecord;

use super::{Ask, commit, get, node, put_op};
use crate::reconcile::deletion;

/// Ended operations are kept this long.
const KEEP_DAYS: i64 = 7;
/// And at most so many of one object.
const KEEP_PER_OBJECT: usize = 20;
/// Keys of tasks and results that are deleted with the mark of a cancelled operation: well within one transaction.
const TASK_KEYS_MAX: usize = 100;
/// Deletes per transaction.
const DELETES_PER_TXN: usize = 100;

pub async fn find(store: &dyn Store, project: &Name, id: &str) -> Result<Stored<Operation>, Error> {
    let id: OperationId = id.parse().map_err(|_| Error::invalid(format!("'{id}' is not an operation's id")))?;
    get(store, &keys::op(project, id)).await?.ok_or_else(|| Error::not_found("operation", id))
}

/// Ends an operation that can be: a node's task, or a wish that no node could take. A wish itself is never taken back.
pub async fn cancel(store: &dyn Store, ask: &Ask, id: &str) -> Result<Operation, Error> {
    let stored = find(store, &ask.project, id).await?;
    ask.expect(&stored.value.resource.name, &stored)?;
    if stored.value.state.is_over() {
        return Err(Error::conflict(format!("operation {id} is over already")));
    }
    if stored.value.wanted == Wanted::Moved {
        return super::vm_migrate::call_off(store, ask, &stored).await;
    }
    if stored.value.wanted == Wanted::Drained {
        return super::drain::call_off(store, ask, &stored).await;
    }
    let (key, op) = (stored.key, stored.value);
    if op.wanted != Wanted::Task && op.blocked.is_none() {
        let hint = "change the wish instead: stop, apply or delete";
        return Err(Error::conflict("this operation only reports how a wish is carried out; it cannot be cancelled").hint(hint));
    }
    let over = Operation { state: OpState::Cancelled, ended_at: Some(jiff::Timestamp::now()), ..op };
    let mut txn = Txn::default().when(Compare::ModifiedAt(key, stored.modified)).then(put_op(&over));
    // What many nodes were told is taken back by the leader.
    for key in tasks(store, over.id).await?.into_iter().take(TASK_KEYS_MAX) {
        txn = txn.then(Op::Delete(key));
    }
    txn = drop_half_made(store, &over, txn).await?;
    let clone = super::vm_copy::give_up(store, &over).await?;
    txn.compare.extend(clone.compare);
    txn.then.extend(clone.then);
    commit(store, txn).await?.map(|_| over).ok_or_else(|| Error::conflict("the operation moved on meanwhile; look again"))
}

/// Where nodes were told to do something for it, and where they say what came of it.
async fn tasks(store: &dyn Store, op: OperationId) -> Result<Vec<String>, Error> {
    let nodes = node::names(store).await?;
    let tasks = node::key_of_each(store, &nodes, |name| keys::task(name, op)).await?;
    let results = node::key_of_each(store, &nodes, |name| keys::result(name, op)).await?;
    let told = nodes.iter().zip(tasks.iter().zip(&results)).filter(|(_, (task, result))| task.is_some() || result.is_some());
    Ok(told.flat_map(|(node, _)| [keys::task(node, op), keys::result(node, op)]).collect())
}

/// A cancelled import or creation leaves no record behind. An image whose deletion was cancelled may have lost its file: it
/// can only be deleted again. A network is made anew when it is wanted, so it stays.
async fn drop_half_made(store: &dyn Store, op: &Operation, txn: Txn) -> Result<Txn, Error> {
    let name = |kind| keys::name(kind, &op.project, &op.resource.name);
    match op.kind.as_str() {
        "volume.create" => {
            let found = get::<VolumeRecord>(store, &keys::volume(&op.project, VolumeId(op.resource.uid))).await?;
            let Some(half) = found.filter(|v| v.value.filling == Some(op.id)) else { return Ok(txn) };
            Ok(txn.when(Compare::ModifiedAt(half.key.clone(), half.modified)).then(Op::Delete(half.key)).then(Op::Delete(name("volume"))))
        }
        "image.import" => {
            let found = get::<ImageRecord>(store, &keys::image(&op.project, ImageId(op.resource.uid))).await?;
            let Some(half) = found.filter(|i| i.value.facts.is_none()) else { return Ok(txn) };
            Ok(txn.when(Compare::ModifiedAt(half.key.clone(), half.modified)).then(Op::Delete(half.key)).then(Op::Delete(name("image"))))
        }
        deletion::NETWORK => {
            let found = get::<NetworkRecord>(store, &keys::network(&op.project, NetworkId(op.resource.uid))).await?;
            let Some(marked) = found.filter(|n| n.value.leaving == Some(op.id)) else { return Ok(txn) };
            let stays = NetworkRecord { leaving: None, ..marked.value };
            Ok(txn.when(Compare::ModifiedAt(marked.key.clone(), marked.modified)).then(typed::put(marked.key, &stays)))
        }
        _ => Ok(txn),
    }
}

pub(super) async fn expire(store: &dyn Store, only_if: Option<&Compare>) -> Result<(), StoreError> {
    let oldest = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * KEEP_DAYS);
    let mut of_object: BTreeMap<uuid::Uuid, usize> = BTreeMap::new();
    let mut gone = Vec::new();
    let mut all = typed::list_readable::<Operation>(store, keys::ALL_OPS).await?;
    // Newest first, so that the newest of each object stay.
    all.sort_by_key(|stored| std::cmp::Reverse((stored.value.created_at, stored.value.id)));
    for stored in all {
        let Some(ended) = stored.value.ended_at else { continue };
        let count = of_object.entry(stored.value.resource.uid).or_default();
        *count += 1;
        if ended < oldest || *count > KEEP_PER_OBJECT {
            gone.push(stored.key);
        }
    }
    delete_all(store, gone, only_if).await?;
    delete_all(store, super::ask::forget_repeats(store).await?, only_if).await
}

pub(super) async fn delete_all(store: &dyn Store, gone: Vec<String>, only_if: Option<&Compare>) -> Result<(), StoreError> {
    for chunk in gone.chunks(DELETES_PER_TXN) {
        let then = chunk.iter().cloned().map(Op::Delete).collect();
        store.txn(Txn { compare: only_if.cloned().into_iter().collect(), then, ..Txn::default() }).await?;
    }
    Ok(())
}
