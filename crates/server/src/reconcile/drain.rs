//! Emptying a node, as the leader drives it: its VMs are told to migrate, a few at once, until none is left or those that are left
//! cannot go.
//!
//! ```text
//!  drain/NODE ──┬─ a VM that can go, and room in the budget ──► migrate/UID + its operation, noted in the drain ──► (migrate.rs)
//!               └─ nobody waits, nobody is under way ─────────► record gone, operation done or failed with each VM's reason
//! ```
//! What is to be done next is read from the records alone, one write per look, so that a leader that was killed changes nothing.
//! A VM that did not go does not stop the others; what may pass is tried again when all others are through. New VMs stay away
//! because the node is cordoned.

use vmkeep_core::place::leave;
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::drain::{Drain, Told, Whom};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::host::NodeHealth;
use vmkeep_types::ids::{OperationId, VmId};
use vmkeep_types::migration::{MigrateOptions, Stop};
use vmkeep_types::name::Name;
use vmkeep_types::node::Closure;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::order::Progress;

use super::ha::policy;
use super::migrate::send::{Sent, send};
use super::migrate::{self, Guest};
use super::view::{ClusterView, Kept};
use super::vm::{ended, op_key, replace_op};

/// A VM is told to go so often: the third failure of what may pass is taken for lasting.
const TRIES_MAX: u32 = 3;
/// VMs that are told one by one; the others are counted.
const TOLD_MAX: usize = 20;

/// How the VMs of a node stand.
#[derive(Default)]
struct Standing {
    /// Can be told at once, the next one first.
    ready: Vec<VmId>,
    /// Something must end before they can be told; name and what.
    busy: Vec<(Name, String)>,
    /// On their way, from here or to here; name and what they wait for, if they wait.
    under_way: Vec<(Name, Option<String>)>,
    /// Did not go; name and why.
    stuck: Vec<(Name, String)>,
    /// Those of them that may be told again.
    again: Vec<VmId>,
}

impl Standing {
    fn left(&self) -> usize {
        self.ready.len() + self.busy.len() + self.under_way.len() + self.stuck.len()
    }
}

/// The next write of a drain.
pub fn next(view: &ClusterView, node: &Name, now: jiff::Timestamp) -> Option<Txn> {
    let kept = view.drains.get(node)?;
    let drain = &kept.value;
    let Some(op) = view.ops.get(&drain.op).filter(|op| !op.value.state.is_over()) else {
        return Some(gone(kept));
    };
    if view.fleet().seat(node).is_none() {
        // Not removed: its facts are about to come.
        let over = failed(&op.value, Error::conflict("the node was removed"), now);
        return (!view.joined.contains(node)).then(|| end(kept, op, &over));
    }
    let standing = standing(view, drain);
    let late = || drain.deadline.is_some_and(|deadline| now >= deadline).then_some(Stop::Late);
    let stop = drain.stop.clone().or_else(late);
    if stop.is_none() && standing.under_way.len() < drain.at_once as usize {
        let retry = || standing.again.first().filter(|_| standing.under_way.is_empty() && standing.busy.is_empty());
        if let Some(txn) = standing.ready.first().or_else(retry).and_then(|vm| tell(view, kept, *vm, now)) {
            return Some(txn);
        }
    }
    if standing.under_way.is_empty() && (stop.is_some() || standing.busy.is_empty()) {
        return Some(end(kept, op, &over(view, &op.value, drain, standing, stop, now)));
    }
    let told = Operation {
        state: OpState::Running,
        steps: steps(view, drain),
        progress: Some(progress(view, drain, &standing)),
        blocked: blocked(view, node, &standing),
        ..op.value.clone()
    };
    (told != op.value).then(|| replace_op(op, &told))
}

fn gone(kept: &Kept<Drain>) -> Txn {
    let key = keys::drain(&kept.value.node);
    Txn::default().when(Compare::ModifiedAt(key.clone(), kept.modified)).then(Op::Delete(key))
}

fn end(kept: &Kept<Drain>, op: &Kept<Operation>, over: &Operation) -> Txn {
    gone(kept).when(Compare::ModifiedAt(op_key(over), op.modified)).then(typed::put(op_key(over), over))
}

