//! Carrying a wish into volumes, networks, the stored description and, where it runs, the running domain.
//!
//! Every part is idempotent: a volume that is there is left, a description that matches is not defined again. What a running
//! guest cannot take is `pending` until the next cold start. Disk sources and chains that changed behind our back are
//! `conflicts`: never mended, and no start goes over them.

pub(super) mod addresses;
mod inspect;
mod live;

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmkeep_types::error::{Code, Error};
use vmkeep_types::event::Level;
use vmkeep_types::ids::ImageId;
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, Observed};
use vmkeep_types::order::{ImageBrief, Order};
use vmkeep_types::pool::{PoolSpec, VolumeRecord};
use vmkeep_types::record::VmOrigin;

use super::claim;
use super::grant::Until;
use super::node::{Look, Node};
use super::nvram;
use super::qemu;
use super::report::{self, State};
use super::start_error::start_error;
use crate::domain::{self, BuildInput, DiskSource};
use crate::hypervisor::{HvError, Words};
use crate::image;
use crate::net::NetAttach;
use crate::pool::Pool;
use crate::seed;
use inspect::{Descriptions, note_difference, note_open_files};

pub use inspect::inspect;

/// The domain XML that the wish asks for, and what went into it.
struct Wanted {
    xml: String,
    warnings: Vec<String>,
}

/// Makes everything match the wish without starting anything.
pub async fn apply(node: &Node, state: &mut State) -> Result<(), Error> {
    prepare_volumes(node, state).await?;
    rename(node, state).await?;
    let wanted = wanted(node, state, Look::Fresh).await?;
    nvram::take(node, state, &wanted.xml).await?;
    define(node, state, &wanted).await?;
    state.addresses_due = true;
    if lives(state) {
        live::change_live(node, state, &wanted).await?;
    } else {
        state.pending.clear();
    }
    let there = Descriptions::read(node, state.order.vm).await?;
    note_open_files(node, state, &there)?;
    state.error = None;
    Ok(())
}

/// Why a VM does not run after [`start`].
pub enum NotStarted {
    /// The right to start it is not had now, which is nothing that the VM did.
    NotNow(Error),
    Failed(Error),
}

