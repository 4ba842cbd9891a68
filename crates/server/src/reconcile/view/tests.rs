//! The view after any row of changes is the view of one listing; a change touches whom it concerns and nobody else.

use std::collections::BTreeMap;

use vmkeep_store::{Change, KeyValue, keys, typed};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::{Epoch, Generation, ImageId, NetworkId, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::node::NodeRecord;
use vmkeep_types::record::{Owner, Power, PowerWish, VmRecord};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

use super::{ClusterView, Touched};
use crate::reconcile::{Whose, plan};

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn id(n: u128) -> VmId {
    VmId(uuid::Uuid::from_u128(n))
}

fn kv<T: serde::Serialize>(key: String, value: &T) -> KeyValue {
    KeyValue { key, value: serde_json::to_vec(value).expect("plain data"), created: Revision(1), modified: Revision(1) }
}

fn facts(node: &str) -> KeyValue {
    let facts = NodeFacts::of(name(node), 8, ByteCount::from_gib(64));
    kv(keys::facts(&name(node)), &facts)
}

fn vm(n: u128) -> Vec<KeyValue> {
    let record = VmRecord::created(
        id(n),
        name("default"),
        VmSpec { nics: Vec::new(), ..VmSpec::named(name(&format!("v{n}"))) },
        jiff::Timestamp::UNIX_EPOCH,
    );
    let power = Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None };
    vec![kv(keys::vm(&name("default"), id(n)), &record), kv(keys::power(id(n)), &power)]
}

fn owner(n: u128, node: &str) -> KeyValue {
    let owner = Owner { vm: id(n), project: name("default"), node: name(node), epoch: Epoch(1), generation: Generation(1), to: None };
    kv(keys::owner(id(n)), &owner)
}

fn cluster(nodes: usize, vms: u128) -> ClusterView {
    let mut items: Vec<KeyValue> = (0..nodes).map(|n| facts(&format!("n{n}"))).collect();
    items.extend((0..vms).flat_map(vm));
    ClusterView::new(Revision(1), &items).0
}

fn take_in(view: &mut ClusterView, change: Change) -> Touched {
    let mut touched = Touched::default();
    view.apply(Revision(2), &[change], &mut touched);
    view.fleet().check().expect("the sums are true after every change");
    touched
}

#[test]
fn a_node_that_changes_touches_its_own_vms_and_those_without_one() {
    let mut view = cluster(3, 6);
    for n in 0..5 {
        take_in(&mut view, Change::Put(owner(n, if n < 2 { "n0" } else { "n1" })));
    }
    let touched = take_in(&mut view, Change::Put(facts("n0")));
    // A word for those without one, however many: a thousand nodes change while thousands of VMs wait.
    assert_eq!((touched.vms, touched.homeless), ([id(0), id(1)].into_iter().collect(), true));
    let record = kv(keys::node(&name("n1")), &NodeRecord::named(name("n1")));
    let mut touched = take_in(&mut view, Change::Put(record));
    assert_eq!((touched.vms.len(), touched.homeless, touched.is_empty()), (0, true, false));
    let given: Vec<Whose> = plan(&mut view, &mut touched, jiff::Timestamp::UNIX_EPOCH).into_iter().map(|(whose, _)| whose).collect();
    assert_eq!((given, touched.is_empty()), (vec![Whose::Seat(id(5))], true));
    let load = KeyValue { key: keys::load(&name("n0")), ..facts("n0") };
    assert!(take_in(&mut view, Change::Put(load)).is_empty(), "what is measured concerns no VM");
}

