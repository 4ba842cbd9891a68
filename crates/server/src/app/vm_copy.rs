//! VMs renamed and copied.

use std::collections::BTreeMap;

use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{OperationId, Revision, VmId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::Work;
use vmkeep_types::pool::{Attachment, VolumeRecord};
use vmkeep_types::record::{Power, PowerWish, Role, VmChoices, VmOrigin, VmRecord};
use vmkeep_types::vm::{DiskFormat, RunPolicy};

use super::network::task;
use super::vm_parts::resource;
use super::vm_resolve::{name_is_free_elsewhere, volume_name};
use super::vm_write::{choices, taken_macs};
use super::{Ask, commit, get, operation, pool, put_op};

/// Another name, the same VM.
pub async fn rename(store: &dyn Store, ask: &Ask, name: &Name, new: Name) -> Result<Operation, Error> {
    let old = super::vm_parts::record(store, &ask.project, name).await?;
    if old.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{name}' is being deleted")));
    }
    name_is_free_elsewhere(store, ask, &new).await?;
    let mut record = old.value.clone();
    record.spec.name = new.clone();
    let op = operation(ask, "vm.rename", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let (from, to) = (keys::name("vm", &ask.project, name), keys::name("vm", &ask.project, &new));
    let txn = Txn::default()
        .when(Compare::Absent(to.clone()))
        .when(Compare::ModifiedAt(old.key.clone(), old.modified))
        .then(Op::Delete(from))
        .then(typed::put(to, &record.id))
        .then(typed::put(old.key, &record))
        .then(put_op(&op));
    commit(store, txn)
        .await?
        .map(|_| op)
        .ok_or_else(|| Error::conflict(format!("there is a VM '{new}' already, or '{name}' changed meanwhile")))
}

/// A full copy of a stopped VM, with a new uuid, new MACs and serials.
pub async fn clone(store: &dyn Store, ask: &Ask, name: &Name, new: Name) -> Result<Operation, Error> {
    let source = super::vm_parts::show(store, &ask.project, name).await?;
    if source.status.phase != vmkeep_api::body::VmPhase::Stopped {
        return Err(Error::conflict(format!("'{name}' is {}; a clone of a running disk would be torn", source.status.text))
            .hint(format!("vmkeep vm stop {name}")));
    }
    let old = super::vm_parts::record(store, &ask.project, name).await?.value;
    let admins = check::admin_only(&old.spec);
    if !admins.is_empty() && ask.caller.role < Role::Admin {
        let words = format!("only admins may copy a VM with {}", admins.join(", "));
        return Err(Error::new(Code::Forbidden, words).hint("they reach the host itself"));
    }
    name_is_free_elsewhere(store, ask, &new).await?;
    let id = VmId(uuid::Uuid::new_v4());
    let mut record = VmRecord {
        id,
        volumes: BTreeMap::new(),
        created_at: jiff::Timestamp::now(),
        origin: VmOrigin::Created,
        instance: 0,
        ..old.clone()
    };
    record.spec.name = new.clone();
    record.spec.nics.iter_mut().for_each(|nic| nic.mac = "auto".into());
    record.spec.run = if old.spec.run == RunPolicy::Halted { RunPolicy::Halted } else { RunPolicy::Manual };
    let mut txn = Txn::default();
    for disk in record.spec.disks.clone() {
        let Some(from) = old.volumes.get(&disk.name) else { continue };
        txn = copy_disk(store, ask, &mut record, &disk.name, *from, txn).await?;
    }
    let op = operation(ask, "vm.clone", resource(&record), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let name_key = keys::name("vm", &ask.project, &new);
    let txn = txn
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &id))
        .then(typed::put(keys::vm(&ask.project, id), &record))
        .then(typed::put(keys::choices(id), &choices(&record.spec, VmChoices::default(), &taken_macs(store).await?)))
        .then(typed::put(keys::power(id), &Power { want: PowerWish::Off, cycle: 0, held: None, stop_timeout: None }))
        .then(put_op(&op));
    commit(store, txn).await?.map(|_| op).ok_or_else(|| Error::conflict(format!("'{new}' or one of its volumes is taken")))
}

pub(super) fn volume_resource(ask: &Ask, volume: &VolumeRecord) -> ResourceRef {
    ResourceRef { kind: "volume".into(), project: ask.project.clone(), name: volume.name.clone(), uid: volume.id.0 }
}

/// A new volume for one disk of `record`, and the task that fills it from the volume `from`.
async fn copy_disk(store: &dyn Store, ask: &Ask, record: &mut VmRecord, disk: &Name, from: VolumeId, txn: Txn) -> Result<Txn, Error> {
    let from = get::<VolumeRecord>(store, &keys::volume(&ask.project, from)).await?.ok_or_else(|| Error::not_found("volume", from))?.value;
    let pool = pool::find(store, &from.pool).await?.spec;
    let to = VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        name: volume_name(&record.spec.name, disk),
        image: None,
        foreign_path: None,
        filling: None,
        format: if from.format == DiskFormat::Auto { DiskFormat::Qcow2 } else { from.format },
        attached: Some(Attachment { vm: record.id, disk: disk.clone() }),
        created_at: record.created_at,
        ..from.clone()
    };
    if let Some(wish) = record.spec.disks.iter_mut().find(|d| d.name == *disk && d.volume.is_some()) {
        wish.volume = Some(to.name.clone());
    }
    record.volumes.insert(disk.clone(), to.id);
    let node = from.node.clone();
    let op = Operation { id: OperationId(uuid::Uuid::now_v7()), ..operation(ask, "volume.copy", volume_resource(ask, &to), Wanted::Task) };
    let name_key = keys::name("volume", &ask.project, &to.name);
    Ok(txn
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &to.id))
        .then(typed::put(keys::volume(&ask.project, to.id), &to))
        .then(put_op(&op))
        .then(task(&node, &ask.project, op.id, Work::CopyVolume { from, from_pool: pool.clone(), to, to_pool: pool })))
}
