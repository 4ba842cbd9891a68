//! A hypervisor without QEMU that keeps libvirt's manners: it completes descriptions, forbids what libvirt forbids in a state,
//! tells the same events in the same order, and can be made slow, made to fail, or cut off. For tests, simulations and benches.
//!
//! `host` decides and is sync; `complete` is what libvirt adds to XML; `guest` is the guest at its console. Whatever a test does to
//! the world behind the agent's back is a method of [`FakeHypervisor`]; what `virsh` could do is a call of the trait.

mod complete;
mod control;
mod cpu;
mod guest;
mod host;
mod migrate;
mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause};

use self::host::Host;
pub use self::migrate::Wire;
use super::uses::Uses;
use super::{
    AgentLink, BY_HOST, ConsoleStream, DomainBrief, DomainStats, GuestAddress, HostChange, HvError, HvEvent, HvVersions, Hypervisor, Lease,
    Lifecycle, LiveChange, MigrateTo, MigrationStats, Screenshot, UndefineKeep, Words, XmlKind, xml,
};

const EVENTS_MAX: usize = 65_536;
/// The record of calls is a ring: a bench makes more than anybody reads.
const CALLS_MAX: usize = 10_000;
/// What virDomainSendKey takes at once.
const KEYS_MAX: usize = 16;

/// What happens to a call that a test singled out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done.
    Fail(HvError),
    /// All is done, but the caller hears only a time-out.
    LoseAnswer,
}

/// What a guest does when it is asked to power down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    PowersOff { after: Duration },
    Ignores,
}

pub struct FakeHypervisor {
    world: Arc<World>,
    consoles: Uses,
}

struct World {
    state: Mutex<State>,
    events: broadcast::Sender<HvEvent>,
}

struct State {
    host: Host,
    connected: bool,
    kvm: bool,
    /// Libvirt's `<cpu>` of the domain capabilities with KVM; None: as without.
    cpus: Option<String>,
    delay: Duration,
    delays: BTreeMap<&'static str, Duration>,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    manners: Manners,
    manners_of: BTreeMap<VmId, Manners>,
    calls: VecDeque<String>,
    /// The hosts that it reaches.
    wire: Option<Wire>,
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHypervisor {
    /// Connected, empty, with polite guests.
    pub fn new() -> Self {
        let state = State {
            host: Host::default(),
            connected: true,
            kvm: false,
            cpus: None,
            delay: Duration::ZERO,
            delays: BTreeMap::new(),
            faults: BTreeMap::new(),
            manners: Manners::PowersOff { after: Duration::ZERO },
            manners_of: BTreeMap::new(),
            calls: VecDeque::new(),
            wire: None,
        };
        let world = World { state: Mutex::new(state), events: broadcast::channel(EVENTS_MAX).0 };
        Self { world: Arc::new(world), consoles: Uses::default() }
    }

    async fn call<T>(&self, call: &'static str, about: &str, act: impl FnOnce(&mut State) -> Result<T, HvError>) -> Result<T, HvError> {
        let (connected, delay) = {
            let state = self.world.lock();
            (state.connected, state.delays.get(call).copied().unwrap_or(state.delay))
        };
        if connected && !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut state = self.world.lock();
        if !state.connected {
            return Err(HvError::Disconnected("the fake libvirt is cut off".to_owned()));
        }
        if !about.is_empty() {
            state.record(call, about);
        }
        let fault = state.faults.get_mut(call).and_then(VecDeque::pop_front);
        if let Some(Fault::Fail(error)) = fault {
            return Err(error);
        }
        let result = act(&mut state);
        state.host.take_events().into_iter().for_each(|event| self.world.send(event));
        match fault {
            Some(Fault::LoseAnswer) => Err(HvError::TimedOut { call, after: delay }),
            _ => result,
        }
    }

    async fn on<T>(&self, call: &'static str, uuid: VmId, act: impl FnOnce(&mut Host) -> Result<T, HvError>) -> Result<T, HvError> {
        self.call(call, &uuid.to_string(), |state| act(&mut state.host)).await
    }

    async fn look<T>(&self, call: &'static str, act: impl FnOnce(&mut Host) -> Result<T, HvError>) -> Result<T, HvError> {
        self.call(call, "", |state| act(&mut state.host)).await
    }
}

impl State {
    fn has_accel(&self, domain_type: &str) -> Result<(), HvError> {
        if domain_type == "qemu" || (domain_type == "kvm" && self.kvm) {
            return Ok(());
        }
        let why = format!("invalid argument: the accel '{domain_type}' is not supported by '/usr/bin/qemu-system-x86_64' on this host");
        Err(HvError::Refused(why))
    }