fn standing(view: &ClusterView, drain: &Drain) -> Standing {
    let mut all = Standing::default();
    let Some(seat) = view.fleet().seat(&drain.node) else { return all };
    let waits_for = |id: &VmId| view.ops.get(&view.moves.get(id)?.value.op)?.value.blocked.clone();
    let goes = |id: &&VmId| drain.whom == Whom::All || view.vms.get(*id).is_some_and(|vm| vm.value.spec.ha.is_some());
    all.under_way.extend(seat.coming.iter().filter(goes).map(|id| (name(view, *id), waits_for(id))));
    for id in seat.owned.iter().filter(goes) {
        let told = drain.told.get(id).map(|told| (told, view.ops.get(&told.op).map(|op| &op.value)));
        let leaving = view.vms.get(id).is_some_and(|vm| vm.value.leaving.is_some());
        match told {
            _ if view.moves.contains_key(id) => all.under_way.push((name(view, *id), waits_for(id))),
            _ if leaving => all.busy.push((name(view, *id), "it is being deleted".into())),
            None => match migrate::guest(view, *id) {
                Guest::Now(_) => all.ready.push(*id),
                Guest::Busy(why) => all.busy.push((name(view, *id), why.into())),
            },
            // Its migration is gone, and the end of its operation is about to come.
            Some((_, Some(op))) if !op.state.is_over() => all.under_way.push((name(view, *id), None)),
            Some((told, op)) => {
                let error = op.and_then(|op| op.error.as_ref());
                if error.is_some_and(|error| may_pass(error.code, told.tries)) {
                    all.again.push(*id);
                }
                all.stuck.push((name(view, *id), error.map_or("it came back", |error| error.message.as_str()).into()));
            }
        }
    }
    // Handed over, and not yet resumed there.
    let open = |told: &Told| view.ops.get(&told.op).is_some_and(|op| !op.value.state.is_over());
    let arriving = drain.told.iter().filter(|(id, told)| !seat.has(**id) && open(told));
    all.under_way.extend(arriving.map(|(id, _)| (name(view, *id), waits_for(id))));
    let gone = || drain.told.keys().filter(|id| !seat.owned.contains(id) || view.moves.contains_key(id));
    let fleet = view.fleet();
    // Those that belong to one that goes follow before others take the room.
    let follows = |id: &VmId| fleet.guest(*id).is_some_and(|guest| leave::follows(guest, gone().filter_map(|id| fleet.guest(*id))));
    all.ready.sort_by_cached_key(|id| (!follows(id), name(view, *id)));
    all.again.sort_by_cached_key(|id| name(view, *id));
    // Told by name: ids are random.
    all.busy.sort();
    all.under_way.sort();
    all.stuck.sort();
    all
}

/// Does another try make sense, after so many?
fn may_pass(code: Code, tries: u32) -> bool {
    match code {
        Code::Unavailable | Code::Refused | Code::Internal => tries < TRIES_MAX,
        // Others have gone since, and may have made room.
        Code::NoCapacity => tries < 2,
        _ => false,
    }
}

fn name(view: &ClusterView, id: VmId) -> Name {
    view.vms.get(&id).map_or_else(|| Name::known("unknown"), |vm| vm.value.spec.name.clone())
}

/// VMs that have another node by now.
fn moved<'a>(view: &'a ClusterView, drain: &'a Drain) -> impl Iterator<Item = (VmId, &'a Operation)> {
    let done = |(id, told): (&VmId, &Told)| {
        let op = view.ops.get(&told.op).map(|op| &op.value).filter(|op| op.state == OpState::Done)?;
        Some((*id, op))
    };
    drain.told.iter().filter_map(done).filter(|(id, _)| view.owners.get(id).is_none_or(|owner| owner.value.node != drain.node))
}

fn progress(view: &ClusterView, drain: &Drain, standing: &Standing) -> Progress {
    let done = moved(view, drain).count();
    Progress { done: done as u64, total: (done + standing.left()) as u64 }
}

/// What became of each VM so far, in the order in which it came.
fn steps(view: &ClusterView, drain: &Drain) -> Vec<String> {
    let mut ends: Vec<(Option<jiff::Timestamp>, OperationId, String)> = Vec::new();
    for (id, told) in &drain.told {
        let Some(op) = view.ops.get(&told.op).map(|op| &op.value).filter(|op| op.state.is_over()) else { continue };
        let what = match &op.error {
            Some(error) => format!("stays: {}", error.message),
            None => op.steps.last().cloned().unwrap_or_else(|| "has moved".into()),
        };
        ends.push((op.ended_at, op.id, format!("{} {what}", name(view, *id))));
    }
    ends.sort();
    ends.into_iter().map(|(_, _, words)| words).collect()
}

