//! VMs: shown, wished, commanded, deleted.

use vmkeep_api::body::{ActionRequest, AdoptionProposal, VmView};
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{OperationId, Revision, VmId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::Work;
use vmkeep_types::pool::{Attachment, VolumeRecord};
use vmkeep_types::record::{Hold, Leaving, Owner, Power, PowerWish, VmOrigin, VmRecord};
use vmkeep_types::units::Seconds;
use vmkeep_types::vm::{DiskFormat, RunPolicy};

use super::network::task;
use super::vm_parts;
use super::{Ask, TRIES_MAX, commit, get, nodes, operation, put_op};
use crate::view;

pub use super::vm_parts::record;
pub use super::vm_write::{Written, create, put};

pub async fn show(store: &dyn Store, project: &Name, name: &Name) -> Result<VmView, Error> {
    let id = super::uid_of(store, "vm", project, name).await?;
    vm_parts::parts(store, project, id).await?.map(view::vm).ok_or_else(|| Error::not_found("vm", name))
}

pub async fn show_by_id(store: &dyn Store, project: &Name, id: VmId) -> Result<Option<VmView>, Error> {
    Ok(vm_parts::parts(store, project, id).await?.map(view::vm))
}

/// All VMs in order of name, and the revision they were read at.
pub async fn list(store: &dyn Store, project: &Name) -> Result<(Revision, Vec<VmView>), Error> {
    let (revision, parts) = vm_parts::all(store, project).await?;
    let mut views: Vec<VmView> = parts.into_iter().map(view::vm).collect();
    views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok((revision, views))
}

pub fn resource(record: &VmRecord) -> ResourceRef {
    ResourceRef { kind: "vm".into(), project: record.project.clone(), name: record.spec.name.clone(), uid: record.id.0 }
}

/// One of the verbs of `POST …/actions/{action}`.
pub async fn action(store: &dyn Store, ask: &Ask, name: &Name, action: &str, wish: ActionRequest) -> Result<Operation, Error> {
    match action {
        _ if wish.timeout.is_some() && !matches!(action, "stop" | "restart") => Err(Error::invalid(format!("'{action}' takes no `timeout`"))),
        _ if wish.name.is_some() && !matches!(action, "rename" | "clone") => Err(Error::invalid(format!("'{action}' takes no `name`"))),
        _ if wish.image.is_some() && action != "rebuild" => Err(Error::invalid(format!("'{action}' takes no `image`"))),
        "start" => command(store, ask, name, action, PowerWish::On, None).await,
        "stop" => command(store, ask, name, action, PowerWish::Off, wish.timeout).await,
        "kill" => command(store, ask, name, action, PowerWish::Killed, None).await,
        "restart" => command(store, ask, name, action, PowerWish::Restart, wish.timeout).await,
        "reboot" => node_task(store, ask, name, action, |vm| Work::Reboot { vm }).await,
        "reset" => node_task(store, ask, name, action, |vm| Work::Reset { vm }).await,
        "pause" => node_task(store, ask, name, action, |vm| Work::Pause { vm }).await,
        "resume" => node_task(store, ask, name, action, |vm| Work::Resume { vm }).await,
        "rename" => super::vm_copy::rename(store, ask, name, new_name(wish)?).await,
        "clone" => super::vm_copy::clone(store, ask, name, new_name(wish)?).await,
        "reinit" => super::vm_renew::reinit(store, ask, name).await,
        "rebuild" => super::vm_renew::rebuild(store, ask, name, wish.image).await,
        "release" => leave(store, ask, name, "vm.release", Leaving::Release).await,
        other => {
            let hint = "start, stop, kill, restart, reboot, reset, pause, resume, rename, clone, reinit, rebuild, release";
            Err(Error::not_found("action", other).hint(format!("known are {hint}")))
        }
    }
}

fn new_name(wish: ActionRequest) -> Result<Name, Error> {
    wish.name.ok_or_else(|| Error::invalid("the new name is missing").hint("send {\"name\": \"…\"}"))
}

/// A person's command; it wins over whatever happened before.
pub async fn command(
    store: &dyn Store,
    ask: &Ask,
    name: &Name,
    verb: &str,
    want: PowerWish,
    stop_timeout: Option<Seconds>,
) -> Result<Operation, Error> {
    for _ in 0..TRIES_MAX {
        let found = record(store, &ask.project, name).await?;
        if found.value.spec.run == RunPolicy::Halted && matches!(want, PowerWish::On | PowerWish::Restart) {
            return Err(Error::conflict(format!("'{name}' has run: halted")).hint(format!("vmkeep vm set {name} run=on-failure")));
        }
        let key = keys::power(found.value.id);
        if found.value.leaving.is_some() {
            return Err(Error::conflict(format!("'{name}' is being deleted")));
        }
        let Some(old) = get::<Power>(store, &key).await? else { return Err(Error::not_found("vm", name)) };
        let held = matches!(want, PowerWish::Off | PowerWish::Killed).then(|| Hold { by: ask.caller.name.clone(), at: jiff::Timestamp::now() });
        let new = Power { want, cycle: old.value.cycle + 1, held, stop_timeout };
        let wanted = Wanted::Vm { spec_revision: found.modified, power_cycle: new.cycle };
        let op = operation(ask, &format!("vm.{verb}"), resource(&found.value), wanted);
        let txn = Txn::default()
            .when(Compare::ModifiedAt(key.clone(), old.modified))
            .when(Compare::ModifiedAt(found.key, found.modified))
            .then(typed::put(key, &new))
            .then(put_op(&op));
        if commit(store, txn).await?.is_some() {
            return Ok(op);
        }
    }
    Err(busy(name))
}

pub fn busy(name: &Name) -> Error {
    Error::new(Code::Unavailable, format!("'{name}' is changed by others all the time; try again"))
}

/// Something for the node to do now.
async fn node_task(store: &dyn Store, ask: &Ask, name: &Name, verb: &str, work: impl FnOnce(VmId) -> Work) -> Result<Operation, Error> {
    let found = record(store, &ask.project, name).await?.value;
    let owner = get::<Owner>(store, &keys::owner(found.id)).await?.ok_or_else(|| Error::conflict(format!("'{name}' has no node yet")))?.value;
    let op = operation(ask, &format!("vm.{verb}"), resource(&found), Wanted::Task);
    let txn = Txn::default()
        .when(Compare::Present(keys::owner(found.id)))
        .then(put_op(&op))
        .then(task(&owner.node, &ask.project, op.id, work(found.id)));
    commit(store, txn).await?.map(|_| op).ok_or_else(|| busy(name))
}

/// Begins the end of a VM.
pub async fn leave(store: &dyn Store, ask: &Ask, name: &Name, kind: &str, leaving: Leaving) -> Result<Operation, Error> {
    for _ in 0..TRIES_MAX {
        let Stored { key, value, modified, .. } = record(store, &ask.project, name).await?;
        if value.spec.protect && leaving != Leaving::Release {
            let hint = format!("vmkeep vm set {name} protect=false");
            return Err(Error::conflict(format!("'{name}' is protected from deletion")).hint(hint));
        }
        if value.leaving.is_some_and(|already| already != leaving) {
            return Err(Error::conflict(format!("'{name}' is being deleted already")));
        }
        let op = operation(ask, kind, resource(&value), Wanted::Gone);
        let going = VmRecord { leaving: Some(leaving), ..value };
        let txn = Txn::default().when(Compare::ModifiedAt(key.clone(), modified)).then(typed::put(key, &going)).then(put_op(&op));
        if commit(store, txn).await?.is_some() {
            return Ok(op);
        }
    }
    Err(busy(name))
}

/// Takes over a domain that a node proposes.
pub async fn adopt(store: &dyn Store, ask: &Ask, proposal: AdoptionProposal, name: Option<Name>) -> Result<Operation, Error> {
    let mut spec = proposal.spec;
    if let Some(name) = name {
        spec.name = name;
    }
    let node = nodes(store).await?.into_iter().next().ok_or_else(|| Error::conflict("no node has joined yet"))?.name;
    let created_at = jiff::Timestamp::now();
    let mut record = VmRecord {
        id: proposal.uuid,
        project: ask.project.clone(),
        spec,
        volumes: std::collections::BTreeMap::new(),
        created_at,
        origin: VmOrigin::Adopted,
        leaving: None,
        instance: 0,
    };
    let name_key = keys::name("vm", &ask.project, &record.spec.name);
    let key = keys::vm(&ask.project, record.id);
    let mut txn = Txn::default().when(Compare::Absent(name_key.clone())).when(Compare::Absent(key.clone()));
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
    let taken = || Error::conflict(format!("'{}' or one of its volumes is in vmkeep already", record.spec.name)).hint("choose another name with --name");
    commit(store, txn).await?.map(|_| op).ok_or_else(taken)
}

fn foreign_volume(ask: &Ask, vm: &VmRecord, node: &Name, disk: &Name, path: String) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        project: ask.project.clone(),
        name: super::vm_write::volume_name(&vm.spec.name, disk),
        pool: Name::known("default"),
        node: node.clone(),
        size: None,
        format: DiskFormat::Auto,
        image: None,
        foreign_path: Some(path),
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
pub async fn adopt_disks(store: &dyn Store, ask: &Ask, name: &Name, disks: &std::collections::BTreeMap<Name, String>) -> Result<Operation, Error> {
    let found = record(store, &ask.project, name).await?;
    let mut txn = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).then(typed::put(found.key.clone(), &found.value));
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

/// The id under which an operation of a repeated POST is found again.
pub fn idempotency_key(project: &Name, key: &str) -> String {
    format!("{ALL_REPEATS}{project}/{key}")
}

/// Keys of POSTs that may be repeated.
pub const ALL_REPEATS: &str = "idem/";

/// The operation that a POST with this key began before, for the same VM.
///
/// # Errors
/// `Conflict` when the key was used for another VM.
pub async fn repeated(store: &dyn Store, project: &Name, key: &str, vm: &Name) -> Result<Option<Operation>, Error> {
    let Some(id) = get::<OperationId>(store, &idempotency_key(project, key)).await? else { return Ok(None) };
    let Some(op) = get::<Operation>(store, &keys::op(project, id.value)).await?.map(|s| s.value) else { return Ok(None) };
    if op.resource.name != *vm {
        let hint = "a new request takes a new key";
        return Err(Error::conflict(format!("this Idempotency-Key was used to create '{}'", op.resource.name)).hint(hint));
    }
    Ok(Some(op))
}
