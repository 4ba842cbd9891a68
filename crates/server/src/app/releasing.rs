//! VMs of a node that is proved dead and goes out of the cluster: nobody has the right to run them any more, and the leader places
//! them anew.
//!
//! ```text
//!  confirmed/N/E for the epoch of n/N/epoch ─► one Txn for each VM: owner gone, released/UID there ─► place, or told lost
//! ```
//! Each transaction compares the proof, the epoch and the owner, so a VM that high availability moved meanwhile is left alone. What a
//! crash leaves undone is done by the next removal. A disk whose data only the dead node had keeps its VM from every other node.

use std::collections::BTreeSet;

use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ha::Confirmed;
use vmkeep_types::host::EpochRecord;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::pool::{PoolRecord, VolumeRecord};
use vmkeep_types::record::{Owner, Released, VmRecord};

use super::leaving::refused_to_forget;
use super::vm_parts::resource;
use super::{commit, get, list, store_error, upgrade};

/// Lets go of every VM that a dead node owns. Nothing to do where it owns none.
///
/// # Errors
/// It owns VMs and is not proved dead, or a migration to or from it must end first; the store's.
pub async fn release(store: &dyn Store, node: &Name, now: jiff::Timestamp) -> Result<(), Error> {
    let owned = store.list(&keys::owned(node)).await.map_err(store_error)?.items;
    if owned.is_empty() {
        return Ok(());
    }
    let Some(death) = death(store, node).await? else { return Err(refused_to_forget(store, node).await?) };
    upgrade::needs(store, keys::LEVEL_RELEASES, "removing a dead node that owns VMs").await?;
    let pools = list::<PoolRecord>(store, keys::ALL_POOLS).await?;
    let shared: BTreeSet<Name> = pools.into_iter().filter(|pool| is_shared(&pool.value.spec)).map(|pool| pool.value.spec.name).collect();
    for id in owned.iter().filter_map(|kv| kv.key[keys::owned(node).len()..].parse::<VmId>().ok()) {
        let_go(store, node, id, &death, &shared, now).await?;
    }
    Ok(())
}

/// What each transaction compares: the epoch is the last one, and dead. None: the node may live.
async fn death(store: &dyn Store, node: &Name) -> Result<Option<Txn>, Error> {
    let Some(life) = get::<EpochRecord>(store, &keys::epoch(node)).await? else { return Ok(None) };
    let proof = keys::confirmed(node, life.value.epoch);
    let dead = get::<Confirmed>(store, &proof).await?.is_some();
    Ok(dead.then(|| Txn::default().when(Compare::ModifiedAt(life.key, life.modified)).when(Compare::Present(proof))))
}

async fn let_go(store: &dyn Store, node: &Name, id: VmId, death: &Txn, shared: &BTreeSet<Name>, now: jiff::Timestamp) -> Result<(), Error> {
    let txn = death.clone().when(Compare::Absent(keys::migration(id)));
    let txn = match get::<Owner>(store, &keys::owner(id)).await? {
        Some(owner) if owner.value.node == *node => released(store, &owner, shared, now, txn).await?,
        // It went elsewhere, or came from there.
        Some(owner) => txn.when(Compare::ModifiedAt(owner.key, owner.modified)),
        None => txn.when(Compare::Absent(keys::owner(id))),
    };
    let left = [keys::own(node, id), keys::run(node, id), keys::order(node, id), keys::seen(node, id)];
    let mut txn = txn.then(Op::DeletePrefix(keys::all_stopped(node, id)));
    txn.then.extend(left.into_iter().chain([keys::move_order(node, id), keys::move_seen(node, id)]).map(Op::Delete));
    match commit(store, txn).await? {
        Some(_) => Ok(()),
        None => Err(Error::new(
            Code::Unavailable,
            format!("what runs on '{node}' changes at this moment: a migration ends, or a VM is recovered"),
        )
        .hint("try again in a moment; a migration is ended by: vmkeep op cancel ID")),
    }
}

