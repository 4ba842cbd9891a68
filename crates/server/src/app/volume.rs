//! Volumes.

use vmkeep_api::body::{VolumeCreate, VolumeView};
use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{VmId, VolumeId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::observed::Seen;
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::Work;
use vmkeep_types::pool::{Attachment, PoolSpec, VolumeRecord};
use vmkeep_types::record::VmRecord;
use vmkeep_types::units::ByteCount;

use super::network::task;
use super::{Ask, any_node, begin, done, get, image, node, operation, pool, uid_of};

/// The disk name under which a volume that is being deleted is attached to nobody: no VM can take it meanwhile, and a deletion
/// that failed can be asked for again.
const DELETING: &str = "deleting";

/// Nobody's, or somebody's until its deletion is through.
pub fn is_free(volume: &VolumeRecord) -> bool {
    volume.attached.as_ref().is_none_or(is_mark)
}

/// The volume as it is until its deletion is through.
pub fn going(volume: VolumeRecord) -> VolumeRecord {
    VolumeRecord { attached: Some(Attachment { vm: VmId(uuid::Uuid::nil()), disk: Name::known(DELETING) }), ..volume }
}

fn is_mark(attached: &Attachment) -> bool {
    attached.vm.0.is_nil() && attached.disk.as_str() == DELETING
}

/// Which VM has it, and the way out. A disk that its wish let go of stays the VM's until its guest has let go too.
pub async fn whose(store: &dyn Store, volume: &VolumeRecord) -> Result<Error, Error> {
    let Some(attached) = &volume.attached else { return Ok(Error::conflict(format!("volume '{}' is nobody's", volume.name))) };
    let vm = get::<VmRecord>(store, &keys::vm(&volume.project, attached.vm)).await?.map(|v| v.value);
    let name = vm.as_ref().map_or_else(|| attached.vm.to_string(), |vm| vm.spec.name.to_string());
    let (volume_name, disk) = (&volume.name, &attached.disk);
    if vm.is_some_and(|vm| !vm.volumes.values().any(|id| *id == volume.id)) {
        let words = format!("volume '{volume_name}' was disk '{disk}' of VM '{name}', which has not let go of it yet");
        return Ok(Error::conflict(words).hint(format!("a guest that keeps it lets go at its next cold start: vmkeep vm restart {name}")));
    }
    Ok(Error::conflict(format!("volume '{volume_name}' is disk '{disk}' of VM '{name}'")).hint("drop the disk from the VM first"))
}

pub async fn find(store: &dyn Store, project: &Name, name: &Name) -> Result<VolumeRecord, Error> {
    Ok(stored(store, project, name).await?.value)
}

pub async fn stored(store: &dyn Store, project: &Name, name: &Name) -> Result<Stored<VolumeRecord>, Error> {
    let id: VolumeId = uid_of(store, "volume", project, name).await?;
    get(store, &keys::volume(project, id)).await?.ok_or_else(|| Error::not_found("volume", name))
}

pub async fn view(store: &dyn Store, volume: VolumeRecord) -> Result<VolumeView, Error> {
    let image = match volume.image {
        Some(id) => get::<ImageRecord>(store, &keys::image(&volume.project, id)).await?.map(|i| i.value.spec.name),
        None => None,
    };
    let (mut vm, mut seen) = (None, None);
    if let Some(attached) = volume.attached.as_ref().filter(|a| !is_mark(a)) {
        vm = get::<VmRecord>(store, &keys::vm(&volume.project, attached.vm)).await?.map(|v| v.value.spec.name);
        if let Some(node) = &volume.node {
            seen = get::<Seen>(store, &keys::seen(node, attached.vm)).await?.and_then(|s| s.value.volumes.get(&volume.id).copied());
        }
    }
    Ok(VolumeView {
        id: volume.id,
        project: volume.project,
        name: volume.name,
        pool: volume.pool,
        node: volume.node,
        format: volume.format,
        size: seen.map(|s| ByteCount::from_bytes(s.size_bytes)).or(volume.size),
        allocated: seen.map(|s| ByteCount::from_bytes(s.allocated_bytes)),
        image,
        attached: volume.attached.filter(|a| !is_mark(a)),
        vm,
        foreign_path: volume.foreign_path,
        filling: volume.filling,
    })
}

pub async fn list(store: &dyn Store, project: &Name) -> Result<Vec<VolumeView>, Error> {
    let mut views = Vec::new();
    for stored in super::list_readable::<VolumeRecord>(store, &format!("volume/{project}/")).await? {
        views.push(view(store, stored.value).await?);
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(views)
}

pub async fn create(store: &dyn Store, ask: &Ask, wish: VolumeCreate) -> Result<Operation, Error> {
    let problems = vmkeep_types::check::volume(wish.size, wish.format, wish.image.as_ref());
    if !problems.is_empty() {
        return Err(manifest::refused(&format!("volume {}", wish.name), problems));
    }
    let (pool, pool_stays) = pool::open(store, &wish.pool).await?;
    let image = match &wish.image {
        Some(name) => Some(image::ready(store, &ask.project, name).await?),
        None => None,
    };
    let node = node_for(store, wish.node.clone()).await?;
    let mut volume = VolumeRecord {
        id: VolumeId(uuid::Uuid::new_v4()),
        project: ask.project.clone(),
        name: wish.name.clone(),
        pool: wish.pool,
        node: node.clone(),
        size: wish.size,
        format: wish.format,
        image: image.as_ref().map(|(image, ..)| image.id),
        foreign_path: None,
        filling: None,
        made: false,
        attached: None,
        created_at: jiff::Timestamp::now(),
    };
    let resource = ResourceRef { kind: "volume".into(), project: ask.project.clone(), name: wish.name.clone(), uid: volume.id.0 };
    let op = operation(ask, "volume.create", resource, Wanted::Task);
    let guard = image.as_ref().map(|(.., guard)| guard.clone());
    let name_key = keys::name("volume", &ask.project, &wish.name);
    let txn = Txn { compare: guard.into_iter().chain([pool_stays]).collect(), ..Txn::default() }
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &volume.id));
    let taken = || Error::conflict(format!("there is a volume '{}' already", wish.name));
    let Some(node) = node else {
        let op = Operation { steps: vec!["it is made on the node of the VM that takes it".into()], ..done(op) };
        return begin(store, ask, txn.then(typed::put(keys::volume(&ask.project, volume.id), &volume)), op).await?.ok_or_else(taken);
    };
    volume.filling = Some(op.id);
    let mut txn = txn.then(typed::put(keys::volume(&ask.project, volume.id), &volume));
    let mut brief = None;
    if let Some((image, ..)) = image {
        brief = Some(image::brief_for(store, &image, &node).await?);
        if image.holders().all(|holder| *holder != node) {
            // Whoever deletes the image must ask this node too; the compare above holds the record as it was read.
            let mut known = image;
            known.copies.insert(node.clone());
            txn = txn.then(typed::put(keys::image(&ask.project, known.id), &known));
        }
    }
    let txn = txn.then(task(&node, &ask.project, op.id, Work::CreateVolume { volume, pool, image: brief }));
    begin(store, ask, txn, op).await?.ok_or_else(taken)
}

