//! VMs whose node is proved dead get another one: by priority, a few at a time, where rules, room and storage allow.
//!
//! ```text
//!  owner names N in epoch E, confirmed/N/E ──► a node that takes it ──► one Txn: owner, generation + 1, order there, Forget for N
//! ```
//! That transaction compares the proof, the owner, the wish, and that the new node's life is not sealed. VMs that are not highly
//! available stay with their node. A node that is back in its next life takes up what nobody else got.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::turns::{STARTS_MAX, STARTS_PER_NODE, Turns};
use vmkeep_core::migrate::check::{self, Hindrance};
use vmkeep_core::place::{self, Fleet};
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ha::{Confirmed, Proof, Rescue};
use vmkeep_types::ids::{OperationId, VmId};
use vmkeep_types::migration::{Handed, MoveOrder, MovePart, Travel};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, DomainState, Observed, Seen, VmMemory};
use vmkeep_types::order::Order;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Owner, PowerWish, VmRecord};
use vmkeep_types::vm::RunPolicy;

use super::arm::{self, Turn};
use crate::app::vm_parts::resource;
use crate::reconcile::migrate::baggage;
use crate::reconcile::view::{ClusterView, Kept};
use crate::reconcile::vm::order_for;

/// A VM that lost its node.
#[derive(Clone, Copy)]
pub struct Lost<'v> {
    pub vm: &'v Kept<VmRecord>,
    pub owner: &'v Kept<Owner>,
    pub proof: &'v Kept<Confirmed>,
}

impl Lost<'_> {
    fn id(&self) -> VmId {
        self.vm.value.id
    }

    pub fn priority(&self) -> u8 {
        self.vm.value.spec.priority()
    }
}

/// All that wait for another node, first whose turn is first.
pub fn queue(view: &ClusterView) -> Vec<Lost<'_>> {
    let mut lost: Vec<Lost<'_>> = Vec::new();
    for ((node, epoch), proof) in &view.confirmed {
        let Some(seat) = view.fleet().seat(node) else { continue };
        let back = seat.facts.epoch > *epoch;
        for id in seat.owned.iter().filter(|_| !back) {
            let (Some(vm), Some(owner)) = (view.vms.get(id), view.owners.get(id)) else { continue };
            let protected = vm.value.spec.ha.is_some() && vm.value.leaving.is_none();
            if protected && owner.value.node == *node && owner.value.epoch == *epoch {
                lost.push(Lost { vm, owner, proof });
            }
        }
    }
    lost.sort_by_key(|lost| (lost.priority(), lost.vm.value.created_at, lost.id()));
    lost
}

/// The owners that change now.
pub fn next(view: &ClusterView, turns: &mut Turns, now: Now, wall: jiff::Timestamp) -> Vec<(VmId, Txn)> {
    if view.disarmed.is_some() || view.recovery.is_some() {
        return Vec::new();
    }
    let queue = queue(view);
    let (mut starting, under_way) = starting(view);
    turns.look(queue.iter().map(Lost::priority).chain(under_way).min(), now);
    let mut txns = Vec::new();
    if queue.is_empty() {
        return Vec::new();
    }
    // What is chosen in this look counts as taken at once.
    let mut fleet = homeless(view, &queue);
    for lost in queue {
        if view.moves.contains_key(&lost.id()) || !turns.has_come(lost.priority(), now) || starting.values().sum::<usize>() >= STARTS_MAX {
            continue;
        }
        let free = |node: &Name| starting.get(node).is_none_or(|count| *count < STARTS_PER_NODE);
        let Ok(node) = choose(view, &fleet, &lost.vm.value, &lost.owner.value.node, free) else { continue };
        let clear = match arm::turn(view, &lost.vm.value, &node, wall) {
            Turn::Go(clear) => clear,
            Turn::Ask(txn) => {
                txns.push((lost.id(), txn));
                continue;
            }
            Turn::Wait(_) => continue,
        };
        let Some(txn) = moved(view, &lost, &node, wall).map(|txn| clear.under(txn)) else { continue };
        fleet.set_owner(lost.id(), Some(&node));
        *starting.entry(node).or_default() += usize::from(wanted_on(view, &lost.vm.value));
        txns.push((lost.id(), txn));
    }
    txns
}

