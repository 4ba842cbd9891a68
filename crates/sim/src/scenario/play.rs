//! Plays a scenario: hosts are set up, commands are carried out at their time, and the end is looked at.

use std::sync::Arc;

use vmkeep_core::ha::agent::{self, Gone};
use vmkeep_core::ha::candidate::Roster;
use vmkeep_core::ha::record::{
    EpochRecord, Farewell, Fence, Key, MoveWish, NodeNo, Op, Owner, Parked, ParkedWhy, Proof, RunWish, Value, VmNo, Wish,
};
use vmkeep_types::ids::Revision;

use super::command::{Command, EtcdDoes, Part, Switch, VmCommand};
use super::file::{NodeStart, Scenario};
use super::report::Report;
use crate::dice::Dice;
use crate::host::{Host, Stonith};
use crate::log::Telling;
use crate::world::{Client, Event, Setup, World};

/// Control nodes with etcd and a candidate: the first three, or five of a larger cluster.
pub fn control_nodes(nodes: usize) -> usize {
    if nodes >= 5 { 5 } else { nodes.min(3) }
}

/// A command of people that the store cannot take now is tried again after, ms.
const AGAIN_MS: u64 = 1_000;

pub fn play(scenario: &Scenario, seed: u64) -> Report {
    let mut world = World::new(setup(scenario, seed));
    for (n, vm) in (0u32..).zip(&scenario.vms) {
        if let Some(node) = vm.node {
            world.adds(VmNo(n), vm.wish, node);
        }
    }
    boot_all(&mut world);
    for (n, (at, ..)) in scenario.steps.iter().enumerate() {
        world.at(*at, Event::Next(n));
    }
    let mut next = |world: &mut World, event: Event| {
        let Event::Next(n) = event else { return };
        let (at, words, command) = &scenario.steps[n];
        if world.now == *at {
            world.log.tell(world.now, || format!("> {words}"));
        }
        if world.does(command, scenario) == Did::Later {
            world.after(AGAIN_MS, Event::Next(n));
        }
    };
    world.run(scenario.until, &mut next);
    Report::of(world)
}

fn setup(scenario: &Scenario, seed: u64) -> Setup {
    let mut dice = Dice::new(seed ^ 0x5eed);
    let control = control_nodes(scenario.nodes.len());
    let host = |n: usize, start: &NodeStart, dice: &mut Dice| {
        let drift = i64::try_from(dice.between(0, 8_000)).expect("small") - 4_000;
        let node = NodeNo(u16::try_from(n).expect("few nodes"));
        let mut host = Host::new(node, n < control, drift, start.watchdog);
        host.power_wanted = start.power == Switch::On;
        host.network = start.network == Switch::On;
        host.stonith = if start.stonith == Switch::On { Stonith::Works } else { Stonith::None };
        host
    };
    let hosts = scenario.nodes.iter().enumerate().map(|(n, start)| host(n, start, &mut dice)).collect();
    let nodes = scenario.nodes.iter().map(|node| node.name.clone()).collect();
    let vms = (0u32..).zip(&scenario.vms).map(|(n, vm)| (VmNo(n), vm.name.clone())).collect();
    Setup {
        seed,
        profile: scenario.profile,
        weak: None,
        telling: Telling::Story,
        roster: Arc::new(Roster { nodes, vms }),
        settings: scenario.settings.clone(),
        hosts,
    }
}

/// All hosts that have power are up when the story begins.
pub fn boot_all(world: &mut World) {
    for i in 0..world.hosts.len() {
        let host = &mut world.hosts[i];
        if host.power_wanted {
            (host.powered, host.boot) = (true, 1);
            let node = host.node;
            let ms = world.dice.between(1, 1_000);
            world.at(ms, Event::Booted(node));
        }
    }
}

/// Has a command been carried out?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    Now,
    /// The store does not take it.
    Later,
}

impl World {
    /// A person's word, through the API: it needs the store.
    fn writes(&mut self, ops: &[Op]) -> Did {
        if !self.quorum() || self.store.stalled_until > self.now {
            return Did::Later;
        }
        let changes = self.store.write(ops);
        self.committed(Client::Operator, &changes);
        Did::Now
    }

    pub fn adds(&mut self, vm: VmNo, wish: Wish, node: NodeNo) -> Did {
        if self.store.get(Key::Wish(vm)).is_some() {
            return Did::Now;
        }
        let parked = Some(Parked { node, why: ParkedWhy::New });
        let before = self.store.get(Key::Owner(vm)).is_some();
        assert!(!before, "a VM that was deleted has no owner");
        // A name that is used again goes on counting.
        let generation = self.checks.last_generation(vm);
        let owner = Owner { seat: None, generation, to: None, parked };
        let ops = [Op::Put(Key::Wish(vm), Value::Wish(wish)), Op::Put(Key::Owner(vm), Value::Owner(owner))];
        if self.now == 0 {
            self.store.write(&ops);
            return Did::Now;
        }
        self.writes(&ops)
    }

    fn marks(&mut self, key: Key, value: Option<Value>) -> Did {
        let op = value.map_or(Op::Delete(key), |value| Op::Put(key, value));
        self.writes(&[op])
    }

