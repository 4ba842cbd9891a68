//! An existing domain as a wish that describes it.

use std::collections::BTreeMap;

use vmkeep_api::body::AdoptionProposal;
use vmkeep_types::error::Error;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::record::VmChoices;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Disk, DiskBus, Firmware, MachineFamily, Nic, NicModel, OsFamily, RunPolicy, VmSpec};

use super::compare::choices_from;
use super::tree::{self, Element};

/// What a domain is in vmkeep's words; disks are named by their target (`vda`), NICs by their order.
///
/// # Errors
/// The XML does not parse or lacks what every domain has.
pub fn adopt(xml: &str) -> Result<AdoptionProposal, Error> {
    let domain = tree::parse(xml)?;
    let uuid: VmId = domain.text_at("uuid").and_then(|u| u.parse().ok()).ok_or_else(|| super::odd("no uuid"))?;
    let name = domain.text_at("name").filter(|n| !n.is_empty()).ok_or_else(|| super::odd("no name"))?.to_owned();
    let mut warnings = Vec::new();
    let mut spec = VmSpec::named(own_name(&name, uuid));
    spec.run = RunPolicy::OnFailure;
    spec.cloud_init = None;
    spec.agent = false;
    spec.rng = domain.at("devices/rng").is_some();
    spec.tpm = Some(domain.at("devices/tpm").is_some());
    spec.os = if domain.at("features/hyperv").is_some() { OsFamily::Windows } else { OsFamily::Linux };
    spec.display = domain.at("devices/graphics").map(|_| vmkeep_types::vm::Display::default());
    spec.firmware = if domain.at("os/loader").is_some() || domain.attr_at("os", "firmware") == Some("efi") { Firmware::Uefi } else { Firmware::Bios };
    spec.secure_boot = Some(domain.attr_at("os/loader", "secure") == Some("yes"));
    spec.machine = if domain.attr_at("os/type", "machine").is_some_and(|m| m.contains("q35")) { MachineFamily::Q35 } else { MachineFamily::Pc };
    size(&domain, &mut spec);
    let mut choices = VmChoices { cpu_xml: domain.find("cpu").map(Element::write), ..choices_from(xml, &VmChoices::default())? };
    let disks = disks(&domain, &mut spec, &mut choices, &mut warnings);
    nics(&domain, &mut spec, &mut choices, &mut warnings);
    note_what_is_left(&domain, &mut warnings);
    Ok(AdoptionProposal { uuid, name, spec, choices, disks, running: false, warnings })
}

/// libvirt allows more in names than we do.
fn own_name(name: &str, uuid: VmId) -> Name {
    let plain: String = name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    plain.trim_matches('-').parse().unwrap_or_else(|_| format!("vm-{}", &uuid.to_string()[..8]).parse().expect("hex digits make a name"))
}

fn size(domain: &Element, spec: &mut VmSpec) {
    let facts = super::facts::facts(domain);
    let bytes = |field: &str| facts.get(field).and_then(|v| v.parse::<ByteCount>().ok());
    if let Some(max) = bytes("memory.max") {
        spec.memory.size = bytes("memory.size").unwrap_or(max);
        spec.memory.max = (max > spec.memory.size).then_some(max);
    }
    let count = |field: &str| facts.get(field).and_then(|v| v.parse::<u32>().ok());
    spec.cpus.count = count("cpus.count").unwrap_or(1);
    spec.cpus.max = count("cpus.max").filter(|max| *max > spec.cpus.count);
    if let Some(topology) = domain.at("cpu/topology") {
        let part = |name: &str| topology.get(name).and_then(|v| v.parse().ok());
        (spec.cpus.sockets, spec.cpus.cores, spec.cpus.threads) = (part("sockets"), part("cores"), part("threads"));
    }
}

fn disks(domain: &Element, spec: &mut VmSpec, choices: &mut VmChoices, warnings: &mut Vec<String>) -> BTreeMap<Name, String> {
    let mut paths = BTreeMap::new();
    for disk in domain.find("devices").into_iter().flat_map(|d| d.all("disk")) {
        let target = disk.attr_at("target", "dev").unwrap_or("?");
        let file = disk.attr_at("source", "file").or_else(|| disk.attr_at("source", "dev"));
        let (true, Some(path), Ok(name)) = (disk.get("device").is_none_or(|d| d == "disk"), file, target.parse::<Name>()) else {
            warnings.push(format!("{} {target} stays as it is until the VM is changed through vmkeep", disk.get("device").unwrap_or("disk")));
            continue;
        };
        let mut wish = Disk::named(name.clone());
        wish.volume = format!("{}-{name}", spec.name).parse().ok();
        wish.bus = Some(match disk.attr_at("target", "bus") {
            Some("scsi") => DiskBus::Scsi,
            Some("virtio") => DiskBus::Virtio,
            Some("nvme") => DiskBus::Nvme,
            _ => DiskBus::Sata,
        });
        wish.read_only = disk.find("readonly").is_some();
        keep_address(disk, &format!("ua-disk-{name}"), choices);
        choices.serials.extend(disk.text_at("serial").map(|s| (name.clone(), s.to_owned())));
        paths.insert(name, path.to_owned());
        spec.disks.push(wish);
    }
    paths
}

fn keep_address(device: &Element, alias: &str, choices: &mut VmChoices) {
    if let Some(address) = device.find("address").filter(|a| matches!(a.get("type"), Some("pci" | "drive"))) {
        choices.addresses.insert(alias.to_owned(), address.write().trim().to_owned());
    }
}

fn nics(domain: &Element, spec: &mut VmSpec, choices: &mut VmChoices, warnings: &mut Vec<String>) {
    spec.nics.clear();
    for (n, nic) in domain.find("devices").into_iter().flat_map(|d| d.all("interface")).enumerate() {
        let name: Name = format!("nic{n}").parse().expect("a number makes a name");
        let mut wish = Nic::named(name.clone());
        if let Some(mac) = nic.attr_at("mac", "address") {
            mac.clone_into(&mut wish.mac);
        }
        wish.model = match nic.attr_at("model", "type") {
            Some("virtio") => Some(NicModel::Virtio),
            Some("rtl8139") => Some(NicModel::Rtl8139),
            _ => Some(NicModel::E1000e),
        };
        let source = nic.attr_at("source", "network").or_else(|| nic.attr_at("source", "bridge")).unwrap_or("?");
        warnings.push(format!("NIC {name} stays on '{source}' until the VM is changed through vmkeep; then it moves to network 'default'"));
        keep_address(nic, &format!("ua-nic-{name}"), choices);
        spec.nics.push(wish);
    }
}

fn note_what_is_left(domain: &Element, warnings: &mut Vec<String>) {
    for device in ["hostdev", "filesystem", "sound", "redirdev", "smartcard", "shmem"] {
        if domain.at(&format!("devices/{device}")).is_some() {
            warnings.push(format!("a {device} device is there that the manifest does not describe; it goes when the VM is changed through vmkeep"));
        }
    }
}
