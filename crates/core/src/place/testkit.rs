//! Nodes and VMs for the tests of placement.

use serde_json::{Value, json};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::node::NodeRecord;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

use super::fleet::Fleet;
use super::need::Guest;

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub fn facts(node: &str, cpus: u32, gib: u64) -> NodeFacts {
    NodeFacts::of(name(node), cpus, ByteCount::from_gib(gib))
}

/// Fields over those of a node's wish that says nothing.
pub fn record(node: &str, fields: Value) -> NodeRecord {
    let mut spec = json!({"name": node});
    spec.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
    NodeRecord { spec: serde_json::from_value(spec).expect("a node"), cordon: None }
}

pub fn fleet(nodes: &[(&str, u32, u64)]) -> Fleet {
    let mut fleet = Fleet::default();
    for (node, cpus, gib) in nodes {
        fleet.set_node(facts(node, *cpus, *gib), NodeRecord::named(name(node)));
    }
    fleet
}

/// Fields over those of a VM with one CPU and 1 GiB; its id is made from `n`.
pub fn guest(n: u64, vm: &str, fields: Value) -> Guest {
    let mut spec = json!({"name": vm});
    spec.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
    let spec: VmSpec = serde_json::from_value(spec).expect("a wish");
    Guest::planned(VmId(uuid::Uuid::from_u64_pair(1, n)), Name::known("default"), &spec)
}

/// Puts a VM on a node, whether it may be there or not.
pub fn put(fleet: &mut Fleet, guest: Guest, node: &str) {
    let id = guest.id;
    fleet.set_guest(guest);
    fleet.set_owner(id, Some(&name(node)));
}

/// xorshift: the same numbers each time.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