/// While the death of a node is being proved, those nodes that its VMs will go to arm their watchdogs.
pub fn ahead(view: &ClusterView, wall: jiff::Timestamp) -> Vec<Txn> {
    if view.disarmed.is_some() || view.recovery.is_some() {
        return Vec::new();
    }
    let mut asks: BTreeMap<Name, Txn> = BTreeMap::new();
    for (node, keys) in &view.nodes {
        let Some(of) = keys.life.as_ref().map(|life| (node.clone(), life.value.epoch)) else { continue };
        if !view.fences.contains_key(&of) || view.confirmed.contains_key(&of) || !view.owns_protected(node) {
            continue;
        }
        let mut fleet = without(view, node);
        let owned = view.owners.iter().filter(|(_, owner)| owner.value.node == *node).filter_map(|(id, _)| view.vms.get(id));
        for vm in owned.map(|vm| &vm.value).filter(|vm| vm.spec.ha.is_some()) {
            let Ok(to) = elsewhere(view, &fleet, vm, node) else { continue };
            fleet.set_owner(vm.id, Some(&to));
            if let Turn::Ask(txn) = arm::turn(view, vm, &to, wall) {
                asks.entry(to).or_insert(txn);
            }
        }
    }
    asks.into_values().collect()
}

/// Does it start as soon as a node has it?
fn wanted_on(view: &ClusterView, vm: &VmRecord) -> bool {
    let off = view.power.get(&vm.id).is_some_and(|power| matches!(power.value.want, PowerWish::Off | PowerWish::Killed));
    !off && vm.spec.run != RunPolicy::Halted
}

/// How many VMs each node is starting after they lost theirs, and their priorities.
fn starting(view: &ClusterView) -> (BTreeMap<Name, usize>, Vec<u8>) {
    let (mut nodes, mut priorities) = (BTreeMap::<Name, usize>::new(), Vec::new());
    for rescue in view.rescues.values().filter(|rescue| rescue.value.running_at.is_none()) {
        let id = rescue.value.vm;
        let (Some(vm), Some(owner)) = (view.vms.get(&id), view.owners.get(&id)) else { continue };
        let seen = view.seen(id).filter(|seen| seen.generation == owner.value.generation);
        let busy = |seen: &Seen| matches!(seen.doing, Some(Doing::Starting | Doing::Preparing { .. }));
        let done = seen.is_some_and(|seen| seen.error.is_some() || seen.domain != Observed::Unknown && !busy(seen));
        if owner.value.node == rescue.value.to && wanted_on(view, &vm.value) && !done {
            *nodes.entry(rescue.value.to.clone()).or_default() += 1;
            priorities.extend(vm.value.spec.ha.as_ref().map(|ha| ha.priority));
        }
    }
    (nodes, priorities)
}

