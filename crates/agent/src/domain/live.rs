//! What a running domain can take of a wish: detach, attach, updates of devices, balloon and vCPUs; the rest is pending.
//!
//! Updates are made from the running device's own XML, because libvirt compares it with what it gets and refuses any other
//! difference.

use std::collections::BTreeMap;

use vmkeep_types::error::Error;
use vmkeep_types::observed::FieldChange;

use super::LivePlan;
use super::compare::is_detail;
use super::diff::{self, Difference, View, differences};
use super::field;
use super::tree::{self, Element};
use crate::hypervisor::LiveChange;

/// Changes for the running domain in the order they are to be made, and what waits for a cold start.
///
/// # Errors
/// One of the descriptions does not parse.
pub fn live_plan(wanted: &str, live: &str) -> Result<LivePlan, Error> {
    let (wanted, live) = (tree::parse(wanted)?, tree::parse(live)?);
    let mut planner = Planner { live: &live, pairs: diff::pairs(&wanted, &live), updated: BTreeMap::new(), changes: Vec::new() };
    let (foreign, boots_alike) = (diff::is_foreign(&live), diff::boot_sequence_is_kept(&planner.pairs));
    let mut pending: Vec<FieldChange> = Vec::new();
    for difference in differences(&wanted, &live, View::Running) {
        let change = field::change(&difference);
        let seen = pending.iter().chain(planner.changes.iter().map(|(_, c, _)| c)).any(|c| c.field == change.field);
        let skipped = is_text(&change.field) || (foreign && is_detail(&change.field)) || (boots_alike && change.field.starts_with("boot["));
        if seen || skipped {
            continue;
        }
        match planner.plan(&difference, &change) {
            Some((rank, how)) => planner.changes.push((rank, change, how)),
            None => pending.push(change),
        }
    }
    field::fold_machine(&mut pending);
    planner.changes.sort_by_key(|(rank, _, _)| *rank);
    Ok(LivePlan { changes: planner.changes.into_iter().map(|(_, change, how)| (change, how)).collect(), pending })
}

/// Gives the running display the wished password, which no description of libvirt shows. None where there is none, or where
/// the display itself waits for a cold start.
///
/// # Errors
/// One of the descriptions does not parse.
pub fn password_change(wanted: &str, live: &str) -> Result<Option<LiveChange>, Error> {
    let (wanted, live) = (tree::parse(wanted)?, tree::parse(live)?);
    let (wanted, running) = (wanted.devices().find(|d| d.name == "graphics"), live.devices().find(|d| d.name == "graphics"));
    let (Some(wanted), Some(running)) = (wanted, running) else { return Ok(None) };
    let listens = |d: &Element| d.attr_at("listen", "type").map(str::to_owned);
    let password = wanted.get("passwd").filter(|_| listens(wanted) == listens(running));
    Ok(password.map(|password| {
        let mut updated = running.clone();
        updated.set("passwd", password);
        LiveChange::UpdateDevice(updated.write())
    }))
}

/// No hardware: the stored description is enough.
fn is_text(field: &str) -> bool {
    matches!(field, "name" | "description")
}

/// Places are freed before they are taken, and a controller comes before its disks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Detach,
    AttachController,
    Attach,
    Update,
}

struct Planner<'a> {
    live: &'a Element,
    pairs: diff::Pairs<'a>,
    /// Running devices as the changes so far leave them, by the wanted one's alias.
    updated: BTreeMap<String, Element>,
    changes: Vec<(Rank, FieldChange, LiveChange)>,
}

