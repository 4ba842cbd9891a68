//! What libvirt adds to a description: uuid, full machine name, MACs and addresses when it is stored; ids, aliases, tap names and
//! sockets when it runs. What stands there already is kept.

use std::collections::BTreeSet;

use uuid::Uuid;
use vmkeep_types::ids::VmId;

use super::tree::Node;
use crate::hypervisor::HvError;

/// Devices that get a PCI address of their own.
const ON_PCI: [&str; 9] = ["interface", "disk", "controller", "video", "watchdog", "memballoon", "rng", "sound", "filesystem"];

pub struct Identity {
    pub uuid: VmId,
    pub name: String,
}

/// Completes a description for storing it.
pub fn stored(domain: &mut Node) -> Result<Identity, HvError> {
    if domain.name != "domain" {
        return Err(HvError::Refused(format!("XML error: unexpected root element <{}>, expecting <domain>", domain.name)));
    }
    let name = domain.child("name").map(|n| n.text.clone()).filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| HvError::Refused("XML error: missing domain name information".to_owned()))?;
    if domain.child("memory").is_none() {
        return Err(HvError::Refused("XML error: missing element or value in memory".to_owned()));
    }
    let uuid = match domain.child("uuid") {
        Some(node) => node.text.parse().map_err(|_| HvError::Refused(format!("XML error: malformed uuid element '{}'", node.text)))?,
        None => {
            let uuid = VmId(Uuid::new_v4());
            domain.children.insert(1, Node::leaf("uuid", &uuid.to_string()));
            uuid
        }
    };
    if domain.child("currentMemory").is_none()
        && let Some(memory) = domain.child("memory").cloned()
    {
        let at = domain.children.iter().position(|c| c.name == "memory").map_or(0, |at| at + 1);
        domain.children.insert(at, Node { name: "currentMemory".to_owned(), ..memory });
    }
    if let Some(kind) = domain.child_mut("os").and_then(|os| os.child_mut("type"))
        && let Some(newest) = newest(kind.get("machine").unwrap_or("q35"))
    {
        kind.set("machine", newest);
    }
    addresses(domain.ensure("devices"), uuid);
    Ok(Identity { uuid, name })
}

/// The version that a machine without one stands for.
fn newest(machine: &str) -> Option<&'static str> {
    match machine {
        "q35" => Some("pc-q35-10.0"),
        "pc" => Some("pc-i440fx-10.0"),
        _ => None,
    }
}

fn addresses(devices: &mut Node, uuid: VmId) {
    let mut slots: BTreeSet<u32> = devices.children.iter().filter_map(slot).collect();
    let mut units: BTreeSet<u32> = devices.children.iter().filter_map(unit).collect();
    for (n, device) in devices.children.iter_mut().enumerate() {
        if device.name == "interface" && device.child("mac").is_none() {
            let b = uuid.0.as_bytes();
            let mac = format!("52:54:00:{:02x}:{:02x}:{:02x}", b[14], b[15], n as u8);
            device.children.insert(0, Node::new("mac", &[("address", &mac)]));
        }
        complete_address(device, &mut slots, &mut units);
    }
}

/// Gives a device that is attached to a running domain its address.
pub fn attached(devices: &Node, device: &mut Node) {
    let mut slots = devices.children.iter().filter_map(slot).collect();
    let mut units = devices.children.iter().filter_map(unit).collect();
    complete_address(device, &mut slots, &mut units);
    let alias = alias(device, devices.children.len());
    device.ensure("alias").set("name", &alias);
}

