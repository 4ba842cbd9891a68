//! Proposals carried out again and again while recorded load goes up and down: hot nodes cool, and no VM goes to and fro.

use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use serde_json::json;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::node::{Averages, NodeLoad, VmLoad};
use vmkeep_types::units::ByteCount;

use super::{COOL_DOWN_SECONDS, Carried, Known, Move, Policy, pressures, propose};
use crate::place::Fleet;
use crate::place::need::Home;
use crate::place::testkit::{Dice, fleet, guest, put};

/// CPU pressure of a build machine, 1/1000, every 10 s; read from /proc/pressure/cpu.
const CURVE: &str = include_str!("curve.txt");
const STEP_SECONDS: i64 = 10;
const CPUS: u32 = 16;
/// A VM that is back where it left within this time went to and fro.
const FLIP_SECONDS: i64 = 3600;

struct Story {
    fleet: Fleet,
    curve: Vec<u32>,
    /// VM to the part of the curve that it begins at, and how many CPUs it has at most.
    phase: BTreeMap<VmId, (usize, u32)>,
    /// Disks of one node.
    carried: BTreeMap<VmId, Carried>,
    /// Usage of the VMs in the last steps, the newest last.
    past: Vec<BTreeMap<VmId, u32>>,
    moved: Vec<(i64, Move)>,
    now: i64,
}

impl Story {
    fn new(seed: u64, nodes: u32, vms: u64) -> Self {
        let mut dice = Dice(seed);
        let named: Vec<String> = (0..nodes).map(|n| format!("n{n}")).collect();
        let list: Vec<(&str, u32, u64)> = named.iter().map(|n| (n.as_str(), CPUS, 64)).collect();
        let mut fleet = fleet(&list);
        let curve: Vec<u32> = CURVE.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        let mut phase = BTreeMap::new();
        for n in 0..vms {
            let guest = guest(n, &format!("v{n}"), json!({"cpus": 4, "memory": "2G"}));
            phase.insert(guest.id, (dice.below(curve.len() as u64) as usize, 1 + dice.below(4) as u32));
            // All on the first half of the nodes.
            put(&mut fleet, guest, &named[dice.below(u64::from(nodes.div_ceil(2))) as usize]);
        }
        Self { fleet, curve, phase, carried: BTreeMap::new(), past: Vec::new(), moved: Vec::new(), now: 0 }
    }

    fn step(&mut self) {
        let at = (self.now / STEP_SECONDS) as usize;
        let usage = |(from, cpus): &(usize, u32)| self.curve[(from + at) % self.curve.len()] * cpus;
        self.past.push(self.phase.iter().map(|(id, phase)| (*id, usage(phase))).collect());
        self.now += STEP_SECONDS;
    }

    /// Mean use of a VM over the last steps, 1/1000 of one CPU.
    fn mean(&self, id: VmId, steps: usize) -> u32 {
        let last = &self.past[self.past.len().saturating_sub(steps)..];
        last.iter().map(|usage| usage[&id]).sum::<u32>() / last.len() as u32
    }

    fn loads(&self) -> BTreeMap<Name, NodeLoad> {
        let load = |seat: &crate::place::Seat| {
            let over = |steps| seat.owned.iter().map(|id| self.mean(*id, steps)).sum::<u32>() / CPUS;
            let (minute, five) = (over(6), over(30));
            let stall = |cpu: u32| cpu.saturating_sub(1000).min(1000);
            let vms = seat.owned.iter().map(|id| (*id, VmLoad { cpu: self.mean(*id, 30), memory: ByteCount::from_gib(2) })).collect();
            NodeLoad {
                at: jiff::Timestamp::UNIX_EPOCH,
                cpu: Averages { minute: minute.min(1000), five_minutes: five.min(1000) },
                memory_used: ByteCount::from_gib(2 * seat.owned.len() as u64),
                cpu_stall: Averages { minute: stall(minute), five_minutes: stall(five) },
                memory_stall: Averages::default(),
                io_stall: Averages::default(),
                vms,
            }
        };
        self.fleet.seats().map(|seat| (seat.name.clone(), load(seat))).collect()
    }

