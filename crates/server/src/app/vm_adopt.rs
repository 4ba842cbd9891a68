//! Domains and disk chains that were there before, taken over as they are.

use vmkeep_api::body::{AdoptionProposal, DomainView, FoundDisk, PoolView};
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{Revision, VmId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, Wanted};
use vmkeep_types::pool::{Attachment, PoolDriver, PoolSpec, VolumeRecord};
use vmkeep_types::record::{Power, PowerWish, VmOrigin, VmRecord};
use vmkeep_types::vm::DiskFormat;

use super::vm_parts::{busy, record, resource};
use super::vm_resolve::{chosen_macs, fixed_macs, free_name, volume_name};
use super::{Ask, begin, get, operation, pool, store_error, volume};

/// Takes over a domain that a node proposes.
///
/// # Errors
/// Its name, uuid, volumes or MACs are taken; the store's.
pub async fn adopt(store: &dyn Store, ask: &Ask, node: &Name, proposal: AdoptionProposal, name: Option<Name>) -> Result<Operation, Error> {
    let mut spec = proposal.spec;
    if let Some(name) = name {
        let before = std::mem::replace(&mut spec.name, name);
        // Its guest goes by that one: another name in vmkeep is no other seed.
        if let Some(seed) = &mut spec.cloud_init {
            seed.hostname.get_or_insert_with(|| before.to_string());
        }
    }
    let free = free_name(store, ask, &spec.name).await?;
    let created = VmRecord::created(proposal.uuid, ask.project.clone(), spec, jiff::Timestamp::now());
    let mut record = VmRecord { origin: VmOrigin::Adopted, instance: proposal.instance, ..created };
    let name_key = keys::name("vm", &ask.project, &record.spec.name);
    let key = keys::vm(&ask.project, record.id);
    // Of whatever project: what another VM of this uuid left of itself is not overwritten.
    let unused = [name_key.clone(), key.clone(), keys::owner(record.id), keys::power(record.id), keys::choices(record.id)];
    let mut txn = Txn { compare: unused.map(Compare::Absent).to_vec(), ..Txn::default() };
    for mac in fixed_macs(&record.spec).union(&chosen_macs(&proposal.choices)) {
        txn = txn.when(Compare::Absent(keys::mac(mac))).then(typed::put(keys::mac(mac), &record.id));
    }
    let pools = pool::list(store).await?;
    for (disk, found) in proposal.disks {
        let (volume, known) = found_volume(store, &pools, (ask, &record), node, &disk, found).await?;
        if let Some(wish) = record.spec.disks.iter_mut().find(|d| d.name == disk) {
            wish.volume = Some(volume.name.clone());
        }
        record.volumes.insert(disk, volume.id);
        let (key, name) = (keys::volume(&ask.project, volume.id), keys::name("volume", &ask.project, &volume.name));
        txn = match known {
            Known::At(revision) => txn.when(Compare::ModifiedAt(key.clone(), revision)),
            Known::Not => txn.when(Compare::Absent(name.clone())).when(Compare::Absent(key.clone())).then(typed::put(name, &volume.id)),
        };
        txn = txn.then(typed::put(key, &volume));
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

/// Domains that carry vmkeep's mark and that no VM of this store is.
///
/// # Errors
/// The store's.
pub async fn mark_lost(store: &dyn Store, domains: &mut [DomainView]) -> Result<(), Error> {
    for domain in domains.iter_mut().filter(|domain| domain.ours) {
        domain.lost = !is_kept(store, domain.uuid).await?;
        domain.ours = !domain.lost;
    }
    Ok(())
}

/// Every VM of every project has its power from its first moment to its last.
async fn is_kept(store: &dyn Store, vm: VmId) -> Result<bool, Error> {
    Ok(store.get(&keys::power(vm)).await.map_err(store_error)?.is_some())
}

/// A domain of vmkeep's is taken over only where this store has lost it; that is worth a warning.
///
/// # Errors
/// It is a VM of this store; the store's.
pub async fn refuse_kept(store: &dyn Store, proposal: &mut AdoptionProposal) -> Result<(), Error> {
    if !proposal.ours {
        return Ok(());
    }
    if is_kept(store, proposal.uuid).await? {
        let message = format!("the domain '{}' is a VM of vmkeep already", proposal.name);
        return Err(Error::conflict(message).hint("`vmkeep vm list` shows it, where it is of another project with --project NAME"));
    }
    let words = "the domain carries vmkeep's mark, and this store does not know it: it is taken over, as after the restore of an older store. \
                 Another vmkeep that still keeps it must release it";
    proposal.warnings.push(words.into());
    Ok(())
}

/// Whether the store has the volume of a found disk.
enum Known {
    Not,
    At(Revision),
}

/// The volume that a found disk becomes. A file that a pool of vmkeep made is that volume again, kept and deleted with its VM, also where
/// the store knows it as nobody's; of any other file vmkeep deletes nothing.
async fn found_volume(
    store: &dyn Store,
    pools: &[PoolView],
    vm: (&Ask, &VmRecord),
    node: &Name,
    disk: &Name,
    found: FoundDisk,
) -> Result<(VolumeRecord, Known), Error> {
    let (ask, record) = vm;
    let fresh = foreign_volume(ask, record, node, disk, found);
    let path = fresh.foreign_path.clone().unwrap_or_default();
    let stem = std::path::Path::new(&path).file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<VolumeId>().ok());
    let Some(id) = stem else { return Ok((fresh, Known::Not)) };
    let Some((pool, format)) = pools.iter().find_map(|pool| Some((&pool.spec, own_format(&pool.spec, &path, id)?))) else {
        return Ok((fresh, Known::Not));
    };
    // Volumes of other projects have the same folder.
    let known = super::list_readable::<VolumeRecord>(store, "volume/").await?.into_iter().find(|volume| volume.value.id == id);
    let Some(known) = known else {
        return Ok((VolumeRecord { id, pool: pool.name.clone(), format, foreign_path: None, ..fresh }, Known::Not));
    };
    let nobodys = known.value.attached.as_ref().is_none_or(|attached| attached.vm == record.id) && known.value.filling.is_none();
    if !nobodys || known.value.project != ask.project {
        return Err(volume::whose(store, &known.value).await?);
    }
    // It is where its domain is, whatever was known of that.
    let again = VolumeRecord { node: fresh.node, made: true, attached: fresh.attached, ..known.value };
    Ok((again, Known::At(known.modified)))
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
        made: true,
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
        let taken = VolumeRecord { foreign_path, format, made: true, ..volume.value.clone() };
        if taken != volume.value {
            txn = txn.when(Compare::ModifiedAt(key.clone(), volume.modified)).then(typed::put(key, &taken));
        }
    }
    let op = operation(ask, "vm.adopt", resource(&accepted), Wanted::Vm { spec_revision: Revision(0), power_cycle: 0 });
    let txn = txn.then(typed::put(found.key, &accepted));
    begin(store, ask, txn, op).await?.ok_or_else(|| busy(name))
}
