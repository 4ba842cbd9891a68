//! The leader's writes, told as a story: what is in the store, what the leader writes, what the agent answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::expect;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::host::{KvmState, NodeFacts};
use vmkeep_types::ids::{Epoch, Generation, OperationId, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{DomainState, Observed, RestartCount, Seen, VmMemory};
use vmkeep_types::operation::{OpState, Operation, ResourceRef, Wanted};
use vmkeep_types::order::Order;
use vmkeep_types::record::{Leaving, Power, PowerWish, VmChoices, VmOrigin, VmRecord};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

use super::view::{ClusterView, PREFIXES};
use super::vm;

const VM: VmId = VmId(uuid::Uuid::from_u128(1));
const OP: OperationId = OperationId(uuid::Uuid::from_u128(2));

fn project() -> Name {
    Name::known("default")
}

fn node() -> Name {
    Name::known("node1")
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::UNIX_EPOCH
}

fn record(leaving: Option<Leaving>) -> VmRecord {
    let spec = VmSpec { nics: Vec::new(), ..VmSpec::named(Name::known("web1")) };
    VmRecord {
        id: VM,
        project: project(),
        spec,
        volumes: BTreeMap::new(),
        created_at: now(),
        origin: VmOrigin::Created,
        leaving,
        instance: 0,
    }
}

fn operation(wanted: Wanted) -> Operation {
    Operation {
        id: OP,
        project: project(),
        kind: "vm.create".into(),
        resource: ResourceRef { kind: "vm".into(), project: project(), name: Name::known("web1"), uid: VM.0 },
        state: OpState::Pending,
        steps: Vec::new(),
        progress: None,
        blocked: None,
        error: None,
        wanted,
        by: "root".into(),
        created_at: now(),
        ended_at: None,
    }
}

fn facts(memory: ByteCount) -> NodeFacts {
    NodeFacts {
        name: node(),
        epoch: Epoch(1),
        boot_id: "b".into(),
        cpus: 2,
        memory,
        kvm: KvmState::Usable,
        libvirt_version: None,
        qemu_version: None,
        vmkeep_version: "0".into(),
        hypervisor_up: true,
    }
}

/// A wish as `app` writes it, on a cluster of one node.
async fn begin(memory: ByteCount) -> EmbeddedStore {
    let store = EmbeddedStore::in_memory().expect("memory");
    let power = Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None };
    let txn = Txn::default()
        .then(typed::put(keys::facts(&node()), &facts(memory)))
        .then(typed::put(keys::vm(&project(), VM), &record(None)))
        .then(typed::put(keys::name("vm", &project(), &Name::known("web1")), &VM))
        .then(typed::put(keys::choices(VM), &VmChoices::default()))
        .then(typed::put(keys::power(VM), &power))
        .then(typed::put(keys::op(&project(), OP), &operation(Wanted::Vm { spec_revision: Revision(0), power_cycle: 1 })));
    store.txn(txn).await.expect("a write");
    store
}

async fn view(store: &EmbeddedStore) -> ClusterView {
    let listing = store.list_many(&PREFIXES).await.expect("a listing");
    ClusterView::new(listing.revision, &listing.items).0
}

/// Writes until the leader has nothing to say; the keys it wrote.
async fn lead(store: &EmbeddedStore) -> String {
    let mut told = String::new();
    for _ in 0..10 {
        let txns = vm::next(&view(store).await, VM, now());
        if txns.is_empty() {
            return told;
        }
        for txn in txns {
            for op in &txn.then {
                match op {
                    Op::Put(key, _) => writeln!(told, "put {key}"),
                    Op::Delete(key) => writeln!(told, "delete {key}"),
                    Op::DeletePrefix(prefix) => writeln!(told, "delete {prefix}*"),
                    Op::Get(_) => Ok(()),
                }
                .expect("a string takes all");
            }
            store.txn(txn).await.expect("a write");
        }
    }
    panic!("the leader never rests:\n{told}");
}

async fn answer(store: &EmbeddedStore, change: impl FnOnce(&mut Seen)) {
    let order: Order = typed::get_json(store, &keys::order(&node(), VM)).await.expect("a read").expect("an order").value;
    let mut seen = Seen {
        vm: VM,
        generation: Generation(1),
        epoch: Epoch(1),
        spec_revision: order.spec_revision,
        power_cycle: 1,
        domain: Observed::Known(DomainState::Running),
        doing: None,
        held: None,
        error: None,
        steps: vec!["started".into()],
        choices: VmChoices::default(),
        pending: Vec::new(),
        drift: Vec::new(),
        conflicts: Vec::new(),
        qemu: None,
        volumes: BTreeMap::new(),
        restarts: RestartCount::default(),
        memory: VmMemory { power_cycle: 1, applied: order.spec_revision, ..VmMemory::default() },
        since: now(),
        warnings: Vec::new(),
    };
    change(&mut seen);
    store.txn(Txn::default().then(typed::put(keys::seen(&node(), VM), &seen))).await.expect("a write");
}

async fn op(store: &EmbeddedStore) -> Operation {
    typed::get_json(store, &keys::op(&project(), OP)).await.expect("a read").expect("an operation").value
}

