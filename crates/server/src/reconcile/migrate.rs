//! Migrations, as the leader drives them: each look writes at most one transaction, decided by `core::migrate`.
//!
//! ```text
//!  migrate/UID asked ─begin─► owner {from, to} ─► … ─► owner to, generation + 1 ─► … ─► record gone, other side forgets
//! ```
//! Every transaction compares the record and the owner it was decided from. What a node has still to take away after the end is
//! an order of its own (`Forget`), which outlives the record; as long as it stands no migration of the VM comes to that node.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_core::migrate::check::{self, Baggage};
use vmkeep_core::migrate::{self, End, Next, PER_NODE_MAX, Saw};
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{Epoch, VmId, VolumeId};
use vmkeep_types::migration::{
    Handed, LocalState, Migration, MigrationAddress, MoveOrder, MovePart, MovePhase, MoveSaid, MoveSeen, Moving, PartKind, Stop, Travel,
    Way,
};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, DomainState, Observed, VmMemory};
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::order::{Holder, Order};
use vmkeep_types::record::{Heir, Owner, PowerWish, VmRecord};
use vmkeep_types::units::ByteCount;

use super::brought::used_by;
use super::ha::arm::{self, Turn};
use super::view::{ClusterView, Kept};
use super::vm::{ended, op_key, order_for, replace_op};

pub mod send;
mod target;
#[cfg(test)]
mod tests;

use target::{Target, leftovers};

/// What an order says of a migration under way.
pub fn moving(view: &ClusterView, id: VmId) -> Option<Moving> {
    let m = &view.moves.get(&id)?.value;
    Some(Moving { op: m.op, travel: m.way.as_ref()?.travel })
}

/// What the node before remembered, for the order of the one that has it now.
pub fn handed(view: &ClusterView, id: VmId) -> Option<Handed> {
    view.moves.get(&id)?.value.way.as_ref()?.handed.clone()
}

/// The next write for a VM that is on its way, or of which something is left elsewhere.
pub fn next(view: &ClusterView, id: VmId, now: jiff::Timestamp) -> Option<Txn> {
    if let Some(txn) = tidy(view, id) {
        return Some(txn);
    }
    let kept = view.moves.get(&id)?;
    let (Some(record), Some(owner)) = (view.vms.get(&id), view.owners.get(&id)) else {
        return Some(drop_record(kept, view, Error::conflict("the VM has no node"), now));
    };
    let going = Going { view, kept, m: &kept.value, record, owner, now };
    if view.confirmed.contains_key(&(owner.value.node.clone(), owner.value.epoch)) {
        return Some(going.give_up());
    }
    if kept.value.phase == MovePhase::Asked { going.begin() } else { going.go_on() }
}

/// A node has taken away what was left there.
fn tidy(view: &ClusterView, id: VmId) -> Option<Txn> {
    view.fleet().leftovers_of(id).find_map(|node| {
        let keys_of = view.nodes.get(node)?;
        let order = keys_of.moves.get(&id)?;
        let seen = keys_of.moved.get(&id)?;
        let clean = seen.value.op == order.value.op && seen.value.part == PartKind::Forget && seen.value.said == MoveSaid::Clean;
        clean.then(|| {
            Txn::default()
                .when(Compare::ModifiedAt(keys::move_order(node, id), order.modified))
                .then(Op::Delete(keys::move_order(node, id)))
                .then(Op::Delete(keys::move_seen(node, id)))
                // Another node owns it, with a later generation: nothing counts on these any more.
                .then(Op::DeletePrefix(keys::all_stopped(node, id)))
        })
    })
}

fn drop_record(kept: &Kept<Migration>, view: &ClusterView, error: Error, now: jiff::Timestamp) -> Txn {
    let key = keys::migration(kept.value.vm);
    let txn = Txn::default().when(Compare::ModifiedAt(key.clone(), kept.modified)).then(Op::Delete(key));
    match view.ops.get(&kept.value.op).filter(|op| !op.value.state.is_over()) {
        Some(op) => txn.then(typed::put(op_key(&op.value), &failed(&op.value, error, now))),
        None => txn,
    }
}

fn failed(op: &Operation, error: Error, now: jiff::Timestamp) -> Operation {
    let state = if error.code == Code::Cancelled { OpState::Cancelled } else { OpState::Failed };
    Operation { error: Some(error), progress: None, ..ended(op, state, now) }
}

