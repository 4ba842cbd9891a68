//! From an order to libvirt's XML.

mod devices;
mod disks;

use vmkeep_types::error::Error;
use vmkeep_types::record::FirmwareChoice;
use vmkeep_types::vm::{ClockOffset, Firmware, MachineFamily, OsFamily, Switch, VmSpec};

use super::profile::{HostProfile, Loader};
use super::tree::{self, Element, el};
use super::{BuildInput, Built, metadata, patch};

/// Slots for devices that are plugged in later.
const SPARE_PORTS: usize = 4;

/// The description that the order asks for.
///
/// # Errors
/// What this host cannot give (UEFI without OVMF, TPM without swtpm), or a patch that finds no place.
pub fn build(input: &BuildInput<'_>) -> Result<Built, Error> {
    let (order, spec) = (input.order, &input.order.spec);
    let mut warnings = Vec::new();
    if input.host.domain_type != "kvm"
        && let vmkeep_types::host::KvmState::Unusable { why } = &input.host.kvm
    {
        warnings.push(format!("runs without hardware virtualisation (TCG): {why}"));
    }
    let mut domain = el("domain")
        .attr("type", domain_type(input))
        .child(el("name").text(&spec.name))
        .child(el("uuid").text(order.vm))
        .children((!spec.description.is_empty()).then(|| el("description").text(&spec.description)))
        .child(el("metadata").child(metadata::element(order)))
        .children(memory(spec))
        .child(el("vcpu").attr("placement", "static").attr("current", spec.cpus.count).text(spec.cpus.max()))
        .child(el("iothreads").text(1))
        .child(os(input)?)
        .child(features(input))
        .child(cpu(input)?)
        .child(clock(spec))
        .child(el("on_poweroff").text("destroy"))
        .child(el("on_reboot").text("restart"))
        .child(el("on_crash").text("destroy"));
    let mut all = el("devices").child(el("emulator").text(&input.host.emulator));
    all = all.children(disks::disks(input, &mut warnings)?);
    all = all.children(devices::devices(input)?);
    place(&mut all, input);
    domain = domain.child(all);
    patch::apply(&mut domain, &spec.libvirt_xml)?;
    Ok(Built { xml: domain.write(), warnings })
}

fn domain_type(input: &BuildInput<'_>) -> String {
    input.order.choices.domain_type.clone().filter(|t| t == "qemu" || input.host.domain_type == "kvm").unwrap_or_else(|| input.host.domain_type.into())
}

fn memory(spec: &VmSpec) -> Vec<Element> {
    let kib = |name: &str, kib: u64| el(name).attr("unit", "KiB").text(kib);
    let mut elements = vec![kib("memory", spec.memory.max().kib()), kib("currentMemory", spec.memory.size.kib())];
    if spec.memory.hugepages || !spec.shares.is_empty() {
        let mut backing = el("memoryBacking");
        if spec.memory.hugepages {
            backing = backing.child(el("hugepages"));
        }
        if !spec.shares.is_empty() {
            backing = backing.child(el("source").attr("type", "memfd")).child(el("access").attr("mode", "shared"));
        }
        elements.push(backing);
    }
    elements
}

/// Boot order stands at the devices. The firmware is always written in full: left to libvirt, `uefi` may come with Secure Boot and enrolled keys.
fn os(input: &BuildInput<'_>) -> Result<Element, Error> {
    let machine = input.order.choices.machine.clone().unwrap_or_else(|| {
        match input.order.spec.machine {
            MachineFamily::Q35 => "q35",
            MachineFamily::Pc => "pc",
        }
        .into()
    });
    let mut os = el("os").child(el("type").attr("arch", "x86_64").attr("machine", machine).text("hvm"));
    if let FirmwareChoice::Uefi { loader, template, secure_boot, .. } = firmware(input)? {
        let secure = if secure_boot { "yes" } else { "no" };
        let nvram = format!("/var/lib/libvirt/qemu/nvram/{}_VARS.fd", input.order.vm);
        os = os
            .child(el("loader").attr("readonly", "yes").attr("secure", secure).attr("type", "pflash").text(loader))
            .child(el("nvram").attr("template", template).text(nvram));
    }
    Ok(os)
}

fn firmware(input: &BuildInput<'_>) -> Result<FirmwareChoice, Error> {
    let spec = &input.order.spec;
    if let Some(chosen) = &input.order.choices.firmware {
        return Ok(chosen.clone());
    }
    let of_image = || input.order.images.values().filter_map(|i| i.facts.as_ref()).map(|f| f.firmware).find(|f| *f != Firmware::Auto);
    let wanted = match spec.firmware {
        Firmware::Auto => of_image().unwrap_or(Firmware::Uefi),
        explicit => explicit,
    };
    if wanted == Firmware::Bios {
        return Ok(FirmwareChoice::Bios);
    }
    let loader = if spec.secure_boot() { &input.host.secure_boot } else { &input.host.uefi };
    let Loader { code, template } = loader.clone().ok_or_else(no_uefi)?;
    Ok(FirmwareChoice::Uefi { loader: code, loader_format: "raw".into(), template, secure_boot: spec.secure_boot() })
}

