//! What the leader writes next for one VM.
//!
//! ```text
//!  wish without owner ──place──► owner + own ──mirror──► n/NODE/order ──(agent)──► n/NODE/seen ──fold──► operations
//!  wish leaving, agent says removed ──forget──► all its keys gone, volumes deleted or set free
//!  disk dropped, agent sees it closed ──free_dropped──► its volume is nobody's
//! ```
//! One transaction at a time per VM; the next look continues. Each compares the revisions it was decided from, so a write by
//! anyone else in between makes it fail harmlessly.

use std::collections::BTreeMap;

use vmkeep_core::place::{self, Choice};
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{Epoch, Generation, Revision, VmId};
use vmkeep_types::image::{ImageKind, ImageRecord};
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Observed, Rest, Seen};
use vmkeep_types::operation::{OpState, Operation, Wanted};
use vmkeep_types::order::{ImageBrief, Order};
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Leaving, Owner, Power, PowerWish, VmChoices, VmRecord};

use super::brought::{bring, images_of};
use super::ha::arm::{self, Clearance, Turn};
use super::view::{ClusterView, Kept};
use crate::app;
use crate::app::vm_copy::NOT_COPIED;
use crate::app::vm_resolve::{chosen_macs, fixed_macs};

/// The model that means a CPU which every node can run.
const CLUSTER_CPU: &str = "cluster";

/// The next writes for one VM: at most one transaction that decides, and those that fold words into operations.
pub fn next(view: &ClusterView, id: VmId, now: jiff::Timestamp) -> Vec<Txn> {
    if let Some(txn) = super::migrate::next(view, id, now) {
        return vec![txn];
    }
    let Some(record) = view.vms.get(&id) else { return forgotten(view, id, now) };
    let owner = view.owners.get(&id);
    if let Some(txn) = owner.map_or_else(|| place_or_block(view, record, now), |owner| follow(view, record, owner, now)) {
        return vec![txn];
    }
    if let Some(txn) = super::ha::policy::next(view, id, now) {
        return vec![txn];
    }
    fold_operations(view, id, now)
}

/// A VM without owner gets one, or its operations say why not.
fn place_or_block(view: &ClusterView, record: &Kept<VmRecord>, now: jiff::Timestamp) -> Option<Txn> {
    let vm = &record.value;
    if vm.leaving.is_some() {
        return Some(remove_by_node(view, record, now).unwrap_or_else(|| forget(view, record)));
    }
    // No node has it, so nobody has its disks.
    if let Some(txn) = free(view, record, Compare::Absent(keys::owner(vm.id)), |_| true) {
        return Some(txn);
    }
    match awaited_image(view, vm) {
        Awaited::None => {}
        Awaited::Later(why) => return block(view, vm.id, &why),
        Awaited::Never(why) => return give_up(view, vm, &why, now),
    }
    if let Some(volume) = filling(view, vm).next() {
        return block(view, vm.id, &format!("volume '{}' is still being filled", volume.value.name));
    }
    let choice = view.fleet().guest(vm.id).map_or_else(|| Choice::Blocked(Vec::new()), |guest| place::choose(view.fleet(), guest));
    match choice {
        Choice::Node(node) => match arm::turn(view, vm, &node, now) {
            Turn::Go(clear) => Some(clear.under(place(view, vm, &node, record.modified))),
            Turn::Ask(txn) => Some(txn),
            Turn::Wait(why) => block(view, vm.id, &why),
        },
        Choice::Blocked(refusals) => block(view, vm.id, &place::words(&refusals)),
    }
}

/// What the images that a VM names say to its placement.
enum Awaited {
    None,
    /// It goes on by itself.
    Later(String),
    /// Nothing will come.
    Never(String),
}