impl From<Error> for NotStarted {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Applies, claims, starts.
pub async fn start(node: &Node, state: &mut State) -> Result<(), NotStarted> {
    let fresh = state.memory.applied < state.wish() || state.domain == Observed::Absent;
    prepare_volumes(node, state).await?;
    if let Err(error) = rename(node, state).await {
        // It starts under the name that it has.
        state.event(Level::Warn, "vm.rename-failed", error.message);
    }
    let wanted = wanted(node, state, Look::Fresh).await?;
    nvram::take(node, state, &wanted.xml).await?;
    if fresh {
        define(node, state, &wanted).await?;
    } else {
        note_difference(state, &wanted, inspect::stored(node, state.order.vm).await?.as_deref())?;
    }
    refuse_conflicts(state)?;
    state.addresses_due = true;
    let unknown = state.unknown_op(node, Doing::Starting);
    let granted =
        claim::claim(node, &state.order, Some(unknown)).await.map_err(|e| not_now(format!("cannot claim the right to start: {e}")))?;
    if !granted.is_fresh() {
        return Err(not_now("the claim was too old when it was granted; the store is slow"));
    }
    node.grants.give(state.order.vm, Until::Ms(granted.until_ms()))?;
    let started = node.hv.start(state.order.vm).await;
    node.grants.take(state.order.vm);
    match started {
        Ok(()) => {}
        Err(HvError::WrongState(_)) if is_live(node, state).await => {}
        Err(error) => return Err(start_error(node, state, &error).into()),
    }
    state.pending.clear();
    state.asked_live.clear();
    state.error = None;
    state.step("started");
    if state.order.spec.boot_once.is_some() {
        state.memory.booted_once = Some(state.wish());
    }
    // Read when the start has been reported.
    state.also_open = None;
    qemu::started(node, state).await;
    Ok(())
}

/// A domain that is off gets the wish's name; libvirt renames no running one, and takes no description with another name.
async fn rename(node: &Node, state: &mut State) -> Result<(), Error> {
    let Some(there) = name_that_waits(state) else { return Ok(()) };
    let adopting = !state.ours && state.order.origin == VmOrigin::Adopted;
    if !(state.ours || adopting) || lives(state) {
        return Ok(());
    }
    let name = state.order.spec.name.clone();
    node.hv.rename(state.order.vm, name.as_str()).await.map_err(|error| {
        let told =
            Error::conflict(format!("the domain is still called '{there}' in libvirt, which does not rename it to '{name}': {error}"));
        told.hint(format!("choose another name with `vmkeep vm rename {name}`, or free this one"))
    })?;
    state.step(format!("renamed from {there}"));
    state.name_there = Some(name.to_string());
    Ok(())
}

/// The name that the domain has in libvirt, where it is not the wish's.
fn name_that_waits(state: &State) -> Option<String> {
    state.name_there.clone().filter(|there| *there != state.order.spec.name.as_str())
}

fn lives(state: &State) -> bool {
    state.domain.known().is_some_and(|d| d.state.is_live())
}

async fn is_live(node: &Node, state: &State) -> bool {
    node.hv.find(state.order.vm).await.is_ok_and(|brief| brief.state.is_live())
}

fn not_now(why: impl Into<String>) -> NotStarted {
    NotStarted::NotNow(Error::new(Code::Unavailable, why))
}

fn refuse_conflicts(state: &State) -> Result<(), Error> {
    let Some(first) = state.conflicts.first() else { return Ok(()) };
    let message = format!(
        "{} changed behind vmkeep's back: the domain has '{}', vmkeep knows '{}'; starting could lose what was written since",
        first.field, first.from, first.to
    );
    let hint = format!("`vmkeep vm adopt {} --disks` accepts what is there now", state.order.spec.name);
    Err(Error::conflict(message).hint(hint))
}

pub(super) fn pool_of<'a>(order: &'a Order, name: &Name) -> Result<&'a PoolSpec, Error> {
    order.pools.get(name).ok_or_else(|| Error::not_found("pool", name))
}

/// Volumes exist and are as large as wished (a running guest's disk grows with the live changes).
async fn prepare_volumes(node: &Node, state: &mut State) -> Result<(), Error> {
    fetch_images(node, state).await?;
    let volumes: Vec<(Name, VolumeRecord)> = state.order.volumes.iter().map(|(disk, v)| (disk.clone(), v.clone())).collect();
    let live = lives(state);
    for (disk, volume) in volumes {
        let pool = node.pool(pool_of(&state.order, &volume.pool)?)?;
        if let Some(op) = volume.filling {
            return Err(Error::new(Code::Unavailable, format!("disk {disk}: operation {op} still writes its first data")));
        }
        let there = pool.stat_volume(&volume).await;
        let mut seen = match (there, &volume.foreign_path) {
            (Ok(Some(seen)), _) => seen,
            // QEMU's own words tell what is wrong with somebody else's file.
            (Ok(None) | Err(_), Some(_)) if volume.size.is_none() => continue,
            (Ok(None), Some(path)) => return Err(Error::refused(format!("disk {disk}: its file {path} is missing"))),
            (Ok(None), None) if volume.made || state.volumes.contains_key(&volume.id) => {
                let path = pool.volume_path(&volume);
                let hint = format!("is the file system of pool '{}' mounted? A new disk is made only by `vmkeep vm rebuild`", volume.pool);
                return Err(Error::refused(format!("disk {disk}: its file {} is gone", path.display())).hint(hint));
            }
            (Err(error), _) => return Err(error),
            (Ok(None), None) => {
                let seen = pool.create_volume(&volume).await?;
                state.step(format!("disk {disk}: {}", volume_words(&state.order, &volume)));
                seen
            }
        };
        if let Some(size) = volume.size.filter(|size| size.bytes() > seen.size_bytes && !live) {
            pool.grow_volume(&volume, size).await?;
            state.step(format!("disk {disk}: grown to {size}"));
            seen.size_bytes = size.bytes();
        }
        state.volumes.insert(volume.id, seen);
    }
    state.volumes.retain(|id, _| state.order.volumes.values().any(|v| v.id == *id));
    Ok(())
}

