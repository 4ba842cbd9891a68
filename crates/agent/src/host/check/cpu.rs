//! KVM, what the CPU offers guests, and nesting.

use std::fs;

use vmkeep_types::host::{CheckRow, KvmState};

use super::row::{fail, ok, warn};
use crate::host::facts::{KvmDevice, KvmFacts, cpu_flags};

/// x86-64-v2: what current enterprise guests are compiled for.
const V2: [&str; 6] = ["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"];
/// x86-64-v3.
const V3: [&str; 8] = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"];

#[derive(Clone, Debug)]
pub struct CpuFacts {
    pub arch: String,
    pub model: String,
    pub cpus: usize,
    pub flags: Vec<String>,
    pub kvm: KvmFacts,
    /// `nested` parameter of kvm_intel or kvm_amd; None = neither is loaded.
    pub nested: Option<String>,
}

pub fn gather() -> CpuFacts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
    let nested = ["kvm_intel", "kvm_amd"].iter().find_map(|m| fs::read_to_string(format!("/sys/module/{m}/parameters/nested")).ok());
    CpuFacts {
        arch: std::env::consts::ARCH.into(),
        model: model.map_or_else(|| "unknown CPU".into(), |(_, model)| model.trim().to_owned()),
        cpus: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
        flags: cpu_flags(&cpuinfo).into_iter().map(str::to_owned).collect(),
        kvm: KvmFacts::gather(&cpuinfo),
        nested: nested.map(|n| n.trim().to_owned()),
    }
}

pub fn judge(facts: &CpuFacts) -> Vec<CheckRow> {
    vec![kvm(&facts.kvm), cpu(facts), nested(facts)]
}

fn kvm(facts: &KvmFacts) -> CheckRow {
    let why = match facts.judge() {
        KvmState::Usable => {
            let extension = facts.extension.unwrap_or("virtualisation");
            let where_ = if facts.virtual_host { ", nested: this host is itself a VM" } else { "" };
            return ok("kvm", format!("usable ({extension}{where_})"));
        }
        KvmState::Unusable { why } => why,
    };
    let slow = format!("{why}. VMs run under emulation (TCG), ten to fifty times slower");
    match (facts.extension, facts.virtual_host, &facts.device) {
        (None, true, _) => {
            warn("kvm", "not usable", slow, Some("switch nested virtualisation on in the hypervisor that runs this host".into()))
        }
        (None, false, _) => warn("kvm", "not usable", slow, Some("switch VT-x or AMD-V (SVM) on in the firmware setup".into())),
        (Some(extension), _, KvmDevice::Missing) => {
            let module = if extension == "svm" { "kvm_amd" } else { "kvm_intel" };
            fail("kvm", "not usable", slow, Some(format!("modprobe {module}")))
        }
        (Some(_), _, KvmDevice::CannotOpen(_)) => {
            fail("kvm", "not usable", slow, Some("ls -l /dev/kvm; udevadm trigger --name-match=kvm".into()))
        }
        (Some(_), _, _) => fail("kvm", "not usable", slow, Some("dmesg | grep -i kvm".into())),
    }
}

fn cpu(facts: &CpuFacts) -> CheckRow {
    if facts.arch != "x86_64" {
        return fail("cpu", facts.arch.clone(), "vmkeep makes x86_64 VMs only", None);
    }
    let has = |wanted: &[&str]| wanted.iter().all(|flag| facts.flags.iter().any(|f| f == flag));
    let what = format!("{} x {}", facts.cpus, facts.model);
    if has(&V2) && has(&V3) {
        return ok("cpu", format!("{what}, x86-64-v3"));
    }
    if has(&V2) {
        return ok("cpu", format!("{what}, x86-64-v2"));
    }
    let missing: Vec<&str> = V2.into_iter().filter(|flag| !facts.flags.iter().any(|f| f == flag)).collect();
    let why = format!("it lacks {}: guests compiled for x86-64-v2 (RHEL 9, Windows 11 24H2) do not boot", missing.join(", "));
    warn("cpu", format!("{what}, x86-64-v1"), why, None)
}

