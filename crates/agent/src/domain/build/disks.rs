//! Disks, cdroms and the cloud-init seed.

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::vm::{CacheMode, Disk, DiskBus, VmSpec};

use crate::domain::tree::{Element, el};
use crate::domain::{BuildInput, DiskSource};

/// `vda` … `vdz`, `vdaa` …
pub fn target(prefix: &str, index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).expect("below 26"));
    let mut letters = String::from(letter(index));
    let mut rest = index / 26;
    while rest > 0 {
        letters.insert(0, letter(rest - 1));
        rest = (rest - 1) / 26;
    }
    format!("{prefix}{letters}")
}

/// Where a device stands in the boot order, from 1; None = not at all.
pub fn boot_order(spec: &VmSpec, name: &Name) -> Option<usize> {
    if !spec.boot.is_empty() {
        return spec.boot.iter().position(|n| n == name).map(|n| n + 1);
    }
    let disks = spec.disks.iter().map(|d| &d.name);
    let cdroms = spec.cdroms.iter().filter(|c| c.image.is_some()).map(|c| &c.name);
    disks.chain(cdroms).position(|n| n == name).map(|n| n + 1)
}

pub fn disks(input: &BuildInput<'_>, warnings: &mut Vec<String>) -> Result<Vec<Element>, Error> {
    let spec = &input.order.spec;
    let (mut elements, mut used) = (Vec::new(), Targets::default());
    for wish in &spec.disks {
        let source = input.disks.get(&wish.name).ok_or_else(|| Error::internal(format!("disk {} has no volume", wish.name)))?;
        elements.push(disk(input, wish, source, &mut used, warnings));
    }
    if spec.disks.iter().any(|d| d.bus(spec.os) == DiskBus::Scsi) {
        let driver = el("driver").attr("iothread", 1);
        elements.push(el("controller").attr("type", "scsi").attr("index", 0).attr("model", "virtio-scsi").child(driver).child(alias("ua-scsi")));
    }
    for cdrom in &spec.cdroms {
        let mut tray = el("disk").attr("type", "file").attr("device", "cdrom").child(el("driver").attr("name", "qemu").attr("type", "raw"));
        if let Some(Some(path)) = input.cdroms.get(&cdrom.name) {
            tray = tray.child(el("source").attr("file", path.display()));
        }
        tray = tray.child(el("target").attr("dev", used.next("sd")).attr("bus", "sata")).child(el("readonly"));
        elements.push(with_boot(tray, boot_order(spec, &cdrom.name)).child(alias(&format!("ua-cdrom-{}", cdrom.name))));
    }
    if let Some(seed) = input.seed {
        let driver = el("driver").attr("name", "qemu").attr("type", "raw").attr("cache", "writeback");
        let source = el("source").attr("file", seed.display());
        let target = el("target").attr("dev", "vdzz").attr("bus", "virtio");
        let seed = el("disk").attr("type", "file").attr("device", "disk").child(driver).child(source).child(target);
        elements.push(seed.child(el("readonly")).child(el("serial").text("vmkeep-seed")).child(alias("ua-seed")));
    }
    Ok(elements)
}

/// Target names in use, by prefix.
#[derive(Default)]
struct Targets(std::collections::BTreeMap<&'static str, usize>);

impl Targets {
    fn next(&mut self, prefix: &'static str) -> String {
        let count = self.0.entry(prefix).or_default();
        *count += 1;
        target(prefix, *count - 1)
    }
}

fn disk(input: &BuildInput<'_>, wish: &Disk, source: &DiskSource, used: &mut Targets, warnings: &mut Vec<String>) -> Element {
    let bus = wish.bus(input.order.spec.os);
    let (prefix, bus_name) = match bus {
        DiskBus::Virtio => ("vd", "virtio"),
        DiskBus::Scsi => ("sd", "scsi"),
        DiskBus::Sata => ("sd", "sata"),
        DiskBus::Nvme => ("nvme", "nvme"),
    };
    let mut element = el("disk")
        .attr("type", "file")
        .attr("device", "disk")
        .child(driver(input, wish, source, warnings))
        .child(el("source").attr("file", source.path.display()))
        .child(el("target").attr("dev", used.next(prefix)).attr("bus", bus_name));
    if wish.limits.iops > 0 || wish.limits.bandwidth.bytes() > 0 {
        let limit = |name: &str, value: u64| (value > 0).then(|| el(name).text(value));
        let tune = el("iotune").children(limit("total_bytes_sec", wish.limits.bandwidth.bytes())).children(limit("total_iops_sec", wish.limits.iops));
        element = element.child(tune);
    }
    if wish.read_only {
        element = element.child(el("readonly"));
    }
    let chosen = input.order.choices.serials.get(&wish.name).cloned();
    let serial = if wish.serial == "auto" { chosen } else { Some(wish.serial.clone()) };
    element = element.children(serial.map(|s| el("serial").text(s)));
    with_boot(element, boot_order(&input.order.spec, &wish.name)).child(alias(&format!("ua-disk-{}", wish.name)))
}

fn driver(input: &BuildInput<'_>, wish: &Disk, source: &DiskSource, warnings: &mut Vec<String>) -> Element {
    let cache = match wish.cache {
        CacheMode::None if source.o_direct => "none",
        CacheMode::None => {
            warnings.push(format!("disk {}: its file system has no O_DIRECT, so cache is writeback instead of none", wish.name));
            "writeback"
        }
        CacheMode::Writeback => "writeback",
        CacheMode::Writethrough => "writethrough",
        CacheMode::Unsafe => "unsafe",
    };
    let io = match (input.host.io_uring, cache) {
        (true, _) => "io_uring",
        (false, "none") => "native",
        (false, _) => "threads",
    };
    let mut driver = el("driver").attr("name", "qemu").attr("type", &source.format).attr("cache", cache).attr("io", io);
    if wish.discard {
        driver = driver.attr("discard", "unmap").attr("detect_zeroes", "unmap");
    }
    if wish.bus(input.order.spec.os) == DiskBus::Virtio { driver.attr("iothread", 1) } else { driver }
}

fn with_boot(element: Element, order: Option<usize>) -> Element {
    element.children(order.map(|n| el("boot").attr("order", n)))
}

pub fn alias(name: &str) -> Element {
    el("alias").attr("name", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_count_like_libvirt() {
        assert_eq!([0, 25, 26, 27, 51, 52].map(|n| target("vd", n)), ["vda", "vdz", "vdaa", "vdab", "vdaz", "vdba"]);
    }
}