/// All nodes, without those VMs: whom a rule keeps together with one of them is not kept at a dead node.
pub fn homeless(view: &ClusterView, lost: &[Lost<'_>]) -> Fleet {
    let mut fleet = view.fleet().clone();
    lost.iter().for_each(|lost| fleet.set_owner(lost.id(), None));
    fleet
}

/// All nodes as they would be without this one's highly available VMs.
pub fn without(view: &ClusterView, node: &Name) -> Fleet {
    let mut fleet = view.fleet().clone();
    protected_on(view, node).into_iter().for_each(|id| fleet.set_owner(id, None));
    fleet
}

/// The highly available VMs that a node owns.
pub fn protected_on(view: &ClusterView, node: &Name) -> Vec<VmId> {
    let owned = view.fleet().seat(node).into_iter().flat_map(|seat| seat.owned.iter().copied());
    owned.filter(|id| view.vms.get(id).is_some_and(|vm| vm.value.spec.ha.is_some())).collect()
}

/// Where a VM could run again when its node is gone, or why nowhere.
///
/// # Errors
/// The reason, in words.
pub fn elsewhere(view: &ClusterView, fleet: &Fleet, vm: &VmRecord, from: &Name) -> Result<Name, String> {
    choose(view, fleet, vm, from, |_| true)
}

fn choose(view: &ClusterView, fleet: &Fleet, vm: &VmRecord, from: &Name, free: impl Fn(&Name) -> bool) -> Result<Name, String> {
    let choices = view.choices.get(&vm.id).map(|kept| kept.value.clone()).unwrap_or_default();
    let baggage = baggage(view, vm, &choices);
    // Its NVRAM is made anew from the template; better than no VM.
    let lost_state = |found: &Hindrance| matches!(found, Hindrance::LocalNvram);
    let found = check::hindrances(&baggage, Travel::Off).into_iter().chain(check::lost_with_host(&baggage));
    let held: Vec<String> = found.filter(|found| !lost_state(found)).map(|found| found.to_string()).collect();
    if !held.is_empty() {
        return Err(held.join("; "));
    }
    let Some(guest) = fleet.guest(vm.id) else { return Err("placement does not know it".into()) };
    let mut told = Vec::new();
    for verdict in place::explain(fleet, guest).into_iter().filter(|verdict| verdict.node != *from) {
        let fits = verdict.fits.map(drop).map_err(|refusal| refusal.to_string());
        match fits.and_then(|()| takes(view, vm.id, &baggage, &verdict.node, &free)) {
            Ok(()) => return Ok(verdict.node),
            Err(why) => told.push(format!("{}: {why}", verdict.node)),
        }
    }
    Err(if told.is_empty() { "there is no other node".into() } else { told.join("; ") })
}

fn takes(view: &ClusterView, id: VmId, baggage: &check::Baggage<'_>, node: &Name, free: impl Fn(&Name) -> bool) -> Result<(), String> {
    let keys = view.nodes.get(node).ok_or("it is unknown")?;
    let life = keys.life.as_ref().ok_or("it has not joined")?;
    let at = (node.clone(), life.value.epoch);
    if life.value.closed || view.fences.contains_key(&at) || view.confirmed.contains_key(&at) {
        return Err("its life is over".into());
    }
    if keys.moves.contains_key(&id) {
        return Err("it still takes away what it had of the VM".into());
    }
    if let Some(why) = keys.facts.as_ref().and_then(|facts| check::refuses(baggage, Travel::Off, &facts.value)) {
        return Err(why);
    }
    if free(node) { Ok(()) } else { Err(format!("{STARTS_PER_NODE} VMs are being started there")) }
}

/// The one transaction that gives a VM of a dead node to another one.
fn moved(view: &ClusterView, lost: &Lost<'_>, node: &Name, wall: jiff::Timestamp) -> Option<Txn> {
    let (vm, old) = (&lost.vm.value, &lost.owner.value);
    let (id, from) = (vm.id, &old.node);
    let life = view.nodes.get(node)?.life.as_ref()?;
    let epoch = life.value.epoch;
    let owner = Owner { node: node.clone(), epoch, generation: old.generation.next(), to: None, ..old.clone() };
    // One that ran is started as though it were new; one that was off stays so, and its new node knows why.
    let seen = view.nodes.get(from).and_then(|keys| keys.seen.get(&id)).filter(|seen| was_off(&seen.value));
    let handed = seen.map(|seen| Handed {
        memory: VmMemory { boot_id: String::new(), ..seen.value.memory.clone() },
        restarts: seen.value.restarts.clone(),
    });
    let order = Order { handed, ..order_for(view, vm, lost.vm.modified, &owner)? };
    let rescue = Rescue {
        vm: id,
        project: vm.project.clone(),
        name: vm.spec.name.clone(),
        from: from.clone(),
        to: node.clone(),
        placed_at: wall,
        running_at: None,
    };
    let mut txn = Txn::default()
        .when(Compare::Present(keys::confirmed(from, old.epoch)))
        .when(Compare::Absent(keys::HA_DISARM.into()))
        .when(Compare::Absent(keys::migration(id)))
        .when(Compare::ModifiedAt(keys::owner(id), lost.owner.modified))
        .when(Compare::ModifiedAt(keys::vm(&vm.project, id), lost.vm.modified))
        .when(Compare::ModifiedAt(keys::epoch(node), life.modified))
        .when(Compare::Absent(keys::fence(node, epoch)))
        .then(typed::put(keys::owner(id), &owner))
        .then(Op::Put(keys::own(node, id), Vec::new()))
        .then(typed::put(keys::order(node, id), &order))
        .then(typed::put(keys::rescue(from, old.epoch, id), &rescue));
    let left = [keys::own(from, id), keys::run(from, id), keys::order(from, id), keys::seen(from, id), keys::move_seen(from, id)];
    txn.then.extend(left.map(Op::Delete));
    // When it is back it takes away what lies there of the VM.
    let there = Owner { node: from.clone(), to: None, ..old.clone() };
    let forget = order_for(view, vm, lost.vm.modified, &there).map(|order| MoveOrder {
        op: OperationId(uuid::Uuid::now_v7()),
        vm: id,
        part: MovePart::Forget { volumes: BTreeMap::new() },
        order: Order { moving: None, handed: None, ..order },
        travel: Travel::Off,
    });
    txn.then.extend(forget.map(|order| typed::put(keys::move_order(from, id), &order)));
    for volume in vm.volumes.values().filter_map(|id| view.volumes.get(id)) {
        let key = keys::volume(&volume.value.project, volume.value.id);
        let moved = VolumeRecord { node: Some(node.clone()), ..volume.value.clone() };
        txn = txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &moved));
    }
    Some(txn.then(event(lost, node, wall)))
}

