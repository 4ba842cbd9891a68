//! Carrying a wish into volumes, networks, the stored description and, where it runs, the running domain.
//!
//! Every part is idempotent: a volume that is there is left, a description that matches is not defined again. What a running
//! guest cannot take is `pending` until the next cold start. Disk sources and chains that changed behind our back are
//! `conflicts`: never mended, and no start goes over them.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmkeep_types::error::{Code, Error};
use vmkeep_types::event::Level;
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Doing, Observed};
use vmkeep_types::order::Order;
use vmkeep_types::pool::{PoolSpec, VolumeRecord};
use vmkeep_types::record::VmOrigin;

use super::claim;
use super::node::{Look, Node};
use super::qemu;
use super::report::State;
use crate::domain::{self, BuildInput, DiskSource};
use crate::hypervisor::{HvError, XmlKind};
use crate::net::NetAttach;
use crate::seed;

/// The domain XML that the wish asks for, and what went into it.
struct Wanted {
    xml: String,
    warnings: Vec<String>,
}

/// Makes everything match the wish without starting anything.
pub async fn apply(node: &Node, state: &mut State) -> Result<(), Error> {
    prepare_volumes(node, state).await?;
    let wanted = wanted(node, state, Look::Fresh).await?;
    define(node, state, &wanted).await?;
    if state.domain.known().is_some_and(|d| d.state.is_live()) {
        change_live(node, state, &wanted).await?;
    } else {
        state.pending.clear();
    }
    state.error = None;
    Ok(())
}

/// Applies, claims, starts.
pub async fn start(node: &Node, state: &mut State) -> Result<(), Error> {
    let fresh = state.memory.applied < state.wish() || state.domain == Observed::Absent || !state.pending.is_empty();
    prepare_volumes(node, state).await?;
    let wanted = wanted(node, state, Look::Fresh).await?;
    if fresh {
        define(node, state, &wanted).await?;
    } else {
        note_difference(node, state, &wanted).await?;
    }
    refuse_conflicts(state)?;
    let unknown = state.unknown_op(node, Doing::Starting);
    let granted = claim::claim(node, &state.order, Some(unknown))
        .await
        .map_err(|e| Error::new(Code::Unavailable, format!("cannot claim the right to start: {e}")))?;
    if !granted.is_fresh() {
        return Err(Error::new(Code::Unavailable, "the claim was too old when it was granted; the store is slow"));
    }
    match node.hv.start(state.order.vm).await {
        Ok(()) => {}
        Err(HvError::WrongState(_)) if is_live(node, state).await => {}
        Err(error) => return Err(start_error(node, state, &error)),
    }
    state.pending.clear();
    state.error = None;
    state.step("started");
    qemu::started(node, state).await;
    Ok(())
}

async fn is_live(node: &Node, state: &State) -> bool {
    node.hv.find(state.order.vm).await.is_ok_and(|brief| brief.state.is_live())
}

fn start_error(node: &Node, state: &State, error: &HvError) -> Error {
    let log = node.config.log_dir.display();
    let hint = format!("`vmkeep vm logs {} --source qemu` shows QEMU's own words; serial logs are in {log}", state.order.spec.name);
    Error::refused(format!("QEMU did not start: {error}")).hint(hint)
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

fn pool_of<'a>(order: &'a Order, name: &Name) -> Result<&'a PoolSpec, Error> {
    order.pools.get(name).ok_or_else(|| Error::not_found("pool", name))
}

