//! What this machine has: CPUs, memory, and whether KVM really works here.
//!
//! `/dev/kvm` alone proves nothing: nested hosts may offer it and hang every guest. KVM counts as usable when the CPU shows
//! vmx or svm *and* the kernel makes a VM when asked.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use vmkeep_types::host::KvmState;
use vmkeep_types::units::ByteCount;

/// `_IO(0xAE, 0x00)` of linux/kvm.h.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
/// `_IO(0xAE, 0x01)`.
const KVM_CREATE_VM: libc::c_ulong = 0xAE01;
/// The only version there has been since 2007.
const KVM_API_VERSION: i32 = 12;

/// What a node tells of itself at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u32,
    pub memory: ByteCount,
    pub kvm: KvmState,
}

pub fn machine() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory: meminfo_field(&meminfo, "MemTotal").unwrap_or_default(),
        kvm: KvmFacts::gather(&cpuinfo).judge(),
    }
}

/// A line of `/proc/meminfo`.
pub fn meminfo_field(meminfo: &str, field: &str) -> Option<ByteCount> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(ByteCount::from_bytes(kib << 10))
}

/// The CPU's flags in `/proc/cpuinfo`.
pub fn cpu_flags(cpuinfo: &str) -> Vec<&str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).and_then(|line| line.split_once(':'));
    flags.map(|(_, flags)| flags.split_ascii_whitespace().collect()).unwrap_or_default()
}

/// How the device answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    Missing,
    /// The system's reason.
    CannotOpen(String),
    /// It opens but makes no VM.
    CannotMakeVm(String),
    MakesVms,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmFacts {
    /// `vmx` or `svm`.
    pub extension: Option<&'static str>,
    /// This host is itself a VM.
    pub virtual_host: bool,
    pub device: KvmDevice,
}

impl KvmFacts {
    pub fn gather(cpuinfo: &str) -> Self {
        let flags = cpu_flags(cpuinfo);
        Self {
            extension: ["vmx", "svm"].into_iter().find(|flag| flags.contains(flag)),
            virtual_host: flags.contains(&"hypervisor"),
            device: probe(Path::new("/dev/kvm")),
        }
    }

    pub fn judge(&self) -> KvmState {
        let why = match (self.extension, &self.device) {
            (Some(_), KvmDevice::MakesVms) => return KvmState::Usable,
            (None, KvmDevice::MakesVms) => {
                "no vmx/svm in /proc/cpuinfo: the CPU offers no hardware virtualisation, although /dev/kvm opens".into()
            }
            (None, _) => "no vmx/svm in /proc/cpuinfo: the CPU offers no hardware virtualisation".into(),
            (Some(_), KvmDevice::Missing) => "/dev/kvm is missing: the kernel's KVM module is not loaded".into(),
            (Some(_), KvmDevice::CannotOpen(why)) => format!("/dev/kvm does not open: {why}"),
            (Some(_), KvmDevice::CannotMakeVm(why)) => format!("/dev/kvm opens but makes no VM: {why}"),
        };
        KvmState::Unusable { why }
    }
}

/// Makes an empty VM and drops it at once.
fn probe(path: &Path) -> KvmDevice {
    let device = match fs::File::options().read(true).write(true).open(path) {
        Ok(device) => device,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return KvmDevice::Missing,
        Err(e) => return KvmDevice::CannotOpen(e.to_string()),
    };
    let failed = || KvmDevice::CannotMakeVm(std::io::Error::last_os_error().to_string());
    // SAFETY: the descriptor is open; both calls take an integer argument and touch no memory of ours.
    unsafe {
        match libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION as _, 0) {
            KVM_API_VERSION => {}
            version if version >= 0 => return KvmDevice::CannotMakeVm(format!("KVM API version {version}")),
            _ => return failed(),
        }
        let vm = libc::ioctl(device.as_raw_fd(), KVM_CREATE_VM as _, 0);
        if vm < 0 {
            return failed();
        }
        libc::close(vm);
    }
    KvmDevice::MakesVms
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(extension: Option<&'static str>, device: KvmDevice, expect: Expect) {
        let state = KvmFacts { extension, virtual_host: false, device }.judge();
        let words = match state {
            KvmState::Usable => "usable".to_owned(),
            KvmState::Unusable { why } => why,
        };
        expect.assert_eq(&words);
    }

    #[test]
    fn kvm_counts_only_when_the_cpu_and_the_kernel_agree() {
        check(Some("svm"), KvmDevice::MakesVms, expect!["usable"]);
        check(
            None,
            KvmDevice::MakesVms,
            expect!["no vmx/svm in /proc/cpuinfo: the CPU offers no hardware virtualisation, although /dev/kvm opens"],
        );
        check(None, KvmDevice::Missing, expect!["no vmx/svm in /proc/cpuinfo: the CPU offers no hardware virtualisation"]);
        check(Some("vmx"), KvmDevice::Missing, expect!["/dev/kvm is missing: the kernel's KVM module is not loaded"]);
        check(Some("vmx"), KvmDevice::CannotOpen("Permission denied".into()), expect!["/dev/kvm does not open: Permission denied"]);
        check(
            Some("vmx"),
            KvmDevice::CannotMakeVm("Device or resource busy".into()),
            expect!["/dev/kvm opens but makes no VM: Device or resource busy"],
        );
    }

    #[test]
    fn this_machine_is_described() {
        let machine = machine();
        assert!(machine.cpus > 0);
        assert!(machine.memory > ByteCount::from_mib(64), "{}", machine.memory);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").expect("every Linux has it");
        let flags = cpu_flags(&cpuinfo);
        if !flags.contains(&"vmx") && !flags.contains(&"svm") {
            assert!(matches!(machine.kvm, KvmState::Unusable { .. }), "a device node alone proves nothing");
        }
    }

    #[test]
    fn proc_files_are_read() {
        assert_eq!(meminfo_field("MemTotal:        4030000 kB\nMemFree: 1 kB\n", "MemTotal"), Some(ByteCount::from_bytes(4_030_000 << 10)));
        assert_eq!(meminfo_field("MemTotal: x\n", "MemTotal"), None);
        assert_eq!(cpu_flags("model name\t: x\nflags\t\t: fpu svm\n"), ["fpu", "svm"]);
    }
}