/// A VM may be written before the images that it names are ready; no node hears of it until then.
fn awaited_image(view: &ClusterView, vm: &VmRecord) -> Awaited {
    let mut named: Vec<(&Name, Option<&Kept<ImageRecord>>, ImageKind)> = Vec::new();
    for disk in &vm.spec.disks {
        let volume = vm.volumes.get(&disk.name).and_then(|id| view.volumes.get(id));
        if let (Some(name), Some(id)) = (&disk.image, volume.and_then(|volume| volume.value.image)) {
            named.push((name, view.images.get(&id), ImageKind::Disk));
        }
    }
    for name in vm.spec.cdroms.iter().filter_map(|cdrom| cdrom.image.as_ref()) {
        named.push((name, view.image_by_name(&vm.project, name), ImageKind::Iso));
    }
    for (name, image, kind) in named {
        let Some(image) = image else { return Awaited::Never(format!("image '{name}' was not made: its import failed or was cancelled")) };
        match (&image.value.facts, kind) {
            (None, _) => return Awaited::Later(format!("waits for image '{name}'")),
            (Some(facts), ImageKind::Disk) if facts.kind == ImageKind::Iso => {
                return Awaited::Never(format!("image '{name}' turned out to be an ISO, no disk"));
            }
            (Some(facts), ImageKind::Iso) if facts.kind == ImageKind::Disk => {
                return Awaited::Never(format!("image '{name}' turned out to be a disk, no ISO"));
            }
            (Some(_), _) => {}
        }
    }
    Awaited::None
}

/// The operations of a VM that no node will get end, one at a time.
fn give_up(view: &ClusterView, vm: &VmRecord, why: &str, now: jiff::Timestamp) -> Option<Txn> {
    let op = view.ops_of(vm.id).next()?;
    let hint = format!("vmkeep vm delete {}, and create it again when the image is there", vm.spec.name);
    let value = Operation { error: Some(Error::conflict(why).hint(hint)), ..ended(&op.value, OpState::Failed, now) };
    Some(replace_op(op, &value))
}

/// Volumes of a wish whose first data is still being written.
fn filling<'a>(view: &'a ClusterView, vm: &VmRecord) -> impl Iterator<Item = &'a Kept<VolumeRecord>> {
    vm.volumes.values().filter_map(|id| view.volumes.get(id)).filter(|volume| volume.value.filling.is_some())
}

/// A clone that is given up, or a VM that never found room: the node that holds its volumes takes away what is there of
/// them, after what writes them was cancelled. None: no node has anything of it.
fn remove_by_node(view: &ClusterView, record: &Kept<VmRecord>, now: jiff::Timestamp) -> Option<Txn> {
    let vm = &record.value;
    let home = vm.volumes.values().filter_map(|id| view.volumes.get(id)).find_map(|volume| volume.value.node.as_ref())?;
    view.nodes.get(home)?.facts.as_ref()?;
    let mut txn = place(view, vm, home, record.modified);
    for volume in filling(view, vm) {
        let op = volume.value.filling.expect("it was found by that");
        let at = volume.value.node.as_ref().unwrap_or(home);
        txn.then.extend([keys::task(at, op), keys::result(at, op)].map(Op::Delete));
        if let Some(op) = view.ops.get(&op).filter(|op| !op.value.state.is_over()) {
            let over = ended(&op.value, OpState::Cancelled, now);
            txn = txn.when(Compare::ModifiedAt(op_key(&op.value), op.modified)).then(typed::put(op_key(&op.value), &over));
        }
    }
    Some(txn)
}

/// The owner that a transaction writes.
pub fn owner_written(id: VmId, txn: &Txn) -> Option<Owner> {
    let key = keys::owner(id);
    txn.then.iter().find_map(|op| match op {
        Op::Put(to, value) if *to == key => serde_json::from_slice(value).ok(),
        _ => None,
    })
}

/// Above what a restored store had raised its owners to and may have let go of, and above what a removed node had.
fn first_right(view: &ClusterView, id: VmId) -> Generation {
    let fresh = if view.incarnation == 0 { Generation(1) } else { Generation::first_of(view.incarnation).next() };
    view.released.get(&id).map_or(fresh, |kept| kept.value.generation.next().max(fresh))
}

