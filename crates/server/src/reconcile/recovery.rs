//! The leader's part in a recovery: when every node of the restored store has said what it has, or is lost, owners follow what
//! runs, and the recovery is over. Until then nothing else is decided about VMs.
//!
//! | a VM's domain is live on | its owner is |
//! |---|---|
//! | one node | that node |
//! | none | who it was; nobody when that node is lost, and it is placed anew |
//! | several | open: the recovery waits until one of them is off |

use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::cluster::Recovery;
use vmkeep_types::ids::{Generation, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Owner, VmRecord};

use super::view::{ClusterView, Kept};

/// The next writes; none while a node is waited for.
pub fn next(view: &ClusterView, recovery: &Kept<Recovery>) -> Vec<Txn> {
    let mut open = recovery.value.nodes.difference(&recovery.value.lost);
    if open.any(|node| told(view, recovery, node).is_none()) {
        return Vec::new();
    }
    let settled: Vec<Settled> = view.vms.values().map(|vm| settle(view, recovery, &vm.value)).collect();
    let is_over = settled.iter().all(|settled| matches!(settled, Settled::Yes));
    if !is_over {
        return settled.into_iter().filter_map(|settled| if let Settled::By(txn) = settled { Some(txn) } else { None }).collect();
    }
    let over = Txn::default()
        .when(Compare::ModifiedAt(keys::CLUSTER_RECOVERY.into(), recovery.modified))
        .then(Op::Delete(keys::CLUSTER_RECOVERY.into()));
    vec![over]
}

/// What a node has, when it has told this recovery.
fn told<'v>(view: &'v ClusterView, recovery: &Kept<Recovery>, node: &Name) -> Option<&'v vmkeep_types::cluster::Rejoined> {
    let told = &view.nodes.get(node)?.rejoined.as_ref()?.value;
    (told.incarnation == recovery.value.incarnation).then_some(told)
}

enum Settled {
    Yes,
    By(Txn),
    /// It is live on several nodes.
    No,
}

fn settle(view: &ClusterView, recovery: &Kept<Recovery>, vm: &VmRecord) -> Settled {
    let has = |node: &&Name| told(view, recovery, node).is_some_and(|told| told.domains.get(&vm.id) == Some(&true));
    let live: Vec<&Name> = view.nodes.keys().filter(has).collect();
    let owner = view.owners.get(&vm.id);
    match (&live[..], owner) {
        ([node], Some(owner)) if owner.value.node == **node => Settled::Yes,
        ([node], owner) => Settled::By(give(view, recovery, vm, node, owner)),
        ([], Some(owner)) if recovery.value.lost.contains(&owner.value.node) => Settled::By(let_go(vm.id, owner)),
        ([], _) => Settled::Yes,
        _ => Settled::No,
    }
}

/// The node that runs it is its owner, and has its disks.
fn give(view: &ClusterView, recovery: &Kept<Recovery>, vm: &VmRecord, node: &Name, old: Option<&Kept<Owner>>) -> Txn {
    let key = keys::owner(vm.id);
    let above = Generation::first_of(recovery.value.incarnation).max(old.map_or(Generation(0), |old| old.value.generation));
    let epoch = told(view, recovery, node).expect("its word named the VM").epoch;
    let owner = Owner { vm: vm.id, project: vm.project.clone(), node: node.clone(), epoch, generation: above.next(), to: None };
    let guard = old.map_or_else(|| Compare::Absent(key.clone()), |old| Compare::ModifiedAt(key.clone(), old.modified));
    let mut txn = Txn::default().when(guard).then(typed::put(key, &owner)).then(Op::Put(keys::own(node, vm.id), Vec::new()));
    let Some(old) = old.map(|old| &old.value.node) else { return txn };
    txn.then.extend([keys::own(old, vm.id), keys::order(old, vm.id)].map(Op::Delete));
    for volume in view.volumes_of(vm.id).filter(|volume| volume.value.node.as_ref() == Some(old)) {
        let key = keys::volume(&volume.value.project, volume.value.id);
        let here = VolumeRecord { node: Some(node.clone()), ..volume.value.clone() };
        txn = txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &here));
    }
    txn
}

