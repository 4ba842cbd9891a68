//! Plays a plan: faults begin and end at their time; at the end everything that can run must run.

use std::sync::Arc;

use vmkeep_core::ha::agent::Gone;
use vmkeep_core::ha::candidate::Roster;
use vmkeep_core::ha::record::{EpochRecord, Key, NodeNo, Op, Proof, Rule, RunWish, Settings, StorageCan, Strictness, Value, VmNo, Wish};
use vmkeep_core::ha::weakness::Weakness;
use vmkeep_types::name::Name;

use super::Outcome;
use super::plan::{Fault, Plan, StonithPlan};
use crate::dice::Dice;
use crate::host::{Host, Stonith};
use crate::log::Telling;
use crate::scenario::command::{Part, Switch, VmCommand};
use crate::scenario::play::{Did, boot_all, control_nodes};
use crate::world::{Client, Event, Setup, World};

/// How often a person looks whether somebody waits for their word, ms.
const PERSON_MS: u64 = 20_000;

/// So many of 1000 seeds have their disks where nodes can be refused.
const STORAGE_FENCE_PERMILLE: u64 = 125;

/// A number of [`Event::Next`] that is no fault.
const HEAL_ALL: usize = usize::MAX;
const PERSON: usize = usize::MAX - 1;
const REST: usize = usize::MAX - 2;

/// So long after the last fault a run ends when nothing is left to happen, and this often it is looked for, ms.
const REST_MS: u64 = 45_000;
const REST_AGAIN_MS: u64 = 5_000;

/// Runs a plan; the second part is the story.
pub fn play(plan: &Plan, weak: Option<Weakness>, telling: Telling) -> (Outcome, Vec<(u64, String)>) {
    let mut world = World::new(setup(plan, weak, telling));
    (world.watch_loss_permille, world.twice_permille) = (plan.watch_loss_permille, plan.twice_permille);
    for n in 0..plan.vms {
        let vm = VmNo(u32::try_from(n).expect("few VMs"));
        world.adds(vm, wish(n), NodeNo(u16::try_from(n % plan.nodes).expect("few nodes")));
    }
    boot_all(&mut world);
    for (n, (at, ms, _)) in plan.faults.iter().enumerate() {
        world.at(*at, Event::Next(n));
        world.at(at + ms, Event::Heal(n));
    }
    if plan.healed_at < plan.end {
        world.at(plan.healed_at, Event::Next(HEAL_ALL));
        world.at(plan.healed_at + PERSON_MS, Event::Next(PERSON));
        if !plan.to_the_end {
            world.at(plan.healed_at + REST_MS, Event::Next(REST));
        }
    }
    let mut next = |world: &mut World, event: Event| match event {
        Event::Next(HEAL_ALL) => world.heal_all(plan),
        Event::Next(PERSON) => {
            world.person_confirms();
            world.after(PERSON_MS, Event::Next(PERSON));
        }
        Event::Next(REST) if world.is_at_rest() => world.over = true,
        Event::Next(REST) => world.after(REST_AGAIN_MS, Event::Next(REST)),
        Event::Next(n) => {
            let (at, ms, fault) = &plan.faults[n];
            world.log.tell(world.now, || format!("> {fault:?} for {:.1} s", *ms as f64 / 1000.0));
            // One that could not begin before its end does not begin.
            if world.now < at + ms && world.begins(fault, *ms) == Did::Later {
                world.after(1_000, Event::Next(n));
            }
        }
        Event::Heal(n) if world.ends(&plan.faults[n].2, plan) == Did::Later => world.after(1_000, Event::Heal(n)),
        _ => {}
    };
    world.run(plan.end, &mut next);
    if !world.log.is_over() {
        world.check_promise(plan);
    }
    let took_ms = || world.checks.recoveries.iter().map(|r| r.running_at.0 - r.silent_at.0);
    let (slowest_ms, first_ms) = (took_ms().max().unwrap_or(0), took_ms().min().unwrap_or(0));
    let outcome = Outcome {
        seed: plan.seed,
        violations: world.log.violations,
        events: world.events,
        simulated_ms: world.now,
        nodes: plan.nodes,
        resets: world.checks.resets,
        slowest_ms,
        first_ms,
        recoveries: world.checks.recoveries.len(),
    };
    (outcome, world.log.lines)
}

fn wish(n: usize) -> Wish {
    let priority = u8::try_from(n % 5).expect("below 5") + 1;
    Wish { run: RunWish::Started, priority, max_restart: 3, max_relocate: 3, failback: true, cpus: 1, memory_mib: 1024 }
}

