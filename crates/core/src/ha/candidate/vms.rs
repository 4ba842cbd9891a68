//! What each VM needs next, while its node lives. What has lost its node goes to [`super::recover`].

use std::collections::{BTreeMap, BTreeSet};

use super::super::clock::Now;
use super::super::life;
use super::super::ready::Ready;
use super::super::record::{
    Key, MoveHow, NodeNo, Owner, Parked, ParkedWhy, Parting, Phase, RunWish, Seat, ShutdownPolicy, Trouble, Value, VmNo, Want,
};
use super::super::turns::{STARTS_PER_NODE, Turns};
use super::super::vigil::{NodeNow, NodeState};
use super::super::weakness::Weakness;
use super::place::{Board, Whereabouts};
use super::scene::Scene;
use super::write::Case;
use super::{Action, Candidate, Subject, record_memory};

/// Migrations out of one node at a time: more only make each of them slower.
const MOVES_PER_NODE: usize = 4;

/// After a move that failed the VM is left alone for so long, ms.
const MOVE_AGAIN_MS: u64 = 60_000;

/// A new VM waits for the node of its disks for so long before it goes elsewhere, ms.
const NEW_WAITS_MS: u64 = 60_000;

/// A VM that was moved by hand is looked for on other nodes for so long, ms.
const FOLLOW_MS: u64 = 30_000;

/// What keeps a VM waiting is told again when it is something else, and so long after it was told last, ms.
const SAY_AGAIN_MS: u64 = 5_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Memory {
    pub dirty: bool,
    pub why: BTreeMap<VmNo, String>,
    pub recovering: BTreeSet<VmNo>,
    /// Where a VM is to start by a transaction that may not be answered yet.
    pub placing: BTreeMap<VmNo, NodeNo>,
    pub turns: Turns,
    /// VMs that were moved by hand, and since when they are looked for.
    moved: BTreeMap<VmNo, Now>,
    said: BTreeMap<VmNo, Now>,
    /// Moves that failed.
    pub failed: BTreeMap<VmNo, Now>,
    /// Nodes that were asked to arm, and since when.
    pub asked_to_arm: BTreeMap<NodeNo, Now>,
    /// Something waits for time to pass.
    waits: bool,
    nodes: Vec<(NodeState, bool)>,
}

impl Memory {
    pub(super) fn forget(&mut self) {
        *self = Self { dirty: true, ..Self::default() };
    }

    /// Has anything changed since the last look, or does something wait for time?
    pub(super) fn needs_look(&mut self, nodes: &[NodeNow]) -> bool {
        let states: Vec<(NodeState, bool)> = nodes.iter().map(|n| (n.state, n.takes_vms())).collect();
        let changed = states != self.nodes;
        self.nodes = states;
        changed || self.dirty || self.waits
    }
}

impl Candidate {
    pub(super) fn look_at_vms(&mut self, now: Now, nodes: Vec<NodeNow>, out: &mut Vec<Action>) {
        let Some(settings) = self.view.settings().cloned() else { return };
        self.vms.dirty = false;
        self.vms.waits = false;
        if self.view.disarm().is_some() {
            return;
        }
        let cases: Vec<Case> = self.view.vms().filter_map(|(vm, wish)| self.case(vm, *wish)).collect();
        let board = Board::new(&self.view, settings, self.roster.clone(), nodes.clone(), |vm| self.counts_at(vm));
        let (starting, leaving) = Default::default();
        let mut scene = Scene { nodes, board, starting, leaving, moves: 0, queue: Vec::new() };
        for case in &cases {
            self.count(case, &mut scene);
        }
        for case in &cases {
            if self.busy.contains(&Subject::Vm(case.vm)) {
                self.vms.waits = true;
            } else {
                self.plan(now, case, &mut scene, out);
            }
        }
        self.recover(now, &mut scene, out);
        self.take_back_asks(now, &scene, out);
        self.vms.waits |= !scene.queue.is_empty() || !self.vms.recovering.is_empty() || !self.vms.why.is_empty() || scene.moves > 0;
    }