fn no_uefi() -> Error {
    Error::refused("this host has no UEFI firmware for VMs").hint("apt-get install ovmf, or set firmware: bios")
}

fn features(input: &BuildInput<'_>) -> Element {
    let spec = &input.order.spec;
    let mut features = el("features").child(el("acpi")).child(el("apic"));
    if spec.os == OsFamily::Windows {
        let on = |name: &str| el(name).attr("state", "on");
        let mut hyperv = el("hyperv").attr("mode", "custom").children(["relaxed", "vapic", "vpindex", "runtime", "synic", "stimer", "frequencies"].map(on));
        hyperv = hyperv.child(on("spinlocks").attr("retries", 8191));
        if input.host.domain_type == "kvm" {
            features = features.child(hyperv);
        }
    }
    if spec.secure_boot() {
        features = features.child(el("smm").attr("state", "on"));
    }
    features
}

fn cpu(input: &BuildInput<'_>) -> Result<Element, Error> {
    let (spec, kvm) = (&input.order.spec, input.host.domain_type == "kvm");
    let stored = input.order.choices.cpu_xml.as_deref().filter(|_| spec.cpu.model == "auto").map(tree::parse).transpose()?;
    let mut cpu = stored.unwrap_or_else(|| match spec.cpu.model.as_str() {
        "auto" | "cluster" if kvm => el("cpu").attr("mode", "host-model").attr("check", "partial"),
        "host" if kvm => el("cpu").attr("mode", "host-passthrough").attr("check", "none").attr("migratable", "on"),
        "auto" | "cluster" | "host" | "max" => el("cpu").attr("mode", "maximum").attr("check", "none").attr("migratable", "on"),
        name => el("cpu").attr("mode", "custom").attr("match", "exact").attr("check", "partial").child(el("model").attr("fallback", "forbid").text(name)),
    });
    cpu.children.retain(|c| c.name != "topology");
    cpu.children.push(topology(spec));
    for (feature, switch) in &spec.cpu.features {
        let policy = if *switch == Switch::On { "require" } else { "disable" };
        cpu.children.retain(|c| !(c.name == "feature" && c.get("name") == Some(feature)));
        cpu.children.push(el("feature").attr("policy", policy).attr("name", feature));
    }
    Ok(cpu)
}

/// One socket unless told otherwise: licences and NUMA-aware guests count sockets.
fn topology(spec: &VmSpec) -> Element {
    let (threads, sockets) = (spec.cpus.threads.unwrap_or(1), spec.cpus.sockets.unwrap_or(1));
    let cores = spec.cpus.cores.unwrap_or_else(|| spec.cpus.max() / (threads * sockets).max(1));
    el("topology").attr("sockets", sockets).attr("dies", 1).attr("cores", cores).attr("threads", threads)
}

fn clock(spec: &VmSpec) -> Element {
    let offset = if spec.clock == ClockOffset::Localtime { "localtime" } else { "utc" };
    let timer = |name: &str| el("timer").attr("name", name);
    let mut clock = el("clock")
        .attr("offset", offset)
        .child(timer("rtc").attr("tickpolicy", "catchup"))
        .child(timer("pit").attr("tickpolicy", "delay"))
        .child(timer("hpet").attr("present", "no"));
    if spec.os == OsFamily::Windows {
        clock = clock.child(timer("hypervclock").attr("present", "yes"));
    }
    clock
}

/// Root ports for what needs one and some spare, and the addresses that were chosen before.
fn place(devices: &mut Element, input: &BuildInput<'_>) {
    if input.order.spec.machine == MachineFamily::Q35 {
        let on_ports = devices.children.iter().filter(|d| needs_port(d)).count();
        for n in 1..=on_ports + SPARE_PORTS {
            let port = el("controller").attr("type", "pci").attr("index", n).attr("model", "pcie-root-port");
            devices.children.push(port.child(el("alias").attr("name", format!("ua-port-{n}"))));
        }
    }
    for device in &mut devices.children {
        let frozen = device.alias().and_then(|alias| input.order.choices.addresses.get(alias));
        if let Some(address) = frozen.and_then(|xml| tree::parse(xml).ok()) {
            device.children.retain(|c| c.name != "address");
            device.children.push(address);
        }
    }
}

fn needs_port(device: &Element) -> bool {
    match device.name.as_str() {
        "disk" => matches!(device.attr_at("target", "bus"), Some("virtio" | "nvme")),
        "controller" => matches!(device.get("type"), Some("scsi" | "usb" | "virtio-serial" | "nvme")),
        "interface" | "rng" | "memballoon" | "filesystem" | "hostdev" => true,
        _ => false,
    }
}

/// Whether the host offers hardware virtualisation; for devices.
pub(super) fn has_kvm(host: &HostProfile) -> bool {
    host.domain_type == "kvm"
}
