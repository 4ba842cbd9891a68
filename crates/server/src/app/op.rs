//! Operations: shown, cancelled, and forgotten in time.

use std::collections::BTreeMap;

use vmkeep_store::{Compare, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::OperationId;
use vmkeep_types::name::Name;
use vmkeep_types::operation::{OpState, Operation, Wanted};

use super::{commit, get, nodes, put_op};

/// Ended operations are kept this long.
const KEEP_DAYS: i64 = 7;
/// And at most so many of one object.
const KEEP_PER_OBJECT: usize = 20;
/// Deletes per transaction.
const DELETES_PER_TXN: usize = 100;

pub async fn find(store: &dyn Store, project: &Name, id: &str) -> Result<Operation, Error> {
    let id: OperationId = id.parse().map_err(|_| Error::invalid(format!("'{id}' is not an operation's id")))?;
    get(store, &keys::op(project, id)).await?.map(|s| s.value).ok_or_else(|| Error::not_found("operation", id))
}

/// Ends an operation that can be: a node's task, or a wish that no node could take. A wish itself is never taken back.
pub async fn cancel(store: &dyn Store, project: &Name, id: &str) -> Result<Operation, Error> {
    let found = find(store, project, id).await?;
    let key = keys::op(project, found.id);
    let stored = get::<Operation>(store, &key).await?.ok_or_else(|| Error::not_found("operation", id))?;
    let op = stored.value;
    if op.state.is_over() {
        return Err(Error::conflict(format!("operation {id} is over already")));
    }
    if op.wanted != Wanted::Task && op.blocked.is_none() {
        let hint = "change the wish instead: stop, apply or delete";
        return Err(Error::conflict("this operation only reports how a wish is carried out; it cannot be cancelled").hint(hint));
    }
    let over = Operation { state: OpState::Cancelled, ended_at: Some(jiff::Timestamp::now()), ..op };
    let mut txn = Txn::default().when(Compare::ModifiedAt(key, stored.modified)).then(put_op(&over));
    for node in nodes(store).await? {
        txn = txn.then(Op::Delete(keys::task(&node.name, over.id))).then(Op::Delete(keys::result(&node.name, over.id)));
    }
    txn.then.extend(drop_half_made(store, &over).await?);
    commit(store, txn).await?.map(|_| over).ok_or_else(|| Error::conflict("the operation moved on meanwhile; look again"))
}

/// A cancelled import or creation leaves no record behind.
async fn drop_half_made(store: &dyn Store, op: &Operation) -> Result<Vec<Op>, Error> {
    if op.kind == "volume.create" {
        let id = vmkeep_types::ids::VolumeId(op.resource.uid);
        return Ok([keys::volume(&op.project, id), keys::name("volume", &op.project, &op.resource.name)].map(Op::Delete).to_vec());
    }
    if op.kind != "image.import" {
        return Ok(Vec::new());
    }
    let id = vmkeep_types::ids::ImageId(op.resource.uid);
    let unfinished =
        get::<vmkeep_types::image::ImageRecord>(store, &keys::image(&op.project, id)).await?.is_some_and(|i| i.value.facts.is_none());
    let keys = [keys::image(&op.project, id), keys::name("image", &op.project, &op.resource.name)];
    Ok(if unfinished { keys.map(Op::Delete).to_vec() } else { Vec::new() })
}

pub(super) async fn expire(store: &dyn Store) -> Result<(), StoreError> {
    let oldest = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * KEEP_DAYS);
    let mut of_object: BTreeMap<uuid::Uuid, usize> = BTreeMap::new();
    let mut gone = Vec::new();
    // Ids are in order of time: newest first, so that the newest of each object stay.
    for stored in typed::list_json::<Operation>(store, keys::ALL_OPS).await?.into_iter().rev() {
        let Some(ended) = stored.value.ended_at else { continue };
        let count = of_object.entry(stored.value.resource.uid).or_default();
        *count += 1;
        if ended < oldest || *count > KEEP_PER_OBJECT {
            gone.push(stored.key);
        }
    }
    delete_all(store, gone).await?;
    forget_repeats(store).await
}

/// An Idempotency-Key lives as long as its operation.
async fn forget_repeats(store: &dyn Store) -> Result<(), StoreError> {
    let mut gone = Vec::new();
    for stored in typed::list_json::<OperationId>(store, super::vm_write::ALL_REPEATS).await? {
        let project = stored.key.split('/').nth(1).and_then(|p| p.parse::<Name>().ok());
        let kept = match project {
            Some(project) => store.get(&keys::op(&project, stored.value)).await?.is_some(),
            None => false,
        };
        if !kept {
            gone.push(stored.key);
        }
    }
    delete_all(store, gone).await
}

pub(super) async fn delete_all(store: &dyn Store, gone: Vec<String>) -> Result<(), StoreError> {
    for chunk in gone.chunks(DELETES_PER_TXN) {
        let txn = Txn { then: chunk.iter().cloned().map(Op::Delete).collect(), ..Txn::default() };
        store.txn(txn).await?;
    }
    Ok(())
}