/// The node that was asked for, or the only one there is; None: where its VM comes to run.
async fn node_for(store: &dyn Store, wish: Option<Name>) -> Result<Option<Name>, Error> {
    match wish {
        Some(wish) if !node::has_joined(store, &wish).await? => Err(Error::not_found("node", &wish)),
        Some(wish) => Ok(Some(wish)),
        None => match &node::first_names(store, 2).await?[..] {
            [] => Err(Error::conflict("no node has joined yet")),
            [only] => Ok(Some(only.clone())),
            _ => Ok(None),
        },
    }
}

pub async fn delete(store: &dyn Store, ask: &Ask, name: &Name) -> Result<Operation, Error> {
    let seen = stored(store, &ask.project, name).await?;
    ask.expect(name, &seen)?;
    let volume = seen.value;
    if !is_free(&volume) {
        return Err(whose(store, &volume).await?);
    }
    if volume.foreign_path.is_some() {
        return Err(Error::conflict(format!("volume '{name}' is a file that was there before vmkeep; it is not deleted"))
            .hint("vmkeep vm release gives it back"));
    }
    if volume.filling.is_some() {
        return Err(Error::conflict(format!("volume '{name}' is still being made"))
            .hint("cancel its operation: vmkeep op list, vmkeep op cancel ID"));
    }
    let pool = pool::find(store, &volume.pool).await?;
    let resource = ResourceRef { kind: "volume".into(), project: ask.project.clone(), name: name.clone(), uid: volume.id.0 };
    let op = operation(ask, "volume.delete", resource, Wanted::Task);
    let (node, stays_so) = who_deletes(store, &volume, &pool.spec).await?;
    let work = Work::DeleteVolume { volume: volume.id, pool: pool.spec };
    let changed = || Error::conflict("the volume changed at the same time; try again");
    let Some(node) = node else {
        let gone = Txn { compare: stays_so.into_iter().collect(), ..Txn::default() };
        let gone = gone.when(Compare::ModifiedAt(seen.key.clone(), seen.modified)).then(Op::Delete(seen.key));
        let gone = gone.then(Op::Delete(keys::name("volume", &ask.project, name)));
        return begin(store, ask, gone, done(op)).await?.ok_or_else(changed);
    };
    let marked = going(volume);
    let txn = Txn::default().when(Compare::ModifiedAt(seen.key.clone(), seen.modified)).then(typed::put(seen.key, &marked)).then(task(
        &node,
        &ask.project,
        op.id,
        work,
    ));
    begin(store, ask, txn, op).await?.ok_or_else(changed)
}

/// The node that deletes a volume's data. None: it has none, or only a node had them that was taken out of the cluster, and did not
/// come back as the compare says.
async fn who_deletes(store: &dyn Store, volume: &VolumeRecord, pool: &PoolSpec) -> Result<(Option<Name>, Option<Compare>), Error> {
    let Some(node) = &volume.node else { return Ok((None, None)) };
    if node::has_joined(store, node).await? {
        return Ok((Some(node.clone()), None));
    }
    match is_shared(pool) {
        true => Ok((Some(any_node(store, None).await?), None)),
        false => Ok((None, Some(Compare::Absent(keys::joined(node))))),
    }
}
