//! A description as a flat map of manifest fields, so that two of them can be compared whoever wrote them.

use std::collections::BTreeMap;

use super::tree::Element;

/// Field to value, both as people read them.
pub type Facts = BTreeMap<String, String>;

/// The fields that vmkeep manages, as this description has them.
pub fn facts(domain: &Element) -> Facts {
    let mut facts = Facts::new();
    let mut put = |field: &str, value: Option<String>| {
        if let Some(value) = value {
            facts.insert(field.to_owned(), value);
        }
    };
    let text = |path: &str| domain.text_at(path).map(str::to_owned);
    put("name", text("name"));
    put("description", text("description"));
    put("memory.max", kib(domain, "memory"));
    put("memory.size", kib(domain, "currentMemory"));
    put("memory.hugepages", domain.at("memoryBacking/hugepages").map(|_| "true".into()));
    put("cpus.max", text("vcpu"));
    put("cpus.count", domain.attr_at("vcpu", "current").map(str::to_owned).or_else(|| text("vcpu")));
    put("cpus.topology", domain.at("cpu/topology").map(topology));
    put("cpu.model", domain.find("cpu").map(cpu_model));
    put("machine", domain.attr_at("os/type", "machine").map(machine_family));
    put("firmware", Some(text("os/loader").map_or_else(|| "bios".into(), |loader| format!("uefi {loader}"))));
    put("clock", domain.attr_at("clock", "offset").map(str::to_owned));
    let devices = domain.find("devices").into_iter().flat_map(|d| &d.children);
    for device in devices {
        for (field, value) in device_facts(device) {
            facts.insert(field, value);
        }
    }
    facts
}

fn kib(domain: &Element, name: &str) -> Option<String> {
    let element = domain.find(name)?;
    let factor = match element.get("unit").unwrap_or("KiB") {
        "b" | "bytes" => return Some(vmkeep_types::units::ByteCount::from_bytes(element.text.trim().parse().ok()?).to_string()),
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => 1 << 10,
    };
    let count: u64 = element.text.trim().parse().ok()?;
    Some(vmkeep_types::units::ByteCount::from_bytes(count.checked_mul(factor)?).to_string())
}

fn topology(e: &Element) -> String {
    let part = |name| e.get(name).unwrap_or("1");
    format!("{} sockets, {} cores, {} threads", part("sockets"), part("cores"), part("threads"))
}

fn cpu_model(cpu: &Element) -> String {
    match cpu.get("mode") {
        Some("custom") | None => cpu.text_at("model").unwrap_or("default").to_owned(),
        Some(mode) => mode.to_owned(),
    }
}

/// `pc-q35-10.0` is of the family `q35`; which version was chosen once is no difference.
fn machine_family(machine: &str) -> String {
    if machine.contains("q35") { "q35".into() } else if machine == "pc" || machine.starts_with("pc-i440fx") { "pc".into() } else { machine.into() }
}

fn device_facts(device: &Element) -> Vec<(String, String)> {
    let alias = device.alias().unwrap_or_default();
    let own = |e: Option<&str>| e.map(str::to_owned);
    let mut out = Vec::new();
    let mut put = |field: String, value: Option<String>| out.extend(value.map(|v| (field, v)));
    match device.name.as_str() {
        "disk" => {
            let name = disk_field(device);
            put(format!("{name}.source"), own(device.attr_at("source", "file").or_else(|| device.attr_at("source", "dev"))));
            if alias.starts_with("ua-disk-") || !alias.starts_with("ua-") {
                put(format!("{name}.bus"), own(device.attr_at("target", "bus")));
                put(format!("{name}.cache"), own(device.attr_at("driver", "cache")));
                put(format!("{name}.io"), own(device.attr_at("driver", "io")));
                put(format!("{name}.discard"), own(device.attr_at("driver", "discard")));
                put(format!("{name}.serial"), own(device.text_at("serial")));
                put(format!("{name}.read_only"), device.find("readonly").map(|_| "true".into()));
                put(format!("{name}.limits.bandwidth"), own(device.text_at("iotune/total_bytes_sec")));
                put(format!("{name}.limits.iops"), own(device.text_at("iotune/total_iops_sec")));
            }
            put(format!("{name}.boot"), own(device.attr_at("boot", "order")));
        }
        "interface" => {
            let mac = device.attr_at("mac", "address").unwrap_or("?");
            let name = alias.strip_prefix("ua-nic-").map_or_else(|| format!("nics[{mac}]"), |n| format!("nics[{n}]"));
            put(format!("{name}.mac"), own(Some(mac)));
            put(format!("{name}.network"), own(device.attr_at("source", "network").or_else(|| device.attr_at("source", "bridge"))));
            put(format!("{name}.model"), own(device.attr_at("model", "type")));
            put(format!("{name}.queues"), own(device.attr_at("driver", "queues")));
            put(format!("{name}.mtu"), own(device.attr_at("mtu", "size")));
            put(format!("{name}.link"), Some(device.attr_at("link", "state").unwrap_or("up").into()));
            put(format!("{name}.boot"), own(device.attr_at("boot", "order")));
        }
        "graphics" => {
            put("display.type".into(), own(device.get("type")));
            put("display.listen".into(), own(device.attr_at("listen", "type")));
        }
        "video" => put("display.video".into(), own(device.attr_at("model", "type"))),
        "serial" => put("serial.log".into(), own(device.attr_at("log", "file"))),
        "channel" if device.attr_at("target", "name") == Some("org.qemu.guest_agent.0") => put("agent".into(), Some("true".into())),
        "rng" => put("rng".into(), Some("true".into())),
        "watchdog" if alias.starts_with("ua-") => put("watchdog".into(), Some(format!("{} {}", device.get("model").unwrap_or("?"), device.get("action").unwrap_or("?")))),
        "tpm" => put("tpm".into(), Some("true".into())),
        "memballoon" => put("memory.balloon".into(), Some((device.get("model") != Some("none")).to_string())),
        "filesystem" => put(format!("shares[{}].path", device.attr_at("target", "dir").unwrap_or("?")), own(device.attr_at("source", "dir"))),
        "hostdev" => put(format!("devices[{}]", if alias.is_empty() { "?" } else { alias }), own(device.get("type"))),
        _ => {}
    }
    out
}

/// `disks[root]`, `cdroms[cd0]`, `cloud_init.seed`, or by its target when it is not ours.
fn disk_field(disk: &Element) -> String {
    let alias = disk.alias().unwrap_or_default();
    if let Some(name) = alias.strip_prefix("ua-disk-") {
        return format!("disks[{name}]");
    }
    if let Some(name) = alias.strip_prefix("ua-cdrom-") {
        return format!("cdroms[{name}]");
    }
    if alias == "ua-seed" {
        return "cloud_init.seed".into();
    }
    format!("disks[{}]", disk.attr_at("target", "dev").unwrap_or("?"))
}