/// One migration and all that is decided from.
struct Going<'a> {
    view: &'a ClusterView,
    kept: &'a Kept<Migration>,
    m: &'a Migration,
    record: &'a Kept<VmRecord>,
    owner: &'a Kept<Owner>,
    now: jiff::Timestamp,
}

/// A VM with what it stands on, from the view.
pub fn baggage<'a>(view: &'a ClusterView, vm: &'a VmRecord, choices: &'a vmkeep_types::record::VmChoices) -> Baggage<'a> {
    let pool = |name: &Name| view.pool_by_name(name).map(|pool| &pool.value.spec);
    let disks = vm.volumes.iter().filter_map(|(disk, id)| view.volumes.get(id).map(|v| (disk, &v.value, pool(&v.value.pool))));
    let inserted = vm.spec.cdroms.iter().filter_map(|cd| Some((&cd.name, cd.image.as_ref()?)));
    let cds = inserted.map(|(drive, image)| (drive, view.image_by_name(&vm.project, image).and_then(|i| pool(&i.value.spec.pool))));
    let networks = vm.spec.nics.iter().filter_map(|nic| view.network_by_name(&vm.project, &nic.network)).map(|n| &n.value.spec);
    Baggage { spec: &vm.spec, choices, disks: disks.collect(), cds: cds.collect(), networks: networks.collect() }
}

/// What the guest is doing, as far as a migration can begin from it.
pub enum Guest {
    Now(Travel),
    /// Something is under way that must end first.
    Busy(&'static str),
}

/// What a VM with a node does now.
pub fn guest(view: &ClusterView, id: VmId) -> Guest {
    let (seen, power) = (view.seen(id), view.power.get(&id));
    let generation = view.owners.get(&id).map(|owner| owner.value.generation);
    let Some(seen) = seen.filter(|seen| Some(seen.generation) == generation) else {
        return Guest::Busy("its node has not said what it does");
    };
    if power.is_some_and(|power| seen.power_cycle < power.value.cycle) {
        return Guest::Busy("a command is being carried out");
    }
    if matches!(seen.doing, Some(Doing::Starting | Doing::Stopping { .. } | Doing::Deleting | Doing::Preparing { .. })) {
        return Guest::Busy("it is being started, stopped or changed");
    }
    if matches!(seen.doing, Some(Doing::Moving { .. })) {
        // That word may be of the moment before the guest was resumed.
        return Guest::Busy("its node has not looked at it since its last migration");
    }
    match seen.domain {
        Observed::Known(DomainState::Running) => Guest::Now(Travel::Running),
        Observed::Known(DomainState::Paused) => Guest::Now(Travel::Paused),
        Observed::Known(DomainState::Off) | Observed::Absent => Guest::Now(Travel::Off),
        Observed::Known(DomainState::ShuttingDown) => Guest::Busy("it is shutting down"),
        Observed::Known(DomainState::Crashed | DomainState::Suspended) => Guest::Busy("its guest has panicked or sleeps"),
        Observed::Unknown => Guest::Busy("libvirt does not answer on its node"),
    }
}

impl Going<'_> {
    fn id(&self) -> VmId {
        self.m.vm
    }

    fn facts(&self, node: &Name) -> Option<&vmkeep_types::host::NodeFacts> {
        self.view.nodes.get(node)?.facts.as_ref().map(|facts| &facts.value)
    }

    fn epoch(&self, node: &Name) -> Epoch {
        self.facts(node).map_or(Epoch(1), |facts| facts.epoch)
    }

    /// Under the record and the owner that this was decided from.
    fn txn(&self) -> Txn {
        Txn::default()
            .when(Compare::ModifiedAt(keys::migration(self.id()), self.kept.modified))
            .when(Compare::ModifiedAt(keys::owner(self.id()), self.owner.modified))
    }

    /// Its operation, with a step more.
    fn told(&self, step: Option<String>) -> Option<Op> {
        let op = self.view.ops.get(&self.m.op).filter(|op| !op.value.state.is_over())?;
        let mut value = Operation { state: OpState::Running, blocked: None, ..op.value.clone() };
        value.steps.extend(step);
        Some(typed::put(op_key(&value), &value))
    }