    /// One look, and what it proposes done at once.
    fn balance(&mut self, policy: &Policy, cool_down: i64) {
        let resting: BTreeSet<VmId> = self.moved.iter().filter(|(at, _)| self.now - at < cool_down).map(|(_, moved)| moved.vm).collect();
        let known = Known { resting, carried: self.carried.clone() };
        for proposal in propose(&self.fleet, &self.loads(), &known, policy) {
            assert_eq!(self.fleet.owner(proposal.vm), Some(&proposal.from));
            self.fleet.set_owner(proposal.vm, Some(&proposal.to));
            self.moved.push((self.now, proposal));
        }
        self.fleet.check().expect("the sums are true");
    }

    /// Moves back to a node that the VM left within the hour.
    fn flips(&self) -> usize {
        let back = |(at, moved): &&(i64, Move)| {
            self.moved
                .iter()
                .any(|(before, left)| left.vm == moved.vm && left.from == moved.to && before < at && at - before < FLIP_SECONDS)
        };
        self.moved.iter().filter(back).count()
    }

    fn hours(mut self, hours: i64, policy: &Policy, cool_down: i64) -> Self {
        while self.now < hours * 3600 {
            self.step();
            if self.now >= 300 && self.now % 60 == 0 {
                self.balance(policy, cool_down);
            }
        }
        self
    }
}

