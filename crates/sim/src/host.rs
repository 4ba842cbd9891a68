//! The model of one host: clocks, power, watchdog, processes, libvirt and its QEMUs.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_core::ha::agent::{Agent, Call, Domain};
use vmkeep_core::ha::candidate::Candidate;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::fenced::Fenced;
use vmkeep_core::ha::record::{NodeNo, VmNo, WatchdogKind};

/// Clocks that drift: the raw one a little, the other one as NTP likes.
#[derive(Clone, Debug)]
pub struct Clocks {
    since: u64,
    at: Now,
    /// Parts per million.
    raw_ppm: i64,
    slew_ppm: i64,
}

impl Clocks {
    pub fn new(raw_ppm: i64) -> Self {
        Self { since: 0, at: Now { boottime_ms: 1_000_000, raw_ms: 1_000_000 }, raw_ppm, slew_ppm: 0 }
    }

    pub fn read(&self, now: u64) -> Now {
        let dt = i64::try_from(now - self.since).expect("runs are short");
        let raw = dt + dt * self.raw_ppm / 1_000_000;
        let boot = raw + raw * self.slew_ppm / 1_000_000;
        let add = |base: u64, d: i64| base.saturating_add_signed(d);
        Now { boottime_ms: add(self.at.boottime_ms, boot), raw_ms: add(self.at.raw_ms, raw) }
    }

    /// What was read then; None: the rate has changed since.
    pub fn read_past(&self, then: u64) -> Option<Now> {
        (then >= self.since).then(|| self.read(then))
    }

    pub fn slew(&mut self, now: u64, slew_ppm: i64) {
        (self.at, self.since, self.slew_ppm) = (self.read(now), now, slew_ppm);
    }
}

/// A process, and which of its lives this is.
#[derive(Clone, Debug)]
pub struct Process<T> {
    pub is: Option<T>,
    pub life: u32,
    pub paused_until: u64,
}

impl<T> Default for Process<T> {
    fn default() -> Self {
        Self { is: None, life: 0, paused_until: 0 }
    }
}

impl<T> Process<T> {
    pub fn start(&mut self, process: T) {
        (self.is, self.paused_until) = (Some(process), 0);
        self.life += 1;
    }

    pub fn kill(&mut self) {
        self.is = None;
        self.life += 1;
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    /// None: there is none that could be opened.
    pub kind: Option<WatchdogKind>,
    /// True time of the last pet; None: closed.
    pub petted: Option<u64>,
}

/// A guest's process.
#[derive(Clone, Copy, Debug)]
pub struct Qemu {
    pub domain: Domain,
    /// In an uninterruptible sleep: SIGKILL waits.
    pub stuck: bool,
}

/// A call that libvirt works on.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub vm: VmNo,
    pub call: Call,
    /// The agent's number for it, and the life of the agent that asked.
    pub id: u64,
    pub agent_life: u32,
}

#[derive(Clone, Debug)]
pub struct Host {
    pub node: NodeNo,
    pub clocks: Clocks,
    pub powered: bool,
    /// What the script wants of its power.
    pub power_wanted: bool,
    pub network: bool,
    pub storage: bool,
    /// It reads nothing from the store, while transactions pass.
    pub store_readable: bool,
    /// It sees what a lagging server shows.
    pub lags: bool,
    pub boot: u64,
    pub is_control: bool,
    pub candidate_wanted: bool,
    pub paused_until: u64,
    pub watchdog: Watchdog,
    pub watchdog_checked: bool,
    pub agent: Process<Agent>,
    pub fenced: Process<Fenced>,
    /// The next pet is held up between the decision and the write for so long, ms.
    pub gap_ms: u64,
    pub candidate: Process<Candidate>,
    pub qemus: BTreeMap<VmNo, Qemu>,
    pub jobs: BTreeMap<u64, Job>,
    pub libvirt_hung_until: u64,
    /// On disk.
    pub intents: BTreeSet<VmNo>,
    /// Messages that are lost to and from this host, 1/1000, and how much longer they take, ms.
    pub loss_permille: u64,
    pub delay_ms: u64,
    pub stonith: Stonith,
    /// The boot whose writes the storage refuses.
    pub refused: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stonith {
    None,
    Works,
    Unreachable,
    /// It says "off" and does nothing.
    Lies,
}

impl Host {
    pub fn new(node: NodeNo, is_control: bool, raw_ppm: i64, watchdog: Option<WatchdogKind>) -> Self {
        Self {
            node,
            clocks: Clocks::new(raw_ppm),
            powered: false,
            power_wanted: true,
            network: true,
            storage: true,
            store_readable: true,
            lags: false,
            boot: 0,
            is_control,
            candidate_wanted: true,
            paused_until: 0,
            watchdog: Watchdog { kind: watchdog, petted: None },
            watchdog_checked: false,
            agent: Process::default(),
            fenced: Process::default(),
            gap_ms: 0,
            candidate: Process::default(),
            qemus: BTreeMap::new(),
            jobs: BTreeMap::new(),
            libvirt_hung_until: 0,
            intents: BTreeSet::new(),
            loss_permille: 0,
            delay_ms: 0,
            stonith: Stonith::None,
            refused: None,
        }
    }

    /// Does the storage take what its guests write?
    pub fn writes_count(&self) -> bool {
        self.refused != Some(self.boot)
    }

    pub fn runs(&self, vm: VmNo) -> bool {
        self.qemus.get(&vm).is_some_and(|qemu| matches!(qemu.domain, Domain::Running(_)))
    }

    /// Can its network be used now?
    pub fn reachable(&self, now: u64) -> bool {
        self.powered && self.network && self.paused_until <= now
    }
}
