//! What a test does to the fake's world: make it slow, make a call fail, let things happen by themselves.

use std::time::Duration;

use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause};

use super::{FakeHypervisor, Fault, Manners};
use crate::hypervisor::{AgentLink, BY_HOST, GuestAddress, HvError, HvEvent, Lifecycle};

impl FakeHypervisor {
    /// Offers `domain type='kvm'` from now on.
    pub fn offer_kvm(&self) {
        self.world.lock().kvm = true;
    }

    pub fn has_kvm(&self) -> bool {
        self.world.lock().kvm
    }

    /// With KVM, guests can have the `usable` models whole; the host's own is `model`, with `more` features and not those `without`.
    pub fn offer_cpu(&self, model: &str, usable: &str, more: &str, without: &str) {
        self.world.lock().cpus = Some(super::cpu::host(model, usable, more, without));
    }

    /// Each call takes this long.
    pub fn set_delay(&self, delay: Duration) {
        self.world.lock().delay = delay;
    }

    /// Calls of that name (as in the trait) take this long.
    pub fn set_delay_of(&self, call: &'static str, delay: Duration) {
        self.world.lock().delays.insert(call, delay);
    }

    /// The next call of that name that nothing was said about yet; several queue up.
    pub fn fault_next(&self, call: &'static str, fault: Fault) {
        self.world.lock().faults.entry(call).or_default().push_back(fault);
    }

    /// What runs at this moment; no call of an agent, so it meets no delay and no fault.
    pub fn running(&self) -> Vec<VmId> {
        let state = self.world.lock();
        state.host.domains.iter().filter(|(_, d)| d.state == DomainState::Running).map(|(uuid, _)| *uuid).collect()
    }

    pub fn set_manners(&self, manners: Manners) {
        self.world.lock().manners = manners;
    }

    pub fn set_manners_of(&self, uuid: VmId, manners: Manners) {
        self.world.lock().manners_of.insert(uuid, manners);
    }

    pub fn kill_qemu(&self, uuid: VmId) -> Result<(), HvError> {
        self.world.act(|host| host.stop(uuid, ExitCause::Crashed, "failed"))
    }

    /// SIGTERM: QEMU says that it quits, so libvirt takes it for a shutdown.
    pub fn terminate_qemu(&self, uuid: VmId) -> Result<(), HvError> {
        self.world.act(|host| {
            host.running(uuid)?.0.state = DomainState::ShuttingDown;
            host.tell(HvEvent::Lifecycle { uuid, what: Lifecycle::ShuttingDown, detail: BY_HOST.to_owned() });
            host.stop(uuid, ExitCause::Shutdown, "shutdown by guest")
        })
    }

    pub fn guest_powers_off(&self, uuid: VmId) -> Result<(), HvError> {
        self.world.power_off(uuid)
    }

    pub fn guest_reboots(&self, uuid: VmId) -> Result<(), HvError> {
        self.world.act(|host| {
            host.running(uuid)?;
            host.tell(HvEvent::Rebooted(uuid));
            Ok(())
        })
    }

    /// The guest's kernel panics; QEMU stays.
    pub fn guest_panics(&self, uuid: VmId) -> Result<(), HvError> {
        self.world.act(|host| {
            host.running(uuid)?.0.state = DomainState::Crashed;
            host.tell(HvEvent::Lifecycle { uuid, what: Lifecycle::Crashed, detail: "panicked".to_owned() });
            Ok(())
        })
    }

    pub fn set_agent(&self, uuid: VmId, link: AgentLink) -> Result<(), HvError> {
        self.world.act(|host| host.set_agent(uuid, link))
    }

    /// What the guest agent answers to `execute`.
    pub fn set_agent_reply(&self, uuid: VmId, execute: &str, json: &str) -> Result<(), HvError> {
        self.world.act(|host| {
            host.get_mut(uuid)?.agent_replies.insert(execute.to_owned(), json.to_owned());
            Ok(())
        })
    }

    pub fn set_addresses(&self, uuid: VmId, addresses: Vec<GuestAddress>) -> Result<(), HvError> {
        self.world.act(|host| {
            host.get_mut(uuid)?.addresses = Some(addresses);
            Ok(())
        })
    }

    /// The event alone: the disk error pauses the guest.
    pub fn io_error(&self, uuid: VmId, device: &str, reason: &str) -> Result<(), HvError> {
        self.world.act(|host| {
            host.suspend(uuid)?;
            host.tell(HvEvent::IoError { uuid, device: device.to_owned(), reason: reason.to_owned() });
            Ok(())
        })
    }

    pub fn watchdog(&self, uuid: VmId, action: &str) -> Result<(), HvError> {
        self.world.act(|host| {
            host.running(uuid)?;
            host.tell(HvEvent::Watchdog(uuid, action.to_owned()));
            Ok(())
        })
    }

    /// libvirt goes away; guests go on, and what happens to them meanwhile makes no event.
    pub fn disconnect(&self) {
        let mut state = self.world.lock();
        if std::mem::take(&mut state.connected) {
            self.world.send(HvEvent::Disconnected);
        }
    }

    pub fn reconnect(&self) {
        let mut state = self.world.lock();
        if !std::mem::replace(&mut state.connected, true) {
            self.world.send(HvEvent::Connected);
        }
    }

    /// The host reboots: every QEMU is gone, transient domains too, and libvirt remembers no reason.
    pub fn reboot_host(&self) {
        let mut state = self.world.lock();
        let all: Vec<VmId> = state.host.domains.keys().copied().collect();
        for uuid in all {
            // Those that are off are off.
            let _ = state.host.stop(uuid, ExitCause::Unknown, "host reboot");
        }
        state.host.take_events();
    }

    /// Changing calls so far, oldest first: `start web`.
    pub fn calls(&self) -> Vec<String> {
        self.world.lock().calls.iter().cloned().collect()
    }
}
