//! Keeping by patch what the manifest cannot say.

use vmkeep_types::vm::{XmlOp, XmlPatch};

use super::Taken;
use crate::domain::build::KEPT_BUS;
use crate::domain::tree::Element;

/// The limits of `libvirt_xml` in a manifest.
const PATCHES_MAX: usize = 64;
const PATCH_BYTES_MAX: usize = 64 << 10;

/// Written by us, made by libvirt, or taken into the wish elsewhere.
const HANDLED: [&str; 25] = [
    "name",
    "uuid",
    "description",
    "metadata",
    "memory",
    "currentMemory",
    "memoryBacking",
    "vcpu",
    "vcpus",
    "iothreads",
    "iothreadids",
    "os",
    "features",
    "cpu",
    "clock",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "pm",
    "devices",
    "resource",
    "seclabel",
    "bootloader",
    "id",
    "on_lockfailure",
];

impl Taken {
    pub fn patch(&mut self, op: XmlOp, path: &str, value: Option<String>) {
        let what = value.as_deref().unwrap_or(path).chars().take(60).collect::<String>();
        if self.patches.len() >= PATCHES_MAX || value.as_ref().is_some_and(|v| v.len() > PATCH_BYTES_MAX) {
            self.warn(format!("too much to be kept by libvirt_xml; it goes when the VM is changed through vmkeep: {what}"));
            return;
        }
        self.patches.push(XmlPatch { op, path: path.to_owned(), value });
    }

    pub fn add(&mut self, path: &str, element: &Element) {
        self.patch(XmlOp::Add, path, Some(flat(&plain(element))));
    }

    pub fn replace(&mut self, path: &str, element: &Element) {
        self.patch(XmlOp::Replace, path, Some(flat(&plain(element))));
    }

    pub fn set(&mut self, path: &str, value: &str) {
        self.patch(XmlOp::Replace, path, Some(value.to_owned()));
    }

    pub fn remove(&mut self, path: &str) {
        self.patch(XmlOp::Remove, path, None);
    }

    /// A whole device, where it sits.
    pub fn keep(&mut self, device: &Element) {
        self.add("devices", device);
        if let Some(address) = device.find("address").filter(|a| a.get("type") == Some("pci")) {
            self.choices.addresses.insert(format!("ua-kept-{}", self.reserved), flat(address));
            self.reserved += 1;
        }
        if let (Some("pci"), Some(index)) = (device.get("type").filter(|_| device.name == "controller"), device.get("index")) {
            self.choices.addresses.insert(format!("{KEPT_BUS}{index}"), "");
        }
    }
}

/// Without line breaks, which a manifest would show as they are.
fn flat(element: &Element) -> String {
    element.write().lines().map(str::trim).collect()
}

/// Without what only the running domain has.
pub fn plain(element: &Element) -> Element {
    let mut plain = element.clone();
    plain.children.retain(|c| !(c.name == "alias" && c.get("name").is_none_or(|n| !n.starts_with("ua-"))));
    plain.children.retain(|c| c.name != "backingStore" && c.name != "privateData");
    let (name, kind) = (plain.name.clone(), plain.get("type").unwrap_or_default().to_owned());
    let mut drop_keys = |child: &str, keys: &[&str]| {
        for c in plain.children.iter_mut().filter(|c| c.name == child) {
            c.attributes.retain(|(k, _)| !keys.contains(&k.as_str()));
        }
    };
    match name.as_str() {
        "disk" => drop_keys("source", &["index"]),
        "interface" => drop_keys("source", if kind == "network" { &["portid", "bridge"] } else { &["portid"] }),
        "channel" => drop_keys("target", &["state"]),
        _ => {}
    }
    match name.as_str() {
        "interface" => plain.children.retain(|c| !(c.name == "target" && c.get("dev").is_none_or(|d| d.starts_with("vnet")))),
        "serial" | "console" | "parallel" | "channel" if kind == "pty" => {
            plain.attributes.retain(|(k, _)| k != "tty");
            plain.children.retain(|c| c.name != "source");
        }
        "channel" if kind == "unix" => {
            // libvirt's own socket gets a new name at each start.
            plain.children.retain(|c| !(c.name == "source" && c.get("path").is_some_and(|p| p.contains("/libvirt/qemu/channel/"))));
        }
        "graphics" if plain.get("autoport") == Some("yes") => {
            plain.attributes.retain(|(k, _)| !matches!(k.as_str(), "port" | "tlsPort"));
        }
        "graphics" if plain.get("socket").is_some_and(|s| s.contains("/libvirt/qemu/domain-")) => {
            plain.attributes.retain(|(k, _)| k != "socket");
            plain.children.iter_mut().for_each(|c| c.attributes.retain(|(k, _)| k != "socket"));
        }
        _ => {}
    }
    plain
}

/// Top-level elements that the manifest does not know.
pub fn take(domain: &Element, taken: &mut Taken) {
    for (key, value) in domain.attributes.iter().filter(|(key, _)| key.starts_with("xmlns:")) {
        taken.set(&format!("@{key}"), value);
    }
    for element in domain.children.iter().filter(|c| !HANDLED.contains(&c.name.as_str())) {
        taken.add(".", element);
        taken.warn(format!("<{}> is kept as it is by libvirt_xml", element.name));
    }
    if domain.find("metadata").is_some_and(|m| m.children.iter().any(|c| !c.name.starts_with("vmkeep:"))) {
        taken.warn("metadata of other programs goes when the VM is changed through vmkeep");
    }
}