/// Images that its disks are made from and that lie in its trays are here, or come from a node that has them.
async fn fetch_images(node: &Node, state: &mut State) -> Result<(), Error> {
    let mut needed: Vec<ImageId> = Vec::new();
    for volume in state.order.volumes.values().filter(|volume| volume.filling.is_none()) {
        let Some(image) = volume.image else { continue };
        let pool = node.pool(pool_of(&state.order, &volume.pool)?)?;
        if pool.stat_volume(volume).await?.is_none() {
            needed.push(image);
        }
    }
    let in_tray = |brief: &ImageBrief| state.order.spec.cdroms.iter().any(|cd| cd.image.as_ref() == Some(&brief.name));
    needed.extend(state.order.images.iter().filter(|(_, brief)| in_tray(brief)).map(|(id, _)| *id));
    for id in needed {
        let Some((brief, pool)) = missing_image(node, &state.order, id)? else { continue };
        let brief = brief.clone();
        state.doing = Some(Doing::Preparing { what: format!("fetching image {}", brief.name) });
        report::write(node, state).await;
        let from = image::bring(node, pool.as_ref(), id, &brief, &|_, _| {}).await?;
        state.step(format!("image {}: fetched from {from}", brief.name));
    }
    Ok(())
}

/// An image, and the pool that it belongs into.
type Placed<'o> = (&'o ImageBrief, Arc<dyn Pool>);

/// An image of an order that is not here and can be fetched.
pub fn missing_image<'o>(node: &Node, order: &'o Order, id: ImageId) -> Result<Option<Placed<'o>>, Error> {
    let Some(brief) = order.images.get(&id) else { return Ok(None) };
    let pool = node.pool(pool_of(order, &brief.pool)?)?;
    Ok((!pool.image_path(id).exists() && !brief.holders.is_empty()).then_some((brief, pool)))
}

fn volume_words(order: &Order, volume: &VolumeRecord) -> String {
    match volume.image.and_then(|id| order.images.get(&id)) {
        Some(image) => format!("cloned from image {}", image.name),
        None => "created".into(),
    }
}

async fn wanted(node: &Node, state: &mut State, look: Look) -> Result<Wanted, Error> {
    let profile = node.profile().await?;
    let mut disks = BTreeMap::new();
    for (disk, volume) in &state.order.volumes {
        disks.insert(disk.clone(), source(node, &state.order, volume)?);
    }
    let mut cdroms = BTreeMap::new();
    for cdrom in &state.order.spec.cdroms {
        cdroms.insert(cdrom.name.clone(), cdrom.image.as_ref().map(|name| iso_path(node, &state.order, name)).transpose()?);
    }
    let mut nics: BTreeMap<Name, NetAttach> = BTreeMap::new();
    for nic in &state.order.spec.nics {
        let spec = state.order.networks.get(&nic.network).ok_or_else(|| Error::not_found("network", &nic.network))?;
        nics.insert(nic.name.clone(), node.network(&state.order.project, spec, look).await?);
    }
    let seed = write_seed(node, &state.order).await?;
    let name = state.name_there.as_deref().unwrap_or(state.order.spec.name.as_str());
    let input = BuildInput {
        order: &state.order,
        name,
        host: &profile,
        disks: &disks,
        cdroms: &cdroms,
        seed: seed.as_deref(),
        nics: &nics,
        run_dir: &node.config.log_dir,
    };
    let built = domain::build(&input)?;
    Ok(Wanted { xml: built.xml, warnings: built.warnings })
}