    fn blocked(&self, why: &str) -> Option<Txn> {
        let op = self.view.ops.get(&self.m.op).filter(|op| op.value.blocked.as_deref() != Some(why))?;
        Some(replace_op(op, &Operation { blocked: Some(why.to_owned()), ..op.value.clone() }))
    }

    /// Whoever has the guest is dead. It begins anew elsewhere, or waits for its node; nobody resumes what has arrived.
    fn give_up(&self) -> Txn {
        let dead = Error::new(Code::Unavailable, format!("{} is dead", self.owner.value.node));
        self.end(if self.m.phase == MovePhase::Arriving { End::Lost(dead) } else { End::Stayed(dead) })
    }

    /// Chooses the way, or says why there is none.
    fn begin(&self) -> Option<Txn> {
        if let Some(stop) = &self.m.stop {
            return Some(self.end(End::Stayed(migrate::stop_error(stop))));
        }
        if self.now >= self.m.deadline {
            return Some(self.end(End::Stayed(migrate::stop_error(&Stop::Late))));
        }
        let vm = &self.record.value;
        if vm.leaving.is_some() {
            return Some(self.end(End::Stayed(Error::conflict("it is being deleted"))));
        }
        let now = match guest(self.view, self.id()) {
            Guest::Now(now) => now,
            Guest::Busy(why) => return self.blocked(why),
        };
        let choices = self.view.choices.get(&self.id()).map(|kept| kept.value.clone()).unwrap_or_default();
        let baggage = baggage(self.view, vm, &choices);
        let travel = match check::travel(&baggage, now, self.m.options.manner) {
            Ok(travel) => travel,
            Err(found) => {
                let error = Error::conflict(format!("it cannot move: {}", check::words(&found)));
                return Some(self.end(End::Stayed(error.hint(format!("`vmkeep vm show {}` says what keeps it", vm.spec.name)))));
            }
        };
        let (copied, state) = (check::local_disks(&baggage), check::local_state(&baggage));
        let to = match self.target(&baggage, travel) {
            Ok(Target::Node(to)) => to,
            Ok(Target::Later(why)) => return self.blocked(&why),
            Err(error) => return Some(self.end(End::Stayed(error))),
        };
        if let Some(why) = self.in_the_way(&to) {
            return self.blocked(&why);
        }
        let clear = match arm::turn(self.view, vm, &to, self.now) {
            Turn::Go(clear) => clear,
            Turn::Ask(txn) => return Some(txn),
            Turn::Wait(why) => return self.blocked(&why),
        };
        let needs = match (copied.is_empty() && state.is_empty(), state.contains(&LocalState::Tpm)) {
            (true, _) => keys::LEVEL_OLDEST,
            (false, false) => keys::LEVEL_FETCHES,
            (false, true) => keys::LEVEL_TPM,
        };
        if travel == Travel::Off && self.view.level() < needs {
            let what = if needs == keys::LEVEL_TPM { "data and TPM state are" } else { "data is" };
            let has = self.view.level();
            let told =
                format!("its {what} on this host, and off it takes that along from store level {needs} on; this store has level {has}");
            return Some(
                self.end(End::Stayed(Error::conflict(told).hint("vmkeep cluster upgrade-check; then vmkeep cluster raise-level"))),
            );
        }
        // Just after it has come its node has not looked at them yet.
        let unknown = |disk: &Name| vm.volumes.get(disk).is_none_or(|volume| self.size(&self.owner.value.node, *volume).is_none());
        if travel != Travel::Off && copied.iter().any(unknown) {
            return self.blocked("its node has not said yet how large its disks are");
        }
        Some(clear.under(self.set_out(&baggage, travel, &to)))
    }

    /// What must end before it can set out.
    fn in_the_way(&self, to: &Name) -> Option<String> {
        let from = &self.owner.value.node;
        for node in [from, to] {
            if self.view.nodes.get(node).is_some_and(|keys| keys.moves.contains_key(&self.id())) {
                return Some(leftovers(node));
            }
            if self.view.fleet().on_the_way(node) >= PER_NODE_MAX {
                return Some(format!("waits for its turn: {PER_NODE_MAX} migrations from or to {node} are under way"));
            }
        }
        None
    }

