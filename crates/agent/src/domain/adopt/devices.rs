//! All other devices of a domain. vmkeep gives every VM a serial port, a USB controller and more; those that the domain does
//! not have are taken out again by patches, those that vmkeep does not know are put in.

use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Display, GuestWatchdog, MachineFamily, OsFamily, Share, Video, WatchdogAction, WatchdogModel};

use super::Taken;
use super::keep::plain;
use super::system::is_q35;
use crate::domain::build::{BRIDGE, PORT};
use crate::domain::tree::Element;

pub fn take(domain: &Element, taken: &mut Taken) {
    let mut rest = Rest(domain.devices().collect());
    rest.drop(|d| matches!(d.name.as_str(), "emulator" | "disk" | "interface" | "hub"));
    rest.drop(|d| d.name == "controller" && matches!(d.get("type"), Some("scsi" | "sata" | "ide" | "fdc")));
    rest.drop(|d| d.name == "input" && d.get("bus") == Some("ps2"));
    rest.drop(|d| d.name == "audio" && d.get("type") == Some("none"));
    rest.drop(|d| d.name == "console" && d.attr_at("target", "type").is_none_or(|t| t == "serial"));
    pci_controllers(&mut rest, taken);
    usb(&mut rest, taken);
    serial(&mut rest, taken);
    agent(&mut rest, taken);
    screen(&mut rest, taken);
    small(&mut rest, taken);
    tpm(&mut rest, taken);
    shares(&mut rest, taken);
    host_devices(&mut rest, taken);
    for device in rest.0 {
        let model = device.get("model").or_else(|| device.get("type")).unwrap_or_default();
        taken.warn(format!("{} {model} is kept as it is by libvirt_xml", device.name));
        taken.keep(device);
    }
}

/// Devices that nobody has taken yet.
struct Rest<'a>(Vec<&'a Element>);

impl<'a> Rest<'a> {
    fn drop(&mut self, unwanted: impl Fn(&Element) -> bool) {
        self.0.retain(|d| !unwanted(d));
    }

    fn take(&mut self, wanted: impl Fn(&Element) -> bool) -> Option<&'a Element> {
        let at = self.0.iter().position(|d| wanted(d))?;
        Some(self.0.remove(at))
    }
}

/// Root ports and the bridge keep number and place; other bridges are kept as they are.
fn pci_controllers(rest: &mut Rest<'_>, taken: &mut Taken) {
    rest.drop(|d| d.name == "controller" && matches!(d.get("model"), Some("pcie-root" | "pci-root")));
    let ours = |d: &Element| match (d.get("model"), d.attr_at("model", "name")) {
        (Some("pcie-root-port"), None | Some("pcie-root-port")) => Some(PORT),
        (Some("pcie-to-pci-bridge"), _) => Some(BRIDGE),
        _ => None,
    };
    while let Some(port) = rest.take(|d| d.name == "controller" && d.get("type") == Some("pci") && ours(d).is_some()) {
        if let (Some(prefix), Some(index)) = (ours(port), port.get("index").and_then(|i| i.parse::<u32>().ok())) {
            taken.stays(port, &format!("{prefix}{index}"));
        }
    }
}

fn usb(rest: &mut Rest<'_>, taken: &mut Taken) {
    let model = if is_q35(taken) { "qemu-xhci" } else { "piix3-uhci" };
    let is_usb = |d: &Element| d.name == "controller" && d.get("type") == Some("usb");
    match rest.take(|d| is_usb(d) && d.get("index") == Some("0") && d.get("model") == Some(model)) {
        Some(controller) => {
            taken.stays(controller, "ua-usb");
            if is_q35(taken) {
                match controller.get("ports") {
                    Some("15") => {}
                    Some(ports) => taken.set("devices/controller[@alias=ua-usb]/@ports", ports),
                    None => taken.remove("devices/controller[@alias=ua-usb]/@ports"),
                }
            }
        }
        None => taken.remove("devices/controller[@alias=ua-usb]"),
    }
}

fn serial(rest: &mut Rest<'_>, taken: &mut Taken) {
    let first = |d: &Element| {
        let isa = d.attr_at("target", "type").is_none_or(|t| t == "isa-serial");
        d.name == "serial" && d.get("type") == Some("pty") && isa && d.attr_at("target", "port").is_none_or(|p| p == "0")
    };
    match rest.take(first) {
        Some(serial) => {
            if serial.find("log").is_none() {
                taken.spec.serial.log = ByteCount::ZERO;
            }
        }
        None => taken.remove("devices/serial"),
    }
}

