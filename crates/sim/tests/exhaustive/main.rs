//! Every way in which two faults may meet one another, and what is going on, within half a minute: not drawn by chance, as the seeds of
//! the simulator are, but all of them (stateright). What it leaves out (moves, STONITH, clocks that drift, three hosts) is the simulator's.

mod world;

use stateright::{Checker, Model, Property};
use vmkeep_core::ha::weakness::Weakness;
use world::{Fault, HOSTS, Second, World};

/// The VM runs on the first host by then, and nothing is under way.
const WARM_S: u64 = 12;
/// The first fault comes within so many seconds: what follows them is the same again.
const FIRST_WITHIN_S: u64 = 2;
/// From the first fault on: T_safe (17 s), a leader that is lost with it, the start elsewhere, and a host that comes back.
const SECONDS: u64 = 28;
const FAULTS: u8 = 2;

/// To the host that the VM runs on, and to the other one.
const OF_OWNER: [Fault; 13] = [
    Fault::Cut(3_000),
    Fault::Cut(60_000),
    Fault::PowerOff,
    Fault::AgentStands(4_000),
    Fault::AgentStands(12_000),
    Fault::Stands(3_000),
    Fault::Stands(9_000),
    Fault::Gap,
    Fault::AnswersLost,
    Fault::Late(8_000),
    Fault::AgentCrashes,
    Fault::CandidateStands(6_000),
    Fault::CandidateCrashes,
];
const OF_OTHER: [Fault; 8] = [
    Fault::Cut(6_000),
    Fault::PowerOff,
    Fault::Stands(3_000),
    Fault::AnswersLost,
    Fault::Late(3_000),
    Fault::Late(8_000),
    Fault::CandidateStands(6_000),
    Fault::CandidateCrashes,
];

struct Everything {
    weak: Option<Weakness>,
    faults: u8,
}

/// It runs on the first host, which renews.
fn warm(faults: u8, weak: Option<Weakness>) -> World {
    let mut world = World::new(faults, weak);
    (0..WARM_S).for_each(|_| world.second(Second::Calm));
    assert!(world.runs_on(HOSTS[0]) && world.broken.is_none(), "{:?}", world.broken);
    world
}

impl Model for Everything {
    type State = World;
    type Action = Second;

    fn init_states(&self) -> Vec<World> {
        vec![warm(self.faults, self.weak)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Second>) {
        if world.broken.is_some() {
            return;
        }
        actions.push(Second::Calm);
        let begun = world.budget < self.faults;
        if world.budget > 0 && (begun || world.now < (WARM_S + FIRST_WITHIN_S) * 1000) {
            actions.extend(OF_OWNER.map(|fault| Second::Trouble(HOSTS[0], fault)));
            actions.extend(OF_OTHER.map(|fault| Second::Trouble(HOSTS[1], fault)));
        }
    }

    fn next_state(&self, world: &World, second: Second) -> Option<World> {
        let mut next = world.clone();
        next.budget -= u8::from(second != Second::Calm);
        next.second(second);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let safe = Property::always("safe", |_: &Self, world: &World| world.broken.is_none());
        // Else it would prove nothing that it is.
        let recovers = Property::sometimes("runs elsewhere", |_: &Self, world: &World| world.runs_on(HOSTS[1]));
        let comes_back = Property::sometimes("runs there again", |_: &Self, world: &World| {
            world.now >= (WARM_S + SECONDS) * 1000 && world.runs_on(HOSTS[0]) && world.budget < FAULTS
        });
        vec![safe, recovers, comes_back]
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.now <= (WARM_S + SECONDS) * 1000
    }
}

/// The seconds that lead there, the calm ones counted.
fn told(seconds: Vec<Second>) -> String {
    let (mut told, mut at) = (String::new(), WARM_S);
    for second in seconds {
        at += 1;
        if second != Second::Calm {
            told += &format!("{at} s: {second:?}; ");
        }
    }
    format!("{told}broken at {at} s")
}

#[test]
fn no_two_faults_break_a_promise() {
    let checker = Everything { weak: None, faults: FAULTS }.checker().spawn_dfs().join();
    if let Some(path) = checker.discovery("safe") {
        let broken = path.last_state().broken.clone();
        panic!("{broken:?}: {}", told(path.into_actions()));
    }
    checker.assert_any_discovery("runs elsewhere");
    checker.assert_any_discovery("runs there again");
    println!("{} states", checker.unique_state_count());
    assert!(checker.unique_state_count() > 200_000, "{} states are not all", checker.unique_state_count());
}

/// A search that finds nothing proves nothing before it has found something. The other guards are missed only by what is left out here.
#[test]
fn guards_that_are_taken_away_are_missed() {
    let found =
        [(Weakness::PlaceWithoutProof, 1), (Weakness::PetByTimer, 1), (Weakness::RenewWithoutSeal, 1), (Weakness::FreshCandidate, 2)];
    for (weak, faults) in found {
        let checker = Everything { weak: Some(weak), faults }.checker().spawn_bfs().join();
        let path = checker.discovery("safe").unwrap_or_else(|| panic!("without the guard '{}' nothing breaks", weak.as_str()));
        println!("{}: {:?}: {}", weak.as_str(), path.last_state().broken.clone(), told(path.into_actions()));
    }
}