    /// Domains are recorded by name, as far as they have one.
    fn record(&mut self, call: &str, about: &str) {
        let name = about.parse().ok().and_then(|uuid: VmId| self.host.domains.get(&uuid)).map(|d| d.name.as_str());
        let line = format!("{call} {}", name.unwrap_or(about));
        if self.calls.len() == CALLS_MAX {
            self.calls.pop_front();
        }
        self.calls.push_back(line);
    }
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault that a step of this name was singled out for.
    fn fault(&self, call: &str) -> Option<Fault> {
        self.lock().faults.get_mut(call).and_then(VecDeque::pop_front)
    }

    fn send(&self, event: HvEvent) {
        // Nobody listens: then nobody misses it.
        let _ = self.events.send(event);
    }

    /// Something that happens by itself: told only while connected.
    fn act<T>(&self, act: impl FnOnce(&mut Host) -> Result<T, HvError>) -> Result<T, HvError> {
        let mut state = self.lock();
        let result = act(&mut state.host);
        let events = state.host.take_events();
        if state.connected {
            events.into_iter().for_each(|event| self.send(event));
        }
        result
    }

    fn power_off(&self, uuid: VmId) -> Result<(), HvError> {
        self.act(|host| {
            host.running(uuid)?.0.state = DomainState::ShuttingDown;
            host.tell(HvEvent::Lifecycle { uuid, what: Lifecycle::ShuttingDown, detail: "by guest".to_owned() });
            host.stop(uuid, ExitCause::Shutdown, "shutdown by guest")
        })
    }

    /// Answers the run that was asked; its guest obeys after a while, if it is still that run.
    fn obey(self: &Arc<Self>, uuid: VmId, run: u64) {
        let state = self.lock();
        let manners = state.manners_of.get(&uuid).copied().unwrap_or(state.manners);
        drop(state);
        match manners {
            Manners::Ignores => {}
            Manners::PowersOff { after } if after.is_zero() => drop(self.power_off(uuid)),
            Manners::PowersOff { after } => {
                let world = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let same = world.lock().host.get(uuid).is_ok_and(|d| d.run == run && d.state == DomainState::Running);
                    if same {
                        // It may have been stopped in between.
                        let _ = world.power_off(uuid);
                    }
                });
            }
        }
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn versions(&self) -> Result<HvVersions, HvError> {
        self.look("versions", |_| Ok(HvVersions { libvirt: "11.3.0".to_owned(), qemu: "10.0.2".to_owned() })).await
    }

    async fn domain_capabilities(&self, domain_type: &str, machine: &str) -> Result<String, HvError> {
        self.call("domain_capabilities", "", |state| {
            state.has_accel(domain_type)?;
            if machine != "q35" && !machine.starts_with("pc-q35-") {
                return Err(HvError::Refused(format!("invalid argument: the machine '{machine}' is not supported by emulator")));
            }
            let qemu = include_str!("fake/domain-capabilities.xml");
            let qemu = qemu.replace("<domain>qemu</domain>", &format!("<domain>{domain_type}</domain>"));
            let cpus = state.cpus.as_ref().filter(|_| domain_type == "kvm");
            Ok(cpus.map_or_else(|| qemu.clone(), |cpus| cpu::instead(&qemu, cpus)))
        })
        .await
    }

    async fn capabilities(&self) -> Result<String, HvError> {
        self.look("capabilities", |_| Ok(include_str!("fake/capabilities.xml").to_owned())).await
    }

