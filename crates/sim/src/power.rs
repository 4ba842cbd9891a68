//! Power, watchdogs, resets, and fence agents.

use vmkeep_core::ha::agent;
use vmkeep_core::ha::record::{Farewell, Key, NodeNo, Seat, Value, VmNo, WatchdogKind};
use vmkeep_core::ha::vigil::{PowerIs, WritesAre};
use vmkeep_core::ha::weakness::Weakness;
use vmkeep_types::ids::Epoch;

use crate::host::Stonith;
use crate::world::{Event, World};

/// From reset or power to a running agent, ms.
const BOOT_MS: (u64, u64) = (20_000, 40_000);

/// A fence agent takes so long, ms.
const STONITH_MS: (u64, u64) = (2_000, 5_000);

/// One that reaches nothing gives up after this, ms.
const STONITH_GIVES_UP_MS: u64 = 10_000;

/// The storage takes so long to refuse a node; one that does not answer is given up after the other, ms. So many of 1000 fail.
const REFUSAL_MS: (u64, u64) = (50, 1_000);
const REFUSAL_GIVES_UP_MS: u64 = 5_000;
const REFUSAL_FAILS_PERMILLE: u64 = 200;

/// The power comes back so long after it was cut by a fence agent, ms.
const POWER_BACK_MS: u64 = 10_000;

/// What became of opening a watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    Yes,
    /// There is none.
    Refused,
}

impl World {
    pub fn power_on(&mut self, n: NodeNo) {
        let boot_ms = self.dice.between(BOOT_MS.0, BOOT_MS.1);
        let host = self.host(n);
        if host.powered || !host.power_wanted {
            return;
        }
        (host.powered, host.boot, host.paused_until) = (true, host.boot + 1, 0);
        host.intents.clear();
        self.after(boot_ms, Event::Booted(n));
    }

    /// Everything in it is gone at once.
    pub fn power_off(&mut self, n: NodeNo) {
        let vms: Vec<VmNo> = self.host(n).qemus.keys().copied().collect();
        vms.iter().for_each(|vm| self.ran_until_now(*vm, n));
        let host = self.host(n);
        host.powered = false;
        host.qemus.clear();
        host.jobs.clear();
        host.watchdog.petted = None;
        host.watchdog_checked = false;
        host.libvirt_hung_until = 0;
        host.agent.kill();
        host.fenced.kill();
        host.candidate.kill();
        self.checks.powered_off(n);
    }

    /// An orderly end, or one that the agent asks for.
    pub fn leaves(&mut self, n: NodeNo, farewell: Farewell) {
        let name = self.name(n).to_owned();
        self.log.tell(self.now, || format!("{name} {}", if farewell == Farewell::Reboot { "reboots" } else { "powers off" }));
        self.power_off(n);
        self.host(n).power_wanted |= farewell == Farewell::Reboot;
        // Somebody may have wanted it back before it was off.
        self.power_on(n);
    }

    pub fn watchdog_opens(&mut self, n: NodeNo) -> Opened {
        let (now, watchdog_ms) = (self.now, self.timers.watchdog_ms);
        let host = self.host(n);
        let (boot, life) = (host.boot, host.agent.life);
        let Some(kind) = host.watchdog.kind else {
            self.log.tell(self.now, || format!("{} has no watchdog to arm", self.roster.node(n)));
            self.after(5, Event::ToAgent(n, life, agent::Event::WatchdogUnusable));
            return Opened::Refused;
        };
        host.watchdog.petted = Some(now);
        if !std::mem::replace(&mut host.watchdog_checked, true) {
            self.after(watchdog_ms, Event::WatchdogCheck(n, boot));
        }
        self.log.tell(self.now, || format!("{} arms its watchdog", self.roster.node(n)));
        self.after(5, Event::ToAgent(n, life, agent::Event::WatchdogOpen(kind)));
        Opened::Yes
    }

    pub fn pet(&mut self, n: NodeNo, boot: u64) {
        let now = self.now;
        let host = self.host(n);
        if host.boot == boot && host.powered && host.watchdog.petted.is_some() && host.fenced.is.is_some() {
            host.watchdog.petted = Some(now);
        }
    }

