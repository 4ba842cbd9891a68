//! Clones while their disks are copied, and disks that a wish let go of.

use vmkeep_types::ids::{PoolId, VolumeId};
use vmkeep_types::observed::VolumeSeen;
use vmkeep_types::order::{NodeTask, TaskResult, TaskState, Work};
use vmkeep_types::pool::{Attachment, PoolDriver, PoolRecord, PoolSpec, VolumeRecord};
use vmkeep_types::vm::DiskFormat;

use super::*;

const DISK: VolumeId = VolumeId(uuid::Uuid::from_u128(3));
const COPY: OperationId = OperationId(uuid::Uuid::from_u128(4));

fn volume(filling: Option<OperationId>) -> VolumeRecord {
    VolumeRecord {
        id: DISK,
        project: project(),
        name: Name::known("web1-root"),
        pool: Name::known("default"),
        node: Some(node()),
        size: Some(ByteCount::from_gib(1)),
        format: DiskFormat::Qcow2,
        image: None,
        foreign_path: None,
        filling,
        made: false,
        attached: Some(Attachment { vm: VM, disk: Name::known("root") }),
        created_at: now(),
    }
}

async fn put(store: &EmbeddedStore, ops: impl IntoIterator<Item = Op>) {
    store.txn(Txn { then: ops.into_iter().collect(), ..Txn::default() }).await.expect("a write");
}