    pub fn does(&mut self, command: &Command, scenario: &Scenario) -> Did {
        match command {
            Command::Vm(vm, VmCommand::Add(node)) => return self.adds(*vm, scenario.vms[vm.0 as usize].wish, *node),
            Command::Vm(vm, does) => return self.vm_does(*vm, *does),
            Command::Maintenance(n, switch) => {
                return self.marks(Key::Policy(*n), (*switch == Switch::On).then_some(Value::Mark));
            }
            Command::Disarm(mode) => return self.marks(Key::Disarm, Some(Value::Disarm(*mode))),
            Command::Arm => return self.marks(Key::Disarm, None),
            Command::ConfirmDead(n) => return self.confirms(*n),
            Command::Power(n, Switch::On) => {
                self.host(*n).power_wanted = true;
                self.power_on(*n);
            }
            Command::Power(n, Switch::Off) => {
                self.host(*n).power_wanted = false;
                self.power_off(*n);
            }
            Command::Network(n, switch) => self.host(*n).network = *switch == Switch::On,
            Command::Storage(n, switch) => {
                self.host(*n).storage = *switch == Switch::On;
                self.tell_storage(*n);
            }
            Command::Store(n, switch) => self.host(*n).store_readable = *switch == Switch::On,
            Command::Pause(n, part, ms) => self.pauses(*n, *part, *ms),
            Command::Leave(n, farewell) => self.told_to_leave(*n, *farewell),
            Command::Upgrade(n) => self.crash_agent(*n, 3_000),
            Command::Candidate(n, switch) => self.candidate_is(*n, *switch),
            Command::Etcd(EtcdDoes::Elect) => self.etcd_elects(),
            Command::Etcd(EtcdDoes::Switch(switch)) => self.store.out = *switch == Switch::Off,
            // Nothing that decides reads the wall clock, so there is nothing to change.
            Command::ClockStep(..) => {}
            Command::LibvirtHangs(n, ms) => self.host(*n).libvirt_hung_until = self.now + ms,
            Command::QemuSticks(vm) => self.qemu(*vm, |world, n, vm| {
                world.host(n).qemus.entry(vm).and_modify(|qemu| qemu.stuck = true);
            }),
            Command::QemuCrashes(vm) => self.qemu(*vm, |world, n, vm| {
                world.ended(n, vm, Gone::Ended);
            }),
        }
        Did::Now
    }

    fn qemu(&mut self, vm: VmNo, does: impl FnOnce(&mut Self, NodeNo, VmNo)) {
        if let Some(n) = self.runs_at(vm) {
            does(self, n, vm);
        }
    }

    pub fn pauses(&mut self, n: NodeNo, part: Part, ms: u64) {
        let until = self.now + ms;
        match part {
            Part::Agent => self.host(n).agent.paused_until = until,
            Part::Fenced => self.host(n).fenced.paused_until = until,
            Part::Host => self.pause_host(n, ms),
        }
    }

    pub fn candidate_is(&mut self, n: NodeNo, switch: Switch) {
        self.host(n).candidate_wanted = switch == Switch::On;
        match switch {
            Switch::On => self.start_candidate(n),
            Switch::Off => self.host(n).candidate.kill(),
        }
    }

    pub fn told_to_leave(&mut self, n: NodeNo, farewell: Farewell) {
        let life = self.host(n).agent.life;
        if self.host(n).powered {
            self.host(n).power_wanted = farewell == Farewell::Reboot;
            self.after(1, Event::ToAgent(n, life, agent::Event::HostLeaves(farewell)));
        }
    }

    /// The fourth proof: a person.
    fn confirms(&mut self, n: NodeNo) -> Did {
        let Some(Value::Epoch(EpochRecord { epoch, .. })) = self.store.get(Key::Epoch(n)).cloned() else { return Did::Now };
        let mut ops = Vec::new();
        if self.store.get(Key::Fence(n, epoch)).is_none() {
            ops.push(Op::Put(Key::Fence(n, epoch), Value::Fence(Fence { beat: Revision(0), by: n })));
        }
        ops.push(Op::Put(Key::Confirmed(n, epoch), Value::Confirmed(Proof::Operator)));
        self.writes(&ops)
    }

    pub fn vm_does(&mut self, vm: VmNo, does: VmCommand) -> Did {
        let Some(Value::Wish(wish)) = self.store.get(Key::Wish(vm)).cloned() else { return Did::Now };
        match does {
            VmCommand::Run(run) => {
                let error = matches!(self.store.get(Key::Memory(vm)), Some(Value::Memory(memory)) if memory.error.is_some());
                if error && run == RunWish::Started && wish.run != RunWish::Disabled {
                    self.log
                        .tell(self.now, || format!("{} is in error: it must be `disabled` before it is started again", self.roster.vm(vm)));
                }
                self.marks(Key::Wish(vm), Some(Value::Wish(Wish { run, ..wish })))
            }
            VmCommand::Move(how, to) => self.marks(Key::Move(vm), Some(Value::Move(MoveWish { to, how }))),
            VmCommand::Moved(to) => {
                self.moved_by_hand(vm, to);
                Did::Now
            }
            VmCommand::FailStart(count, on) => {
                let mishaps = self.mishaps.entry(vm).or_default();
                (mishaps.starts, mishaps.starts_on) = (count, on);
                Did::Now
            }
            VmCommand::FailStop(count) => {
                self.mishaps.entry(vm).or_default().stops = count;
                Did::Now
            }
            VmCommand::FailMigrate(count) => {
                self.mishaps.entry(vm).or_default().moves = count;
                Did::Now
            }
            VmCommand::Add(_) => Did::Now,
        }
    }
}
