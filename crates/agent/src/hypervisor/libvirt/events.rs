//! libvirt's events into ours. Callbacks run on the event loop thread: they copy, send to a broadcast and return.

use std::os::raw::{c_char, c_int, c_longlong, c_uint, c_void};
use std::sync::Arc;

use tokio::sync::broadcast;
use virt_sys as sys;
use vmkeep_types::ids::VmId;
use vmkeep_types::observed::ExitCause;

use super::conn::Conn;
use super::domain::uuid_of;
use super::error::{check, last, text};
use crate::hypervisor::{AgentLink, BY_HOST, HvError, HvEvent, Lifecycle};

pub type Sink = broadcast::Sender<HvEvent>;

/// The registrations on one connection, undone before it is closed (each holds a reference to it).
pub struct Subscribed {
    conn: Arc<Conn>,
    ids: Vec<c_int>,
    powerdown: Option<c_int>,
}

impl Subscribed {
    pub fn new(conn: Arc<Conn>, sink: &Sink) -> Result<Self, HvError> {
        let mut all = Self { conn, ids: Vec::new(), powerdown: None };
        type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
        // SAFETY: libvirt wants each callback cast to the generic type and calls it with the signature of its event id.
        let wanted: [(u32, Generic); 6] = unsafe {
            [
                (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, std::mem::transmute::<*const (), Generic>(lifecycle as *const ())),
                (sys::VIR_DOMAIN_EVENT_ID_REBOOT, rebooted),
                (sys::VIR_DOMAIN_EVENT_ID_WATCHDOG, std::mem::transmute::<*const (), Generic>(watchdog as *const ())),
                (sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, std::mem::transmute::<*const (), Generic>(io_error as *const ())),
                (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, std::mem::transmute::<*const (), Generic>(agent as *const ())),
                (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, std::mem::transmute::<*const (), Generic>(device_removed as *const ())),
            ]
        };
        for (id, callback) in wanted {
            let registered = with_sink(sink, |opaque| {
                // SAFETY: a live connection; the sink is freed by libvirt through free_sink.
                unsafe {
                    let any = std::ptr::null_mut();
                    sys::virConnectDomainEventRegisterAny(all.conn.ptr(), any, id as c_int, Some(callback), opaque, Some(free_sink))
                }
            })?;
            all.ids.push(registered);
        }
        all.powerdown = Some(with_sink(sink, |opaque| {
            // SAFETY: as above.
            unsafe {
                let (any, event) = (std::ptr::null_mut(), c"POWERDOWN".as_ptr());
                sys::virConnectDomainQemuMonitorEventRegister(all.conn.ptr(), any, event, Some(powerdown), opaque, Some(free_sink), 0)
            }
        })?);
        Ok(all)
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        // SAFETY: ids of this connection; on a dead one libvirt forgets them locally and the call's failure means nothing.
        unsafe {
            for id in self.ids.drain(..) {
                sys::virConnectDomainEventDeregisterAny(self.conn.ptr(), id);
            }
            if let Some(id) = self.powerdown.take() {
                sys::virConnectDomainQemuMonitorEventDeregister(self.conn.ptr(), id);
            }
        }
    }
}

fn with_sink(sink: &Sink, register: impl FnOnce(*mut c_void) -> c_int) -> Result<c_int, HvError> {
    let opaque: *mut Sink = Box::into_raw(Box::new(sink.clone()));
    let id = register(opaque.cast());
    check(id, None).inspect_err(|_| {
        // SAFETY: a failed registration leaves the box to us.
        drop(unsafe { Box::from_raw(opaque) });
    })
}

unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: the box of with_sink, freed once.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}

/// # Safety
/// `dom` and `opaque` come from a libvirt callback that with_sink registered.
unsafe fn send(dom: sys::virDomainPtr, opaque: *mut c_void, event: impl FnOnce(VmId) -> HvEvent) {
    // SAFETY: by the caller's word.
    let (uuid, sink) = unsafe { (uuid_of(dom), &*opaque.cast::<Sink>()) };
    match uuid {
        // Nobody listens: then nobody misses it.
        Ok(uuid) => drop(sink.send(event(uuid))),
        Err(e) => tracing::warn!("an event of a domain without a uuid: {e}: {}", last(None)),
    }
}

unsafe extern "C" fn lifecycle(_: sys::virConnectPtr, dom: sys::virDomainPtr, event: c_int, detail: c_int, opaque: *mut c_void) -> c_int {
    if let Some((what, detail)) = lifecycle_of(event as u32, detail as u32) {
        // SAFETY: called by libvirt.
        unsafe { send(dom, opaque, |uuid| HvEvent::Lifecycle { uuid, what, detail: detail.to_owned() }) };
    }
    0
}

