//! Disks, cdroms and the cloud-init seed.

use std::path::Path;

use vmkeep_types::error::Error;
use vmkeep_types::nearest;
use vmkeep_types::vm::{CacheMode, Cdrom, Disk, DiskBus};

use super::place::Targets;
use super::{alias, boot_order};
use crate::domain::tree::{self, Element, el};
use crate::domain::{BuildInput, DiskSource};

/// The seed keeps out of the way of disks that come later.
const SEED_TARGET: &str = "vdzz";
/// Disks of one virtio-scsi controller, as libvirt counts targets `sda` to `sdg`.
const SCSI_UNITS: usize = 7;
/// Enough for all disks of a VM, each on a controller of its own.
const SCSI_CONTROLLERS_MAX: usize = 32;

pub fn disks(input: &BuildInput<'_>, warnings: &mut Vec<String>) -> Result<Vec<Element>, Error> {
    let spec = &input.order.spec;
    let (mut elements, mut targets) = (Vec::new(), Targets::new(input));
    for wish in &spec.disks {
        let source =
            input.disks.get(&wish.name).ok_or_else(|| Error::internal(format!("disks[{}]: there is no volume for it", wish.name)))?;
        refuse_bus(input, wish)?;
        elements.push(disk(input, wish, source, &mut targets, warnings));
    }
    elements.extend(spec.cdroms.iter().map(|cdrom| tray(input, cdrom, &mut targets)));
    elements.extend(scsi_controllers(input, &elements));
    elements.extend(input.seed.map(seed));
    Ok(elements)
}

fn bus_word(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Scsi => "scsi",
        DiskBus::Sata => "sata",
        DiskBus::Nvme => "nvme",
    }
}

fn refuse_bus(input: &BuildInput<'_>, wish: &Disk) -> Result<(), Error> {
    let (bus, known) = (bus_word(wish.bus(input.order.spec.os)), &input.host.disk_buses);
    if known.is_empty() || known.contains(bus) {
        return Ok(());
    }
    let words: Vec<&str> = ["virtio", "scsi", "sata", "nvme"].into_iter().filter(|b| known.contains(*b)).collect();
    Err(Error::refused(format!("disks[{}].bus: libvirt on this host has no disks on bus {bus}", wish.name))
        .hint(format!("it has {}; nvme needs libvirt 11.5", nearest::list(&words))))
}

fn disk(input: &BuildInput<'_>, wish: &Disk, source: &DiskSource, targets: &mut Targets, warnings: &mut Vec<String>) -> Element {
    let spec = &input.order.spec;
    let (bus, name) = (wish.bus(spec.os), format!("ua-disk-{}", wish.name));
    let target = el("target").attr("dev", targets.next(&name, bus)).attr("bus", bus_word(bus));
    let element = file("disk", driver(input, wish, source, warnings), Some(&source.path), target);
    let chosen = input.order.choices.serials.get(&wish.name).cloned();
    let serial = if wish.serial == "auto" { chosen } else { Some(wish.serial.clone()) };
    element
        .children(limits(wish))
        .children(wish.read_only.then(|| el("readonly")))
        .children(serial.map(|s| el("serial").text(s)))
        .children(boot_order(spec, &wish.name))
        .child(alias(&name))
}

/// A disk over a file, or over a block device of the host.
fn file(device: &str, driver: Element, source: Option<&Path>, target: Element) -> Element {
    let is_device = source.is_some_and(|path| path.starts_with("/dev"));
    let (kind, key) = if is_device { ("block", "dev") } else { ("file", "file") };
    let source = source.map(|path| el("source").attr(key, path.display()));
    el("disk").attr("type", kind).attr("device", device).child(driver).children(source).child(target)
}

fn limits(wish: &Disk) -> Option<Element> {
    let limit = |name: &str, value: u64| (value > 0).then(|| el(name).text(value));
    let tune =
        el("iotune").children(limit("total_bytes_sec", wish.limits.bandwidth.bytes())).children(limit("total_iops_sec", wish.limits.iops));
    (!tune.children.is_empty()).then_some(tune)
}

fn driver(input: &BuildInput<'_>, wish: &Disk, source: &DiskSource, warnings: &mut Vec<String>) -> Element {
    let cache = match wish.cache {
        CacheMode::None if source.o_direct => "none",
        CacheMode::None => {
            warnings.push(format!("disks[{}].cache: its file system has no O_DIRECT, so it is writeback instead of none", wish.name));
            "writeback"
        }
        CacheMode::Writeback => "writeback",
        CacheMode::Writethrough => "writethrough",
        CacheMode::Unsafe => "unsafe",
    };
    // QEMU takes native AIO only without the page cache.
    let io = match (input.host.io_uring, cache) {
        (true, _) => "io_uring",
        (false, "none") => "native",
        (false, _) => "threads",
    };
    let (discard, zeroes) = if wish.discard { ("unmap", "unmap") } else { ("ignore", "off") };
    // The data's own, whatever the wish said when the disk was new.
    let driver = el("driver").attr("name", "qemu").attr("type", source.format.as_str()).attr("cache", cache).attr("io", io);
    let driver = driver.attr("discard", discard).attr("detect_zeroes", zeroes);
    match wish.bus(input.order.spec.os) {
        DiskBus::Virtio => driver.attr("iothread", 1),
        DiskBus::Scsi | DiskBus::Sata | DiskBus::Nvme => driver,
    }
}

fn tray(input: &BuildInput<'_>, cdrom: &Cdrom, targets: &mut Targets) -> Element {
    let name = format!("ua-cdrom-{}", cdrom.name);
    let medium = input.cdroms.get(&cdrom.name).and_then(Option::as_deref);
    let target = el("target").attr("dev", targets.next(&name, DiskBus::Sata)).attr("bus", "sata");
    file("cdrom", el("driver").attr("name", "qemu").attr("type", "raw"), medium, target)
        .child(el("readonly"))
        .children(boot_order(&input.order.spec, &cdrom.name))
        .child(alias(&name))
}

fn seed(path: &Path) -> Element {
    let driver = el("driver").attr("name", "qemu").attr("type", "raw").attr("cache", "writeback");
    let target = el("target").attr("dev", SEED_TARGET).attr("bus", "virtio");
    file("disk", driver, Some(path), target).child(el("readonly")).child(el("serial").text("vmkeep-seed")).child(alias("ua-seed"))
}

/// As many as the targets (or, of an adopted domain, the addresses) need; the I/O thread belongs to the controller.
fn scsi_controllers(input: &BuildInput<'_>, disks: &[Element]) -> Vec<Element> {
    let kept = |disk: &Element| -> Option<usize> {
        let address = tree::parse(&input.order.choices.addresses.get(disk.alias()?)?).ok()?;
        address.get("controller").and_then(|n| n.parse().ok())
    };
    let by_target = |disk: &Element| Some(super::place::target_index(disk.attr_at("target", "dev")?)? / SCSI_UNITS);
    let on_scsi = disks.iter().filter(|d| d.attr_at("target", "bus") == Some("scsi"));
    let last = on_scsi.filter_map(|d| kept(d).or_else(|| by_target(d))).max();
    let controller = |n: usize| {
        let scsi = el("controller").attr("type", "scsi").attr("index", n).attr("model", "virtio-scsi");
        scsi.child(el("driver").attr("iothread", 1)).child(alias(&format!("ua-scsi-{n}")))
    };
    last.map_or_else(Vec::new, |last| (0..=last.min(SCSI_CONTROLLERS_MAX)).map(controller).collect())
}
