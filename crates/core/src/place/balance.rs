//! Which few moves would help most, from what was measured.
//!
//! ```text
//!  NodeLoad of each node ──► pressure over one minute and over five ──► hot: both high above the mean
//!  hot node ──► each of its VMs × each node that may take it ──► the move with the most gain ──► as though done, and again
//! ```
//! What has to be copied costs: a move along which a disk goes must gain more, by its size; nothing goes to a node whose programs wait
//! for its disks; and what cannot move while it runs is not proposed.
//!
//! What keeps it from moving VMs to and fro: a node is hot only when it was so for a minute *and* for five; a move must gain
//! something worth it; the target must stay cooler than a hot node after it; a VM that was moved rests; and preferences of
//! rules are never made worse. It proposes and moves nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::node::{NodeLoad, VmLoad};
use vmkeep_types::units::ByteCount;

use super::fleet::{Fleet, Seat};
use super::need::{Counts, Guest, Home, Need};
use super::refuse::refuse;
use super::rules::Neighbours;
use super::score::{Score, score};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// 1/1000 above the mean pressure of all nodes from which a node is hot.
    pub threshold: u32,
    /// 1/1000 of pressure below which a node is never hot.
    pub floor: u32,
    /// 1/1000 that a move must take off the worse of its two nodes.
    pub gain_min: u32,
    /// Bytes of disks to copy for which a move must gain 1/1000 more.
    pub copy_bytes: u64,
    /// 1/1000 of time in which programs of a node wait for its disks, from which on nothing is sent there.
    pub io_stall_max: u32,
    /// Moves of one proposal.
    pub moves_max: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self { threshold: 150, floor: 500, gain_min: 50, copy_bytes: 1 << 30, io_stall_max: 200, moves_max: 5 }
    }
}

/// A VM that was moved is left alone for so long.
pub const COOL_DOWN_SECONDS: i64 = 3600;

/// What was measured longer ago says nothing of now.
pub const STALE_SECONDS: i64 = 300;

/// What goes along with a VM that moves while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// Bytes of disks that only its node reaches, beside its memory.
    Disks(ByteCount),
    /// It cannot move so.
    Bound,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub vm: VmId,
    pub from: Name,
    pub to: Name,
    /// 1/1000 taken off the worse of the two.
    pub gain: u32,
    pub from_before: u32,
    pub from_after: u32,
    pub to_before: u32,
    pub to_after: u32,
}

/// Pressure of a node, 1/1000, over two spans; more than 1000 where programs wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heat {
    minute: Parts,
    five_minutes: Parts,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    cpu: u32,
    memory: u32,
}

impl Parts {
    fn worst(self) -> u32 {
        self.cpu.max(self.memory)
    }
}

impl Heat {
    fn of(seat: &Seat, load: &NodeLoad) -> Self {
        let memory = permille(load.memory_used.bytes(), seat.facts.memory.bytes());
        Self {
            minute: Parts { cpu: load.cpu.minute + load.cpu_stall.minute, memory: memory + load.memory_stall.minute },
            five_minutes: Parts {
                cpu: load.cpu.five_minutes + load.cpu_stall.five_minutes,
                memory: memory + load.memory_stall.five_minutes,
            },
        }
    }

    /// What lasts: the lower of the two spans.
    fn lasting(self) -> u32 {
        self.minute.worst().min(self.five_minutes.worst())
    }

    fn less(self, by: Parts) -> Self {
        let take = |from: Parts| Parts { cpu: from.cpu.saturating_sub(by.cpu), memory: from.memory.saturating_sub(by.memory) };
        Self { minute: take(self.minute), five_minutes: take(self.five_minutes) }
    }

    fn more(self, by: Parts) -> Self {
        let add = |to: Parts| Parts { cpu: to.cpu + by.cpu, memory: to.memory + by.memory };
        Self { minute: add(self.minute), five_minutes: add(self.five_minutes) }
    }
}

fn permille(part: u64, whole: u64) -> u32 {
    u32::try_from(part.saturating_mul(1000) / whole.max(1)).unwrap_or(u32::MAX)
}

/// What a VM does to a node that it is on.
fn share(seat: &Seat, vm: &VmLoad) -> Parts {
    Parts { cpu: vm.cpu / seat.facts.cpus.max(1), memory: permille(vm.memory.bytes(), seat.facts.memory.bytes()) }
}

/// 1/1000 of pressure that lasts, of each node that was measured.
pub fn pressures(fleet: &Fleet, loads: &BTreeMap<Name, NodeLoad>) -> BTreeMap<Name, u32> {
    heats(fleet, loads).into_iter().map(|(node, heat)| (node, heat.lasting())).collect()
}

fn heats(fleet: &Fleet, loads: &BTreeMap<Name, NodeLoad>) -> BTreeMap<Name, Heat> {
    loads.iter().filter_map(|(node, load)| Some((node.clone(), Heat::of(fleet.seat(node)?, load)))).collect()
}

/// What is known of the VMs.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Moved within the cool-down.
    pub resting: BTreeSet<VmId>,
    /// What goes along with each; one that is missing has no disk of its node.
    pub carried: BTreeMap<VmId, Carried>,
}

