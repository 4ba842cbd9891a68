//! The machine around the devices: memory, firmware, features, clock.

use vmkeep_types::error::Error;
use vmkeep_types::image::ImageFacts;
use vmkeep_types::record::FirmwareChoice;
use vmkeep_types::vm::{ClockOffset, Firmware, MachineFamily, OsFamily, VmSpec};

use super::{NVRAM, family, same_machine};
use crate::domain::profile::Loader;
use crate::domain::tree::{self, Element, el};
use crate::domain::{BuildInput, nvram_path};

/// `<memory>` is what the balloon can grow to, `<currentMemory>` what the guest gets.
pub fn memory(spec: &VmSpec) -> Vec<Element> {
    let kib = |name: &str, kib: u64| el(name).attr("unit", "KiB").text(kib);
    let mut elements = vec![kib("memory", spec.memory.max().kib()), kib("currentMemory", spec.memory.size.kib())];
    if spec.memory.hugepages || !spec.shares.is_empty() {
        let mut backing = el("memoryBacking").children(spec.memory.hugepages.then(|| el("hugepages")));
        if !spec.shares.is_empty() {
            // virtiofsd maps the guest's memory.
            backing = backing.child(el("source").attr("type", "memfd")).child(el("access").attr("mode", "shared"));
        }
        elements.push(backing);
    }
    elements
}

/// What vmkeep-fenced kills when the cluster no longer hears of this host: highly available VMs, and no others.
pub const PARTITION: &str = "/machine/vmkeepha";

/// systemd makes a slice of it, `machine-vmkeepha.slice`; a VM that becomes highly available is in it after its next cold start.
pub fn partition(spec: &VmSpec) -> Option<Element> {
    spec.ha.is_some().then(|| el("resource").child(el("partition").text(PARTITION)))
}

/// The firmware that was chosen once, as long as it is what the wish asks for.
pub fn firmware(input: &BuildInput<'_>) -> Result<FirmwareChoice, Error> {
    let spec = &input.order.spec;
    if let Some(chosen) = input.order.choices.firmware.as_ref().filter(|c| fits(c, spec)) {
        return Ok(chosen.clone());
    }
    let wanted = match spec.firmware {
        Firmware::Auto if spec.secure_boot == Some(true) => Firmware::Uefi,
        Firmware::Auto => of_image(input).unwrap_or(Firmware::Uefi),
        explicit => explicit,
    };
    if wanted == Firmware::Bios {
        return Ok(FirmwareChoice::Bios);
    }
    let secure_boot = spec.secure_boot.unwrap_or(spec.os == OsFamily::Windows && spec.machine == MachineFamily::Q35);
    let loader = if secure_boot { &input.host.secure_boot } else { &input.host.uefi };
    let Loader { code, template, format } = loader.clone().ok_or_else(|| missing(secure_boot))?;
    Ok(FirmwareChoice::Uefi { loader: code, loader_format: format, template, secure_boot })
}

fn fits(chosen: &FirmwareChoice, spec: &VmSpec) -> bool {
    match chosen {
        FirmwareChoice::Bios => spec.firmware != Firmware::Uefi && spec.secure_boot != Some(true),
        FirmwareChoice::Uefi { secure_boot, .. } => {
            spec.firmware != Firmware::Bios && spec.secure_boot.is_none_or(|wish| wish == *secure_boot)
        }
    }
}

/// What the image of the first disk that came from one boots with.
fn of_image(input: &BuildInput<'_>) -> Option<Firmware> {
    let order = input.order;
    let facts =
        |disk: &vmkeep_types::vm::Disk| -> Option<&ImageFacts> { order.images.get(&order.volumes.get(&disk.name)?.image?)?.facts.as_ref() };
    order.spec.disks.iter().find_map(facts).map(|f| f.firmware).filter(|f| *f != Firmware::Auto)
}

fn missing(secure_boot: bool) -> Error {
    if secure_boot {
        return Error::refused("secure_boot: this host has no UEFI firmware with enrolled Secure Boot keys")
            .hint("apt-get install ovmf, or set secure_boot: false");
    }
    Error::refused("firmware: this host has no UEFI firmware for VMs").hint("apt-get install ovmf, or set firmware: bios")
}