fn let_go(vm: VmId, owner: &Kept<Owner>) -> Txn {
    let node = &owner.value.node;
    let gone = [keys::owner(vm), keys::own(node, vm), keys::order(node, vm), keys::run(node, vm)];
    let txn = Txn::default().when(Compare::ModifiedAt(keys::owner(vm), owner.modified));
    gone.into_iter().fold(txn, |txn, key| txn.then(Op::Delete(key)))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_store::Store;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::Rejoined;
    use vmkeep_types::ids::Epoch;
    use vmkeep_types::vm::VmSpec;

    use super::super::view::PREFIXES;
    use super::*;
    use crate::app::recovery::{begin_life, lose, waits_for};
    use crate::reconcile::Whose;

    const NODES: [&str; 3] = ["a", "b", "c"];

    fn vm(n: u128) -> VmId {
        VmId(uuid::Uuid::from_u128(n))
    }

    async fn write(store: &EmbeddedStore, op: Op) {
        store.txn(Txn::default().then(op)).await.expect("written");
    }

    /// As a backup has it: each node owns the VM of its number, in generation 3.
    async fn restored() -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        for (n, node) in (1..).zip(NODES) {
            let (node, id, project) = (Name::known(node), vm(n), Name::known("default"));
            let record = VmRecord::created(id, project.clone(), VmSpec::named(Name::known("web")), jiff::Timestamp::UNIX_EPOCH);
            let owner =
                Owner { vm: id, project: project.clone(), node: node.clone(), epoch: Epoch(1), generation: Generation(3), to: None };
            write(&store, Op::Put(keys::joined(&node), Vec::new())).await;
            write(&store, Op::Put(keys::own(&node, id), Vec::new())).await;
            write(&store, Op::Put(keys::epoch(&node), b"{}".to_vec())).await;
            write(&store, typed::put(keys::vm(&project, id), &record)).await;
            write(&store, typed::put(keys::owner(id), &owner)).await;
        }
        begin_life(&store, &Name::known("a"), 1, &[].into(), jiff::Timestamp::UNIX_EPOCH).await.expect("begun");
        store
    }

    async fn tells(store: &EmbeddedStore, node: &'static str, live: &[u128]) {
        let domains = live.iter().map(|n| (vm(*n), true)).collect();
        let told = Rejoined { incarnation: 1, epoch: Epoch::first_of(1), domains };
        write(store, typed::put(keys::rejoined(&Name::known(node)), &told)).await;
    }

    /// What the leader does until it has nothing to do; then every owner.
    async fn check(store: &EmbeddedStore, expect: Expect) {
        loop {
            let listing = store.list_many(&PREFIXES).await.expect("a listing");
            let (view, _) = ClusterView::new(listing.revision, &listing.items);
            let txns = view.recovery.as_ref().map(|recovery| next(&view, recovery)).unwrap_or_default();
            if txns.is_empty() {
                let owner = |o: &Kept<Owner>| format!("{} {} {}\n", o.value.vm.0.as_u128(), o.value.node, o.value.generation.0 & 0xff);
                let state = if view.recovery.is_some() { "open" } else { "over" };
                return expect.assert_eq(&(view.owners.values().map(owner).collect::<String>() + state));
            }
            for txn in txns {
                store.txn(txn).await.expect("written");
            }
        }
    }

    #[tokio::test]
    async fn owners_follow_what_runs_when_all_have_told_or_are_lost() {
        let store = restored().await;
        assert!(store.get(&keys::epoch(&Name::known("b"))).await.expect("a read").is_none(), "every life is over");
        begin_life(&store, &Name::known("a"), 1, &[].into(), jiff::Timestamp::UNIX_EPOCH).await.expect("once more after a crash");
        let as_restored = || {
            expect![[r"
                1 a 1
                2 b 1
                3 c 1
                open"]]
        };
        check(&store, as_restored()).await;
        // Since the backup VM 2 went from b to a.
        tells(&store, "a", &[1, 2]).await;
        tells(&store, "b", &[]).await;
        check(&store, as_restored()).await;
        assert_eq!(waits_for(&store).await.expect("a read"), Some(vec![Name::known("c")]));
        assert!(lose(&store, &Name::known("b")).await.expect_err("it lives").message.contains("lives"));
        lose(&store, &Name::known("c")).await.expect("the operator says so");
        check(
            &store,
            expect![[r"
                1 a 1
                2 a 2
                over"]],
        )
        .await;
        assert!(store.get(&keys::own(&Name::known("c"), vm(3))).await.expect("a read").is_none(), "VM 3 may be placed anew");
        assert_eq!(waits_for(&store).await.expect("a read"), None);
    }

    #[tokio::test]
    async fn nothing_is_placed_before_all_have_told() {
        let store = restored().await;
        for key in [keys::owner(vm(3)), keys::own(&Name::known("c"), vm(3))] {
            write(&store, Op::Delete(key)).await;
        }
        let facts = serde_json::json!({"name": "a", "epoch": 1, "boot_id": "b", "cpus": 8, "memory": "64G", "kvm": {"is": "usable"},
            "libvirt_version": null, "qemu_version": null, "vmkeep_version": "0", "hypervisor_up": true});
        let facts: vmkeep_types::host::NodeFacts = serde_json::from_value(facts).expect("facts");
        write(&store, typed::put(keys::facts(&facts.name), &facts)).await;
        let power = serde_json::json!({"want": "on", "cycle": 1, "held": null, "stop_timeout": null});
        write(&store, typed::put(keys::power(vm(3)), &power)).await;
        let placed = async || {
            let listing = store.list_many(&PREFIXES).await.expect("a listing");
            let (mut view, mut touched) = ClusterView::new(listing.revision, &listing.items);
            let planned = super::super::plan(&mut view, &mut touched, jiff::Timestamp::UNIX_EPOCH);
            planned.into_iter().map(|(whose, _)| whose).filter(|whose| matches!(whose, Whose::Seat(_))).collect::<Vec<_>>()
        };
        assert_eq!(placed().await, [] as [Whose; 0]);
        write(&store, Op::Delete(keys::CLUSTER_RECOVERY.into())).await;
        assert_eq!(placed().await, [Whose::Seat(vm(3))], "it waited for that alone");
    }

    #[tokio::test]
    async fn a_vm_that_runs_twice_keeps_the_recovery_open() {
        let store = restored().await;
        tells(&store, "a", &[1, 2]).await;
        tells(&store, "b", &[2]).await;
        tells(&store, "c", &[]).await;
        check(
            &store,
            expect![[r"
                1 a 1
                2 b 1
                3 c 1
                open"]],
        )
        .await;
        tells(&store, "b", &[]).await;
        check(
            &store,
            expect![[r"
                1 a 1
                2 a 2
                3 c 1
                over"]],
        )
        .await;
    }
}