fn source(node: &Node, order: &Order, volume: &VolumeRecord) -> Result<DiskSource, Error> {
    let path = node.pool(pool_of(order, &volume.pool)?)?.data_path(volume);
    Ok(DiskSource { o_direct: takes_o_direct(&path), path, format: volume.data_format()?.into() })
}

/// Whether the file system takes O_DIRECT: tmpfs, for one, may not.
fn takes_o_direct(path: &Path) -> bool {
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).is_ok()
}

fn iso_path(node: &Node, order: &Order, name: &Name) -> Result<PathBuf, Error> {
    let (id, image) = order.images.iter().find(|(_, image)| image.name == *name).ok_or_else(|| Error::not_found("image", name))?;
    Ok(node.pool(pool_of(order, &image.pool)?)?.image_path(*id))
}

/// Where a VM's cloud-init seed lies.
pub fn seed_path(node: &Node, order: &Order) -> PathBuf {
    node.config.seed_dir.join(format!("{}-seed.img", order.vm))
}

/// The cloud-init seed is as the wish wants it; None when it wants none.
pub async fn write_seed(node: &Node, order: &Order) -> Result<Option<PathBuf>, Error> {
    if order.spec.cloud_init.is_none() {
        return Ok(None);
    }
    let path = seed_path(node, order);
    let (order, target) = (order.clone(), path.clone());
    tokio::task::spawn_blocking(move || seed::write(&order, &target))
        .await
        .map_err(|e| Error::internal(format!("writing the seed stopped: {e}")))??;
    Ok(Some(path))
}

/// The stored description matches the wish afterwards.
async fn define(node: &Node, state: &mut State, wanted: &Wanted) -> Result<(), Error> {
    state.warnings.clone_from(&wanted.warnings);
    if state.domain == Observed::Absent {
        let xml = node.hv.define(&wanted.xml, words(state)).await.map_err(|e| define_error(state, &e))?;
        state.choices = domain::choices_from(&xml, &state.choices)?;
        state.drift.clear();
        state.step("domain defined");
        return Ok(());
    }
    if !state.ours && state.order.origin == VmOrigin::Adopted {
        let metadata = domain::metadata(&state.order);
        node.hv
            .set_metadata(state.order.vm, Some(&metadata))
            .await
            .map_err(|e| Error::refused(format!("cannot mark the domain as ours: {e}")))?;
        state.ours = true;
        state.step("existing domain taken over");
        state.event(Level::Info, "vm.adopted", "an existing libvirt domain was taken over");
        return Ok(());
    }
    note_difference(state, wanted, inspect::stored(node, state.order.vm).await?.as_deref())?;
    if !state.conflicts.is_empty() {
        return refuse_conflicts(state);
    }
    // libvirt does not show a password: a changed one is no difference.
    let has_password = state.order.spec.display.as_ref().is_some_and(|d| d.password.is_some());
    if !state.drift.is_empty() || has_password {
        let xml = node.hv.define(&wanted.xml, words(state)).await.map_err(|e| define_error(state, &e))?;
        state.choices = domain::choices_from(&xml, &state.choices)?;
    }
    if !state.drift.is_empty() {
        state.step(format!("description changed: {}", state.drift.iter().map(|d| d.field.as_str()).collect::<Vec<_>>().join(", ")));
        state.drift.clear();
    }
    Ok(())
}

fn words(state: &State) -> Words {
    if state.order.spec.libvirt_xml.is_empty() { Words::Ours } else { Words::Patched }
}

fn define_error(state: &State, error: &HvError) -> Error {
    let told = Error::refused(format!("libvirt does not take the description: {error}"));
    if error.to_string().contains("already exists with uuid") {
        let name = &state.order.spec.name;
        return Error::conflict(format!("libvirt already has a domain named '{name}' that vmkeep did not make"))
            .hint(format!("take it over with `vmkeep vm adopt {name}`, or choose another name"));
    }
    told
}
