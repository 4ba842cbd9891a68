//! How the domain differs from the wish, found without changing anything.
//!
//! Every VM is looked at once a minute, and nearly always all is as it was: what was compared once is not compared again until a
//! description or the wish is another, or something was done.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use vmkeep_types::error::Error;
use vmkeep_types::event::Level;
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{FieldChange, Observed, VolumeSeen};
use vmkeep_types::record::VmOrigin;

use super::super::node::{Look, Node};
use super::super::qemu;
use super::super::report::State;
use super::{Wanted, addresses, live, lives, name_that_waits, pool_of, seed_path, wanted};
use crate::domain;
use crate::hypervisor::{HvError, XmlKind};

/// What a domain that libvirt has forgotten differs by.
const UNDEFINED: &str = "undefined";

/// libvirt's descriptions of one domain at one moment.
#[derive(Hash)]
pub(super) struct Descriptions {
    /// None: it is not defined.
    stored: Option<String>,
    /// None: it does not run.
    live: Option<String>,
}

impl Descriptions {
    pub(super) async fn read(node: &Node, vm: VmId) -> Result<Self, Error> {
        let live = match node.hv.xml(vm, XmlKind::Live).await {
            Err(HvError::WrongState(_)) => None,
            told => there(told)?,
        };
        Ok(Self { live, stored: stored(node, vm).await? })
    }
}

/// What the next start uses; None: it is not defined.
pub(super) async fn stored(node: &Node, vm: VmId) -> Result<Option<String>, Error> {
    there(node.hv.xml(vm, XmlKind::Inactive).await)
}

fn there(told: Result<String, HvError>) -> Result<Option<String>, Error> {
    match told {
        Ok(xml) => Ok(Some(xml)),
        Err(HvError::NoDomain(_)) => Ok(None),
        Err(error) => Err(Error::refused(format!("cannot read the domain's description: {error}"))),
    }
}

/// Looks for drift; called when all else is settled.
pub async fn inspect(node: &Node, state: &mut State) {
    if state.order.leaving.is_none() && state.domain == Observed::Absent && state.memory.applied >= state.wish() {
        let gone = FieldChange { field: "domain".into(), from: UNDEFINED.into(), to: "defined".into() };
        state.drift = vec![gone];
        state.compared = None;
        tell_drift(state);
        return;
    }
    if state.order.leaving.is_some() || state.domain.known().is_none() || !state.ours {
        return;
    }
    qemu::look(node, state).await;
    note_volumes(node, state).await;
    addresses::complete(node, state).await;
    if let Err(error) = compare(node, state).await {
        tracing::debug!(vm = %state.order.spec.name, %error, "cannot compare the domain with the wish");
        return;
    }
    tell_drift(state);
}

/// Files, drift and what is pending, unless all of it is as when it was compared last.
async fn compare(node: &Node, state: &mut State) -> Result<(), Error> {
    let known = state.compared.take();
    let there = Descriptions::read(node, state.order.vm).await.inspect_err(|_| state.also_open = None)?;
    let wish = wanted(node, state, Look::Kept).await;
    let now = wish.as_ref().ok().map(|wish| print(state, &there, wish));
    if known.is_some() && now == known {
        state.compared = known;
        return Ok(());
    }
    note_open_files(node, state, &there)?;
    let wish = wish?;
    note_difference(state, &wish, there.stored.as_deref())?;
    if let Some(running) = there.live.as_deref().filter(|_| lives(state)) {
        live::note_live_difference(state, &wish, running)?;
    }
    state.compared = now;
    Ok(())
}

/// All that a comparison goes by, in 64 bits: a thousand VMs need no thousand copies of their descriptions.
fn print(state: &State, there: &Descriptions, wish: &Wanted) -> u64 {
    let mut hasher = DefaultHasher::new();
    (there, &wish.xml, lives(state), state.persistent, &state.name_there).hash(&mut hasher);
    hasher.finish()
}

/// Files of disks that the wish let go of and the domain still has, running or stored.
pub(super) fn note_open_files(node: &Node, state: &mut State, there: &Descriptions) -> Result<(), Error> {
    state.also_open = None;
    let mut files = BTreeSet::new();
    for xml in [&there.live, &there.stored].into_iter().flatten() {
        files.extend(domain::disk_files(xml)?);
    }
    for volume in state.order.volumes.values() {
        files.remove(&*node.pool(pool_of(&state.order, &volume.pool)?)?.data_path(volume).to_string_lossy());
    }
    for (id, image) in &state.order.images {
        files.remove(&*node.pool(pool_of(&state.order, &image.pool)?)?.image_path(*id).to_string_lossy());
    }
    files.remove(&*seed_path(node, &state.order).to_string_lossy());
    state.also_open = Some(files);
    Ok(())
}

/// How the stored description differs from the wish; one that is not there tells nothing.
pub(super) fn note_difference(state: &mut State, wanted: &Wanted, stored: Option<&str>) -> Result<(), Error> {
    let Some(stored) = stored else { return Ok(()) };
    let comparison = domain::compare(&wanted.xml, stored)?;
    if !comparison.drift.iter().any(|d| domain::is_choice(&d.field)) {
        state.choices = domain::choices_from(stored, &state.choices)?;
    }
    state.drift = comparison.drift;
    if lives(state) && !state.persistent {
        state.drift.push(FieldChange { field: "domain".into(), from: "undefined: gone when it stops".into(), to: "persistent".into() });
    }
    if let (Some(there), false, VmOrigin::Created) = (name_that_waits(state), lives(state), state.order.origin) {
        state.drift.push(FieldChange { field: "name".into(), from: there, to: state.order.spec.name.to_string() });
    }
    state.conflicts = comparison.conflicts;
    Ok(())
}

/// What differs is told once, and when it does not any more, whoever mended it.
fn tell_drift(state: &mut State) {
    if state.drift == state.told_drift {
        return;
    }
    let fields = |changes: &[FieldChange]| changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>().join(", ");
    match state.drift.first() {
        None => state.event(Level::Info, "vm.drift-over", format!("as wished again: {}", fields(&state.told_drift))),
        Some(change) if change.field == "domain" && change.from == UNDEFINED => {
            state.event(Level::Warn, "vm.drift", "undefined behind vmkeep's back");
        }
        Some(_) => state.event(Level::Warn, "vm.drift", format!("changed behind vmkeep's back: {}", fields(&state.drift))),
    }
    state.told_drift = state.drift.clone();
}

/// Volumes as they are: those that came here with a running guest, which nothing was prepared for, and those that have grown.
async fn note_volumes(node: &Node, state: &mut State) {
    for volume in state.order.volumes.values().filter(|volume| volume.filling.is_none()).cloned().collect::<Vec<_>>() {
        let Ok(pool) = pool_of(&state.order, &volume.pool).and_then(|spec| node.pool(spec)) else { continue };
        match pool.stat_volume(&volume).await {
            Ok(Some(now)) if state.volumes.get(&volume.id).is_none_or(|known| tells_more(*known, now)) => {
                state.volumes.insert(volume.id, now);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(vm = %state.order.spec.name, %error, "cannot look at a volume yet"),
        }
    }
}

/// A guest that writes all the time must not make its node report all the time.
fn tells_more(known: VolumeSeen, now: VolumeSeen) -> bool {
    const BYTES_MIN: u64 = 8 << 20;
    now.size_bytes != known.size_bytes || now.allocated_bytes.abs_diff(known.allocated_bytes) >= BYTES_MIN.max(known.allocated_bytes / 16)
}