    fn case(&self, vm: VmNo, wish: super::super::record::Wish) -> Option<Case> {
        self.view.owner(vm).map(|(owner, revision)| Case { vm, wish, owner: *owner, revision })
    }

    /// Nowhere while it is homeless.
    fn counts_at(&self, vm: VmNo) -> Whereabouts {
        let Some((owner, _)) = self.view.owner(vm) else { return Whereabouts::default() };
        let holds = |seat: &Seat| {
            let left = self.view.has(Key::Stopped(seat.node, vm, owner.generation));
            !left && !self.view.has(Key::Confirmed(seat.node, seat.epoch))
        };
        let (seat, to) = (owner.seat.filter(holds), owner.to.filter(holds));
        let node = |seat: Seat| seat.node;
        Whereabouts { here: seat.or(to).map(node), heir: seat.and(to).map(node) }
    }

    fn count(&mut self, case: &Case, scene: &mut Scene) {
        // A placement that was asked for and not answered yet takes its room already.
        if self.busy.contains(&Subject::Vm(case.vm)) {
            if let Some(node) = self.vms.placing.get(&case.vm) {
                scene.board.set_owner(case.vm, *node);
                *scene.starting.entry(*node).or_default() += 1;
                return;
            }
        } else {
            self.vms.placing.remove(&case.vm);
        }
        let Owner { seat: Some(seat), generation, to, .. } = case.owner else { return };
        if let Some(to) = to {
            scene.moves += 1;
            *scene.leaving.entry(seat.node).or_default() += 1;
            *scene.starting.entry(to.node).or_default() += 1;
        }
        let phase = self.view.phase(seat.node, case.vm, generation);
        let runs = matches!(phase, Some(Phase::Running | Phase::StartFailed));
        let wanted = self.view.order(seat.node, case.vm).is_some_and(|(order, _)| order.want == Want::Run);
        if wanted && !runs && scene.lives(seat) {
            *scene.starting.entry(seat.node).or_default() += 1;
        } else if !self.busy.contains(&Subject::Vm(case.vm)) {
            self.vms.recovering.remove(&case.vm);
        }
    }

    pub(super) fn because(&mut self, now: Now, vm: VmNo, why: String, out: &mut Vec<Action>) {
        if self.vms.why.get(&vm) == Some(&why) {
            return;
        }
        if self.vms.said.get(&vm).is_none_or(|at| now.longest_since(*at) >= SAY_AGAIN_MS) {
            self.say(out, format!("{} waits: {why}", self.roster.vm(vm)));
            self.vms.said.insert(vm, now);
        }
        self.vms.why.insert(vm, why);
    }

    fn plan(&mut self, now: Now, case: &Case, scene: &mut Scene, out: &mut Vec<Action>) {
        let Owner { seat, to, generation, .. } = case.owner;
        let Some(seat) = seat else { return self.plan_parked(now, case, scene, out) };
        let ended = |at: Seat| self.view.has(Key::Confirmed(at.node, at.epoch));
        let proved = match self.weak {
            Some(Weakness::PlaceWithoutProof) => self.view.has(Key::Fence(seat.node, seat.epoch)),
            _ => ended(seat),
        };
        let promised = self.view.has(Key::Stopped(seat.node, case.vm, generation));
        let source_done = proved || promised || to.is_some() && self.weak == Some(Weakness::MoveWithoutSource);
        match (source_done, to) {
            (true, Some(to)) if scene.lives(to) => self.hand_over(now, case, to, scene, out),
            (true, Some(to)) if !ended(to) => {
                self.because(now, case.vm, format!("{} may have its guest and is not proved dead", self.roster.node(to.node)), out)
            }
            (true, _) => self.homeless(now, case, seat, scene, out),
            (false, _) if !scene.lives(seat) => {
                self.vms.waits = true;
            }
            (false, Some(to)) => self.plan_move(now, case, seat, to, scene, out),
            (false, None) => self.plan_settled(now, case, seat, scene, out),
        }
    }

