//! A VM's devices: disks, cdroms, NICs, shares, host devices, boot order, XML patches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Found, forms};
use crate::name::Name;
use crate::vm::{AutoU32, Disk, DiskFormat, Nic, NicModel, VmSpec, XmlOp, XmlPatch};

/// One PCI slot each, and room for the rest on the bus.
pub const DISKS_MAX: usize = 32;
/// One PCI slot each.
pub const NICS_MAX: usize = 16;
/// SATA ports of the machine, less two for disks.
pub const CDROMS_MAX: usize = 4;
pub const SHARES_MAX: usize = 16;
const HOST_DEVICES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 16;
const DNS_MAX: usize = 8;
const PATCHES_MAX: usize = 64;
const PATCH_BYTES_MAX: usize = 64 << 10;
/// Queues of a NIC; beyond the vCPUs that serve them more are no use.
const QUEUES_MAX: u32 = 64;
/// virtiofs' mount tag.
const SHARE_NAME_BYTES_MAX: usize = 36;
/// An NVMe or virtio disk tells no more of its serial.
const SERIAL_BYTES_MAX: usize = 20;

/// Domain parts that vmkeep itself writes and reads back.
const OURS: [&str; 3] = ["name", "uuid", "metadata"];

/// Others' text within our messages and paths.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

pub(super) fn look(spec: &VmSpec, found: &mut Found) {
    image_shorthand(spec, found);
    disks(spec, found);
    found.at_most("cdroms", spec.cdroms.len(), CDROMS_MAX);
    nics(spec, found);
    names(spec, found);
    boot(spec, found);
    shares(spec, found);
    host_devices("devices.pci", &spec.devices.pci, forms::pci, found);
    host_devices("devices.usb", &spec.devices.usb, forms::usb, found);
    found.at_most("libvirt_xml", spec.libvirt_xml.len(), PATCHES_MAX);
    for (position, p) in spec.libvirt_xml.iter().take(PATCHES_MAX).enumerate() {
        found.under(format!("libvirt_xml[{position}]"), |f| patch(p, f));
    }
}

fn image_shorthand(spec: &VmSpec, found: &mut Found) {
    let (Some(image), Some(first)) = (&spec.image, spec.disks.first()) else { return };
    let says = match (&first.image, &first.volume, first.empty) {
        (Some(own), _, _) if own == image => return,
        (Some(own), _, _) => format!("image: {own}"),
        (None, Some(volume), _) => format!("volume: {volume}"),
        (None, None, true) => "empty: true".to_owned(),
        (None, None, false) => return,
    };
    found.add("image", format!("it is short for the first disk's image, and disks[{}] says {says}; write one of them", first.name));
}

fn disks(spec: &VmSpec, found: &mut Found) {
    found.at_most("disks", spec.disks.len(), DISKS_MAX);
    let (mut volumes, mut serials) = (BTreeMap::new(), BTreeMap::new());
    for (position, disk) in spec.disks.iter().take(DISKS_MAX).enumerate() {
        let short = if position == 0 { spec.image.as_ref() } else { None };
        found.under(format!("disks[{}]", disk.name), |f| self::disk(disk, short, f));
        if let Some(volume) = &disk.volume
            && let Some(other) = volumes.insert(volume, &disk.name)
        {
            found.add(format!("disks[{}].volume", disk.name), format!("disk '{other}' uses volume '{volume}' already"));
        }
        if disk.serial != "auto"
            && let Some(other) = serials.insert(&disk.serial, &disk.name)
        {
            found.add(format!("disks[{}].serial", disk.name), format!("disk '{other}' has the serial '{}' already", shown(&disk.serial)));
        }
    }
}

