//! Each field of the score goes before the one after it.

use serde_json::{Value, json};
use vmkeep_types::host::{KvmState, NumaNode};
use vmkeep_types::ids::ImageId;
use vmkeep_types::units::ByteCount;

use crate::place::testkit::{facts, fleet, guest, name, put, record};
use crate::place::{Choice, Fleet, Guest, choose};

/// The two that are chosen from; each has a second node in its failure domain that takes nothing.
const NODES: [&str; 4] = ["a", "b", "a-beside", "b-beside"];

/// What its disk is made from; all nodes have it.
const IMAGE: ImageId = ImageId(uuid::Uuid::from_u128(7));

/// A VM of 8 of 64 GiB and 4 of 64 vCPUs.
fn wish() -> Guest {
    let apart = json!({"anti_affinity": [{"labels": {"app": "web"}}]});
    let mut wish = guest(1, "web1", json!({"labels": {"app": "web"}, "cpus": 4, "memory": "8G", "ha": {}, "placement": apart}));
    wish.need.images = vec![IMAGE];
    wish
}

/// Makes a node worse in one field, and in none before it.
type Worse = fn(&mut Fleet, &str);

/// Another VM that is on a node already.
fn beside(fleet: &mut Fleet, node: &str, fields: Value) {
    let n = 10 + fleet.guests().count() as u64;
    put(fleet, guest(n, &format!("other{n}"), fields), node);
}

fn closed(domain: &str) -> Value {
    json!({"failure_domain": domain, "taints": [{"key": "closed"}]})
}

fn domain(node: &str) -> Value {
    json!({"failure_domain": format!("rack-{node}")})
}

/// In the order of the fields. Of `movement` the volumes decide nothing: nodes that do not hold those of a VM that is bound to them are
/// refused, and one that moves takes all of them along wherever it goes.
const FIELDS: [(&str, Worse); 9] = [
    ("safety", |fleet, node| fleet.set_unprovable(&name(node), Some("it has no power plug".into()))),
    ("speed", |fleet, node| {
        let mut slow = facts(node, 8, 64);
        slow.kvm = KvmState::Unusable { why: "no vmx".into() };
        fleet.set_node(slow, record(node, domain(node)));
    }),
    ("preferred_broken", |fleet, node| {
        let mut wish = domain(node);
        wish["taints"] = json!([{"key": "old", "effect": "avoid"}]);
        fleet.set_node(facts(node, 8, 64), record(node, wish));
    }),
    ("crowd_in_domain", |fleet, node| beside(fleet, &format!("{node}-beside"), json!({"labels": {"app": "web"}}))),
    ("used_twentieths", |fleet, node| beside(fleet, node, json!({"memory": "48G"}))),
    ("numa", |fleet, node| {
        let mut small = facts(node, 8, 64);
        small.offers.numa = (0..4).map(|id| NumaNode { id, cpus: 2, memory: ByteCount::from_gib(16) }).collect();
        fleet.set_node(small, record(node, domain(node)));
    }),
    ("used_permille", |fleet, node| {
        let mut wish = domain(node);
        wish["reserve"] = json!({"memory": "4G"});
        fleet.set_node(facts(node, 8, 64), record(node, wish));
    }),
    ("vms", |fleet, node| beside(fleet, node, json!({"memory": "1M"}))),
    ("movement", |fleet, node| fleet.set_image(IMAGE, NODES.into_iter().filter(|other| *other != node).map(name).collect())),
];

/// `a` worse in the one, `b` in the other.
fn chosen(a: Worse, b: Worse) -> Choice {
    let mut fleet = fleet(&NODES.map(|node| (node, 8, 64)));
    for node in ["a", "b"] {
        fleet.set_node(facts(node, 8, 64), record(node, domain(node)));
        let beside = format!("{node}-beside");
        fleet.set_node(facts(&beside, 8, 64), record(&beside, closed(&format!("rack-{node}"))));
    }
    fleet.set_image(IMAGE, NODES.into_iter().map(name).collect());
    a(&mut fleet, "a");
    b(&mut fleet, "b");
    choose(&fleet, &wish())
}

#[test]
fn each_field_goes_before_the_next() {
    let none: Worse = |_, _| {};
    assert_eq!(chosen(none, none), Choice::Node(name("a")), "of equals the first by name");
    let next = FIELDS.iter().skip(1).map(|(field, worse)| (*field, *worse)).chain([("node", none)]);
    for ((field, worse), (less, also_worse)) in FIELDS.into_iter().zip(next) {
        assert_eq!(chosen(worse, also_worse), Choice::Node(name("b")), "{field} goes before {less}");
    }
}
