//! Everything that is neither disk nor NIC.

use vmkeep_types::error::Error;
use vmkeep_types::record::FirmwareChoice;
use vmkeep_types::vm::{Display, GuestWatchdog, Listen, MachineFamily, Memory, OsFamily, Share, Video, WatchdogAction, WatchdogModel};

use super::alias;
use crate::domain::tree::{Element, el};
use crate::domain::{BuildInput, serial_log};

/// What `vmkeep top` shows of a guest's memory is at most this old.
const BALLOON_STATS_SECONDS: u32 = 10;

pub fn devices(input: &BuildInput<'_>, firmware: &FirmwareChoice) -> Result<Vec<Element>, Error> {
    let spec = &input.order.spec;
    let mut all = vec![usb_controller(spec.machine), serial(input)];
    if spec.agent {
        all.extend(agent());
    }
    all.extend(screen(input)?);
    all.extend(spec.rng.then(rng));
    all.push(balloon(&spec.memory));
    all.extend(spec.watchdog.as_ref().map(watchdog));
    all.extend((spec.os == OsFamily::Linux).then(|| el("panic").attr("model", "isa").child(alias("ua-panic"))));
    if spec.tpm() {
        all.push(tpm(input, firmware)?);
    }
    for share in &spec.shares {
        all.push(self::share(input, share)?);
    }
    for pci in &spec.devices.pci {
        all.push(pci_device(pci)?);
    }
    for usb in &spec.devices.usb {
        all.push(usb_device(usb)?);
    }
    Ok(all)
}

/// `pc` is for guests that know nothing newer.
fn usb_controller(machine: MachineFamily) -> Element {
    let usb = el("controller").attr("type", "usb").attr("index", 0);
    match machine {
        MachineFamily::Q35 => usb.attr("model", "qemu-xhci").attr("ports", 15).child(alias("ua-usb")),
        MachineFamily::Pc => usb.attr("model", "piix3-uhci").child(alias("ua-usb")),
    }
}

/// libvirt makes the console of it.
fn serial(input: &BuildInput<'_>) -> Element {
    let logged = input.order.spec.serial.log.bytes() > 0;
    let log = logged.then(|| el("log").attr("file", serial_log(input.run_dir, input.order).display()).attr("append", "on"));
    let target = el("target").attr("type", "isa-serial").attr("port", 0).child(el("model").attr("name", "isa-serial"));
    el("serial").attr("type", "pty").children(log).child(target).child(alias("ua-serial"))
}

fn agent() -> [Element; 2] {
    let controller = el("controller").attr("type", "virtio-serial").attr("index", 0).child(alias("ua-virtio-serial"));
    let target = el("target").attr("type", "virtio").attr("name", "org.qemu.guest_agent.0");
    [controller, el("channel").attr("type", "unix").child(target).child(alias("ua-agent"))]
}

fn screen(input: &BuildInput<'_>) -> Result<Vec<Element>, Error> {
    let spec = &input.order.spec;
    let Some(display) = &spec.display else {
        return Ok(vec![el("video").child(el("model").attr("type", "none"))]);
    };
    let (video, known) = (video_model(spec.os, display.video), &input.host.video_models);
    if !known.is_empty() && !known.contains(video) {
        let message = format!("display.video: QEMU on this host has no {video} card");
        return Err(Error::refused(message).hint("leave it at auto; qxl needs QEMU's SPICE package"));
    }
    let video = el("video").child(el("model").attr("type", video)).child(alias("ua-video"));
    let tablet = el("input").attr("type", "tablet").attr("bus", "usb").child(alias("ua-tablet"));
    Ok(vec![graphics(display), video, tablet])
}

/// The socket lies in the domain's own folder of libvirt, where AppArmor expects it, and belongs to QEMU's user.
fn graphics(display: &Display) -> Element {
    let vnc = el("graphics").attr("type", "vnc");
    match display.listen {
        Listen::Socket => vnc.child(el("listen").attr("type", "socket")),
        Listen::Tcp => {
            let listen = el("listen").attr("type", "address").attr("address", "0.0.0.0");
            vnc.attr("port", -1).attr("autoport", "yes").attr_if("passwd", display.password.as_ref()).child(listen)
        }
    }
}

