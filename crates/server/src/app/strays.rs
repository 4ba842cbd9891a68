//! What runs on a host that wants to join. Nothing may run twice: a guest of one of the cluster's VMs comes along only where that VM
//! can run nowhere else.
//!
//! | the VM of a guest there | the host |
//! |---|---|
//! | is unknown here | joins; `vmkeep vm adopt` takes it over |
//! | is this node's, by its owner's record | joins |
//! | has no owner, and a disk that only this node has | joins: it is placed nowhere else |
//! | is another node's, or may be placed on any | is refused |
//!
//! While the cluster is being recovered nobody knows yet what runs where: then all of these join, and the recovery waits for this
//! node's word too.

use std::collections::BTreeSet;

use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::cluster::{Admission, GuestThere, Recovery};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::pool::{PoolRecord, VolumeRecord};
use vmkeep_types::record::{Owner, VmRecord};

use super::{get, list};

/// Guests named in a refusal.
const NAMED_MAX: usize = 5;

/// What the transaction that lets it in compares and writes beside.
///
/// # Errors
/// `Conflict`: which guests would run twice; the store's.
pub async fn look(store: &dyn Store, wish: &Admission) -> Result<Txn, Error> {
    if wish.guests.is_empty() {
        return Ok(Txn::default());
    }
    if let Some(recovery) = get::<Recovery>(store, keys::CLUSTER_RECOVERY).await? {
        let mut waits = recovery.value;
        waits.nodes.insert(wish.node.clone());
        waits.lost.remove(&wish.node);
        return Ok(Txn::default()
            .when(Compare::ModifiedAt(recovery.key.clone(), recovery.modified))
            .then(typed::put(recovery.key, &waits)));
    }
    let mut twice = Vec::new();
    for guest in &wish.guests {
        match get::<Owner>(store, &keys::owner(guest.vm)).await? {
            Some(owner) if owner.value.node == wish.node => {}
            Some(owner) => twice.push(format!("'{}' (of '{}')", guest.name, owner.value.node)),
            None if !is_known(store, guest).await? || is_only_here(store, guest, &wish.node).await? => {}
            None => twice.push(format!("'{}' (about to be placed)", guest.name)),
        }
    }
    if twice.is_empty() {
        return Ok(Txn::default().when(Compare::Absent(keys::CLUSTER_RECOVERY.into())));
    }
    let more = if twice.len() > NAMED_MAX { format!(" and {} more", twice.len() - NAMED_MAX) } else { String::new() };
    twice.truncate(NAMED_MAX);
    let told = format!("VMs that the cluster runs elsewhere run on '{}': {}{more}; they would run twice", wish.node, twice.join(", "));
    Err(Error::conflict(told).hint("end those on this host, their disks stay: virsh destroy NAME; then join again"))
}

/// Every VM of every project has its power from its first moment to its last.
async fn is_known(store: &dyn Store, guest: &GuestThere) -> Result<bool, Error> {
    Ok(store.get(&keys::power(guest.vm)).await.map_err(super::store_error)?.is_some())
}

