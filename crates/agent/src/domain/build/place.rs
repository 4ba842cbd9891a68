//! Where devices sit: target names, PCI ports, and the addresses that were chosen before.
//!
//! What a device got once is kept under its alias in [`VmChoices::addresses`] (address element) and `ALIAS/target` (target
//! name), also after the device is gone: a device that comes later never takes the place of one that may come back, and the
//! stored and the running description of a hot-plugged device agree. New PCI Express devices get the first free root port;
//! NICs first, so that one NIC is `enp1s0`; the seed the last one, so that disks added later are named before it.
//!
//! [`VmChoices::addresses`]: vmkeep_types::record::VmChoices

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_types::vm::{DiskBus, MachineFamily};

use super::{alias, same_machine};
use crate::domain::BuildInput;
use crate::domain::tree::{self, Element, el};

/// Free ports of a new VM, for devices that are plugged in while it runs.
const SPARE_PORTS: u32 = 8;
/// Fewer free ports than this are filled up again at the next cold start.
const SPARE_PORTS_MIN: u32 = 1;
/// Above this the places of devices that are gone are given away.
const RESERVED_BUS_MAX: u32 = 64;
/// Target names of devices that are gone are kept up to this count.
const RESERVED_TARGETS_MAX: usize = 100;
/// The first slot of a `pc` machine after its chipset and the display.
const PC_SLOT_FIRST: u32 = 3;
const PC_SLOT_LAST: u32 = 31;

/// Alias of a root port, before its bus number.
pub const PORT: &str = "ua-port-";
pub const BRIDGE: &str = "ua-bridge-";
/// A bus of an adopted domain that `libvirt_xml` keeps as it is.
pub const KEPT_BUS: &str = "ua-bus-";
/// The NVRAM element of an adopted domain, which is not named by our rule.
pub const NVRAM: &str = "os/nvram";

/// The key of a disk's target name.
pub fn target_key(alias: &str) -> String {
    format!("{alias}/target")
}

/// Hands out target names.
pub struct Targets {
    kept: BTreeMap<String, String>,
    taken: BTreeSet<String>,
    reserved: BTreeSet<String>,
}

impl Targets {
    pub fn new(input: &BuildInput<'_>) -> Self {
        let kept = input.order.choices.addresses.texts();
        let reserved = kept.iter().filter(|(key, _)| key.ends_with("/target")).map(|(_, target)| target.clone()).collect();
        Self { kept, taken: BTreeSet::new(), reserved }
    }

    pub fn next(&mut self, alias: &str, bus: DiskBus) -> String {
        let kept = self.kept.get(&target_key(alias)).filter(|t| fits(t, bus) && !self.taken.contains(*t)).cloned();
        let free = |n: &usize| {
            let name = target(bus, *n);
            !self.taken.contains(&name) && (*n >= RESERVED_TARGETS_MAX || !self.reserved.contains(&name))
        };
        let name = kept.unwrap_or_else(|| target(bus, (0..).find(free).expect("more names than disks")));
        self.taken.insert(name.clone());
        name
    }
}

fn fits(target: &str, bus: DiskBus) -> bool {
    target_index(target).is_some_and(|n| self::target(bus, n) == target)
}

/// `vda` … `vdz`, `vdaa` …; NVMe disks are numbered.
fn target(bus: DiskBus, index: usize) -> String {
    let prefix = match bus {
        DiskBus::Virtio => "vd",
        DiskBus::Scsi | DiskBus::Sata => "sd",
        DiskBus::Nvme => return format!("nvme{index}n1"),
    };
    let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).expect("below 26"));
    let (mut letters, mut rest) = (String::from(letter(index)), index / 26);
    while rest > 0 {
        letters.insert(0, letter(rest - 1));
        rest = (rest - 1) / 26;
    }
    format!("{prefix}{letters}")
}

/// The number of a target name, from 0; None for names that are not ours to count.
pub fn target_index(target: &str) -> Option<usize> {
    if let Some(number) = target.strip_prefix("nvme") {
        return number.strip_suffix("n1")?.parse().ok();
    }
    let letters = target.strip_prefix("vd").or_else(|| target.strip_prefix("sd"))?;
    if letters.is_empty() || letters.len() > 3 || !letters.bytes().all(|b| b.is_ascii_lowercase()) {
        return None;
    }
    Some(letters.bytes().fold(0, |n, b| n * 26 + usize::from(b - b'a') + 1) - 1)
}

/// A slot on a bus.
type Slot = (u32, u32);

/// Gives every device its kept address, and new ones a place of their own.
pub fn place(devices: &mut Element, input: &BuildInput<'_>) {
    let kept = if same_machine(input) { input.order.choices.addresses.texts() } else { BTreeMap::new() };
    match input.order.spec.machine {
        MachineFamily::Q35 => on_q35(devices, &kept),
        MachineFamily::Pc => on_pc(devices, &kept),
    }
}

