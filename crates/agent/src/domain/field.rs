//! Differences in the words of the manifest: `disks[root].cache`, or `xml:…` for what has no field there.

use vmkeep_types::observed::FieldChange;
use vmkeep_types::units::ByteCount;

use super::build::family;
use super::diff::Difference;
use super::tree::Element;

/// What stands for something that is not there.
const ABSENT: &str = "none";

/// Names a difference.
pub fn change(difference: &Difference<'_>) -> FieldChange {
    let (field, kind) = match difference.device {
        Some(device) => in_device(device, &difference.path),
        None => in_domain(&difference.path),
    };
    let value = |v: &Option<String>| v.as_deref().map_or_else(|| kind.absent().to_owned(), |v| kind.words(v));
    FieldChange { field, from: value(&difference.from), to: value(&difference.to) }
}

/// A machine of another kind has other buses and controllers: what follows from that is not told one by one.
pub fn fold_machine(changes: &mut Vec<FieldChange>) {
    let kind = |machine: &str| machine.split(' ').next().and_then(family);
    if changes.iter().any(|change| change.field == "machine" && kind(&change.from) != kind(&change.to)) {
        changes.retain(|change| !change.field.starts_with("xml:"));
    }
}

/// How a value reads in the manifest.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Bytes,
    /// There or not.
    Presence,
    /// `unmap` or something else.
    Discard,
    /// `pc-q35-10.0`
    Machine,
    /// `yes` and `no` of XML.
    Flag,
    /// CPU feature policy.
    Policy,
    /// Zero when absent.
    Limit,
    Firmware,
}

impl Kind {
    fn absent(self) -> &'static str {
        match self {
            Self::Presence | Self::Discard | Self::Flag => "false",
            Self::Limit => "0",
            Self::Firmware => "bios",
            Self::Plain | Self::Bytes | Self::Machine | Self::Policy => ABSENT,
        }
    }

    fn words(self, value: &str) -> String {
        match self {
            Self::Presence => "true".into(),
            Self::Discard => (value == "unmap").to_string(),
            Self::Flag => (value == "yes" || value == "on").to_string(),
            Self::Policy => if value == "disable" || value == "forbid" { "off" } else { "on" }.into(),
            Self::Bytes => value.parse().map_or_else(|_| value.to_owned(), |n| ByteCount::from_bytes(n).to_string()),
            Self::Machine => match family(value) {
                Some(_) if value == "q35" || value == "pc" => format!("{value} (newest)"),
                _ => value.to_owned(),
            },
            Self::Firmware => format!("uefi {value}"),
            Self::Plain | Self::Limit => value.to_owned(),
        }
    }
}

fn in_domain(path: &str) -> (String, Kind) {
    let (field, kind) = match path {
        "name" => ("name", Kind::Plain),
        "description" => ("description", Kind::Plain),
        "memory" => ("memory.max", Kind::Plain),
        "currentMemory" => ("memory.size", Kind::Plain),
        "memoryBacking/hugepages" => ("memory.hugepages", Kind::Presence),
        "vcpu" => ("cpus.max", Kind::Plain),
        "vcpu@current" => ("cpus.count", Kind::Plain),
        "cpu/topology@sockets" => ("cpus.sockets", Kind::Plain),
        "cpu/topology@cores" => ("cpus.cores", Kind::Plain),
        "cpu/topology@threads" => ("cpus.threads", Kind::Plain),
        "cpu/model" => ("cpu.model", Kind::Plain),
        "os/type@machine" => ("machine", Kind::Machine),
        "os/loader" => ("firmware", Kind::Firmware),
        "os/loader@secure" => ("secure_boot", Kind::Flag),
        "clock@offset" => ("clock", Kind::Plain),
        "resource/partition" => ("ha.partition", Kind::Plain),
        path => {
            if let Some(feature) = path.strip_prefix("cpu/feature[").and_then(|p| p.strip_suffix(']')) {
                return (format!("cpu.features.{feature}"), Kind::Policy);
            }
            return (format!("xml:{path}"), Kind::Plain);
        }
    };
    (field.to_owned(), kind)
}

