//! What a plan promises beside safety: L1 to L4, each with the class of runs that can break it.

use vmkeep_core::ha::record::{Key, RunWish, Value, VmNo};
use vmkeep_core::ha::timers::Profile;

use super::plan::Plan;
use crate::world::World;

/// What must be true at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// L1: faults are over, and every VM that is wanted runs.
    Runs,
    /// L2, L3: one node is lost for good; its VMs run elsewhere in time, and nobody else is fenced.
    Recovers { within_ms: u64 },
    /// L4: what happens is too short for anybody to be fenced.
    RidesOut,
}

/// A start takes at most so long, from order to running, ms.
const START_MS_MAX: u64 = 2_600;

/// From the last sign of life of a node to its VMs running elsewhere, at most, ms. Where etcd's leader was on the lost node its election
/// is an outage of its own, after which everybody has time to be heard; with `fast` and fence agents that is what takes longest.
pub fn recovery_ms_max(profile: Profile, stonith: bool) -> u64 {
    match (profile, stonith) {
        (Profile::Standard, false) => 60_000,
        (Profile::Standard, true) => 30_000,
        (Profile::Fast, false) => 25_000,
        (Profile::Fast, true) => 16_500,
    }
}

impl World {
    pub(super) fn check_promise(&mut self, plan: &Plan) {
        match plan.promise {
            Promise::Runs => self.check_everything_runs("L1"),
            Promise::Recovers { within_ms } => {
                self.check_everything_runs("L2");
                let mut recoveries = self.checks.recoveries.clone();
                recoveries.sort_by_key(|recovery| recovery.running_at);
                // Of so many priorities each waits for the one before.
                let most_ms = (0..).map(|n| within_ms + n * START_MS_MAX);
                let late = recoveries.iter().zip(most_ms).find_map(|(recovery, most_ms)| {
                    let took_ms = recovery.running_at.0 - recovery.silent_at.0;
                    (took_ms > most_ms)
                        .then(|| format!("{} runs again {took_ms} ms after the last sign of life of {}", recovery.vm, recovery.from))
                });
                late.into_iter().for_each(|what| self.log.violation(self.now, "L2", what));
                let fenced: Vec<&str> = self.checks.fenced.iter().map(|fenced| fenced.node.as_str()).collect();
                if fenced.len() != 1 {
                    let what = format!("one node was lost and these were fenced: {}", fenced.join(", "));
                    self.log.violation(self.now, "L3", what);
                }
            }
            Promise::RidesOut => {
                self.check_everything_runs("L4");
                if let Some(fenced) = self.checks.fenced.first() {
                    let what = format!("{} is fenced for an outage that it rides out", fenced.node);
                    self.log.violation(self.now, "L4", what);
                }
                if self.checks.resets > 0 {
                    self.log.violation(self.now, "L4", "a host is reset for an outage that it rides out".into());
                }
            }
        }
    }

    /// VMs that are wanted and are not in error: high availability owes each of them to run.
    fn owed(&self) -> Vec<VmNo> {
        let wished = self.store.map.range(Key::Wish(VmNo(0))..=Key::Wish(VmNo(u32::MAX)));
        let started = wished.filter_map(|(key, (value, _))| match (key, value) {
            (Key::Wish(vm), Value::Wish(wish)) if wish.run == RunWish::Started => Some(*vm),
            _ => None,
        });
        started.filter(|vm| !matches!(self.store.get(Key::Memory(*vm)), Some(Value::Memory(memory)) if memory.error.is_some())).collect()
    }

    fn check_everything_runs(&mut self, invariant: &'static str) {
        let (view, reasons) = (self.view(), self.reasons());
        for vm in self.owed().into_iter().filter(|vm| self.runs_at(*vm).is_none()).collect::<Vec<_>>() {
            let why = reasons.get(&vm).cloned().unwrap_or_default();
            let what = format!("{} is {} and does not run: {why}", self.roster.vm(vm), view.vm_state(vm).as_str());
            self.log.violation(self.now, invariant, what);
        }
    }

    /// Nothing is left to happen: every VM runs under a settled owner, every node renews.
    pub(super) fn is_at_rest(&self) -> bool {
        let renews = |n: usize| {
            self.hosts[n].agent.is.as_ref().is_some_and(|agent| agent.epoch().is_some())
                && self.now - self.checks.renewed_at(n) < self.timers.suspect_ms
        };
        let settled = |vm: &VmNo| matches!(self.store.get(Key::Owner(*vm)), Some(Value::Owner(owner)) if owner.to.is_none());
        (0..self.hosts.len()).all(renews) && self.owed().iter().all(|vm| self.runs_at(*vm).is_some() && settled(vm))
    }
}