fn place(view: &ClusterView, vm: &VmRecord, node: &Name, wish: Revision) -> Txn {
    let epoch = view.nodes.get(node).and_then(|n| n.facts.as_ref()).map_or(Epoch(1), |facts| facts.value.epoch);
    let owner = Owner { vm: vm.id, project: vm.project.clone(), node: node.clone(), epoch, generation: first_right(view, vm.id), to: None };
    let released = view.released.get(&vm.id).map(|kept| (keys::released(vm.id), kept.modified));
    let guard = released.clone().map_or_else(|| Compare::Absent(keys::released(vm.id)), |(key, read)| Compare::ModifiedAt(key, read));
    let mut txn = Txn::default()
        .when(guard)
        .when(Compare::Absent(keys::owner(vm.id)))
        .when(Compare::ModifiedAt(keys::vm(&vm.project, vm.id), wish))
        .when(Compare::Absent(keys::fence(node, epoch)))
        .then(typed::put(keys::owner(vm.id), &owner))
        .then(Op::Put(keys::own(node, vm.id), Vec::new()));
    txn.then.extend(released.map(|(key, _)| Op::Delete(key)));
    let txn = bring(view, vm, node).into_iter().fold(txn, |txn, (guard, op)| txn.when(guard).then(op));
    let (cpu, txn) = match cluster_cpu(view, vm) {
        Some((choices, read_at)) => {
            let guard = Compare::ModifiedAt(keys::choices(vm.id), read_at);
            let txn = txn.when(guard).then(typed::put(keys::choices(vm.id), &choices));
            (Some(choices), txn)
        }
        None => (None, txn),
    };
    match order_for(view, vm, wish, &owner) {
        Some(mut order) => {
            order.choices = cpu.unwrap_or(order.choices);
            txn.then(typed::put(keys::order(node, vm.id), &order))
        }
        None => txn,
    }
}

/// The choices of a VM that wants a CPU which all nodes can run and has none yet. Without one the node gives it its own.
fn cluster_cpu(view: &ClusterView, vm: &VmRecord) -> Option<(VmChoices, Revision)> {
    if vm.spec.cpu.model != CLUSTER_CPU {
        return None;
    }
    let kept = view.choices.get(&vm.id).filter(|kept| kept.value.cpu_xml.is_none())?;
    let xml = view.baseline().as_ref().ok()?.cpu_xml();
    Some((VmChoices { cpu_xml: Some(xml), ..view.in_form(kept.value.clone()) }, kept.modified))
}

fn block(view: &ClusterView, id: VmId, why: &str) -> Option<Txn> {
    let op = view.ops_of(id).find(|op| op.value.blocked.as_deref() != Some(why))?;
    let mut value = op.value.clone();
    value.blocked = Some(why.to_owned());
    Some(replace_op(op, &value))
}