/// Volumes exist and are as large as wished (a running guest's disk grows with the live changes).
async fn prepare_volumes(node: &Node, state: &mut State) -> Result<(), Error> {
    let volumes: Vec<(Name, VolumeRecord)> = state.order.volumes.iter().map(|(disk, v)| (disk.clone(), v.clone())).collect();
    let live = state.domain.known().is_some_and(|d| d.state.is_live());
    for (disk, volume) in volumes {
        if volume.foreign_path.is_some() {
            continue;
        }
        let pool = node.pool(pool_of(&state.order, &volume.pool)?)?;
        let there = pool.stat_volume(&volume).await?;
        let mut seen = match there {
            Some(seen) => seen,
            None => {
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
    let input = BuildInput {
        order: &state.order,
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
    let path = match &volume.foreign_path {
        Some(path) => PathBuf::from(path),
        None => node.pool(pool_of(order, &volume.pool)?)?.volume_path(volume),
    };
    let format = match path.extension().and_then(|e| e.to_str()) {
        Some("raw" | "img" | "iso") => "raw",
        _ => "qcow2",
    };
    Ok(DiskSource { o_direct: takes_o_direct(&path), path, format: format.into() })
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

async fn write_seed(node: &Node, order: &Order) -> Result<Option<PathBuf>, Error> {
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
        let xml = node.hv.define(&wanted.xml).await.map_err(|e| define_error(state, &e))?;
        state.choices = domain::choices_from(&xml, &state.choices)?;
        state.step("domain defined");
        return Ok(());
    }
    if !state.ours && state.order.origin == VmOrigin::Adopted {
        let metadata = domain::metadata(&state.order);
        node.hv
            .set_metadata(state.order.vm, Some(&metadata))
            .await
            .map_err(|e| Error::refused(format!("cannot mark the domain as ours: {e}")))?;
        node.hv
            .set_autostart(state.order.vm, false)
            .await
            .map_err(|e| Error::refused(format!("cannot turn libvirt's autostart off: {e}")))?;
        state.ours = true;
        state.step("existing domain taken over");
        state.event(Level::Info, "vm.adopted", "an existing libvirt domain was taken over");
        return Ok(());
    }
    note_difference(node, state, wanted).await?;
    if !state.conflicts.is_empty() {
        return refuse_conflicts(state);
    }
    if !state.drift.is_empty() {
        let xml = node.hv.define(&wanted.xml).await.map_err(|e| define_error(state, &e))?;
        state.choices = domain::choices_from(&xml, &state.choices)?;
        state.step(format!("description changed: {}", state.drift.iter().map(|d| d.field.as_str()).collect::<Vec<_>>().join(", ")));
        state.drift.clear();
    }
    Ok(())
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

/// How the stored description differs from the wish.
async fn note_difference(node: &Node, state: &mut State, wanted: &Wanted) -> Result<(), Error> {
    let inactive = match node.hv.xml(state.order.vm, XmlKind::Inactive).await {
        Ok(xml) => xml,
        Err(HvError::NoDomain(_)) => return Ok(()),
        Err(error) => return Err(Error::refused(format!("cannot read the domain's description: {error}"))),
    };
    state.choices = domain::choices_from(&inactive, &state.choices)?;
    let comparison = domain::compare(&wanted.xml, &inactive)?;
    state.drift = comparison.drift;
    state.conflicts = comparison.conflicts;
    Ok(())
}

/// What libvirt can change while the guest runs; the rest is pending.
async fn change_live(node: &Node, state: &mut State, wanted: &Wanted) -> Result<(), Error> {
    let live =
        node.hv.xml(state.order.vm, XmlKind::Live).await.map_err(|e| Error::refused(format!("cannot read the running domain: {e}")))?;
    let plan = domain::live_plan(&wanted.xml, &live)?;
    state.pending = plan.pending;
    for (change, how) in plan.changes {
        match node.hv.change(state.order.vm, how).await {
            Ok(()) => state.step(format!("{} changed from {} to {}", change.field, change.from, change.to)),
            Err(error) => {
                state.warnings.push(format!("{} cannot change while it runs: {error}", change.field));
                state.pending.push(change);
            }
        }
    }
    grow_live(node, state, &live).await
}

async fn grow_live(node: &Node, state: &mut State, live: &str) -> Result<(), Error> {
    let grown: Vec<(Name, VolumeRecord, u64)> = state
        .order
        .volumes
        .iter()
        .filter_map(|(disk, v)| Some((disk.clone(), v.clone(), v.size?.bytes())))
        .filter(|(_, v, size)| state.volumes.get(&v.id).is_some_and(|seen| *size > seen.size_bytes))
        .collect();
    for (disk, volume, size_bytes) in grown {
        let Some(target) = domain::disk_target(live, &disk)? else { continue };
        let resize = crate::hypervisor::LiveChange::BlockResize(target, size_bytes);
        node.hv.change(state.order.vm, resize).await.map_err(|e| Error::refused(format!("disk {disk} cannot grow: {e}")))?;
        state.step(format!("disk {disk}: grown to {}", vmkeep_types::units::ByteCount::from_bytes(size_bytes)));
        if let Some(seen) = state.volumes.get_mut(&volume.id) {
            seen.size_bytes = size_bytes;
        }
    }
    Ok(())
}

/// Looks for drift without changing anything; called when all else is settled.
pub async fn inspect(node: &Node, state: &mut State) {
    if state.order.leaving.is_some() || state.domain.known().is_none() || !state.ours {
        return;
    }
    qemu::look(node, state).await;
    let before = state.drift.clone();
    let outcome = match wanted(node, state, Look::Kept).await {
        Ok(wanted) => note_difference(node, state, &wanted).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::debug!(vm = %state.order.spec.name, %error, "cannot compare the domain with the wish");
        return;
    }
    if !state.drift.is_empty() && state.drift != before {
        let fields: Vec<&str> = state.drift.iter().map(|d| d.field.as_str()).collect();
        state.event(Level::Warn, "vm.drift", format!("changed behind vmkeep's back: {}", fields.join(", ")));
    }
}
