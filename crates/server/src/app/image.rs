//! Images.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_api::body::{ImageView, ObjectState};
use vmkeep_core::change;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error, Problem};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::{ImageId, Revision};
use vmkeep_types::image::{ImageFacts, ImageKind, ImageRecord, ImageSource, ImageSpec};
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::{Holder, ImageBrief, Work};
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::VmRecord;

use super::network::task;
use super::{Ask, TRIES_MAX, any_node, begin, commit, get, open_deletion, operation, pool, put_op, uid_of, upload, volume};
use crate::reconcile::deletion;

pub async fn find(store: &dyn Store, project: &Name, name: &Name) -> Result<ImageRecord, Error> {
    Ok(stored(store, project, name).await?.value)
}

pub async fn stored(store: &dyn Store, project: &Name, name: &Name) -> Result<Stored<ImageRecord>, Error> {
    let id: ImageId = uid_of(store, "image", project, name).await?;
    get(store, &keys::image(project, id)).await?.ok_or_else(|| Error::not_found("image", name))
}

/// An image that disks can be made from now, and the compare that keeps it so.
pub async fn ready(store: &dyn Store, project: &Name, name: &Name) -> Result<(ImageRecord, ImageFacts, Compare), Error> {
    let found = stored(store, project, name).await?;
    if found.value.leaving.is_some() {
        return Err(Error::conflict(format!("image '{name}' is being deleted")));
    }
    let Some(facts) = found.value.facts.clone() else {
        return Err(Error::conflict(format!("image '{name}' is not ready yet")).hint("vmkeep op list shows how far it is"));
    };
    if facts.kind == ImageKind::Iso {
        return Err(Error::invalid(format!("image '{name}' is an installation medium, no disk")));
    }
    Ok((found.value, facts, Compare::ModifiedAt(found.key, found.modified)))
}

/// What was cloned from it, and the VMs with it in a tray.
async fn users(store: &dyn Store, image: &ImageRecord) -> Result<Vec<Name>, Error> {
    let volumes = super::list::<VolumeRecord>(store, &format!("volume/{}/", image.project)).await?;
    let vms = super::list::<VmRecord>(store, &keys::vms(&image.project)).await?;
    let cloned = volumes.into_iter().filter(|v| v.value.image == Some(image.id)).map(|v| v.value.name);
    let in_trays = vms
        .into_iter()
        .filter(|v| v.value.spec.cdroms.iter().any(|c| c.image.as_ref() == Some(&image.spec.name)))
        .map(|v| v.value.spec.name);
    Ok(cloned.chain(in_trays).collect())
}

pub async fn view(store: &dyn Store, image: ImageRecord) -> Result<ImageView, Error> {
    let used_by = users(store, &image).await?;
    Ok(show(image, used_by))
}

fn show(image: ImageRecord, used_by: Vec<Name>) -> ImageView {
    let state = if image.facts.is_some() && image.leaving.is_none() { ObjectState::Ready } else { ObjectState::Pending };
    ImageView { id: image.id, project: image.project, spec: image.spec, facts: image.facts, state, used_by, created_at: image.created_at }
}

pub async fn list(store: &dyn Store, project: &Name) -> Result<Vec<ImageView>, Error> {
    let [images, volumes] = ["image", "volume"].map(|kind| format!("{kind}/{project}/"));
    let all = store.list_many(&[&images, &volumes, &keys::vms(project)]).await.map_err(super::store_error)?.items;
    let (mut clones, mut trays) = (BTreeMap::<ImageId, Vec<Name>>::new(), BTreeMap::<Name, Vec<Name>>::new());
    let mut records = Vec::new();
    for kv in &all {
        if kv.key.starts_with(&images) {
            records.extend(typed::readable(typed::decode::<ImageRecord>(kv)));
        } else if kv.key.starts_with(&volumes) {
            let Some(volume) = typed::readable(typed::decode::<VolumeRecord>(kv)) else { continue };
            volume.image.into_iter().for_each(|image| clones.entry(image).or_default().push(volume.name.clone()));
        } else if let Some(vm) = typed::readable(typed::decode::<VmRecord>(kv)) {
            let inserted = vm.spec.cdroms.iter().filter_map(|cdrom| cdrom.image.clone()).collect::<BTreeSet<_>>();
            inserted.into_iter().for_each(|image| trays.entry(image).or_default().push(vm.spec.name.clone()));
        }
    }
    let view = |image: ImageRecord| {
        let used_by = [clones.remove(&image.id), trays.remove(&image.spec.name)].into_iter().flatten().flatten().collect();
        show(image, used_by)
    };
    let mut views: Vec<ImageView> = records.into_iter().map(view).collect();
    views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok(views)
}