/// Boot order stands at the devices. The firmware is always written in full: left to libvirt, plain `efi` may come with Secure
/// Boot and enrolled keys, and a guest that is not signed does not boot.
pub fn os(input: &BuildInput<'_>, firmware: &FirmwareChoice) -> Element {
    let choices = &input.order.choices;
    let plain = match input.order.spec.machine {
        MachineFamily::Q35 => "q35",
        MachineFamily::Pc => "pc",
    };
    let machine = choices.machine.as_deref().filter(|_| same_machine(input)).map_or(plain, |chosen| newest(input, chosen));
    let os = el("os").child(el("type").attr("arch", "x86_64").attr("machine", machine).text("hvm"));
    let FirmwareChoice::Uefi { loader, loader_format, template, secure_boot } = firmware else { return os };
    let qcow2 = (loader_format != "raw").then_some(loader_format);
    let code = el("loader").attr("readonly", "yes").attr("secure", if *secure_boot { "yes" } else { "no" }).attr("type", "pflash");
    let template = (!template.is_empty()).then_some(template);
    let variables = || el("nvram").attr_if("template", template).attr_if("format", qcow2).text(nvram_path(input.order.vm));
    let kept = choices.addresses.get(NVRAM).and_then(|xml| tree::parse(&xml).ok());
    os.child(code.attr_if("format", qcow2).text(loader)).child(kept.unwrap_or_else(variables))
}

/// A kind without a version among the choices asks for the newest of it; left to libvirt it would mean the version that is there.
fn newest<'a>(input: &'a BuildInput<'_>, chosen: &'a str) -> &'a str {
    let versions = &input.host.newest_machines;
    let of_its_kind = || versions.iter().find(|version| version.as_str() != chosen && family(version) == family(chosen));
    if matches!(chosen, "q35" | "pc") { of_its_kind().map_or(chosen, String::as_str) } else { chosen }
}

pub fn features(input: &BuildInput<'_>, firmware: &FirmwareChoice) -> Element {
    let spec = &input.order.spec;
    let mut features = el("features").child(el("acpi")).child(el("apic"));
    if spec.os == OsFamily::Windows && input.host.has_kvm() {
        features = features.children(hyperv(input));
    }
    features = features.child(el("vmport").attr("state", "off"));
    if matches!(firmware, FirmwareChoice::Uefi { secure_boot: true, .. }) {
        features = features.child(el("smm").attr("state", "on"));
    }
    features
}

/// In libvirt's order; each needs the ones before it.
const ENLIGHTENMENTS: [&str; 11] =
    ["relaxed", "vapic", "spinlocks", "vpindex", "runtime", "synic", "stimer", "reset", "frequencies", "tlbflush", "ipi"];

fn hyperv(input: &BuildInput<'_>) -> Option<Element> {
    // A libvirt that does not tell (before 8.10) knows all of these.
    let known = |name: &str| input.host.hyperv.is_empty() || input.host.hyperv.contains(name);
    let on = ENLIGHTENMENTS.into_iter().filter(|name| known(name)).map(|name| {
        let on = el(name).attr("state", "on");
        if name == "spinlocks" { on.attr("retries", 8191) } else { on }
    });
    let list = el("hyperv").attr("mode", "custom").children(on);
    (!list.children.is_empty()).then_some(list)
}

/// Guests keep time by kvmclock, Hyper-V's clock or the TSC; lost RTC and PIT ticks are replayed, and the HPET only costs exits.
pub fn clock(input: &BuildInput<'_>) -> Element {
    let spec = &input.order.spec;
    let offset = if spec.clock == ClockOffset::Localtime { "localtime" } else { "utc" };
    let timer = |name: &str| el("timer").attr("name", name);
    let mut clock = el("clock")
        .attr("offset", offset)
        .child(timer("rtc").attr("tickpolicy", "catchup"))
        .child(timer("pit").attr("tickpolicy", "delay"));
    if spec.os != OsFamily::Other {
        clock = clock.child(timer("hpet").attr("present", "no"));
    }
    if input.host.has_kvm() {
        clock = clock.child(match spec.os {
            OsFamily::Windows => timer("hypervclock").attr("present", "yes"),
            OsFamily::Linux | OsFamily::Other => timer("kvmclock").attr("present", "yes"),
        });
    }
    clock
}

/// A guest that suspends itself looks dead to everybody else.
pub fn power_management() -> Element {
    el("pm").child(el("suspend-to-mem").attr("enabled", "no")).child(el("suspend-to-disk").attr("enabled", "no"))
}
