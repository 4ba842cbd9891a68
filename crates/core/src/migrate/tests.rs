//! Every order of events: two agents, a leader and two libvirts, each of which may fail, die or answer too late at any point.
//! All states that can be reached are walked; in none do two guests run or has the owner a part of its data only, and from each the end
//! can be reached.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use vmkeep_types::ids::{Generation, OperationId, VmId};
use vmkeep_types::migration::{MigrateOptions, Way};
use vmkeep_types::name::Name;
use vmkeep_types::observed::ExitCause;

use super::node::{Call, Do, Job, Quiet, Source};
use super::*;
use crate::vm::DomainNow;

fn op() -> OperationId {
    OperationId("00000000-0000-7000-8000-000000000007".parse().expect("a uuid"))
}

fn vm() -> VmId {
    VmId("00000000-0000-4000-8000-000000000001".parse().expect("a uuid"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qemu {
    None,
    Running,
    Paused,
    /// Receives, and has not all of it.
    Incoming,
    Left,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lib {
    Idle,
    /// The call is on its way to libvirt.
    Queued,
    Active,
}

/// What the destination has of disks that only the source reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    Nothing,
    /// Empty volumes, or half-filled ones.
    Part,
    All,
}

/// The whole world of one migration.
#[derive(Clone, Debug)]
struct World {
    m: Migration,
    ended: Option<End>,
    source: Qemu,
    destination: Qemu,
    copied: Copied,
    lib: Lib,
    call: Call,
    calls: u32,
    quiet: Quiet,
    source_said: Option<MoveSeen>,
    destination_said: Option<MoveSeen>,
    source_owns: bool,
    faults: u8,
}

fn seen(part: PartKind, said: MoveSaid) -> Option<MoveSeen> {
    Some(MoveSeen { op: op(), vm: vm(), part, said, progress: None })
}

/// `copy`: disks that only the source reaches.
fn begun(travel: Travel, copy: &[&'static str]) -> Migration {
    let way = Way {
        from: Name::known("a"),
        to: Name::known("b"),
        generation: Generation(1),
        travel,
        power_cycle: 1,
        copy: copy.iter().map(|disk| Name::known(disk)).collect(),
        state: BTreeSet::new(),
        handed: None,
    };
    Migration {
        op: op(),
        vm: vm(),
        project: Name::known("default"),
        options: MigrateOptions::default(),
        phase: MovePhase::Preparing,
        way: Some(way),
        stop: None,
        broke: None,
        deadline: jiff::Timestamp::MAX,
    }
}

fn address() -> MigrationAddress {
    MigrationAddress { connect: "qemu+tcp://b/system".into(), data: "tcp://b".into() }
}

impl World {
    fn new(travel: Travel, copy: &[&'static str]) -> Self {
        let source = match travel {
            Travel::Running => Qemu::Running,
            Travel::Paused => Qemu::Paused,
            Travel::Off => Qemu::Dead,
        };
        Self {
            m: begun(travel, copy),
            ended: None,
            source,
            destination: Qemu::None,
            copied: Copied::Nothing,
            lib: Lib::Idle,
            call: Call::Never,
            calls: 0,
            quiet: Quiet::NotYet,
            source_said: None,
            destination_said: None,
            source_owns: true,
            faults: 0,
        }
    }

    fn travel(&self) -> Travel {
        self.m.way.as_ref().expect("chosen").travel
    }

    fn copies(&self) -> bool {
        !self.m.way.as_ref().expect("chosen").copy.is_empty()
    }

    /// What libvirt says of a side.
    fn look(qemu: Qemu) -> Observed<DomainNow> {
        let known = |state, exit| Observed::Known(DomainNow { state, exit });
        match qemu {
            Qemu::None => Observed::Absent,
            Qemu::Running => known(DomainState::Running, None),
            Qemu::Paused | Qemu::Incoming => known(DomainState::Paused, None),
            Qemu::Left => known(DomainState::Off, Some(ExitCause::Migrated)),
            Qemu::Dead => known(DomainState::Off, Some(ExitCause::Crashed)),
        }
    }

    fn state(qemu: Qemu) -> Observed<DomainState> {
        match Self::look(qemu) {
            Observed::Known(now) => Observed::Known(now.state),
            Observed::Absent => Observed::Absent,
            Observed::Unknown => Observed::Unknown,
        }
    }

    fn leader(&self) -> Option<Self> {
        let domain = Self::state(if self.source_owns { self.source } else { self.destination });
        let saw = Saw {
            now: jiff::Timestamp::UNIX_EPOCH,
            hands_off: Some(&domain),
            source: self.source_said.as_ref(),
            destination: self.destination_said.as_ref(),
            against: None,
        };
        let mut next = self.clone();
        match step(&self.m, &saw) {
            Next::Wait => return None,
            Next::Enter(phase) => {
                if phase == MovePhase::Copying {
                    let part = if self.copies() && self.travel() == Travel::Off { PartKind::Fetch } else { PartKind::Prepare };
                    assert_eq!(self.destination_said, seen(part, MoveSaid::Ready), "volumes to copy into, or all its data, are there");
                }
                if phase == MovePhase::Arriving {
                    assert!(matches!(self.source_said.as_ref().map(|s| &s.said), Some(MoveSaid::Sent)), "only after the source's promise");
                    next.source_owns = false;
                    next.source_said = None;
                }
                next.m.phase = phase;
            }
            Next::TakeBack(why) => {
                next.m.broke = Some(why);
                next.m.phase = MovePhase::Returning;
            }
            Next::Stop(stop) => next.m.stop = Some(stop),
            Next::End(end) => next.ended = Some(end),
        }
        Some(next)
    }

    fn source_acts(&self) -> Option<Self> {
        let part = source_part(&self.m, &address()).filter(|_| self.ended.is_none())?.kind();
        let said = self.source_said.as_ref().filter(|s| s.part == part || (part == PartKind::Halt && s.part == PartKind::Send));
        let job = if self.lib == Lib::Active { Job::Active } else { Job::None };
        let domain = Self::look(self.source);
        let at =
            Source { part, travel: self.travel(), said: said.map(|s| &s.said), call: &self.call, domain: &domain, job, quiet: self.quiet };
        let mut next = self.clone();
        match node::source(&at) {
            Do::Wait => return None,
            Do::Call => {
                next.call = Call::Running;
                next.calls += 1;
                next.quiet = Quiet::NotYet;
                next.lib = Lib::Queued;
                next.source_said = seen(part, MoveSaid::Working);
            }
            Do::Abort if self.lib == Lib::Active => next.fails(Qemu::Running, Qemu::None),
            Do::Abort => return None,
            Do::Promise => {
                assert!(!matches!(self.source, Qemu::Running | Qemu::Paused), "it promises only what is true");
                next.source_said = seen(part, MoveSaid::Sent);
            }
            Do::Resume => {
                assert!(self.source_owns, "a claim is granted to the owner only");
                next.source = Qemu::Running;
            }
            Do::Say(said) => next.source_said = seen(part, said),
        }
        Some(next)
    }

    fn destination_acts(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.ended.is_some() || self.m.phase == MovePhase::Returning {
            // Forgets it, unless it is the owner.
            if self.source_owns && (self.destination != Qemu::None || self.copied != Copied::Nothing) {
                let mut next = Self { destination: Qemu::None, copied: Copied::Nothing, ..self.clone() };
                if self.lib == Lib::Active {
                    next.fails(Qemu::Running, Qemu::None);
                }
                all.push(next);
            }
            return all;
        }
        match destination_part(&self.m, None) {
            Some(MovePart::Prepare { .. }) if self.destination_said.as_ref().is_none_or(|s| s.said == MoveSaid::Working) => {
                let refused = MoveSaid::Refused { error: Error::refused("no room") };
                // Volumes are made after this word.
                let working = self.copies().then_some(MoveSaid::Working);
                for said in [MoveSaid::Ready, refused].into_iter().chain(working) {
                    let made = self.copies() && self.travel() != Travel::Off && !matches!(said, MoveSaid::Refused { .. });
                    let copied = if made { Copied::Part } else { Copied::Nothing };
                    all.push(Self { destination_said: seen(PartKind::Prepare, said), copied, ..self.clone() });
                }
            }
            Some(MovePart::Fetch { .. })
                if self.destination_said.as_ref().is_none_or(|s| s.part != PartKind::Fetch || s.said == MoveSaid::Working) =>
            {
                let refused = MoveSaid::Refused { error: Error::refused("no room for the copy") };
                for (said, copied) in [(MoveSaid::Ready, Copied::All), (MoveSaid::Working, Copied::Part), (refused, Copied::Nothing)] {
                    all.push(Self { destination_said: seen(PartKind::Fetch, said), copied, ..self.clone() });
                }
            }
            Some(MovePart::Resume) => {
                let said = self.destination_said.as_ref().filter(|s| s.part == PartKind::Resume).map(|s| &s.said);
                match node::destination(self.travel(), said, &Self::look(self.destination)) {
                    Do::Resume => {
                        assert!(!self.source_owns, "a claim is granted to the owner only");
                        all.push(Self { destination: Qemu::Running, ..self.clone() });
                    }
                    Do::Say(said) => all.push(Self { destination_said: seen(PartKind::Resume, said), ..self.clone() }),
                    _ => {}
                }
            }
            _ => {}
        }
        all
    }

    /// The job is over and the caller hears of a failure.
    fn fails(&mut self, source: Qemu, destination: Qemu) {
        self.lib = Lib::Idle;
        self.source = if self.travel() == Travel::Paused && source == Qemu::Running { Qemu::Paused } else { source };
        self.destination = destination;
        if self.call == Call::Running {
            self.call = Call::Over(Err(Error::refused("it broke")));
        }
    }

    fn libvirt(&self) -> Vec<Self> {
        let mut all = Vec::new();
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        match self.lib {
            Lib::Queued => {
                if matches!(self.source, Qemu::Running | Qemu::Paused) && self.destination == Qemu::None {
                    push(&|w| (w.lib, w.destination) = (Lib::Active, Qemu::Incoming));
                }
                push(&|w| w.fails(w.source, w.destination));
            }
            Lib::Active => {
                let copied = if self.copies() { Copied::All } else { Copied::Nothing };
                push(&|w| {
                    (w.lib, w.source, w.destination, w.copied) = (Lib::Idle, Qemu::Left, Qemu::Paused, copied);
                    w.call = if w.call == Call::Running { Call::Over(Ok(())) } else { w.call.clone() };
                });
                push(&|w| {
                    w.copied = copied;
                    w.fails(Qemu::Left, Qemu::Paused); // all was done, and the answer lost
                });
                for (source, destination) in [
                    (Qemu::Running, Qemu::None),
                    (Qemu::Running, Qemu::Paused), // the answer of Finish was lost
                    (Qemu::Paused, Qemu::Paused),
                    (Qemu::Paused, Qemu::None),
                    (Qemu::Dead, Qemu::None),
                ] {
                    push(&|w| w.fails(source, destination));
                }
            }
            Lib::Idle => {}
        }
        all
    }

    /// What breaks from outside; a few of these per story are enough to meet each with each.
    fn trouble(&self) -> Vec<Self> {
        const FAULTS_MAX: u8 = 3;
        if self.faults == FAULTS_MAX {
            return Vec::new();
        }
        let mut all = Vec::new();
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut next = Self { faults: self.faults + 1, ..self.clone() };
            change(&mut next);
            all.push(next);
        };
        // The source's agent is killed and comes back: what it meant to do is stored, what it knew is not.
        if matches!(self.call, Call::Running | Call::Over(_) | Call::HungUp { .. }) {
            push(&|w| (w.call, w.quiet) = (Call::Unknown, Quiet::NotYet));
        }
        // The line to its own libvirt breaks, where the call goes on.
        if self.call == Call::Running {
            push(&|w| (w.call, w.quiet) = (Call::HungUp { calls: w.calls, error: Error::refused("it was hung up on") }, Quiet::NotYet));
        }
        if matches!(self.destination, Qemu::Paused | Qemu::Running) {
            push(&|w| w.destination = if w.source_owns { Qemu::None } else { Qemu::Dead });
        }
        if matches!(self.source, Qemu::Running | Qemu::Paused) && self.lib != Lib::Active {
            push(&|w| w.source = Qemu::Dead);
        }
        // Somebody goes round the hook, and off again.
        if self.travel() == Travel::Off && self.source_owns && self.m.phase == MovePhase::Fetching {
            push(&|w| w.source = if w.source == Qemu::Dead { Qemu::Running } else { Qemu::Dead });
        }
        if self.m.stop.is_none() && self.ended.is_none() && self.m.phase < MovePhase::Arriving {
            push(&|w| w.m.stop = Some(Stop::Cancelled { by: "alice".into() }));
        }
        all
    }

    fn next(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.ended.is_none() {
            all.extend(self.leader());
            all.extend(self.source_acts());
        }
        all.extend(self.destination_acts());
        all.extend(self.libvirt());
        all.extend(self.trouble());
        if matches!(self.call, Call::Unknown | Call::HungUp { .. }) && self.quiet == Quiet::NotYet {
            all.push(Self { quiet: Quiet::Long, ..self.clone() });
        }
        all
    }

    fn check(&self) {
        let runs = |q| q == Qemu::Running;
        assert!(!(runs(self.source) && runs(self.destination)), "two run: {self:#?}");
        assert!(!runs(self.destination) || !self.source_owns, "it runs where it is not owned: {self:#?}");
        assert!(!runs(self.source) || self.source_owns, "it runs where it was promised never to: {self:#?}");
        assert!(self.source_owns || !self.copies() || self.copied == Copied::All, "a part of its data goes on: {self:#?}");
    }
}

/// Walks everything; how often each end is met.
fn walk(travel: Travel, copy: &[&'static str]) -> BTreeMap<String, usize> {
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    let mut before: Vec<Vec<usize>> = Vec::new();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut over: Vec<usize> = Vec::new();
    let mut todo = VecDeque::from([World::new(travel, copy)]);
    ids.insert(format!("{:?}", todo[0]), 0);
    before.push(Vec::new());
    while let Some(world) = todo.pop_front() {
        world.check();
        let me = ids[&format!("{world:?}")];
        if let Some(end) = &world.ended {
            over.push(me);
            let words = match end {
                End::Moved => "moved".to_owned(),
                End::Stayed(why) => format!("stayed: {}", why.message),
                End::Lost(_) => "lost".to_owned(),
            };
            *ends.entry(words).or_default() += 1;
        }
        for next in world.next() {
            let id = *ids.entry(format!("{next:?}")).or_insert_with(|| {
                before.push(Vec::new());
                todo.push_back(next);
                before.len() - 1
            });
            before[id].push(me);
        }
    }
    // Backwards from the ends: whoever is not met cannot end.
    let mut can_end: BTreeSet<usize> = over.iter().copied().collect();
    while let Some(id) = over.pop() {
        over.extend(before[id].iter().filter(|from| can_end.insert(**from)));
    }
    assert_eq!(can_end.len(), before.len(), "a state without a way out");
    ends
}

#[test]
fn never_two_and_always_an_end() {
    let walked = |travel, copy: &[&'static str]| walk(travel, copy).into_keys().collect::<Vec<_>>().join("\n");
    let live: [(Travel, &[&'static str]); 4] =
        [(Travel::Running, &[]), (Travel::Running, &["root"]), (Travel::Paused, &[]), (Travel::Paused, &["root"])];
    for (travel, copy) in live {
        expect_test::expect![[r#"
            lost
            moved
            stayed: cancelled by alice; the guest stayed where it was
            stayed: it broke
            stayed: it was hung up on
            stayed: no room
            stayed: the agent was restarted while the guest was sent, and it did not leave
            stayed: the guest is not as it was when the migration began: it went down or was paused
            stayed: the guest went down or was paused before it was sent
            stayed: the guest went down while it was sent"#]]
        .assert_eq(&walked(travel, copy));
    }
    expect_test::expect![[r#"
        moved
        stayed: cancelled by alice; the guest stayed where it was
        stayed: no room"#]]
    .assert_eq(&walked(Travel::Off, &[]));
    expect_test::expect![[r#"
        moved
        stayed: cancelled by alice; the guest stayed where it was
        stayed: no room
        stayed: no room for the copy
        stayed: the VM was started meanwhile, so what was copied of it is worth nothing"#]]
    .assert_eq(&walked(Travel::Off, &["root"]));
}

#[test]
fn a_deadline_and_a_contrary_wish_call_it_off() {
    let saw =
        |against: Option<&str>, now| Saw { now, hands_off: None, source: None, destination: None, against: against.map(str::to_owned) };
    let mut m = begun(Travel::Running, &[]);
    m.deadline = jiff::Timestamp::UNIX_EPOCH;
    let before = jiff::Timestamp::from_second(-1).expect("a time");
    assert_eq!(step(&m, &saw(None, before)), Next::Wait);
    assert_eq!(step(&m, &saw(None, m.deadline)), Next::End(End::Stayed(stop_error(&Stop::Late))));
    m.phase = MovePhase::Copying;
    assert_eq!(step(&m, &saw(None, m.deadline)), Next::Stop(Stop::Late));
    let why = || Stop::Against { why: "it is wanted off".into() };
    assert_eq!(step(&m, &saw(Some("it is wanted off"), before)), Next::Stop(why()));
    m.stop = Some(why());
    assert_eq!(step(&m, &saw(Some("it is wanted off"), before)), Next::Wait, "it was told already");
    assert_eq!(source_part(&m, &address()).map(|p| p.kind()), Some(PartKind::Halt));
    m.phase = MovePhase::Arriving;
    assert_eq!(step(&m, &saw(Some("too late"), m.deadline)), Next::Wait, "past the change of owner there is no way back");
}
