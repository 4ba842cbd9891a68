//! CPUs, memory, firmware, clock, features and boot order of a domain.

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{ClockOffset, Firmware, MachineFamily, OsFamily};

use super::Taken;
use crate::domain::build::{NVRAM, family};
use crate::domain::compare::firmware;
use crate::domain::diff::memory;
use crate::domain::tree::{Element, el};

pub fn take(domain: &Element, taken: &mut Taken) -> Result<(), Error> {
    let kind = domain.get("type").unwrap_or_default();
    if !matches!(kind, "kvm" | "qemu") {
        let kind: String = kind.chars().take(20).collect();
        return Err(Error::refused(format!("a domain of type '{kind}' cannot be taken over")).hint("vmkeep runs QEMU/KVM domains"));
    }
    taken.choices.domain_type = Some(kind.to_owned());
    taken.spec.description = domain.text_at("description").unwrap_or_default().to_owned();
    taken.spec.os = os_family(domain);
    sizes(domain, taken)?;
    backing(domain, taken);
    machine(domain, taken)?;
    cpu(domain, taken);
    features(domain, taken);
    clock(domain, taken);
    for (event, ours) in [("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")] {
        if let Some(theirs) = domain.text_at(event).filter(|t| *t != ours) {
            taken.warn(format!("{event}: {theirs} becomes {ours}; `run` and `restart` decide what follows"));
        }
    }
    if let Some(pm) = domain.find("pm").filter(|pm| pm.children.iter().any(|c| c.get("enabled") == Some("yes"))) {
        taken.replace("pm", pm);
    }
    Ok(())
}

/// libosinfo's note in the metadata tells best; enlightenments are a good hint.
fn os_family(domain: &Element) -> OsFamily {
    let noted = domain.at("metadata/libosinfo:libosinfo/libosinfo:os").and_then(|os| os.get("id")).unwrap_or_default();
    if noted.contains("microsoft.com/win") || (noted.is_empty() && domain.at("features/hyperv").is_some()) {
        return OsFamily::Windows;
    }
    OsFamily::Linux
}

fn sizes(domain: &Element, taken: &mut Taken) -> Result<(), Error> {
    let spec = &mut taken.spec;
    let mib = |size: ByteCount| ByteCount::from_mib(size.mib());
    let max = memory(domain, "memory").map(mib).ok_or_else(|| super::super::odd("it has no memory"))?;
    spec.memory.size = memory(domain, "currentMemory").map(mib).filter(|size| *size <= max && size.bytes() > 0).unwrap_or(max);
    spec.memory.max = (max > spec.memory.size).then_some(max);
    let vcpu = domain.find("vcpu");
    let all = vcpu.and_then(|v| v.text.trim().parse().ok()).unwrap_or(1).max(1);
    spec.cpus.count = vcpu.and_then(|v| v.get("current")).and_then(|n| n.parse().ok()).filter(|n| (1..=all).contains(n)).unwrap_or(all);
    spec.cpus.max = (all > spec.cpus.count).then_some(all);
    let part = |name: &str| domain.at("cpu/topology").map_or(1, |t| t.get(name).and_then(|n| n.parse().ok()).unwrap_or(1));
    // Without a topology each CPU is a socket.
    let (sockets, cores, threads): (u32, u32, u32) = match domain.at("cpu/topology") {
        Some(_) => (part("sockets"), part("cores"), part("threads")),
        None => (all, 1, 1),
    };
    if all > 1 {
        (spec.cpus.sockets, spec.cpus.cores, spec.cpus.threads) = (Some(sockets), Some(cores), Some(threads));
    }
    if let Some(set) = vcpu.and_then(|v| v.get("cpuset")) {
        let set = set.to_owned();
        taken.set("vcpu/@cpuset", &set);
    }
    Ok(())
}

fn backing(domain: &Element, taken: &mut Taken) {
    let Some(backing) = domain.find("memoryBacking") else { return };
    let huge = backing.find("hugepages");
    taken.spec.memory.hugepages = huge.is_some_and(|h| h.children.is_empty());
    let simple = |c: &Element| match c.name.as_str() {
        "hugepages" => c.children.is_empty(),
        "source" => c.get("type") == Some("memfd"),
        "access" => c.get("mode") == Some("shared"),
        _ => false,
    };
    let for_shares = backing.find("source").is_some() && domain.devices().any(|d| d.attr_at("driver", "type") == Some("virtiofs"));
    let plain = backing.children.iter().all(simple) && (for_shares || backing.find("source").is_none());
    if !plain {
        taken.spec.memory.hugepages = false;
        taken.add(".", backing);
    }
}

