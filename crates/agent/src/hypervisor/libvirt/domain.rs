//! One domain of a connection: a handle freed on drop, and the calls on it. All of them block.

use std::collections::BTreeSet;
use std::os::raw::{c_int, c_uint};
use std::time::Duration;

use virt_sys as sys;
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::{DomainState, ExitCause, PauseCause};

use super::conn::{Conn, c_string};
use super::error::{check, last, said, take_text, text};
use crate::hypervisor::xml;
use crate::hypervisor::{
    AddressSource, DomainBrief, GuestAddress, HvError, LiveChange, METADATA_KEY, METADATA_URI, UndefineKeep, Words, XmlKind,
};

/// What virDomainSendKey takes at once.
const KEYS_MAX: usize = 16;

pub struct Domain<'c> {
    ptr: sys::virDomainPtr,
    uuid: VmId,
    _conn: &'c Conn,
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        // SAFETY: we own the reference.
        unsafe { sys::virDomainFree(self.ptr) };
    }
}

/// # Safety
/// `dom` is a valid domain handle.
pub unsafe fn uuid_of(dom: sys::virDomainPtr) -> Result<VmId, HvError> {
    let mut raw = [0u8; 16];
    // SAFETY: by the caller's word; libvirt writes 16 bytes.
    check(unsafe { sys::virDomainGetUUID(dom, raw.as_mut_ptr()) }, None)?;
    Ok(VmId(uuid::Uuid::from_bytes(raw)))
}

pub fn find(conn: &Conn, uuid: VmId) -> Result<Domain<'_>, HvError> {
    let raw = uuid.0.into_bytes();
    // SAFETY: 16 bytes, a live connection.
    let ptr = unsafe { sys::virDomainLookupByUUID(conn.ptr(), raw.as_ptr()) };
    if ptr.is_null() { Err(last(Some(uuid))) } else { Ok(Domain { ptr, uuid, _conn: conn }) }
}

pub fn named(conn: &Conn, name: &str) -> Result<Option<DomainBrief>, HvError> {
    let c_name = c_string(name)?;
    // SAFETY: a C string, a live connection.
    let ptr = unsafe { sys::virDomainLookupByName(conn.ptr(), c_name.as_ptr()) };
    if ptr.is_null() {
        let said = said();
        return if said.code == sys::VIR_ERR_NO_DOMAIN { Ok(None) } else { Err(said.meaning(None)) };
    }
    // SAFETY: the handle is ours from here on.
    let uuid = unsafe { uuid_of(ptr) };
    match (Domain { ptr, uuid: uuid?, _conn: conn }).full_brief() {
        Err(HvError::NoDomain(_)) => Ok(None),
        brief => brief.map(Some),
    }
}

/// Defines and answers the stored description as libvirt completed it.
pub fn define(conn: &Conn, xml: &str, words: Words) -> Result<String, HvError> {
    let c_xml = c_string(xml)?;
    let flags = if words == Words::Patched { sys::VIR_DOMAIN_DEFINE_VALIDATE } else { 0 };
    // SAFETY: a C string, a live connection.
    let mut ptr = unsafe { sys::virDomainDefineXMLFlags(conn.ptr(), c_xml.as_ptr(), flags) };
    if ptr.is_null() {
        let said = said();
        // A host without libvirt's schema files cannot validate; a description that does not validate has another code.
        if said.code != sys::VIR_ERR_INTERNAL_ERROR || !said.words.contains("schema") {
            return Err(said.meaning(None));
        }
        tracing::debug!("defining without validation: {}", said.words);
        // SAFETY: as above.
        ptr = unsafe { sys::virDomainDefineXMLFlags(conn.ptr(), c_xml.as_ptr(), 0) };
        if ptr.is_null() {
            return Err(last(None));
        }
    }
    // SAFETY: the handle is ours from here on.
    let uuid = unsafe { uuid_of(ptr) };
    let domain = Domain { ptr, uuid: uuid?, _conn: conn };
    domain.xml(XmlKind::Inactive)
}

