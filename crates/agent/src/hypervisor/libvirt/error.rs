//! libvirt's errors in our terms. libvirt keeps the last error per thread, so it is read on the thread that made the call.

use std::ffi::CStr;
use std::os::raw::{c_char, c_int, c_void};
use std::sync::Once;

use virt_sys as sys;
use vmkeep_types::ids::VmId;

use crate::hypervisor::HvError;

/// What libvirt said on this thread's last failed call.
pub struct Said {
    pub code: u32,
    pub domain: u32,
    pub words: String,
}

/// libvirt prints every error to stderr until it is told not to.
pub fn silence() {
    unsafe extern "C" fn ignore(_: *mut c_void, _: sys::virErrorPtr) {}
    static ONCE: Once = Once::new();
    // SAFETY: the handler ignores its arguments.
    ONCE.call_once(|| unsafe { sys::virSetErrorFunc(std::ptr::null_mut(), Some(ignore)) });
}

pub fn said() -> Said {
    // SAFETY: the pointer is to this thread's error, valid until its next libvirt call; we copy out of it at once.
    unsafe {
        let error = sys::virGetLastError();
        let Some(error) = error.as_ref() else {
            return Said { code: 0, domain: 0, words: "libvirt failed without saying why".to_owned() };
        };
        Said { code: error.code as u32, domain: error.domain as u32, words: text(error.message).unwrap_or_default() }
    }
}

impl Said {
    /// `about`: the domain that the call was for.
    pub fn meaning(self, about: Option<VmId>) -> HvError {
        if self.is_disconnect() {
            return HvError::Disconnected(self.words);
        }
        match (self.code, about) {
            (sys::VIR_ERR_NO_DOMAIN, Some(uuid)) => HvError::NoDomain(uuid),
            (sys::VIR_ERR_OPERATION_INVALID, _) => HvError::WrongState(self.words),
            (sys::VIR_ERR_NO_SUPPORT | sys::VIR_ERR_OPERATION_UNSUPPORTED | sys::VIR_ERR_ARGUMENT_UNSUPPORTED, _) => {
                HvError::Unsupported(self.words)
            }
            _ => HvError::Refused(self.words),
        }
    }

    /// The connection broke, before or during the call: what it changed is then unknown.
    fn is_disconnect(&self) -> bool {
        let by_wire = matches!(self.domain, sys::VIR_FROM_RPC | sys::VIR_FROM_REMOTE);
        let broken = matches!(self.code, sys::VIR_ERR_SYSTEM_ERROR | sys::VIR_ERR_INTERNAL_ERROR | sys::VIR_ERR_NO_CONNECT);
        self.code == sys::VIR_ERR_INVALID_CONN || (by_wire && broken)
    }
}

pub fn last(about: Option<VmId>) -> HvError {
    said().meaning(about)
}

/// A call's answer below zero is a failure.
pub fn check(answer: c_int, about: Option<VmId>) -> Result<c_int, HvError> {
    if answer < 0 { Err(last(about)) } else { Ok(answer) }
}

/// Copies a C string; null is None.
///
/// # Safety
/// `s` is null or a valid C string.
pub unsafe fn text(s: *const c_char) -> Option<String> {
    // SAFETY: by the caller's word.
    (!s.is_null()).then(|| unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned())
}

/// Takes a string that libvirt allocated for us; null means that the call failed.
///
/// # Safety
/// `s` is null or a string from malloc that nobody else frees.
pub unsafe fn take_text(s: *mut c_char, about: Option<VmId>) -> Result<String, HvError> {
    // SAFETY: by the caller's word.
    unsafe {
        let copy = text(s).ok_or_else(|| last(about))?;
        libc::free(s.cast());
        Ok(copy)
    }
}
