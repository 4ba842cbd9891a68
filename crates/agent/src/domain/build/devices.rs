//! Everything that is no disk.

use vmkeep_types::error::Error;
use vmkeep_types::vm::{AutoU32, Display, Link, Listen, Nic, NicModel, OsFamily, Video, WatchdogAction, WatchdogModel};

use super::disks::{alias, boot_order};
use super::has_kvm;
use crate::domain::tree::{Element, el};
use crate::domain::{BuildInput, serial_log};

/// More queues than this help no guest and cost interrupts.
const NIC_QUEUES_MAX: u32 = 8;

pub fn devices(input: &BuildInput<'_>) -> Result<Vec<Element>, Error> {
    let spec = &input.order.spec;
    let mut all = vec![el("controller").attr("type", "usb").attr("index", 0).attr("model", "qemu-xhci").child(alias("ua-usb"))];
    if spec.machine == vmkeep_types::vm::MachineFamily::Q35 {
        all.insert(0, el("controller").attr("type", "pci").attr("index", 0).attr("model", "pcie-root"));
    }
    for nic in &spec.nics {
        all.push(interface(input, nic)?);
    }
    all.extend(serial(input));
    if spec.agent {
        all.push(el("controller").attr("type", "virtio-serial").attr("index", 0).child(alias("ua-virtio-serial")));
        let target = el("target").attr("type", "virtio").attr("name", "org.qemu.guest_agent.0");
        all.push(el("channel").attr("type", "unix").child(target).child(alias("ua-agent")));
    }
    if let Some(display) = &spec.display {
        all.extend(screen(spec.os, display));
    } else {
        all.push(el("video").child(el("model").attr("type", "none")));
    }
    if spec.rng {
        let rng = el("rng").attr("model", "virtio").child(el("backend").attr("model", "random").text("/dev/urandom"));
        all.push(rng.child(alias("ua-rng")));
    }
    all.push(balloon(spec.memory.balloon));
    if let Some(dog) = &spec.watchdog {
        let (model, action) = (watchdog_model(dog.model), watchdog_action(dog.action));
        all.push(el("watchdog").attr("model", model).attr("action", action).child(alias("ua-watchdog")));
    }
    if spec.tpm() {
        all.push(tpm(input)?);
    }
    for share in &spec.shares {
        let mut fs = el("filesystem").attr("type", "mount").attr("accessmode", "passthrough").child(el("driver").attr("type", "virtiofs"));
        fs = fs.child(el("source").attr("dir", &share.path)).child(el("target").attr("dir", &share.name));
        all.push(fs.children(share.read_only.then(|| el("readonly"))).child(alias(&format!("ua-share-{}", share.name))));
    }
    for (n, pci) in spec.devices.pci.iter().enumerate() {
        all.push(pci_device(pci)?.child(alias(&format!("ua-pci-{n}"))));
    }
    for (n, usb) in spec.devices.usb.iter().enumerate() {
        all.push(usb_device(usb)?.child(alias(&format!("ua-usbdev-{n}"))));
    }
    Ok(all)
}

fn interface(input: &BuildInput<'_>, nic: &Nic) -> Result<Element, Error> {
    let spec = &input.order.spec;
    let attach = input.nics.get(&nic.name).ok_or_else(|| Error::internal(format!("NIC {} has no network", nic.name)))?;
    let (kind, source) = match (&attach.libvirt_network, &attach.bridge) {
        (Some(network), _) => ("network", el("source").attr("network", network)),
        (None, Some(bridge)) => ("bridge", el("source").attr("bridge", bridge)),
        (None, None) => return Err(Error::internal(format!("NIC {} is attached to nothing", nic.name))),
    };
    let model = match nic.model(spec.os) {
        NicModel::Virtio => "virtio",
        NicModel::E1000e => "e1000e",
        NicModel::Rtl8139 => "rtl8139",
    };
    let chosen = input.order.choices.macs.get(&nic.name).map(String::as_str);
    let mac = if nic.mac == "auto" { chosen } else { Some(nic.mac.as_str()) };
    let mut element = el("interface").attr("type", kind).children(mac.map(|m| el("mac").attr("address", m))).child(source);
    element = element.child(el("model").attr("type", model));
    let queues = match nic.queues {
        AutoU32::Is(n) => n,
        AutoU32::Auto => spec.cpus.max().min(NIC_QUEUES_MAX),
    };
    // Several queues need vhost or a multiqueue tap; without KVM one queue is all that pays.
    if model == "virtio" && queues > 1 && has_kvm(input.host) && input.host.vhost_net {
        element = element.child(el("driver").attr("name", "vhost").attr("queues", queues));
    }
    let mtu = match nic.mtu {
        AutoU32::Is(n) => Some(n),
        AutoU32::Auto => attach.mtu,
    };
    element = element.children(mtu.map(|n| el("mtu").attr("size", n)));
    element = element.child(el("link").attr("state", if nic.link == Link::Up { "up" } else { "down" }));
    let boot = boot_order(spec, &nic.name).map(|n| el("boot").attr("order", n));
    Ok(element.children(boot).child(alias(&format!("ua-nic-{}", nic.name))))
}