/// Every domain, ours or not. One that goes away meanwhile is left out.
pub fn list(conn: &Conn) -> Result<Vec<DomainBrief>, HvError> {
    let persistent = uuids(conn, sys::VIR_CONNECT_LIST_DOMAINS_PERSISTENT)?;
    let autostart = uuids(conn, sys::VIR_CONNECT_LIST_DOMAINS_AUTOSTART)?;
    let mut briefs = Vec::new();
    for domain in handles(conn, 0)? {
        match domain.brief(persistent.contains(&domain.uuid), autostart.contains(&domain.uuid)) {
            Ok(brief) => briefs.push(brief),
            Err(HvError::NoDomain(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(briefs)
}

fn uuids(conn: &Conn, flags: u32) -> Result<BTreeSet<VmId>, HvError> {
    Ok(handles(conn, flags)?.iter().map(|d| d.uuid).collect())
}

fn handles(conn: &Conn, flags: u32) -> Result<Vec<Domain<'_>>, HvError> {
    let mut array: *mut sys::virDomainPtr = std::ptr::null_mut();
    // SAFETY: libvirt fills the array; each handle in it is ours, and the array itself comes from malloc.
    unsafe {
        let n = check(sys::virConnectListAllDomains(conn.ptr(), &mut array, flags), None)?;
        let handles = (0..n as usize)
            .map(|i| {
                let ptr = *array.add(i);
                // Reading the uuid of a handle is local and cannot fail on a valid one.
                Domain { ptr, uuid: uuid_of(ptr).unwrap_or(VmId(uuid::Uuid::nil())), _conn: conn }
            })
            .collect();
        libc::free(array.cast());
        Ok(handles)
    }
}

fn state_of(state: u32, reason: u32) -> (DomainState, Option<ExitCause>, Option<PauseCause>) {
    match state {
        sys::VIR_DOMAIN_SHUTOFF => (DomainState::Off, exit_cause(reason), None),
        sys::VIR_DOMAIN_PAUSED => (DomainState::Paused, None, pause_cause(reason)),
        sys::VIR_DOMAIN_SHUTDOWN => (DomainState::ShuttingDown, None, None),
        sys::VIR_DOMAIN_CRASHED => (DomainState::Crashed, None, None),
        sys::VIR_DOMAIN_PMSUSPENDED => (DomainState::Suspended, None, None),
        // NOSTATE, RUNNING, BLOCKED: a QEMU is there.
        _ => (DomainState::Running, None, None),
    }
}

fn exit_cause(reason: u32) -> Option<ExitCause> {
    match reason {
        sys::VIR_DOMAIN_SHUTOFF_UNKNOWN => None,
        sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => Some(ExitCause::Shutdown),
        sys::VIR_DOMAIN_SHUTOFF_DESTROYED => Some(ExitCause::Destroyed),
        sys::VIR_DOMAIN_SHUTOFF_CRASHED => Some(ExitCause::Crashed),
        sys::VIR_DOMAIN_SHUTOFF_MIGRATED => Some(ExitCause::Migrated),
        sys::VIR_DOMAIN_SHUTOFF_SAVED => Some(ExitCause::Saved),
        sys::VIR_DOMAIN_SHUTOFF_FAILED => Some(ExitCause::Failed),
        _ => Some(ExitCause::Unknown),
    }
}

fn pause_cause(reason: u32) -> Option<PauseCause> {
    match reason {
        sys::VIR_DOMAIN_PAUSED_USER => Some(PauseCause::Asked),
        sys::VIR_DOMAIN_PAUSED_IOERROR => Some(PauseCause::IoError),
        sys::VIR_DOMAIN_PAUSED_WATCHDOG => Some(PauseCause::Watchdog),
        sys::VIR_DOMAIN_PAUSED_MIGRATION | sys::VIR_DOMAIN_PAUSED_STARTING_UP | sys::VIR_DOMAIN_PAUSED_POSTCOPY => {
            Some(PauseCause::Migration)
        }
        sys::VIR_DOMAIN_PAUSED_SAVE
        | sys::VIR_DOMAIN_PAUSED_DUMP
        | sys::VIR_DOMAIN_PAUSED_SNAPSHOT
        | sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT => Some(PauseCause::Saving),
        sys::VIR_DOMAIN_PAUSED_CRASHED => Some(PauseCause::Crashed),
        _ => None,
    }
}

impl Domain<'_> {
    fn check(&self, answer: c_int) -> Result<(), HvError> {
        check(answer, Some(self.uuid)).map(|_| ())
    }

    pub fn full_brief(&self) -> Result<DomainBrief, HvError> {
        let mut autostart: c_int = 0;
        // SAFETY: our handle; the out pointer lives through the call.
        let persistent = unsafe { check(sys::virDomainIsPersistent(self.ptr), Some(self.uuid))? } == 1;
        // A transient domain has no autostart and refuses the question.
        if persistent {
            // SAFETY: as above.
            self.check(unsafe { sys::virDomainGetAutostart(self.ptr, &mut autostart) })?;
        }
        self.brief(persistent, autostart == 1)
    }

    fn brief(&self, persistent: bool, autostart: bool) -> Result<DomainBrief, HvError> {
        // SAFETY: our handle; the name belongs to it.
        let name = unsafe { text(sys::virDomainGetName(self.ptr)) }.ok_or_else(|| last(Some(self.uuid)))?;
        let (state, exit, paused) = self.state()?;
        Ok(DomainBrief { uuid: self.uuid, name, state, exit, paused, metadata: self.metadata()?, persistent, autostart })
    }

    pub fn state(&self) -> Result<(DomainState, Option<ExitCause>, Option<PauseCause>), HvError> {
        let (mut state, mut reason): (c_int, c_int) = (0, 0);
        // SAFETY: our handle, live out pointers.
        self.check(unsafe { sys::virDomainGetState(self.ptr, &mut state, &mut reason, 0) })?;
        Ok(state_of(state as u32, reason as u32))
    }

    fn metadata(&self) -> Result<Option<String>, HvError> {
        let uri = c_string(METADATA_URI)?;
        // SAFETY: our handle, a C string.
        let element = unsafe { sys::virDomainGetMetadata(self.ptr, sys::VIR_DOMAIN_METADATA_ELEMENT as c_int, uri.as_ptr(), 0) };
        if element.is_null() {
            let said = said();
            return if said.code == sys::VIR_ERR_NO_DOMAIN_METADATA { Ok(None) } else { Err(said.meaning(Some(self.uuid))) };
        }
        // SAFETY: a string that libvirt made for us.
        unsafe { take_text(element, Some(self.uuid)) }.and_then(|bare| xml::with_prefix(&bare)).map(Some)
    }

    pub fn set_metadata(&self, element: Option<&str>) -> Result<(), HvError> {
        let (key, uri) = (c_string(METADATA_KEY)?, c_string(METADATA_URI)?);
        // libvirt adds prefix and namespace itself and refuses an element that has them already.
        let element = element.map(xml::without_prefix).transpose()?.map(|e| c_string(&e)).transpose()?;
        let element = element.as_ref().map_or(std::ptr::null(), |e| e.as_ptr());
        // SAFETY: our handle; C strings or null, which removes the element.
        self.check(unsafe {
            let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as c_int;
            sys::virDomainSetMetadata(self.ptr, kind, element, key.as_ptr(), uri.as_ptr(), self.live_and_stored()?)
        })
    }

    fn live_and_stored(&self) -> Result<c_uint, HvError> {
        // SAFETY: our handle.
        let (persistent, active) = unsafe { (sys::virDomainIsPersistent(self.ptr), sys::virDomainIsActive(self.ptr)) };
        self.check(persistent.min(active))?;
        Ok(if persistent == 1 { sys::VIR_DOMAIN_AFFECT_CONFIG } else { 0 } | if active == 1 { sys::VIR_DOMAIN_AFFECT_LIVE } else { 0 })
    }

    pub fn xml(&self, kind: XmlKind) -> Result<String, HvError> {
        if kind == XmlKind::Live && self.state()?.0 == DomainState::Off {
            return Err(HvError::WrongState("the domain is not running: it has no live description".to_owned()));
        }
        let flags = if kind == XmlKind::Inactive { sys::VIR_DOMAIN_XML_INACTIVE } else { 0 };
        // SAFETY: our handle.
        unsafe { take_text(sys::virDomainGetXMLDesc(self.ptr, flags), Some(self.uuid)) }
    }

    pub fn undefine(&self, keep: UndefineKeep) -> Result<(), HvError> {
        let always = sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
        let state = match keep {
            UndefineKeep::Nothing => sys::VIR_DOMAIN_UNDEFINE_NVRAM | sys::VIR_DOMAIN_UNDEFINE_TPM,
            UndefineKeep::State => sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM,
        };
        // SAFETY: our handle.
        self.check(unsafe { sys::virDomainUndefineFlags(self.ptr, always | state) })
    }

    pub fn rename(&self, name: &str) -> Result<(), HvError> {
        let name = c_string(name)?;
        // SAFETY: our handle, a C string.
        self.check(unsafe { sys::virDomainRename(self.ptr, name.as_ptr(), 0) })
    }

    pub fn set_autostart(&self, on: bool) -> Result<(), HvError> {
        // SAFETY: our handle.
        self.check(unsafe { sys::virDomainSetAutostart(self.ptr, c_int::from(on)) })
    }

    pub fn act(&self, act: Act) -> Result<(), HvError> {
        // SAFETY: our handle, plain calls.
        self.check(unsafe {
            match act {
                Act::Start => sys::virDomainCreate(self.ptr),
                // Without flags libvirt asks the agent when it is connected, and ACPI when it is not or does not take it.
                Act::Shutdown => sys::virDomainShutdownFlags(self.ptr, 0),
                Act::Destroy => sys::virDomainDestroyFlags(self.ptr, 0),
                Act::Reboot => sys::virDomainReboot(self.ptr, 0),
                Act::Reset => sys::virDomainReset(self.ptr, 0),
                Act::Suspend => sys::virDomainSuspend(self.ptr),
                Act::Resume => sys::virDomainResume(self.ptr),
            }
        })
    }

    /// Only the running QEMU.
    pub fn change(&self, change: &LiveChange) -> Result<(), HvError> {
        let live = sys::VIR_DOMAIN_DEVICE_MODIFY_LIVE;
        // SAFETY: our handle, C strings.
        self.check(unsafe {
            match change {
                LiveChange::MemoryKib(kib) => sys::virDomainSetMemoryFlags(self.ptr, *kib, sys::VIR_DOMAIN_MEM_LIVE),
                LiveChange::Vcpus(n) => sys::virDomainSetVcpusFlags(self.ptr, *n, sys::VIR_DOMAIN_VCPU_LIVE),
                LiveChange::AttachDevice(xml) => sys::virDomainAttachDeviceFlags(self.ptr, c_string(xml)?.as_ptr(), live),
                LiveChange::DetachDevice(xml) => sys::virDomainDetachDeviceFlags(self.ptr, c_string(xml)?.as_ptr(), live),
                LiveChange::UpdateDevice(xml) => sys::virDomainUpdateDeviceFlags(self.ptr, c_string(xml)?.as_ptr(), live),
                LiveChange::BlockResize(target, bytes) => {
                    sys::virDomainBlockResize(self.ptr, c_string(target)?.as_ptr(), *bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES)
                }
                LiveChange::IoLimits { target, bytes, iops } => return self.limit_io(target, *bytes, *iops),
            }
        })
    }

    fn limit_io(&self, target: &str, bytes: u64, iops: u64) -> Result<(), HvError> {
        let target = c_string(target)?;
        let limits = [(sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_BYTES_SEC, bytes), (sys::VIR_DOMAIN_BLOCK_IOTUNE_TOTAL_IOPS_SEC, iops)];
        let (mut list, mut count, mut room) = (std::ptr::null_mut(), 0, 0);
        for (name, value) in limits {
            // SAFETY: libvirt makes and grows the list; names are C strings.
            let added = unsafe { sys::virTypedParamsAddULLong(&raw mut list, &raw mut count, &raw mut room, name.as_ptr(), value) };
            self.check(added)?;
        }
        // SAFETY: our handle, a C string, the list as libvirt made it.
        let done = unsafe { sys::virDomainSetBlockIoTune(self.ptr, target.as_ptr(), list, count, sys::VIR_DOMAIN_AFFECT_LIVE) };
        let answer = self.check(done);
        // SAFETY: nobody else has the list.
        unsafe { sys::virTypedParamsFree(list, count) };
        answer
    }

    pub fn send_keys(&self, mut codes: Vec<u32>) -> Result<(), HvError> {
        if codes.is_empty() || codes.len() > KEYS_MAX {
            return Err(HvError::Refused(format!("{} keys at once: 1 to {KEYS_MAX} are possible", codes.len())));
        }
        // SAFETY: our handle; the length is the vector's.
        self.check(unsafe { sys::virDomainSendKey(self.ptr, sys::VIR_KEYCODE_SET_LINUX, 0, codes.as_mut_ptr(), codes.len() as c_int, 0) })
    }

    pub fn agent_command(&self, json: &str, within: Duration) -> Result<String, HvError> {
        let json = c_string(json)?;
        let seconds = c_int::try_from(within.as_secs().max(1)).unwrap_or(c_int::MAX);
        // SAFETY: our handle, a C string; the answer is ours.
        let answer = unsafe { sys::virDomainQemuAgentCommand(self.ptr, json.as_ptr(), seconds, 0) };
        if answer.is_null() {
            let said = said();
            let late = matches!(said.code, sys::VIR_ERR_AGENT_COMMAND_TIMEOUT);
            return Err(if late { HvError::TimedOut { call: "agent_command", after: within } } else { said.meaning(Some(self.uuid)) });
        }
        // SAFETY: as above.
        unsafe { take_text(answer, Some(self.uuid)) }
    }

    /// Every source that answers; a source that cannot (no agent, no libvirt network) is left out.
    pub fn addresses(&self) -> Result<Vec<GuestAddress>, HvError> {
        let live = self.xml(XmlKind::Live)?;
        let mut found = Vec::new();
        let mut sources = vec![
            (AddressSource::Lease, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE),
            (AddressSource::Arp, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP),
        ];
        // An agent that is not there would only cost time.
        if xml::agent_connected(&live) {
            sources.insert(1, (AddressSource::Agent, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT));
        }
        for (source, flag) in sources {
            match self.addresses_by(source, flag) {
                Ok(some) => found.extend(some),
                Err(e @ (HvError::Disconnected(_) | HvError::NoDomain(_))) => return Err(e),
                Err(e) => tracing::debug!("addresses of {} by {source:?}: {e}", self.uuid),
            }
        }
        Ok(found)
    }

    fn addresses_by(&self, source: AddressSource, flag: u32) -> Result<Vec<GuestAddress>, HvError> {
        let mut array: *mut sys::virDomainInterfacePtr = std::ptr::null_mut();
        // SAFETY: libvirt fills the array of records; each is ours, with the strings in it.
        unsafe {
            let n = check(sys::virDomainInterfaceAddresses(self.ptr, &mut array, flag, 0), Some(self.uuid))?;
            let mut found = Vec::new();
            for i in 0..n as usize {
                let record = *array.add(i);
                let mac = text((*record).hwaddr).unwrap_or_default();
                for a in 0..(*record).naddrs as usize {
                    let address = &*(*record).addrs.add(a);
                    // The guest's agent may say anything; what is no address is not passed on.
                    let Some(ip) = text(address.addr).and_then(|ip| ip.parse().ok()) else { continue };
                    found.push(GuestAddress { mac: mac.clone(), address: ip, prefix: address.prefix, source });
                }
                sys::virDomainInterfaceFree(record);
            }
            libc::free(array.cast());
            Ok(found)
        }
    }

    pub fn ptr(&self) -> sys::virDomainPtr {
        self.ptr
    }

    pub fn uuid(&self) -> VmId {
        self.uuid
    }
}

/// Power acts without arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Start,
    Shutdown,
    Destroy,
    Reboot,
    Reset,
    Suspend,
    Resume,
}