fn complete_address(device: &mut Node, slots: &mut BTreeSet<u32>, units: &mut BTreeSet<u32>) {
    if device.child("address").is_some() || !ON_PCI.contains(&device.name.as_str()) {
        return;
    }
    let drive = matches!(device.child_get("target", "bus"), Some("sata" | "scsi" | "ide" | "fdc"));
    if device.name == "disk" && drive {
        let unit = free(units, 0);
        let number = unit.to_string();
        device
            .children
            .push(Node::new("address", &[("type", "drive"), ("controller", "0"), ("bus", "0"), ("target", "0"), ("unit", &number)]));
    } else if device.name != "controller" || device.get("model") != Some("pcie-root") {
        let (bus, slot, function) = on_root(device).unwrap_or_else(|| (free(slots, 1), 0, 0));
        let [bus, slot] = [bus, slot].map(|number| format!("0x{number:02x}"));
        let function = format!("0x{function:x}");
        let address = [("type", "pci"), ("domain", "0x0000"), ("bus", &bus), ("slot", &slot), ("function", &function)];
        device.children.push(Node::new("address", &address));
    }
}

/// What sits on the root bus itself, and where: the display, and ports, eight to a slot.
fn on_root(device: &Node) -> Option<(u32, u32, u32)> {
    if device.name == "video" {
        return Some((0, 1, 0));
    }
    let port = device.get("index").filter(|_| device.get("model") == Some("pcie-root-port"))?.parse::<u32>().ok()?.checked_sub(1)?;
    Some((0, 2 + port / 8, port % 8))
}

fn free(taken: &mut BTreeSet<u32>, first: u32) -> u32 {
    let number = (first..).find(|n| !taken.contains(n)).unwrap_or(first);
    taken.insert(number);
    number
}

fn slot(device: &Node) -> Option<u32> {
    let address = device.child("address").filter(|a| a.get("type") == Some("pci"))?;
    u32::from_str_radix(address.get("bus")?.trim_start_matches("0x"), 16).ok()
}

fn unit(device: &Node) -> Option<u32> {
    device.child("address").filter(|a| a.get("type") == Some("drive"))?.get("unit")?.parse().ok()
}

/// The running domain's description, from the stored one.
pub fn live(stored: &Node, id: u64, name: &str) -> Node {
    let mut live = stored.clone();
    live.set("id", &id.to_string());
    for (n, device) in live.ensure("devices").children.iter_mut().enumerate() {
        let alias = alias(device, n);
        if device.name != "emulator" {
            device.ensure("alias").set("name", &alias);
        }
        match device.name.as_str() {
            "interface" => device.ensure("target").set("dev", &format!("vnet{}", id * 8 + n as u64)),
            "channel" if is_agent_channel(device) => {
                device.ensure("target").set("state", "disconnected");
            }
            "graphics" => socket(device, id, name),
            _ => {}
        }
    }
    live
}

pub fn has_agent_channel(domain: &Node) -> bool {
    domain.child("devices").is_some_and(|devices| devices.children.iter().any(is_agent_channel))
}

fn is_agent_channel(device: &Node) -> bool {
    device.name == "channel" && device.child_get("target", "name") == Some("org.qemu.guest_agent.0")
}

fn alias(device: &Node, n: usize) -> String {
    device.child_get("alias", "name").map_or_else(|| format!("{}{n}", device.name), str::to_owned)
}

fn socket(graphics: &mut Node, id: u64, name: &str) {
    let path = format!("/var/lib/libvirt/qemu/domain-{id}-{name}/vnc.sock");
    let Some(listen) = graphics.child_mut("listen").filter(|l| l.get("type") == Some("socket")) else { return };
    let path = listen.get("socket").map_or(path, str::to_owned);
    listen.set("socket", &path);
    graphics.set("socket", &path);
}

/// What was attached or changed and what a wish means: the alias, else the disk's target, else the MAC.
pub fn same_device(a: &Node, b: &Node) -> bool {
    let key = |n: &Node, child: &str, attribute: &str| n.child_get(child, attribute).map(str::to_owned);
    let by = |child, attribute| key(a, child, attribute).is_some() && key(a, child, attribute) == key(b, child, attribute);
    a.name == b.name && (a.name == "graphics" || by("alias", "name") || (a.name == "disk" && by("target", "dev")) || by("mac", "address"))
}

/// KiB of `memory` or `currentMemory`.
pub fn kib(node: &Node) -> u64 {
    let bytes = match node.get("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => 1 << 10,
    };
    node.text.parse::<u64>().unwrap_or(0).saturating_mul(bytes) / 1024
}
