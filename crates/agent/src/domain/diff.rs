//! What differs between a description that we want and one that libvirt tells.
//!
//! Every attribute, text and element of the wanted one must be in the actual one. What the actual one has beyond that is
//! a difference only where libvirt adds nothing by itself: a top-level element, a setting of a disk, a NIC, the CPU, the
//! features or the clock, or a whole device. Devices are paired by our alias; those of a domain that vmkeep did not write
//! by what they are (target, MAC, index).

use std::collections::BTreeMap;

use super::build::{PARTITION, family};
use super::tree::Element;

/// Which of libvirt's descriptions the actual one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Stored,
    /// With what QEMU and libvirt added at the start.
    Running,
}

/// One difference. `from` is what is there, `to` what is wanted; None = nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    /// The device it is in: the wanted one, or the actual one that nobody wants.
    pub device: Option<&'a Element>,
    /// `os/loader`, `driver@cache` (within its device); empty = the whole device.
    pub path: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

/// Wanted and actual devices that are the same one.
pub struct Pairs<'a> {
    pub both: Vec<(&'a Element, &'a Element)>,
    pub missing: Vec<&'a Element>,
    pub extra: Vec<&'a Element>,
}

const PARTITION_AT: &str = "resource/partition";
/// Top-level elements that libvirt makes itself.
const IMPLICIT: [&str; 6] = ["metadata", "devices", "resource", "seclabel", "iothreadids", "vcpus"];
/// What an element that nobody wrote down may hold without being a difference; elsewhere extras are libvirt's.
const WATCHED_DISK: [&str; 13] = [
    "source",
    "iotune",
    "readonly",
    "shareable",
    "transient",
    "serial",
    "wwn",
    "boot",
    "encryption",
    "blockio",
    "geometry",
    "vendor",
    "product",
];
const WATCHED_NIC: [&str; 11] =
    ["bandwidth", "filterref", "vlan", "virtualport", "boot", "tune", "coalesce", "driver", "guest", "mtu", "rom"];
const WATCHED_OS: [&str; 9] = ["boot", "bootmenu", "smbios", "bios", "kernel", "initrd", "cmdline", "loader", "nvram"];

/// Whether vmkeep never wrote this description.
pub fn is_foreign(domain: &Element) -> bool {
    !domain.devices().any(|d| d.alias().is_some_and(|a| a.starts_with("ua-")))
}

pub fn differences<'a>(wanted: &'a Element, actual: &'a Element, view: View) -> Vec<Difference<'a>> {
    let mut found = Found { view, device: None, list: Vec::new() };
    found.attribute("@type", wanted.get("type"), actual.get("type"));
    for element in wanted.children.iter().filter(|e| !IMPLICIT.contains(&e.name.as_str())) {
        let there = actual.find(&element.name);
        match (element.name.as_str(), there) {
            ("vcpu", Some(there)) => found.vcpu(element, there),
            ("cpu", Some(there)) => found.cpu(element, there, actual),
            (name, Some(there)) => found.element(name, element, there),
            (name, None) => found.absent(name, element),
        }
    }
    for element in actual.children.iter().filter(|e| !IMPLICIT.contains(&e.name.as_str())) {
        if wanted.find(&element.name).is_none() {
            found.extra(&element.name, element);
        }
    }
    found.partition(wanted, actual);
    let pairs = pairs(wanted, actual);
    for (want, there) in &pairs.both {
        found.device = Some(want);
        found.element("", want, there);
    }
    for device in &pairs.missing {
        found.list.push(Difference { device: Some(device), path: String::new(), from: None, to: Some(summary(device)) });
    }
    for device in &pairs.extra {
        found.list.push(Difference { device: Some(device), path: String::new(), from: Some(summary(device)), to: None });
    }
    found.list
}

struct Found<'a> {
    view: View,
    device: Option<&'a Element>,
    list: Vec<Difference<'a>>,
}

impl<'a> Found<'a> {
    fn put(&mut self, path: &str, from: Option<String>, to: Option<String>) {
        self.list.push(Difference { device: self.device, path: path.to_owned(), from, to });
    }

    /// Where the guard of highly available VMs looks for them; another partition is the administrator's.
    fn partition(&mut self, wanted: &Element, actual: &Element) {
        let of = |domain: &Element| domain.text_at(PARTITION_AT).map(str::to_owned);
        let (want, there) = (of(wanted), of(actual));
        if want != there && (want.is_some() || there.as_deref() == Some(PARTITION)) {
            self.put(PARTITION_AT, there, want);
        }
    }

    fn absent(&mut self, path: &str, wanted: &Element) {
        // libvirt leaves out what is the default.
        if !matches!((path, wanted.get("state")), ("link", Some("up"))) {
            self.put(path, None, Some(value_of(wanted)));
        }
    }

