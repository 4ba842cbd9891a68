//! What a seed will do to its cluster.

use vmkeep_core::ha::record::{DisarmMode, Farewell, MoveHow, NodeNo, RunWish, ShutdownPolicy, VmNo, WatchdogKind};
use vmkeep_core::ha::timers::{Profile, Timers};

use super::promise::{self, Promise};
use crate::dice::Dice;
use crate::scenario::command::{Part, VmCommand};

/// What kind of runs is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Every fault; honest fence agents.
    #[default]
    Any,
    /// One node loses its power and nothing else happens (L2).
    SingleLoss { nodes: usize, profile: Profile, stonith: bool },
    /// Every fault, and one of those that come close to a guard's edge: for guards that are taken away.
    Sharp,
    /// One thing happens that is too short to fence anybody for (L4).
    Blip { nodes: usize, profile: Profile },
    /// The store answers nobody, for so long that VMs are killed and no host is reset: nobody may be fenced for it (L4).
    Outage { nodes: usize, profile: Profile },
    /// Fence agents lie: I1 may break then, and the story names the lie.
    Lies,
    /// Nothing happens: for measuring the simulator.
    Calm { nodes: usize },
}

#[derive(Clone, Debug)]
pub enum Fault {
    PowerOff(NodeNo),
    NetworkOff(NodeNo),
    StorageOff(NodeNo),
    StoreUnreadable(NodeNo),
    Lags(NodeNo),
    /// Lost messages, 1/1000, and slow ones, ms.
    Weak(NodeNo, u64, u64),
    EtcdOut,
    EtcdElects,
    LeaseLies,
    Pause(NodeNo, Part),
    PauseCandidate(NodeNo),
    /// The next pet is held up between decision and write, ms.
    Gap(NodeNo, u64),
    LibvirtHangs(NodeNo),
    AgentCrashes(NodeNo),
    FencedCrashes(NodeNo),
    CandidateCrashes(NodeNo),
    QemuCrashes(VmNo),
    AllStick(NodeNo),
    /// Parts per million.
    Slew(NodeNo, i64),
    StonithAway(NodeNo),
    Leave(NodeNo, Farewell),
    Maintenance(NodeNo),
    Disarm(DisarmMode),
    Vm(VmNo, VmCommand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StonithPlan {
    None,
    Works,
    Lies,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub profile: Profile,
    pub nodes: usize,
    pub vms: usize,
    pub shutdown: ShutdownPolicy,
    pub stonith: Vec<StonithPlan>,
    /// None: there is none that could be armed.
    pub watchdogs: Vec<Option<WatchdogKind>>,
    /// VMs 0 and 1 must not be together.
    pub apart: bool,
    /// Start, length (both ms), what.
    pub faults: Vec<(u64, u64, Fault)>,
    pub watch_loss_permille: u64,
    pub twice_permille: u64,
    /// Every node is powered and reachable again from here on, ms.
    pub healed_at: u64,
    pub end: u64,
    /// Goes on although nothing is left to happen.
    pub to_the_end: bool,
    pub promise: Promise,
}

/// Everything has started by then, ms.
const WARM_MS: u64 = 30_000;

/// Faults begin until then, ms.
const STORM_MS: u64 = 200_000;

/// After the last fault everything must run again within this: a boot, T_safe, tiers, migrations, ms.
const QUIET_MS: u64 = 240_000;

impl Plan {
    pub fn of(seed: u64, class: Class) -> Self {
        let mut dice = Dice::new(seed ^ 0x0bad_cafe);
        match class {
            Class::SingleLoss { nodes, profile, stonith } => Self::single_loss(seed, &mut dice, nodes, profile, stonith),
            Class::Blip { nodes, profile } => Self::blip(seed, &mut dice, nodes, profile),
            Class::Outage { nodes, profile } => Self::outage(seed, &mut dice, nodes, profile),
            Class::Calm { nodes } => {
                Self { end: 3_600_000, promise: Promise::RidesOut, ..Self::bare(seed, nodes, 2 * nodes, Profile::Standard) }
            }
            Class::Any | Class::Sharp | Class::Lies => Self::storm(seed, &mut dice, class),
        }
    }

    fn bare(seed: u64, nodes: usize, vms: usize, profile: Profile) -> Self {
        Self {
            seed,
            profile,
            nodes,
            vms,
            shutdown: ShutdownPolicy::Conditional,
            stonith: vec![StonithPlan::None; nodes],
            watchdogs: vec![Some(WatchdogKind::Hardware); nodes],
            apart: false,
            faults: Vec::new(),
            watch_loss_permille: 0,
            twice_permille: 0,
            healed_at: 0,
            end: 0,
            // What comes up only after a long rest is looked for in every eighth run.
            to_the_end: seed.is_multiple_of(8),
            promise: Promise::Runs,
        }
    }

    fn single_loss(seed: u64, dice: &mut Dice, nodes: usize, profile: Profile, stonith: bool) -> Self {
        let mut plan = Self::bare(seed, nodes, 4 * nodes, profile);
        if stonith {
            plan.stonith = vec![StonithPlan::Works; nodes];
        }
        // Boots and first placements take longer in a large cluster.
        let warm = WARM_MS + 1_000 * nodes as u64;
        let lost = NodeNo(u16::try_from(dice.index(nodes)).expect("few nodes"));
        plan.faults.push((warm + dice.between(0, 10_000), 300_000, Fault::PowerOff(lost)));
        (plan.healed_at, plan.end) = (u64::MAX, warm + 140_000);
        plan.promise = Promise::Recovers { within_ms: promise::recovery_ms_max(profile, stonith) };
        plan
    }

    fn blip(seed: u64, dice: &mut Dice, nodes: usize, profile: Profile) -> Self {
        let mut plan = Self::bare(seed, nodes, 2 * nodes, profile);
        let (n, ms) = (plan.node(dice), dice.between(200, Timers::of(profile).rides_out_ms() - 100));
        let fault = match dice.index(9) {
            0 => Fault::NetworkOff(n),
            1 => Fault::EtcdOut,
            2 => Fault::EtcdElects,
            3 => Fault::Pause(n, Part::Agent),
            4 => Fault::PauseCandidate(n),
            5 => Fault::CandidateCrashes(n),
            6 => Fault::LibvirtHangs(n),
            7 => Fault::StoreUnreadable(n),
            _ => Fault::Lags(n),
        };
        plan.faults.push((WARM_MS + dice.between(0, 10_000), ms, fault));
        (plan.healed_at, plan.end) = (u64::MAX, WARM_MS + 90_000);
        plan.promise = Promise::RidesOut;
        plan
    }

    fn outage(seed: u64, dice: &mut Dice, nodes: usize, profile: Profile) -> Self {
        let mut plan = Self::bare(seed, nodes, 2 * nodes, profile);
        let Timers { pet_ms, renew_ms, tick_ms, .. } = Timers::of(profile);
        // Before it a renewal that it just hinders, after it an attempt that hangs: the watchdog is still petted then.
        let ms = dice.between(Timers::of(profile).rides_out_ms(), pet_ms - 2 * renew_ms - 2 * tick_ms);
        plan.faults.push((WARM_MS + dice.between(0, 10_000), ms, Fault::EtcdOut));
        (plan.healed_at, plan.end) = (u64::MAX, WARM_MS + 120_000);
        plan.promise = Promise::RidesOut;
        plan
    }

    fn storm(seed: u64, dice: &mut Dice, class: Class) -> Self {
        let nodes = [2, 3, 3, 3, 4, 5, 6][dice.index(7)];
        let vms = usize::try_from(dice.between(2, 7)).expect("few");
        let profile = if dice.permille(250) { Profile::Fast } else { Profile::Standard };
        let mut plan = Self::bare(seed, nodes, vms, profile);
        let policies = [ShutdownPolicy::Conditional, ShutdownPolicy::Migrate, ShutdownPolicy::Freeze, ShutdownPolicy::Failover];
        plan.shutdown = policies[dice.index(4)];
        for n in 0..nodes {
            if dice.permille(300) {
                plan.stonith[n] = if class == Class::Lies { StonithPlan::Lies } else { StonithPlan::Works };
            }
            if dice.permille(150) {
                plan.watchdogs[n] = Some(WatchdogKind::Software);
            }
        }
        plan.apart = nodes > 2 && dice.permille(300);
        plan.watch_loss_permille = [0, 0, 20, 200][dice.index(4)];
        plan.twice_permille = [0, 0, 50][dice.index(3)];
        let count = dice.between(1, 9);
        for _ in 0..count {
            plan.add_fault(dice);
        }
        if class == Class::Sharp {
            plan.sharpen(dice);
        }
        plan.faults.sort_by_key(|(at, ..)| *at);
        plan.healed_at = plan.faults.iter().map(|(at, ms, _)| at + ms).max().unwrap_or(WARM_MS) + 1_000;
        plan.end = plan.healed_at + QUIET_MS;
        plan
    }

    fn node(&self, dice: &mut Dice) -> NodeNo {
        NodeNo(u16::try_from(dice.index(self.nodes)).expect("few nodes"))
    }

    fn vm(&self, dice: &mut Dice) -> VmNo {
        VmNo(u32::try_from(dice.index(self.vms)).expect("few VMs"))
    }

    fn add_fault(&mut self, dice: &mut Dice) {
        let at = WARM_MS + dice.between(0, STORM_MS);
        let ms = [dice.between(200, 5_000), dice.between(5_000, 25_000), dice.between(20_000, 90_000)][dice.index(3)];
        let (n, vm) = (self.node(dice), self.vm(dice));
        let fault = match dice.index(34) {
            0 | 1 => Fault::PowerOff(n),
            2 | 3 => Fault::NetworkOff(n),
            4 => Fault::StorageOff(n),
            5 => Fault::StoreUnreadable(n),
            6 | 7 => Fault::Lags(n),
            8 => Fault::Weak(n, dice.between(0, 700), dice.between(1, 4_000)),
            9 => Fault::EtcdOut,
            10 => Fault::EtcdElects,
            11 => Fault::LeaseLies,
            12 => Fault::Pause(n, Part::Agent),
            13 => Fault::Pause(n, Part::Fenced),
            14 => Fault::Pause(n, Part::Host),
            15 => Fault::PauseCandidate(n),
            16 => Fault::LibvirtHangs(n),
            17 => Fault::AgentCrashes(n),
            18 => Fault::FencedCrashes(n),
            19 => Fault::CandidateCrashes(n),
            20 => Fault::QemuCrashes(vm),
            21 => Fault::Slew(n, i64::try_from(dice.between(0, 200_000)).expect("small") - 100_000),
            22 => Fault::StonithAway(n),
            23 => Fault::Leave(n, if dice.permille(500) { Farewell::Reboot } else { Farewell::Shutdown }),
            24 => Fault::Maintenance(n),
            25 => Fault::Disarm(if dice.permille(700) { DisarmMode::Freeze } else { DisarmMode::Ignore }),
            26 => Fault::Vm(vm, VmCommand::Move(MoveHow::Live, n)),
            27 => Fault::Vm(vm, VmCommand::Move(MoveHow::Cold, n)),
            28 => Fault::Vm(vm, VmCommand::FailStart(u32::try_from(dice.between(1, 4)).expect("few"), None)),
            29 => Fault::Vm(vm, VmCommand::Run(RunWish::Stopped)),
            30 => return self.edge(dice, at, n),
            31 => return self.busy(dice, at, n, vm),
            32 => return self.cut_unarmed(dice, at, n),
            _ => return self.cut_while_moving(dice, at, n, vm),
        };
        self.faults.push((at, ms, fault));
    }

    fn sharpen(&mut self, dice: &mut Dice) {
        // Nothing has moved yet: the VM is where it began.
        let vm = self.vm(dice);
        let n = NodeNo(u16::try_from(usize::try_from(vm.0).expect("few VMs") % self.nodes).expect("few nodes"));
        let at = WARM_MS - dice.between(0, 15_000);
        match dice.index(6) {
            0 => self.edge(dice, at, n),
            1 => self.busy(dice, at, n, vm),
            2 => self.cut_unarmed(dice, at, n),
            3 => self.cut_while_moving(dice, at, n, vm),
            4 => self.stands_still(dice, at, n),
            _ => self.empties(dice, at, n),
        }
    }

    /// A whole host stands still for longer than T_safe, with a watchdog that stands still with it.
    fn stands_still(&mut self, dice: &mut Dice, at: u64, n: NodeNo) {
        self.watchdogs[usize::from(n.0)] = Some(WatchdogKind::Software);
        self.stonith[usize::from(n.0)] = StonithPlan::None;
        self.faults.push((at, dice.between(50_000, 90_000), Fault::Pause(n, Part::Host)));
    }

    /// Its VMs leave for a while and come back just when it disarms, and it hears and says everything late.
    fn empties(&mut self, dice: &mut Dice, at: u64, n: NodeNo) {
        let away = dice.between(12_000, 24_000);
        self.faults.push((at, away, Fault::Maintenance(n)));
        self.faults.push((at + away - 4_000, 12_000, Fault::Weak(n, 0, dice.between(500, 4_000))));
        self.watch_loss_permille = 200;
    }

    /// The longest that a node may live: its QEMUs survive the kill, and fenced stands still between its look and its pet.
    fn edge(&mut self, dice: &mut Dice, at: u64, n: NodeNo) {
        let timers = Timers::of(self.profile);
        self.faults.push((at, 70_000, Fault::NetworkOff(n)));
        self.faults.push((at, 70_000, Fault::AllStick(n)));
        let decided = at + timers.pet_ms - dice.between(0, timers.renew_ms + 1_000);
        self.faults.push((decided, 1, Fault::Gap(n, timers.watchdog_ms - dice.between(50, 1_500))));
        if dice.permille(300) {
            self.faults.push((at.saturating_sub(5_000), 80_000, Fault::Slew(n, -100_000)));
        }
        if dice.permille(400) {
            for other in 0..self.nodes {
                let other = NodeNo(u16::try_from(other).expect("few nodes"));
                self.faults.push((at + dice.between(0, 3_000), 1_000, Fault::CandidateCrashes(other)));
            }
        }
    }

    /// A start is under way while its agent dies, stands still, or is told to let go.
    fn busy(&mut self, dice: &mut Dice, at: u64, n: NodeNo, vm: VmNo) {
        self.faults.push((at, 6_000, Fault::Vm(vm, VmCommand::Run(RunWish::Stopped))));
        let started = at + 6_000;
        let how = dice.index(3);
        // An agent that crashed cannot renew before libvirt answers it: not so long that its host is reset.
        let hangs_ms = if how == 1 { dice.between(3_000, 9_000) } else { dice.between(3_000, 25_000) };
        self.faults.push((started + dice.between(0, 1_500), hangs_ms, Fault::LibvirtHangs(n)));
        match how {
            0 => self.faults.push((started + dice.between(0, 2_500), dice.between(10_000, 14_000), Fault::Pause(n, Part::Agent))),
            1 => self.faults.push((started + dice.between(500, 2_500), 1, Fault::AgentCrashes(n))),
            _ => {}
        }
        self.faults.push((started + dice.between(1_000, 4_000), 60_000, Fault::Maintenance(n)));
    }

    /// Switched off, cut while it is off, and switched on again.
    fn cut_unarmed(&mut self, dice: &mut Dice, at: u64, n: NodeNo) {
        self.faults.push((at, 12_000, Fault::Disarm(DisarmMode::Freeze)));
        self.faults.push((at + dice.between(8_000, 11_500), 60_000, Fault::NetworkOff(n)));
    }

    fn cut_while_moving(&mut self, dice: &mut Dice, at: u64, n: NodeNo, vm: VmNo) {
        self.faults.push((at, 1, Fault::Vm(vm, VmCommand::Move(MoveHow::Live, n))));
        let other = self.node(dice);
        let cut = if dice.permille(500) { n } else { other };
        self.faults.push((at + dice.between(500, 9_000), dice.between(3_000, 60_000), Fault::NetworkOff(cut)));
    }
}
