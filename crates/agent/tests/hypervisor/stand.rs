//! What the suite needs of a hypervisor's surroundings, and how it tells what happened.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use uuid::Uuid;
use vmkeep_agent::hypervisor::{ConsoleStream, HvEvent, Hypervisor, Lifecycle, Words};
use vmkeep_types::ids::VmId;

/// Generous: emulated guests on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NETWORK: &str = "hvtest";

/// A hypervisor and the power to hurt it.
pub trait Stand: Send + Sync {
    fn hv(&self) -> Arc<dyn Hypervisor>;
    /// Folder of the guest's kernel and initrd.
    fn guest(&self) -> String;
    /// SIGKILL for the QEMU of a domain.
    fn kill_qemu(&self, name: &str, uuid: VmId);
    /// SIGTERM for it.
    fn terminate_qemu(&self, name: &str, uuid: VmId);
    /// libvirt is gone.
    fn break_libvirt(&self);
    /// libvirt is back.
    fn mend_libvirt(&self);
}

pub fn uuid() -> VmId {
    VmId(Uuid::new_v4())
}

pub fn metadata(generation: u32) -> String {
    format!(r#"<vmkeep:vm xmlns:vmkeep="https://vmkeep.dev/xmlns/1" id="a&amp;b" generation="{generation}"/>"#)
}

pub fn network_xml(last: u32) -> String {
    format!(
        "<network><name>{NETWORK}</name><forward mode='nat'/><bridge name='hvt0'/><ip address='10.199.9.1' netmask='255.255.255.0'>\
         <dhcp><range start='10.199.9.10' end='10.199.9.{last}'/></dhcp></ip></network>"
    )
}

/// A guest that boots in seconds, with a NIC, a display, an agent's channel and room to plug devices in.
pub fn domain_xml(stand: &dyn Stand, name: &str, uuid: VmId) -> String {
    let guest = stand.guest();
    let ports =
        "<controller type='pci' index='0' model='pcie-root'/>".to_owned() + &"<controller type='pci' model='pcie-root-port'/>".repeat(6);
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><metadata>{}</metadata><memory unit='MiB'>128</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{guest}/vmlinuz</kernel><initrd>{guest}/initrd</initrd>\
         <cmdline>console=ttyS0 quiet</cmdline></os><features><acpi/><apic/></features>\
         <devices>{ports}<interface type='network'><source network='{NETWORK}'/><model type='virtio'/><alias name='ua-nic-lan'/></interface>\
         <serial type='pty'><target port='0'/></serial><console type='pty'><target type='serial' port='0'/></console>\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <graphics type='vnc'><listen type='socket'/></graphics><video><model type='vga'/></video>\
         <memballoon model='virtio'/></devices></domain>",
        metadata(1)
    )
}

/// Defines, starts and waits until the guest answers at its console, which is closed again.
pub async fn running(stand: &dyn Stand, name: &str) -> VmId {
    let (hv, uuid) = (stand.hv(), uuid());
    hv.define(&domain_xml(stand, name, uuid), Words::Patched).await.expect("define");
    hv.start(uuid).await.expect("start");
    let mut console = hv.console(uuid).await.expect("console");
    greet(&mut console).await;
    uuid
}

/// Asks until the guest answers: what is typed before its shell reads may be lost.
pub async fn greet(console: &mut ConsoleStream) {
    for n in 0..60 {
        console.to_guest.send(format!("echo hello-$(({n}+1))-{n}\n").into_bytes()).await.expect("the console takes input");
        // The echo of what was typed is no answer: a shell computes the sum; the fake repeats the text after its echo.
        if heard(console, &format!("-{n}\r\n"), 2, Duration::from_secs(1)).await.is_ok() {
            return;
        }
    }
    panic!("no answer at the console");
}

/// Reads until `words` have come `times` times; what was read.
pub async fn heard(console: &mut ConsoleStream, words: &str, times: usize, within: Duration) -> Result<String, String> {
    let mut all = Vec::new();
    let deadline = tokio::time::Instant::now() + within;
    loop {
        let text = String::from_utf8_lossy(&all).into_owned();
        if text.matches(words).count() >= times {
            return Ok(text);
        }
        match tokio::time::timeout_at(deadline, console.from_guest.recv()).await {
            Ok(Some(bytes)) => all.extend(bytes),
            Ok(None) => return Err(format!("the console ended after {text:?}")),
            Err(_) => return Err(format!("only {text:?}")),
        }
    }
}

/// The events of one domain (and of the connection) in words.
pub struct Story {
    events: broadcast::Receiver<HvEvent>,
    about: VmId,
    lines: Vec<String>,
}

impl Story {
    pub fn begin(hv: &Arc<dyn Hypervisor>, about: VmId) -> Self {
        Self { events: hv.events(), about, lines: Vec::new() }
    }

    /// Waits for a line, and takes the story up to it.
    pub async fn until(&mut self, line: &str) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("no '{line}' after {:?}", self.lines)).expect("the receiver keeps up");
            if let Some(told) = tell(&event, self.about) {
                self.lines.push(told);
                if self.lines.last().is_some_and(|l| l == line) {
                    return self.lines.drain(..).collect::<Vec<_>>().join("\n");
                }
            }
        }
    }
}

fn tell(event: &HvEvent, about: VmId) -> Option<String> {
    // A QEMU that is destroyed may manage to say that the host ends it, or not.
    let by_host = matches!(event, HvEvent::Lifecycle { what: Lifecycle::ShuttingDown, detail, .. } if detail == "by host");
    if event.vm().is_some_and(|vm| vm != about) || by_host {
        return None;
    }
    Some(match event {
        HvEvent::Lifecycle { what: Lifecycle::Stopped(cause), detail, .. } => format!("stopped {cause:?} ({detail})"),
        HvEvent::Lifecycle { what, detail, .. } => format!("{what:?} ({detail})"),
        HvEvent::PowerdownAsked(_) => "powerdown asked".to_owned(),
        HvEvent::Rebooted(_) => "rebooted".to_owned(),
        HvEvent::Watchdog(_, action) => format!("watchdog {action}"),
        HvEvent::IoError { device, .. } => format!("I/O error on {device}"),
        HvEvent::Agent { connected, .. } => format!("agent {connected:?}"),
        HvEvent::DeviceRemoved { alias, .. } => format!("{alias} removed"),
        HvEvent::Connected => "connected".to_owned(),
        HvEvent::Disconnected => "disconnected".to_owned(),
    })
}
