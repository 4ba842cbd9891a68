//! Seeds that must hold, and guards whose absence must be seen.

use vmkeep_core::ha::timers::Profile;
use vmkeep_core::ha::weakness::Weakness;
use vmkeep_sim::seeds::{self, Class};

/// `./test` runs so many; docs/guide/sim.md says how to run millions.
const SEEDS: u64 = 2_000;

/// A weakened guard must be caught within so many seeds, or the simulator is what is broken.
const MUTATION_SEEDS_MAX: u64 = 10_000;

/// Seeds that caught a weakened guard before: tried first. Any change of the machines may make others catch it.
const CAUGHT_BEFORE: &[u64] = &[0, 3, 13, 20, 76, 201];

fn all_hold(seeds: impl Iterator<Item = u64>, class: Class) {
    let broken: Vec<String> = seeds
        .filter_map(|seed| {
            let outcome = seeds::run(seed, class, None);
            outcome
                .violations
                .first()
                .map(|v| format!("{} {}: vmkeep-sim run --seed {seed}\n{}", v.invariant, v.what, seeds::shrunk_story(seed, class, None)))
        })
        .take(3)
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn even_seeds_hold() {
    all_hold((0..SEEDS).step_by(2), Class::Any);
}

#[test]
fn odd_seeds_hold() {
    all_hold((1..SEEDS).step_by(2), Class::Any);
}

/// With a fence agent that lies two copies may run, and the story names the liar; nothing else may break.
#[test]
fn only_a_lie_breaks_the_promise() {
    for seed in 0..100 {
        for violation in seeds::run(seed, Class::Lies, None).violations {
            assert!(violation.invariant == "I1" && violation.what.contains("lied"), "seed {seed}: {violation:?}");
        }
    }
}

#[test]
fn every_weakened_guard_is_caught() {
    for weak in Weakness::ALL {
        let mut seeds = CAUGHT_BEFORE.iter().copied().chain(0..MUTATION_SEEDS_MAX);
        let caught = seeds.find(|seed| !seeds::run(*seed, Class::Any, Some(*weak)).violations.is_empty());
        assert!(caught.is_some(), "without the guard '{}' {MUTATION_SEEDS_MAX} seeds find nothing", weak.as_str());
    }
}

#[test]
fn a_lost_node_is_replaced_in_time() {
    for (profile, stonith, most_ms) in [
        (Profile::Standard, false, 60_000),
        (Profile::Standard, true, 32_000),
        (Profile::Fast, false, 25_000),
        (Profile::Fast, true, 12_000),
    ] {
        for seed in 0..20 {
            let outcome =
                seeds::run(seed, Class::SingleLoss { nodes: 3 + usize::try_from(seed).expect("few") % 4, profile, stonith }, None);
            assert!(outcome.violations.is_empty() && outcome.recoveries > 0, "seed {seed}: {outcome:?}");
            assert!(outcome.slowest_ms <= most_ms, "{} seed {seed}: {} ms", profile.as_str(), outcome.slowest_ms);
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..20 {
        let (a, b) = (seeds::run(seed, Class::Any, None), seeds::run(seed, Class::Any, None));
        assert_eq!((a.events, a.slowest_ms, a.resets), (b.events, b.slowest_ms, b.resets), "seed {seed}");
    }
}