fn video_model(os: OsFamily, video: Video) -> &'static str {
    match (video, os) {
        (Video::Virtio, _) | (Video::Auto, OsFamily::Linux) => "virtio",
        (Video::Vga, _) | (Video::Auto, OsFamily::Windows | OsFamily::Other) => "vga",
        (Video::Qxl, _) => "qxl",
    }
}

fn rng() -> Element {
    el("rng").attr("model", "virtio").child(el("backend").attr("model", "random").text("/dev/urandom")).child(alias("ua-rng"))
}

/// Free page reporting gives back what the guest does not use; the balloon deflating by itself would break `memory.size`.
fn balloon(memory: &Memory) -> Element {
    if !memory.balloon {
        return el("memballoon").attr("model", "none");
    }
    let stats = el("stats").attr("period", BALLOON_STATS_SECONDS);
    el("memballoon").attr("model", "virtio").attr("freePageReporting", "on").child(stats).child(alias("ua-balloon"))
}

fn watchdog(dog: &GuestWatchdog) -> Element {
    let model = match dog.model {
        WatchdogModel::I6300esb => "i6300esb",
        WatchdogModel::Itco => "itco",
    };
    let action = match dog.action {
        WatchdogAction::Reset => "reset",
        WatchdogAction::Poweroff => "poweroff",
        WatchdogAction::Pause => "pause",
        WatchdogAction::None => "none",
    };
    el("watchdog").attr("model", model).attr("action", action).child(alias("ua-watchdog"))
}

fn tpm(input: &BuildInput<'_>, firmware: &FirmwareChoice) -> Result<Element, Error> {
    if !input.host.swtpm {
        let hint = "apt-get install swtpm swtpm-tools and restart libvirtd, or set tpm: false";
        return Err(Error::refused("tpm: this host cannot emulate one").hint(hint));
    }
    // Only UEFI knows the newer register interface.
    let model = match firmware {
        FirmwareChoice::Uefi { .. } => "tpm-crb",
        FirmwareChoice::Bios => "tpm-tis",
    };
    let backend = el("backend").attr("type", "emulator").attr("version", "2.0");
    Ok(el("tpm").attr("model", model).child(backend).child(alias("ua-tpm")))
}

fn share(input: &BuildInput<'_>, share: &Share) -> Result<Element, Error> {
    if !input.host.virtiofs {
        let hint = "apt-get install virtiofsd, or take the share out";
        return Err(Error::refused(format!("shares[{}]: QEMU and libvirt on this host have no virtiofs", share.name)).hint(hint));
    }
    let fs = el("filesystem").attr("type", "mount").attr("accessmode", "passthrough").child(el("driver").attr("type", "virtiofs"));
    let fs = fs.child(el("source").attr("dir", &share.path)).child(el("target").attr("dir", &share.name));
    Ok(fs.children(share.read_only.then(|| el("readonly"))).child(alias(&format!("ua-share-{}", share.name))))
}

/// Aliases carry the device's own address: entries of a list have no names, and their order may change.
fn pci_device(address: &str) -> Result<Element, Error> {
    let address = address.to_ascii_lowercase();
    let parts: Vec<&str> = address.split([':', '.']).collect();
    let [domain, bus, slot, function] = parts[..] else {
        return Err(Error::invalid(format!("devices.pci: '{address}' is not a PCI address like 0000:03:00.0")));
    };
    let hex = |n: &str| format!("0x{n}");
    let from = el("address").attr("domain", hex(domain)).attr("bus", hex(bus)).attr("slot", hex(slot)).attr("function", hex(function));
    let hostdev = el("hostdev").attr("mode", "subsystem").attr("type", "pci").attr("managed", "yes");
    Ok(hostdev.child(el("source").child(from)).child(alias(&format!("ua-pci-{}", parts.join("-")))))
}

fn usb_device(id: &str) -> Result<Element, Error> {
    let id = id.to_ascii_lowercase();
    let (vendor, product) =
        id.split_once(':').ok_or_else(|| Error::invalid(format!("devices.usb: '{id}' is not vendor:product like 1d6b:0002")))?;
    let source = el("source").child(el("vendor").attr("id", format!("0x{vendor}"))).child(el("product").attr("id", format!("0x{product}")));
    let hostdev = el("hostdev").attr("mode", "subsystem").attr("type", "usb").attr("managed", "yes");
    Ok(hostdev.child(source).child(alias(&format!("ua-usb-{vendor}-{product}"))))
}
