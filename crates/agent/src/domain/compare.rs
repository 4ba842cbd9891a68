//! The wished description against the stored one, and what is kept of the stored one for good.

use std::collections::BTreeSet;

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::record::{FirmwareChoice, VmChoices};

use super::Comparison;
use super::build::{NVRAM, family, target_key};
use super::diff::{self, Difference, View, differences};
use super::tree::{self, Element};
use super::{field, metadata};

/// Drift and conflicts: how `actual` (libvirt's stored description) differs from `wanted` (ours).
///
/// A domain that vmkeep took over and has not written yet differs in many settings that the manifest does not name; they
/// become vmkeep's with the next change, and are no drift.
///
/// # Errors
/// One of them does not parse.
pub fn compare(wanted: &str, actual: &str) -> Result<Comparison, Error> {
    let (wanted, actual) = (tree::parse(wanted)?, tree::parse(actual)?);
    let foreign = diff::is_foreign(&actual);
    let boots_alike = diff::boot_sequence_is_kept(&diff::pairs(&wanted, &actual));
    let mut comparison = Comparison::default();
    for difference in differences(&wanted, &actual, View::Stored) {
        let change = field::change(&difference);
        if is_conflict(&difference, &actual) {
            comparison.conflicts.push(change);
        } else if !(foreign && is_detail(&change.field) || boots_alike && change.field.starts_with("boot[")) {
            comparison.drift.push(change);
        }
    }
    field::fold_machine(&mut comparison.drift);
    Ok(comparison)
}

/// Not told by the manifest, or told in another way there.
pub fn is_detail(field: &str) -> bool {
    field.starts_with("xml:") || field.starts_with("boot[") || field == "serial.log"
}

/// Data and state that redefining would lose: somebody changed where they lie.
fn is_conflict(difference: &Difference<'_>, actual: &Element) -> bool {
    let (Some(from), Some(to)) = (&difference.from, &difference.to) else { return false };
    match (difference.device, difference.path.as_str()) {
        (None, "os/nvram") => true,
        (Some(device), path) if device.name == "tpm" => path.starts_with("backend"),
        (Some(device), path) if device.name == "disk" && (path.starts_with("source") || path == "driver@type") => {
            let Some(name) = device.alias().and_then(|a| a.strip_prefix("ua-disk-")) else { return false };
            // What vmkeep wrote last and nobody touched is changed by the wish (a rebuild), not behind our back. The same
            // file in another format would be read as something else, and written over.
            let there = actual.devices().filter(|d| d.alias() == device.alias()).find_map(source_path);
            let replaced = there.is_some() && there != source_path(device) && metadata::written_disks(actual).get(name).copied() == there;
            from != to && !replaced
        }
        _ => false,
    }
}

fn source_path(disk: &Element) -> Option<&str> {
    disk.attr_at("source", "file").or_else(|| disk.attr_at("source", "dev"))
}

/// Whether a difference is in what is chosen once: what is there then was not made from this wish.
pub fn is_choice(field: &str) -> bool {
    field.starts_with("cpu.") || matches!(field, "machine" | "firmware" | "secure_boot" | "xml:@type")
}

/// The versioned machine of a description; None: it has none, or does not parse.
pub fn machine_of(xml: &str) -> Option<String> {
    tree::parse(xml).ok()?.attr_at("os/type", "machine").map(str::to_owned)
}

