//! One seed, one run: a random cluster, random faults, and everything checked; then faults end and everything must run again.

pub mod plan;
pub mod play;
pub mod promise;

use vmkeep_core::ha::weakness::Weakness;

use crate::log::{Telling, Violation, story};
pub use plan::{Class, Plan};

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub violations: Vec<Violation>,
    pub events: u64,
    /// Simulated time, ms.
    pub simulated_ms: u64,
    pub nodes: usize,
    pub resets: u32,
    /// From a node's last sign of life to its VMs running elsewhere, ms, the slowest.
    pub slowest_ms: u64,
    /// The same of the first: the others waited for it, each of a priority of its own.
    pub first_ms: u64,
    pub recoveries: usize,
}

/// Runs one seed.
pub fn run(seed: u64, class: Class, weak: Option<Weakness>) -> Outcome {
    play::play(&Plan::of(seed, class), weak, Telling::Silent).0
}

/// The story of a failing seed, with all faults left out that it does not need; of one that holds, all of it.
pub fn shrunk_story(seed: u64, class: Class, weak: Option<Weakness>) -> String {
    let mut plan = Plan::of(seed, class);
    let fails = |plan: &Plan| play::play(plan, weak, Telling::Silent).0.violations.first().map(|v| v.invariant);
    let Some(wanted) = fails(&plan) else {
        return format!("nothing is broken\n{}", story(&play::play(&plan, weak, Telling::Story).1));
    };
    let mut n = 0;
    while n < plan.faults.len() {
        let mut fewer = plan.clone();
        fewer.faults.remove(n);
        if fails(&fewer) == Some(wanted) {
            plan = fewer;
        } else {
            n += 1;
        }
    }
    let (_, lines) = play::play(&plan, weak, Telling::Story);
    let until = lines.iter().position(|(_, words)| words.starts_with("!! "));
    let shown = until.map_or(&lines[..], |n| &lines[..=n]);
    format!("seed {seed}, with {} of its faults:\n{}", plan.faults.len(), story(shown))
}