    /// Its node is dead, or has let go of it.
    fn homeless(&mut self, now: Now, case: &Case, seat: Seat, scene: &mut Scene, out: &mut Vec<Action>) {
        let memory = self.view.memory(case.vm).map(|(memory, _)| memory.clone()).unwrap_or_default();
        let stays = memory.park || matches!(case.wish.run, RunWish::Disabled | RunWish::Ignored) || memory.error.is_some();
        if case.wish.run == RunWish::Deleted {
            let txn = self.deleted(case);
            self.send(now, Subject::Vm(case.vm), txn, out);
        } else if stays {
            let parked = Parked { node: seat.node, why: ParkedWhy::Frozen };
            let txn = self
                .let_go(case, Some(parked))
                .put(Key::Memory(case.vm), Value::Memory(super::super::record::Memory { park: false, ..memory }));
            self.send(now, Subject::Vm(case.vm), txn, out);
        } else {
            scene.queue.push(*case);
        }
    }

    fn plan_parked(&mut self, now: Now, case: &Case, scene: &mut Scene, out: &mut Vec<Action>) {
        if case.wish.run == RunWish::Deleted {
            let txn = self.deleted(case);
            return self.send(now, Subject::Vm(case.vm), txn, out);
        }
        let error = self.view.memory(case.vm).is_some_and(|(memory, _)| memory.error.is_some());
        if error || case.wish.run == RunWish::Ignored {
            return;
        }
        let asked = self.view.move_wish(case.vm).is_some();
        match case.owner.parked {
            Some(Parked { node, .. }) if !asked && scene.node(node).is_some_and(NodeNow::takes_vms) => {
                if scene.board.may(case.vm, node).is_err() || scene.board.is_last_resort(case.vm, node) {
                    scene.queue.push(*case);
                } else if case.wish.run == RunWish::Started && scene.starting.get(&node).is_some_and(|count| *count >= STARTS_PER_NODE) {
                    self.because(now, case.vm, format!("{STARTS_PER_NODE} VMs are being started on {}", self.roster.node(node)), out);
                } else {
                    self.place(now, case, node, scene, out);
                }
            }
            Some(Parked { node, why: ParkedWhy::Frozen }) if !asked => {
                self.because(now, case.vm, format!("it stays with {}, which is away", self.roster.node(node)), out);
            }
            Some(Parked { why: ParkedWhy::New, .. }) if !asked && now.longest_since(self.led_since) < NEW_WAITS_MS => self.vms.waits = true,
            _ if case.wish.run == RunWish::Disabled => {}
            Some(_) | None => scene.queue.push(*case),
        }
    }

    /// The source is done: the destination becomes the owner and resumes the guest, or starts it.
    fn hand_over(&mut self, now: Now, case: &Case, to: Seat, scene: &Scene, out: &mut Vec<Action>) {
        let Some(is) = scene.node(to.node).copied() else { return };
        let want = if case.wish.run == RunWish::Started { Want::Run } else { Want::Off };
        let txn = if self.weak == Some(Weakness::MoveWithoutSource) {
            let bare = Case { owner: Owner { seat: None, ..case.owner }, ..*case };
            self.placed(&bare, to.node, &is, want)
        } else {
            self.placed(case, to.node, &is, want)
        };
        self.vms.why.remove(&case.vm);
        self.send(now, Subject::Vm(case.vm), txn.delete(Key::Move(case.vm)), out);
    }

    fn plan_move(&mut self, now: Now, case: &Case, seat: Seat, to: Seat, scene: &Scene, out: &mut Vec<Action>) {
        let failed = self.view.phase(seat.node, case.vm, case.owner.generation) == Some(Phase::MoveFailed);
        let lost = !scene.node(to.node).is_some_and(|is| is.epoch == to.epoch && is.state == NodeState::Online);
        if failed || lost {
            let why = if failed { "it failed" } else { "the destination does not answer" };
            let (vm, from) = (self.roster.vm(case.vm), self.roster.node(seat.node));
            self.say(out, format!("{vm} stays on {from}: its migration to {} is off, {why}", self.roster.node(to.node)));
            self.vms.failed.insert(case.vm, now);
            let txn = self.stays(case, to.node).delete(Key::Move(case.vm));
            self.send(now, Subject::Vm(case.vm), txn, out);
        }
    }

