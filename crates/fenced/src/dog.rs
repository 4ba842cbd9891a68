//! The watchdog: what resets this host when nobody pets it.
//!
//! Opened when the guard is armed and not before: an open watchdog bites. It is closed politely (the magic character) in one place
//! only. A kernel that allows no polite close (`nowayout`) leaves it open: it is petted on while the guard is idle.

mod device;
mod lab;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use vmkeep_core::ha::fenced::wire::IDENTITY_BYTES;
use vmkeep_types::ha::WatchdogKind;

pub use device::Device;
pub use lab::Lab;

use crate::args::Choice;

/// The kernel's own watchdog, which stands still while the whole host does.
const SOFTWARE: &[u8] = b"Software Watchdog";

#[derive(Debug)]
pub enum Dog {
    None,
    Device(Device),
    Lab(Lab),
}

/// Why a watchdog is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    None,
    NotOpened(Errno),
    /// It bites after so many ms and no earlier.
    TooSlow(u32),
}

/// What is known of a watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    pub kind: WatchdogKind,
    pub identity: [u8; IDENTITY_BYTES],
}

impl About {
    /// By the name that the kernel gives it.
    pub fn named(name: &[u8]) -> Self {
        let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len()).min(IDENTITY_BYTES)];
        let mut identity = [0; IDENTITY_BYTES];
        identity[..name.len()].copy_from_slice(name);
        Self { kind: if name == SOFTWARE { WatchdogKind::Software } else { WatchdogKind::Hardware }, identity }
    }
}

impl Dog {
    pub fn find(choice: &Choice) -> Self {
        match choice {
            Choice::Auto => Device::best().map_or(Self::None, Self::Device),
            Choice::None => Self::None,
            Choice::Device(path) => Self::Device(Device::at(path)),
            Choice::Lab(path) => Self::Lab(Lab::at(path)),
        }
    }

    pub fn about(&self) -> Option<About> {
        match self {
            Self::None => None,
            Self::Device(device) => Some(device.about),
            Self::Lab(lab) => Some(lab.about),
        }
    }

    /// Its time-out as it was read back, ms; None: not open.
    pub fn open_ms(&self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Device(device) => device.open_ms(),
            Self::Lab(lab) => lab.open_ms(),
        }
    }

    pub fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::None => None,
            Self::Device(device) => device.descriptor(),
            Self::Lab(lab) => lab.descriptor(),
        }
    }

    /// It was opened by the program before this one.
    pub fn inherit(&mut self, fd: OwnedFd, watchdog_ms: u32, about: About) {
        match self {
            Self::None => drop(fd),
            Self::Device(device) => device.inherit(fd, watchdog_ms, about),
            Self::Lab(lab) => lab.inherit(fd, watchdog_ms, about),
        }
    }

    /// Opens it with this time-out or a shorter one.
    ///
    /// # Errors
    /// It is closed again then.
    pub fn open(&mut self, watchdog_ms: u32) -> Result<(), Closed> {
        match self {
            Self::None => Err(Closed::None),
            Self::Device(device) => device.open(watchdog_ms),
            Self::Lab(lab) => lab.open(watchdog_ms),
        }
    }

    /// # Errors
    /// The kernel's words; nothing can be done about them.
    pub fn pet(&mut self) -> Result<(), Errno> {
        match self {
            Self::None => Ok(()),
            Self::Device(device) => device.pet(),
            Self::Lab(lab) => lab.pet(),
        }
    }

    /// Politely: no reset follows.
    pub fn close(&mut self) {
        match self {
            Self::None => {}
            Self::Device(device) => device.close(),
            Self::Lab(lab) => lab.close(),
        }
    }
}

/// An open descriptor that came over an exec.
///
/// # Safety
/// Nothing else in this process owns it.
pub unsafe fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
