//! New keys for the hosts of the control plane, and a new key of the control plane.
//!
//! ```text
//!  begin ──► seal/rotation {retire: the keys that are shown now}
//!    each host ──► next key on its disk ──► the ring is sealed to it too ──► it is the host's key ──► shown
//!    whoever looks ──► what lies sealed to a retired key for a node of theirs is sealed anew
//!  finish ──► one transaction: the ring is closed to retired keys, a new key seals, seal/rotation goes
//! ```
//! Each step is done or not by what lies in the store and on the host's disk, so that it goes on after a crash at any instruction, by
//! whichever control node looks next. Nothing is closed to an old key before its host reads everything by its new one. Records stay
//! as they are: their data keys are sealed to keys of the ring, and what is sealed anew is the ring.
//!
//! It waits for a host that is away, and for one of a version that knows no such thing; until then the old keys open what they did.

use std::collections::BTreeSet;

use vmkeep_types::name::Name;
use vmkeep_types::secret::Rotation;

use super::ring;
use super::text::PublicKey;
use crate::typed::{self, Stored};
use crate::{Compare, Held, KeyValue, Op, Store, StoreError, Txn, keys};

/// A host and the key that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub node: Name,
    pub key: PublicKey,
}

/// The control nodes' keys.
///
/// # Errors
/// The store's.
pub async fn control_nodes(store: &dyn Store) -> Result<Vec<Shown>, StoreError> {
    let listed = store.list(keys::ALL_CONTROL).await?.items;
    Ok(listed.iter().filter_map(|kv| shown(kv, kv.key.strip_prefix(keys::ALL_CONTROL)?)).collect())
}

fn shown(kv: &KeyValue, node: &str) -> Option<Shown> {
    Some(Shown { node: node.parse().ok()?, key: PublicKey::parse(std::str::from_utf8(&kv.value).ok()?)? })
}

/// The one that is under way.
///
/// # Errors
/// The store's.
pub async fn under_way(store: &dyn Store) -> Result<Option<Stored<Rotation>>, StoreError> {
    typed::get_json(store, keys::SEAL_ROTATION).await
}

/// All control nodes are to renew their keys; one that is under way already goes on.
///
/// # Errors
/// The store's.
pub async fn begin(store: &dyn Store, by: &str, at: jiff::Timestamp) -> Result<(), StoreError> {
    let retire = control_nodes(store).await?.iter().map(|shown| shown.key.id()).collect();
    let rotation = Rotation { retire, by: by.to_owned(), at };
    let absent = Compare::Absent(keys::SEAL_ROTATION.into());
    store.txn(Txn::default().when(absent).then(typed::put(keys::SEAL_ROTATION, &rotation))).await.map(drop)
}

/// Hosts that still show a key which is to go: as control node, or as a node that runs VMs.
///
/// # Errors
/// The store's.
pub async fn waits_for(store: &dyn Store, rotation: &Rotation) -> Result<BTreeSet<Name>, StoreError> {
    let mut waits = BTreeSet::new();
    for host in control_nodes(store).await? {
        if rotation.retire.contains(&host.key.id())
            || of_node(store, &host.node).await?.is_some_and(|key| rotation.retire.contains(&key.id()))
        {
            waits.insert(host.node);
        }
    }
    Ok(waits)
}

async fn of_node(store: &dyn Store, node: &Name) -> Result<Option<PublicKey>, StoreError> {
    let found = store.get(&keys::seal_key(node)).await?;
    Ok(found.and_then(|kv| shown(&kv, node.as_str())).map(|shown| shown.key))
}

/// All hosts have new keys and nothing lies sealed to old ones: they read nothing any more. False: somebody wrote meanwhile.
///
/// # Errors
/// The store's.
pub async fn finish(store: &dyn Store, rotation: &Stored<Rotation>) -> Result<Held, StoreError> {
    let holders: Vec<PublicKey> = control_nodes(store).await?.into_iter().map(|shown| shown.key).collect();
    let txn = ring::without(store, &rotation.value.retire, &holders).await?.unwrap_or_default();
    let txn = txn.when(Compare::ModifiedAt(rotation.key.clone(), rotation.modified)).then(Op::Delete(rotation.key.clone()));
    Ok(store.txn(txn).await?.held)
}
