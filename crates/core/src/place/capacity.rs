//! How many nodes may fail with everything still fitting on the others, and the largest VM that there is room for.
//!
//! It is about room: where the disks of a VM can be reached from is left aside, and told apart as how many VMs have them on
//! one node only. Where the lost VMs find roomy places at once, the best place of each is not looked for.

use std::cmp::Reverse;

use vmkeep_types::host::NodeHealth;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::fleet::{Fleet, Seat};
use super::need::{Counts, Guest, Home};
use super::refuse::refuse;
use super::rules::Neighbours;
use super::score::score;
use super::{Choice, choose};

/// Failures at once that are tried.
pub const FAILURES_MAX: usize = 2;

/// Sets of failed nodes that are tried, the fullest nodes first: all single ones of a thousand nodes, all pairs of forty.
const SETS_MAX: usize = 1_000;

/// As many for a warning, which must not keep anybody waiting.
const WARNING_SETS_MAX: usize = 50;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub nodes: usize,
    pub vms: usize,
    /// VMs without a node.
    pub homeless: usize,
    /// VMs whose volumes only one node reaches: they wait for that node.
    pub bound: usize,
    /// How many nodes may fail: 0 to [`FAILURES_MAX`].
    pub may_fail: usize,
    /// What breaks when one more fails; None when nothing was found.
    pub breaks: Option<Break>,
    /// False: of larger sets of failed nodes only those with the fullest nodes were tried.
    pub all_tried: bool,
    pub largest: Option<Largest>,
}

/// The first set of failed nodes that leaves VMs without a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    pub failed: Vec<Name>,
    pub left_over: Vec<Name>,
}

/// Room for one more VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Largest {
    pub node: Name,
    pub memory: ByteCount,
    pub vcpus: u64,
}

pub fn capacity(fleet: &Fleet) -> Capacity {
    let mut found = Capacity {
        nodes: fleet.seats().len(),
        vms: fleet.guests().count(),
        homeless: fleet.homeless().count(),
        bound: fleet.guests().filter(|guest| guest.need.home != Home::Anywhere).count(),
        may_fail: 0,
        breaks: None,
        all_tried: true,
        largest: largest(fleet),
    };
    let mut free = unbound(fleet.clone());
    for failures in 1..=FAILURES_MAX {
        let (broken, tried) = first_break(&mut free, failures, SETS_MAX);
        if broken.is_some() || found.nodes <= failures {
            found.breaks = broken;
            return found;
        }
        found.may_fail = failures;
        found.all_tried &= tried == Tried::All;
    }
    found
}

/// How many nodes may fail, 0 to [`FAILURES_MAX`], as far as the fullest nodes of a large cluster tell.
pub fn may_fail_at_a_glance(fleet: Fleet) -> usize {
    let nodes = fleet.seats().len();
    let mut free = unbound(fleet);
    let survives = |failures: &usize| nodes > *failures && first_break(&mut free, *failures, WARNING_SETS_MAX).0.is_none();
    (1..=FAILURES_MAX).take_while(survives).count()
}

/// The fleet as though all volumes could be reached everywhere, and no VM were on its way.
fn unbound(mut fleet: Fleet) -> Fleet {
    let moving: Vec<VmId> = fleet.guests().map(|guest| guest.id).filter(|id| fleet.heir(*id).is_some()).collect();
    moving.into_iter().for_each(|id| fleet.set_heir(id, None));
    let bound: Vec<Guest> = fleet.guests().filter(|guest| guest.need.home != Home::Anywhere).cloned().collect();
    for mut guest in bound {
        guest.need.home = Home::Anywhere;
        fleet.set_guest(guest);
    }
    fleet
}

#[derive(PartialEq, Eq)]
enum Tried {
    All,
    TheFullest,
}

/// Leaves the fleet as it was.
fn first_break(fleet: &mut Fleet, failures: usize, sets_max: usize) -> (Option<Break>, Tried) {
    let mut seats: Vec<&Seat> = fleet.seats().collect();
    seats.sort_by_key(|seat| (Reverse(seat.taken.memory), Reverse(seat.taken.vcpus), seat.name.clone()));
    let names: Vec<Name> = seats.into_iter().map(|seat| seat.name.clone()).collect();
    let mut sets: Vec<Vec<Name>> = vec![Vec::new()];
    for _ in 0..failures {
        sets = sets.iter().flat_map(|set| larger(set, &names)).take(sets_max + 1).collect();
    }
    let tried = if sets.len() > sets_max { Tried::TheFullest } else { Tried::All };
    let mut emptiest = Emptiest { names: names.into_iter().rev().collect(), at: 0 };
    (sets.iter().take(sets_max).find_map(|failed| fails(fleet, failed, &mut emptiest)), tried)
}

