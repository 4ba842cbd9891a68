//! First boots once more, newer machines, and root disks made anew.

use vmkeep_api::body::VmPhase;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{Revision, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::order::Work;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Power, VmChoices, VmRecord};
use vmkeep_types::vm::MachineFamily;

use super::network::task;
use super::vm_copy::volume_resource;
use super::vm_parts::{busy, resource};
use super::{Ask, begin, get, image, operation, pool, put_op, volume};

/// The guest's cloud-init takes itself for a new instance at its next start.
pub async fn reinit(store: &dyn Store, ask: &Ask, name: &Name) -> Result<Operation, Error> {
    let old = super::vm_parts::record(store, &ask.project, name).await?;
    ask.expect(name, &old)?;
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{name}' is being deleted")));
    }
    if old.value.spec.cloud_init.is_none() {
        return Err(Error::conflict(format!("'{name}' has no cloud_init: no first boot was ever prepared for it")));
    }
    let record = VmRecord { instance: old.value.instance + 1, ..old.value };
    let op = operation(ask, "vm.reinit", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let txn = Txn::default().when(Compare::ModifiedAt(old.key.clone(), old.modified)).then(typed::put(old.key, &record));
    begin(store, ask, txn, op).await?.ok_or_else(|| busy(name))
}

/// The newest version of its kind of machine, from the next cold start on. The node puts the version in the kind's place.
pub async fn upgrade_machine(store: &dyn Store, ask: &Ask, name: &Name) -> Result<Operation, Error> {
    let old = super::vm_parts::record(store, &ask.project, name).await?;
    ask.expect(name, &old)?;
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{name}' is being deleted")));
    }
    let chosen = get::<VmChoices>(store, &keys::choices(old.value.id)).await?.ok_or_else(|| Error::not_found("vm", name))?;
    let newest = match old.value.spec.machine {
        MachineFamily::Q35 => "q35",
        MachineFamily::Pc => "pc",
    };
    let op = operation(ask, "vm.upgrade-machine", resource(&old.value), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    // The wish is written again as it is: its new revision is what the node takes up and the operation waits for.
    let txn = Txn::default()
        .when(Compare::ModifiedAt(old.key.clone(), old.modified))
        .when(Compare::ModifiedAt(chosen.key.clone(), chosen.modified))
        .then(typed::put(old.key, &old.value))
        .then(typed::put(chosen.key, &VmChoices { machine: Some(newest.to_owned()), ..chosen.value }));
    begin(store, ask, txn, op).await?.ok_or_else(|| busy(name))
}

/// The first disk that was made from an image is made again, from that image or another; what was on it is lost.
pub async fn rebuild(store: &dyn Store, ask: &Ask, name: &Name, from: Option<Name>) -> Result<Operation, Error> {
    let view = super::vm_parts::show(store, &ask.project, name).await?;
    if view.status.phase != VmPhase::Stopped {
        return Err(Error::conflict(format!("'{name}' is {}; only a stopped VM is rebuilt", view.status.text))
            .hint(format!("vmkeep vm stop {name}")));
    }
    let old = super::vm_parts::record(store, &ask.project, name).await?;
    ask.expect(name, &old)?;
    let mut record = old.value.clone();
    if record.spec.protect {
        return Err(Error::conflict(format!("'{name}' is protected")).hint(format!("vmkeep vm set {name} protect=false")));
    }
    let no_image = || Error::conflict(format!("no disk of '{name}' was made from an image"));
    let wish = record.spec.disks.iter_mut().find(|disk| disk.image.is_some()).ok_or_else(no_image)?;
    let disk = wish.name.clone();
    let from = from.as_ref().or(wish.image.as_ref()).expect("it was found by its image");
    let (image, facts, still_there) = image::ready(store, &ask.project, from).await?;
    wish.image = Some(image.spec.name.clone());
    let id = *record.volumes.get(&disk).ok_or_else(no_image)?;
    let there = get::<VolumeRecord>(store, &keys::volume(&ask.project, id)).await?.ok_or_else(|| Error::not_found("volume", id))?;
    if there.value.foreign_path.is_some() {
        return Err(Error::conflict(format!("disk '{disk}' of '{name}' is a file that vmkeep did not make; it is not replaced")));
    }
    let size = there.value.size.map_or(facts.virtual_size, |size| size.max(facts.virtual_size));
    wish.size = wish.size.map(|_| size);
    let fresh = VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        image: Some(image.id),
        size: Some(size),
        made: false,
        created_at: jiff::Timestamp::now(),
        ..there.value.clone()
    };
    record.volumes.insert(disk, fresh.id);
    // A first boot it is, with host keys of its own.
    record.instance += 1;
    let op = operation(ask, "vm.rebuild", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let power = keys::power(record.id);
    let stopped = get::<Power>(store, &power).await?.ok_or_else(|| Error::not_found("vm", name))?;
    let txn = Txn::default()
        .when(Compare::ModifiedAt(old.key.clone(), old.modified))
        // Nobody started it meanwhile.
        .when(Compare::ModifiedAt(power, stopped.modified))
        .when(Compare::ModifiedAt(there.key, there.modified))
        .when(still_there)
        .then(typed::put(old.key, &record))
        .then(typed::put(keys::name("volume", &ask.project, &fresh.name), &fresh.id))
        .then(typed::put(keys::volume(&ask.project, fresh.id), &fresh));
    let txn = discard(store, ask, there.value, txn).await?;
    begin(store, ask, txn, op).await?.ok_or_else(|| busy(name))
}

/// The old volume leaves under a name of its own, because the new one has its name.
async fn discard(store: &dyn Store, ask: &Ask, old: VolumeRecord, txn: Txn) -> Result<Txn, Error> {
    let Some(node) = old.node.clone() else { return Ok(txn.then(Op::Delete(keys::volume(&ask.project, old.id)))) };
    let pool = pool::find(store, &old.pool).await?.spec;
    let name = format!("replaced-{}", old.id).parse().expect("a word and a uuid make a name");
    let going = volume::going(VolumeRecord { name, ..old });
    let op = operation(ask, "volume.delete", volume_resource(ask, &going), Wanted::Task);
    let work = Work::DeleteVolume { volume: going.id, pool };
    Ok(txn
        .then(typed::put(keys::name("volume", &ask.project, &going.name), &going.id))
        .then(typed::put(keys::volume(&ask.project, going.id), &going))
        .then(put_op(&op))
        .then(task(&node, &ask.project, op.id, work)))
}
