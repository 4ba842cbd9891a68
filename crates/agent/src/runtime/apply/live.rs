//! What a running guest takes: devices, sizes, memory; and what it was asked for and has not done yet.

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::observed::FieldChange;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::units::ByteCount;

use super::super::node::Node;
use super::super::report::State;
use super::{Wanted, name_that_waits};
use crate::domain;
use crate::hypervisor::XmlKind;

/// What libvirt can change while the guest runs; the rest is pending.
pub(super) async fn change_live(node: &Node, state: &mut State, wanted: &Wanted) -> Result<(), Error> {
    let live = running_xml(node, state).await?;
    let plan = domain::live_plan(&wanted.xml, &live)?;
    state.pending = plan.pending;
    state.pending.extend(pending_name(state));
    let mut asked = Vec::new();
    // A guest that gives its memory back slowly, or never, was told once.
    let told = |change: &FieldChange| {
        is_balloon_on_its_way(change) && state.asked_live.iter().any(|a| a.field == change.field && a.to == change.to)
    };
    let (_, changes): (Vec<_>, Vec<_>) = plan.changes.into_iter().partition(|(change, _)| told(change));
    for (change, how) in changes {
        match node.hv.change(state.order.vm, how).await {
            Ok(()) => asked.push(change),
            Err(error) => {
                state.warnings.push(format!("{} cannot change while it runs: {error}", change.field));
                state.pending.push(change);
            }
        }
    }
    note_asked(node, state, wanted, asked).await?;
    if let Some(how) = domain::password_change(&wanted.xml, &live)?
        && let Err(error) = node.hv.change(state.order.vm, how).await
    {
        state.warnings.push(format!("the display's password is as before until a restart: {error}"));
    }
    grow_live(node, state, &live).await
}

/// What was done, and what the guest was only asked for: libvirt waits a few seconds for a guest to let go of a device, and then
/// says that all is well.
async fn note_asked(node: &Node, state: &mut State, wanted: &Wanted, asked: Vec<FieldChange>) -> Result<(), Error> {
    if asked.is_empty() {
        return Ok(());
    }
    let left = domain::live_plan(&wanted.xml, &running_xml(node, state).await?)?.changes;
    for change in asked {
        let waits = left.iter().any(|(left, _)| left.field == change.field && left.to == change.to) && !is_balloon_on_its_way(&change);
        if waits {
            state
                .warnings
                .push(format!("{}: the guest was asked, and has not done it yet; else the next cold start does it", change.field));
            state.pending.push(change);
        } else {
            state.step(format!("{} changed from {} to {}", change.field, change.from, change.to));
            state.asked_live.push(change);
        }
    }
    Ok(())
}

async fn running_xml(node: &Node, state: &State) -> Result<String, Error> {
    node.hv.xml(state.order.vm, XmlKind::Live).await.map_err(|e| Error::refused(format!("cannot read the running domain: {e}")))
}

/// libvirt gives no other name to a running domain.
fn pending_name(state: &State) -> Option<FieldChange> {
    let from = name_that_waits(state)?;
    Some(FieldChange { field: "name".into(), from, to: state.order.spec.name.to_string() })
}

/// What somebody changed in the running domain only (virsh's default), and what waits for a cold start.
pub(super) fn note_live_difference(state: &mut State, wanted: &Wanted, running: &str) -> Result<(), Error> {
    let plan = domain::live_plan(&wanted.xml, running)?;
    let changes: Vec<FieldChange> = plan.changes.into_iter().map(|(change, _)| change).collect();
    let among = |list: &[FieldChange], change: &FieldChange| list.iter().any(|c| c.field == change.field && c.to == change.to);
    // What libvirt refused waits, and what the guest has not done yet is no news.
    let (refused, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| among(&state.pending, change));
    state.asked_live.retain(|asked| among(&rest, asked));
    let news = rest.into_iter().filter(|change| !among(&state.asked_live, change) && !is_balloon_on_its_way(change));
    let news: Vec<FieldChange> = news.filter(|change| !state.drift.iter().any(|d| d.field == change.field)).collect();
    state.drift.extend(news);
    state.pending = plan.pending;
    state.pending.extend(refused);
    state.pending.extend(pending_name(state));
    Ok(())
}

/// More memory than wished: a guest that has not given it back yet, or has no balloon driver, looks the same.
fn is_balloon_on_its_way(change: &FieldChange) -> bool {
    let size = |text: &str| text.parse::<ByteCount>().ok();
    change.field == "memory.size" && size(&change.from) > size(&change.to)
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
        state.step(format!("disk {disk}: grown to {}", ByteCount::from_bytes(size_bytes)));
        if let Some(seen) = state.volumes.get_mut(&volume.id) {
            seen.size_bytes = size_bytes;
        }
    }
    Ok(())
}