/// One of its disks lies in a pool of this node's own. Seldom asked, so all VMs may be looked through.
async fn is_only_here(store: &dyn Store, guest: &GuestThere, node: &Name) -> Result<bool, Error> {
    let vms = list::<VmRecord>(store, keys::ALL_VMS).await?;
    let Some(vm) = vms.into_iter().map(|vm| vm.value).find(|vm| vm.id == guest.vm) else { return Ok(false) };
    let pools = list::<PoolRecord>(store, keys::ALL_POOLS).await?;
    let shared: BTreeSet<Name> = pools.into_iter().filter(|pool| is_shared(&pool.value.spec)).map(|pool| pool.value.spec.name).collect();
    for id in vm.volumes.values() {
        let volume = get::<VolumeRecord>(store, &keys::volume(&vm.project, *id)).await?;
        if volume.is_some_and(|volume| volume.value.node.as_ref() == Some(node) && !shared.contains(&volume.value.pool)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_store::Op;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::ids::{Epoch, Generation, PoolId, VmId, VolumeId};
    use vmkeep_types::pool::{PoolDriver, PoolSpec};
    use vmkeep_types::vm::{DiskFormat, VmSpec};

    use super::*;

    fn id(n: u128) -> VmId {
        VmId(uuid::Uuid::from_u128(n))
    }

    async fn write(store: &EmbeddedStore, op: Op) {
        store.txn(Txn::default().then(op)).await.expect("written");
    }

    fn wish(guests: &[u128]) -> Admission {
        Admission {
            token: String::new(),
            node: Name::known("c"),
            address: String::new(),
            machine_id: String::new(),
            version: String::new(),
            level: 0,
            now: jiff::Timestamp::UNIX_EPOCH,
            witness: false,
            control: false,
            no_etcd: None,
            node_request: String::new(),
            etcd_request: String::new(),
            guests: guests.iter().map(|n| GuestThere { vm: id(*n), name: format!("web{n}") }).collect(),
        }
    }

    async fn owned(store: &EmbeddedStore, n: u128, node: &'static str) {
        let (node, project) = (Name::known(node), Name::known("default"));
        let owner = Owner { vm: id(n), project, node, epoch: Epoch(1), generation: Generation(1), to: None };
        write(store, Op::Put(keys::power(id(n)), b"{}".to_vec())).await;
        write(store, typed::put(keys::owner(id(n)), &owner)).await;
    }

    /// Nobody's, with a disk that c has in this pool.
    async fn unowned(store: &EmbeddedStore, n: u128, pool: &'static str) {
        let (volume, project) = (VolumeId(uuid::Uuid::from_u128(n)), Name::known("default"));
        let record = VmRecord {
            volumes: [(Name::known("root"), volume)].into(),
            ..VmRecord::created(id(n), project.clone(), VmSpec::named(Name::known("web")), jiff::Timestamp::UNIX_EPOCH)
        };
        let disk = VolumeRecord {
            id: volume,
            project: project.clone(),
            name: Name::known("web-root"),
            pool: Name::known(pool),
            node: Some(Name::known("c")),
            size: None,
            format: DiskFormat::Qcow2,
            image: None,
            foreign_path: None,
            attached: None,
            filling: None,
            made: true,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        write(store, Op::Put(keys::power(id(n)), b"{}".to_vec())).await;
        write(store, typed::put(keys::vm(&project, id(n)), &record)).await;
        write(store, typed::put(keys::volume(&project, volume), &disk)).await;
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
        store
    }

    async fn refused(store: &EmbeddedStore, guests: &[u128], expect: Expect) {
        let error = look(store, &wish(guests)).await.expect_err("refused");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("virsh destroy")), "{error:?}");
        expect.assert_eq(&error.message);
    }

    #[tokio::test]
    async fn what_runs_elsewhere_by_now_keeps_a_host_out() {
        let store = store().await;
        owned(&store, 1, "a").await;
        owned(&store, 2, "c").await;
        unowned(&store, 3, "local").await;
        unowned(&store, 4, "nfs").await;
        let fine = [2, 3, 99];
        look(&store, &wish(&fine)).await.expect("its own, one that can run nowhere else, one that nobody knows");
        refused(&store, &[2, 1], expect!["VMs that the cluster runs elsewhere run on 'c': 'web1' (of 'a'); they would run twice"]).await;
        refused(
            &store,
            &[4, 3],
            expect!["VMs that the cluster runs elsewhere run on 'c': 'web4' (about to be placed); they would run twice"],
        )
        .await;
        for n in 10..17 {
            owned(&store, n, "b").await;
        }
        refused(
            &store,
            &[10, 11, 12, 13, 14, 15, 16],
            expect![
                "VMs that the cluster runs elsewhere run on 'c': 'web10' (of 'b'), 'web11' (of 'b'), 'web12' (of 'b'), 'web13' (of 'b'), \
                 'web14' (of 'b') and 2 more; they would run twice"
            ],
        )
        .await;
    }

    #[tokio::test]
    async fn a_recovery_waits_for_a_host_that_brings_guests_along() {
        let store = store().await;
        owned(&store, 1, "a").await;
        let node = |name| Name::known(name);
        let recovery =
            Recovery { incarnation: 7, since: jiff::Timestamp::UNIX_EPOCH, nodes: [node("a"), node("c")].into(), lost: [node("c")].into() };
        write(&store, typed::put(keys::CLUSTER_RECOVERY, &recovery)).await;
        assert_eq!(look(&store, &wish(&[])).await.expect("nothing runs there"), Txn::default());
        let along = look(&store, &wish(&[1])).await.expect("nobody knows yet what runs where");
        store.txn(along).await.expect("written");
        let waits = get::<Recovery>(&store, keys::CLUSTER_RECOVERY).await.expect("a read").expect("there").value;
        assert_eq!((waits.nodes, waits.lost), ([node("a"), node("c")].into(), [].into()));
    }
}
