//! The fake's state and libvirt's rules over it: which act is allowed in which state, what changes, which events follow. Sync; the
//! events are left in [`Host::events`] for the caller to send while it holds the lock, so that their order is the order of acts.

use std::collections::BTreeMap;
use std::mem::take;
use std::net::Ipv4Addr;

use tokio::sync::watch;
use tokio::time::Instant;
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause, PauseCause};

use super::complete;
use super::tree::Node;
use crate::hypervisor::xml;
use crate::hypervisor::{
    AddressSource, AgentLink, DomainBrief, DomainStats, GuestAddress, HostChange, HvError, HvEvent, Lifecycle, LiveChange, METADATA_KEY,
    XmlKind,
};

#[derive(Default)]
pub struct Host {
    pub domains: BTreeMap<VmId, Domain>,
    pub networks: BTreeMap<String, String>,
    names: BTreeMap<String, VmId>,
    next_id: u64,
    events: Vec<HvEvent>,
}

pub struct Domain {
    pub name: String,
    /// None: it is transient, gone when it stops.
    pub stored: Option<Node>,
    pub live: Option<Node>,
    pub state: DomainState,
    exit: Option<ExitCause>,
    /// A migration under way, in or out.
    pub job: Option<super::migrate::Job>,
    autostart: bool,
    /// Tells one run from the next: a timer of an earlier one must not stop this one.
    pub run: u64,
    started: Instant,
    pub agent: AgentLink,
    /// By what the agent is asked to execute.
    pub agent_replies: BTreeMap<String, String>,
    pub addresses: Option<Vec<GuestAddress>>,
    /// Its fall ends the console.
    pub console: Option<watch::Sender<()>>,
}

/// `<host ip='…'>` of an entry of DNS.
fn begin_of_name(entry: &str) -> Option<&str> {
    let entry = entry.trim();
    entry.starts_with("<host ip=").then(|| entry.split_inclusive('>').next()).flatten()
}

fn not_running() -> HvError {
    HvError::WrongState("Requested operation is not valid: domain is not running".to_owned())
}

impl Host {
    pub fn take_events(&mut self) -> Vec<HvEvent> {
        take(&mut self.events)
    }

    pub fn tell(&mut self, event: HvEvent) {
        self.events.push(event);
    }

    fn lifecycle(&mut self, uuid: VmId, what: Lifecycle, detail: &str) {
        self.tell(HvEvent::Lifecycle { uuid, what, detail: detail.to_owned() });
    }

    pub fn get(&self, uuid: VmId) -> Result<&Domain, HvError> {
        self.domains.get(&uuid).ok_or(HvError::NoDomain(uuid))
    }

    pub fn get_mut(&mut self, uuid: VmId) -> Result<&mut Domain, HvError> {
        self.domains.get_mut(&uuid).ok_or(HvError::NoDomain(uuid))
    }

    pub fn named(&self, name: &str) -> Option<VmId> {
        self.names.get(name).copied()
    }

    /// The domain with its running description.
    pub fn running(&mut self, uuid: VmId) -> Result<(&mut Domain, Node), HvError> {
        let domain = self.get_mut(uuid)?;
        let live = domain.live.clone().ok_or_else(not_running)?;
        Ok((domain, live))
    }

    pub fn brief(&self, uuid: VmId) -> Result<DomainBrief, HvError> {
        let d = self.get(uuid)?;
        let exit = if d.state == DomainState::Off { d.exit } else { None };
        let metadata = d.live.as_ref().or(d.stored.as_ref()).and_then(metadata_of);
        let name = d.name.clone();
        let paused = (d.state == DomainState::Paused).then_some(PauseCause::Asked);
        Ok(DomainBrief { uuid, name, state: d.state, exit, paused, metadata, persistent: d.stored.is_some(), autostart: d.autostart })
    }

