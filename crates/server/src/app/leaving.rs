//! A node that goes out of the cluster: what keeps it, and what is forgotten of it.
//!
//! ```text
//!  VMs, disks or images that only it has ─► it stays
//!  else: images and networks know it no more ─► one txn: nothing owned ─► member, node and all its keys are gone
//! ```
//! The transaction compares that nothing is owned, so a VM that was placed meanwhile keeps the node. A node that is proved dead is
//! relieved of its VMs before: [`super::releasing`].

use std::collections::BTreeSet;

use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::cluster::MemberRole;
use vmkeep_types::error::Error;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::pool::{PoolRecord, VolumeRecord};

use super::cluster::members;
use super::{commit, list, some_of, store_error};

/// Why this node cannot leave now. Changes nothing.
///
/// # Errors
/// The reason; the store's.
pub async fn may_leave(store: &dyn Store, node: &Name) -> Result<(), Error> {
    let members = members(store).await?;
    if !members.iter().any(|member| member.node != *node && member.roles.contains(&MemberRole::Control)) {
        return Err(Error::conflict(format!("without '{node}' the cluster would have no control node"))
            .hint("there is no way back to a single host; take the other members out first and keep this one"));
    }
    if !store.list(&keys::owned(node)).await.map_err(store_error)?.items.is_empty() {
        return Err(refused_to_forget(store, node).await?);
    }
    let pools = list::<PoolRecord>(store, keys::ALL_POOLS).await?;
    let shared: BTreeSet<Name> = pools.into_iter().filter(|pool| is_shared(&pool.value.spec)).map(|pool| pool.value.spec.name).collect();
    let volumes = list::<VolumeRecord>(store, keys::ALL_VOLUMES).await?;
    let here = |volume: &VolumeRecord| volume.node.as_ref() == Some(node) && !shared.contains(&volume.pool);
    let volumes: Vec<Name> = volumes.into_iter().filter(|v| here(&v.value)).map(|v| v.value.name).collect();
    if let Some(some) = some_of(&volumes) {
        return Err(Error::conflict(format!("only '{node}' has the volumes {some}")).hint("delete them: vmkeep volume delete NAME"));
    }
    let images = list::<ImageRecord>(store, keys::ALL_IMAGES).await?;
    let alone = |image: &ImageRecord| image.node == *node && image.without(node).is_none() && !shared.contains(&image.spec.pool);
    let images: Vec<Name> = images.into_iter().filter(|i| alone(&i.value)).map(|i| i.value.spec.name).collect();
    match some_of(&images) {
        Some(some) => Err(Error::conflict(format!("only '{node}' has the images {some}"))
            .hint("delete them (vmkeep image delete NAME) and import them again afterwards, or start a VM from them on another node once")),
        None => Ok(()),
    }
}

/// Forgets a member and its node's records. VMs that it owns forbid that, unless it is proved dead: they might still run there.
///
/// # Errors
/// It is no member, or it owns VMs.
pub async fn forget(store: &dyn Store, node: &Name) -> Result<(), Error> {
    super::releasing::release(store, node, jiff::Timestamp::now()).await?;
    let key = keys::member(node);
    if store.get(&key).await.map_err(store_error)?.is_none() || !store.list(&keys::owned(node)).await.map_err(store_error)?.items.is_empty()
    {
        return Err(refused_to_forget(store, node).await?);
    }
    unlist(store, node).await?;
    let txn = Txn::default()
        .when(Compare::Present(key.clone()))
        .when(Compare::PrefixEmpty(keys::owned(node)))
        .then(Op::Delete(key))
        .then(Op::Delete(keys::word(node)))
        .then(Op::DeletePrefix(keys::all_of_node(node)))
        // Nothing is owned in any of its lives: no owner record names a seal of theirs.
        .then(Op::DeletePrefix(keys::fences(node)))
        .then(Op::DeletePrefix(keys::all_confirmed(node)))
        .then(Op::Delete(keys::state(node)))
        .then(Op::Delete(keys::node(node)))
        .then(Op::Delete(keys::joined(node)))
        .then(Op::Delete(keys::control(node)));
    match commit(store, txn).await? {
        Some(_) => Ok(()),
        None => Err(refused_to_forget(store, node).await?),
    }
}

/// Images and networks are not deleted on it any more. An image that nobody else has stays with its name: it must be imported anew.
async fn unlist(store: &dyn Store, node: &Name) -> Result<(), Error> {
    for image in list::<ImageRecord>(store, keys::ALL_IMAGES).await? {
        let with = image.value.holders().any(|holder| holder == node);
        if let Some(left) = image.value.without(node).filter(|_| with) {
            commit(store, Txn::default().when(Compare::ModifiedAt(image.key.clone(), image.modified)).then(typed::put(image.key, &left)))
                .await?;
        }
    }
    for mut network in list::<NetworkRecord>(store, keys::ALL_NETWORKS).await? {
        if network.value.nodes.remove(node) {
            let guard = Compare::ModifiedAt(network.key.clone(), network.modified);
            commit(store, Txn::default().when(guard).then(typed::put(network.key, &network.value))).await?;
        }
    }
    Ok(())
}