fn disk(disk: &Disk, short: Option<&Name>, found: &mut Found) {
    let said: Vec<&str> = [("image", disk.image.is_some()), ("volume", disk.volume.is_some()), ("empty", disk.empty)]
        .iter()
        .filter(|(_, is)| *is)
        .map(|(f, _)| *f)
        .collect();
    match said.as_slice() {
        [] if short.is_none() => found.add("", "what is on it? write one of image: NAME, volume: NAME, or empty: true"),
        [] | [_] => {}
        several => found.add("", format!("{} exclude each other; write one of them", several.join(" and "))),
    }
    match disk.size {
        Some(size) => found.unless("size", forms::disk_size(size)),
        None if disk.empty => found.add("size", "an empty disk needs a size, like 20G"),
        None => {}
    }
    if disk.format == DiskFormat::Raw && (disk.image.is_some() || short.is_some()) {
        found.add("format", "a disk cloned from an image is qcow2 (copy-on-write); leave the format out");
    }
    let serial =
        |s: &str| !s.is_empty() && s.len() <= SERIAL_BYTES_MAX && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !serial(&disk.serial) {
        let message = format!("'{}' is no serial; auto, or 1 to {SERIAL_BYTES_MAX} letters, digits, '-' and '_'", shown(&disk.serial));
        found.add("serial", message);
    }
}

/// Names are one space over all devices: the boot order and the commands use them bare.
fn names(spec: &VmSpec, found: &mut Found) {
    let disks = spec.disks.iter().take(DISKS_MAX).map(|d| ("disks", &d.name));
    let cdroms = spec.cdroms.iter().take(CDROMS_MAX).map(|c| ("cdroms", &c.name));
    let nics = spec.nics.iter().take(NICS_MAX).map(|n| ("nics", &n.name));
    let mut seen: BTreeMap<&Name, &str> = BTreeMap::new();
    for (list, name) in disks.chain(cdroms).chain(nics) {
        if let Some(other) = seen.insert(name, list) {
            let field = format!("{list}[{name}].name");
            let message =
                if other == list { format!("two {list} are called '{name}'") } else { format!("'{name}' is a name in {other} already") };
            found.add(field, format!("{message}; each device needs a name of its own"));
        }
    }
}

fn boot(spec: &VmSpec, found: &mut Found) {
    // The shorthand's disk is made later.
    let short = (spec.disks.is_empty() && spec.image.is_some()).then(Disk::root_name);
    let disks = spec.disks.iter().map(|d| &d.name);
    let known: BTreeSet<&Name> =
        disks.chain(spec.cdroms.iter().map(|c| &c.name)).chain(spec.nics.iter().map(|n| &n.name)).chain(&short).collect();
    let mut seen = BTreeSet::new();
    found.at_most("boot", spec.boot.len(), DISKS_MAX + CDROMS_MAX + NICS_MAX);
    for (position, name) in spec.boot.iter().take(DISKS_MAX + CDROMS_MAX + NICS_MAX).enumerate() {
        let field = format!("boot[{position}]");
        if !known.contains(name) {
            let words: Vec<&str> = known.iter().map(|n| n.as_str()).collect();
            found.add(field, format!("there is no disk, cdrom or NIC '{name}'{}", crate::nearest::hint(name.as_str(), &words)));
        } else if !seen.insert(name) {
            found.add(field, format!("'{name}' is listed twice"));
        }
    }
    if let Some(name) = spec.boot_once.as_ref().filter(|name| spec.boots_once().is_none() && short.as_ref() != Some(name)) {
        let words: Vec<&str> = known.iter().map(|n| n.as_str()).collect();
        found.add("boot_once", format!("there is no disk, cdrom or NIC '{name}'{}", crate::nearest::hint(name.as_str(), &words)));
    }
}

