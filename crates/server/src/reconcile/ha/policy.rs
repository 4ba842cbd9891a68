//! What high availability does for a VM whose node lives: another node when it does not start on this one, and back home after a
//! maintenance.
//!
//! ```text
//!  gave up on N ── fewer than max_relocate nodes tried ──► migration (it is off) ──► owner M: it counts from nothing, and starts
//!               └─ else: told once, and left to a person
//!  left N for its maintenance ── that is over, N takes it, nothing else moves ──► migration back
//! ```
//! What must not be forgotten lies at `cluster/ha/memory/UID`, written in the transaction that it is about. A person's command begins
//! the counting anew; a move that a person asked for ends the wish to go home.

use vmkeep_core::place::{self, Need, need::Home};
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ha::{GoesHome, HaMemory};
use vmkeep_types::host::NodeHealth;
use vmkeep_types::ids::{Generation, VmId};
use vmkeep_types::migration::{MigrateOptions, MoveManner};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, Seen};
use vmkeep_types::record::{Owner, Power, PowerWish, VmRecord};
use vmkeep_types::vm::Ha;

use crate::app::vm_parts::resource;
use crate::reconcile::migrate::send::{Sent, send};
use crate::reconcile::migrate::{self, Guest};
use crate::reconcile::view::{ClusterView, Kept};

/// After a move home that failed it stays where it is for so long.
const HOME_AGAIN: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// Who asks for what high availability moves.
const BY: &str = "high availability";

/// One VM with what is known of it.
struct Case<'a> {
    view: &'a ClusterView,
    vm: &'a Kept<VmRecord>,
    ha: &'a Ha,
    owner: &'a Kept<Owner>,
    power: &'a Kept<Power>,
    memory: HaMemory,
    kept: Option<&'a Kept<HaMemory>>,
    now: jiff::Timestamp,
}

/// The next write, if the VM's node lives and it is where it belongs.
pub fn next(view: &ClusterView, id: VmId, now: jiff::Timestamp) -> Option<Txn> {
    let (vm, owner, power) = (view.vms.get(&id)?, view.owners.get(&id)?, view.power.get(&id)?);
    let ha = vm.value.spec.ha.as_ref().filter(|_| vm.value.leaving.is_none())?;
    if view.disarmed.is_some() || view.moves.contains_key(&id) || owner.value.to.is_some() {
        return None;
    }
    let kept = view.memories.get(&id);
    let memory = kept.map(|kept| kept.value.clone()).unwrap_or_default();
    let case = Case { view, vm, ha, owner, power, memory, kept, now };
    let seen = view.seen(id).filter(|seen| seen.generation == owner.value.generation)?;
    case.after_failed_starts(seen).or_else(|| case.go_home())
}

/// What a VM that is sent away for its node's maintenance must not forget.
pub fn leaves_home(view: &ClusterView, vm: &VmRecord, node: &Name, generation: Generation) -> Option<Op> {
    let goes = vm.spec.ha.as_ref().is_some_and(|ha| ha.failback);
    let before = view.memories.get(&vm.id).map(|kept| kept.value.clone()).unwrap_or_default();
    let home = GoesHome { node: node.clone(), generation: generation.next(), not_before: None };
    goes.then(|| typed::put(keys::ha_memory(vm.id), &HaMemory { home: Some(home), ..before }))
}