    fn extra(&mut self, path: &str, actual: &Element) {
        self.put(path, Some(value_of(actual)), None);
    }

    fn attribute(&mut self, path: &str, wanted: Option<&str>, actual: Option<&str>) {
        if let Some(wanted) = wanted
            && !same(path, wanted, actual.unwrap_or_default())
            && !(self.view == View::Running && self.is_trays_format(path))
        {
            self.put(path, actual.map(str::to_owned), Some(wanted.to_owned()));
        }
    }

    fn element(&mut self, path: &str, wanted: &'a Element, actual: &'a Element) {
        if let (Some(want), Some(there)) = (bytes(wanted), bytes(actual)) {
            if want != there {
                self.put(path, Some(format!("{there}")), Some(format!("{want}")));
            }
            return;
        }
        for (key, value) in &wanted.attributes {
            // libvirt does not show passwords; namespaces are of the text only; port -1 is any.
            if key != "passwd" && !key.starts_with("xmlns") && !(key == "port" && value == "-1") {
                self.attribute(&format!("{path}@{key}"), Some(value), actual.get(key));
            }
        }
        let (want, there) = (wanted.text.trim(), actual.text.trim());
        if !want.is_empty() && !same(path, want, there) {
            self.put(path, Some(there.to_owned()), Some(want.to_owned()));
        }
        self.children(path, wanted, actual);
    }

    fn children(&mut self, path: &str, wanted: &'a Element, actual: &'a Element) {
        let mut used = Vec::new();
        for child in &wanted.children {
            let below = join(path, child);
            if self.is_placement(&below) {
                continue;
            }
            let there = actual.children.iter().enumerate().find(|(n, c)| !used.contains(n) && same_child(child, c));
            match there {
                Some((n, there)) => {
                    used.push(n);
                    self.element(&below, child, there);
                }
                None => self.absent(&below, child),
            }
        }
        for (_, child) in actual.children.iter().enumerate().filter(|(n, _)| !used.contains(n)) {
            if self.is_watched(path, child) {
                self.extra(&join(path, child), child);
            }
        }
        if self.view == View::Stored && path == "driver" && self.is_device("disk") {
            for (key, value) in actual.attributes.iter().filter(|(key, _)| wanted.get(key).is_none()) {
                self.put(&format!("driver@{key}"), Some(value.clone()), None);
            }
        }
    }

    /// A running tray has a format only while a medium is in it.
    fn is_trays_format(&self, path: &str) -> bool {
        path == "driver@type" && self.device.is_some_and(|d| d.get("device") == Some("cdrom"))
    }

    /// Aliases are how devices were paired; where a running device sits shows only after its next start.
    fn is_placement(&self, path: &str) -> bool {
        path == "alias" || (path == "address" && self.view == View::Running)
    }

    fn is_device(&self, name: &str) -> bool {
        self.device.is_some_and(|d| d.name == name)
    }

    fn is_watched(&self, path: &str, child: &Element) -> bool {
        let name = child.name.as_str();
        match (path, self.device.map(|d| d.name.as_str())) {
            ("", Some("disk")) => WATCHED_DISK.contains(&name),
            ("", Some("interface")) => WATCHED_NIC.contains(&name) || (name == "link" && child.get("state") == Some("down")),
            ("iotune" | "bandwidth", Some(_)) => true,
            ("os", None) => WATCHED_OS.contains(&name),
            ("features" | "features/hyperv" | "clock" | "memoryBacking", None) => true,
            _ => false,
        }
    }

    fn vcpu(&mut self, wanted: &Element, actual: &Element) {
        let max = |e: &Element| e.text.trim().to_owned();
        let count = |e: &Element| e.get("current").map_or_else(|| max(e), str::to_owned);
        for (path, value) in [("vcpu", &max as &dyn Fn(&Element) -> String), ("vcpu@current", &count)] {
            let (want, there) = (value(wanted), value(actual));
            if want != there {
                self.put(path, Some(there), Some(want));
            }
        }
        self.attribute("vcpu@cpuset", wanted.get("cpuset"), actual.get("cpuset"));
    }