async fn released(store: &dyn Store, owner: &Stored<Owner>, shared: &BTreeSet<Name>, now: jiff::Timestamp, txn: Txn) -> Result<Txn, Error> {
    let (id, project, node) = (owner.value.vm, &owner.value.project, &owner.value.node);
    let mut txn = txn.when(Compare::ModifiedAt(owner.key.clone(), owner.modified)).then(Op::Delete(owner.key.clone()));
    let Some(vm) = get::<VmRecord>(store, &keys::vm(project, id)).await? else { return Ok(txn) };
    let mut lost = Vec::new();
    for (disk, volume) in &vm.value.volumes {
        let Some(volume) = get::<VolumeRecord>(store, &keys::volume(project, *volume)).await? else { continue };
        if volume.value.foreign_path.is_some() || !shared.contains(&volume.value.pool) {
            lost.push(disk.clone());
            continue;
        }
        let free = VolumeRecord { node: None, ..volume.value };
        txn = txn.when(Compare::ModifiedAt(volume.key.clone(), volume.modified)).then(typed::put(volume.key, &free));
    }
    let released = Released { generation: owner.value.generation, from: node.clone(), lost, at: now };
    let (level, message) = (if released.lost.is_empty() { Level::Warn } else { Level::Error }, released.words());
    let event = Event { at: now, resource: resource(&vm.value), level, code: "vm.released".into(), message, node: Some(node.clone()) };
    let stamp = format!("{:020}-rm-{:06}", now.as_nanosecond(), 0);
    Ok(txn
        .when(Compare::ModifiedAt(vm.key, vm.modified))
        .then(typed::put(keys::released(id), &released))
        .then(typed::put(keys::event(project, "vm", id, stamp), &event)))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::ha::Proof;
    use vmkeep_types::host::NodeFacts;
    use vmkeep_types::ids::{Epoch, Generation, OperationId, PoolId, VolumeId};
    use vmkeep_types::migration::{MoveOrder, MovePart, Travel};
    use vmkeep_types::pool::{PoolDriver, PoolSpec};
    use vmkeep_types::record::{Power, PowerWish};
    use vmkeep_types::units::ByteCount;
    use vmkeep_types::vm::{DiskFormat, VmSpec};

    use super::*;
    use crate::reconcile::view::{ClusterView, PREFIXES};
    use crate::reconcile::vm;

    fn n3() -> Name {
        Name::known("n3")
    }

    async fn write(store: &EmbeddedStore, op: Op) {
        store.txn(Txn::default().then(op)).await.expect("written");
    }

    /// A VM of n3, with a disk in the pool.
    async fn owned(store: &EmbeddedStore, n: u128, pool: &'static str) -> VmId {
        let (id, volume, project) = (VmId(uuid::Uuid::from_u128(n)), VolumeId(uuid::Uuid::from_u128(n)), Name::known("default"));
        let record = VmRecord {
            volumes: [(Name::known("root"), volume)].into(),
            ..VmRecord::created(id, project.clone(), VmSpec::named(Name::known("web")), jiff::Timestamp::UNIX_EPOCH)
        };
        let disk = VolumeRecord {
            id: volume,
            project: project.clone(),
            name: Name::known("web-root"),
            pool: Name::known(pool),
            node: Some(n3()),
            size: None,
            format: DiskFormat::Qcow2,
            image: None,
            foreign_path: None,
            attached: None,
            filling: None,
            made: true,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let owner = Owner { vm: id, project: project.clone(), node: n3(), epoch: Epoch(2), generation: Generation(7), to: None };
        write(store, typed::put(keys::vm(&project, id), &record)).await;
        write(store, typed::put(keys::volume(&project, volume), &disk)).await;
        write(store, typed::put(keys::owner(id), &owner)).await;
        write(store, Op::Put(keys::own(&n3(), id), Vec::new())).await;
        write(store, Op::Put(keys::run(&n3(), id), Vec::new())).await;
        id
    }

    async fn store() -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        for (n, name, shared) in [(1, "local", false), (2, "nfs", true)] {
            let spec =
                PoolSpec { name: Name::known(name), description: String::new(), driver: PoolDriver::Dir { path: "/p".into(), shared } };
            let id = PoolId(uuid::Uuid::from_u128(n));
            let pool = PoolRecord { id, spec, leaving: false, mark: None, created_at: jiff::Timestamp::UNIX_EPOCH };
            write(&store, typed::put(keys::pool(id), &pool)).await;
        }
        let life = EpochRecord { epoch: Epoch(2), boot_id: "b".into(), closed: false };
        write(&store, typed::put(keys::epoch(&n3()), &life)).await;
        store
    }

    fn facts(node: &'static str) -> NodeFacts {
        NodeFacts::of(Name::known(node), 8, ByteCount::from_gib(64))
    }

    async fn confirm(store: &EmbeddedStore, epoch: u64) {
        let confirmed = Confirmed { proof: Proof::Operator, by: "me".into(), at: jiff::Timestamp::UNIX_EPOCH };
        write(store, typed::put(keys::confirmed(&n3(), Epoch(epoch)), &confirmed)).await;
    }

    /// The answer, and what is left of owners and nodes.
    async fn check(store: &EmbeddedStore, expect: Expect) {
        let mut told = match release(store, &n3(), jiff::Timestamp::UNIX_EPOCH).await {
            Ok(()) => "released\n".to_owned(),
            Err(error) => format!("{}\n", error.message),
        };
        for kv in store.list("").await.expect("a list").items {
            let kind = kv.key.split('/').next().unwrap_or_default();
            if ["owner", "own", "n", "released"].contains(&kind) {
                let words = typed::decode::<Released>(&kv).map(|r| format!(": above {}, {}", r.generation, r.words())).unwrap_or_default();
                told += &format!("{}{words}\n", kv.key.replace("00000000-0000-0000-0000-00000000000", ""));
            }
        }
        expect.assert_eq(&told);
    }

    #[tokio::test]
    async fn a_node_that_may_live_keeps_its_vms() {
        let store = store().await;
        owned(&store, 1, "nfs").await;
        // An earlier life of it is dead.
        confirm(&store, 1).await;
        check(
            &store,
            expect![[r"
                'n3' owns 1 VMs, which may still run there
                n/n3/epoch
                n/n3/run/1
                own/n3/1
                owner/1
            "]],
        )
        .await;
    }

    #[tokio::test]
    async fn vms_of_a_dead_node_may_run_elsewhere_or_are_told_lost() {
        let store = store().await;
        owned(&store, 1, "nfs").await;
        owned(&store, 2, "local").await;
        confirm(&store, 2).await;
        let released = || {
            expect![[r"
            released
            n/n3/epoch
            released/1: above 7, waits for a node: its own, n3, was dead and is removed
            released/2: above 7, lost: the data of its disks (root) was only on n3, which was dead and is removed
        "]]
        };
        check(&store, released()).await;
        check(&store, released()).await;
        let disk = typed::list_json::<VolumeRecord>(&store, keys::ALL_VOLUMES).await.expect("volumes");
        let homes: Vec<_> = disk.iter().map(|disk| disk.value.node.clone()).collect();
        assert_eq!(homes, [None, Some(n3())], "what every node reaches is bound to none");
        write(&store, typed::put(keys::facts(&Name::known("n1")), &facts("n1"))).await;
        assert_eq!((placed(&store, 1).await.as_deref(), placed(&store, 2).await), (Some("n1 by generation 8"), None));
    }

    async fn view(store: &EmbeddedStore) -> ClusterView {
        let listing = store.list_many(&PREFIXES).await.expect("a listing");
        ClusterView::new(listing.revision, &listing.items).0
    }

    async fn placed(store: &EmbeddedStore, n: u128) -> Option<String> {
        let (view, id) = (view(store).await, VmId(uuid::Uuid::from_u128(n)));
        let owner = vm::next(&view, id, jiff::Timestamp::UNIX_EPOCH).iter().find_map(|txn| vm::owner_written(id, txn))?;
        Some(format!("{} by generation {}", owner.node, owner.generation))
    }

    #[tokio::test]
    async fn no_vm_comes_to_a_node_that_still_takes_away_what_it_had_of_it() {
        let store = store().await;
        let id = owned(&store, 1, "nfs").await;
        confirm(&store, 2).await;
        release(&store, &n3(), jiff::Timestamp::UNIX_EPOCH).await.expect("released");
        let n1 = Name::known("n1");
        let power = Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None };
        write(&store, typed::put(keys::power(id), &power)).await;
        write(&store, typed::put(keys::facts(&n1), &facts("n1"))).await;
        let now = view(&store).await;
        let record = &now.vms[&id];
        let had = Owner { vm: id, project: Name::known("default"), node: n1.clone(), epoch: Epoch(1), generation: Generation(6), to: None };
        let forget = MoveOrder {
            op: OperationId(uuid::Uuid::from_u128(9)),
            vm: id,
            part: MovePart::Forget { volumes: [].into() },
            order: vm::order_for(&now, &record.value, record.modified, &had).expect("all is there"),
            travel: Travel::Off,
        };
        write(&store, typed::put(keys::move_order(&n1, id), &forget)).await;
        assert_eq!(placed(&store, 1).await, None);
        write(&store, typed::put(keys::facts(&Name::known("n2")), &facts("n2"))).await;
        assert_eq!(placed(&store, 1).await.as_deref(), Some("n2 by generation 8"));
        write(&store, Op::Delete(keys::facts(&Name::known("n2")))).await;
        write(&store, Op::Delete(keys::move_order(&n1, id))).await;
        assert_eq!(placed(&store, 1).await.as_deref(), Some("n1 by generation 8"));
    }

    /// An older leader would place a VM that was let go of by a right that is none.
    #[tokio::test]
    async fn nothing_is_let_go_of_beside_members_of_an_older_version() {
        let store = store().await;
        owned(&store, 1, "nfs").await;
        confirm(&store, 2).await;
        write(&store, typed::put(keys::LEVEL, &3_u64)).await;
        let error = release(&store, &n3(), jiff::Timestamp::UNIX_EPOCH).await.expect_err("refused");
        assert!(error.message.starts_with("removing a dead node that owns VMs needs a store of level 4, this one has level 3"), "{error}");
        assert!(store.list(keys::ALL_RELEASED).await.expect("a list").items.is_empty());
        write(&store, typed::put(keys::LEVEL, &4_u64)).await;
        release(&store, &n3(), jiff::Timestamp::UNIX_EPOCH).await.expect("released");
    }

    #[tokio::test]
    async fn a_migration_ends_first() {
        let store = store().await;
        let id = owned(&store, 1, "nfs").await;
        confirm(&store, 2).await;
        write(&store, Op::Put(keys::migration(id), b"{}".to_vec())).await;
        check(
            &store,
            expect![[r"
                what runs on 'n3' changes at this moment: a migration ends, or a VM is recovered
                n/n3/epoch
                n/n3/run/1
                own/n3/1
                owner/1
            "]],
        )
        .await;
    }
}
