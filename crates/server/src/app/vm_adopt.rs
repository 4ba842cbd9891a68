//! Domains and disk chains that were there before, taken over as they are.

use std::collections::BTreeMap;

use vmkeep_api::body::{AdoptionProposal, FoundDisk};
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{Revision, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::pool::{Attachment, PoolDriver, PoolSpec, VolumeRecord};
use vmkeep_types::record::{Power, PowerWish, VmOrigin, VmRecord};
use vmkeep_types::vm::DiskFormat;

use super::vm_parts::{busy, record, resource};
use super::vm_resolve::{chosen_macs, fixed_macs, free_name, volume_name};
use super::{Ask, begin, get, operation, pool};

/// Takes over a domain that a node proposes.
///
/// # Errors
/// Its name, uuid, volumes or MACs are taken; the store's.
pub async fn adopt(store: &dyn Store, ask: &Ask, node: &Name, proposal: AdoptionProposal, name: Option<Name>) -> Result<Operation, Error> {
    let mut spec = proposal.spec;
    if let Some(name) = name {
        spec.name = name;
    }
    let free = free_name(store, ask, &spec.name).await?;
    let created_at = jiff::Timestamp::now();
    let mut record = VmRecord {
        id: proposal.uuid,
        project: ask.project.clone(),
        spec,
        volumes: BTreeMap::new(),
        created_at,
        origin: VmOrigin::Adopted,
        leaving: None,
        instance: 0,
    };
    let name_key = keys::name("vm", &ask.project, &record.spec.name);
    let key = keys::vm(&ask.project, record.id);
    // Of whatever project: what another VM of this uuid left of itself is not overwritten.
    let unused = [name_key.clone(), key.clone(), keys::owner(record.id), keys::power(record.id), keys::choices(record.id)];
    let mut txn = Txn { compare: unused.map(Compare::Absent).to_vec(), ..Txn::default() };
    for mac in fixed_macs(&record.spec).union(&chosen_macs(&proposal.choices)) {
        txn = txn.when(Compare::Absent(keys::mac(mac))).then(typed::put(keys::mac(mac), &record.id));
    }
    for (disk, found) in proposal.disks {
        let volume = foreign_volume(ask, &record, node, &disk, found);
        let volume_name = keys::name("volume", &ask.project, &volume.name);
        if let Some(wish) = record.spec.disks.iter_mut().find(|d| d.name == disk) {
            wish.volume = Some(volume.name.clone());
        }
        record.volumes.insert(disk, volume.id);
        txn = txn
            .when(Compare::Absent(volume_name.clone()))
            .then(typed::put(volume_name, &volume.id))
            .then(typed::put(keys::volume(&ask.project, volume.id), &volume));
    }
    let want = if proposal.running { PowerWish::On } else { PowerWish::Off };
    // Cycle 0 is no command: the domain stays as it is found.
    let wanted = Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 };
    let op = operation(ask, "vm.adopt", resource(&record), wanted);
    let txn = txn
        .then(typed::put(name_key, &record.id))
        .then(typed::put(key, &record))
        .then(typed::put(keys::choices(record.id), &proposal.choices))
        .then(typed::put(keys::power(record.id), &Power { want, cycle: 0, held: None, stop_timeout: None }));
    let taken = || {
        Error::conflict(format!("'{}', its domain, or one of its volumes or MACs is in vmkeep already", record.spec.name))
            .hint("choose another name with --name")
    };
    begin(store, ask, free.take(proposal.uuid, txn), op).await?.ok_or_else(taken)
}

fn foreign_volume(ask: &Ask, vm: &VmRecord, node: &Name, disk: &Name, found: FoundDisk) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        project: ask.project.clone(),
        name: volume_name(&vm.spec.name, disk),
        pool: Name::known("default"),
        node: Some(node.clone()),
        size: None,
        format: found.format,
        image: None,
        foreign_path: Some(found.path),
        filling: None,
        attached: Some(Attachment { vm: vm.id, disk: disk.clone() }),
        created_at: vm.created_at,
    }
}

/// The format of the file that a pool itself made for a volume; such a file stays vmkeep's to delete. None: any other file,
/// an overlay that virsh made of it too, whose name begins with the same id.
fn own_format(pool: &PoolSpec, path: &str, id: VolumeId) -> Option<DiskFormat> {
    let PoolDriver::Dir { path: folder, .. } = &pool.driver;
    let own = |suffix: &str| std::path::Path::new(folder).join(format!("{id}.{suffix}")) == std::path::Path::new(path);
    [("qcow2", DiskFormat::Qcow2), ("raw", DiskFormat::Raw)].into_iter().find(|(suffix, _)| own(suffix)).map(|(_, format)| format)
}

/// Accepts the disk chains that are there now.
pub async fn adopt_disks(store: &dyn Store, ask: &Ask, name: &Name, proposal: &AdoptionProposal) -> Result<Operation, Error> {
    let disks = &proposal.disks;
    let found = record(store, &ask.project, name).await?;
    if proposal.uuid != found.value.id {
        let words = format!("the domain '{}' is not the one of VM '{name}'", proposal.name);
        return Err(Error::conflict(words).hint(format!("vmkeep vm adopt --disks {name}")));
    }
    if found.value.leaving.is_some() {
        return Err(Error::conflict(format!("'{name}' is being deleted")));
    }
    let mut accepted = found.value.clone();
    let mut txn = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified));
    for (disk, id) in &found.value.volumes {
        let key = keys::volume(&ask.project, *id);
        let (Some(there), Some(volume)) = (disks.get(disk), get::<VolumeRecord>(store, &key).await?) else { continue };
        let own = own_format(&pool::find(store, &volume.value.pool).await?.spec, &there.path, *id);
        let foreign_path = own.is_none().then(|| there.path.clone());
        let format = own.unwrap_or(there.format);
        let wish = accepted.spec.disks.iter_mut().find(|wish| wish.name == *disk && wish.format != DiskFormat::Auto);
        wish.into_iter().for_each(|wish| wish.format = format);
        let taken = VolumeRecord { foreign_path, format, ..volume.value.clone() };
        if taken != volume.value {
            txn = txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &taken));
        }
    }
    let op = operation(ask, "vm.adopt", resource(&accepted), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let txn = txn.then(typed::put(found.key, &accepted));
    begin(store, ask, txn, op).await?.ok_or_else(|| busy(name))
}
