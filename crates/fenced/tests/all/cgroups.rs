//! Everything in the VMs' cgroup dies, in both versions of cgroups, however deep and however busy.

use std::process::Child;

use super::lab::{Cgroup, Lab, now, short, until};

/// Forks a successor and ends, 500 times a second, for some minutes at most: it is never where one looks.
const RUNNER: &str = "for my $n (1..100000) { select undef, undef, undef, 0.002; exit if fork }";

fn check(cgroup: &Cgroup) {
    let lab = Lab::new(&[&cgroup.0]);
    let mut still: Child = cgroup.spawn("sleep", &["600"]);
    let mut runner = cgroup.spawn("perl", &["-e", RUNNER]);
    runner.wait().expect("it ends at once, and its successor runs");
    assert!(!cgroup.is_empty());
    lab.guard.arm(now(), &short()).expect("armed");
    still.wait().expect("it is killed");
    until("nothing is left", || cgroup.is_empty().then_some(()));
    let state = lab.guard.state().expect("it answers");
    assert!(state.kills > 0 && state.allocations == 0, "{state:?}");
}

#[test]
fn version_2_kills_in_one_write() {
    let Some(cgroup) = Cgroup::new("cgroup2", "", "v2").filter(|cgroup| cgroup.0.join("cgroup.kill").exists()) else {
        eprintln!("no cgroup version 2 here that kills");
        return;
    };
    check(&cgroup);
}

#[test]
fn version_1_freezes_and_kills_in_rounds() {
    let Some(cgroup) = Cgroup::new("cgroup", "freezer", "v1") else {
        eprintln!("no freezer of cgroup version 1 here");
        return;
    };
    check(&cgroup);
}