#[tokio::test]
async fn a_wish_is_placed_ordered_and_its_operation_done() {
    let store = begin(ByteCount::from_gib(8)).await;
    expect![[r#"
        put owner/00000000-0000-0000-0000-000000000001
        put own/node1/00000000-0000-0000-0000-000000000001
        put n/node1/order/00000000-0000-0000-0000-000000000001
    "#]]
    .assert_eq(&lead(&store).await);
    answer(&store, |seen| seen.choices.machine = Some("pc-q35-10.0".into())).await;
    expect![[r#"
        put choices/00000000-0000-0000-0000-000000000001
        put n/node1/order/00000000-0000-0000-0000-000000000001
        put op/default/00000000-0000-0000-0000-000000000002
    "#]]
    .assert_eq(&lead(&store).await);
    let op = op(&store).await;
    assert_eq!((op.state, op.steps), (OpState::Done, vec!["started".to_owned()]));
}

#[tokio::test]
async fn a_failed_start_ends_the_operation_with_the_nodes_words() {
    let store = begin(ByteCount::from_gib(8)).await;
    lead(&store).await;
    answer(&store, |seen| {
        seen.domain = Observed::Known(DomainState::Off);
        seen.error = Some(Error::refused("QEMU did not start: no space"));
    })
    .await;
    lead(&store).await;
    let op = op(&store).await;
    assert_eq!(op.state, OpState::Failed);
    assert_eq!(op.error.map(|e| e.message), Some("QEMU did not start: no space".to_owned()));
}

#[tokio::test]
async fn a_wish_that_fits_nowhere_says_why() {
    let store = begin(ByteCount::from_mib(512)).await;
    lead(&store).await;
    let blocked = op(&store).await.blocked;
    assert_eq!(blocked.as_deref(), Some("no node can take it (node1: needs 1G of memory, the host has 512M)"));
}

#[tokio::test]
async fn a_deleted_vm_leaves_no_key_behind() {
    let store = begin(ByteCount::from_gib(8)).await;
    lead(&store).await;
    answer(&store, |_| ()).await;
    lead(&store).await;
    let leaving = Txn::default()
        .then(typed::put(keys::vm(&project(), VM), &record(Some(Leaving::Delete))))
        .then(typed::put(keys::op(&project(), OP), &operation(Wanted::Gone)));
    store.txn(leaving).await.expect("a write");
    lead(&store).await;
    answer(&store, |seen| seen.memory.removed = true).await;
    lead(&store).await;
    assert_eq!(op(&store).await.state, OpState::Done);
    let left: Vec<String> = store.list("").await.expect("a listing").items.into_iter().map(|kv| kv.key).collect();
    assert_eq!(left, ["n/node1/facts", "op/default/00000000-0000-0000-0000-000000000002"]);
}

#[tokio::test]
async fn a_vm_with_more_operations_than_a_transaction_holds_goes_too() {
    let store = begin(ByteCount::from_gib(8)).await;
    lead(&store).await;
    let ids: Vec<OperationId> = (0..300).map(|n| OperationId(uuid::Uuid::from_u128(1000 + n))).collect();
    for part in ids.chunks(100) {
        let open = |id: &OperationId| typed::put(keys::op(&project(), *id), &Operation { id: *id, ..operation(Wanted::Gone) });
        store.txn(Txn { then: part.iter().map(open).collect(), ..Txn::default() }).await.expect("a write");
    }
    let leaving = typed::put(keys::vm(&project(), VM), &record(Some(Leaving::Delete)));
    store.txn(Txn::default().then(leaving)).await.expect("a write");
    lead(&store).await;
    answer(&store, |seen| seen.memory.removed = true).await;
    lead(&store).await;
    let ops = typed::list_json::<Operation>(&store, keys::ALL_OPS).await.expect("a listing");
    let open: Vec<OperationId> = ops.iter().filter(|op| !op.value.state.is_over()).map(|op| op.value.id).collect();
    assert_eq!((ops.len(), open), (301, Vec::new()));
}

#[tokio::test]
async fn one_vm_that_cannot_be_written_does_not_stop_the_others() {
    const OTHER: VmId = VmId(uuid::Uuid::from_u128(9));
    let store = begin(ByteCount::from_gib(8)).await;
    let mut big = record(None);
    big.spec.description = "x".repeat(900 << 10);
    let choices = VmChoices { cpu_xml: Some("y".repeat(200 << 10)), ..VmChoices::default() };
    let other = VmRecord { id: OTHER, ..record(None) };
    let power = Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None };
    let txn = Txn::default()
        .then(typed::put(keys::vm(&project(), VM), &big))
        .then(typed::put(keys::choices(VM), &choices))
        .then(typed::put(keys::vm(&project(), OTHER), &other))
        .then(typed::put(keys::power(OTHER), &power));
    store.txn(txn).await.expect("a write");
    let leadership = store.lead("a", std::time::Duration::from_secs(60)).await.expect("a store").expect("nobody leads");
    let listing = store.list_many(&PREFIXES).await.expect("a listing");
    let (view, mut touched) = ClusterView::new(listing.revision, &listing.items);
    super::carry_out(&store, &leadership, &view, &mut touched).await.expect("it goes on");
    let orders = store.list(&keys::orders(&node())).await.expect("a listing").items;
    assert_eq!(orders.into_iter().map(|kv| kv.key).collect::<Vec<_>>(), [keys::order(&node(), OTHER)]);
}