    fn plan_settled(&mut self, now: Now, case: &Case, seat: Seat, scene: &mut Scene, out: &mut Vec<Action>) {
        let order = self.view.order(seat.node, case.vm).map(|(order, _)| order.want);
        let phase = self.view.phase(seat.node, case.vm, case.owner.generation);
        let memory = self.view.memory(case.vm).map(|(memory, _)| memory.clone()).unwrap_or_default();
        if order == Some(Want::Leave) {
            if phase == Some(Phase::StopFailed) && memory.error.is_none() {
                self.fail(now, case, seat, Trouble::DoesNotStop, out);
            }
            return;
        }
        let want = match case.wish.run {
            RunWish::Ignored => Want::HandsOff,
            RunWish::Deleted => Want::Leave,
            RunWish::Stopped | RunWish::Disabled => Want::Off,
            RunWish::Started if memory.error.is_some() => Want::Off,
            RunWish::Started => Want::Run,
        };
        if memory.error.is_some() && case.wish.run == RunWish::Disabled {
            let txn = self.told(case, want).delete(Key::Memory(case.vm));
            return self.send(now, Subject::Vm(case.vm), txn, out);
        }
        if order != Some(want) {
            if !(memory.error == Some(Trouble::DoesNotStop) && want == Want::Off) {
                let txn = self.told(case, want);
                self.send(now, Subject::Vm(case.vm), txn, out);
            }
            return;
        }
        match (want, phase) {
            (Want::Run, Some(Phase::MovedAway)) => self.follow(now, case, scene, out),
            (Want::Run, Some(Phase::StartFailed)) => self.relocate(now, case, seat, scene, out),
            (Want::Off, Some(Phase::StopFailed)) if memory.error.is_none() => self.fail(now, case, seat, Trouble::DoesNotStop, out),
            (Want::Run, Some(Phase::Running)) | (Want::Off, Some(Phase::Off)) => self.plan_resting(now, case, seat, scene, out),
            // A start that is under way is not waited for when its host goes.
            (Want::Run, _) if scene.node(seat.node).is_some_and(|is| is.leaving.is_some() || is.maintenance) => {
                self.plan_leaving(now, case, seat, scene, out);
            }
            (_, _) => {}
        }
    }

    /// Somebody moved it by hand. The node lets go of it as soon as it is seen elsewhere, or is nowhere to be seen.
    fn follow(&mut self, now: Now, case: &Case, scene: &Scene, out: &mut Vec<Action>) {
        self.vms.waits = true;
        let since = *self.vms.moved.entry(case.vm).or_insert(now);
        let found = self.view.runs_foreign(case.vm, scene.nodes.len()).is_some();
        if found || now.longest_since(since) >= FOLLOW_MS {
            self.vms.moved.remove(&case.vm);
            let txn = self.told(case, Want::Leave);
            self.send(now, Subject::Vm(case.vm), txn, out);
        }
    }

    /// All attempts on this node failed: another node, or a person.
    fn relocate(&mut self, now: Now, case: &Case, seat: Seat, scene: &Scene, out: &mut Vec<Action>) {
        let mut memory = self.view.memory(case.vm).map(|(memory, _)| memory.clone()).unwrap_or_default();
        memory.tried.push(seat.node);
        let elsewhere = scene.board.choose(case.vm, &memory.tried, None);
        if memory.relocated >= case.wish.max_relocate || elsewhere.is_err() {
            return self.fail(now, case, seat, Trouble::StartsNowhere, out);
        }
        memory.relocated += 1;
        self.say(
            out,
            format!("{} does not start on {}: it is tried on another node", self.roster.vm(case.vm), self.roster.node(seat.node)),
        );
        let txn = self.told(case, Want::Leave).put(Key::Memory(case.vm), Value::Memory(memory));
        self.send(now, Subject::Vm(case.vm), txn, out);
    }