fn on_q35(devices: &mut Element, kept: &BTreeMap<String, String>) {
    let mut buses = Buses::new(devices, kept);
    restore(devices, kept, |device, address| match kind(device) {
        Kind::Express => bus_of(address).is_some_and(|bus| !buses.bridges.contains(&bus)),
        Kind::Conventional => bus_of(address).is_some_and(|bus| bus == 0 || buses.bridges.contains(&bus) || buses.foreign.contains(&bus)),
        Kind::Other => true,
    });
    buses.taken.extend(devices.children.iter().filter_map(|d| bus_of(d.find("address")?)));
    let is_seed = |d: &Element| d.alias() == Some("ua-seed");
    for device in devices.children.iter_mut().filter(|d| kind(d) == Kind::Express && !is_seed(d) && d.find("address").is_none()) {
        let bus = buses.take_first();
        device.children.push(pci_address(bus, 0));
    }
    let bridge = devices.children.iter().any(|d| kind(d) == Kind::Conventional).then(|| buses.bridge());
    buses.fill_up();
    for device in devices.children.iter_mut().filter(|d| is_seed(d) && d.find("address").is_none()) {
        device.children.push(pci_address(buses.take_last(), 0));
    }
    let mut controllers = vec![el("controller").attr("type", "pci").attr("index", 0).attr("model", "pcie-root")];
    controllers.extend(buses.ports.iter().map(|n| controller(*n, "pcie-root-port", PORT)));
    controllers.extend(bridge.map(|(n, port)| controller(n, "pcie-to-pci-bridge", BRIDGE).children(port.map(|p| pci_address(p, 0)))));
    controllers.iter_mut().for_each(|c| restore_one(c, kept, |_, _| true));
    devices.children.splice(1..1, controllers);
}

fn controller(index: u32, model: &str, prefix: &str) -> Element {
    let pci = el("controller").attr("type", "pci").attr("index", index).attr("model", model);
    pci.child(alias(&format!("{prefix}{index}")))
}

/// The buses behind `pcie.0`: one per root port, with one slot each, and one per bridge to conventional PCI.
struct Buses {
    ports: BTreeSet<u32>,
    bridges: BTreeSet<u32>,
    /// Not ours.
    foreign: BTreeSet<u32>,
    /// By devices that are there.
    taken: BTreeSet<u32>,
    /// By devices that were there.
    reserved: BTreeSet<u32>,
    is_new: bool,
}

impl Buses {
    fn new(devices: &Element, kept: &BTreeMap<String, String>) -> Self {
        let numbered = |prefix: &str| kept.keys().filter_map(|k| k.strip_prefix(prefix)?.parse().ok()).collect::<BTreeSet<u32>>();
        let (mut ports, bridges, foreign) = (numbered(PORT), numbered(BRIDGE), numbered(KEPT_BUS));
        let is_new = ports.is_empty();
        let here: BTreeSet<&str> = devices.children.iter().filter_map(Element::alias).collect();
        let (mut taken, mut reserved) = (BTreeSet::new(), BTreeSet::new());
        for (key, address) in kept {
            let is_port = |bus: &u32| *bus > 0 && !bridges.contains(bus) && !foreign.contains(bus);
            let Some(bus) = tree::parse(address).ok().and_then(|a| bus_of(&a)).filter(is_port) else { continue };
            // A bridge sits in a port as a device does.
            let present = here.contains(key.as_str()) || key.starts_with(BRIDGE);
            if present {
                taken.insert(bus)
            } else {
                reserved.insert(bus)
            };
            ports.insert(bus);
        }
        Self { ports, bridges, foreign, taken, reserved, is_new }
    }

    fn is_no_port(&self, bus: u32) -> bool {
        self.bridges.contains(&bus) || self.foreign.contains(&bus)
    }

    fn take_first(&mut self) -> u32 {
        let free = |bus: &u32| !self.taken.contains(bus) && !self.is_no_port(*bus);
        let unreserved = (1..=RESERVED_BUS_MAX).find(|bus| free(bus) && !self.reserved.contains(bus));
        let bus = unreserved.or_else(|| (1..).find(free)).expect("more numbers than devices");
        self.taken.insert(bus);
        self.ports.insert(bus);
        bus
    }

    fn take_last(&mut self) -> u32 {
        let free = self.ports.iter().rev().find(|b| !self.taken.contains(b) && !self.reserved.contains(b)).copied();
        let bus = free.unwrap_or_else(|| self.take_first());
        self.taken.insert(bus);
        bus
    }

    /// The bridge's bus, and for a new one the port it sits in.
    fn bridge(&mut self) -> (u32, Option<u32>) {
        if let Some(bus) = self.bridges.first() {
            return (*bus, None);
        }
        let port = self.take_first();
        self.fill_up();
        let bus = self.ports.iter().chain(&self.foreign).max().map_or(1, |last| last + 1);
        self.bridges.insert(bus);
        (bus, Some(port))
    }

    /// Free ports for the future: many at first, later only when they run out, because a new port is a pending change.
    fn fill_up(&mut self) {
        let free = |all: &BTreeSet<u32>, taken: &BTreeSet<u32>| all.difference(taken).count();
        let least = if self.is_new { SPARE_PORTS } else { SPARE_PORTS_MIN };
        if free(&self.ports, &self.taken) >= least as usize {
            return;
        }
        let mut next = 1;
        while free(&self.ports, &self.taken) < SPARE_PORTS as usize {
            if !self.is_no_port(next) {
                self.ports.insert(next);
            }
            next += 1;
        }
    }
}