/// The moves that help most, the best first. `loads`: fresh ones only.
pub fn propose(fleet: &Fleet, loads: &BTreeMap<Name, NodeLoad>, known: &Known, policy: &Policy) -> Vec<Move> {
    let mut heats = heats(fleet, loads);
    if heats.len() < 2 {
        return Vec::new();
    }
    let count = u32::try_from(heats.len()).unwrap_or(u32::MAX);
    // Moves shift load and make none: the mean stays.
    let mean = heats.values().map(|heat| heat.lasting()).fold(0_u32, u32::saturating_add) / count;
    let hot = mean.saturating_add(policy.threshold).max(policy.floor);
    let (mut fleet, mut known, mut moves) = (fleet.clone(), known.clone(), Vec::new());
    while moves.len() < policy.moves_max {
        let mut hottest: Vec<&Name> = heats.iter().filter(|(_, heat)| heat.lasting() >= hot).map(|(node, _)| node).collect();
        hottest.sort_by_key(|node| (Reverse(heats[*node].lasting()), (*node).clone()));
        let look = Look { fleet: &fleet, loads, heats: &heats, known: &known, hot, policy };
        let Some(best) = hottest.into_iter().find_map(|node| look.best_from(node)) else { break };
        fleet.set_owner(best.vm, Some(&best.to));
        known.resting.insert(best.vm);
        for (node, sign) in [(&best.from, -1), (&best.to, 1)] {
            let (Some(vm), Some(seat)) = (measured(loads, best.vm), fleet.seat(node)) else { continue };
            let by = share(seat, vm);
            heats.entry(node.clone()).and_modify(|heat| *heat = if sign < 0 { heat.less(by) } else { heat.more(by) });
        }
        moves.push(best);
    }
    moves
}

fn measured(loads: &BTreeMap<Name, NodeLoad>, vm: VmId) -> Option<&VmLoad> {
    loads.values().find_map(|load| load.vms.get(&vm))
}

struct Look<'a> {
    fleet: &'a Fleet,
    loads: &'a BTreeMap<Name, NodeLoad>,
    heats: &'a BTreeMap<Name, Heat>,
    known: &'a Known,
    hot: u32,
    policy: &'a Policy,
}

impl Look<'_> {
    /// Bytes of disks to copy; None: it stays.
    fn disks(&self, vm: VmId) -> Option<u64> {
        match self.known.carried.get(&vm) {
            None => Some(0),
            Some(Carried::Disks(bytes)) => Some(bytes.bytes()),
            Some(Carried::Bound) => None,
        }
    }

    /// What a move must gain with so much to copy.
    fn worth(&self, disks: u64) -> u32 {
        let more = u32::try_from(disks / self.policy.copy_bytes.max(1)).unwrap_or(u32::MAX);
        self.policy.gain_min.saturating_add(more)
    }

    /// The move off a node that gains most above what it must; of equal ones that with the least to carry, then by ids and names.
    fn best_from(&self, node: &Name) -> Option<Move> {
        let from = self.fleet.seat(node)?;
        let load = self.loads.get(node)?;
        let stays = |id: &VmId| from.owned.contains(id) && self.fleet.heir(*id).is_none();
        let vms = load.vms.iter().filter(|(id, _)| stays(id) && !self.known.resting.contains(id));
        let guests = vms.filter_map(|(id, vm)| Some((self.fleet.guest(*id)?, vm))).filter(|(guest, _)| guest.counts == Counts::Yes);
        let moves = guests.filter_map(|(guest, vm)| Some((guest, vm, self.disks(guest.id)?))).flat_map(|(guest, vm, disks)| {
            let carried = vm.memory.bytes().saturating_add(disks);
            let over = move |found: &Move| found.gain.saturating_sub(self.worth(disks));
            self.targets(from, guest, vm, disks).into_iter().map(move |found| (over(&found), carried, found))
        });
        let best = moves.min_by_key(|(over, carried, found)| (Reverse(over / 10), *carried, found.to_after, found.vm, found.to.clone()));
        best.map(|(_, _, found)| found)
    }

    fn targets(&self, from: &Seat, guest: &Guest, vm: &VmLoad, disks: u64) -> Vec<Move> {
        // Its data goes along.
        let guest = &Guest { need: Need { home: Home::Anywhere, ..guest.need.clone() }, ..guest.clone() };
        let neighbours = Neighbours::of(self.fleet, guest);
        let wishes = |score: &Score| (score.speed, score.preferred_broken, score.crowd_in_domain);
        let now = wishes(&score(self.fleet, from, guest, &neighbours));
        let heat = self.heats[&from.name];
        let (from_before, from_after) = (heat.lasting(), heat.less(share(from, vm)).lasting());
        let mut found = Vec::new();
        for (node, to_heat) in self.heats.iter().filter(|(node, _)| **node != from.name) {
            let Some(to) = self.fleet.seat(node) else { continue };
            let (to_before, after) = (to_heat.lasting(), to_heat.more(share(to, vm)));
            // The target counts by its worse span: what is rising there is not made worse.
            let to_after = after.minute.worst().max(after.five_minutes.worst());
            let gain = from_before.max(to_before).saturating_sub(from_after.max(to_after));
            let stall = self.loads.get(node).map(|load| load.io_stall).unwrap_or_default();
            let waits = stall.minute.max(stall.five_minutes) >= self.policy.io_stall_max;
            let worth_it = gain >= self.worth(disks) && to_after < self.hot && !waits;
            if worth_it && refuse(self.fleet, to, guest, &neighbours).is_none() && wishes(&score(self.fleet, to, guest, &neighbours)) <= now
            {
                let (vm, from, to) = (guest.id, from.name.clone(), to.name.clone());
                found.push(Move { vm, from, to, gain, from_before, from_after, to_before, to_after });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
