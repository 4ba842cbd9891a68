//! Seeds that must hold. docs/guide/sim.md says how to run millions.

use vmkeep_sim::seeds::{self, Class};

/// Every second seed of so many.
const SEEDS: u64 = 2_000;

#[test]
fn seeds_hold() {
    let mut broken = Vec::new();
    for seed in (0..SEEDS).step_by(2) {
        if let Some(first) = seeds::run(seed, Class::Any, None).violations.first() {
            broken.push(format!("{}: {}\n{}", first.invariant, first.what, seeds::shrunk_story(seed, Class::Any, None)));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
