//! Domains and disk chains that were there before, taken over as they are.

use std::collections::BTreeMap;

use vmkeep_api::body::AdoptionProposal;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{Revision, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::pool::{Attachment, VolumeRecord};
use vmkeep_types::record::{Power, PowerWish, VmOrigin, VmRecord};
use vmkeep_types::vm::DiskFormat;

use super::vm_parts::{busy, record, resource};
use super::vm_resolve::{fixed_macs, name_is_free_elsewhere, volume_name};
use super::{Ask, commit, get, nodes, operation, put_op};

/// Takes over a domain that a node proposes.
pub async fn adopt(store: &dyn Store, ask: &Ask, proposal: AdoptionProposal, name: Option<Name>) -> Result<Operation, Error> {
    let mut spec = proposal.spec;
    if let Some(name) = name {
        spec.name = name;
    }
    name_is_free_elsewhere(store, ask, &spec.name).await?;
    let node = nodes(store).await?.into_iter().next().ok_or_else(|| Error::conflict("no node has joined yet"))?.name;
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
    for mac in fixed_macs(&record.spec) {
        txn = txn.when(Compare::Absent(keys::mac(&mac))).then(typed::put(keys::mac(&mac), &record.id));
    }
    for (disk, path) in proposal.disks {
        let volume = foreign_volume(ask, &record, &node, &disk, path);
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
        .then(typed::put(keys::power(record.id), &Power { want, cycle: 0, held: None, stop_timeout: None }))
        .then(put_op(&op));
    let taken = || {
        Error::conflict(format!("'{}', its domain, or one of its volumes or MACs is in vmkeep already", record.spec.name))
            .hint("choose another name with --name")
    };
    commit(store, txn).await?.map(|_| op).ok_or_else(taken)
}

fn foreign_volume(ask: &Ask, vm: &VmRecord, node: &Name, disk: &Name, path: String) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        project: ask.project.clone(),
        name: volume_name(&vm.spec.name, disk),
        pool: Name::known("default"),
        node: node.clone(),
        size: None,
        format: DiskFormat::Auto,
        image: None,
        foreign_path: Some(path),
        filling: None,
        attached: Some(Attachment { vm: vm.id, disk: disk.clone() }),
        created_at: vm.created_at,
    }
}

/// A pool names a volume's file after its id and format; such a file stays vmkeep's to delete. An overlay that virsh made of
/// it begins with the id too, but ends otherwise.
fn is_own_file(path: &str, id: VolumeId) -> bool {
    let name = std::path::Path::new(path).file_name().unwrap_or_default();
    [format!("{id}.qcow2"), format!("{id}.raw")].iter().any(|own| name == own.as_str())
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
    let mut txn =
        Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).then(typed::put(found.key.clone(), &found.value));
    for (disk, id) in &found.value.volumes {
        let key = keys::volume(&ask.project, *id);
        let (Some(path), Some(volume)) = (disks.get(disk), get::<VolumeRecord>(store, &key).await?) else { continue };
        let foreign_path = (!is_own_file(path, *id)).then(|| path.clone());
        if foreign_path == volume.value.foreign_path {
            continue;
        }
        let accepted = VolumeRecord { foreign_path, ..volume.value };
        txn = txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &accepted));
    }
    let op = operation(ask, "vm.adopt", resource(&found.value), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    commit(store, txn.then(put_op(&op))).await?.map(|_| op).ok_or_else(|| busy(name))
}