impl Planner<'_> {
    fn plan(&mut self, difference: &Difference<'_>, change: &FieldChange) -> Option<(Rank, LiveChange)> {
        match difference.device {
            Some(device) if difference.path.is_empty() && difference.to.is_none() => detach(device),
            Some(device) if difference.path.is_empty() => self.attach(device),
            Some(device) => self.update(device, change).map(|how| (Rank::Update, how)),
            None => self.size(change).map(|how| (Rank::Update, how)),
        }
    }

    fn attach(&self, device: &Element) -> Option<(Rank, LiveChange)> {
        let rank = match device.name.as_str() {
            "controller" if device.get("type") == Some("scsi") => Rank::AttachController,
            "disk" if is_pluggable_disk(device) => Rank::Attach,
            "interface" => Rank::Attach,
            _ => return None,
        };
        let mut device = device.clone();
        let order = device.attr_at("boot", "order").map(str::to_owned);
        let boots_there = |d: &Element| d.find("boot").is_some() && d.attr_at("boot", "order") == order.as_deref();
        let boot_is_taken = self.live.devices().any(boots_there);
        let place_is_free = device.find("address").is_none_or(|address| self.is_free(address));
        device.children.retain(|c| !(c.name == "boot" && boot_is_taken || c.name == "address" && !place_is_free));
        Some((rank, LiveChange::AttachDevice(device.write())))
    }

    /// The running machine has that bus, and nothing in that slot.
    fn is_free(&self, address: &Element) -> bool {
        let place = |a: &Element| (a.get("bus").map(str::to_owned), a.get("slot").map(str::to_owned));
        let bus = address.get("bus").and_then(|b| u32::from_str_radix(b.trim_start_matches("0x"), 16).ok()).map(|n| n.to_string());
        let has_bus = |d: &Element| d.name == "controller" && d.get("type") == Some("pci") && d.get("index") == bus.as_deref();
        let taken = |d: &Element| d.find("address").is_some_and(|a| a.get("type") == Some("pci") && place(a) == place(address));
        self.live.devices().any(has_bus) && !self.live.devices().any(taken)
    }

    fn update(&mut self, device: &Element, change: &FieldChange) -> Option<LiveChange> {
        let (_, running) = self.pairs.both.iter().find(|(wanted, _)| std::ptr::eq(*wanted, device))?;
        let key = device.alias()?.to_owned();
        let mut updated = self.updated.get(&key).unwrap_or(running).clone();
        let setting = change.field.rsplit_once("].").map(|(_, setting)| setting)?;
        match (device.name.as_str(), setting) {
            ("interface", "link") => updated.child_mut("link").set("state", device.attr_at("link", "state").unwrap_or("up")),
            ("interface", "network") => {
                updated.set("type", device.get("type")?);
                *updated.child_mut("source") = device.find("source")?.clone();
                // The tap's name belongs to the old connection.
                updated.children.retain(|c| c.name != "target");
            }
            ("disk", "source") if device.get("device") == Some("cdrom") => {
                updated.children.retain(|c| !matches!(c.name.as_str(), "source" | "backingStore"));
                updated.children.extend(device.find("source").cloned());
            }
            ("disk", "limits.bandwidth" | "limits.iops") => return io_limits(device, running),
            _ => return None,
        }
        self.updated.insert(key, updated.clone());
        Some(LiveChange::UpdateDevice(updated.write()))
    }

    fn size(&self, change: &FieldChange) -> Option<LiveChange> {
        match change.field.as_str() {
            "memory.size" => {
                let (size, max) = (change.to.parse::<vmkeep_types::units::ByteCount>().ok()?, diff::memory(self.live, "memory")?);
                let balloon = self.live.devices().any(|d| d.name == "memballoon" && d.get("model") != Some("none"));
                (balloon && size <= max).then(|| LiveChange::MemoryKib(size.kib()))
            }
            "cpus.count" => {
                let max: u32 = self.live.text_at("vcpu")?.parse().ok()?;
                let (from, to): (u32, u32) = (change.from.parse().ok()?, change.to.parse().ok()?);
                // Taking a CPU away needs the guest's consent.
                (from < to && to <= max).then_some(LiveChange::Vcpus(to))
            }
            _ => None,
        }
    }
}

fn is_pluggable_disk(device: &Element) -> bool {
    device.get("device") == Some("disk") && matches!(device.attr_at("target", "bus"), Some("virtio" | "scsi"))
}

fn io_limits(wanted: &Element, running: &Element) -> Option<LiveChange> {
    let limit = |name| wanted.find("iotune").and_then(|t| t.text_at(name)).map_or(Some(0), |n| n.parse().ok());
    let target = running.attr_at("target", "dev")?.to_owned();
    Some(LiveChange::IoLimits { target, bytes: limit("total_bytes_sec")?, iops: limit("total_iops_sec")? })
}

/// Only what vmkeep attached: a device that somebody else plugged into the running domain goes by itself at its next start.
fn detach(device: &Element) -> Option<(Rank, LiveChange)> {
    let alias = device.alias()?;
    let ours = (alias.starts_with("ua-disk-") && is_pluggable_disk(device)) || alias.starts_with("ua-nic-");
    ours.then(|| (Rank::Detach, LiveChange::DetachDevice(device.write())))
}