    /// Entries of DHCP, as libvirt takes them: one for a MAC, a name, an address.
    pub fn change_hosts(&mut self, network: &str, changes: &[HostChange]) -> Result<(), HvError> {
        let Some(xml) = self.networks.get_mut(network) else { return Err(HvError::WrongState("Network not found".into())) };
        for change in changes {
            match change {
                HostChange::Remove(entry) => {
                    *xml = xml.lines().filter(|line| line.trim() != entry.trim()).map(|line| format!("{line}\n")).collect()
                }
                HostChange::Add(entry) => {
                    let known = |key: &&str| xml.lines().any(|line| line.trim_start().starts_with("<host ") && line.contains(*key));
                    if entry
                        .split_whitespace()
                        .filter(|part| part.contains('='))
                        .map(|part| part.trim_end_matches("/>"))
                        .any(|part| known(&part))
                    {
                        return Err(HvError::WrongState("there is an existing dhcp host entry in network that matches".into()));
                    }
                    *xml = xml.replacen("</dhcp>", &format!("\n{}\n</dhcp>", entry.trim()), 1);
                }
                HostChange::RemoveName(entry) => {
                    let begin = begin_of_name(entry).and_then(|begin| xml.find(begin));
                    let range = begin.and_then(|at| Some(at..at + xml[at..].find("</host>")? + "</host>".len()));
                    range.into_iter().for_each(|range| xml.replace_range(range, ""));
                }
                HostChange::AddName(entry) => {
                    // Two addresses may have the same name.
                    if begin_of_name(entry).is_some_and(|begin| xml.contains(begin)) {
                        let words = "there is already at least one DNS HOST record with a matching field in network";
                        return Err(HvError::WrongState(words.into()));
                    }
                    if !xml.contains("</dns>") {
                        *xml = xml.replacen("<ip ", "<dns>\n</dns>\n<ip ", 1);
                    }
                    *xml = xml.replacen("</dns>", &format!("{}\n</dns>", entry.trim()), 1);
                }
            }
        }
        Ok(())
    }

    pub fn xml(&self, uuid: VmId, kind: XmlKind) -> Result<String, HvError> {
        let domain = self.get(uuid)?;
        match kind {
            XmlKind::Live => domain.live.as_ref().map(Node::render).ok_or_else(not_running),
            XmlKind::Inactive => Ok(domain.stored.as_ref().or(domain.live.as_ref()).map(Node::render).unwrap_or_default()),
        }
    }

    pub fn define(&mut self, text: &str) -> Result<String, HvError> {
        let mut stored = Node::parse(text)?;
        let complete::Identity { uuid, name } = complete::stored(&mut stored)?;
        if let Some(other) = self.names.get(&name).filter(|other| **other != uuid) {
            return Err(HvError::Refused(format!("operation failed: domain '{name}' already exists with uuid {other}")));
        }
        let completed = stored.render();
        let detail = match self.domains.get_mut(&uuid) {
            Some(domain) if domain.name != name => {
                let old = &domain.name;
                return Err(HvError::Refused(format!("operation failed: domain '{old}' is already defined with uuid {uuid}")));
            }
            Some(domain) => {
                domain.stored = Some(stored);
                "updated"
            }
            None => {
                self.domains.insert(uuid, Domain::new(name.clone(), stored));
                "added"
            }
        };
        self.names.insert(name, uuid);
        self.lifecycle(uuid, Lifecycle::Defined, detail);
        Ok(completed)
    }

    pub fn undefine(&mut self, uuid: VmId) -> Result<(), HvError> {
        let domain = self.get_mut(uuid)?;
        if domain.stored.take().is_none() {
            return Err(HvError::WrongState("Requested operation is not valid: cannot undefine transient domain".to_owned()));
        }
        domain.autostart = false;
        self.lifecycle(uuid, Lifecycle::Undefined, "removed");
        self.forget_if_gone(uuid);
        Ok(())
    }

    fn forget_if_gone(&mut self, uuid: VmId) {
        if let Some(gone) = self.domains.get(&uuid).filter(|d| d.stored.is_none() && d.live.is_none()) {
            self.names.remove(&gone.name);
            self.domains.remove(&uuid);
        }
    }

    pub fn rename(&mut self, uuid: VmId, name: String) -> Result<(), HvError> {
        let taken = self.names.contains_key(&name);
        let domain = self.get_mut(uuid)?;
        if domain.live.is_some() {
            return Err(HvError::WrongState("Requested operation is not valid: cannot rename active domain".to_owned()));
        }
        if taken {
            return Err(HvError::WrongState(format!("Requested operation is not valid: domain with name '{name}' already exists")));
        }
        if let Some(stored) = &mut domain.stored {
            stored.ensure("name").text.clone_from(&name);
        }
        let old = std::mem::replace(&mut domain.name, name.clone());
        self.names.remove(&old);
        self.names.insert(name, uuid);
        self.lifecycle(uuid, Lifecycle::Undefined, "renamed");
        self.lifecycle(uuid, Lifecycle::Defined, "renamed");
        Ok(())
    }

    pub fn set_autostart(&mut self, uuid: VmId, on: bool) -> Result<(), HvError> {
        let domain = self.get_mut(uuid)?;
        if domain.stored.is_none() {
            return Err(HvError::WrongState("Requested operation is not valid: cannot set autostart for transient domain".to_owned()));
        }
        domain.autostart = on;
        Ok(())
    }