#[test]
fn a_hot_node_cools_with_few_moves() {
    let mut story = Story::new(7, 4, 24);
    for _ in 0..30 {
        story.step();
    }
    let told = |story: &Story| pressures(&story.fleet, &story.loads()).into_values().map(|p| p.to_string()).collect::<Vec<_>>().join(" ");
    let before = told(&story);
    story.balance(&Policy::default(), COOL_DOWN_SECONDS);
    let moves: Vec<String> = story
        .moved
        .iter()
        .map(|(_, m)| {
            format!("{} -> {} gains {}: {} -> {}, {} -> {}", m.from, m.to, m.gain, m.from_before, m.from_after, m.to_before, m.to_after)
        })
        .collect();
    expect![[r#"
        1857 1560 0 0
        n0 -> n2 gains 248: 1857 -> 1609, 0 -> 248
        n0 -> n3 gains 239: 1609 -> 1370, 0 -> 239
        n1 -> n3 gains 246: 1560 -> 1314, 239 -> 485
        n0 -> n2 gains 180: 1370 -> 1190, 248 -> 428
        n1 -> n2 gains 181: 1314 -> 1133, 428 -> 609
        1209 1133 604 461
    "#]]
    .assert_eq(&format!("{before}\n{}\n{}\n", moves.join("\n"), told(&story)));
}

#[test]
fn recorded_load_makes_no_vm_go_to_and_fro() {
    let mut moves = 0;
    for seed in 1..9 {
        let story = Story::new(seed * 0x9e37_79b9, 4, 24).hours(6, &Policy::default(), COOL_DOWN_SECONDS);
        assert_eq!(story.flips(), 0, "seed {seed}: {:?}", story.moved);
        moves += story.moved.len();
        assert!(story.moved.len() <= 48, "seed {seed}: {} moves in six hours", story.moved.len());
    }
    assert!(moves > 0, "there was something to do");
}

/// The same load and none of what damps: the test above would see it.
#[test]
fn without_damping_they_do() {
    let hasty = Policy { threshold: 0, floor: 0, gain_min: 1, ..Policy::default() };
    let flips: usize = (1..5).map(|seed| Story::new(seed * 0x9e37_79b9, 4, 24).hours(2, &hasty, 0).flips()).sum();
    assert!(flips > 0, "the load is uneven enough to be chased");
}

#[test]
fn what_must_not_move_stays() {
    let mut story = Story::new(7, 2, 0);
    let rule = json!({"memory": "2G", "placement": {"node_selector": {"node": "n0"}}});
    put(&mut story.fleet, guest(1, "bound", rule), "n0");
    put(&mut story.fleet, guest(2, "rests", json!({"memory": "2G"})), "n0");
    for n in 1..3 {
        story.phase.insert(guest(n, "x", json!({})).id, (0, 8));
    }
    for _ in 0..30 {
        story.step();
        story.past.last_mut().expect("a step").values_mut().for_each(|usage| *usage = 8000);
    }
    let resting = BTreeSet::from([guest(2, "x", json!({})).id]);
    let proposed = |known: &Known| propose(&story.fleet, &story.loads(), known, &Policy::default()).len();
    assert_eq!(proposed(&Known { resting, ..Known::default() }), 0);
    assert_eq!(proposed(&Known::default()), 1);
    let carried = BTreeMap::from([(guest(2, "x", json!({})).id, Carried::Bound)]);
    assert_eq!(proposed(&Known { carried, ..Known::default() }), 0, "it has a device of its host");
}

/// Which of two equal VMs goes, one with a disk of so many GiB that only its node reaches, and what it gains.
fn goes(gib: u64, io_stall: u32) -> String {
    let mut story = Story::new(7, 2, 0);
    for (n, name) in [(1, "disk"), (2, "bare")] {
        let mut vm = guest(n, name, json!({"memory": "2G"}));
        if name == "disk" {
            vm.need.home = Home::Only(Name::known("n0"));
            story.carried.insert(vm.id, Carried::Disks(ByteCount::from_gib(gib)));
        }
        story.phase.insert(vm.id, (0, 8));
        put(&mut story.fleet, vm, "n0");
    }
    for _ in 0..30 {
        story.step();
        story.past.last_mut().expect("a step").values_mut().for_each(|usage| *usage = 7000);
    }
    let mut loads = story.loads();
    let waits = Averages { minute: io_stall, five_minutes: io_stall };
    loads.get_mut(&Name::known("n1")).expect("measured").io_stall = waits;
    let told = |carried: BTreeMap<VmId, Carried>, resting: &[u64]| {
        let resting = resting.iter().map(|n| guest(*n, "x", json!({})).id).collect();
        let moves = propose(&story.fleet, &loads, &Known { resting, carried }, &Policy::default());
        let name = |m: &Move| format!("{} gains {}", story.fleet.guest(m.vm).expect("known").name, m.gain);
        if moves.is_empty() { "none".into() } else { moves.iter().map(name).collect::<Vec<_>>().join(", ") }
    };
    format!("{}; without the bare one {}", told(story.carried.clone(), &[]), told(story.carried.clone(), &[2]))
}

#[test]
fn a_disk_that_is_copied_must_be_worth_it() {
    expect!["disk gains 437; without the bare one disk gains 437"].assert_eq(&goes(0, 0));
    expect!["bare gains 437; without the bare one disk gains 437"].assert_eq(&goes(100, 0));
    expect!["bare gains 437; without the bare one none"].assert_eq(&goes(400, 0));
    expect!["none; without the bare one none"].assert_eq(&goes(0, 200));
}

#[test]
fn disks_that_are_copied_make_no_vm_go_to_and_fro() {
    let mut moves = 0;
    for seed in 1..5 {
        let mut story = Story::new(seed * 0x9e37_79b9, 4, 24);
        let vms: Vec<VmId> = story.phase.keys().copied().collect();
        for (n, vm) in vms.into_iter().enumerate() {
            story.carried.insert(vm, Carried::Disks(ByteCount::from_gib(10 * n as u64)));
        }
        let story = story.hours(6, &Policy::default(), COOL_DOWN_SECONDS);
        assert_eq!(story.flips(), 0, "seed {seed}: {:?}", story.moved);
        moves += story.moved.len();
    }
    assert!(moves > 0, "there was something to do");
}

/// A node of 16 CPUs and 64 GiB as it was measured.
#[derive(Clone, Copy, Default)]
struct Measured {
    cpu: u32,
    memory_gib: u64,
    memory_stall: Averages,
}

/// Moves off `n0`, of VMs that are each a name, 1/1000 of one CPU and GiB of memory; `promised`: GiB of other VMs on `n1`, which use nothing.
fn moves(measured: [Measured; 2], vms: &[(&str, u32, u64)], promised: u64) -> String {
    let mut fleet = fleet(&[("n0", CPUS, 64), ("n1", CPUS, 64)]);
    let load = |m: Measured| NodeLoad {
        at: jiff::Timestamp::UNIX_EPOCH,
        cpu: lasting(m.cpu),
        memory_used: ByteCount::from_gib(m.memory_gib),
        cpu_stall: Averages::default(),
        memory_stall: m.memory_stall,
        io_stall: Averages::default(),
        vms: BTreeMap::new(),
    };
    let mut loads: BTreeMap<Name, NodeLoad> = ["n0", "n1"].map(Name::known).into_iter().zip(measured.map(load)).collect();
    let hot = loads.get_mut(&Name::known("n0")).expect("measured");
    for (n, (name, cpu, gib)) in (1..).zip(vms) {
        let vm = guest(n, name, json!({"memory": format!("{gib}G")}));
        hot.vms.insert(vm.id, VmLoad { cpu: *cpu, memory: ByteCount::from_gib(*gib) });
        put(&mut fleet, vm, "n0");
    }
    if promised > 0 {
        put(&mut fleet, guest(99, "idle", json!({"memory": format!("{promised}G")})), "n1");
    }
    let words = |m: &Move| {
        let vm = &fleet.guest(m.vm).expect("known").name;
        format!("{vm}: {} {} -> {}, {} {} -> {}", m.from, m.from_before, m.from_after, m.to, m.to_before, m.to_after)
    };
    let moves = propose(&fleet, &loads, &Known::default(), &Policy::default());
    if moves.is_empty() { "none".into() } else { moves.iter().map(words).collect::<Vec<_>>().join("; ") }
}

fn lasting(permille: u32) -> Averages {
    Averages { minute: permille, five_minutes: permille }
}

#[test]
fn a_node_that_is_short_of_memory_is_hot() {
    let cool = Measured { memory_gib: 8, ..Measured::default() };
    let full = Measured { memory_gib: 48, ..Measured::default() };
    let vms = [("busy", 4000, 1), ("large", 0, 12), ("small", 0, 4)];
    expect!["large: n0 750 -> 563, n1 125 -> 312"].assert_eq(&moves([full, cool], &vms, 0));
    expect!["none"].assert_eq(&moves([Measured { memory_gib: 30, ..full }, cool], &vms, 0));
    // Little is in use, and programs wait for it all the same.
    let waits = |memory_stall| Measured { memory_gib: 16, memory_stall, ..Measured::default() };
    expect!["large: n0 750 -> 563, n1 125 -> 312"].assert_eq(&moves([waits(lasting(500)), cool], &vms, 0));
    expect!["none"].assert_eq(&moves([waits(Averages { minute: 500, five_minutes: 100 }), cool], &vms, 0));
    expect!["none"].assert_eq(&moves([waits(Averages { minute: 100, five_minutes: 500 }), cool], &vms, 0));
}

/// Cool or not: what VMs were promised there is theirs, and what goes there must not make it hot.
#[test]
fn a_node_without_room_in_its_memory_gets_nothing() {
    let hot = Measured { cpu: 1000, ..Measured::default() };
    let used = |memory_gib| Measured { memory_gib, ..Measured::default() };
    let large = [("large", 8000, 26)];
    expect!["large: n0 1000 -> 500, n1 0 -> 500"].assert_eq(&moves([hot, used(0)], &large, 38));
    expect!["none"].assert_eq(&moves([hot, used(0)], &large, 39));
    expect!["none"].assert_eq(&moves([hot, used(32)], &large, 0));
    let waits = Measured { memory_stall: Averages { minute: 500, five_minutes: 0 }, ..used(0) };
    expect!["none"].assert_eq(&moves([hot, waits], &large, 0));
    expect!["small: n0 1000 -> 500, n1 500 -> 562"].assert_eq(&moves([hot, used(32)], &[("large", 8000, 26), ("small", 8000, 4)], 0));
}