/// A clone as `app` writes it, whose only disk is being copied.
async fn cloning() -> EmbeddedStore {
    let store = begin(ByteCount::from_gib(8)).await;
    let spec = PoolSpec {
        name: Name::known("default"),
        description: String::new(),
        driver: PoolDriver::Dir { path: "/pool".into(), shared: false },
    };
    let pool = PoolRecord { id: PoolId(uuid::Uuid::from_u128(5)), spec: spec.clone(), leaving: false, mark: None, created_at: now() };
    let clone = VmRecord { volumes: BTreeMap::from([(Name::known("root"), DISK)]), ..record(None) };
    let mut op = operation(Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    op.kind = "vm.clone".into();
    let copy = Operation {
        id: COPY,
        kind: "volume.copy".into(),
        resource: ResourceRef { kind: "volume".into(), uid: DISK.0, ..op.resource.clone() },
        ..operation(Wanted::Task)
    };
    let to = volume(Some(COPY));
    let work = Work::CopyVolume { from: volume(None), from_pool: spec.clone(), to: to.clone(), to_pool: spec };
    let task = NodeTask { op: COPY, project: project(), work };
    put(
        &store,
        [
            typed::put(keys::pool(pool.id), &pool),
            typed::put(keys::vm(&project(), VM), &clone),
            typed::put(keys::volume(&project(), DISK), &to),
            typed::put(keys::name("volume", &project(), &to.name), &DISK),
            typed::put(keys::op(&project(), OP), &op),
            typed::put(keys::op(&project(), COPY), &copy),
            typed::put(keys::task(&node(), COPY), &task),
        ],
    )
    .await;
    store
}

/// All that the leader has to say about the VM and its copy.
async fn rest(store: &EmbeddedStore) {
    for _ in 0..20 {
        let view = view(store).await;
        let mut txns = vm::next(&view, VM, now());
        txns.extend(task::next(&view, &node(), COPY, now()));
        if txns.is_empty() {
            return;
        }
        for txn in txns {
            store.txn(txn).await.expect("a write");
        }
    }
    panic!("the leader never rests");
}

async fn copied(store: &EmbeddedStore, state: TaskState) {
    let result = TaskResult { op: COPY, state, progress: None, steps: Vec::new(), facts: None };
    put(store, [typed::put(keys::result(&node(), COPY), &result)]).await;
    rest(store).await;
}

async fn order(store: &EmbeddedStore) -> Option<Order> {
    typed::get_json(store, &keys::order(&node(), VM)).await.expect("a read").map(|kept| kept.value)
}

async fn disk(store: &EmbeddedStore) -> Option<VolumeRecord> {
    typed::get_json(store, &keys::volume(&project(), DISK)).await.expect("a read").map(|kept| kept.value)
}

async fn copy(store: &EmbeddedStore) -> Operation {
    typed::get_json(store, &keys::op(&project(), COPY)).await.expect("a read").expect("an operation").value
}

/// The agent took everything away; nothing but operations and what was there before is left.
async fn gone(store: &EmbeddedStore) {
    answer(store, |seen| {
        seen.domain = Observed::Absent;
        seen.memory.removed = true;
    })
    .await;
    rest(store).await;
    let left: Vec<String> = store.list("").await.expect("a listing").items.into_iter().map(|kv| kv.key).collect();
    let kept = |key: &&String| !key.starts_with("op/") && !key.starts_with("pool/") && *key != "n/node1/facts";
    assert_eq!(left.iter().filter(kept).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[tokio::test]
async fn a_clone_gets_no_node_before_its_disks_are_there() {
    let store = cloning().await;
    rest(&store).await;
    assert_eq!(order(&store).await, None);
    assert_eq!(op(&store).await.blocked.as_deref(), Some("volume 'web1-root' is still being filled"));
    copied(&store, TaskState::Done).await;
    assert_eq!(copy(&store).await.state, OpState::Done);
    let order = order(&store).await.expect("placed");
    let root = &order.volumes[&Name::known("root")];
    assert_eq!((root.filling, root.made), (None, true));
    answer(&store, |seen| seen.domain = Observed::Known(DomainState::Off)).await;
    rest(&store).await;
    assert_eq!((op(&store).await.state, op(&store).await.blocked), (OpState::Done, None));
}

/// From then on no node makes it: a shared pool that is not mounted somewhere must not give the VM an empty disk.
#[tokio::test]
async fn what_a_node_made_is_noted_at_the_volume() {
    let store = cloning().await;
    put(&store, [typed::put(keys::volume(&project(), DISK), &volume(None))]).await;
    rest(&store).await;
    let made = || async { disk(&store).await.expect("a volume").made };
    answer(&store, |_| ()).await;
    rest(&store).await;
    assert!(!made().await, "the node has not said so");
    answer(&store, |seen| {
        seen.volumes.insert(DISK, VolumeSeen { size_bytes: 1 << 30, allocated_bytes: 4096 });
    })
    .await;
    rest(&store).await;
    assert!(made().await);
    assert!(order(&store).await.expect("placed").volumes[&Name::known("root")].made, "and its order says so");
}

#[tokio::test]
async fn a_copy_that_fails_takes_the_clone_with_it() {
    let store = cloning().await;
    rest(&store).await;
    copied(&store, TaskState::Failed { error: Error::refused("No space left on device") }).await;
    let failed = op(&store).await;
    assert_eq!((failed.state, failed.error.map(|e| e.message)), (OpState::Failed, Some("No space left on device".to_owned())));
    // The node may have a part of it.
    assert_eq!(order(&store).await.expect("an order to remove").leaving, Some(Leaving::Delete));
    gone(&store).await;
}

#[tokio::test]
async fn a_clone_deleted_while_it_is_copied_cancels_the_copy() {
    let store = cloning().await;
    rest(&store).await;
    let leaving = VmRecord { volumes: BTreeMap::from([(Name::known("root"), DISK)]), ..record(Some(Leaving::DeleteKeepDisks)) };
    put(&store, [typed::put(keys::vm(&project(), VM), &leaving)]).await;
    rest(&store).await;
    assert_eq!(copy(&store).await.state, OpState::Cancelled);
    assert!(store.get(&keys::task(&node(), COPY)).await.expect("a read").is_none());
    assert!(order(&store).await.expect("an order to remove").leaving.is_some());
    gone(&store).await;
}

#[tokio::test]
async fn a_dropped_disk_is_free_when_the_domain_has_it_no_more() {
    let store = begin(ByteCount::from_gib(8)).await;
    rest(&store).await;
    put(&store, [typed::put(keys::volume(&project(), DISK), &volume(None))]).await;
    let attached = || async { disk(&store).await.expect("a volume").attached.is_some() };
    let overlay = format!("/pool/{DISK}.snap1");
    for open in [None, Some(BTreeSet::from([format!("/pool/{DISK}.qcow2")])), Some(BTreeSet::from([overlay]))] {
        answer(&store, |seen| seen.also_open.clone_from(&open)).await;
        rest(&store).await;
        assert!(attached().await, "{open:?}");
    }
    // What an agent saw before it applied the wish tells nothing of it.
    answer(&store, |seen| seen.memory.applied = Revision(0)).await;
    rest(&store).await;
    assert!(attached().await);
    answer(&store, |_| ()).await;
    rest(&store).await;
    assert!(!attached().await);
}