/// A flat bus; what libvirt places itself (chipset, display) lies below [`PC_SLOT_FIRST`].
fn on_pc(devices: &mut Element, kept: &BTreeMap<String, String>) {
    restore(devices, kept, |_, address| bus_of(address).is_none_or(|bus| bus == 0));
    let slot = |address: &Element| -> Option<Slot> { Some((bus_of(address)?, number(address.get("slot")?)?)) };
    let mut taken: BTreeSet<Slot> = devices.children.iter().filter_map(|d| slot(d.find("address")?)).collect();
    let reserved: BTreeSet<Slot> = kept.values().filter_map(|xml| slot(&tree::parse(xml).ok()?)).collect();
    for device in devices.children.iter_mut().filter(|d| kind(d) != Kind::Other && d.find("address").is_none()) {
        let all = || (PC_SLOT_FIRST..=PC_SLOT_LAST).map(|n| (0, n));
        let found = all().find(|s| !taken.contains(s) && !reserved.contains(s)).or_else(|| all().find(|s| !taken.contains(s)));
        // A full bus: libvirt says so better.
        let Some((bus, slot)) = found else { continue };
        taken.insert((bus, slot));
        device.children.push(pci_address(bus, slot));
    }
}

fn restore(devices: &mut Element, kept: &BTreeMap<String, String>, good: impl Fn(&Element, &Element) -> bool) {
    let mut taken = BTreeSet::new();
    for device in &mut devices.children {
        restore_one(device, kept, |device, address| {
            let place = address.attributes.clone();
            good(device, address) && (address.get("type") != Some("pci") || taken.insert(place))
        });
    }
}

/// An address of another kind than the device needs now (its bus was changed) is forgotten.
fn restore_one(device: &mut Element, kept: &BTreeMap<String, String>, good: impl FnOnce(&Element, &Element) -> bool) {
    let Some(address) = device.alias().and_then(|alias| kept.get(alias)).and_then(|xml| tree::parse(xml).ok()) else { return };
    let wanted = match (device.name.as_str(), device.attr_at("target", "bus").or_else(|| device.get("bus"))) {
        ("disk", Some("virtio")) => "pci",
        ("disk", _) => "drive",
        ("input", _) => "usb",
        ("channel", _) => "virtio-serial",
        ("hostdev", _) if device.get("type") == Some("usb") => "usb",
        _ => "pci",
    };
    if address.name == "address" && address.get("type") == Some(wanted) && good(device, &address) {
        device.children.retain(|c| c.name != "address");
        device.children.push(address);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One root port of its own.
    Express,
    /// Behind a bridge on q35.
    Conventional,
    /// Placed by libvirt, or not on PCI.
    Other,
}

fn kind(device: &Element) -> Kind {
    let get = |key| device.get(key);
    match device.name.as_str() {
        "disk" if device.attr_at("target", "bus") == Some("virtio") => Kind::Express,
        "controller" if matches!(get("type"), Some("scsi" | "virtio-serial" | "nvme")) => Kind::Express,
        "controller" if get("model") == Some("qemu-xhci") => Kind::Express,
        "interface" if device.attr_at("model", "type") == Some("rtl8139") => Kind::Conventional,
        "interface" | "rng" | "filesystem" => Kind::Express,
        "memballoon" if get("model") != Some("none") => Kind::Express,
        "hostdev" if get("type") == Some("pci") => Kind::Express,
        "watchdog" if get("model") == Some("i6300esb") => Kind::Conventional,
        _ => Kind::Other,
    }
}

fn pci_address(bus: u32, slot: u32) -> Element {
    let address = el("address").attr("type", "pci").attr("domain", "0x0000").attr("bus", format!("{bus:#04x}"));
    address.attr("slot", format!("{slot:#04x}")).attr("function", "0x0")
}

/// The bus of a PCI address.
fn bus_of(address: &Element) -> Option<u32> {
    if address.get("type") != Some("pci") {
        return None;
    }
    number(address.get("bus")?)
}

/// `0x1f` or `31`.
fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_count_like_libvirt() {
        let names = ["vda", "vdz", "vdaa", "vdab", "vdaz", "vdba", "vdzz", "vdaaa"];
        assert_eq!([0, 25, 26, 27, 51, 52, 701, 702].map(|n| target(DiskBus::Virtio, n)), names);
        assert_eq!(names.map(target_index), [0, 25, 26, 27, 51, 52, 701, 702].map(Some));
        assert_eq!((target(DiskBus::Nvme, 3).as_str(), target_index("nvme3n1")), ("nvme3n1", Some(3)));
        for odd in ["", "vd", "hda", "vdA", "vdaaaa", "nvme", "nvmexn1"] {
            assert_eq!(target_index(odd), None, "{odd}");
        }
        assert!(fits("sdb", DiskBus::Sata) && !fits("vdb", DiskBus::Sata));
    }
}