fn setup(plan: &Plan, weak: Option<Weakness>, telling: Telling) -> Setup {
    let mut dice = Dice::new(plan.seed ^ 0x5eed);
    let name = |kind: &str, n: usize| format!("{kind}{}", n + 1).parse::<Name>().expect("a name");
    let control = control_nodes(plan.nodes);
    let numbers = 0..plan.nodes;
    let hosts = numbers.clone().map(|n| {
        let drift = i64::try_from(dice.between(0, 9_000)).expect("small") - 4_500;
        let node = NodeNo(u16::try_from(n).expect("few nodes"));
        let mut host = Host::new(node, n < control, drift, plan.watchdogs[n]);
        host.stonith = stonith(plan, n);
        host
    });
    let hosts: Vec<Host> = hosts.collect();
    let can_cut = numbers.clone().filter(|n| plan.stonith[*n] != StonithPlan::None).map(|n| hosts[n].node).collect();
    let roster = Roster {
        nodes: numbers.map(|n| name("node", n)).collect(),
        vms: (0..plan.vms).map(|n| (VmNo(u32::try_from(n).expect("few VMs")), name("vm", n))).collect(),
    };
    let rules = if plan.apart { vec![Rule::Apart { vms: vec![VmNo(0), VmNo(1)], how: Strictness::Strict }] } else { Vec::new() };
    let settings = Settings {
        rules,
        shutdown: plan.shutdown,
        failback: true,
        sizes: vec![(16, 65_536); plan.nodes],
        stonith: can_cut,
        storage: storage(plan.seed),
    };
    Setup { seed: plan.seed, profile: plan.profile, weak, telling, roster: Arc::new(roster), settings, hosts }
}

/// By dice of its own: the faults of a seed stay what they were.
fn storage(seed: u64) -> StorageCan {
    if Dice::new(seed ^ 0x5702_a6e0).permille(STORAGE_FENCE_PERMILLE) { StorageCan::RefuseNodes } else { StorageCan::Nothing }
}

fn stonith(plan: &Plan, n: usize) -> Stonith {
    match plan.stonith[n] {
        StonithPlan::None => Stonith::None,
        StonithPlan::Works => Stonith::Works,
        StonithPlan::Lies => Stonith::Lies,
    }
}

impl World {
    fn begins(&mut self, fault: &Fault, ms: u64) -> Did {
        let until = self.now + ms;
        match fault {
            Fault::PowerOff(n) => {
                self.host(*n).power_wanted = false;
                self.power_off(*n);
            }
            Fault::NetworkOff(n) => self.host(*n).network = false,
            Fault::StorageOff(n) => {
                self.host(*n).storage = false;
                self.tell_storage(*n);
            }
            Fault::StoreUnreadable(n) => self.host(*n).store_readable = false,
            Fault::Lags(n) => {
                if self.store.snapshot.is_none() {
                    self.store.snapshot = Some((self.store.map.clone(), self.store.revision));
                }
                self.host(*n).lags = true;
            }
            Fault::Weak(n, loss, delay) => (self.host(*n).loss_permille, self.host(*n).delay_ms) = (*loss, *delay),
            Fault::EtcdOut => self.store.out = true,
            Fault::EtcdElects => self.etcd_elects(),
            Fault::LeaseLies => self.store.lies_about_leases = true,
            Fault::Pause(n, part) => self.pauses(*n, *part, if *part == Part::Host { ms } else { ms.min(60_000) }),
            Fault::PauseCandidate(n) => self.host(*n).candidate.paused_until = until,
            Fault::Gap(n, gap) => self.host(*n).gap_ms = *gap,
            Fault::LibvirtHangs(n) => self.host(*n).libvirt_hung_until = until,
            Fault::AgentCrashes(n) => self.crash_agent(*n, ms.clamp(1_000, 20_000)),
            Fault::FencedCrashes(n) => self.crash_fenced(*n),
            Fault::CandidateCrashes(n) => self.candidate_is(*n, Switch::Off),
            Fault::QemuCrashes(vm) => {
                if let Some(n) = self.runs_at(*vm) {
                    self.ended(n, *vm, Gone::Ended);
                }
            }
            Fault::AllStick(n) => self.host(*n).qemus.values_mut().for_each(|qemu| qemu.stuck = true),
            Fault::Slew(n, ppm) => {
                let now = self.now;
                self.host(*n).clocks.slew(now, *ppm);
            }
            Fault::StonithAway(n) => {
                let host = self.host(*n);
                host.stonith = if host.stonith == Stonith::None { Stonith::None } else { Stonith::Unreachable };
            }
            Fault::Leave(n, farewell) => self.told_to_leave(*n, *farewell),
            Fault::Maintenance(n) => return self.operator(Op::Put(Key::Policy(*n), Value::Mark)),
            Fault::Disarm(mode) => return self.operator(Op::Put(Key::Disarm, Value::Disarm(*mode))),
            Fault::Vm(vm, does) => return self.vm_does(*vm, *does),
        }
        Did::Now
    }