fn machine(domain: &Element, taken: &mut Taken) -> Result<(), Error> {
    let machine = domain.attr_at("os/type", "machine").unwrap_or_default();
    let arch = domain.attr_at("os/type", "arch").unwrap_or("x86_64");
    let Some(kind) = family(machine).filter(|_| arch == "x86_64") else {
        let words: String = format!("{machine} on {arch}").chars().take(60).collect();
        return Err(
            Error::refused(format!("a machine of type {words} cannot be taken over")).hint("vmkeep knows q35 and pc (i440fx) on x86_64")
        );
    };
    taken.spec.machine = kind;
    taken.choices.machine = (!matches!(machine, "q35" | "pc")).then(|| machine.to_owned());
    let os = domain.find("os").cloned().unwrap_or_default();
    let loader = os.find("loader");
    let secure = loader.and_then(|l| l.get("secure")) == Some("yes");
    match loader.map(|l| (l, l.get("type"))) {
        Some((_, Some("pflash"))) => {
            taken.spec.firmware = Firmware::Uefi;
            taken.choices.firmware = Some(firmware(domain));
            if let Some(nvram) = os.find("nvram") {
                taken.choices.addresses.insert(NVRAM, nvram.write().trim());
            }
        }
        None if os.get("firmware") == Some("efi") => {
            taken.spec.firmware = Firmware::Uefi;
            taken.warn("libvirt chooses its UEFI build anew at each start; vmkeep chooses it once, with the next change");
        }
        other => {
            taken.spec.firmware = Firmware::Bios;
            taken.choices.firmware = Some(vmkeep_types::record::FirmwareChoice::Bios);
            if let Some((loader, _)) = other {
                taken.add("os", loader);
            }
        }
    }
    taken.spec.secure_boot = (taken.spec.firmware == Firmware::Uefi).then_some(secure);
    for extra in os.children.iter().filter(|c| !matches!(c.name.as_str(), "type" | "loader" | "nvram" | "boot" | "firmware")) {
        taken.add("os", extra);
    }
    Ok(())
}

fn cpu(domain: &Element, taken: &mut Taken) {
    let Some(cpu) = domain.find("cpu") else { return };
    match cpu.get("mode") {
        Some("host-passthrough") => taken.spec.cpu.model = "host".into(),
        Some("maximum") => taken.spec.cpu.model = "max".into(),
        _ => {}
    }
    let mut chosen = cpu.clone();
    chosen.children.retain(|c| c.name != "topology");
    // A running CPU was checked against the host to the last feature; the next start need not find the same host.
    if chosen.get("check") == Some("full") {
        chosen.set("check", "partial");
    }
    if matches!(cpu.get("mode"), Some("host-passthrough" | "maximum")) {
        for extra in &chosen.children {
            taken.add("cpu", extra);
        }
    } else {
        taken.choices.cpu_xml = Some(chosen.write().trim().to_owned());
    }
}

/// Ours in every VM; whether the guest sees them is up to it.
const COMMON: [&str; 4] = ["acpi", "apic", "vmport", "smm"];

fn features(domain: &Element, taken: &mut Taken) {
    let nothing = el("features");
    let features = domain.find("features").unwrap_or(&nothing);
    for ours in ["acpi", "apic"].iter().filter(|f| features.find(f).is_none()) {
        taken.remove(&format!("features/{ours}"));
    }
    match features.find("vmport") {
        Some(vmport) if vmport.get("state") == Some("off") => {}
        Some(vmport) => taken.replace("features/vmport", vmport),
        None => taken.remove("features/vmport"),
    }
    let secure = taken.spec.secure_boot == Some(true);
    if let Some(smm) = features.find("smm").filter(|_| !secure) {
        taken.add("features", smm);
    }
    let windows = taken.spec.os == OsFamily::Windows && taken.choices.domain_type.as_deref() == Some("kvm");
    match features.find("hyperv") {
        Some(hyperv) if windows => taken.replace("features/hyperv", hyperv),
        Some(hyperv) => taken.add("features", hyperv),
        None if windows => taken.remove("features/hyperv"),
        None => {}
    }
    for extra in features.children.iter().filter(|c| !COMMON.contains(&c.name.as_str()) && c.name != "hyperv") {
        taken.add("features", extra);
    }
}

/// Timers are hardware: they stay as they are, all of them.
fn clock(domain: &Element, taken: &mut Taken) {
    let utc = el("clock").attr("offset", "utc");
    let clock = domain.find("clock").unwrap_or(&utc);
    if clock.get("offset") == Some("localtime") {
        taken.spec.clock = ClockOffset::Localtime;
    }
    taken.replace("clock", clock);
}

/// Per device as we do it, or by kinds (`<boot dev='hd'/>`): the first of each.
pub fn boot(domain: &Element, taken: &mut Taken) {
    let spec = &taken.spec;
    let mut order: Vec<(u32, Name)> = Vec::new();
    for device in domain.devices() {
        let Some(position) = device.attr_at("boot", "order").and_then(|n| n.parse().ok()) else { continue };
        let name = match device.name.as_str() {
            "disk" => device.attr_at("target", "dev").and_then(|t| super::given_name(device, "ua-disk-").or_else(|| t.parse().ok())),
            "interface" => {
                let mac = device.attr_at("mac", "address");
                taken.choices.macs.iter().find(|(_, m)| mac.is_some_and(|mac| m.eq_ignore_ascii_case(mac))).map(|(name, _)| name.clone())
            }
            _ => None,
        };
        order.extend(name.map(|name| (position, name)));
    }
    order.sort();
    let known = |name: &Name| {
        let (disks, cdroms, nics) =
            (spec.disks.iter().map(|d| &d.name), spec.cdroms.iter().map(|c| &c.name), spec.nics.iter().map(|n| &n.name));
        disks.chain(cdroms).chain(nics).any(|n| n == name)
    };
    let mut names: Vec<Name> = order.into_iter().map(|(_, name)| name).filter(known).collect();
    if names.is_empty() {
        for kind in domain.find("os").into_iter().flat_map(|os| os.all("boot")).filter_map(|b| b.get("dev")) {
            names.extend(match kind {
                "hd" => spec.disks.first().map(|d| d.name.clone()),
                "cdrom" => spec.cdroms.first().map(|c| c.name.clone()),
                "network" => spec.nics.first().map(|n| n.name.clone()),
                _ => None,
            });
        }
    }
    names.dedup();
    taken.spec.boot = names;
}

/// `pc` has no PCI Express.
pub fn is_q35(taken: &Taken) -> bool {
    taken.spec.machine == MachineFamily::Q35
}