fn agent(rest: &mut Rest<'_>, taken: &mut Taken) {
    let channel = rest
        .take(|d| d.name == "channel" && d.attr_at("target", "name") == Some("org.qemu.guest_agent.0") && d.get("type") == Some("unix"));
    taken.spec.agent = channel.is_some();
    let Some(channel) = channel else { return };
    taken.stays(channel, "ua-agent");
    if let Some(controller) = rest.take(|d| d.get("type") == Some("virtio-serial") && d.get("index") == Some("0")) {
        taken.stays(controller, "ua-virtio-serial");
        for key in ["ports", "vectors"] {
            if let Some(value) = controller.get(key) {
                taken.set(&format!("devices/controller[@alias=ua-virtio-serial]/@{key}"), value);
            }
        }
    }
}

fn screen(rest: &mut Rest<'_>, taken: &mut Taken) {
    let vnc = rest.take(|d| d.name == "graphics" && d.get("type") == Some("vnc"));
    let video = rest.take(|d| d.name == "video");
    let Some(vnc) = vnc else {
        taken.spec.display = None;
        match video {
            Some(video) if video.attr_at("model", "type") == Some("none") => {}
            Some(video) => {
                taken.remove("devices/video");
                taken.keep(video);
            }
            None => taken.remove("devices/video"),
        }
        tablet(rest, taken, false);
        return;
    };
    let mut display = Display::default();
    if let Some(video) = video {
        display.video = video_of(video, taken);
        taken.stays(video, "ua-video");
    } else {
        taken.remove("devices/video");
    }
    taken.spec.display = Some(display);
    if vnc.find("listen").is_none_or(|l| l.get("type") != Some("socket")) {
        taken.replace("devices/graphics", vnc);
        taken.warn(
            "VNC stays where it listens by libvirt_xml; libvirt does not tell its password, so a password goes with the first change",
        );
    }
    tablet(rest, taken, true);
}

fn tablet(rest: &mut Rest<'_>, taken: &mut Taken, is_ours: bool) {
    let is_tablet = |d: &Element| d.name == "input" && d.get("type") == Some("tablet") && d.get("bus") == Some("usb");
    if !is_ours {
        return;
    }
    match rest.take(is_tablet) {
        Some(tablet) => taken.stays(tablet, "ua-tablet"),
        None => taken.remove("devices/input"),
    }
}

fn video_of(video: &Element, taken: &mut Taken) -> Video {
    let Some(model) = video.find("model") else { return Video::Auto };
    let known = match model.get("type") {
        Some("virtio") => Some(Video::Virtio),
        Some("vga") => Some(Video::Vga),
        _ => None,
    };
    let usual = |(key, value): &(String, String)| match key.as_str() {
        "type" | "heads" | "primary" => true,
        "vram" => value == "16384",
        _ => false,
    };
    if known.is_none() || !model.attributes.iter().all(usual) || !model.children.is_empty() {
        taken.replace("devices/video[@alias=ua-video]/model", model);
    }
    known.unwrap_or(Video::Vga)
}

/// Balloon, rng, watchdog, panic device.
fn small(rest: &mut Rest<'_>, taken: &mut Taken) {
    let is = |name: &'static str, model: &'static str| move |d: &Element| d.name == name && d.get("model") == Some(model);
    match rest.take(is("memballoon", "virtio")) {
        Some(balloon) => taken.stays(balloon, "ua-balloon"),
        None => {
            taken.spec.memory.balloon = false;
            if rest.take(is("memballoon", "none")).is_none() {
                taken.remove("devices/memballoon");
            }
        }
    }
    let simple = |d: &Element| {
        let backend = d.find("backend");
        let host = backend.is_some_and(|b| b.get("model") == Some("random") && matches!(b.text.trim(), "/dev/urandom" | ""));
        is("rng", "virtio")(d) && host && d.find("rate").is_none()
    };
    let rng = rest.take(simple);
    taken.spec.rng = rng.is_some();
    rng.into_iter().for_each(|rng| taken.stays(rng, "ua-rng"));
    watchdog(rest, taken);
    if taken.spec.os == OsFamily::Linux && rest.take(is("panic", "isa")).is_none() {
        taken.remove("devices/panic");
    }
}