/// The owner's order mirrors the wish; what the node found out is kept; a VM that is gone is forgotten.
fn follow(view: &ClusterView, record: &Kept<VmRecord>, owner: &Kept<Owner>, now: jiff::Timestamp) -> Option<Txn> {
    let vm = &record.value;
    let seen = view.seen(vm.id).filter(|seen| seen.generation == owner.value.generation);
    if vm.leaving.is_some() && seen.is_some_and(|seen| seen.memory.removed) {
        return Some(forget(view, record));
    }
    if let Some(txn) = seen.and_then(|seen| keep_choices(view, record, seen).or_else(|| follow_outside_start(view, vm.id, seen))) {
        return Some(txn);
    }
    if let Some(txn) = seen.and_then(|seen| made(view, vm, seen)) {
        return Some(txn);
    }
    if let Some(txn) = seen.and_then(|seen| booted_once(record, seen)).or_else(|| free_dropped(view, record, owner)) {
        return Some(txn);
    }
    // A wish that asks for the cluster's CPU only now, before the node chooses its own.
    if let Some((choices, read_at)) = cluster_cpu(view, vm).filter(|_| vm.leaving.is_none()) {
        let guard = Compare::ModifiedAt(keys::choices(vm.id), read_at);
        return Some(Txn::default().when(guard).then(typed::put(keys::choices(vm.id), &choices)));
    }
    let node = &owner.value.node;
    let brought = bring(view, vm, node);
    if !brought.is_empty() && vm.leaving.is_none() {
        return Some(brought.into_iter().fold(Txn::default(), |txn, (guard, op)| txn.when(guard).then(op)));
    }
    let old = view.nodes.get(node).and_then(|keys| keys.orders.get(&vm.id));
    let refreshed = refreshed_epoch(view, owner);
    // In its new life, too, the node says first how it would die.
    let clear = match refreshed.as_ref().map(|_| arm::turn(view, vm, node, now)) {
        Some(Turn::Go(clear)) => clear,
        Some(Turn::Ask(txn)) => return Some(txn),
        Some(Turn::Wait(_)) => return None,
        None => Clearance::default(),
    };
    let order = order_for(view, vm, record.modified, refreshed.as_ref().unwrap_or(&owner.value))?;
    if old.is_some_and(|old| *old == order.digest()) {
        return None;
    }
    let mut txn = Txn::default()
        .when(Compare::ModifiedAt(keys::vm(&vm.project, vm.id), record.modified))
        .when(Compare::ModifiedAt(keys::owner(vm.id), owner.modified))
        .then(typed::put(keys::order(node, vm.id), &order));
    if let Some(refreshed) = refreshed {
        txn = txn.then(typed::put(keys::owner(vm.id), &refreshed));
    }
    Some(clear.under(txn))
}

/// What a node has made is noted at the volume, so that no other node makes it anew where it does not see the file.
fn made(view: &ClusterView, vm: &VmRecord, seen: &Seen) -> Option<Txn> {
    let volumes = vm.volumes.values().filter_map(|id| view.volumes.get(id));
    let news = volumes.filter(|volume| !volume.value.made && seen.volumes.contains_key(&volume.value.id));
    let note = |txn: Txn, volume: &Kept<VolumeRecord>| {
        let key = keys::volume(&volume.value.project, volume.value.id);
        let value = VolumeRecord { made: true, ..volume.value.clone() };
        txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &value))
    };
    let txn = news.fold(Txn::default(), note);
    (!txn.then.is_empty()).then_some(txn)
}

/// `boot_once` has been carried out and is taken out of the wish.
fn booted_once(record: &Kept<VmRecord>, seen: &Seen) -> Option<Txn> {
    let vm = &record.value;
    vm.spec.boot_once.as_ref().filter(|_| seen.memory.booted_once == Some(record.modified))?;
    let mut plain = vm.clone();
    plain.spec.boot_once = None;
    let key = keys::vm(&vm.project, vm.id);
    Some(Txn::default().when(Compare::ModifiedAt(key.clone(), record.modified)).then(typed::put(key, &plain)))
}

/// A single host that booted has a new epoch and still owns its VMs: nobody else could have taken them, because a change of
/// owner is a change of the owner record.
fn refreshed_epoch(view: &ClusterView, owner: &Kept<Owner>) -> Option<Owner> {
    let epoch = view.nodes.get(&owner.value.node)?.facts.as_ref()?.value.epoch;
    (epoch > owner.value.epoch).then(|| Owner { epoch, ..owner.value.clone() })
}

/// Disks that the wish let go of are set free once the domain has them no more, running or stored: until then a guest
/// writes to them.
fn free_dropped(view: &ClusterView, record: &Kept<VmRecord>, owner: &Kept<Owner>) -> Option<Txn> {
    let seen = view.nodes.get(&owner.value.node)?.seen.get(&record.value.id)?;
    let current = seen.value.generation == owner.value.generation && seen.value.memory.applied >= record.modified;
    let open = seen.value.also_open.as_ref().filter(|_| current)?;
    let looked = Compare::ModifiedAt(keys::seen(&owner.value.node, record.value.id), seen.modified);
    free(view, record, looked, |volume| !open.iter().any(|file| is_file_of(file, volume)))
}