    pub fn set_metadata(&mut self, uuid: VmId, element: Option<&str>) -> Result<(), HvError> {
        let element = element.map(|e| xml::without_prefix(e).and_then(|bare| Node::parse(&xml::with_prefix(&bare)?))).transpose()?;
        let domain = self.get_mut(uuid)?;
        for description in [domain.stored.as_mut(), domain.live.as_mut()].into_iter().flatten() {
            let metadata = description.ensure("metadata");
            metadata.children.retain(|c| !is_ours(c));
            metadata.children.extend(element.clone());
        }
        Ok(())
    }

    pub fn start(&mut self, uuid: VmId) -> Result<(), HvError> {
        self.next_id += 1;
        let id = self.next_id;
        let domain = self.get_mut(uuid)?;
        let (Some(stored), None) = (&domain.stored, &domain.live) else {
            return Err(HvError::WrongState("Requested operation is not valid: domain is already running".to_owned()));
        };
        let live = complete::live(stored, id, &domain.name);
        let has_agent = complete::has_agent_channel(&live);
        domain.live = Some(live);
        domain.state = DomainState::Running;
        domain.exit = None;
        domain.run = id;
        domain.started = Instant::now();
        domain.agent = AgentLink::Down;
        if has_agent {
            self.tell(HvEvent::Agent { uuid, connected: AgentLink::Down });
        }
        self.lifecycle(uuid, Lifecycle::Resumed, "unpaused");
        self.lifecycle(uuid, Lifecycle::Started, "booted");
        Ok(())
    }

    pub fn stop(&mut self, uuid: VmId, cause: ExitCause, detail: &str) -> Result<(), HvError> {
        let (domain, _) = self.running(uuid)?;
        domain.live = None;
        domain.state = DomainState::Off;
        domain.exit = Some(cause);
        domain.job = None;
        domain.console = None;
        let agent = std::mem::replace(&mut domain.agent, AgentLink::Down);
        if agent == AgentLink::Up {
            self.tell(HvEvent::Agent { uuid, connected: AgentLink::Down });
        }
        self.lifecycle(uuid, Lifecycle::Stopped(cause), detail);
        self.forget_if_gone(uuid);
        Ok(())
    }

    pub fn suspend(&mut self, uuid: VmId) -> Result<(), HvError> {
        let (domain, _) = self.running(uuid)?;
        if domain.state != DomainState::Paused {
            domain.state = DomainState::Paused;
            self.lifecycle(uuid, Lifecycle::Suspended, "paused");
        }
        Ok(())
    }

    pub fn resume(&mut self, uuid: VmId) -> Result<(), HvError> {
        let (domain, _) = self.running(uuid)?;
        if domain.state == DomainState::Running {
            return Err(HvError::WrongState("Requested operation is not valid: domain is already running".to_owned()));
        }
        domain.state = DomainState::Running;
        self.lifecycle(uuid, Lifecycle::Resumed, "unpaused");
        Ok(())
    }

    pub fn set_agent(&mut self, uuid: VmId, connected: AgentLink) -> Result<(), HvError> {
        let (domain, mut live) = self.running(uuid)?;
        let word = if connected == AgentLink::Up { "connected" } else { "disconnected" };
        for channel in live.ensure("devices").children.iter_mut().filter(|c| c.name == "channel") {
            channel.ensure("target").set("state", word);
        }
        domain.live = Some(live);
        if std::mem::replace(&mut domain.agent, connected) != connected {
            self.tell(HvEvent::Agent { uuid, connected });
        }
        Ok(())
    }

