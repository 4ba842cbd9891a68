//! What is told of a run.

use std::collections::BTreeMap;

use serde::Serialize;
use vmkeep_core::ha::record::VmNo;

use crate::log::{Fenced, Recovery, Run, Violation, story};
use crate::world::World;

/// The facts, in the order in which programs find them documented.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub violations: Vec<Violation>,
    pub fenced: Vec<Fenced>,
    pub runs: Vec<Run>,
    pub recoveries: Vec<Recovery>,
    /// VM to the node it runs on.
    pub r#final: BTreeMap<String, Option<String>>,
    pub states: BTreeMap<String, &'static str>,
}

#[derive(Clone, Debug)]
pub struct Report {
    pub facts: Facts,
    lines: Vec<(u64, String)>,
    /// Why VMs are not where they should be.
    reasons: BTreeMap<String, String>,
    until: u64,
}

impl Report {
    pub fn of(mut world: World) -> Self {
        let view = world.view();
        let (mut ends, mut states) = (BTreeMap::new(), BTreeMap::new());
        for (vm, name) in &world.roster.clone().vms {
            let at = world.runs_at(*vm).map(|n| world.roster.node(n).to_owned());
            ends.insert(name.to_string(), at);
            states.insert(name.to_string(), view.vm_state(*vm).as_str());
        }
        let reasons = world.reasons().into_iter().map(|(vm, why): (VmNo, String)| (world.roster.vm(vm).to_owned(), why)).collect();
        world.close_runs();
        let facts = Facts {
            violations: world.log.violations,
            fenced: world.checks.fenced,
            runs: world.checks.runs,
            recoveries: world.checks.recoveries,
            r#final: ends,
            states,
        };
        Self { facts, lines: world.log.lines, reasons, until: world.now }
    }

    /// For people: what happened, how it ended, and the verdict.
    pub fn story(&self) -> String {
        let mut out = story(&self.lines);
        out.push_str(&format!("\nat {} s:\n", self.until / 1000));
        for (vm, state) in &self.facts.states {
            let at = self.facts.r#final[vm].as_ref().map_or_else(String::new, |node| format!(" on {node}"));
            let why = self.reasons.get(vm).map_or_else(String::new, |why| format!(": {why}"));
            out.push_str(&format!("  {vm}: {state}{at}{why}\n"));
        }
        for recovery in &self.facts.recoveries {
            let seconds = (recovery.running_at.0 - recovery.silent_at.0) as f64 / 1000.0;
            out.push_str(&format!(
                "  {} ran again on {} {seconds:.1} s after the last sign of life of {}\n",
                recovery.vm, recovery.to, recovery.from
            ));
        }
        out.push_str(match self.facts.violations.len() {
            0 => "verdict: no VM ran twice, no invariant was broken\n",
            _ => "verdict: INVARIANTS WERE BROKEN (lines that begin with !!)\n",
        });
        out
    }

    /// For programs.
    pub fn json(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.facts).expect("facts have text keys only");
        text.push('\n');
        text
    }
}