fn free(view: &ClusterView, record: &Kept<VmRecord>, guard: Compare, closed: impl Fn(&VolumeRecord) -> bool) -> Option<Txn> {
    let vm = &record.value;
    let gone: Vec<_> = dropped(view, vm).filter(|volume| closed(&volume.value)).collect();
    let txn = Txn::default().when(guard).when(Compare::ModifiedAt(keys::vm(&vm.project, vm.id), record.modified));
    (!gone.is_empty()).then(|| {
        gone.into_iter().fold(txn, |txn, volume| {
            let key = keys::volume(&volume.value.project, volume.value.id);
            txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &set_free(&volume.value)))
        })
    })
}

/// Volumes that are attached to a VM whose wish does not name them any more.
fn dropped<'a>(view: &'a ClusterView, vm: &'a VmRecord) -> impl Iterator<Item = &'a Kept<VolumeRecord>> {
    view.volumes_of(vm.id).filter(|volume| !vm.volumes.values().any(|id| *id == volume.value.id))
}

/// A volume's own file begins with its id, as do the overlays that other tools make of it.
fn is_file_of(file: &str, volume: &VolumeRecord) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    volume.foreign_path.as_deref() == Some(file) || name.starts_with(&volume.id.to_string())
}

fn set_free(volume: &VolumeRecord) -> VolumeRecord {
    VolumeRecord { attached: None, ..volume.clone() }
}

/// Only what was chosen for the wish as it is: an older word would bring back what a change of the wish gave up.
fn keep_choices(view: &ClusterView, record: &Kept<VmRecord>, seen: &Seen) -> Option<Txn> {
    if seen.spec_revision < record.modified {
        return None;
    }
    let id = record.value.id;
    let kept = view.choices.get(&id)?;
    let merged = view.in_form(merge_choices(&kept.value, &seen.choices));
    (merged != kept.value)
        .then(|| Txn::default().when(Compare::ModifiedAt(keys::choices(id), kept.modified)).then(typed::put(keys::choices(id), &merged)))
}

/// MACs and serials are chosen here, and stay. The rest is chosen on the node, which keeps what it was told as long as it
/// means something: its word replaces ours.
fn merge_choices(kept: &VmChoices, news: &VmChoices) -> VmChoices {
    let mut merged = kept.clone();
    for (name, mac) in &news.macs {
        merged.macs.entry(name.clone()).or_insert_with(|| mac.clone());
    }
    for (name, serial) in &news.serials {
        merged.serials.entry(name.clone()).or_insert_with(|| serial.clone());
    }
    if news.machine.is_some() && news.machine != kept.machine {
        merged.addresses.clone_from(&news.addresses);
    } else {
        merged.addresses.take_over(&news.addresses);
    }
    merged.machine = news.machine.clone().or(merged.machine);
    merged.cpu_xml = news.cpu_xml.clone().or(merged.cpu_xml);
    merged.firmware = news.firmware.clone().or(merged.firmware);
    merged.domain_type = news.domain_type.clone().or(merged.domain_type);
    merged
}

/// Somebody started it with virsh: that ends the hold, as `vm start` would.
fn follow_outside_start(view: &ClusterView, id: VmId, seen: &Seen) -> Option<Txn> {
    let power = view.power.get(&id)?;
    let started_outside = seen.memory.rest == Some(Rest::StartedOutside) && seen.memory.power_cycle >= power.value.cycle;
    if !started_outside || power.value.want == PowerWish::On {
        return None;
    }
    let value = Power { want: PowerWish::On, cycle: power.value.cycle, held: None, stop_timeout: None };
    Some(Txn::default().when(Compare::ModifiedAt(keys::power(id), power.modified)).then(typed::put(keys::power(id), &value)))
}

