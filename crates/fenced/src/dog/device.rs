//! `/dev/watchdogN`, by the kernel's watchdog interface.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc::c_int;
use nix::sys::stat::Mode;
use nix::unistd::write;
use vmkeep_types::ha::WatchdogKind;

use super::{About, Closed};

/// More than any host has.
const DEVICES_MAX: usize = 16;

/// `struct watchdog_info` of linux/watchdog.h.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Support {
    options: u32,
    firmware: u32,
    identity: [u8; 32],
}

/// WDIOF_MAGICCLOSE: a close without the magic character does not stop it.
const MAGIC_CLOSE: u32 = 0x0100;

mod calls {
    use super::{Support, c_int};

    nix::ioctl_read!(support, b'W', 0, Support);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, c_int);
    nix::ioctl_read!(get_timeout, b'W', 7, c_int);
}

/// Can it be closed politely?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Magic,
    Never,
}

#[derive(Debug)]
pub struct Device {
    path: CString,
    leave: Leave,
    pub about: About,
    open: Option<(OwnedFd, u32)>,
}

impl Device {
    /// The first hardware watchdog, else a software one. Nothing is opened: that would start it.
    pub fn best() -> Option<Self> {
        let there = (0..DEVICES_MAX).filter_map(|n| {
            let path = format!("/dev/watchdog{n}");
            Path::new(&path).exists().then(|| Self::at(Path::new(&path)))
        });
        let mut found: Vec<Self> = there.collect();
        found.sort_by_key(|device| device.about.kind == WatchdogKind::Software);
        found.into_iter().next()
    }

    pub fn at(path: &Path) -> Self {
        let of = |what: &str| fs::read(Path::new("/sys/class/watchdog").join(path.file_name().unwrap_or_default()).join(what));
        let name = of("identity").unwrap_or_else(|_| b"unknown".to_vec());
        let leave = if of("nowayout").is_ok_and(|word| word.starts_with(b"1")) { Leave::Never } else { Leave::Magic };
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL");
        Self { path, leave, about: About::named(name.trim_ascii_end()), open: None }
    }

    pub fn path(&self) -> &CStr {
        &self.path
    }

    pub fn open_ms(&self) -> Option<u32> {
        self.open.as_ref().map(|(_, ms)| *ms)
    }

    pub fn descriptor(&self) -> Option<RawFd> {
        self.open.as_ref().map(|(fd, _)| fd.as_raw_fd())
    }

    /// The open device that a program before this one left to it.
    pub fn inherit(&mut self, fd: OwnedFd, watchdog_ms: u32, about: About) {
        (self.open, self.about) = (Some((fd, watchdog_ms)), about);
    }

    pub fn open(&mut self, watchdog_ms: u32) -> Result<(), Closed> {
        let fd = match self.open.take() {
            Some((kept, _)) => kept,
            None => open(self.path.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(Closed::NotOpened)?,
        };
        match self.prepare(&fd, watchdog_ms) {
            Ok(ms) => {
                self.open = Some((fd, ms));
                Ok(())
            }
            Err(why) => {
                self.open = Some((fd, watchdog_ms));
                self.close();
                Err(why)
            }
        }
    }

    /// Its time-out, ms.
    fn prepare(&mut self, fd: &OwnedFd, watchdog_ms: u32) -> Result<u32, Closed> {
        let mut support = Support::default();
        // SAFETY: the kernel fills in a struct of this very layout, which outlives the call.
        unsafe { calls::support(fd.as_raw_fd(), &raw mut support) }.map_err(Closed::NotOpened)?;
        self.about = About::named(&support.identity);
        if support.options & MAGIC_CLOSE == 0 && self.leave == Leave::Magic {
            // The death of this process would switch it off.
            return Err(Closed::NotOpened(Errno::EOPNOTSUPP));
        }
        let mut seconds = c_int::try_from((watchdog_ms / 1000).max(1)).unwrap_or(c_int::MAX);
        // SAFETY: an int in, an int out. An error is no matter: what counts is what is read back.
        let _ = unsafe { calls::set_timeout(fd.as_raw_fd(), &raw mut seconds) };
        let mut read_back: c_int = 0;
        // SAFETY: as above.
        unsafe { calls::get_timeout(fd.as_raw_fd(), &raw mut read_back) }.map_err(Closed::NotOpened)?;
        let ms = u32::try_from(read_back).ok().filter(|s| *s > 0).map_or(u32::MAX, |s| s.saturating_mul(1000));
        if ms > watchdog_ms { Err(Closed::TooSlow(ms)) } else { Ok(ms) }
    }

    pub fn pet(&mut self) -> Result<(), Errno> {
        self.open.as_ref().map_or(Ok(()), |(fd, _)| write(fd, b"\0").map(drop))
    }

    pub fn close(&mut self) {
        if self.leave == Leave::Magic
            && let Some((fd, _)) = self.open.take()
        {
            let _ = write(&fd, b"V");
        }
    }
}