    fn fail(&mut self, now: Now, case: &Case, seat: Seat, trouble: Trouble, out: &mut Vec<Action>) {
        let mut memory = self.view.memory(case.vm).map(|(memory, _)| memory.clone()).unwrap_or_default();
        memory.error = Some(trouble);
        let (vm, node) = (self.roster.vm(case.vm), self.roster.node(seat.node));
        self.say(
            out,
            match trouble {
                Trouble::StartsNowhere => format!("{vm} is in error: it does not start on {node}, and no other attempt is allowed"),
                Trouble::DoesNotStop => format!("{vm} is in error: it does not stop on {node}"),
            },
        );
        let txn = self.told(case, Want::Off).put(Key::Memory(case.vm), Value::Memory(memory));
        self.send(now, Subject::Vm(case.vm), txn, out);
    }

    /// It is as it should be, where it is. Should it be there?
    fn plan_resting(&mut self, now: Now, case: &Case, seat: Seat, scene: &mut Scene, out: &mut Vec<Action>) {
        let vm = case.vm;
        let Some(is) = scene.node(seat.node).copied() else { return };
        if is.state != NodeState::Online {
            return;
        }
        let memory = self.view.memory(vm).map(|(memory, _)| memory.clone()).unwrap_or_default();
        let at_home = memory.home == Some(seat.node);
        if memory.error.is_some() {
            return;
        }
        if memory.relocated > 0 || !memory.tried.is_empty() || memory.target.is_some() || at_home {
            let kept = super::super::record::Memory { home: memory.home.filter(|_| !at_home), ..Default::default() };
            let txn = record_memory(self.as_leader(), vm, kept);
            return self.send(now, Subject::Vm(vm), txn, out);
        }
        if is.leaving.is_some() || is.maintenance {
            return self.plan_leaving(now, case, seat, scene, out);
        }
        if let Some((wish, _)) = self.view.move_wish(vm) {
            let wish = *wish;
            return self.plan_asked(now, case, seat, wish, scene, out);
        }
        self.vms.why.remove(&vm);
        if case.wish.run == RunWish::Started {
            self.improve(now, case, seat, memory.home, scene, out);
        }
    }

    /// A person wants it elsewhere.
    fn plan_asked(
        &mut self,
        now: Now,
        case: &Case,
        seat: Seat,
        wish: super::super::record::MoveWish,
        scene: &mut Scene,
        out: &mut Vec<Action>,
    ) {
        let vm = case.vm;
        let refused = if wish.to == seat.node { Err("it is there".to_owned()) } else { scene.board.may(vm, wish.to) };
        if let Err(why) = refused {
            let (vm, to) = (self.roster.vm(vm), self.roster.node(wish.to));
            self.say(out, format!("{vm} does not go to {to}: {why}"));
            let txn = self.as_leader().delete(Key::Move(case.vm));
            return self.send(now, Subject::Vm(case.vm), txn, out);
        }
        if wish.how == MoveHow::Live && case.wish.run == RunWish::Started {
            return self.send_away(now, case, seat, wish.to, None, scene, out);
        }
        let memory = super::super::record::Memory { target: Some(wish.to), ..Default::default() };
        let txn = self.told(case, Want::Leave).put(Key::Memory(vm), Value::Memory(memory)).delete(Key::Move(vm));
        self.send(now, Subject::Vm(vm), txn, out);
    }