/// Each of a thousand nodes makes the network and fetches the image that all VMs have.
#[test]
fn where_a_network_or_an_image_is_concerns_no_vm() {
    let network = |nodes: &[&str], mode: &str| {
        let record = serde_json::json!({"id": uuid::Uuid::from_u128(50), "project": "default", "spec": {"name": "default", "mode": mode, "bridge": "br0"},
            "nodes": nodes, "created_at": jiff::Timestamp::UNIX_EPOCH});
        Change::Put(kv(keys::network(&name("default"), NetworkId(uuid::Uuid::from_u128(50))), &record))
    };
    let image = |copies: &[&str], deleted_by: Option<u128>| {
        let spec = serde_json::json!({"name": "iso", "source": {"from": "build", "recipe": "debian-13"}});
        let record = serde_json::json!({"id": uuid::Uuid::from_u128(51), "project": "default", "spec": spec, "facts": null, "node": "n0",
            "copies": copies, "leaving": deleted_by.map(uuid::Uuid::from_u128), "created_at": jiff::Timestamp::UNIX_EPOCH});
        Change::Put(kv(keys::image(&name("default"), ImageId(uuid::Uuid::from_u128(51))), &record))
    };
    let mut view = cluster(4, 2);
    let mut spec = VmSpec::named(name("v7"));
    spec.cdroms = serde_json::from_value(serde_json::json!([{"name": "cd", "image": "iso"}])).expect("a tray");
    let record = VmRecord::created(id(7), name("default"), spec, jiff::Timestamp::UNIX_EPOCH);
    take_in(&mut view, Change::Put(kv(keys::vm(&name("default"), id(7)), &record)));
    let mut vms = |change: Change| take_in(&mut view, change).vms.drain().into_iter().collect::<Vec<_>>();
    assert_eq!(vms(network(&[], "nat")), [id(7)], "it was not there");
    assert_eq!(vms(network(&["n0"], "nat")), []);
    assert_eq!(vms(network(&["n0", "n1"], "bridge")), [id(7)], "the hosts that have its bridge are fewer");
    assert_eq!(vms(image(&[], None)), [id(7)]);
    assert_eq!(vms(image(&["n1"], None)), [id(7)], "it can be fetched from there");
    assert_eq!(vms(image(&["n1", "n2"], None)), [id(7)]);
    assert_eq!(vms(image(&["n1", "n2", "n3"], None)), [], "that is one more than orders name");
    assert_eq!(vms(image(&["n2", "n3"], None)), [id(7)]);
    let deleted = take_in(&mut view, image(&["n2", "n3"], Some(3)));
    assert_eq!((deleted.vms.len(), deleted.deletions.len()), (1, 1));
}

#[test]
fn a_vm_whose_write_was_forestalled_is_looked_at_after_the_next_change() {
    let mut view = cluster(1, 3);
    view.look_again(id(2));
    let load = KeyValue { key: keys::load(&name("n0")), ..facts("n0") };
    assert_eq!(take_in(&mut view, Change::Put(load.clone())).vms.drain(), [id(2)].into());
    assert!(take_in(&mut view, Change::Put(load)).is_empty(), "once");
}

#[test]
fn vms_of_one_look_do_not_all_get_the_same_node() {
    let mut view = cluster(4, 20);
    let mut touched = Touched { vms: (0..20).map(id).collect(), ..Touched::default() };
    let txns = plan(&mut view, &mut touched, jiff::Timestamp::UNIX_EPOCH);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for (given, txn) in &txns {
        let owner = txn.then.iter().find_map(|op| match op {
            vmkeep_store::Op::Put(key, value) if key.starts_with("owner/") => serde_json::from_slice::<Owner>(value).ok(),
            _ => None,
        });
        let owner = owner.expect("each gets one");
        assert_eq!(*given, Whose::Seat(owner.vm));
        *counts.entry(owner.node.to_string()).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [5, 5, 5, 5]);
    view.fleet().check().expect("the sums are true");
    // A write that failed leaves the seat to others.
    view.give_back(id(3));
    assert_eq!((view.fleet().owner(id(3)), view.fleet().homeless().count()), (None, 1));
}