    async fn expand_cpu(&self, domain_type: &str, cpu: &str) -> Result<String, HvError> {
        self.call("expand_cpu", "", |state| {
            state.has_accel(domain_type)?;
            cpu::expand(state.cpus.as_deref(), cpu)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<DomainBrief>, HvError> {
        self.look("list", |host| host.domains.keys().map(|uuid| host.brief(*uuid)).collect()).await
    }

    async fn find(&self, uuid: VmId) -> Result<DomainBrief, HvError> {
        self.look("find", |host| host.brief(uuid)).await
    }

    async fn named(&self, name: &str) -> Result<Option<DomainBrief>, HvError> {
        self.look("named", |host| host.named(name).map(|uuid| host.brief(uuid)).transpose()).await
    }

    async fn xml(&self, uuid: VmId, kind: XmlKind) -> Result<String, HvError> {
        self.look("xml", |host| host.xml(uuid, kind)).await
    }

    async fn define(&self, xml: &str, _words: Words) -> Result<String, HvError> {
        let name = xml.split("<name>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or("?");
        self.call("define", name, |state| state.host.define(xml)).await
    }

    async fn undefine(&self, uuid: VmId, _keep: UndefineKeep) -> Result<(), HvError> {
        self.on("undefine", uuid, |host| host.undefine(uuid)).await
    }

    async fn rename(&self, uuid: VmId, name: &str) -> Result<(), HvError> {
        let name = name.to_owned();
        self.on("rename", uuid, |host| host.rename(uuid, name)).await
    }

    async fn set_autostart(&self, uuid: VmId, on: bool) -> Result<(), HvError> {
        self.on("set_autostart", uuid, |host| host.set_autostart(uuid, on)).await
    }

    async fn set_metadata(&self, uuid: VmId, element: Option<&str>) -> Result<(), HvError> {
        self.on("set_metadata", uuid, |host| host.set_metadata(uuid, element)).await
    }

    async fn start(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("start", uuid, |host| host.start(uuid)).await
    }

    async fn shutdown(&self, uuid: VmId) -> Result<(), HvError> {
        let asked = self.on("shutdown", uuid, |host| {
            let domain = host.running(uuid)?.0;
            let asked = (domain.state == DomainState::Running).then_some(domain.run);
            // The agent is asked without QEMU's button.
            if domain.agent == AgentLink::Down {
                host.tell(HvEvent::PowerdownAsked(uuid));
            }
            Ok(asked)
        });
        if let Some(run) = asked.await? {
            self.world.obey(uuid, run);
        }
        Ok(())
    }

    async fn destroy(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("destroy", uuid, |host| {
            host.running(uuid)?;
            host.tell(HvEvent::Lifecycle { uuid, what: Lifecycle::ShuttingDown, detail: BY_HOST.to_owned() });
            host.stop(uuid, ExitCause::Destroyed, "destroyed")
        })
        .await
    }

    async fn reboot(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("reboot", uuid, |host| {
            host.running(uuid)?;
            host.tell(HvEvent::PowerdownAsked(uuid));
            host.tell(HvEvent::Rebooted(uuid));
            Ok(())
        })
        .await
    }

    async fn reset(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("reset", uuid, |host| {
            host.running(uuid)?;
            host.tell(HvEvent::Rebooted(uuid));
            Ok(())
        })
        .await
    }

    async fn suspend(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("suspend", uuid, |host| host.suspend(uuid)).await
    }

    async fn resume(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("resume", uuid, |host| host.resume(uuid)).await
    }

    async fn change(&self, uuid: VmId, change: LiveChange) -> Result<(), HvError> {
        self.on("change", uuid, |host| host.change(uuid, &change)).await
    }

    async fn migrate(&self, uuid: VmId, to: &MigrateTo) -> Result<(), HvError> {
        let fault = self.world.fault("migrate");
        if let Some(Fault::Fail(error)) = fault {
            return Err(error);
        }
        self.on("migrate", uuid, |host| host.running(uuid).map(drop)).await?;
        let sent = migrate::send(&self.world, uuid, to.clone()).await;
        if fault == Some(Fault::LoseAnswer) { Err(HvError::TimedOut { call: "migrate", after: Duration::ZERO }) } else { sent }
    }

    async fn migration(&self, uuid: VmId) -> Result<Option<MigrationStats>, HvError> {
        self.look("migration", |host| host.get(uuid).map(migrate::stats)).await
    }

    async fn abort_migration(&self, uuid: VmId) -> Result<(), HvError> {
        self.on("abort_migration", uuid, |host| migrate::abort(host.get_mut(uuid)?)).await
    }

    async fn send_keys(&self, uuid: VmId, linux_keycodes: Vec<u32>) -> Result<(), HvError> {
        self.on("send_keys", uuid, |host| {
            let n = linux_keycodes.len();
            if n == 0 || n > KEYS_MAX {
                return Err(HvError::Refused(format!("{n} keys at once: 1 to {KEYS_MAX} are possible")));
            }
            host.running(uuid).map(|_| ())
        })
        .await
    }

    async fn screenshot(&self, uuid: VmId) -> Result<Screenshot, HvError> {
        self.look("screenshot", |host| {
            let (_, live) = host.running(uuid)?;
            if live.child("devices").is_none_or(|d| d.child("video").is_none()) {
                return Err(HvError::Refused("internal error: there is no screen to take a picture of".to_owned()));
            }
            Ok(Screenshot { mime: "image/x-portable-pixmap".to_owned(), bytes: b"P6\n1 1\n255\n\0\0\0".to_vec() })
        })
        .await
    }

    async fn agent_command(&self, uuid: VmId, json: String, _within: Duration) -> Result<String, HvError> {
        self.on("agent_command", uuid, |host| {
            let domain = host.running(uuid)?.0;
            if domain.agent == AgentLink::Down {
                return Err(HvError::Refused("Guest agent is not responding: QEMU guest agent is not connected".to_owned()));
            }
            let asked: serde_json::Value = serde_json::from_str(&json).map_err(|e| HvError::Refused(format!("not JSON: {e}")))?;
            let execute = asked["execute"].as_str().unwrap_or_default();
            match domain.agent_replies.get(execute) {
                Some(reply) => Ok(reply.clone()),
                None if execute == "guest-ping" => Ok(r#"{"return":{}}"#.to_owned()),
                None => Err(HvError::Refused(format!(
                    "internal error: unable to execute QEMU agent command '{execute}': The command {execute} has not been found"
                ))),
            }
        })
        .await
    }

    async fn addresses(&self, uuid: VmId) -> Result<Vec<GuestAddress>, HvError> {
        self.look("addresses", |host| host.addresses(uuid)).await
    }

    async fn console(&self, uuid: VmId) -> Result<ConsoleStream, HvError> {
        self.consoles.wait_for_left(uuid).await;
        let (world, consoles) = (Arc::downgrade(&self.world), &self.consoles);
        self.look("console", |host| {
            let domain = host.running(uuid)?.0;
            if domain.console.as_ref().is_some_and(|c| c.receiver_count() > 0) {
                return Err(HvError::Refused("operation failed: Active console session exists for this domain".to_owned()));
            }
            let (fall, alive) = watch::channel(());
            domain.console = Some(fall);
            Ok(guest::serve(alive, consoles, uuid, move |guest::Wish::PowerOff| {
                if let Some(world) = world.upgrade() {
                    // It may have been stopped in between.
                    let _ = world.power_off(uuid);
                }
            }))
        })
        .await
    }

    async fn vnc_socket(&self, uuid: VmId) -> Result<PathBuf, HvError> {
        let live = self.xml(uuid, XmlKind::Live).await?;
        let path = xml::vnc_socket(&live).ok_or_else(|| HvError::Unsupported("the VM has no VNC display on a socket".to_owned()))?;
        Ok(PathBuf::from(path))
    }

    async fn stats(&self) -> Result<Vec<DomainStats>, HvError> {
        self.look("stats", |host| Ok(host.stats())).await
    }

    async fn ensure_network(&self, name: &str, xml: &str) -> Result<(), HvError> {
        self.call("ensure_network", name, |state| {
            state.host.networks.insert(name.to_owned(), xml.to_owned());
            Ok(())
        })
        .await
    }

    async fn network_xml(&self, name: &str) -> Result<Option<String>, HvError> {
        self.look("network_xml", |host| Ok(host.networks.get(name).cloned())).await
    }

    async fn active_network_xml(&self, name: &str) -> Result<Option<String>, HvError> {
        self.look("active_network_xml", |host| Ok(host.networks.get(name).cloned())).await
    }

    async fn remove_network(&self, name: &str) -> Result<(), HvError> {
        self.call("remove_network", name, |state| {
            state.host.networks.remove(name);
            Ok(())
        })
        .await
    }

    async fn change_hosts(&self, network: &str, changes: Vec<HostChange>) -> Result<(), HvError> {
        self.call("change_hosts", network, |state| state.host.change_hosts(network, &changes)).await
    }

    async fn leases(&self, _network: &str) -> Result<Vec<Lease>, HvError> {
        self.look("leases", |_| Ok(Vec::new())).await
    }

    fn events(&self) -> broadcast::Receiver<HvEvent> {
        self.world.events.subscribe()
    }
}