    pub fn change(&mut self, uuid: VmId, change: &LiveChange) -> Result<(), HvError> {
        let (domain, mut live) = self.running(uuid)?;
        let refused = |why: &str| Err(HvError::Refused(why.to_owned()));
        let mut gone = None;
        match change {
            LiveChange::MemoryKib(kib) => {
                if *kib > live.child("memory").map_or(0, complete::kib) {
                    return refused("invalid argument: cannot set memory higher than max memory");
                }
                let current = live.ensure("currentMemory");
                current.set("unit", "KiB");
                current.text = kib.to_string();
            }
            LiveChange::Vcpus(n) => {
                let vcpu = live.ensure("vcpu");
                if *n > vcpu.text.parse().unwrap_or(1) {
                    return refused("invalid argument: requested vcpus is greater than max allowable vcpus for the live domain");
                }
                vcpu.set("current", &n.to_string());
            }
            LiveChange::AttachDevice(xml) => {
                let mut device = Node::parse(xml)?;
                let devices = live.ensure("devices");
                if devices.children.iter().any(|d| complete::same_device(d, &device)) {
                    return refused("operation failed: the device already exists");
                }
                complete::attached(devices, &mut device);
                devices.children.push(device);
            }
            LiveChange::DetachDevice(xml) => {
                let devices = live.ensure("devices");
                let Some(at) = position(devices, &Node::parse(xml)?) else { return refused("device not found: no matching device") };
                gone = devices.children.remove(at).child_get("alias", "name").map(str::to_owned);
            }
            LiveChange::UpdateDevice(xml) => {
                let mut device = Node::parse(xml)?;
                let devices = live.ensure("devices");
                let Some(at) = position(devices, &device) else { return refused("device not found: no matching device") };
                for kept in ["alias", "address"] {
                    if let (None, Some(old)) = (device.child(kept), devices.children[at].child(kept)) {
                        device.children.push(old.clone());
                    }
                }
                devices.children[at] = device;
            }
            LiveChange::IoLimits { target, bytes, iops } => limit_io(live.ensure("devices"), target, *bytes, *iops)?,
            LiveChange::BlockResize(target, _) => {
                if !live.ensure("devices").children.iter().any(|d| d.child_get("target", "dev") == Some(target)) {
                    return refused(&format!("invalid argument: invalid path {target} not assigned to domain"));
                }
            }
        }
        domain.live = Some(live);
        if let Some(alias) = gone {
            self.tell(HvEvent::DeviceRemoved { uuid, alias });
        }
        Ok(())
    }

    pub fn addresses(&mut self, uuid: VmId) -> Result<Vec<GuestAddress>, HvError> {
        let (domain, live) = self.running(uuid)?;
        if let Some(set) = &domain.addresses {
            return Ok(set.clone());
        }
        let nics = live.child("devices").into_iter().flat_map(|d| &d.children).filter(|d| d.child_get("source", "network").is_some());
        let leases = nics.filter_map(|nic| {
            let mac = nic.child_get("mac", "address")?.to_owned();
            let last = u8::from_str_radix(mac.rsplit(':').next()?, 16).ok()?;
            let address = Ipv4Addr::new(192, 0, 2, last.clamp(2, 254)).into();
            Some(GuestAddress { mac, address, prefix: 24, source: AddressSource::Lease })
        });
        Ok(leases.collect())
    }

    pub fn stats(&self) -> Vec<DomainStats> {
        let live = self.domains.iter().filter_map(|(uuid, d)| Some((uuid, d, d.live.as_ref()?)));
        live.map(|(uuid, d, live)| {
            let vcpu = live.child("vcpu");
            let vcpus = vcpu.and_then(|v| v.get("current").or(Some(&v.text))?.parse().ok()).unwrap_or(1);
            let memory_kib = live.child("currentMemory").map_or(0, complete::kib);
            let ran = u64::try_from(d.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let rss_kib = memory_kib / 2;
            DomainStats { uuid: Some(*uuid), cpu_time_ns: ran / 10, vcpus, memory_kib, rss_kib, ..DomainStats::default() }
        })
        .collect()
    }
}

impl Domain {
    fn new(name: String, stored: Node) -> Self {
        Self {
            name,
            stored: Some(stored),
            live: None,
            state: DomainState::Off,
            exit: None,
            job: None,
            autostart: false,
            run: 0,
            started: Instant::now(),
            agent: AgentLink::Down,
            agent_replies: BTreeMap::new(),
            addresses: None,
            console: None,
        }
    }
}

fn limit_io(devices: &mut Node, target: &str, bytes: u64, iops: u64) -> Result<(), HvError> {
    let Some(disk) = devices.children.iter_mut().find(|d| d.child_get("target", "dev") == Some(target)) else {
        return Err(HvError::Refused(format!("invalid argument: disk '{target}' was not found in the domain config")));
    };
    disk.children.retain(|c| c.name != "iotune");
    let limits = [("total_bytes_sec", bytes), ("total_iops_sec", iops)].into_iter().filter(|(_, value)| *value > 0);
    let children: Vec<Node> = limits.map(|(name, value)| Node::leaf(name, &value.to_string())).collect();
    if !children.is_empty() {
        disk.children.push(Node { children, ..Node::new("iotune", &[]) });
    }
    Ok(())
}

fn position(devices: &Node, wanted: &Node) -> Option<usize> {
    devices.children.iter().position(|d| complete::same_device(d, wanted))
}

fn is_ours(element: &Node) -> bool {
    element.name.strip_prefix(METADATA_KEY).is_some_and(|rest| rest.starts_with(':'))
}

fn metadata_of(description: &Node) -> Option<String> {
    let element = description.child("metadata")?.children.iter().find(|c| is_ours(c))?;
    xml::without_prefix(element.render().trim()).and_then(|bare| xml::with_prefix(&bare)).ok()
}