/// Everything the node needs; None while a record it must name is missing or a volume has not its first data yet.
pub fn order_for(view: &ClusterView, vm: &VmRecord, wish: Revision, owner: &Owner) -> Option<Order> {
    if vm.leaving.is_none() && filling(view, vm).next().is_some() {
        return None;
    }
    let choices = view.in_form(view.choices.get(&vm.id).map(|kept| kept.value.clone()).unwrap_or_default());
    let power = view.power.get(&vm.id)?.value.clone();
    let here = |volume: &VolumeRecord| VolumeRecord { node: volume.node.clone().or(Some(owner.node.clone())), ..volume.clone() };
    let volumes: BTreeMap<_, _> =
        vm.volumes.iter().filter_map(|(disk, id)| Some((disk.clone(), here(&view.volumes.get(id)?.value)))).collect();
    let address = |node: &Name| view.nodes.get(node)?.facts.as_ref()?.value.address.clone();
    let brief = |image: &Kept<ImageRecord>| (image.value.id, app::image::brief(&image.value, &owner.node, address));
    let images: BTreeMap<_, ImageBrief> = images_of(view, vm).map(brief).collect();
    let networks = vm.spec.nics.iter().filter_map(|nic| view.network_by_name(&vm.project, &nic.network));
    let pools = volumes.values().map(|v| &v.pool).chain(images.values().map(|i| &i.pool)).filter_map(|name| view.pool_by_name(name));
    Some(Order {
        vm: vm.id,
        project: vm.project.clone(),
        spec: vm.spec.clone(),
        spec_revision: wish,
        generation: owner.generation,
        epoch: owner.epoch,
        choices,
        power,
        origin: vm.origin,
        leaving: vm.leaving,
        level: view.level(),
        instance: vm.instance,
        networks: networks.map(|n| (n.value.spec.name.clone(), n.value.spec.clone())).collect(),
        pools: pools.map(|p| (p.value.spec.name.clone(), p.value.spec.clone())).collect(),
        volumes,
        images,
        moving: super::migrate::moving(view, vm.id),
        handed: super::migrate::handed(view, vm.id),
    })
}

/// All keys of a VM that is gone from its node, its volumes removed or set free. Its operations end after it, each in a
/// transaction of its own: they are as many as people asked for, and one transaction holds only so much.
fn forget(view: &ClusterView, record: &Kept<VmRecord>) -> Txn {
    let vm = &record.value;
    let mut txn = Txn::default()
        .when(Compare::ModifiedAt(keys::vm(&vm.project, vm.id), record.modified))
        .then(Op::Delete(keys::vm(&vm.project, vm.id)))
        .then(Op::Delete(keys::name("vm", &vm.project, &vm.spec.name)))
        .then(Op::Delete(keys::domain(&vm.spec.name)))
        .then(Op::Delete(keys::choices(vm.id)))
        .then(Op::Delete(keys::power(vm.id)))
        .then(Op::Delete(keys::released(vm.id)))
        .then(Op::Delete(keys::ha_memory(vm.id)))
        .then(Op::Delete(keys::owner(vm.id)));
    let chosen = view.choices.get(&vm.id).map(|kept| chosen_macs(&kept.value)).unwrap_or_default();
    txn.then.extend(fixed_macs(&vm.spec).union(&chosen).map(|mac| Op::Delete(keys::mac(mac))));
    if let Some(owner) = view.owners.get(&vm.id) {
        let node = &owner.value.node;
        let gone = [keys::own(node, vm.id), keys::run(node, vm.id), keys::order(node, vm.id), keys::seen(node, vm.id)];
        txn.then.extend(gone.map(Op::Delete));
        txn.then.push(Op::DeletePrefix(keys::all_stopped(node, vm.id)));
    }
    for volume in vm.volumes.values().filter_map(|id| view.volumes.get(id)) {
        txn.then.extend(let_go(vm, volume));
    }
    txn.then.extend(dropped(view, vm).map(|v| typed::put(keys::volume(&v.value.project, v.value.id), &set_free(&v.value))));
    txn
}