fn watchdog(rest: &mut Rest<'_>, taken: &mut Taken) {
    let action = |d: &Element| match d.get("action").unwrap_or("reset") {
        "reset" => Some(WatchdogAction::Reset),
        "poweroff" => Some(WatchdogAction::Poweroff),
        "pause" => Some(WatchdogAction::Pause),
        "none" => Some(WatchdogAction::None),
        _ => None,
    };
    let is = |model: &'static str| move |d: &Element| d.name == "watchdog" && d.get("model") == Some(model) && action(d).is_some();
    if let Some(dog) = rest.take(is("i6300esb")) {
        taken.spec.watchdog = action(dog).map(|action| GuestWatchdog { model: WatchdogModel::I6300esb, action });
        taken.stays(dog, "ua-watchdog");
    }
    // q35 has one in its chipset; libvirt tells of it in every domain.
    let Some(dog) = rest.take(is("itco")) else { return };
    if taken.spec.watchdog.is_none() && action(dog) != Some(WatchdogAction::Reset) && taken.spec.machine == MachineFamily::Q35 {
        taken.spec.watchdog = action(dog).map(|action| GuestWatchdog { model: WatchdogModel::Itco, action });
    }
}

fn tpm(rest: &mut Rest<'_>, taken: &mut Taken) {
    let emulated =
        |d: &Element| d.name == "tpm" && d.attr_at("backend", "type") == Some("emulator") && d.attr_at("backend", "version") == Some("2.0");
    let tpm = rest.take(emulated);
    taken.spec.tpm = Some(tpm.is_some());
    let Some(tpm) = tpm else { return };
    let ours = if taken.spec.firmware == vmkeep_types::vm::Firmware::Bios { "tpm-tis" } else { "tpm-crb" };
    if let Some(model) = tpm.get("model").filter(|m| *m != ours) {
        taken.set("devices/tpm/@model", model);
    }
    if let Some(backend) = tpm.find("backend").filter(|b| b.attributes.len() > 2 || !b.children.is_empty()) {
        taken.replace("devices/tpm/backend", backend);
    }
}

fn shares(rest: &mut Rest<'_>, taken: &mut Taken) {
    let name = |d: &Element| d.attr_at("target", "dir").and_then(|t| t.parse::<Name>().ok());
    let simple = |d: &Element| {
        let plain_source = d.find("source").is_some_and(|s| s.get("dir").is_some() && s.attributes.len() == 1);
        d.name == "filesystem"
            && d.attr_at("driver", "type") == Some("virtiofs")
            && plain_source
            && d.find("binary").is_none()
            && name(d).is_some()
    };
    while let Some(share) = rest.take(simple) {
        let (Some(name), Some(path)) = (name(share), share.attr_at("source", "dir")) else { continue };
        taken.stays(share, &format!("ua-share-{name}"));
        taken.spec.shares.push(Share { name, path: path.to_owned(), read_only: share.find("readonly").is_some() });
    }
}

fn host_devices(rest: &mut Rest<'_>, taken: &mut Taken) {
    let known = |d: &Element| plain(d).children.iter().all(|c| matches!(c.name.as_str(), "source" | "address" | "driver"));
    let managed = |d: &Element, kind: &str| d.name == "hostdev" && d.get("type") == Some(kind) && known(d);
    let hex = |e: &Element, key: &str| e.get(key).and_then(|n| u32::from_str_radix(n.trim_start_matches("0x"), 16).ok());
    let pci = |d: &Element| {
        let a = d.at("source/address")?;
        Some(format!("{:04x}:{:02x}:{:02x}.{:x}", hex(a, "domain")?, hex(a, "bus")?, hex(a, "slot")?, hex(a, "function")?))
    };
    while let Some(device) = rest.take(|d| managed(d, "pci") && d.get("managed") == Some("yes") && pci(d).is_some()) {
        let Some(address) = pci(device) else { continue };
        taken.stays(device, &format!("ua-pci-{}", address.replace([':', '.'], "-")));
        taken.spec.devices.pci.push(address);
    }
    let usb = |d: &Element| Some((hex(d.at("source/vendor")?, "id")?, hex(d.at("source/product")?, "id")?));
    while let Some(device) = rest.take(|d| managed(d, "usb") && usb(d).is_some()) {
        let Some((vendor, product)) = usb(device) else { continue };
        taken.stays(device, &format!("ua-usb-{vendor:04x}-{product:04x}"));
        taken.spec.devices.usb.push(format!("{vendor:04x}:{product:04x}"));
    }
}