fn nics(spec: &VmSpec, found: &mut Found) {
    found.at_most("nics", spec.nics.len(), NICS_MAX);
    let (mut macs, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for nic in spec.nics.iter().take(NICS_MAX) {
        found.under(format!("nics[{}]", nic.name), |f| self::nic(nic, spec, f));
        if nic.mac != "auto"
            && let Some(other) = macs.insert(nic.mac.to_ascii_lowercase(), &nic.name)
        {
            found.add(format!("nics[{}].mac", nic.name), format!("NIC '{other}' has the same MAC"));
        }
        for (position, address) in nic.addresses.iter().take(ADDRESSES_MAX).enumerate() {
            let Ok((address, _)) = forms::cidr(address) else { continue };
            if let Some(other) = addresses.insert(address, &nic.name) {
                found.add(format!("nics[{}].addresses[{position}]", nic.name), format!("{address} is on NIC '{other}' already"));
            }
        }
    }
}

fn nic(nic: &Nic, spec: &VmSpec, found: &mut Found) {
    if nic.mac != "auto" {
        found.unless("mac", forms::mac(&nic.mac));
    }
    if let AutoU32::Is(queues) = nic.queues {
        if !(1..=QUEUES_MAX).contains(&queues) {
            found.add("queues", format!("{queues} is out of range; auto, or 1 to {QUEUES_MAX}"));
        } else if queues > 1 && nic.model(spec.os) != NicModel::Virtio {
            found.add("queues", "only model: virtio has more than one queue");
        }
    }
    if let AutoU32::Is(mtu) = nic.mtu {
        found.unless("mtu", forms::mtu(mtu));
    }
    let fixed = nic_addresses(nic, found);
    if let Some(gateway) = &nic.gateway {
        found.unless("gateway", self::gateway(gateway, &fixed));
    }
    found.at_most("dns", nic.dns.len(), DNS_MAX);
    for (position, dns) in nic.dns.iter().take(DNS_MAX).enumerate() {
        let form = forms::address(dns).and_then(forms::dns_address);
        found.unless(&format!("dns[{position}]"), form);
    }
}

/// Checks the forms and returns the fixed addresses.
fn nic_addresses(nic: &Nic, found: &mut Found) -> Vec<(IpAddr, u8)> {
    found.at_most("addresses", nic.addresses.len(), ADDRESSES_MAX);
    let (mut fixed, mut words) = (Vec::new(), BTreeSet::new());
    for (position, text) in nic.addresses.iter().take(ADDRESSES_MAX).enumerate() {
        let field = format!("addresses[{position}]");
        match text.as_str() {
            "dhcp" | "slaac" => {
                if !words.insert(text) {
                    found.add(field, format!("'{text}' is listed twice"));
                }
            }
            other if other.contains(['/', '.', ':']) => match forms::host_cidr(other) {
                Ok(address) => fixed.push(address),
                Err(message) => found.add(field, message),
            },
            other => found.add(field, format!("'{}' is neither dhcp, slaac nor an address like 10.0.0.5/24", shown(other))),
        }
    }
    fixed
}

fn gateway(text: &str, fixed: &[(IpAddr, u8)]) -> Result<(), String> {
    let gateway = forms::address(text)?;
    forms::host_address(gateway)?;
    let link_local = matches!(gateway, IpAddr::V6(a) if a.is_unicast_link_local());
    if fixed.iter().any(|(a, _)| *a == gateway) {
        return Err(format!("{gateway} is the NIC's own address"));
    }
    if link_local || fixed.iter().any(|(a, prefix)| forms::same_subnet(*a, *prefix, gateway)) {
        return Ok(());
    }
    if fixed.is_empty() {
        return Err("a gateway needs a fixed address beside it; dhcp and slaac bring their own".into());
    }
    Err(format!("{gateway} is in none of the subnets of this NIC's addresses"))
}

fn shares(spec: &VmSpec, found: &mut Found) {
    found.at_most("shares", spec.shares.len(), SHARES_MAX);
    let mut seen = BTreeSet::new();
    for share in spec.shares.iter().take(SHARES_MAX) {
        let field = format!("shares[{}]", share.name);
        found.unless(&format!("{field}.path"), forms::host_path(&share.path));
        if share.name.as_str().len() > SHARE_NAME_BYTES_MAX {
            found.add(format!("{field}.name"), format!("longer than {SHARE_NAME_BYTES_MAX} characters, a mount tag's limit"));
        }
        if !seen.insert(&share.name) {
            found.add(format!("{field}.name"), format!("two shares are called '{}'", share.name));
        }
    }
}

fn host_devices(field: &str, list: &[String], form: impl Fn(&str) -> Result<(), String>, found: &mut Found) {
    found.at_most(field, list.len(), HOST_DEVICES_MAX);
    let mut seen = BTreeSet::new();
    for (position, device) in list.iter().take(HOST_DEVICES_MAX).enumerate() {
        let field = format!("{field}[{position}]");
        found.unless(&field, form(device));
        if !seen.insert(device.to_ascii_lowercase()) {
            found.add(field, format!("'{}' is listed twice", shown(device)));
        }
    }
}

fn patch(patch: &XmlPatch, found: &mut Found) {
    let steps = match xml_path(&patch.path) {
        Ok(steps) => steps,
        Err(message) => {
            found.add("path", message);
            return;
        }
    };
    let attribute = steps.last().is_some_and(|s| s.starts_with('@'));
    if steps.is_empty() {
        patch_of_domain(patch, found);
    }
    if let Some(first) = steps.first().filter(|s| OURS.contains(&element(s))) {
        found.add("path", format!("<{}> belongs to vmkeep and is not patched", element(first)));
    }
    match (patch.op, patch.value.as_deref()) {
        (XmlOp::Remove, Some(_)) => found.add("value", "op: remove takes no value"),
        (XmlOp::Remove, None) => {}
        (XmlOp::Add | XmlOp::Replace, None) => found.add("value", "it is missing; the XML of an element, or an attribute's text"),
        (_, Some(value)) if value.len() > PATCH_BYTES_MAX => found.add("value", format!("larger than {} KiB", PATCH_BYTES_MAX >> 10)),
        (XmlOp::Add | XmlOp::Replace, Some(value)) if !attribute => {
            let trimmed = value.trim();
            if !(trimmed.starts_with('<') && trimmed.ends_with('>')) || trimmed.starts_with("<?") || trimmed.contains("<!") {
                found.add("value", "write one XML element, like <feature name='x'/>; no comments, no declarations");
            }
        }
        (XmlOp::Add | XmlOp::Replace, Some(value)) if value.chars().any(char::is_control) => {
            found.add("value", "control characters are not allowed")
        }
        (XmlOp::Add | XmlOp::Replace, Some(_)) => {}
    }
}

/// `.` is the domain itself: elements are added to it, and that is all.
fn patch_of_domain(patch: &XmlPatch, found: &mut Found) {
    if patch.op != XmlOp::Add {
        found.add("path", "the domain itself is neither replaced nor removed");
    }
    let value = patch.value.as_deref().unwrap_or_default().trim().trim_start_matches('<');
    let tag = value.split(|c: char| c.is_whitespace() || c == '/' || c == '>').next().unwrap_or_default();
    if OURS.contains(&tag) {
        found.add("value", format!("<{tag}> belongs to vmkeep and is not patched"));
    }
}

fn element(step: &str) -> &str {
    step.split('[').next().unwrap_or(step)
}

/// Longest element path.
const XML_STEPS_MAX: usize = 16;

/// `devices/disk[@alias=ua-disk-root]/driver/@cache`: steps below `<domain>`, each with at most one condition
/// (`[@attribute=value]` or `[number]`, from 1); an attribute may be the last step. `.` is the domain itself, without steps.
fn xml_path(path: &str) -> Result<Vec<&str>, String> {
    const FORM: &str = "write it like devices/disk[@alias=ua-disk-root]/driver/@cache";
    if path == "." {
        return Ok(Vec::new());
    }
    if path.is_empty() || path.starts_with('/') || path.ends_with('/') {
        return Err(format!("the path goes down from <domain> without a '/' at its ends; {FORM}"));
    }
    let steps = split_steps(path);
    if steps.len() > XML_STEPS_MAX {
        return Err(format!("{} steps; the limit is {XML_STEPS_MAX}", steps.len()));
    }
    for (position, step) in steps.iter().enumerate() {
        let last = position + 1 == steps.len();
        let good = match step.strip_prefix('@') {
            Some(attribute) => last && xml_name(attribute),
            None => xml_step(step),
        };
        if !good {
            return Err(format!("'{}' is no step of a path; {FORM}", shown(step)));
        }
    }
    Ok(steps)
}

/// At each `/` outside of brackets.
fn split_steps(path: &str) -> Vec<&str> {
    let mut inside = false;
    path.split(|c| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        c == '/' && !inside
    })
    .collect()
}

fn xml_step(step: &str) -> bool {
    let Some((name, condition)) = step.split_once('[') else { return xml_name(step) };
    let Some(condition) = condition.strip_suffix(']') else { return false };
    let good = match condition.strip_prefix('@') {
        Some(test) => test
            .split_once('=')
            .is_some_and(|(a, v)| xml_name(a) && !v.is_empty() && !v.chars().any(|c| c.is_control() || "[]<>".contains(c))),
        None => condition.parse::<u16>().is_ok_and(|n| n > 0),
    };
    xml_name(name) && good
}

fn xml_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b))
}
