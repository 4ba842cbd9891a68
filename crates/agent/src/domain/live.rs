//! What a running domain can take of a wish.

use std::collections::BTreeMap;

use vmkeep_types::error::Error;
use vmkeep_types::observed::FieldChange;

use super::LivePlan;
use super::compare::differences;
use super::facts::facts;
use super::tree::{self, Element};
use crate::hypervisor::LiveChange;

/// Devices that can be plugged in and out, by alias.
const PLUGGABLE: [&str; 3] = ["ua-disk-", "ua-nic-", "ua-cdrom-"];

/// Changes for the running domain, and what waits for a cold start.
pub fn live_plan(wanted: &str, live: &str) -> Result<LivePlan, Error> {
    let (wanted, live) = (tree::parse(wanted)?, tree::parse(live)?);
    let (new, old) = (pluggable(&wanted), pluggable(&live));
    let mut plan = LivePlan::default();
    for (alias, device) in &new {
        if !old.contains_key(alias) && !alias.starts_with("ua-cdrom-") {
            plan.changes.push((whole(alias, "-", "attached"), LiveChange::AttachDevice(device.write())));
        }
    }
    for (alias, device) in &old {
        if !new.contains_key(alias) && !alias.starts_with("ua-cdrom-") {
            plan.changes.push((whole(alias, "attached", "-"), LiveChange::DetachDevice(device.write())));
        }
    }
    for change in differences(&facts(&wanted), &facts(&live)) {
        let whole_device = plan.changes.iter().any(|(whole, _)| change.field.starts_with(&whole.field));
        if !whole_device {
            sort_in(&mut plan, change, &new, &live);
        }
    }
    Ok(plan)
}

fn whole(alias: &str, from: &str, to: &str) -> FieldChange {
    let field = match (alias.strip_prefix("ua-disk-"), alias.strip_prefix("ua-nic-")) {
        (Some(disk), _) => format!("disks[{disk}]"),
        (_, Some(nic)) => format!("nics[{nic}]"),
        _ => alias.to_owned(),
    };
    FieldChange { field, from: from.into(), to: to.into() }
}

fn pluggable(domain: &Element) -> BTreeMap<String, &Element> {
    let devices = domain.find("devices").into_iter().flat_map(|d| &d.children);
    let named = devices.filter_map(|d| Some((d.alias()?.to_owned(), d)));
    named.filter(|(alias, _)| PLUGGABLE.iter().any(|p| alias.starts_with(p))).collect()
}

fn sort_in(plan: &mut LivePlan, change: FieldChange, new: &BTreeMap<String, &Element>, live: &Element) {
    let update = |alias: String| new.get(&alias).map(|device| LiveChange::UpdateDevice(device.write()));
    let named = |prefix: &str, suffix: &str| change.field.strip_prefix(prefix)?.strip_suffix(suffix);
    let how = match change.field.as_str() {
        // Not hardware: the stored description is enough.
        "description" | "name" => return,
        // What the guest agrees to shows in its own time; the target is what counts.
        "memory.size" => bytes(&change.to).filter(|b| bytes(&current(live)).is_some_and(|max| *b <= max)).map(|b| LiveChange::MemoryKib(b / 1024)),
        "cpus.count" => change.to.parse().ok().filter(|n| change.from.parse::<u32>().is_ok_and(|old| *n > old)).map(LiveChange::Vcpus),
        _ => None,
    };
    let how = how
        .or_else(|| named("nics[", "].link").and_then(|nic| update(format!("ua-nic-{nic}"))))
        .or_else(|| named("nics[", "].network").and_then(|nic| update(format!("ua-nic-{nic}"))))
        .or_else(|| named("cdroms[", "].source").and_then(|cd| update(format!("ua-cdrom-{cd}"))));
    match how {
        Some(how) => plan.changes.push((change, how)),
        None => plan.pending.push(change),
    }
}

fn current(live: &Element) -> String {
    facts(live).remove("memory.max").unwrap_or_default()
}

fn bytes(size: &str) -> Option<u64> {
    size.parse::<vmkeep_types::units::ByteCount>().ok().map(vmkeep_types::units::ByteCount::bytes)
}
