//! "Does it fit, and where does it break": VMs that do not exist yet, placed one after another as they would be.

use std::collections::BTreeMap;

use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;

use super::fleet::Fleet;
use super::need::Guest;
use super::refuse::Refusal;
use super::{Choice, choose};

/// VMs of one simulation: more than are planned for in a cluster.
pub const VMS_MAX: u32 = 20_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many of the wanted ones found a node.
    pub placed: u32,
    pub wanted: u32,
    /// Node to how many it got.
    pub by_node: BTreeMap<Name, u32>,
    /// The first that found none: its name and why, node by node.
    pub broken: Option<(Name, Vec<(Name, Refusal)>)>,
}

/// Adds `count` VMs like `guest` to the fleet, called NAME-1, NAME-2 …; it stops at the first that fits nowhere.
pub fn add(fleet: &mut Fleet, guest: &Guest, count: u32) -> Outcome {
    let mut outcome = Outcome { placed: 0, wanted: count, by_node: BTreeMap::new(), broken: None };
    for n in 1..=count.min(VMS_MAX) {
        let next = Guest { id: planned_id(&guest.name, n), name: numbered(&guest.name, n), ..guest.clone() };
        match choose(fleet, &next) {
            Choice::Node(node) => {
                fleet.set_owner(next.id, Some(&node));
                fleet.set_guest(next);
                *outcome.by_node.entry(node).or_default() += 1;
                outcome.placed += 1;
            }
            Choice::Blocked(refusals) => {
                outcome.broken = Some((next.name, refusals));
                break;
            }
        }
    }
    outcome
}

fn numbered(name: &Name, n: u32) -> Name {
    let room = vmkeep_types::name::NAME_BYTES_MAX - 11;
    let stem = name.as_str().get(..room).unwrap_or(name.as_str()).trim_end_matches('-');
    format!("{stem}-{n}").parse().expect("a name, a hyphen and a number make a name")
}

/// An id that no VM has: version and variant of a UUID are not set in it.
fn planned_id(name: &Name, n: u32) -> VmId {
    let stem = vmkeep_types::hash::fnv64(name.as_str().bytes());
    VmId(uuid::Uuid::from_u64_pair(stem & 0x0fff, u64::from(n)))
}
