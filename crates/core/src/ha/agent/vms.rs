//! One VM on this node: from its order to libvirt's calls. One call and one transaction at a time.

use std::collections::BTreeMap;

use vmkeep_types::ids::{Generation, Revision};

use super::super::clock::Now;
use super::super::record::{Answer, Claim, Compare, Key, Order, Outcome, Phase, Seen, Txn, TxnId, Value, VmNo, Want};
use super::super::weakness::Weakness;
use super::{ANSWER_MS, Action, Agent, Arming, Call, CallEnd, Domain, Gone};

/// Between two attempts to start a VM, ms.
const AGAIN_MS: u64 = 2_000;

/// Stops that may fail before a person is called.
const STOPS_MAX: u8 = 3;

/// A guest that arrives and has no order is ended after, ms.
const STRAY_MS: u64 = 15_000;

/// A VM that has run for so long starts with a fresh count of attempts, ms.
const RAN_WELL_MS: u64 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Is {
    Unknown,
    Absent,
    There(Domain),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Claim(Generation),
    Stopped(Generation),
    Seen(Seen),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Local {
    order: Option<(Order, Revision)>,
    is: Is,
    call: Option<(u64, Call)>,
    asked: Option<(TxnId, Asked, Now)>,
    reported: Option<Seen>,
    /// The promise was written: nothing of this generation or an older one is started any more.
    stopped: Option<Generation>,
    /// Failed attempts to start this generation here.
    tries: u8,
    stops: u8,
    not_before: Option<Now>,
    running_since: Option<Now>,
    /// Of the order whose migration failed.
    move_failed: Option<Revision>,
    /// Since when there is a domain that does not run yet.
    arrived_at: Option<Now>,
    /// It left by hand.
    moved_away: bool,
}

impl Local {
    fn new(is: Is) -> Self {
        Self {
            order: None,
            is,
            call: None,
            asked: None,
            reported: None,
            stopped: None,
            tries: 0,
            stops: 0,
            not_before: None,
            running_since: None,
            move_failed: None,
            arrived_at: None,
            moved_away: false,
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.order.is_some()
    }

    fn told_foreign(&self) -> bool {
        self.reported.is_some_and(|seen| seen.phase == Phase::Foreign)
    }

    fn idle(&self) -> bool {
        self.order.is_none() && self.is == Is::Absent && self.call.is_none() && self.asked.is_none() && !self.told_foreign()
    }
}

/// What a VM needs next.
enum Next {
    Nothing,
    Claim(Generation),
    Promise(Generation),
    Report(Phase),
    Call(Call),
}

impl Agent {
    pub(super) fn take_orders(&mut self, orders: &BTreeMap<VmNo, (Order, Revision)>) {
        let is = if self.domains_heard.is_some() { Is::Absent } else { Is::Unknown };
        for (vm, local) in &mut self.vms {
            if !orders.contains_key(vm) {
                local.order = None;
            }
        }
        for (vm, (order, revision)) in orders {
            let local = self.vms.entry(*vm).or_insert_with(|| Local::new(is));
            let before = local.order.map(|(order, _)| order);
            if before.is_none_or(|before| before.generation < order.generation) {
                (local.tries, local.stops, local.not_before, local.moved_away) = (0, 0, None, false);
            }
            if before.is_some_and(|before| before.want != order.want) {
                (local.tries, local.stops) = (0, 0);
            }
            local.order = Some((*order, *revision));
        }
    }

    pub(super) fn has_domains(&self) -> bool {
        self.vms.values().any(|local| matches!(local.is, Is::There(_)) || local.call.is_some())
    }

    pub(super) fn forget_vms(&mut self) {
        self.vms.clear();
    }

    pub(super) fn domains(&mut self, now: Now, domains: &[(VmNo, Domain)], _out: &mut [Action]) {
        self.domains_heard = Some(now);
        for local in self.vms.values_mut().filter(|local| local.call.is_none()) {
            local.is = Is::Absent;
        }
        for (vm, domain) in domains {
            let local = self.vms.entry(*vm).or_insert_with(|| Local::new(Is::Absent));
            if local.call.is_none() {
                local.is = Is::There(*domain);
            }
        }
    }

    pub(super) fn domain(&mut self, vm: VmNo, is: Result<Domain, Gone>, now: Now) {
        if self.domains_heard.is_none() {
            return;
        }
        let local = self.vms.entry(vm).or_insert_with(|| Local::new(Is::Absent));
        let asked_to_go = matches!(local.call, Some((_, Call::Stop | Call::Kill | Call::MoveTo(_))));
        match is {
            Ok(domain) => {
                local.is = Is::There(domain);
                local.arrived_at = local.arrived_at.or(Some(now));
                if matches!(domain, Domain::Running(_)) {
                    local.running_since = local.running_since.or(Some(now));
                }
            }
            Err(gone) => {
                let ran_well = local.running_since.take().is_some_and(|at| now.longest_since(at) >= RAN_WELL_MS);
                let was_running = matches!(local.is, Is::There(Domain::Running(_)));
                local.is = Is::Absent;
                local.arrived_at = None;
                if gone == Gone::Moved && !asked_to_go && was_running {
                    local.moved_away = true;
                } else if !asked_to_go && was_running {
                    local.tries = if ran_well { 0 } else { local.tries.saturating_add(1) };
                    local.not_before = Some(now);
                }
            }
        }
    }

    pub(super) fn called(&mut self, now: Now, id: u64, vm: VmNo, end: CallEnd, out: &mut Vec<Action>) {
        let Some(local) = self.vms.get_mut(&vm) else { return };
        let Some((_, call)) = local.call.take_if(|(asked, _)| *asked == id) else { return };
        out.push(Action::DropIntent(vm));
        if end == CallEnd::Done {
            return;
        }
        match call {
            Call::Start(_) | Call::Resume(_) => {
                local.tries = local.tries.saturating_add(1);
                local.not_before = Some(now);
            }
            Call::Stop | Call::Kill => {
                local.stops = local.stops.saturating_add(1);
                local.not_before = Some(now);
            }
            Call::MoveTo(_) => local.move_failed = local.order.map(|(_, revision)| revision),
        }
    }

    pub(super) fn vm_answered(&mut self, now: Now, answer: &Answer, out: &mut Vec<Action>) {
        let asked = |local: &Local| local.asked.is_some_and(|(id, ..)| id == answer.id);
        let Some((vm, local)) = self.vms.iter_mut().find(|(_, local)| asked(local)) else { return };
        let (vm, (_, what, sent)) = (*vm, local.asked.take().expect("found by it"));
        let done = answer.outcome == Outcome::Done;
        match what {
            Asked::Seen(seen) if done => local.reported = Some(seen),
            Asked::Stopped(generation) if done => {
                local.stopped = local.stopped.max(Some(generation));
                local.reported = None;
            }
            Asked::Claim(generation) if done => self.claimed(now, vm, generation, sent, out),
            Asked::Seen(_) | Asked::Stopped(_) | Asked::Claim(_) => self.stale = true,
        }
    }

    /// The claim was granted. It counts only for what is still ordered, and only for a while.
    fn claimed(&mut self, now: Now, vm: VmNo, generation: Generation, sent: Now, out: &mut Vec<Action>) {
        let in_time = self.fresh(now, Some(sent)) && self.fresh(now, self.renewed);
        let Some(local) = self.vms.get(&vm) else { return };
        let ordered = local.order.is_some_and(|(o, _)| o.generation == generation && o.want == Want::Run);
        if !in_time || !ordered || local.call.is_some() {
            return;
        }
        let call = match local.is {
            Is::Absent => Call::Start(generation),
            Is::There(Domain::Arrived(_)) => Call::Resume(generation),
            Is::There(Domain::Running(old)) if old != generation => {
                self.vms.get_mut(&vm).expect("looked up above").is = Is::There(Domain::Running(generation));
                return out.push(Action::Relabel(vm, generation));
            }
            Is::There(_) | Is::Unknown => return,
        };
        self.call(vm, call, out);
    }

    fn call(&mut self, vm: VmNo, call: Call, out: &mut Vec<Action>) {
        self.next += 1;
        let id = self.next;
        if let Some(local) = self.vms.get_mut(&vm) {
            local.call = Some((id, call));
            out.extend([Action::NoteIntent(vm), Action::Call { id, vm, call }]);
        }
    }

    pub(super) fn act_on_vms(&mut self, now: Now, out: &mut Vec<Action>) {
        self.vms.retain(|_, local| !local.idle());
        let vms: Vec<VmNo> = self.vms.keys().copied().collect();
        for vm in vms {
            let local = self.vms.get_mut(&vm).expect("listed above");
            if local.asked.is_some_and(|(.., sent)| now.longest_since(sent) > ANSWER_MS) {
                local.asked = None;
            }
            if local.asked.is_some() {
                continue;
            }
            let local = &self.vms[&vm];
            match self.next(now, local) {
                Next::Nothing => {}
                Next::Claim(generation) if self.weak == Some(Weakness::StartWithoutClaim) => {
                    self.claimed(now, vm, generation, now, out);
                }
                Next::Claim(generation) => self.claim(now, vm, generation, out),
                Next::Promise(generation) => {
                    let id = self.id();
                    let key = Key::Stopped(self.me, vm, generation);
                    let txn = Txn::new(id).put(key, Value::Mark).delete(Key::Run(self.me, vm)).delete(Key::Seen(self.me, vm));
                    self.ask_txn(now, vm, Asked::Stopped(generation), txn, out);
                }
                Next::Report(phase) => {
                    let generation = local.order.map_or(Generation(0), |(order, _)| order.generation);
                    let seen = Seen { generation, phase };
                    if local.reported != Some(seen) {
                        let id = self.id();
                        let txn = self.own_epoch(Txn::new(id)).put(Key::Seen(self.me, vm), Value::Seen(seen));
                        self.ask_txn(now, vm, Asked::Seen(seen), txn, out);
                    }
                }
                Next::Call(call) => self.call(vm, call, out),
            }
        }
    }

    fn ask_txn(&mut self, now: Now, vm: VmNo, asked: Asked, txn: Txn, out: &mut Vec<Action>) {
        if let Some(local) = self.vms.get_mut(&vm) {
            local.asked = Some((txn.id, asked, now));
            out.push(Action::Txn(txn));
        }
    }

    fn claim(&mut self, now: Now, vm: VmNo, generation: Generation, out: &mut Vec<Action>) {
        let Some(revision) = self.vms[&vm].order.map(|(_, revision)| revision) else { return };
        let id = self.id();
        // The order was written with the owner record: both have one revision.
        let txn = self.own_epoch(Txn::new(id)).when(Compare::Revision(Key::Owner(vm), revision));
        let txn = txn.when(Compare::Absent(Key::Stopped(self.me, vm, generation)));
        let said = if self.arming == Arming::Never { Key::Unusable(self.me, self.epoch) } else { Key::Armed(self.me, self.epoch) };
        let txn = txn.when(Compare::Present(said));
        let claim = Claim { generation, epoch: self.epoch, start: id.0 };
        self.ask_txn(now, vm, Asked::Claim(generation), txn.put(Key::Run(self.me, vm), Value::Claim(claim)), out);
    }

    fn next(&self, now: Now, local: &Local) -> Next {
        if self.weak == Some(Weakness::StoppedInFlight)
            && let Some((Order { generation, want: Want::Leave, .. }, _)) = local.order
            && matches!(local.call, Some((_, Call::Start(_))))
            && local.stopped < Some(generation)
        {
            return Next::Promise(generation);
        }
        if local.call.is_some() || local.is == Is::Unknown {
            return Next::Nothing;
        }
        let waits = local.not_before.is_some_and(|at| now.longest_since(at) < AGAIN_MS);
        let Some((order, revision)) = local.order else { return unordered(now, local) };
        let gone_for_good = local.stopped >= Some(order.generation);
        match (order.want, local.is) {
            (Want::HandsOff | Want::MoveIn, _) => Next::Nothing,
            (Want::Run, Is::Absent) if gone_for_good => Next::Nothing,
            (Want::Run, Is::Absent) if local.moved_away => Next::Report(Phase::MovedAway),
            (Want::Run, Is::Absent) if local.tries > order.max_restart => Next::Report(Phase::StartFailed),
            (Want::Run, Is::There(Domain::Running(generation))) if generation == order.generation => Next::Report(Phase::Running),
            (Want::Run, Is::There(Domain::Incoming(_))) => Next::Call(Call::Kill),
            (Want::Run, _) if waits || !matches!(self.arming, Arming::Yes(_) | Arming::Never) || !self.fresh(now, self.renewed) => {
                Next::Nothing
            }
            (Want::Run, _) => Next::Claim(order.generation),
            (Want::Off | Want::Leave, Is::There(_)) if local.stops >= STOPS_MAX => Next::Report(Phase::StopFailed),
            (Want::Off | Want::Leave, Is::There(_)) if waits => Next::Nothing,
            (Want::Off | Want::Leave, Is::There(Domain::Running(_))) => Next::Call(Call::Stop),
            (Want::Off | Want::Leave, Is::There(_)) => Next::Call(Call::Kill),
            (Want::Off, _) => Next::Report(Phase::Off),
            (Want::MoveOut(_), Is::There(_)) if local.move_failed == Some(revision) => Next::Report(Phase::MoveFailed),
            (Want::MoveOut(to), Is::There(Domain::Running(_))) => Next::Call(Call::MoveTo(to)),
            // What has just arrived runs here first.
            (Want::MoveOut(_), Is::There(Domain::Arrived(_))) => Next::Report(Phase::MoveFailed),
            (Want::MoveOut(_), Is::There(Domain::Incoming(_))) => Next::Nothing,
            (Want::Leave | Want::MoveOut(_), _) if gone_for_good => Next::Nothing,
            (Want::Leave | Want::MoveOut(_), _) => Next::Promise(order.generation),
        }
    }
}

/// A domain of a VM that this node has no order for: a copy whose migration was called off is ended, one that runs is somebody's.
fn unordered(now: Now, local: &Local) -> Next {
    match local.is {
        // Its order may be on its way.
        Is::There(Domain::Arrived(_) | Domain::Incoming(_)) if local.arrived_at.is_some_and(|at| now.longest_since(at) < STRAY_MS) => {
            Next::Nothing
        }
        Is::There(Domain::Arrived(_) | Domain::Incoming(_)) => Next::Call(Call::Kill),
        Is::There(Domain::Running(_)) => Next::Report(Phase::Foreign),
        Is::Absent if local.told_foreign() => Next::Report(Phase::Off),
        Is::Absent | Is::Unknown => Next::Nothing,
    }
}