#[test]
fn keys_come_and_go_in_any_order() {
    let mut items: Vec<KeyValue> = (0..4).flat_map(vm).collect();
    items.extend([facts("n0"), facts("n1"), owner(0, "n0"), owner(1, "n0"), owner(2, "n1")]);
    items.push(kv(keys::node(&name("n0")), &NodeRecord::named(name("n0"))));
    let whole = ClusterView::new(Revision(1), &items).0;
    items.reverse();
    let mut view = ClusterView::default();
    for item in &items {
        take_in(&mut view, Change::Put(item.clone()));
    }
    let sums = |view: &ClusterView| view.fleet().seats().map(|seat| (seat.taken, seat.owned.clone())).collect::<Vec<_>>();
    assert_eq!(sums(&view), sums(&whole));
    for item in &items {
        take_in(&mut view, Change::Deleted { key: item.key.clone(), at: Revision(3) });
    }
    assert_eq!((view.fleet().seats().len(), view.fleet().guests().count()), (0, 0));
    assert_eq!(typed::decode::<Owner>(&owner(1, "n0")).expect("it parses").node, name("n0"));
}

#[test]
fn every_touched_vm_has_its_turn_before_one_has_it_again() {
    let vm = |n: u128| VmId(uuid::Uuid::from_u128(n));
    let numbers = |vms: Vec<VmId>| vms.into_iter().map(|vm| vm.0.as_u128()).collect::<Vec<_>>();
    let mut touched = Touched { vms: (1..=5).map(vm).collect(), ..Touched::default() };
    assert_eq!(numbers(touched.next_vms(2)), [1, 2]);
    // What was written for them comes back.
    touched.vms.extend([vm(1), vm(2)]);
    assert_eq!(numbers(touched.next_vms(2)), [3, 4]);
    assert_eq!(numbers(touched.next_vms(2)), [5, 1]);
    assert_eq!(numbers(touched.next_vms(2)), [2]);
    assert!(touched.is_empty() && touched.next_vms(2).is_empty());
    touched.vms.insert(vm(3));
    assert_eq!(numbers(touched.next_vms(9)), [3]);
}

/// As after a change of leaders at the size that is planned for.
#[test]
fn a_vm_that_is_named_does_not_wait_for_all_there_are() {
    let vm = |n: u128| VmId(uuid::Uuid::from_u128(n));
    let numbers = |vms: Vec<VmId>| vms.into_iter().map(|vm| vm.0.as_u128()).collect::<Vec<_>>();
    let mut touched = Touched { settled: (1..=20_000).map(vm).collect(), busy: (30_000..=31_000).map(vm).collect(), ..Touched::default() };
    assert_eq!(numbers(touched.next_vms(4)), [30_000, 30_001, 1, 2]);
    touched.vms.extend([vm(50_000), vm(19_999)]);
    assert_eq!(numbers(touched.next_vms(8)), [19_999, 50_000, 30_002, 30_003, 30_004, 3, 4, 5]);
    // However many are named, the others have half of each look.
    touched.vms.extend((60_000..70_000).map(vm));
    assert_eq!(numbers(touched.next_vms(8)), [60_000, 60_001, 60_002, 60_003, 30_005, 30_006, 6, 7]);
    // And are looked at once: the one that was named is not among them any more.
    touched.vms.drain();
    let mut seen = Vec::new();
    while !touched.is_empty() {
        seen.extend(numbers(touched.next_vms(256)));
    }
    let looks = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((looks, seen.len(), seen.contains(&19_999)), (19_992 + 994, looks, false));
}

#[test]
fn a_first_listing_has_those_first_for_whom_there_is_something_to_do() {
    let mut items: Vec<KeyValue> = (0..4).flat_map(vm).collect();
    items.extend([facts("n0"), owner(0, "n0"), owner(1, "n0"), owner(3, "n0")]);
    let (_, mut touched) = ClusterView::new(Revision(1), &items);
    assert_eq!((touched.vms.len(), touched.busy.len(), touched.settled.len()), (0, 1, 3));
    assert_eq!(touched.next_vms(1), [id(2)]);
}