    fn cpu(&mut self, wanted: &'a Element, actual: &'a Element, domain: &Element) {
        // A running host-model is written out.
        if !(self.view == View::Running && wanted.get("mode") == Some("host-model")) {
            let (want, there) = (cpu_model(wanted), cpu_model(actual));
            if want != there {
                self.put("cpu/model", Some(there), Some(want));
            } else {
                self.cpu_features(wanted, actual);
            }
        }
        let max = domain.text_at("vcpu").unwrap_or("1").to_owned();
        for (part, default) in [("sockets", max.as_str()), ("cores", "1"), ("threads", "1"), ("dies", "1"), ("clusters", "1")] {
            let value = |cpu: &Element| cpu.find("topology").map_or(default, |t| t.get(part).unwrap_or("1")).to_owned();
            let (want, there) = (value(wanted), value(actual));
            if want != there && wanted.find("topology").is_some() {
                self.put(&format!("cpu/topology@{part}"), Some(there), Some(want));
            }
        }
        let known = ["model", "vendor", "feature", "topology"];
        for part in actual.children.iter().filter(|c| !known.contains(&c.name.as_str()) && wanted.find(&c.name).is_none()) {
            self.extra(&format!("cpu/{}", part.name), part);
        }
        for part in wanted.children.iter().filter(|c| !known.contains(&c.name.as_str())) {
            let path = format!("cpu/{}", part.name);
            match actual.find(&part.name) {
                Some(there) => self.element(&path, part, there),
                None => self.absent(&path, part),
            }
        }
    }

    fn cpu_features(&mut self, wanted: &Element, actual: &Element) {
        let (want, there) = (features(wanted), features(actual));
        for (name, policy) in &want {
            let now = there.get(name).copied();
            // At the start libvirt leaves out what the model has anyway, and writes `disable` where QEMU had nothing to give (`check='partial'`;
            // npt of a nested host): no restart would change that.
            let refused =
                self.view == View::Running && wanted.get("check") == Some("partial") && (*policy, now) == ("require", Some("disable"));
            if now != Some(policy) && !refused && (now.is_some() || self.view == View::Stored) {
                self.put(&format!("cpu/feature[{name}]"), now.map(str::to_owned), Some((*policy).to_owned()));
            }
        }
        if self.view == View::Stored {
            for (name, policy) in there.iter().filter(|(name, _)| !want.contains_key(*name)) {
                self.put(&format!("cpu/feature[{name}]"), Some((*policy).to_owned()), None);
            }
        }
    }
}

fn features(cpu: &Element) -> BTreeMap<&str, &str> {
    cpu.all("feature").filter_map(|f| Some((f.get("name")?, f.get("policy").unwrap_or("require")))).collect()
}

fn cpu_model(cpu: &Element) -> String {
    match cpu.get("mode") {
        Some("custom") | None => cpu.text_at("model").unwrap_or("default").to_owned(),
        Some(mode) => mode.to_owned(),
    }
}

/// Children that come several times tell themselves apart by name, or by type and model.
fn same_child(wanted: &Element, actual: &Element) -> bool {
    wanted.name == actual.name && ["name", "dev"].iter().all(|key| wanted.name == "target" || wanted.get(key) == actual.get(key))
}

fn join(path: &str, child: &Element) -> String {
    let name = match (child.name.as_str(), child.get("name")) {
        ("timer", Some(name)) => format!("timer[{name}]"),
        (tag, _) => tag.to_owned(),
    };
    if path.is_empty() { name } else { format!("{path}/{name}") }
}

/// Sizes with a unit, in bytes.
fn bytes(element: &Element) -> Option<vmkeep_types::units::ByteCount> {
    if !matches!(element.name.as_str(), "memory" | "currentMemory") {
        return None;
    }
    let factor: u64 = match element.get("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => 1 << 10,
    };
    element.text.trim().parse::<u64>().ok()?.checked_mul(factor).map(vmkeep_types::units::ByteCount::from_bytes)
}

/// Memory in bytes as the description writes it.
pub fn memory(domain: &Element, name: &str) -> Option<vmkeep_types::units::ByteCount> {
    domain.find(name).and_then(bytes)
}

