//! One connection to libvirt and the process-wide event loop thread that serves all of them.

use std::ffi::{CStr, CString};
use std::os::raw::{c_int, c_ulong, c_void};
use std::sync::OnceLock;

use virt_sys as sys;

use super::error::{check, last, silence};
use crate::hypervisor::{HvError, HvVersions};

/// libvirtd is asked for a sign of life this often …
const KEEPALIVE_SECONDS: c_int = 5;
/// … and given up after so many without an answer: 30 s cover a libvirtd that probes QEMU on a busy host.
const KEEPALIVE_MISSES_MAX: u32 = 6;

/// Called once, on the event loop thread, when the connection is gone; it must not block.
pub type OnClose = Box<dyn Fn(&'static str) + Send + Sync>;

/// An open connection. libvirt's handles are thread-safe; a closed one stays dead for good.
pub struct Conn(sys::virConnectPtr);

// SAFETY: libvirt documents virConnectPtr as usable from any thread.
unsafe impl Send for Conn {}
// SAFETY: as above.
unsafe impl Sync for Conn {}

impl Conn {
    pub fn open(uri: &CStr, on_close: OnClose) -> Result<Self, HvError> {
        start_event_loop()?;
        // SAFETY: uri is a C string.
        let ptr = unsafe { sys::virConnectOpen(uri.as_ptr()) };
        if ptr.is_null() {
            return Err(HvError::Disconnected(super::error::said().words));
        }
        let conn = Self(ptr);
        let opaque: *mut OnClose = Box::into_raw(Box::new(on_close));
        // SAFETY: the box is freed by free_on_close, or here when the registration fails.
        unsafe {
            if sys::virConnectRegisterCloseCallback(ptr, Some(closed), opaque.cast(), Some(free_on_close)) < 0 {
                drop(Box::from_raw(opaque));
                return Err(last(None));
            }
            check(sys::virConnectSetKeepAlive(ptr, KEEPALIVE_SECONDS, KEEPALIVE_MISSES_MAX), None)?;
        }
        Ok(conn)
    }

    pub fn ptr(&self) -> sys::virConnectPtr {
        self.0
    }

    pub fn versions(&self) -> Result<HvVersions, HvError> {
        let (mut libvirt, mut qemu): (c_ulong, c_ulong) = (0, 0);
        // SAFETY: both out pointers live through the calls.
        unsafe {
            check(sys::virConnectGetLibVersion(self.0, &mut libvirt), None)?;
            check(sys::virConnectGetVersion(self.0, &mut qemu), None)?;
        }
        Ok(HvVersions { libvirt: version(libvirt), qemu: version(qemu) })
    }

    pub fn capabilities(&self) -> Result<String, HvError> {
        // SAFETY: the connection lives; the text is ours to free.
        unsafe { super::error::take_text(sys::virConnectGetCapabilities(self.0), None) }
    }

    pub fn domain_capabilities(&self, domain_type: &str, machine: &str) -> Result<String, HvError> {
        let (kind, machine) = (c_string(domain_type)?, c_string(machine)?);
        // SAFETY: C strings; a null emulator means libvirt's own choice.
        unsafe {
            let xml =
                sys::virConnectGetDomainCapabilities(self.0, std::ptr::null(), c"x86_64".as_ptr(), machine.as_ptr(), kind.as_ptr(), 0);
            super::error::take_text(xml, None)
        }
    }

    pub fn expand_cpu(&self, domain_type: &str, cpu: &str) -> Result<String, HvError> {
        let (kind, cpu) = (c_string(domain_type)?, c_string(cpu)?);
        let mut cpus = [cpu.as_ptr()];
        let (list, flags) = (cpus.as_mut_ptr(), sys::VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES);
        // SAFETY: C strings, one of them in the list of one; a null emulator or machine means libvirt's own choice.
        unsafe {
            let arch = c"x86_64".as_ptr();
            let xml = sys::virConnectBaselineHypervisorCPU(self.0, std::ptr::null(), arch, std::ptr::null(), kind.as_ptr(), list, 1, flags);
            super::error::take_text(xml, None)
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: we own the reference. The callback holds one too, so it goes first; on a dead connection both are harmless.
        unsafe {
            sys::virConnectUnregisterCloseCallback(self.0, Some(closed));
            sys::virConnectClose(self.0);
        }
    }
}

/// A string of ours for libvirt.
pub fn c_string(s: &str) -> Result<CString, HvError> {
    CString::new(s).map_err(|_| HvError::Refused("a zero byte is not allowed in what is sent to libvirt".to_owned()))
}

fn version(n: c_ulong) -> String {
    format!("{}.{}.{}", n / 1_000_000, n / 1000 % 1000, n % 1000)
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    let why = match reason as u32 {
        sys::VIR_CONNECT_CLOSE_REASON_EOF => "libvirt ended the connection",
        sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => "libvirt gave no sign of life",
        sys::VIR_CONNECT_CLOSE_REASON_CLIENT => "we closed the connection",
        _ => "the connection broke",
    };
    // SAFETY: opaque is the box of Conn::open, alive until free_on_close.
    unsafe { (*opaque.cast::<OnClose>())(why) }
}

unsafe extern "C" fn free_on_close(opaque: *mut c_void) {
    // SAFETY: libvirt frees it once, when no callback runs any more.
    drop(unsafe { Box::from_raw(opaque.cast::<OnClose>()) });
}

/// Once per process, before the first connection: connections opened earlier would get no events.
fn start_event_loop() -> Result<(), HvError> {
    static STARTED: OnceLock<Result<(), HvError>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            silence();
            // SAFETY: plain initialisation calls, made once.
            unsafe {
                check(sys::virInitialize(), None)?;
                check(sys::virEventRegisterDefaultImpl(), None)?;
                // A timer, so that the loop wakes up even when nothing is registered yet.
                check(sys::virEventAddTimeout(1000, Some(tick), std::ptr::null_mut(), None), None)?;
            }
            let spawned = std::thread::Builder::new().name("libvirt-events".to_owned()).spawn(|| {
                loop {
                    // SAFETY: only this thread runs the loop.
                    if unsafe { sys::virEventRunDefaultImpl() } < 0 {
                        tracing::error!("libvirt's event loop: {}", super::error::said().words);
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                }
            });
            spawned.map(|_| ()).map_err(|e| HvError::Disconnected(format!("cannot start the event loop thread: {e}")))
        })
        .clone()
}

unsafe extern "C" fn tick(_: c_int, _: *mut c_void) {}