    fn set_out(&self, baggage: &Baggage<'_>, travel: Travel, to: &Name) -> Txn {
        let way = Way {
            from: self.owner.value.node.clone(),
            to: to.clone(),
            generation: self.owner.value.generation,
            travel,
            power_cycle: self.view.power.get(&self.id()).map_or(0, |power| power.value.cycle),
            copy: check::local_disks(baggage),
            state: if travel == Travel::Off { check::local_state(baggage) } else { BTreeSet::new() },
            handed: None,
        };
        let owner = Owner { to: Some(Heir { node: to.clone(), epoch: self.epoch(to) }), ..self.owner.value.clone() };
        let how = match (travel, way.copy.len()) {
            (Travel::Off, 0) => "off".to_owned(),
            (Travel::Off, disks) => format!("off, {disks} disks copied along"),
            (_, 0) => "live".to_owned(),
            (_, disks) => format!("live, {disks} disks copied along"),
        };
        let step = format!("{} -> {to}, {how}", way.from);
        let mut steps: Vec<String> = check::warnings(baggage);
        steps.push(step);
        let m = Migration { phase: MovePhase::Preparing, way: Some(way), ..self.m.clone() };
        let txn = self
            .txn()
            .when(Compare::ModifiedAt(keys::vm(&self.record.value.project, self.id()), self.record.modified))
            .then(typed::put(keys::owner(self.id()), &owner))
            .then(Op::Put(keys::own(to, self.id()), Vec::new()));
        // Whoever deletes an image or a network asks that node too, from before it fetches the one and makes the other.
        let uses = used_by(self.view, &self.record.value, to);
        let txn = uses.into_iter().fold(txn, |txn, (guard, op)| txn.when(guard).then(op));
        let txn = self.orders(&m, txn);
        match self.told(Some(steps.join("; "))) {
            Some(op) => txn.then(op),
            None => txn,
        }
    }

    /// The record and what both sides do in its phase.
    fn orders(&self, m: &Migration, mut txn: Txn) -> Txn {
        txn = txn.then(typed::put(keys::migration(self.id()), m));
        let Some(way) = &m.way else { return txn };
        for (node, part) in self.parts(way, m) {
            txn.then.extend(self.order(way, node, part, m).map(|order| typed::put(keys::move_order(node, self.id()), &order)));
        }
        txn
    }

