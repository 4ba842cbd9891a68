//! The leader's writes, told as a story: what is in the store, what the leader writes, what the agent answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use expect_test::expect;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Store, Txn, keys, typed};
use vmkeep_types::addresses::Addresses;
use vmkeep_types::error::Error;
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::{Epoch, Generation, ImageId, NetworkId, OperationId, Revision, VmId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::observed::{DomainState, Observed, RestartCount, Seen, VmMemory};
use vmkeep_types::operation::{OpState, Operation, ResourceRef, Wanted};
use vmkeep_types::order::Order;
use vmkeep_types::record::{Leaving, Power, PowerWish, VmChoices, VmRecord};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

use super::view::{ClusterView, PREFIXES};
use super::{task, vm};

mod cpu;
mod deletion;
mod volumes;

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
    VmRecord { leaving, ..VmRecord::created(VM, project(), spec, now()) }
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
        copying: None,
        blocked: None,
        error: None,
        wanted,
        by: "root".into(),
        created_at: now(),
        ended_at: None,
    }
}

fn facts(memory: ByteCount) -> NodeFacts {
    NodeFacts::of(node(), 2, memory)
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
        ordered_cycle: 1,
        domain: Observed::Known(DomainState::Running),
        paused: None,
        addresses: BTreeMap::new(),
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
        also_open: Some(BTreeSet::new()),
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
async fn what_was_booted_once_leaves_the_wish() {
    let store = begin(ByteCount::from_gib(8)).await;
    let mut wish = record(None);
    wish.spec.boot_once = Some(Name::known("cdrom"));
    store.txn(Txn::default().then(typed::put(keys::vm(&project(), VM), &wish))).await.expect("a write");
    lead(&store).await;
    let kept = async || typed::get_json::<VmRecord>(&store, &keys::vm(&project(), VM)).await.expect("a read").expect("a VM");
    let before = kept().await;
    answer(&store, |seen| seen.memory.booted_once = Some(Revision(before.modified.0 - 1))).await;
    lead(&store).await;
    assert!(kept().await.value.spec.boot_once.is_some(), "a start of an older wish");
    answer(&store, |seen| seen.memory.booted_once = Some(before.modified)).await;
    lead(&store).await;
    let after = kept().await;
    assert_eq!(after.value.spec.boot_once, None);
    let order: Order = typed::get_json(&store, &keys::order(&node(), VM)).await.expect("a read").expect("an order").value;
    assert_eq!(order.spec_revision, after.modified);
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
    let (mut view, mut touched) = ClusterView::new(listing.revision, &listing.items);
    super::carry_out(&store, &leadership, &mut view, &mut touched).await.expect("it goes on");
    let orders = store.list(&keys::orders(&node())).await.expect("a listing").items;
    assert_eq!(orders.into_iter().map(|kv| kv.key).collect::<Vec<_>>(), [keys::order(&node(), OTHER)]);
}

#[tokio::test]
async fn a_vm_waits_for_its_image() {
    let store = begin(ByteCount::from_gib(8)).await;
    let (image, volume) = (ImageId(uuid::Uuid::from_u128(5)), VolumeId(uuid::Uuid::from_u128(6)));
    let mut vm = record(None);
    vm.spec.disks = serde_json::from_value(serde_json::json!([{"name": "root", "image": "deb"}])).expect("disks");
    vm.volumes.insert(Name::known("root"), volume);
    let disk = serde_json::json!({"id": volume, "project": "default", "name": "web1-root", "pool": "default", "node": "node1", "size": null,
        "format": "qcow2", "image": image, "attached": {"vm": VM, "disk": "root"}, "created_at": now()});
    let made = |facts: serde_json::Value| {
        let source = serde_json::json!({"from": "build", "recipe": "debian-13"});
        let image = serde_json::json!({"id": image, "project": "default", "spec": {"name": "deb", "source": source}, "facts": facts,
            "node": "node1", "created_at": now()});
        typed::put(keys::image(&project(), ImageId(uuid::Uuid::from_u128(5))), &image)
    };
    let txn = Txn::default()
        .then(typed::put(keys::vm(&project(), VM), &vm))
        .then(typed::put(keys::volume(&project(), volume), &disk))
        .then(made(serde_json::Value::Null));
    store.txn(txn).await.expect("a write");
    lead(&store).await;
    assert_eq!(op(&store).await.blocked.as_deref(), Some("waits for image 'deb'"));
    assert!(store.list(&keys::orders(&node())).await.expect("a listing").items.is_empty(), "no node hears of it");
    let record = keys::image(&project(), image);
    let pending = store.get(&record).await.expect("a read").expect("there").value;
    let begun = op(&store).await;
    store.txn(Txn::default().then(Op::Delete(record.clone()))).await.expect("a write");
    lead(&store).await;
    let failed = op(&store).await;
    assert_eq!(failed.state, OpState::Failed);
    assert_eq!(failed.error.map(|e| e.message).as_deref(), Some("image 'deb' was not made: its import failed or was cancelled"));
    let again = Txn::default().then(Op::Put(record, pending)).then(typed::put(keys::op(&project(), OP), &begun));
    store.txn(again).await.expect("a write");
    let facts = serde_json::json!({"kind": "disk", "virtual_size": "1G", "stored_size": "1G", "sha256": null, "firmware": "auto", "os": "linux",
        "os_name": null, "cloud_init": "yes", "guest_agent": "no", "virtio": "yes", "warnings": []});
    store.txn(Txn::default().then(made(facts))).await.expect("a write");
    lead(&store).await;
    assert_eq!(store.list(&keys::orders(&node())).await.expect("a listing").items.len(), 1);
}

/// What the leader itself does, until nothing is touched any more; how many looks that took.
async fn settle(store: &EmbeddedStore) -> usize {
    let leadership = store.lead("a", std::time::Duration::from_secs(60)).await.expect("a store").expect("nobody else leads");
    let listing = store.list_many(&PREFIXES).await.expect("a listing");
    let mut intake = super::Intake::new(store.watch("", listing.revision.next()).await.expect("a watch"));
    let (mut view, mut touched) = ClusterView::new(listing.revision, &listing.items);
    for look in 1.. {
        intake.meanwhile(super::carry_out(store, &leadership, &mut view, &mut touched)).await.expect("it leads");
        while view.revision < store.revision().await.expect("a revision") {
            let batch = intake.next().await.expect("a batch");
            super::take_in(&mut view, &mut touched, batch, &mut intake).expect("taken in");
        }
        if touched.is_empty() {
            return look;
        }
    }
    unreachable!("it looks for ever")
}

#[tokio::test]
async fn all_events_of_a_node_are_filed_however_many() {
    let store = begin(ByteCount::from_gib(8)).await;
    let about = ResourceRef { kind: "vm".into(), project: project(), name: Name::known("web1"), uid: VM.0 };
    let event =
        serde_json::json!({"at": now(), "resource": about, "level": "info", "code": "vm.started", "message": "started", "node": null});
    for part in 0..3 {
        let key = |n: u32| keys::node_event(&node(), format!("{:020}-0", part * 50 + n));
        store.txn(Txn { then: (0..50).map(|n| typed::put(key(n), &event)).collect(), ..Txn::default() }).await.expect("a write");
    }
    settle(&store).await;
    assert!(store.list(&keys::node_events(&node())).await.expect("a listing").items.is_empty());
    assert_eq!(store.list(&keys::events(&project())).await.expect("a listing").items.len(), 150);
}

/// A task's end, with the records it is about as they are by then.
async fn task_ends(work: serde_json::Value, state: serde_json::Value, kind: &str, uid: u128, records: Vec<Op>) -> Vec<String> {
    let store = begin(ByteCount::from_gib(8)).await;
    let id = OperationId(uuid::Uuid::from_u128(77));
    let resource = ResourceRef { kind: kind.into(), project: project(), name: Name::known("x"), uid: uuid::Uuid::from_u128(uid) };
    let op_kind = match work["do"].as_str() {
        Some("delete-network") => "network.delete",
        Some("delete-image") => "image.delete",
        _ => "volume.create",
    };
    let task = serde_json::json!({"op": id, "project": "default", "work": work});
    let result = serde_json::json!({"op": id, "state": state, "progress": null, "steps": [], "facts": null});
    let mut txn = Txn::default()
        .then(typed::put(keys::op(&project(), id), &Operation { id, resource, kind: op_kind.into(), ..operation(Wanted::Task) }))
        .then(typed::put(keys::task(&node(), id), &task))
        .then(typed::put(keys::result(&node(), id), &result));
    txn.then.extend(records);
    store.txn(txn).await.expect("a write");
    settle(&store).await;
    let op: Operation = typed::get_json(&store, &keys::op(&project(), id)).await.expect("a read").expect("an operation").value;
    assert!(op.state.is_over(), "{op:?}");
    let all = store.list("").await.expect("a listing").items;
    let about =
        |key: &str| ["image/", "network/", "volume/", "name/image", "name/network", "name/volume"].iter().any(|p| key.starts_with(p));
    let line = |kv: vmkeep_store::KeyValue| {
        let value: serde_json::Value = serde_json::from_slice(&kv.value).expect("JSON");
        let marks: Vec<&str> = ["leaving", "filling"].into_iter().filter(|mark| value.get(mark).is_some_and(|m| !m.is_null())).collect();
        format!("{} {}", kv.key, marks.join(" ")).trim_end().replace("00000000-0000-0000-0000-0000000000", "")
    };
    all.into_iter().filter(|kv| about(&kv.key)).map(line).collect()
}

#[tokio::test]
async fn the_end_of_a_deletion_takes_only_what_it_was_about() {
    let mark = OperationId(uuid::Uuid::from_u128(77));
    let uid = |n: u128| uuid::Uuid::from_u128(n);
    let network = |n: u128, leaving: Option<OperationId>| {
        let network =
            serde_json::json!({"id": uid(n), "project": "default", "spec": {"name": "x"}, "leaving": leaving, "created_at": now()});
        [
            typed::put(keys::network(&project(), vmkeep_types::ids::NetworkId(uid(n))), &network),
            typed::put(keys::name("network", &project(), &Name::known("x")), &uid(n)),
        ]
    };
    let done = || serde_json::json!({"is": "done"});
    let failed = || serde_json::json!({"is": "failed", "error": Error::refused("busy")});
    let work = || serde_json::json!({"do": "delete-network", "network": {"name": "x"}});
    assert_eq!(task_ends(work(), done(), "network", 0x10, network(0x10, Some(mark)).to_vec()).await, Vec::<String>::new());
    assert_eq!(
        task_ends(work(), failed(), "network", 0x10, network(0x10, Some(mark)).to_vec()).await,
        ["name/network/default/x", "network/default/10"]
    );
    // Another one has the name by now.
    assert_eq!(
        task_ends(work(), done(), "network", 0x10, network(0x11, None).to_vec()).await,
        ["name/network/default/x", "network/default/11"]
    );

    let image = |n: u128, leaving: Option<OperationId>| {
        let spec = serde_json::json!({"name": "x", "source": {"from": "build", "recipe": "tiny"}});
        let image = serde_json::json!({"id": uid(n), "project": "default", "spec": spec, "facts": null, "leaving": leaving, "node": "node1", "created_at": now()});
        typed::put(keys::image(&project(), ImageId(uid(n))), &image)
    };
    let name = |n: u128| typed::put(keys::name("image", &project(), &Name::known("x")), &uid(n));
    let pool = serde_json::json!({"name": "default", "driver": "dir", "path": "/pool"});
    let work = || serde_json::json!({"do": "delete-image", "image": uid(0x10), "pool": pool});
    assert_eq!(task_ends(work(), done(), "image", 0x10, vec![image(0x10, Some(mark)), name(0x10)]).await, Vec::<String>::new());
    assert_eq!(
        task_ends(work(), failed(), "image", 0x10, vec![image(0x10, Some(mark)), name(0x10)]).await,
        ["image/default/10", "name/image/default/x"]
    );
    let two = vec![image(0x10, None), image(0x11, None), name(0x11)];
    assert_eq!(task_ends(work(), done(), "image", 0x10, two).await, ["image/default/11", "name/image/default/x"]);
}

#[tokio::test]
async fn a_volume_that_was_not_made_goes_and_one_that_is_a_disk_stays() {
    let uid = uuid::Uuid::from_u128(0x10);
    let volume = |filling: Option<OperationId>| {
        serde_json::json!({"id": uid, "project": "default", "name": "x", "pool": "default", "node": "node1", "size": "1G", "format": "qcow2",
            "image": null, "filling": filling, "attached": null, "created_at": now()})
    };
    let ends = |is: serde_json::Value, filling: Option<OperationId>| {
        let pool = serde_json::json!({"name": "default", "driver": "dir", "path": "/pool"});
        let work = serde_json::json!({"do": "create-volume", "volume": volume(filling), "pool": pool, "image": null});
        let records = vec![
            typed::put(keys::volume(&project(), VolumeId(uid)), &volume(filling)),
            typed::put(keys::name("volume", &project(), &Name::known("x")), &uid),
        ];
        task_ends(work, is, "volume", 0x10, records)
    };
    let mark = Some(OperationId(uuid::Uuid::from_u128(77)));
    let failed = serde_json::json!({"is": "failed", "error": Error::refused("no space")});
    assert_eq!(ends(serde_json::json!({"is": "done"}), mark).await, ["name/volume/default/x", "volume/default/10"]);
    assert_eq!(ends(failed.clone(), mark).await, Vec::<String>::new());
    assert_eq!(ends(failed, None).await, ["name/volume/default/x", "volume/default/10"]);
}

async fn chosen(store: &EmbeddedStore) -> VmChoices {
    typed::get_json(store, &keys::choices(VM)).await.expect("a read").expect("choices").value
}

#[tokio::test]
async fn what_was_chosen_gives_way_to_a_newer_word_and_never_to_an_older_one() {
    let store = begin(ByteCount::from_gib(8)).await;
    lead(&store).await;
    let address = |bus: u8| -> Addresses { [("ua-rng", format!("<address bus='{bus}'/>"))].into_iter().collect() };
    answer(&store, |seen| {
        seen.choices = VmChoices { machine: Some("pc-q35-10.0".into()), addresses: address(7), ..VmChoices::default() };
    })
    .await;
    lead(&store).await;
    assert_eq!(chosen(&store).await.machine.as_deref(), Some("pc-q35-10.0"));
    // A change of the wish gives the choice up; the node has not taken it in yet.
    let given_up =
        Txn::default().then(typed::put(keys::vm(&project(), VM), &record(None))).then(typed::put(keys::choices(VM), &VmChoices::default()));
    store.txn(given_up).await.expect("a write");
    lead(&store).await;
    assert_eq!(chosen(&store).await, VmChoices::default());
    answer(&store, |seen| {
        seen.choices = VmChoices { machine: Some("pc-i440fx-10.0".into()), addresses: address(0), ..VmChoices::default() };
    })
    .await;
    lead(&store).await;
    let now = chosen(&store).await;
    assert_eq!((now.machine.as_deref(), now.addresses), (Some("pc-i440fx-10.0"), address(0)));
}

/// Each of their first writes notes its node at the network: one of them holds, for all of that look.
#[tokio::test]
async fn vms_that_come_onto_a_network_of_many_nodes_at_once_all_get_a_node() {
    const NODES: usize = 300;
    let vm_id = |n: usize| VmId(uuid::Uuid::from_u128(100 + n as u128));
    let store = EmbeddedStore::in_memory().expect("memory");
    let id = NetworkId(uuid::Uuid::from_u128(5));
    let network = serde_json::json!({"id": id, "project": "default", "spec": {"name": "default"}, "created_at": now()});
    let mut ops = vec![typed::put(keys::network(&project(), id), &network)];
    for n in 0..NODES {
        let node: Name = format!("h{n}").parse().expect("a name");
        ops.push(typed::put(keys::facts(&node), &NodeFacts::of(node.clone(), 8, ByteCount::from_gib(64))));
        let spec = VmSpec::named(format!("web{n}").parse().expect("a name"));
        assert_eq!(spec.nics.len(), 1, "on the network 'default'");
        ops.push(typed::put(keys::vm(&project(), vm_id(n)), &VmRecord::created(vm_id(n), project(), spec, now())));
        ops.push(typed::put(keys::power(vm_id(n)), &Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None }));
    }
    for part in ops.chunks(100) {
        store.txn(Txn { then: part.to_vec(), ..Txn::default() }).await.expect("a write");
    }
    let looks = settle(&store).await;
    let orders = store.list(keys::ALL_NODES).await.expect("a listing").items.into_iter().filter(|kv| kv.key.contains("/order/"));
    assert_eq!(orders.count(), NODES);
    let known = typed::list_json::<NetworkRecord>(&store, keys::ALL_NETWORKS).await.expect("a listing").remove(0).value.nodes;
    assert_eq!(known.len(), NODES);
    assert!(looks < 10, "{looks} looks");
}
