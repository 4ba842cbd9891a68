//! Disks and cdroms of a domain.

use vmkeep_api::body::FoundDisk;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{CacheMode, Cdrom, Disk, DiskBus, DiskFormat};

use super::{Taken, given_name};
use crate::domain::build::{target_index, target_key};
use crate::domain::tree::Element;

/// What the wish says of a disk, or what only libvirt itself puts there.
const HANDLED: [&str; 13] = [
    "driver",
    "source",
    "target",
    "iotune",
    "readonly",
    "serial",
    "boot",
    "alias",
    "address",
    "backingStore",
    "mirror",
    "auth",
    "privateData",
];
/// A disk's children that stand for more than a local file or device.
const REMOTE: [&str; 3] = ["auth", "encryption", "reservations"];

pub fn take(domain: &Element, taken: &mut Taken) {
    let virtio_scsi = |d: &Element| d.name == "controller" && d.get("type") == Some("scsi") && d.get("model") == Some("virtio-scsi");
    let scsi_is_virtio = domain.devices().filter(|d| d.name == "controller" && d.get("type") == Some("scsi")).all(virtio_scsi);
    for disk in domain.devices().filter(|d| d.name == "disk") {
        if disk.alias() == Some(super::SEED) {
            continue;
        }
        let is = |bus: &str| disk.attr_at("target", "bus") == Some(bus);
        let done = match disk.get("device").unwrap_or("disk") {
            "disk" if is("scsi") && !scsi_is_virtio => false,
            "disk" => self::disk(disk, taken).is_some(),
            "cdrom" if is("sata") => cdrom(disk, taken).is_some(),
            _ => false,
        };
        if !done {
            let what = format!("{} {}", disk.get("device").unwrap_or("disk"), disk.attr_at("target", "dev").unwrap_or("?"));
            taken.warn(format!("{what} is kept as it is by libvirt_xml: the manifest has no such disk"));
            taken.keep(disk);
        }
    }
    for controller in domain.devices().filter(|d| d.name == "controller" && d.get("type") == Some("scsi")) {
        match (scsi_is_virtio, controller.get("index")) {
            (true, Some(index)) => taken.stays(controller, &format!("ua-scsi-{index}")),
            _ => taken.keep(controller),
        }
    }
    for controller in domain.devices().filter(|d| d.name == "controller" && matches!(d.get("type"), Some("sata" | "ide" | "fdc"))) {
        // The first one belongs to the chipset, or libvirt makes it.
        if controller.get("index").is_some_and(|i| i != "0") {
            taken.keep(controller);
        }
    }
}

/// None: the manifest cannot say it.
fn disk(disk: &Element, taken: &mut Taken) -> Option<()> {
    let path = disk.attr_at("source", "file").or_else(|| disk.attr_at("source", "dev"))?;
    let target = disk.attr_at("target", "dev")?;
    let bus = bus(disk)?;
    let name: Name = given_name(disk, "ua-disk-").or_else(|| target.parse().ok())?;
    let format = match disk.attr_at("driver", "type") {
        Some("qcow2") => DiskFormat::Qcow2,
        Some("raw") | None => DiskFormat::Raw,
        Some(_) => return None,
    };
    if REMOTE.iter().any(|r| disk.find(r).is_some()) || target_index(target).is_none() {
        return None;
    }
    let alias = format!("ua-disk-{name}");
    let mut wish = Disk::named(name.clone());
    wish.volume = format!("{}-{name}", taken.spec.name).parse().ok();
    (wish.bus, wish.format) = (Some(bus), format);
    wish.read_only = disk.find("readonly").is_some();
    wish.discard = disk.attr_at("driver", "discard") == Some("unmap");
    let number = |path: &str| disk.text_at(path).and_then(|n| n.parse().ok()).unwrap_or(0u64);
    wish.limits.bandwidth = ByteCount::from_bytes(number("iotune/total_bytes_sec"));
    wish.limits.iops = number("iotune/total_iops_sec");
    let cache = cache(disk);
    wish.cache = cache.unwrap_or_default();
    taken.choices.serials.extend(disk.text_at("serial").map(|s| (name.clone(), s.to_owned())));
    taken.choices.addresses.insert(target_key(&alias), target);
    taken.stays(disk, &alias);
    let at = format!("devices/disk[@alias={alias}]");
    if cache.is_none() {
        taken.set(&format!("{at}/driver/@cache"), disk.attr_at("driver", "cache").unwrap_or("writeback"));
    }
    let tune_is_more = |t: &&Element| t.children.iter().any(|c| !matches!(c.name.as_str(), "total_bytes_sec" | "total_iops_sec"));
    if let Some(tune) = disk.find("iotune").filter(tune_is_more) {
        wish.limits = vmkeep_types::vm::DiskLimits::default();
        taken.add(&at, tune);
    }
    for extra in disk.children.iter().filter(|c| !HANDLED.contains(&c.name.as_str())) {
        taken.add(&at, extra);
    }
    taken.disks.insert(name, FoundDisk { path: path.to_owned(), format });
    taken.spec.disks.push(wish);
    Some(())
}

fn bus(disk: &Element) -> Option<DiskBus> {
    match disk.attr_at("target", "bus")? {
        "virtio" => Some(DiskBus::Virtio),
        "scsi" => Some(DiskBus::Scsi),
        "sata" => Some(DiskBus::Sata),
        "nvme" => Some(DiskBus::Nvme),
        _ => None,
    }
}

/// None: a mode that the manifest does not know. libvirt leaves the default to QEMU, which is writeback.
fn cache(disk: &Element) -> Option<CacheMode> {
    match disk.attr_at("driver", "cache") {
        Some("none") => Some(CacheMode::None),
        None | Some("writeback" | "default") => Some(CacheMode::Writeback),
        Some("writethrough") => Some(CacheMode::Writethrough),
        Some("unsafe") => Some(CacheMode::Unsafe),
        Some(_) => None,
    }
}

fn cdrom(disk: &Element, taken: &mut Taken) -> Option<()> {
    let target = disk.attr_at("target", "dev")?;
    let name: Name = given_name(disk, "ua-cdrom-").or_else(|| target.parse().ok())?;
    let alias = format!("ua-cdrom-{name}");
    if let Some(source) = disk.find("source") {
        let mut medium = source.clone();
        medium.attributes.retain(|(key, _)| key != "index");
        let at = format!("devices/disk[@alias={alias}]");
        if let Some(kind) = disk.get("type").filter(|k| *k != "file") {
            taken.set(&format!("{at}/@type"), kind);
        }
        taken.add(&at, &medium);
        taken.warn(format!("the medium in {target} stays by libvirt_xml; import it as an image to change it"));
    }
    taken.choices.addresses.insert(target_key(&alias), target);
    taken.stays(disk, &alias);
    taken.spec.cdroms.push(Cdrom { name, image: None });
    Some(())
}