fn was_off(seen: &Seen) -> bool {
    let off = matches!(seen.domain, Observed::Absent | Observed::Known(DomainState::Off));
    off && !matches!(seen.doing, Some(Doing::Starting | Doing::Preparing { .. } | Doing::Backoff { .. }))
}

fn event(lost: &Lost<'_>, to: &Name, at: jiff::Timestamp) -> Op {
    let vm = &lost.vm.value;
    let (from, proof) = (&lost.owner.value.node, lost.proof.value.proof);
    let message = match proof {
        Proof::Goodbye => format!("{from} was shut down: it runs again on {to}"),
        Proof::Watchdog | Proof::Stonith | Proof::Storage | Proof::Unarmed | Proof::Operator => {
            format!("{from} is dead ({proof}): it runs again on {to}")
        }
    };
    let event = Event { at, resource: resource(vm), level: Level::Warn, code: "vm.recovered".into(), message, node: Some(to.clone()) };
    let stamp = format!("{:020}-ha-{:06}", at.as_nanosecond(), 0);
    typed::put(keys::event(&vm.project, "vm", vm.id, stamp), &event)
}

/// What the new nodes say of VMs that were recovered, for the history.
pub fn arrived(view: &ClusterView, wall: jiff::Timestamp) -> Vec<Txn> {
    let open = view.rescues.iter().filter(|(_, rescue)| rescue.value.running_at.is_none());
    let runs = open.filter(|(_, rescue)| {
        let owner = view.owners.get(&rescue.value.vm).filter(|owner| owner.value.node == rescue.value.to);
        let seen = owner.and_then(|owner| view.seen(rescue.value.vm).filter(|seen| seen.generation == owner.value.generation));
        seen.is_some_and(|seen| matches!(seen.domain, Observed::Known(DomainState::Running)))
    });
    runs.map(|(key, rescue)| {
        let told = Rescue { running_at: Some(wall), ..rescue.value.clone() };
        Txn::default().when(Compare::ModifiedAt(key.clone(), rescue.modified)).then(typed::put(key.clone(), &told))
    })
    .collect()
}

/// Deaths that are told; older ones are forgotten.
const INCIDENTS_MAX: usize = 100;

/// VMs of a host that was shut down are told in no history of deaths; forgotten after so long.
const MOVED_ON: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Takes the oldest out of the history, with their VMs.
pub fn trim(view: &ClusterView, now: jiff::Timestamp) -> Option<Txn> {
    let untold = |key: &str| {
        let death = key.strip_prefix(keys::ALL_RESCUES).and_then(|of| Some(format!("{}{}", keys::ALL_INCIDENTS, of.rsplit_once('/')?.0)));
        death.is_some_and(|death| !view.incidents.contains_key(&death))
    };
    let old = |rescue: &Rescue| now.duration_since(rescue.placed_at) >= MOVED_ON;
    if let Some((key, _)) = view.rescues.iter().find(|(key, rescue)| old(&rescue.value) && untold(key)) {
        return Some(Txn::default().then(Op::Delete(key.clone())));
    }
    let mut ends: Vec<_> = view.incidents.iter().map(|(key, incident)| (incident.value.sealed_at, key, &incident.value)).collect();
    ends.sort_by_key(|(at, ..)| Reverse(*at));
    let (_, key, oldest) = ends.get(INCIDENTS_MAX).copied()?;
    let rescues = format!("{}{}/{}/", keys::ALL_RESCUES, oldest.node, oldest.epoch);
    Some(Txn::default().then(Op::Delete(key.clone())).then(Op::DeletePrefix(rescues)))
}