    /// Its node goes away for a while: the policy says what becomes of it.
    fn plan_leaving(&mut self, now: Now, case: &Case, seat: Seat, scene: &mut Scene, out: &mut Vec<Action>) {
        let Some(is) = scene.node(seat.node).copied() else { return };
        let policy = self.view.settings().map_or(ShutdownPolicy::Conditional, |settings| settings.shutdown);
        let parting = is.leaving.map_or(Parting::Migrate, |farewell| life::parting(policy, farewell));
        let off = case.wish.run != RunWish::Started;
        let mut memory = super::super::record::Memory::default();
        match parting {
            Parting::Freeze => memory.park = true,
            Parting::Failover => {}
            Parting::Migrate => {
                if off && case.wish.run == RunWish::Disabled && is.leaving.is_none() {
                    return;
                }
                memory.home = Some(seat.node);
                match scene.board.choose(case.vm, &[seat.node], None) {
                    Ok(_) if off => {}
                    Ok(_) if self.failed_lately(now, case.vm) && is.leaving.is_none() => return,
                    Ok(to) if !self.failed_lately(now, case.vm) => return self.send_away(now, case, seat, to, Some(seat.node), scene, out),
                    Ok(_) => {}
                    Err(why) if is.leaving.is_none() => return self.because(now, case.vm, why, out),
                    // It cannot stay either.
                    Err(_) => {}
                }
            }
        }
        let txn = self.told(case, Want::Leave).put(Key::Memory(case.vm), Value::Memory(memory));
        self.send(now, Subject::Vm(case.vm), txn, out);
    }

    fn failed_lately(&mut self, now: Now, vm: VmNo) -> bool {
        let lately = self.vms.failed.get(&vm).is_some_and(|at| now.longest_since(*at) < MOVE_AGAIN_MS);
        self.vms.waits |= lately;
        lately
    }

    /// A strict rule that is broken, a node that it likes better, its home after a maintenance: one move at a time.
    fn improve(&mut self, now: Now, case: &Case, seat: Seat, home: Option<NodeNo>, scene: &mut Scene, out: &mut Vec<Action>) {
        let vm = case.vm;
        let failback = case.wish.failback && self.view.settings().is_some_and(|settings| settings.failback);
        if scene.moves > 0 || !scene.queue.is_empty() || self.failed_lately(now, vm) {
            self.vms.waits |= scene.moves > 0 || !scene.queue.is_empty();
            return;
        }
        let broken = scene.board.broken_at(vm, seat.node);
        let to = match (&broken, home) {
            (Some(why), _) => match scene.board.choose(vm, &[seat.node], None) {
                Ok(to) => {
                    self.say(out, format!("{} must leave {}: {why}", self.roster.vm(vm), self.roster.node(seat.node)));
                    Some(to)
                }
                Err(_) => return self.because(now, vm, format!("on {}, against its rules: {why}", self.roster.node(seat.node)), out),
            },
            (None, Some(home)) if failback && scene.board.may(vm, home).is_ok() => Some(home),
            (None, _) if failback => {
                let better = scene.board.choose(vm, &[], Some(seat.node)).ok();
                let best = scene.board.choose(vm, &[], None).ok();
                let likes = |node: NodeNo| scene.board.preference(vm, node);
                better.and(best).filter(|best| likes(*best) > likes(seat.node))
            }
            (None, _) => None,
        };
        if let Some(to) = to {
            self.send_away(now, case, seat, to, None, scene, out);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one look's values, passed on")]
    fn send_away(&mut self, now: Now, case: &Case, seat: Seat, to: NodeNo, home: Option<NodeNo>, scene: &mut Scene, out: &mut Vec<Action>) {
        let Some(is) = scene.node(to).copied() else { return };
        let at_once = scene.leaving.entry(seat.node).or_default();
        if *at_once >= MOVES_PER_NODE {
            self.vms.waits = true;
            return;
        }
        scene.moves += 1;
        if is.ready == Ready::ArmsFirst {
            self.vms.waits = true;
            return self.ask_to_arm(now, to, out);
        }
        *at_once += 1;
        scene.board.set_heir(case.vm, to);
        self.vms.why.remove(&case.vm);
        let (vm, from) = (self.roster.vm(case.vm), self.roster.node(seat.node));
        self.say(out, format!("{vm} moves from {from} to {}", self.roster.node(to)));
        let mut txn = self.moving(case, seat, to, &is);
        if home.is_some() {
            txn = record_memory(txn, case.vm, super::super::record::Memory { home, ..Default::default() });
        }
        self.send(now, Subject::Vm(case.vm), txn, out);
    }
}