fn serial(input: &BuildInput<'_>) -> [Element; 2] {
    let logged = input.order.spec.serial.log.bytes() > 0;
    let log = || logged.then(|| el("log").attr("file", serial_log(input.run_dir, input.order).display()).attr("append", "on"));
    let target = el("target").attr("type", "isa-serial").attr("port", 0).child(el("model").attr("name", "isa-serial"));
    let serial = el("serial").attr("type", "pty").children(log()).child(target).child(alias("ua-serial"));
    let console = el("console").attr("type", "pty").children(log()).child(el("target").attr("type", "serial").attr("port", 0));
    [serial, console.child(alias("ua-serial"))]
}

fn screen(os: OsFamily, display: &Display) -> Vec<Element> {
    let listen = match display.listen {
        Listen::Socket => el("listen").attr("type", "socket"),
        Listen::Tcp => el("listen").attr("type", "address").attr("address", "0.0.0.0"),
    };
    let mut graphics = el("graphics").attr("type", "vnc");
    if display.listen == Listen::Tcp {
        graphics = graphics.attr("autoport", "yes").attr_if("passwd", display.password.as_ref());
    }
    let video = match display.video {
        Video::Virtio => "virtio",
        Video::Vga => "vga",
        Video::Qxl => "qxl",
        Video::Auto if os == OsFamily::Linux => "virtio",
        Video::Auto => "vga",
    };
    vec![
        graphics.child(listen),
        el("video").child(el("model").attr("type", video)).child(alias("ua-video")),
        el("input").attr("type", "tablet").attr("bus", "usb").child(alias("ua-tablet")),
    ]
}

fn balloon(wanted: bool) -> Element {
    if !wanted {
        return el("memballoon").attr("model", "none");
    }
    el("memballoon").attr("model", "virtio").attr("freePageReporting", "on").child(el("stats").attr("period", 10)).child(alias("ua-balloon"))
}

fn watchdog_model(model: WatchdogModel) -> &'static str {
    match model {
        WatchdogModel::I6300esb => "i6300esb",
        WatchdogModel::Itco => "itco",
    }
}

fn watchdog_action(action: WatchdogAction) -> &'static str {
    match action {
        WatchdogAction::Reset => "reset",
        WatchdogAction::Poweroff => "poweroff",
        WatchdogAction::Pause => "pause",
        WatchdogAction::None => "none",
    }
}

fn tpm(input: &BuildInput<'_>) -> Result<Element, Error> {
    if !input.host.swtpm {
        return Err(Error::refused("this host cannot emulate a TPM").hint("apt-get install swtpm swtpm-tools, then restart libvirtd"));
    }
    let backend = el("backend").attr("type", "emulator").attr("version", "2.0");
    Ok(el("tpm").attr("model", "tpm-crb").child(backend).child(alias("ua-tpm")))
}

fn pci_device(address: &str) -> Result<Element, Error> {
    let parts: Vec<&str> = address.split([':', '.']).collect();
    let [domain, bus, slot, function] = parts[..] else { return Err(Error::invalid(format!("'{address}' is not a PCI address like 0000:03:00.0"))) };
    let hex = |n: &str| format!("0x{n}");
    let from = el("address").attr("domain", hex(domain)).attr("bus", hex(bus)).attr("slot", hex(slot)).attr("function", hex(function));
    Ok(el("hostdev").attr("mode", "subsystem").attr("type", "pci").attr("managed", "yes").child(el("source").child(from)))
}

fn usb_device(id: &str) -> Result<Element, Error> {
    let (vendor, product) = id.split_once(':').ok_or_else(|| Error::invalid(format!("'{id}' is not vendor:product")))?;
    let source = el("source").child(el("vendor").attr("id", format!("0x{vendor}"))).child(el("product").attr("id", format!("0x{product}")));
    Ok(el("hostdev").attr("mode", "subsystem").attr("type", "usb").attr("managed", "yes").child(source))
}