/// Nodes by turns, those with the most room first: in a cluster with room enough each VM finds a place at the first or second,
/// where the best place of a thousand is a thousand looks away.
struct Emptiest {
    names: Vec<Name>,
    at: usize,
}

/// A node that is used no more than that afterwards has room to spare, whichever VM would be placed there first, 1/1000.
const ROOMY_PERMILLE: u64 = 900;

impl Emptiest {
    fn next_for(&mut self, fleet: &Fleet, guest: &Guest) -> Option<Name> {
        let neighbours = Neighbours::of(fleet, guest);
        let roomy = |seat: &Seat| {
            refuse(fleet, seat, guest, &neighbours).is_none() && score(fleet, seat, guest, &neighbours).used_permille <= ROOMY_PERMILLE
        };
        let count = self.names.len();
        let step = (0..count).find(|step| fleet.seat(&self.names[(self.at + step) % count]).is_some_and(roomy))?;
        let found = (self.at + step) % count;
        self.at = (found + 1) % count;
        Some(self.names[found].clone())
    }
}

/// The set with each node that comes after its last one.
fn larger<'a>(set: &'a [Name], names: &'a [Name]) -> impl Iterator<Item = Vec<Name>> + 'a {
    let from = set.last().map_or(0, |last| names.iter().position(|name| name == last).expect("sets are made of these") + 1);
    names[from..].iter().map(|name| set.iter().chain([name]).cloned().collect())
}

/// Takes the nodes away, finds places for their VMs, and puts everything back.
fn fails(fleet: &mut Fleet, failed: &[Name], emptiest: &mut Emptiest) -> Option<Break> {
    let seats: Vec<Seat> = failed.iter().filter_map(|name| fleet.seat(name).cloned()).collect();
    let was: Vec<(VmId, Name)> = seats.iter().flat_map(|seat| seat.owned.iter().map(|id| (*id, seat.name.clone()))).collect();
    let mut lost: Vec<Guest> = was.iter().filter_map(|(id, _)| fleet.guest(*id)).filter(|g| g.counts == Counts::Yes).cloned().collect();
    // As they would be placed: by priority, the large ones while there is room in one piece.
    lost.sort_by_key(|g| (g.need.priority, Reverse(g.need.memory), Reverse(g.need.vcpus), g.id));
    was.iter().for_each(|(id, _)| fleet.set_owner(*id, None));
    failed.iter().for_each(|name| fleet.hide_node(name));
    let spread = lost.iter().all(|guest| match emptiest.next_for(fleet, guest) {
        Some(node) => {
            fleet.set_owner(guest.id, Some(&node));
            true
        }
        None => false,
    });
    lost.iter().for_each(|guest| fleet.set_owner(guest.id, None));
    let left_over = if spread { Vec::new() } else { without_place(fleet, &lost) };
    seats.into_iter().for_each(|seat| fleet.show_node(seat));
    was.iter().for_each(|(id, node)| fleet.set_owner(*id, Some(node)));
    (!left_over.is_empty()).then(|| Break { failed: failed.to_vec(), left_over })
}

/// Those that get no place when each gets the best that is left.
fn without_place(fleet: &mut Fleet, lost: &[Guest]) -> Vec<Name> {
    let mut left_over = Vec::new();
    for guest in lost {
        match choose(fleet, guest) {
            Choice::Node(node) => fleet.set_owner(guest.id, Some(&node)),
            Choice::Blocked(_) => left_over.push(guest.name.clone()),
        }
    }
    lost.iter().for_each(|guest| fleet.set_owner(guest.id, None));
    left_over
}

/// The node with the most free memory that takes new VMs.
fn largest(fleet: &Fleet) -> Option<Largest> {
    let open = fleet.seats().filter(|seat| seat.record.cordon.is_none() && seat.facts.hypervisor_up && seat.health == NodeHealth::Online);
    let room = open.map(|seat| {
        let limits = fleet.limits(seat);
        let memory = limits.memory.unwrap_or(u64::MAX).saturating_sub(seat.taken.memory).min(seat.facts.memory.bytes());
        let most = seat.cpus_for_vms().saturating_mul(u64::from(super::fleet::CPU_OVERCOMMIT));
        let vcpus = limits.vcpus.unwrap_or(u64::MAX).saturating_sub(seat.taken.vcpus).min(most);
        Largest { node: seat.name.clone(), memory: ByteCount::from_bytes(memory), vcpus }
    });
    room.filter(|l| l.vcpus > 0).max_by_key(|l| (l.memory, l.vcpus, Reverse(l.node.clone())))
}