    fn operator(&mut self, op: Op) -> Did {
        if !self.quorum() {
            return Did::Later;
        }
        let changes = self.store.write(&[op]);
        self.committed(Client::Operator, &changes);
        Did::Now
    }

    fn ends(&mut self, fault: &Fault, plan: &Plan) -> Did {
        match fault {
            Fault::PowerOff(n) | Fault::Leave(n, _) => {
                self.host(*n).power_wanted = true;
                self.power_on(*n);
            }
            Fault::NetworkOff(n) => self.host(*n).network = true,
            Fault::StorageOff(n) => {
                self.host(*n).storage = true;
                self.tell_storage(*n);
            }
            Fault::StoreUnreadable(n) => self.host(*n).store_readable = true,
            Fault::Lags(n) => {
                self.host(*n).lags = false;
                if self.hosts.iter().all(|host| !host.lags) {
                    self.store.snapshot = None;
                }
            }
            Fault::Weak(n, ..) => (self.host(*n).loss_permille, self.host(*n).delay_ms) = (0, 0),
            Fault::EtcdOut => self.store.out = false,
            Fault::LeaseLies => self.store.lies_about_leases = false,
            Fault::CandidateCrashes(n) => self.candidate_is(*n, Switch::On),
            Fault::AllStick(n) => self.host(*n).qemus.values_mut().for_each(|qemu| qemu.stuck = false),
            Fault::Slew(n, _) => {
                let now = self.now;
                self.host(*n).clocks.slew(now, 0);
            }
            Fault::StonithAway(n) => self.host(*n).stonith = stonith(plan, usize::from(n.0)),
            Fault::Maintenance(n) => return self.operator(Op::Delete(Key::Policy(*n))),
            Fault::Disarm(_) => return self.operator(Op::Delete(Key::Disarm)),
            Fault::Vm(vm, VmCommand::Run(_)) => return self.vm_does(*vm, VmCommand::Run(RunWish::Started)),
            Fault::Vm(vm, VmCommand::FailStart(..)) => return self.vm_does(*vm, VmCommand::FailStart(0, None)),
            Fault::EtcdElects
            | Fault::Pause(..)
            | Fault::PauseCandidate(_)
            | Fault::Gap(..)
            | Fault::LibvirtHangs(_)
            | Fault::AgentCrashes(_)
            | Fault::FencedCrashes(_)
            | Fault::QemuCrashes(_)
            | Fault::Vm(..) => {}
        }
        Did::Now
    }

    /// Every node has power again, whoever switched it off.
    fn heal_all(&mut self, plan: &Plan) {
        self.log.tell(self.now, || "> all faults are over".into());
        self.healed_at = Some(self.now);
        for i in 0..plan.nodes {
            let n = self.hosts[i].node;
            self.host(n).power_wanted = true;
            self.power_on(n);
        }
    }

    /// Where no proof can come by itself a person looks at the host, and says so only when it is true.
    fn person_confirms(&mut self) {
        for i in 0..self.hosts.len() {
            let (n, boot) = (self.hosts[i].node, self.hosts[i].boot);
            let Some(Value::Epoch(EpochRecord { epoch, boot: of, closed: false })) = self.store.get(Key::Epoch(n)).cloned() else {
                continue;
            };
            let confirmed = self.store.get(Key::Confirmed(n, epoch)).is_some();
            if of != boot && !confirmed && self.quorum() {
                self.does_confirm(n, epoch);
            }
        }
    }

    fn does_confirm(&mut self, n: NodeNo, epoch: vmkeep_types::ids::Epoch) {
        let fence = vmkeep_core::ha::record::Fence { beat: vmkeep_types::ids::Revision(0), by: n };
        let mut ops = vec![Op::Put(Key::Confirmed(n, epoch), Value::Confirmed(Proof::Operator))];
        if self.store.get(Key::Fence(n, epoch)).is_none() {
            ops.insert(0, Op::Put(Key::Fence(n, epoch), Value::Fence(fence)));
        }
        let changes = self.store.write(&ops);
        self.committed(Client::Operator, &changes);
    }
}