fn same(path: &str, wanted: &str, actual: &str) -> bool {
    if wanted == actual {
        return true;
    }
    match path {
        // libvirt leaves out what QEMU does anyway.
        "driver@cache" if actual.is_empty() => wanted == "writeback",
        "driver@discard" if actual.is_empty() => wanted == "ignore",
        "driver@detect_zeroes" if actual.is_empty() => wanted == "off",
        // `q35` is whatever version of it was chosen.
        "os/type@machine" => matches!(wanted, "q35" | "pc") && family(wanted) == family(actual),
        "mac@address" => wanted.eq_ignore_ascii_case(actual),
        _ => match (hex(wanted), hex(actual)) {
            (Some(w), Some(a)) => w == a,
            _ => false,
        },
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// What an element says, in short.
fn value_of(element: &Element) -> String {
    if !element.text.trim().is_empty() {
        return element.text.trim().to_owned();
    }
    match (element.attributes.as_slice(), element.children.as_slice()) {
        ([], []) => "yes".into(),
        ([(_, value)], []) => value.clone(),
        _ => words(element, 2),
    }
}

/// `{model: ich9}`; deeper levels are only counted.
fn words(element: &Element, depth: usize) -> String {
    let attributes = element.attributes.iter().filter(|(k, _)| k != "passwd").map(|(k, v)| format!("{k}: {v}"));
    let children = element.children.iter().filter(|c| !matches!(c.name.as_str(), "alias" | "address")).map(|c| {
        let value = if depth == 0 {
            "…".into()
        } else if c.text.trim().is_empty() {
            words(c, depth - 1)
        } else {
            c.text.trim().to_owned()
        };
        format!("{}: {value}", c.name)
    });
    format!("{{{}}}", attributes.chain(children).collect::<Vec<_>>().join(", "))
}

fn summary(device: &Element) -> String {
    let source = device.find("source").map(|s| ["file", "dev", "network", "bridge", "dir"].iter().find_map(|k| s.get(k)).unwrap_or("?"));
    match (device.name.as_str(), source) {
        ("disk", None) if matches!(device.get("device"), Some("cdrom" | "floppy")) => {
            format!("empty {} drive", device.attr_at("target", "bus").unwrap_or("CD"))
        }
        ("disk", Some(source)) => format!("{} disk on {source}", device.attr_at("target", "bus").unwrap_or("a")),
        ("interface", Some(source)) => format!("{} NIC on {source}", device.attr_at("model", "type").unwrap_or("a")),
        _ => words(device, 1),
    }
}

/// Numbers may differ as long as the same devices come one after the other.
pub fn boot_sequence_is_kept(pairs: &Pairs<'_>) -> bool {
    let order = |d: &Element| d.attr_at("boot", "order").and_then(|n| n.parse::<u32>().ok());
    let mut booted: Vec<(u32, u32)> = Vec::new();
    for (wanted, actual) in &pairs.both {
        match (order(wanted), order(actual)) {
            (Some(w), Some(r)) => booted.push((w, r)),
            (None, None) => {}
            _ => return false,
        }
    }
    booted.sort_unstable();
    booted.is_sorted_by_key(|(_, actual)| *actual)
}

/// Pairs the devices of two descriptions.
pub fn pairs<'a>(wanted: &'a Element, actual: &'a Element) -> Pairs<'a> {
    let mut pairs = Pairs { both: Vec::new(), missing: Vec::new(), extra: Vec::new() };
    let mut rest: Vec<&Element> = actual.devices().collect();
    let mut unnamed = Vec::new();
    for device in wanted.devices() {
        let ours = device.alias().filter(|a| a.starts_with("ua-"));
        match rest.iter().position(|d| ours.is_some() && d.name == device.name && d.alias() == ours) {
            Some(at) => pairs.both.push((device, rest.remove(at))),
            None => unnamed.push(device),
        }
    }
    for device in unnamed {
        let fits = |d: &&Element| d.alias().is_none_or(|a| !a.starts_with("ua-")) && identity(device) == identity(d);
        match rest.iter().position(fits) {
            Some(at) => pairs.both.push((device, rest.remove(at))),
            None if is_implicit(device) => {}
            None => pairs.missing.push(device),
        }
    }
    pairs.extra = rest.into_iter().filter(|d| !is_implicit(d)).collect();
    pairs
}

/// What a device is, where it has no alias of ours.
fn identity(device: &Element) -> Vec<&str> {
    let of = |keys: &[&'static str]| keys.iter().map(|k| device.get(k).unwrap_or_default()).collect::<Vec<_>>();
    let mut id = vec![device.name.as_str()];
    match device.name.as_str() {
        "disk" => id.extend(device.attr_at("target", "dev")),
        "interface" => id.extend(device.attr_at("mac", "address")),
        "controller" => id.extend(of(&["type", "index"])),
        "input" => id.extend(of(&["type", "bus"])),
        "graphics" => id.extend(of(&["type"])),
        "watchdog" | "panic" | "sound" | "shmem" => id.extend(of(&["model"])),
        "filesystem" => id.extend(device.attr_at("target", "dir")),
        "channel" => id.extend(device.attr_at("target", "name")),
        "hostdev" => {
            id.extend(of(&["type"]));
            let source = device.find("source").into_iter().flat_map(|s| &s.children);
            id.extend(source.flat_map(|c| c.attributes.iter().map(|(_, v)| v.as_str())));
        }
        _ => {}
    }
    id
}

/// Devices that libvirt makes itself, whether they were asked for or not.
fn is_implicit(device: &Element) -> bool {
    let is = |key: &str, value: &str| device.get(key) == Some(value);
    match device.name.as_str() {
        "console" | "audio" | "hub" | "emulator" => true,
        "controller" => device.alias().is_none_or(|a| !a.starts_with("ua-")),
        "input" => is("bus", "ps2"),
        "watchdog" => is("model", "itco") && device.alias().is_none_or(|a| !a.starts_with("ua-")),
        _ => false,
    }
}