fn nested(facts: &CpuFacts) -> CheckRow {
    match facts.nested.as_deref() {
        Some("1" | "Y" | "y") => ok("nested", "guests may run VMs themselves"),
        Some(_) => ok("nested", "off: guests cannot run VMs themselves"),
        None => ok("nested", "no KVM module is loaded"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn good() -> CpuFacts {
        CpuFacts {
            arch: "x86_64".into(),
            model: "AMD EPYC 9354".into(),
            cpus: 64,
            flags: V2.iter().chain(&V3).map(|f| (*f).to_owned()).collect(),
            kvm: KvmFacts { extension: Some("svm"), virtual_host: false, device: KvmDevice::MakesVms },
            nested: Some("1".into()),
        }
    }

    fn check(change: impl FnOnce(&mut CpuFacts), expect: Expect) {
        let mut facts = good();
        change(&mut facts);
        expect.assert_eq(&show(&judge(&facts)));
    }

    #[test]
    fn a_good_host() {
        check(
            |_| {},
            expect![[r#"
                ok kvm: usable (svm)
                ok cpu: 64 x AMD EPYC 9354, x86-64-v3
                ok nested: guests may run VMs themselves
            "#]],
        );
    }

    #[test]
    fn no_extension_on_metal_and_in_a_vm() {
        check(
            |f| f.kvm = KvmFacts { extension: None, virtual_host: false, device: KvmDevice::Missing },
            expect![[r#"
                warn kvm: not usable
                  no vmx/svm in /proc/cpuinfo: the CPU offers no hardware virtualisation. VMs run under emulation (TCG), ten to fifty times slower
                  $ switch VT-x or AMD-V (SVM) on in the firmware setup
                ok cpu: 64 x AMD EPYC 9354, x86-64-v3
                ok nested: guests may run VMs themselves
            "#]],
        );
        check(
            |f| {
                f.kvm = KvmFacts { extension: None, virtual_host: true, device: KvmDevice::MakesVms };
                f.nested = None;
            },
            expect![[r#"
                warn kvm: not usable
                  no vmx/svm in /proc/cpuinfo: the CPU offers no hardware virtualisation, although /dev/kvm opens. VMs run under emulation (TCG), ten to fifty times slower
                  $ switch nested virtualisation on in the hypervisor that runs this host
                ok cpu: 64 x AMD EPYC 9354, x86-64-v3
                ok nested: no KVM module is loaded
            "#]],
        );
    }

    #[test]
    fn a_module_that_is_not_loaded_and_a_device_that_is_busy() {
        check(
            |f| f.kvm.device = KvmDevice::Missing,
            expect![[r#"
                fail kvm: not usable
                  /dev/kvm is missing: the kernel's KVM module is not loaded. VMs run under emulation (TCG), ten to fifty times slower
                  $ modprobe kvm_amd
                ok cpu: 64 x AMD EPYC 9354, x86-64-v3
                ok nested: guests may run VMs themselves
            "#]],
        );
        check(
            |f| f.kvm.device = KvmDevice::CannotMakeVm("Device or resource busy (os error 16)".into()),
            expect![[r#"
                fail kvm: not usable
                  /dev/kvm opens but makes no VM: Device or resource busy (os error 16). VMs run under emulation (TCG), ten to fifty times slower
                  $ dmesg | grep -i kvm
                ok cpu: 64 x AMD EPYC 9354, x86-64-v3
                ok nested: guests may run VMs themselves
            "#]],
        );
    }

    #[test]
    fn an_old_cpu_and_another_architecture() {
        check(
            |f| f.flags.retain(|flag| flag != "popcnt" && flag != "sse4_2"),
            expect![[r#"
                ok kvm: usable (svm)
                warn cpu: 64 x AMD EPYC 9354, x86-64-v1
                  it lacks popcnt, sse4_2: guests compiled for x86-64-v2 (RHEL 9, Windows 11 24H2) do not boot
                ok nested: guests may run VMs themselves
            "#]],
        );
        check(
            |f| {
                f.arch = "aarch64".into();
                f.nested = Some("0".into());
            },
            expect![[r#"
                ok kvm: usable (svm)
                fail cpu: aarch64
                  vmkeep makes x86_64 VMs only
                ok nested: off: guests cannot run VMs themselves
            "#]],
        );
    }
}
