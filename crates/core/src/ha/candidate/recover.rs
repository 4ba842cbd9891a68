//! The queue of VMs that have no node: by priority, a few at a time, where rules and room allow.

use super::super::clock::Now;
use super::super::ready::Ready;
use super::super::record::{Key, NodeNo, RunWish, Want};
use super::super::turns::{STARTS_MAX, STARTS_PER_NODE};
use super::super::vigil::NodeNow;
use super::scene::Scene;
use super::write::Case;
use super::{Action, Candidate, Subject};

/// A node that has not armed itself in this time is passed over, ms; and asked again later.
const ARMS_MS: u64 = 15_000;
const ARMS_AGAIN_MS: u64 = 120_000;

impl Candidate {
    pub(super) fn recover(&mut self, now: Now, scene: &mut Scene, out: &mut Vec<Action>) {
        let mut queue = std::mem::take(&mut scene.queue);
        queue.sort_by_key(|case| (case.wish.priority, case.vm));
        let under_way = self.vms.recovering.iter().filter_map(|vm| self.view.wish(*vm).map(|(wish, _)| wish.priority)).min();
        let lowest = queue.iter().map(|case| case.wish.priority).chain(under_way).min();
        self.vms.turns.look(lowest, now);
        for case in &queue {
            if !self.vms.turns.has_come(case.wish.priority, now) {
                self.because(now, case.vm, "VMs of a higher priority come first".into(), out);
                continue;
            }
            if self.starting(scene) >= STARTS_MAX {
                self.because(now, case.vm, format!("{STARTS_MAX} VMs are being started"), out);
                continue;
            }
            self.find_place(now, case, scene, out);
        }
        scene.queue = queue;
    }

    fn starting(&self, scene: &Scene) -> usize {
        scene.starting.values().sum()
    }

    fn find_place(&mut self, now: Now, case: &Case, scene: &mut Scene, out: &mut Vec<Action>) {
        let memory = self.view.memory(case.vm).map(|(memory, _)| memory.clone()).unwrap_or_default();
        let nodes = scene.nodes.len();
        let moved = self.view.runs_foreign(case.vm, nodes);
        let asked = self.view.move_wish(case.vm).map(|(wish, _)| wish.to);
        if let Some(node) = moved {
            // It runs there already, by somebody's hand: that node becomes its owner and no other one starts it.
            if scene.node(node).is_some_and(NodeNow::takes_vms) {
                if scene.node(node).is_some_and(|is| is.ready != Ready::ArmsFirst) {
                    let (vm, node) = (self.roster.vm(case.vm), self.roster.node(node));
                    self.say(out, format!("{vm} was moved to {node} by hand: that is where it belongs now"));
                }
                self.place(now, case, node, scene, out);
            }
            return;
        }
        let full: Vec<NodeNo> = scene.starting.iter().filter(|(_, count)| **count >= STARTS_PER_NODE).map(|(node, _)| *node).collect();
        let prefer = memory.target.or(asked);
        let slow = self.slow_to_arm(now, scene);
        let avoid: Vec<NodeNo> = memory.tried.iter().copied().chain(slow).collect();
        let first = scene.board.choose(case.vm, &avoid, prefer);
        let anywhere = || scene.board.choose(case.vm, &[], prefer);
        match first.or_else(|why| if avoid.is_empty() { Err(why) } else { anywhere() }) {
            Err(why) => self.wait_for_place(now, case, why, out),
            Ok(node) if full.contains(&node) && case.wish.run == RunWish::Started => {
                let avoid: Vec<NodeNo> = avoid.iter().copied().chain(full).collect();
                match scene.board.choose(case.vm, &avoid, prefer) {
                    // Not a worse node only because the better one is busy for a moment.
                    Ok(other) if scene.board.preference(case.vm, other) == scene.board.preference(case.vm, node) => {
                        self.place(now, case, other, scene, out);
                    }
                    Ok(_) | Err(_) => {
                        self.because(now, case.vm, format!("{STARTS_PER_NODE} VMs are being started on {}", self.roster.node(node)), out)
                    }
                }
            }
            Ok(node) => self.place(now, case, node, scene, out),
        }
    }

    /// What it leaves behind must not hold its old node up: that one closes its epoch, or is proved to be empty, only without it.
    fn wait_for_place(&mut self, now: Now, case: &Case, why: String, out: &mut Vec<Action>) {
        self.because(now, case.vm, why, out);
        if case.owner.seat.is_some() {
            let txn = self.let_go(case, None);
            self.send(now, Subject::Vm(case.vm), txn, out);
        }
    }

    pub(super) fn ask_to_arm(&mut self, now: Now, node: NodeNo, out: &mut Vec<Action>) {
        if !self.view.has(Key::ArmWanted(node)) && !self.busy.contains(&Subject::Arm(node)) {
            let txn = self.arm_wanted(node);
            self.send(now, Subject::Arm(node), txn, out);
        }
    }

    /// A node that has answered and got nothing is not to stay armed: nobody waits for it any more.
    pub(super) fn take_back_asks(&mut self, now: Now, scene: &Scene, out: &mut Vec<Action>) {
        if scene.moves > 0 || !scene.queue.is_empty() {
            return;
        }
        for (node, is) in (0u16..).map(NodeNo).zip(&scene.nodes) {
            let asked = self.view.has(Key::ArmWanted(node)) && !self.busy.contains(&Subject::Arm(node));
            if asked && is.ready != Ready::ArmsFirst {
                let txn = self.as_leader().delete(Key::ArmWanted(node));
                self.send(now, Subject::Arm(node), txn, out);
            }
        }
    }

    fn slow_to_arm(&mut self, now: Now, scene: &Scene) -> Vec<NodeNo> {
        let waits = |node: NodeNo| scene.node(node).is_none_or(|is| is.ready == Ready::ArmsFirst);
        self.vms.asked_to_arm.retain(|node, at| waits(*node) && now.longest_since(*at) < ARMS_AGAIN_MS);
        self.vms.asked_to_arm.iter().filter(|(_, at)| now.longest_since(**at) >= ARMS_MS).map(|(node, _)| *node).collect()
    }

    /// A node for a VM that has none; it is armed first.
    pub(super) fn place(&mut self, now: Now, case: &Case, node: NodeNo, scene: &mut Scene, out: &mut Vec<Action>) {
        let Some(is) = scene.node(node).copied() else { return };
        if is.ready == Ready::ArmsFirst {
            self.vms.asked_to_arm.entry(node).or_insert(now);
            self.vms.why.insert(case.vm, format!("{} arms its watchdog first", self.roster.node(node)));
            return self.ask_to_arm(now, node, out);
        }
        let want = if case.wish.run == RunWish::Started { Want::Run } else { Want::Off };
        scene.board.set_owner(case.vm, node);
        *scene.starting.entry(node).or_default() += usize::from(want == Want::Run);
        if want == Want::Run {
            self.vms.recovering.insert(case.vm);
            self.vms.placing.insert(case.vm, node);
        }
        self.vms.why.remove(&case.vm);
        self.say(out, format!("{} is placed on {}", self.roster.vm(case.vm), self.roster.node(node)));
        let txn = self.placed(case, node, &is, want).delete(Key::Move(case.vm));
        self.send(now, Subject::Vm(case.vm), txn, out);
    }
}
