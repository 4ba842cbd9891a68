//! Time and boot identity of the host, injected so that test hosts on one kernel can have their own.

use std::path::PathBuf;

/// Milliseconds of CLOCK_BOOTTIME: goes on while the host sleeps, never steps.
pub fn boottime_ms() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("every Linux has CLOCK_BOOTTIME");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec() / 1_000_000).unwrap_or(0);
    seconds * 1000 + millis
}

/// Where the boot id is read from: the kernel's, or a file that a test host renews at each of its boots.
#[derive(Clone, Debug)]
pub struct BootId(pub PathBuf);

impl Default for BootId {
    fn default() -> Self {
        Self(PathBuf::from("/proc/sys/kernel/random/boot_id"))
    }
}

impl BootId {
    /// # Errors
    /// When the file cannot be read: without an identity of this boot no decision about past times is safe.
    pub fn read(&self) -> std::io::Result<String> {
        Ok(std::fs::read_to_string(&self.0)?.trim().to_owned())
    }
}