/// Adds what libvirt chose and nobody wrote down yet: addresses and targets by alias, the versioned machine, CPU, firmware.
/// What was chosen for another kind (of machine, firmware or virtualisation) gives way to what is there.
///
/// # Errors
/// The XML does not parse.
pub fn choices_from(xml: &str, kept: &VmChoices) -> Result<VmChoices, Error> {
    let domain = tree::parse(xml)?;
    let mut choices = kept.clone();
    let machine = domain.attr_at("os/type", "machine").filter(|m| !matches!(*m, "q35" | "pc"));
    let ours = !diff::is_foreign(&domain) && machine.is_some_and(|m| family(m).is_some());
    if ours && kept.machine.as_deref().is_some_and(|kept| machine.and_then(family) != family(kept)) {
        choices.machine = None;
        choices.addresses.retain(|key| key == NVRAM || key.ends_with("/target"));
    }
    for device in domain.devices() {
        let Some(alias) = device.alias().filter(|a| a.starts_with("ua-")) else { continue };
        // A drive's address follows from its target.
        let keeps = |a: &&Element| a.get("type").is_some_and(|t| matches!(t, "pci" | "usb" | "virtio-serial"));
        if let Some(address) = device.find("address").filter(keeps) {
            choices.addresses.keep(alias, || flat(address));
        }
        if let Some(target) = device.attr_at("target", "dev").filter(|_| device.name == "disk" && alias != "ua-seed") {
            choices.addresses.keep(&target_key(alias), || target.to_owned());
        }
    }
    if !ours {
        return Ok(choices);
    }
    // A kind without a version stands for the newest: libvirt put its version there when it took the description.
    let versioned = choices.machine.take_if(|kept| !matches!(kept.as_str(), "q35" | "pc"));
    choices.machine = versioned.or_else(|| machine.map(str::to_owned));
    if choices.domain_type.as_deref() != domain.get("type") {
        choices.domain_type = domain.get("type").map(str::to_owned);
        choices.cpu_xml = None;
    }
    let there = firmware(&domain);
    choices.firmware = choices.firmware.filter(|kept| same_kind(kept, &there)).or(Some(there));
    choices.cpu_xml = choices.cpu_xml.or_else(|| chosen_cpu(&domain));
    Ok(choices)
}

fn same_kind(a: &FirmwareChoice, b: &FirmwareChoice) -> bool {
    let secure_boot = |choice: &FirmwareChoice| match choice {
        FirmwareChoice::Bios => None,
        FirmwareChoice::Uefi { secure_boot, .. } => Some(*secure_boot),
    };
    secure_boot(a) == secure_boot(b)
}

fn flat(element: &Element) -> String {
    element.write().trim().to_owned()
}

/// The CPU as it was before topology and `cpu.features` were laid over it.
fn chosen_cpu(domain: &Element) -> Option<String> {
    let mut cpu = domain.find("cpu").filter(|_| metadata::cpu_is_chosen(domain))?.clone();
    cpu.children.retain(|c| c.name != "topology");
    for (name, before) in metadata::overlaid_features(domain) {
        cpu.children.retain(|c| !(c.name == "feature" && c.get("name") == Some(name)));
        cpu.children.extend(before.map(|policy| tree::el("feature").attr("policy", policy).attr("name", name)));
    }
    Some(flat(&cpu))
}

pub fn firmware(domain: &Element) -> FirmwareChoice {
    let Some(loader) = domain.at("os/loader").filter(|l| l.get("type") == Some("pflash")) else { return FirmwareChoice::Bios };
    FirmwareChoice::Uefi {
        loader: loader.text.trim().to_owned(),
        loader_format: loader.get("format").unwrap_or("raw").to_owned(),
        template: domain.attr_at("os/nvram", "template").unwrap_or_default().to_owned(),
        secure_boot: loader.get("secure") == Some("yes"),
    }
}

/// Files and devices that a domain's disks and cdroms read, with all that lies below them as far as libvirt tells.
///
/// # Errors
/// The XML does not parse.
pub fn disk_files(xml: &str) -> Result<BTreeSet<String>, Error> {
    fn take(element: &Element, files: &mut BTreeSet<String>) {
        files.extend(source_path(element).map(str::to_owned));
        let below = element.children.iter().filter(|c| matches!(c.name.as_str(), "backingStore" | "mirror"));
        below.for_each(|c| take(c, files));
    }
    let domain = tree::parse(xml)?;
    let mut files = BTreeSet::new();
    domain.devices().filter(|d| d.name == "disk").for_each(|d| take(d, &mut files));
    Ok(files)
}

/// `vda` of the disk `root` in a running domain; of an adopted one, disks are named by their target.
///
/// # Errors
/// The XML does not parse.
pub fn disk_target(live: &str, disk: &Name) -> Result<Option<String>, Error> {
    let domain = tree::parse(live)?;
    let alias = format!("ua-disk-{disk}");
    let disks = || domain.devices().filter(|d| d.name == "disk");
    let by_target =
        || disks().find(|d| d.alias().is_none_or(|a| !a.starts_with("ua-")) && d.attr_at("target", "dev") == Some(disk.as_str()));
    let device = disks().find(|d| d.alias() == Some(&alias)).or_else(by_target);
    Ok(device.and_then(|d| d.attr_at("target", "dev")).map(str::to_owned))
}