fn let_go(vm: &VmRecord, volume: &Kept<VolumeRecord>) -> Vec<Op> {
    let value = &volume.value;
    let key = keys::volume(&value.project, value.id);
    let ours = value.foreign_path.is_none();
    if vm.leaving == Some(Leaving::DeleteKeepDisks) && ours && value.filling.is_none() {
        return vec![typed::put(key, &set_free(value))];
    }
    vec![Op::Delete(key), Op::Delete(keys::name("volume", &value.project, &value.name))]
}

/// Operations on a VM that no longer exists end.
fn forgotten(view: &ClusterView, id: VmId, now: jiff::Timestamp) -> Vec<Txn> {
    let end = |op: &Kept<Operation>| {
        let state = if op.value.wanted == Wanted::Gone { OpState::Done } else { OpState::Cancelled };
        replace_op(op, &ended(&op.value, state, now))
    };
    // What a task did is told by its own result.
    view.ops_of(id).filter(|op| op.value.wanted != Wanted::Task).map(end).collect()
}

/// The agent's word, as each open operation of the VM tells it.
fn fold_operations(view: &ClusterView, id: VmId, now: jiff::Timestamp) -> Vec<Txn> {
    let Some(seen) = view.seen(id) else { return Vec::new() };
    let fold = |op: &Kept<Operation>| {
        let told = tell(op, seen, now)?;
        (told != op.value).then(|| replace_op(op, &told))
    };
    view.ops_of(id).filter_map(fold).collect()
}

fn tell(op: &Kept<Operation>, seen: &Seen, now: jiff::Timestamp) -> Option<Operation> {
    let Wanted::Vm { spec_revision, power_cycle } = op.value.wanted else { return None };
    // An operation that wrote the wish was created in the same transaction, so the wish has its revision.
    let wanted = if spec_revision == Revision(0) { op.created } else { spec_revision };
    let mut value = op.value.clone();
    // What a node does it says beside it; without that the domain is unknown because nobody tells.
    let silent = matches!(seen.domain, Observed::Unknown) && seen.doing.is_none();
    value.blocked = silent.then(|| "libvirt does not answer on its node".to_owned());
    let fresh = seen.spec_revision >= wanted && !matches!(seen.domain, Observed::Unknown);
    if seen.memory.tried() >= wanted && seen.memory.power_cycle >= power_cycle && fresh {
        value.steps = steps(&op.value, seen);
        value.error.clone_from(&seen.error);
        let state = if seen.error.is_some() { OpState::Failed } else { OpState::Done };
        return Some(ended(&value, state, now));
    }
    value.state = OpState::Running;
    // Those of the command before are no news of this one.
    if seen.spec_revision >= wanted && seen.ordered_cycle >= power_cycle {
        value.steps = steps(&op.value, seen);
    }
    Some(value)
}

/// What a clone does not take stays said before what the agent does for it.
fn steps(op: &Operation, seen: &Seen) -> Vec<String> {
    let kept = op.steps.iter().filter(|step| step.starts_with(NOT_COPIED)).cloned();
    kept.chain(seen.steps.iter().cloned()).collect()
}

pub fn ended(op: &Operation, state: OpState, now: jiff::Timestamp) -> Operation {
    Operation { state, ended_at: Some(now), blocked: None, copying: None, ..op.clone() }
}

pub fn op_key(op: &Operation) -> String {
    keys::op(&op.project, op.id)
}

pub fn replace_op(op: &Kept<Operation>, value: &Operation) -> Txn {
    let key = op_key(value);
    Txn::default().when(Compare::ModifiedAt(key.clone(), op.modified)).then(typed::put(key, value))
}