fn in_device(device: &Element, path: &str) -> (String, Kind) {
    let name = device_field(device);
    if path.is_empty() {
        return whole(device, name);
    }
    let known = match device.name.as_str() {
        "disk" => in_disk(path),
        "interface" => in_nic(path),
        "graphics" => match path {
            "listen@type" => Some(("listen", Kind::Plain)),
            _ => None,
        },
        "video" if path.starts_with("model@type") => Some(("video", Kind::Plain)),
        "filesystem" => match path {
            "source@dir" => Some(("path", Kind::Plain)),
            "readonly" => Some(("read_only", Kind::Presence)),
            _ => None,
        },
        "watchdog" => path.strip_prefix('@').map(|key| (key, Kind::Plain)),
        "memballoon" if path == "@model" => return ("memory.balloon".into(), Kind::Plain),
        _ => None,
    };
    match (known, name) {
        (Some(("boot", kind)), Some(name)) => {
            let device = name.split_once('[').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(']'));
            (format!("boot[{device}]"), kind)
        }
        (Some((field, kind)), Some(name)) => (format!("{name}.{field}"), kind),
        (None, Some(name)) if name.contains('[') => (format!("xml:{name}/{path}"), Kind::Plain),
        (_, _) => (format!("xml:devices/{}/{path}", raw_name(device)), Kind::Plain),
    }
}

fn whole(device: &Element, name: Option<String>) -> (String, Kind) {
    match (device.name.as_str(), name) {
        ("rng" | "tpm" | "channel", Some(name)) => (name, Kind::Presence),
        ("memballoon", _) => ("memory.balloon".into(), Kind::Presence),
        (_, Some(name)) => (name, Kind::Plain),
        (_, None) => (format!("xml:devices/{}", raw_name(device)), Kind::Plain),
    }
}

fn in_disk(path: &str) -> Option<(&'static str, Kind)> {
    Some(match path {
        "source@file" | "source@dev" | "source" => ("source", Kind::Plain),
        "target@bus" => ("bus", Kind::Plain),
        "driver@cache" => ("cache", Kind::Plain),
        "driver@type" => ("format", Kind::Plain),
        "driver@discard" => ("discard", Kind::Discard),
        "serial" => ("serial", Kind::Plain),
        "readonly" => ("read_only", Kind::Presence),
        "iotune" | "iotune/total_bytes_sec" => ("limits.bandwidth", Kind::Bytes),
        "iotune/total_iops_sec" => ("limits.iops", Kind::Limit),
        "boot" | "boot@order" => ("boot", Kind::Plain),
        _ => return None,
    })
}

fn in_nic(path: &str) -> Option<(&'static str, Kind)> {
    Some(match path {
        "source@network" | "source@bridge" | "@type" => ("network", Kind::Plain),
        "mac@address" | "mac" => ("mac", Kind::Plain),
        "model@type" => ("model", Kind::Plain),
        "driver" | "driver@queues" => ("queues", Kind::Plain),
        "mtu" | "mtu@size" => ("mtu", Kind::Plain),
        "link" | "link@state" => ("link", Kind::Plain),
        "boot" | "boot@order" => ("boot", Kind::Plain),
        _ => return None,
    })
}

/// `disks[root]`, `nics[lan]`, `tpm`; None for devices that the manifest does not know.
pub fn device_field(device: &Element) -> Option<String> {
    let alias = device.alias().unwrap_or_default();
    let lists = [("ua-disk-", "disks"), ("ua-cdrom-", "cdroms"), ("ua-nic-", "nics"), ("ua-share-", "shares")];
    if let Some((name, list)) = lists.iter().find_map(|(prefix, list)| Some((alias.strip_prefix(prefix)?, list))) {
        return Some(format!("{list}[{name}]"));
    }
    if let Some(address) = alias.strip_prefix("ua-pci-") {
        return Some(format!("devices.pci[{address}]"));
    }
    if let Some(id) = alias.strip_prefix("ua-usb-") {
        return Some(format!("devices.usb[{id}]"));
    }
    let field = match (alias, device.name.as_str()) {
        ("ua-seed", _) => "cloud_init",
        ("ua-agent", _) => "agent",
        (_, "graphics" | "video") => "display",
        (_, "rng") => "rng",
        (_, "tpm") => "tpm",
        (_, "watchdog") => "watchdog",
        _ => return None,
    };
    Some(field.to_owned())
}

/// `controller[ua-port-3]`, `disk[vdb]`, `sound`
fn raw_name(device: &Element) -> String {
    let which = device.alias().or_else(|| device.attr_at("target", "dev")).or_else(|| device.attr_at("mac", "address"));
    which.map_or_else(|| device.name.clone(), |which| format!("{}[{which}]", device.name))
}
