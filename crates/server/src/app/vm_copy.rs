//! VMs renamed and copied.

use std::collections::BTreeMap;

use vmkeep_api::body::VmView;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{OperationId, Revision, VmId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::Work;
use vmkeep_types::pool::{Attachment, VolumeRecord};
use vmkeep_types::record::{FirmwareChoice, Leaving, Power, PowerWish, Role, VmChoices, VmOrigin, VmRecord};
use vmkeep_types::vm::{DiskFormat, OsFamily, RunPolicy, VmSpec};

use super::network::task;
use super::vm_parts::resource;
use super::vm_resolve::{free_name, size_now, volume_name};
use super::vm_write::{choices, claim_macs};
use super::{Ask, begin, get, operation, pool, put_op};

/// Another name, the same VM.
pub async fn rename(store: &dyn Store, ask: &Ask, name: &Name, new: Name) -> Result<Operation, Error> {
    let old = super::vm_parts::record(store, &ask.project, name).await?;
    ask.expect(name, &old)?;
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{name}' is being deleted")));
    }
    let free = free_name(store, ask, &new).await?;
    let mut record = old.value.clone();
    record.spec.name = new.clone();
    let op = operation(ask, "vm.rename", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let (from, to) = (keys::name("vm", &ask.project, name), keys::name("vm", &ask.project, &new));
    let txn = Txn::default()
        .when(Compare::Absent(to.clone()))
        .when(Compare::ModifiedAt(old.key.clone(), old.modified))
        .then(Op::Delete(from))
        .then(Op::Delete(keys::domain(name)))
        .then(typed::put(to, &record.id))
        .then(typed::put(old.key, &record));
    begin(store, ask, free.take(old.value.id, txn), op)
        .await?
        .ok_or_else(|| Error::conflict(format!("there is a VM '{new}' already, or '{name}' changed meanwhile")))
}

/// A copy of a stopped VM, with a new uuid, new MACs and serials; it needs its source no more, only the images that both have.
///
/// Its volumes are `filling` until their copies are through, and until then it gets no node. A copy that fails or is
/// cancelled takes the whole clone with it (`reconcile::task`).
pub async fn clone(store: &dyn Store, ask: &Ask, name: &Name, new: Name) -> Result<Operation, Error> {
    let source = super::vm_parts::record(store, &ask.project, name).await?;
    let power = get::<Power>(store, &keys::power(source.value.id)).await?.ok_or_else(|| Error::not_found("vm", name))?;
    let view = super::vm_parts::show(store, &ask.project, name).await?;
    if view.status.phase != vmkeep_api::body::VmPhase::Stopped {
        return Err(Error::conflict(format!("'{name}' is {}; a clone of a running disk would be torn", view.status.text))
            .hint(format!("vmkeep vm stop {name}")));
    }
    ask.expect(name, &source)?;
    let old = source.value;
    let admins = check::admin_only(&old.spec);
    if !admins.is_empty() && ask.caller.role < Role::Admin {
        let words = format!("only admins may copy a VM with {}", admins.join(", "));
        return Err(Error::new(Code::Forbidden, words).hint("they reach the host itself"));
    }
    let free = free_name(store, ask, &new).await?;
    let id = VmId(uuid::Uuid::new_v4());
    let mut record = VmRecord {
        id,
        volumes: BTreeMap::new(),
        created_at: jiff::Timestamp::now(),
        origin: VmOrigin::Created,
        instance: 0,
        reinit_due: None,
        ..old.clone()
    };
    record.spec.name = new.clone();
    record.spec.nics.iter_mut().for_each(|nic| nic.mac = "auto".into());
    record.spec.run = if old.spec.run == RunPolicy::Halted { RunPolicy::Halted } else { RunPolicy::Manual };
    // What is read here must still be so when the clone is written: a source that was started meanwhile writes to its disks.
    let mut txn =
        Txn::default().when(Compare::ModifiedAt(source.key, source.modified)).when(Compare::ModifiedAt(power.key, power.modified));
    for disk in record.spec.disks.clone() {
        let Some(from) = old.volumes.get(&disk.name) else { continue };
        txn = copy_disk(store, ask, &mut record, &disk.name, *from, txn).await?;
    }
    let mut op = operation(ask, "vm.clone", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    op.steps.extend(left_behind(&view));
    op.steps.extend(differs(&old.spec, &record.spec));
    let name_key = keys::name("vm", &ask.project, &new);
    let chosen = choices(&record.spec, VmChoices::default());
    let txn = claim_macs(&VmChoices::default(), &chosen, id, txn)
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &id))
        .then(typed::put(keys::vm(&ask.project, id), &record))
        .then(typed::put(keys::choices(id), &chosen))
        .then(typed::put(keys::power(id), &Power { want: PowerWish::Off, cycle: 0, held: None, stop_timeout: None }));
    let refused = || Error::conflict(format!("'{new}' or one of its volumes is taken, or '{name}' changed at the same time"));
    begin(store, ask, free.take(id, txn), op).await?.ok_or_else(refused)
}

/// How the step of an operation begins that says what a clone does not take.
pub const NOT_COPIED: &str = "not copied: ";