/// Holders that a node may fetch an image from, beside the node that imported it: enough when that one is off.
pub const COPIES_NAMED_MAX: usize = 2;

/// What `node` must know of an image; `addresses` are those of the nodes that may have it.
pub fn brief(image: &ImageRecord, node: &Name, address: impl Fn(&Name) -> Option<String>) -> ImageBrief {
    let others = image.holders().filter(|holder| *holder != node);
    let reached = others.filter_map(|holder| Some(Holder { node: holder.clone(), address: address(holder)? }));
    ImageBrief {
        name: image.spec.name.clone(),
        pool: image.spec.pool.clone(),
        facts: image.facts.clone(),
        holders: if image.holders().next() == Some(node) { Vec::new() } else { reached.take(1 + COPIES_NAMED_MAX).collect() },
    }
}

/// As [`brief`], with the addresses from the store.
pub async fn brief_for(store: &dyn Store, image: &ImageRecord, node: &Name) -> Result<ImageBrief, Error> {
    let mut addresses = BTreeMap::new();
    for holder in image.holders().filter(|holder| *holder != node).take(1 + COPIES_NAMED_MAX) {
        let facts = get::<NodeFacts>(store, &keys::facts(holder)).await?;
        addresses.extend(facts.and_then(|facts| facts.value.address).map(|address| (holder.clone(), address)));
    }
    Ok(brief(image, node, |holder| addresses.get(holder).cloned()))
}

/// Imports, builds or copies an image on a node: the one that has what it comes from, else this host's own.
pub async fn create(store: &dyn Store, ask: &Ask, near: Option<&Name>, spec: ImageSpec) -> Result<Operation, Error> {
    let problems = vmkeep_types::check::image(&spec);
    if !problems.is_empty() {
        return Err(manifest::refused(&format!("image {}", spec.name), problems));
    }
    let (pool, pool_stays) = pool::open(store, &spec.pool).await?;
    let mut node = any_node(store, near).await?;
    match &spec.source {
        ImageSource::Upload { upload, .. } => node = upload::node(store, *upload, near).await?,
        ImageSource::Volume { volume } => {
            let unmade = || Error::conflict(format!("volume '{volume}' has no data yet"));
            node = volume::find(store, &ask.project, volume).await?.node.ok_or_else(unmade)?;
        }
        ImageSource::Url { .. } | ImageSource::Build { .. } => {}
    }
    let image = ImageRecord {
        id: ImageId(uuid::Uuid::new_v4()),
        project: ask.project.clone(),
        spec,
        facts: None,
        leaving: None,
        node: node.clone(),
        copies: BTreeSet::new(),
        created_at: jiff::Timestamp::now(),
    };
    let work = match image.spec.source.clone() {
        ImageSource::Url { url, sha256 } => Work::Fetch { image: image.id, pool, url, sha256 },
        ImageSource::Upload { upload, sha256 } => Work::ImportUpload { image: image.id, pool, upload, sha256 },
        ImageSource::Build { recipe } => Work::Build { image: image.id, pool, recipe },
        ImageSource::Volume { volume } => {
            let volume = volume::find(store, &ask.project, &volume).await?;
            let volume_pool = pool::find(store, &volume.pool).await?.spec;
            Work::ImageFromVolume { image: image.id, pool, volume, volume_pool }
        }
    };
    let name = image.spec.name.clone();
    let op = operation(ask, "image.import", resource(ask, &image), Wanted::Task);
    let name_key = keys::name("image", &ask.project, &name);
    let txn = Txn::default()
        .when(pool_stays)
        .when(Compare::Absent(name_key.clone()))
        .then(typed::put(name_key, &image.id))
        .then(typed::put(keys::image(&ask.project, image.id), &image))
        .then(task(&node, &ask.project, op.id, work));
    let taken =
        || Error::conflict(format!("there is an image '{name}' already")).hint("choose another --name, or delete the old one first");
    begin(store, ask, txn, op).await?.ok_or_else(taken)
}