    pub fn watchdog_check(&mut self, n: NodeNo, boot: u64) {
        let (now, watchdog_ms) = (self.now, self.timers.watchdog_ms);
        let host = self.host(n);
        if host.boot != boot || !host.powered {
            return;
        }
        let Some(petted) = host.watchdog.petted else {
            host.watchdog_checked = false;
            return;
        };
        let due = petted + watchdog_ms;
        if host.watchdog.kind == Some(WatchdogKind::Software) && host.paused_until > now {
            let until = host.paused_until + 1;
            return self.at(until, Event::WatchdogCheck(n, boot));
        }
        if due > now {
            return self.at(due, Event::WatchdogCheck(n, boot));
        }
        host.watchdog_checked = false;
        self.log.tell(now, || format!("the watchdog resets {}", self.roster.node(n)));
        self.was_reset(n);
        self.power_off(n);
        // Even out of an orderly shutdown: a reset is no switch.
        self.host(n).power_wanted = true;
        self.power_on(n);
    }

    pub fn pause_host(&mut self, n: NodeNo, ms: u64) {
        let until = self.now + ms;
        let host = self.host(n);
        host.paused_until = host.paused_until.max(until);
        // Part of a kernel that stands still: it counts no time.
        if host.watchdog.kind == Some(WatchdogKind::Software) {
            host.watchdog.petted = host.watchdog.petted.map(|at| at + ms);
        }
    }

    pub fn crash_fenced(&mut self, n: NodeNo) {
        let magic = self.weak == Some(Weakness::MagicClose);
        let host = self.host(n);
        host.fenced.kill();
        if magic {
            host.watchdog.petted = None;
        }
        // Its death is one only while it is armed; idle, it is started anew like any service.
        if host.watchdog.petted.is_none() && host.powered && !magic {
            self.start_fenced(n);
        }
    }

    pub fn crash_agent(&mut self, n: NodeNo, back_ms: u64) {
        self.host(n).agent.kill();
        self.after(back_ms, Event::AgentRestart(n));
    }

    pub fn stonith(&mut self, by: NodeNo, life: u32, node: NodeNo, epoch: Epoch) {
        let ms = self.dice.between(STONITH_MS.0, STONITH_MS.1);
        let (ms, power) = match self.host(node).stonith {
            Stonith::Works | Stonith::Lies => (ms, PowerIs::Off),
            Stonith::None | Stonith::Unreachable => (STONITH_GIVES_UP_MS, PowerIs::Unknown),
        };
        self.after(ms, Event::StonithDone { by, life, node, epoch, power });
    }

    /// The storage is asked over its own network; now and then it cannot be, or does not answer.
    pub fn refuse_writes(&mut self, by: NodeNo, life: u32, seat: Seat) {
        let fails = self.dice.permille(REFUSAL_FAILS_PERMILLE) || !self.host(by).storage;
        let (ms, are) = if fails {
            (REFUSAL_GIVES_UP_MS, WritesAre::Unknown)
        } else {
            (self.dice.between(REFUSAL_MS.0, REFUSAL_MS.1), WritesAre::Refused)
        };
        self.after(ms, Event::RefusalDone { by, life, seat, are });
    }

    pub fn refusal_done(&mut self, node: NodeNo, epoch: Epoch, are: WritesAre) {
        let host = &self.hosts[usize::from(node.0)];
        let lives =
            matches!(self.store.get(Key::Epoch(node)), Some(Value::Epoch(record)) if record.epoch == epoch && record.boot == host.boot);
        // Another boot has another address at the storage, as far as this is about it.
        if are == WritesAre::Refused && lives {
            self.log.tell(self.now, || format!("the storage refuses what {} writes", self.roster.node(node)));
            let host = self.host(node);
            host.refused = Some(host.boot);
        }
    }

    pub fn stonith_done(&mut self, node: NodeNo, power: PowerIs) {
        if power != PowerIs::Off || self.host(node).stonith == Stonith::Lies {
            return;
        }
        if self.host(node).powered {
            self.log.tell(self.now, || format!("the power of {} is cut", self.roster.node(node)));
            self.checks.resets += 1;
            self.power_off(node);
        }
        self.after(POWER_BACK_MS, Event::PowerOn(node));
    }
}