impl Case<'_> {
    fn id(&self) -> VmId {
        self.vm.value.id
    }

    /// Under all that this was decided from.
    fn txn(&self) -> Txn {
        let memory = keys::ha_memory(self.id());
        let unchanged =
            self.kept.map_or_else(|| Compare::Absent(memory.clone()), |kept| Compare::ModifiedAt(memory.clone(), kept.modified));
        Txn::default()
            .when(unchanged)
            .when(Compare::Absent(keys::HA_DISARM.into()))
            .when(Compare::ModifiedAt(keys::owner(self.id()), self.owner.modified))
            .when(Compare::ModifiedAt(keys::power(self.id()), self.power.modified))
    }

    fn remembers(&self, memory: &HaMemory) -> Op {
        typed::put(keys::ha_memory(self.id()), memory)
    }

    fn after_failed_starts(&self, seen: &Seen) -> Option<Txn> {
        let Some(Doing::GaveUp { reason }) = &seen.doing else { return None };
        let (here, cycle) = (&self.owner.value.node, self.power.value.cycle);
        // An older word is not about the command that is being carried out.
        if seen.ordered_cycle < cycle || seen.power_cycle < cycle {
            return None;
        }
        // A person's command since then begins the counting anew.
        let tried = if self.memory.cycle == cycle { self.memory.tried.clone() } else { Vec::new() };
        if self.power.value.want != PowerWish::On || (self.memory.cycle == cycle && self.memory.told) {
            return None;
        }
        let tries_left = tried.len() < self.ha.max_relocate as usize && !tried.contains(here);
        let to = if tries_left { self.elsewhere(&tried) } else { Err("no other attempt is allowed".into()) };
        Some(match to {
            Ok(to) => self.relocate(tried, &to),
            Err(why) => self.call_a_person(tried, reason, &why),
        })
    }

    fn relocate(&self, mut tried: Vec<Name>, to: &Name) -> Txn {
        let here = &self.owner.value.node;
        tried.push(here.clone());
        let memory = HaMemory { tried, cycle: self.power.value.cycle, told: false, ..self.memory.clone() };
        let step = format!("it does not start on {here}: it is tried on {to}");
        let options = MigrateOptions { to: Some(to.clone()), manner: MoveManner::Cold, ..MigrateOptions::default() };
        let sent = Sent { options, by: BY, step: step.clone() };
        let event = self.event(Level::Warn, "vm.relocated", step);
        send(self.txn(), &self.vm.value, self.vm.modified, sent, self.now).0.then(self.remembers(&memory)).then(event)
    }

    fn call_a_person(&self, mut tried: Vec<Name>, reason: &str, why: &str) -> Txn {
        let here = &self.owner.value.node;
        if !tried.contains(here) {
            tried.push(here.clone());
        }
        let nodes: Vec<&str> = tried.iter().map(Name::as_str).collect();
        let message = format!("it does not start on {} ({reason}): {why}", nodes.join(", "));
        let memory = HaMemory { tried: tried.clone(), cycle: self.power.value.cycle, told: true, ..self.memory.clone() };
        self.txn().then(self.remembers(&memory)).then(self.event(Level::Error, "vm.starts-nowhere", message))
    }

    fn elsewhere(&self, tried: &[Name]) -> Result<Name, String> {
        let fleet = self.view.fleet();
        let Some(guest) = fleet.guest(self.id()) else { return Err("placement does not know it".into()) };
        let guest = place::Guest { need: Need { home: Home::Anywhere, ..guest.need.clone() }, ..guest.clone() };
        let here = &self.owner.value.node;
        let others = place::explain(fleet, &guest).into_iter().filter(|v| v.node != *here && !tried.contains(&v.node));
        let found = others.into_iter().find(|verdict| verdict.fits.is_ok());
        found.map(|verdict| verdict.node).ok_or_else(|| "no other node can take it".into())
    }

    fn go_home(&self) -> Option<Txn> {
        let home = self.memory.home.as_ref()?;
        let here = &self.owner.value.node;
        // It has not left yet.
        if home.node == *here && (self.view.drains.contains_key(here) || self.is_closed(here)) {
            return None;
        }
        let over = home.node == *here || home.generation != self.owner.value.generation || !self.ha.failback;
        if over {
            return Some(self.txn().then(self.remembers(&HaMemory { home: None, ..self.memory.clone() })));
        }
        let rests = self.view.moves.is_empty() && matches!(migrate::guest(self.view, self.id()), Guest::Now(_));
        if !rests || home.not_before.is_some_and(|at| self.now < at) || !self.is_open(&home.node) {
            return None;
        }
        let step = format!("the maintenance of {} is over", home.node);
        let options = MigrateOptions { to: Some(home.node.clone()), auto_converge: true, ..MigrateOptions::default() };
        let later = GoesHome { not_before: self.now.checked_add(HOME_AGAIN).ok(), ..home.clone() };
        let memory = HaMemory { home: Some(later), ..self.memory.clone() };
        let sent = Sent { options, by: BY, step };
        Some(send(self.txn(), &self.vm.value, self.vm.modified, sent, self.now).0.then(self.remembers(&memory)))
    }

    fn is_closed(&self, node: &Name) -> bool {
        self.view.nodes.get(node).and_then(|keys| keys.record.as_ref()).is_some_and(|record| record.value.cordon.is_some())
    }

    /// Is the node back, and may the VM be there?
    fn is_open(&self, node: &Name) -> bool {
        let online = self.view.states.get(node).is_none_or(|state| state.value.state == NodeHealth::Online);
        let Some(guest) = self.view.fleet().guest(self.id()) else { return false };
        let guest = place::Guest { need: Need { home: Home::Anywhere, ..guest.need.clone() }, ..guest.clone() };
        let fits = || place::explain(self.view.fleet(), &guest).into_iter().any(|verdict| verdict.node == *node && verdict.fits.is_ok());
        online && !self.view.drains.contains_key(node) && fits()
    }

    fn event(&self, level: Level, code: &str, message: String) -> Op {
        let (vm, at) = (&self.vm.value, self.now);
        let node = Some(self.owner.value.node.clone());
        let event = Event { at, resource: resource(vm), level, code: code.into(), message, node };
        typed::put(keys::event(&vm.project, "vm", vm.id, format!("{:020}-ha-{:06}", at.as_nanosecond(), 0)), &event)
    }
}