/// What keeps VMs at this moment.
fn blocked(view: &ClusterView, node: &Name, standing: &Standing) -> Option<String> {
    let silent = view.states.get(node).is_some_and(|state| state.value.state == NodeHealth::Offline);
    let silent = silent.then(|| format!("{node} does not answer, and its VMs cannot be taken from it"));
    let waiting = standing.under_way.iter().filter_map(|(name, why)| Some((name, why.as_ref()?)));
    let each = waiting.chain(standing.busy.iter().chain(&standing.stuck).map(|(name, why)| (name, why)));
    let told: Vec<String> = silent.into_iter().chain(each.map(|(name, why)| format!("{name}: {why}"))).collect();
    (!told.is_empty()).then(|| some(&told))
}

fn some(told: &[String]) -> String {
    let more = told.len().saturating_sub(TOLD_MAX);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    told[..told.len() - more].join("; ") + &rest
}

fn failed(op: &Operation, error: Error, now: jiff::Timestamp) -> Operation {
    let state = if error.code == Code::Cancelled { OpState::Cancelled } else { OpState::Failed };
    Operation { error: Some(error), ..ended(op, state, now) }
}

fn over(view: &ClusterView, op: &Operation, drain: &Drain, standing: Standing, stop: Option<Stop>, now: jiff::Timestamp) -> Operation {
    let progress = progress(view, drain, &standing);
    let op = Operation { steps: steps(view, drain), progress: Some(progress), ..op.clone() };
    let left = standing.left();
    if left == 0 {
        return ended(&op, OpState::Done, now);
    }
    let waiting = standing.ready.iter().map(|id| format!("{}: not told yet", name(view, *id)));
    let others = standing.stuck.iter().chain(&standing.busy).map(|(name, why)| format!("{name}: {why}"));
    let each = some(&others.chain(waiting).collect::<Vec<_>>());
    let still = format!("{left} of {} VMs are still on {}: {each}", progress.total, drain.node);
    let hint = match drain.whom {
        Whom::All => format!("the node stays cordoned; when that is mended: vmkeep node drain {}", drain.node),
        Whom::Protected => "they go off with their host, and start elsewhere".into(),
    };
    let error = match stop {
        None => Error::conflict(still),
        Some(Stop::Late) => Error::new(Code::Unavailable, format!("not through in time; {still}")),
        Some(Stop::Cancelled { by }) => Error::new(Code::Cancelled, format!("cancelled by {by}; {still}")),
        Some(Stop::Against { why }) => Error::new(Code::Cancelled, format!("{why}; {still}")),
    };
    failed(&op, error.hint(hint), now)
}

/// One VM is told to go, by an operation of its own.
fn tell(view: &ClusterView, kept: &Kept<Drain>, id: VmId, now: jiff::Timestamp) -> Option<Txn> {
    let (drain, vm) = (&kept.value, view.vms.get(&id)?);
    // A guest that writes faster than it can be copied would keep the node from ever being empty.
    let options = MigrateOptions { manner: drain.manner, auto_converge: true, ..MigrateOptions::default() };
    let sent = Sent { options, by: &drain.by, step: format!("{} is emptied", drain.node) };
    let same = Txn::default().when(Compare::ModifiedAt(keys::drain(&drain.node), kept.modified));
    let (mut txn, op) = send(same, &vm.value, vm.modified, sent, now);
    let mut next = drain.clone();
    let tries = drain.told.get(&id).map_or(0, |told| told.tries) + 1;
    next.told.insert(id, Told { op, tries });
    let cordon = view.nodes.get(&drain.node).and_then(|keys| keys.record.as_ref()?.value.cordon.as_ref());
    let maintenance = cordon.is_some_and(|cordon| cordon.closure == Closure::Maintenance);
    if maintenance || drain.whom == Whom::Protected {
        let generation = view.owners.get(&id)?.value.generation;
        txn.then.extend(policy::leaves_home(view, &vm.value, &drain.node, generation));
    }
    Some(txn.then(typed::put(keys::drain(&drain.node), &next)))
}