/// What somebody who starts the clone must know.
fn differs(source: &VmSpec, clone: &VmSpec) -> Vec<String> {
    let mut told = Vec::new();
    if source.run != clone.run {
        told.push(format!("{NOT_COPIED}`run`, so that the clone starts when you say so: `vmkeep vm set {} run=…`", clone.name));
    }
    let fixed = clone.nics.iter().filter(|nic| nic.addresses.iter().any(|address| address.contains('/')));
    told.extend(
        fixed.map(|nic| format!("{NOT_COPIED}addresses of its own: nics[{}] of both guests has {}", nic.name, nic.addresses.join(", "))),
    );
    told
}

/// What a clone does not take from its source.
fn left_behind(source: &VmView) -> Option<String> {
    let uefi = matches!(source.choices.firmware, Some(FirmwareChoice::Uefi { .. }));
    let what = match (uefi, source.spec.tpm.unwrap_or(source.spec.os == OsFamily::Windows)) {
        (_, true) => "the TPM's secrets and the UEFI variables; a disk that the TPM unlocks asks for its recovery key",
        (true, false) => "the UEFI variables; the firmware looks for boot entries anew",
        (false, false) => return None,
    };
    Some(format!("{NOT_COPIED}{what}"))
}

/// What ends with a copy that is cancelled, or its clone's operation: the whole clone. Nothing when the copies are through.
pub(super) async fn give_up(store: &dyn Store, op: &Operation) -> Result<Txn, Error> {
    let vm = match op.kind.as_str() {
        "vm.clone" => Some(VmId(op.resource.uid)),
        "volume.copy" => get::<VolumeRecord>(store, &keys::volume(&op.project, VolumeId(op.resource.uid)))
            .await?
            .and_then(|volume| volume.value.attached)
            .map(|attached| attached.vm),
        _ => None,
    };
    let Some(vm) = vm else { return Ok(Txn::default()) };
    let Some(record) = get::<VmRecord>(store, &keys::vm(&op.project, vm)).await? else { return Ok(Txn::default()) };
    let mut filling = false;
    for id in record.value.volumes.values() {
        filling |= get::<VolumeRecord>(store, &keys::volume(&op.project, *id)).await?.is_some_and(|v| v.value.filling.is_some());
    }
    if !filling {
        return Ok(Txn::default());
    }
    let going = VmRecord { leaving: Some(Leaving::Delete), ..record.value };
    Ok(Txn::default().when(Compare::ModifiedAt(record.key.clone(), record.modified)).then(typed::put(record.key, &going)))
}

pub(super) fn volume_resource(ask: &Ask, volume: &VolumeRecord) -> ResourceRef {
    ResourceRef { kind: "volume".into(), project: ask.project.clone(), name: volume.name.clone(), uid: volume.id.0 }
}

/// A new volume for one disk of `record`, and the task that fills it from the volume `from`.
async fn copy_disk(store: &dyn Store, ask: &Ask, record: &mut VmRecord, disk: &Name, from: VolumeId, txn: Txn) -> Result<Txn, Error> {
    let source = get::<VolumeRecord>(store, &keys::volume(&ask.project, from)).await?.ok_or_else(|| Error::not_found("volume", from))?;
    let from = source.value;
    if from.filling.is_some() {
        return Err(Error::conflict(format!("volume '{}' is still being filled", from.name)).hint("vmkeep op list shows how far it is"));
    }
    let format = if from.data_format()? == "raw" { DiskFormat::Raw } else { DiskFormat::Qcow2 };
    let pool = pool::find(store, &from.pool).await?.spec;
    let op_id = OperationId(uuid::Uuid::now_v7());
    let to = VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        name: volume_name(&record.spec.name, disk),
        // What nobody wrote is read from the image by both.
        image: from.image.filter(|_| format == DiskFormat::Qcow2),
        foreign_path: None,
        filling: Some(op_id),
        made: false,
        size: size_now(store, &from).await?,
        format,
        attached: Some(Attachment { vm: record.id, disk: disk.clone() }),
        created_at: record.created_at,
        ..from.clone()
    };
    if let Some(wish) = record.spec.disks.iter_mut().find(|d| d.name == *disk && d.volume.is_some()) {
        wish.volume = Some(to.name.clone());
    }
    record.volumes.insert(disk.clone(), to.id);
    let unmade = || Error::conflict(format!("volume '{}' has no data yet", from.name)).hint("vmkeep vm show tells what its VM waits for");
    let node = from.node.clone().ok_or_else(unmade)?;
    let op = Operation { id: op_id, ..operation(ask, "volume.copy", volume_resource(ask, &to), Wanted::Task) };
    let name_key = keys::name("volume", &ask.project, &to.name);
    Ok(txn
        .when(Compare::ModifiedAt(source.key, source.modified))
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &to.id))
        .then(typed::put(keys::volume(&ask.project, to.id), &to))
        .then(put_op(&op))
        .then(task(&node, &ask.project, op.id, Work::CopyVolume { from, from_pool: pool.clone(), to, to_pool: pool })))
}