/// Changes what is said of an image; what it was made from and where it lies does not change under its disks.
///
/// # Errors
/// `NotFound`; `Invalid` with all problems; `Stale` when the caller read an older one.
pub async fn put(store: &dyn Store, ask: &Ask, spec: ImageSpec) -> Result<(ImageView, Revision), Error> {
    let problems = vmkeep_types::check::image(&spec);
    for _ in 0..TRIES_MAX {
        let found = stored(store, &ask.project, &spec.name).await?;
        ask.expect(&spec.name, &found)?;
        if found.value.leaving.is_some() {
            return Err(Error::conflict(format!("image '{}' is being deleted", spec.name)));
        }
        let refused: Vec<Problem> = problems.iter().cloned().chain(change::image_refusals(&found.value.spec, &spec)).collect();
        if !refused.is_empty() {
            return Err(manifest::refused(&format!("image {}", spec.name), refused));
        }
        ask.admit("image.put", &resource(ask, &found.value))?;
        let image = ImageRecord { spec: spec.clone(), ..found.value };
        let txn = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).then(typed::put(found.key, &image));
        if let Some(revision) = commit(store, txn).await? {
            return Ok((view(store, image).await?, revision));
        }
    }
    Err(Error::new(Code::Unavailable, format!("image '{}' is changed by others all the time; try again", spec.name)))
}

fn resource(ask: &Ask, image: &ImageRecord) -> ResourceRef {
    ResourceRef { kind: "image".into(), project: ask.project.clone(), name: image.spec.name.clone(), uid: image.id.0 }
}

/// Marked first, then looked at for users once more: a VM that is written at the same time either sees the mark or is seen.
pub async fn delete(store: &dyn Store, ask: &Ask, name: &Name) -> Result<Operation, Error> {
    let found = stored(store, &ask.project, name).await?;
    ask.expect(name, &found)?;
    if let Some(op) = open_deletion(store, &ask.project, found.value.leaving).await? {
        return Ok(op);
    }
    refuse_users(store, &found.value).await?;
    let image = found.value;
    if image.facts.is_none() {
        return Err(Error::conflict(format!("image '{name}' is still being made"))
            .hint("cancel its operation: vmkeep op list, vmkeep op cancel ID"));
    }
    let pool = pool::find(store, &image.spec.pool).await?.spec;
    let op = operation(ask, deletion::IMAGE, resource(ask, &image), Wanted::Task);
    ask.admit(&op.kind, &op.resource)?;
    let changed = || Error::conflict(format!("image '{name}' was changed at the same time; try again"));
    let going = ImageRecord { leaving: Some(op.id), ..image.clone() };
    let mark = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).then(typed::put(found.key.clone(), &going));
    let marked = commit(store, mark).await?.ok_or_else(changed)?;
    let still = Compare::ModifiedAt(found.key.clone(), marked);
    if let Err(used) = refuse_users(store, &image).await {
        commit(store, Txn::default().when(still).then(typed::put(found.key, &ImageRecord { leaving: None, ..image.clone() }))).await?;
        return Err(used);
    }
    // The name goes with the record, at the end: until then nobody puts another image in its place.
    // As with networks: the leader tells all others.
    let first = image.holders().take(deletion::NODES_PER_TXN);
    let tasks = first.map(|node| task(node, &ask.project, op.id, Work::DeleteImage { image: image.id, pool: pool.clone() }));
    let txn = tasks.fold(Txn::default().when(still).then(put_op(&op)), Txn::then);
    commit(store, txn).await?.map(|_| op).ok_or_else(changed)
}

async fn refuse_users(store: &dyn Store, image: &ImageRecord) -> Result<(), Error> {
    match super::some_of(&users(store, image).await?) {
        Some(users) => Err(Error::conflict(format!("image '{}' is in use by {users}", image.spec.name))),
        None => Ok(()),
    }
}
