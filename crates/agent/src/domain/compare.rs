//! The wished description against the stored one, and what is kept of the stored one for good.

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::observed::FieldChange;
use vmkeep_types::record::{FirmwareChoice, VmChoices};

use super::Comparison;
use super::facts::{Facts, facts};
use super::tree::{self, Element};

/// The field under which a domain without our aliases differs as a whole.
pub const FOREIGN: &str = "hardware description";

/// Drift and conflicts: how `actual` (libvirt's) differs from `wanted` (ours).
pub fn compare(wanted: &str, actual: &str) -> Result<Comparison, Error> {
    let (wanted, actual) = (tree::parse(wanted)?, tree::parse(actual)?);
    if is_foreign(&actual) {
        let change = FieldChange { field: FOREIGN.into(), from: "as it was adopted".into(), to: "as vmkeep writes it".into() };
        return Ok(Comparison { drift: vec![change], conflicts: Vec::new() });
    }
    let mut comparison = Comparison::default();
    for change in differences(&facts(&wanted), &facts(&actual)) {
        let of_data = (change.field.starts_with("disks[") && change.field.ends_with(".source") && change.from != "-" && change.to != "-") || change.field == "tpm" && change.to == "-";
        if of_data { comparison.conflicts.push(change) } else { comparison.drift.push(change) }
    }
    Ok(comparison)
}

fn is_foreign(domain: &Element) -> bool {
    !domain.find("devices").into_iter().flat_map(|d| &d.children).any(|d| d.alias().is_some_and(|a| a.starts_with("ua-")))
}

/// Every field that differs, from what is there to what is wished; `-` = not there.
pub fn differences(wanted: &Facts, actual: &Facts) -> Vec<FieldChange> {
    let fields: std::collections::BTreeSet<&String> = wanted.keys().chain(actual.keys()).collect();
    let value = |facts: &Facts, field: &String| facts.get(field).cloned().unwrap_or_else(|| "-".into());
    let differs = |field: &&String| wanted.get(*field) != actual.get(*field);
    fields.into_iter().filter(differs).map(|f| FieldChange { field: f.clone(), from: value(actual, f), to: value(wanted, f) }).collect()
}

/// Adds what libvirt chose and nobody wrote down yet: addresses by alias, the versioned machine, the firmware.
pub fn choices_from(xml: &str, kept: &VmChoices) -> Result<VmChoices, Error> {
    let domain = tree::parse(xml)?;
    let mut choices = kept.clone();
    for device in domain.find("devices").into_iter().flat_map(|d| &d.children) {
        if let (Some(alias), Some(address)) = (device.alias(), device.find("address"))
            && alias.starts_with("ua-")
            && address.get("type").is_some_and(|t| matches!(t, "pci" | "drive" | "usb"))
        {
            choices.addresses.entry(alias.to_owned()).or_insert_with(|| address.write().trim().to_owned());
        }
    }
    choices.machine = choices.machine.or_else(|| domain.attr_at("os/type", "machine").map(str::to_owned));
    choices.domain_type = choices.domain_type.or_else(|| domain.get("type").map(str::to_owned));
    choices.firmware = choices.firmware.or_else(|| Some(firmware(&domain)));
    Ok(choices)
}

fn firmware(domain: &Element) -> FirmwareChoice {
    let Some(loader) = domain.at("os/loader") else { return FirmwareChoice::Bios };
    FirmwareChoice::Uefi {
        loader: loader.text.trim().to_owned(),
        loader_format: loader.get("format").unwrap_or("raw").to_owned(),
        template: domain.attr_at("os/nvram", "template").unwrap_or_default().to_owned(),
        secure_boot: loader.get("secure") == Some("yes"),
    }
}

/// `vda` of the disk `root` in a running domain.
pub fn disk_target(live: &str, disk: &Name) -> Result<Option<String>, Error> {
    let domain = tree::parse(live)?;
    let alias = format!("ua-disk-{disk}");
    let device = domain.find("devices").into_iter().flat_map(|d| d.all("disk")).find(|d| d.alias() == Some(&alias));
    Ok(device.and_then(|d| d.attr_at("target", "dev")).map(str::to_owned))
}