    /// Who does what in a phase.
    fn parts<'w>(&self, way: &'w Way, m: &Migration) -> impl Iterator<Item = (&'w Name, MovePart)> + use<'w> {
        let source = migrate::source_part(m, &self.address(way)).map(|part| (&way.from, part));
        source.into_iter().chain(migrate::destination_part(m, self.source(way)).map(|part| (&way.to, part)))
    }

    /// The source's agent, as far as it has told an address.
    fn source(&self, way: &Way) -> Option<Holder> {
        let address = self.facts(&way.from)?.address.clone()?;
        Some(Holder { node: way.from.clone(), address })
    }

    /// What one side is told; `None` while a record that it must name is missing.
    fn order(&self, way: &Way, node: &Name, part: MovePart, m: &Migration) -> Option<MoveOrder> {
        let generation = if *node == way.to { way.generation.next() } else { way.generation };
        let owner = Owner { node: node.clone(), epoch: self.epoch(node), generation, to: None, ..self.owner.value.clone() };
        let mut order = order_for(self.view, &self.record.value, self.record.modified, &owner)?;
        (order.moving, order.handed) = (None, None);
        for volume in order.volumes.values_mut() {
            volume.size = self.size(&way.from, volume.id);
        }
        Some(MoveOrder { op: m.op, vm: m.vm, part, order, travel: way.travel })
    }

    /// How large a volume is on the node that has it, or is wanted.
    fn size(&self, node: &Name, id: VolumeId) -> Option<ByteCount> {
        let seen = self.view.nodes.get(node).and_then(|keys| keys.seen.get(&self.id()));
        let there = seen.and_then(|seen| seen.value.volumes.get(&id)).map(|there| ByteCount::from_bytes(there.size_bytes));
        there.or_else(|| self.view.volumes.get(&id)?.value.size)
    }

    fn go_on(&self) -> Option<Txn> {
        let way = self.m.way.as_ref()?;
        let moved = |node: &Name| self.view.nodes.get(node).and_then(|keys| keys.moved.get(&self.id())).map(|kept| &kept.value);
        let (source, destination) = (moved(&way.from), moved(&way.to));
        let seen = self.view.seen(self.id()).filter(|seen| seen.generation == self.owner.value.generation);
        let hands_off = seen.filter(|seen| seen.doing == Some(Doing::Moving { op: self.m.op })).map(|seen| &seen.domain);
        let saw = Saw { now: self.now, hands_off, source, destination, against: self.against(way) };
        let with = |m: Migration, step: &str| {
            let txn = self.orders(&m, self.txn());
            let told = self.told(Some(step.to_owned()));
            Some(told.into_iter().fold(txn, Txn::then))
        };
        match migrate::step(self.m, &saw) {
            Next::Wait => self.mend_orders(way).or_else(|| self.progress(source)).or_else(|| self.progress(destination)),
            Next::Enter(MovePhase::Arriving) => self.hand_over(way),
            Next::Enter(phase) => {
                let fetched = self.m.phase == MovePhase::Fetching;
                let step = if fetched { format!("its data is on {}", way.to) } else { format!("{} is ready", way.to) };
                with(Migration { phase, ..self.m.clone() }, &step)
            }
            Next::Stop(stop) => with(Migration { stop: Some(stop), ..self.m.clone() }, "is being called off"),
            Next::TakeBack(error) => {
                let m = Migration { phase: MovePhase::Returning, broke: Some(error), ..self.m.clone() };
                let txn = self.orders(&m, self.release(way, self.txn()));
                Some(self.told(Some(format!("goes back to {}", way.from))).into_iter().fold(txn, Txn::then))
            }
            Next::End(end) => Some(self.end(end)),
        }
    }

    /// Both sides are told what the record says; somebody who cancels writes only that.
    fn mend_orders(&self, way: &Way) -> Option<Txn> {
        let mut txn = self.txn();
        for (node, part) in self.parts(way, self.m) {
            let told = self.view.nodes.get(node).and_then(|keys| keys.moves.get(&self.id()));
            if told.is_none_or(|told| told.value.op != self.m.op || told.value.part.kind() != part.kind()) {
                txn.then.extend(self.order(way, node, part, self.m).map(|order| typed::put(keys::move_order(node, self.id()), &order)));
            }
        }
        (!txn.then.is_empty()).then_some(txn)
    }

    /// A cold one goes nowhere by itself; its address is not asked for.
    fn address(&self, way: &Way) -> MigrationAddress {
        let known = self.facts(&way.to).and_then(|facts| facts.migration.clone());
        known.unwrap_or(MigrationAddress { connect: String::new(), data: String::new() })
    }

    /// Why the VM is wanted otherwise by now.
    fn against(&self, way: &Way) -> Option<String> {
        if self.record.value.leaving.is_some() {
            return Some("it is being deleted".into());
        }
        let power = &self.view.power.get(&self.id())?.value;
        (power.cycle > way.power_cycle && power.want != PowerWish::On).then(|| "it was told to stop or to restart".into())
    }

    /// As far as the side says that copies.
    fn progress(&self, side: Option<&MoveSeen>) -> Option<Txn> {
        let copying = side.filter(|seen| seen.op == self.m.op).and_then(|seen| seen.progress)?;
        let op = self.view.ops.get(&self.m.op).filter(|op| !op.value.state.is_over() && op.value.copying != Some(copying))?;
        Some(replace_op(op, &Operation { progress: Some(copying.bytes()), copying: Some(copying), ..op.value.clone() }))
    }

    /// The one transaction that makes the destination the owner.
    fn hand_over(&self, way: &Way) -> Option<Txn> {
        let (id, epoch) = (self.id(), self.epoch(&way.to));
        let seen = self.view.nodes.get(&way.from).and_then(|keys| keys.seen.get(&id));
        let handed = seen.map(|seen| Handed {
            memory: VmMemory { boot_id: String::new(), ..seen.value.memory.clone() },
            restarts: seen.value.restarts.clone(),
        });
        let m = Migration { phase: MovePhase::Arriving, way: Some(Way { handed: handed.clone(), ..way.clone() }), ..self.m.clone() };
        let owner = Owner { node: way.to.clone(), epoch, generation: way.generation.next(), to: None, ..self.owner.value.clone() };
        let order: Order = Order {
            moving: Some(Moving { op: m.op, travel: way.travel }),
            handed,
            ..order_for(self.view, &self.record.value, self.record.modified, &owner)?
        };
        let mut txn = self
            .txn()
            .when(Compare::Present(keys::stopped(&way.from, id, way.generation)))
            .when(Compare::Absent(keys::fence(&way.to, epoch)))
            .when(Compare::Present(keys::armed(&way.to, epoch)))
            .then(typed::put(keys::owner(id), &owner))
            .then(typed::put(keys::order(&way.to, id), &order));
        let left = [keys::own(&way.from, id), keys::run(&way.from, id), keys::order(&way.from, id), keys::seen(&way.from, id)];
        txn.then.extend(left.into_iter().chain([keys::move_order(&way.from, id), keys::move_seen(&way.from, id)]).map(Op::Delete));
        for volume in self.record.value.volumes.values().filter_map(|id| self.view.volumes.get(id)) {
            let key = keys::volume(&volume.value.project, volume.value.id);
            let there = vmkeep_types::pool::VolumeRecord { node: Some(way.to.clone()), ..volume.value.clone() };
            txn = txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &there));
        }
        let txn = self.orders(&m, txn);
        Some(self.told(Some(format!("has left {}", way.from))).into_iter().fold(txn, Txn::then))
    }

    /// The VM is the source's alone again, and the destination forgets it.
    fn release(&self, way: &Way, txn: Txn) -> Txn {
        let owner = Owner { to: None, ..self.owner.value.clone() };
        let txn = txn.then(typed::put(keys::owner(self.id()), &owner)).then(Op::Delete(keys::own(&way.to, self.id())));
        self.forget(way, &way.to, txn)
    }

    fn forget(&self, way: &Way, node: &Name, mut txn: Txn) -> Txn {
        let copied = way.copy.iter().filter(|_| *node == way.from || self.has_made(way));
        let copied = copied.filter_map(|disk| self.record.value.volumes.get(disk));
        let volumes: BTreeMap<VolumeId, Name> =
            copied.filter_map(|id| self.view.volumes.get(id)).map(|v| (v.value.id, v.value.pool.clone())).collect();
        let order = self.order(way, node, MovePart::Forget { volumes }, self.m);
        txn.then.extend(order.map(|order| typed::put(keys::move_order(node, self.id()), &order)));
        txn
    }

    /// Whether the destination may have made volumes. One that refused to has taken them away itself; or it has found that its folder
    /// is the source's, and what lies there is the source's data.
    fn has_made(&self, way: &Way) -> bool {
        let said = self.view.nodes.get(&way.to).and_then(|keys| keys.moved.get(&self.id())).map(|kept| &kept.value);
        let said = said.filter(|seen| seen.op == self.m.op);
        said.is_some_and(|seen| !(seen.part == PartKind::Prepare && matches!(seen.said, MoveSaid::Refused { .. })))
    }

    fn end(&self, end: End) -> Txn {
        let id = self.id();
        let mut txn = self.txn().then(Op::Delete(keys::migration(id)));
        if let Some(way) = &self.m.way {
            txn = match &end {
                End::Stayed(_) => {
                    txn.then.extend([keys::move_order(&way.from, id), keys::move_seen(&way.from, id)].map(Op::Delete));
                    if self.m.phase == MovePhase::Returning { txn } else { self.release(way, txn) }
                }
                End::Moved | End::Lost(_) => {
                    txn.then.extend([keys::move_order(&way.to, id), keys::move_seen(&way.to, id)].map(Op::Delete));
                    self.forget(way, &way.from, txn)
                }
            };
        }
        let Some(op) = self.view.ops.get(&self.m.op).filter(|op| !op.value.state.is_over()) else { return txn };
        let value = match end {
            End::Stayed(error) | End::Lost(error) => failed(&op.value, error, self.now),
            End::Moved => {
                let mut done = Operation { progress: None, ..ended(&op.value, OpState::Done, self.now) };
                done.steps.extend(self.m.way.as_ref().map(|way| format!("is on {}", way.to)));
                done
            }
        };
        txn.then(typed::put(op_key(&value), &value))
    }
}
