//! From an order to libvirt's XML.
//!
//! ```text
//!  system (memory, cpu, os, clock) ─┐
//!  disks, nics, devices ────────────┼─► place (targets, ports, frozen addresses) ─► patch (libvirt_xml) ─► XML
//!  choices (chosen once) ───────────┘
//! ```
//! Everything a guest can see is written out, so that it stays when libvirt's defaults move. What this host lacks (UEFI, a
//! TPM, a bus) is refused here, with the field and the way out, instead of by QEMU later.

mod cpu;
mod devices;
mod disks;
mod nics;
mod place;
mod system;

use vmkeep_types::error::Error;
use vmkeep_types::host::KvmState;
use vmkeep_types::name::Name;
use vmkeep_types::vm::{MachineFamily, VmSpec};

use super::tree::{Element, el};
use super::{BuildInput, Built, metadata, patch};

pub(super) use cpu::Cpu;
pub(super) use place::{BRIDGE, KEPT_BUS, NVRAM, PORT, target_index, target_key};
pub(super) use system::PARTITION;

/// The description that the order asks for.
///
/// # Errors
/// What this host cannot give (UEFI without OVMF, TPM without swtpm), or a patch that finds no place.
pub fn build(input: &BuildInput<'_>) -> Result<Built, Error> {
    let spec = &input.order.spec;
    let mut warnings = tcg_warning(input);
    warnings.extend(old_machine(input));
    let cpu = cpu::cpu(input, &mut warnings)?;
    let firmware = system::firmware(input)?;
    let mut devices = el("devices").child(el("emulator").text(&input.host.emulator));
    devices =
        devices.children(nics::nics(input)?).children(disks::disks(input, &mut warnings)?).children(devices::devices(input, &firmware)?);
    place::place(&mut devices, input);
    let mut domain = el("domain")
        .attr("type", input.host.domain_type)
        .child(el("name").text(input.name))
        .child(el("uuid").text(input.order.vm))
        .children((!spec.description.is_empty()).then(|| el("description").text(&spec.description)))
        .child(el("metadata").child(metadata::written(input, &cpu)))
        .children(system::partition(spec))
        .children(system::memory(spec))
        .child(el("vcpu").attr("placement", "static").attr("current", spec.cpus.count).text(spec.cpus.max()))
        .child(el("iothreads").text(1))
        .child(system::os(input, &firmware))
        .child(system::features(input, &firmware))
        .child(cpu.element)
        .child(system::clock(input))
        .child(el("on_poweroff").text("destroy"))
        .child(el("on_reboot").text("restart"))
        .child(el("on_crash").text("destroy"))
        .child(system::power_management())
        .child(devices);
    patch::apply(&mut domain, &spec.libvirt_xml)?;
    Ok(Built { xml: domain.write(), warnings })
}

fn tcg_warning(input: &BuildInput<'_>) -> Vec<String> {
    match &input.host.kvm {
        KvmState::Usable => Vec::new(),
        KvmState::Unusable { why } => vec![format!("runs without hardware virtualisation (TCG), many times slower: {why}")],
    }
}

/// The version is kept for ever, and QEMU drops the oldest ones.
fn old_machine(input: &BuildInput<'_>) -> Option<String> {
    let machine = input.order.choices.machine.as_deref().filter(|machine| input.host.deprecated_machines.contains(*machine))?;
    let name = &input.order.spec.name;
    Some(format!(
        "its machine {machine} is deprecated: a later QEMU will not start it; 'vmkeep vm set {name} --machine latest' takes the newest from its next cold start on"
    ))
}

/// What was chosen for another kind of machine means nothing on this one.
fn same_machine(input: &BuildInput<'_>) -> bool {
    input.order.choices.machine.as_deref().is_none_or(|m| family(m) == Some(input.order.spec.machine))
}

/// `pc-q35-10.0` is q35, `pc-i440fx-7.2` and `pc` are pc.
pub(super) fn family(machine: &str) -> Option<MachineFamily> {
    match machine {
        "q35" => Some(MachineFamily::Q35),
        "pc" => Some(MachineFamily::Pc),
        m if m.starts_with("pc-q35-") => Some(MachineFamily::Q35),
        m if m.starts_with("pc-i440fx-") => Some(MachineFamily::Pc),
        _ => None,
    }
}

/// Kinds of devices begin apart in the default boot order, so that a new disk does not move the NICs.
const BOOT_CDROMS: usize = 100;
const BOOT_NICS: usize = 200;

/// Where a device stands in the boot order, from 1; None = not at all.
fn boot_order(spec: &VmSpec, name: &Name) -> Option<Element> {
    // The firmware goes on with the others when there is nothing to boot.
    let first = spec.boots_once();
    if first == Some(name) {
        return Some(el("boot").attr("order", 1));
    }
    let position = if spec.boot.is_empty() {
        let disk = spec.disks.iter().position(|d| d.name == *name);
        let cdrom = || spec.cdroms.iter().position(|c| c.name == *name).map(|n| BOOT_CDROMS + n);
        let nic = || spec.nics.iter().position(|n| n.name == *name).map(|n| BOOT_NICS + n);
        disk.or_else(cdrom).or_else(nic)
    } else {
        spec.boot.iter().position(|n| n == name)
    };
    position.map(|n| el("boot").attr("order", n + 1 + usize::from(first.is_some())))
}

fn alias(name: &str) -> Element {
    el("alias").attr("name", name)
}