/// None: an event of a newer libvirt.
fn lifecycle_of(event: u32, detail: u32) -> Option<(Lifecycle, &'static str)> {
    let word = |words: &[&'static str]| words.get(detail as usize).copied().unwrap_or("unknown");
    Some(match event {
        sys::VIR_DOMAIN_EVENT_DEFINED => (Lifecycle::Defined, word(&["added", "updated", "renamed", "from snapshot"])),
        sys::VIR_DOMAIN_EVENT_UNDEFINED => (Lifecycle::Undefined, word(&["removed", "renamed"])),
        sys::VIR_DOMAIN_EVENT_STARTED => (Lifecycle::Started, word(&["booted", "migrated", "restored", "from snapshot", "woken up"])),
        sys::VIR_DOMAIN_EVENT_SUSPENDED => (
            Lifecycle::Suspended,
            word(&[
                "paused",
                "migrated",
                "I/O error",
                "watchdog",
                "restored",
                "from snapshot",
                "API error",
                "post-copy",
                "post-copy failed",
            ]),
        ),
        sys::VIR_DOMAIN_EVENT_RESUMED => (Lifecycle::Resumed, word(&["unpaused", "migrated", "from snapshot", "post-copy"])),
        sys::VIR_DOMAIN_EVENT_STOPPED => {
            let why = word(&["shutdown by guest", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot"]);
            (Lifecycle::Stopped(stop_cause(detail)), why)
        }
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => (Lifecycle::ShuttingDown, word(&["finished", "by guest", BY_HOST])),
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => (Lifecycle::PmSuspended, word(&["memory", "disk"])),
        sys::VIR_DOMAIN_EVENT_CRASHED => (Lifecycle::Crashed, word(&["panicked", "crash loaded"])),
        _ => return None,
    })
}

/// When QEMU vanishes libvirt says "failed" in the event and "crashed" in the domain's state: the state's word is the right one.
/// (A start that fails makes no event.)
fn stop_cause(detail: u32) -> ExitCause {
    match detail {
        sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => ExitCause::Shutdown,
        sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => ExitCause::Destroyed,
        sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED | sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => ExitCause::Crashed,
        sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => ExitCause::Migrated,
        sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => ExitCause::Saved,
        _ => ExitCause::Unknown,
    }
}

unsafe extern "C" fn rebooted(_: sys::virConnectPtr, dom: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: called by libvirt.
    unsafe { send(dom, opaque, HvEvent::Rebooted) }
}

unsafe extern "C" fn watchdog(_: sys::virConnectPtr, dom: sys::virDomainPtr, action: c_int, opaque: *mut c_void) {
    let words = ["none", "pause", "reset", "poweroff", "shutdown", "debug", "inject-nmi"];
    let action = words.get(action as usize).copied().unwrap_or("unknown");
    // SAFETY: called by libvirt.
    unsafe { send(dom, opaque, |uuid| HvEvent::Watchdog(uuid, action.to_owned())) }
}

unsafe extern "C" fn io_error(
    _: sys::virConnectPtr,
    dom: sys::virDomainPtr,
    path: *const c_char,
    alias: *const c_char,
    action: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    let then = match action as u32 {
        sys::VIR_DOMAIN_EVENT_IO_ERROR_PAUSE => "the guest is paused",
        sys::VIR_DOMAIN_EVENT_IO_ERROR_REPORT => "reported to the guest",
        _ => "ignored",
    };
    // SAFETY: called by libvirt with C strings or null.
    unsafe {
        let (path, device, reason) = (text(path).unwrap_or_default(), text(alias).unwrap_or_default(), text(reason).unwrap_or_default());
        let reason = if reason.is_empty() { "I/O error".to_owned() } else { reason };
        send(dom, opaque, |uuid| HvEvent::IoError { uuid, device, reason: format!("{reason} on {path}: {then}") });
    }
}

unsafe extern "C" fn agent(_: sys::virConnectPtr, dom: sys::virDomainPtr, state: c_int, _reason: c_int, opaque: *mut c_void) {
    let up = state as u32 == sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED;
    let connected = if up { AgentLink::Up } else { AgentLink::Down };
    // SAFETY: called by libvirt.
    unsafe { send(dom, opaque, |uuid| HvEvent::Agent { uuid, connected }) }
}

unsafe extern "C" fn device_removed(_: sys::virConnectPtr, dom: sys::virDomainPtr, alias: *const c_char, opaque: *mut c_void) {
    // SAFETY: called by libvirt with a C string.
    unsafe {
        let alias = text(alias).unwrap_or_default();
        send(dom, opaque, |uuid| HvEvent::DeviceRemoved { uuid, alias });
    }
}

unsafe extern "C" fn powerdown(
    _: sys::virConnectPtr,
    dom: sys::virDomainPtr,
    _event: *const c_char,
    _seconds: c_longlong,
    _micros: c_uint,
    _details: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: called by libvirt.
    unsafe { send(dom, opaque, HvEvent::PowerdownAsked) }
}