/// Why [`forget`] would not.
///
/// # Errors
/// The store's.
pub async fn refused_to_forget(store: &dyn Store, node: &Name) -> Result<Error, Error> {
    let owned = store.list(&keys::owned(node)).await.map_err(store_error)?.items.len();
    if owned == 0 {
        return Ok(Error::not_found("member", node));
    }
    Ok(Error::conflict(format!("'{node}' owns {owned} VMs, which may still run there"))
        .hint(format!(
            "move them first: vmkeep node drain {node}; what cannot move: vmkeep vm delete NAME; is the host dead: vmkeep ha confirm-dead {node}"
        )))
}

#[cfg(test)]
mod tests {
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::{MemberRecord, MemberState};
    use vmkeep_types::error::Code;
    use vmkeep_types::ids::{Epoch, VmId};

    use super::*;

    async fn store_with(nodes: &[(&'static str, MemberRole)]) -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        for (node, role) in nodes {
            let node = Name::known(node);
            let record = MemberRecord {
                node: node.clone(),
                address: format!("10.0.0.{}", node.as_str().len()),
                machine_id: node.to_string(),
                roles: vec![*role],
                version: "1".into(),
                level: 2,
                state: MemberState::Member,
                since: jiff::Timestamp::UNIX_EPOCH,
                certificate_until: None,
                problems: Vec::new(),
            };
            let sealed = [keys::fence(&node, Epoch(1)), keys::confirmed(&node, Epoch(1))];
            let all = [keys::heartbeat(&node), keys::state(&node), keys::joined(&node), keys::control(&node)].into_iter().chain(sealed);
            let txn = Txn::default().then(typed::put(keys::member(&node), &record));
            store.txn(all.fold(txn, |txn, key| txn.then(Op::Put(key, Vec::new())))).await.expect("written");
        }
        store
    }

    async fn image(store: &EmbeddedStore, holders: [&'static str; 2]) -> String {
        let id = vmkeep_types::ids::ImageId(uuid::Uuid::from_u128(5));
        let [node, copy] = holders.map(Name::known);
        let spec = serde_json::json!({"name": "debian", "source": {"from": "build", "recipe": "debian-13"}});
        let record = ImageRecord {
            id,
            project: Name::known("default"),
            spec: serde_json::from_value(spec).expect("an image"),
            facts: None,
            leaving: None,
            node,
            copies: [copy].into(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let key = keys::image(&record.project, id);
        store.txn(Txn::default().then(typed::put(key.clone(), &record))).await.expect("written");
        key
    }

    #[tokio::test]
    async fn nothing_stays_of_a_member_that_is_forgotten() {
        let store = store_with(&[("a", MemberRole::Control), ("bb", MemberRole::Control)]).await;
        let (a, b) = (Name::known("a"), Name::known("bb"));
        let key = image(&store, ["a", "bb"]).await;
        may_leave(&store, &a).await.expect("it may");
        forget(&store, &a).await.expect("forgotten");
        let left: Vec<String> = store.list("").await.expect("a list").items.into_iter().map(|kv| kv.key).collect();
        let sealed = [keys::fence(&b, Epoch(1)), key.clone(), keys::joined(&b), keys::heartbeat(&b)];
        let of_b = [&[keys::member(&b), keys::confirmed(&b, Epoch(1)), keys::control(&b)], sealed.as_slice()].concat();
        assert_eq!(left, [of_b.as_slice(), &[keys::state(&b)]].concat());
        let image = typed::get_json::<ImageRecord>(&store, &key).await.expect("a read").expect("there").value;
        assert_eq!(image.holders().collect::<Vec<_>>(), [&b]);
        assert_eq!(forget(&store, &a).await.expect_err("gone").code, Code::NotFound);
    }

    #[tokio::test]
    async fn what_keeps_a_member() {
        let store = store_with(&[("a", MemberRole::Control), ("bb", MemberRole::Compute)]).await;
        let (a, b) = (Name::known("a"), Name::known("bb"));
        let why = async |node: &Name| may_leave(&store, node).await.map_or_else(|e| e.message, |()| "nothing".into());
        assert_eq!(why(&a).await, "without 'a' the cluster would have no control node");
        assert_eq!(why(&b).await, "nothing");
        image(&store, ["bb", "bb"]).await;
        assert_eq!(why(&b).await, "only 'bb' has the images 'debian'");
        let own = keys::own(&b, VmId(uuid::Uuid::from_u128(1)));
        store.txn(Txn::default().then(Op::Put(own.clone(), Vec::new()))).await.expect("written");
        assert_eq!(why(&b).await, "'bb' owns 1 VMs, which may still run there");
        assert_eq!(forget(&store, &b).await.expect_err("refused").message, "'bb' owns 1 VMs, which may still run there");
        store.txn(Txn::default().then(Op::Delete(own))).await.expect("written");
        forget(&store, &b).await.expect("a dead one is forgotten with its images");
    }
}
