//! UEFI firmware (OVMF) and the software TPM.

use std::fs;
use std::path::Path;

use vmkeep_types::host::CheckRow;

use super::row::{fail, ok, warn};
use super::tools::find;

#[derive(Clone, Debug)]
pub struct FirmwareFacts {
    /// Plain UEFI code is there.
    pub uefi: bool,
    /// With Secure Boot and enrolled keys.
    pub secure_boot: bool,
    /// libvirt chooses by these files.
    pub descriptors: usize,
    pub seabios: bool,
    pub swtpm: bool,
    pub swtpm_setup: bool,
}

pub fn gather() -> FirmwareFacts {
    let ovmf = |names: &[&str]| names.iter().any(|name| Path::new("/usr/share/OVMF").join(name).exists());
    let descriptors = fs::read_dir("/usr/share/qemu/firmware").into_iter().flatten().flatten();
    FirmwareFacts {
        uefi: ovmf(&["OVMF_CODE_4M.fd", "OVMF_CODE.fd"]),
        secure_boot: ovmf(&["OVMF_CODE_4M.ms.fd", "OVMF_CODE_4M.secboot.fd"]) && ovmf(&["OVMF_VARS_4M.ms.fd"]),
        descriptors: descriptors.filter(|e| e.path().extension().is_some_and(|e| e == "json")).count(),
        seabios: ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"].iter().any(|p| Path::new(p).exists()),
        swtpm: find("swtpm").is_some(),
        swtpm_setup: find("swtpm_setup").is_some(),
    }
}

pub fn judge(facts: &FirmwareFacts) -> Vec<CheckRow> {
    vec![uefi(facts), bios(facts), tpm(facts)]
}

fn uefi(facts: &FirmwareFacts) -> CheckRow {
    let mend = || Some("apt-get install ovmf".to_owned());
    if !facts.uefi {
        return fail("ovmf", "missing", "UEFI is the default firmware: VMs without `firmware: bios` do not start", mend());
    }
    if facts.descriptors == 0 {
        return fail("ovmf", "no descriptors in /usr/share/qemu/firmware", "libvirt chooses firmware by them", mend());
    }
    if !facts.secure_boot {
        return warn("ovmf", "without Secure Boot", "VMs with `secure_boot: true` (and Windows) do not start", mend());
    }
    ok("ovmf", "UEFI, with and without Secure Boot")
}

fn bios(facts: &FirmwareFacts) -> CheckRow {
    if facts.seabios {
        return ok("seabios", "is there");
    }
    fail("seabios", "missing", "VMs with `firmware: bios` do not start", Some("apt-get install seabios".into()))
}

fn tpm(facts: &FirmwareFacts) -> CheckRow {
    if facts.swtpm && facts.swtpm_setup {
        return ok("swtpm", "is there");
    }
    let found = if facts.swtpm { "swtpm without swtpm_setup" } else { "missing" };
    warn("swtpm", found, "VMs with `tpm: true` (and Windows 11) do not start", Some("apt-get install swtpm swtpm-tools".into()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(change: impl FnOnce(&mut FirmwareFacts), expect: Expect) {
        let mut facts = FirmwareFacts { uefi: true, secure_boot: true, descriptors: 3, seabios: true, swtpm: true, swtpm_setup: true };
        change(&mut facts);
        expect.assert_eq(&show(&judge(&facts)));
    }

    #[test]
    fn what_may_be_missing() {
        check(
            |_| {},
            expect![[r#"
                ok ovmf: UEFI, with and without Secure Boot
                ok seabios: is there
                ok swtpm: is there
            "#]],
        );
        check(
            |f| {
                f.uefi = false;
                f.seabios = false;
                f.swtpm = false;
            },
            expect![[r#"
                fail ovmf: missing
                  UEFI is the default firmware: VMs without `firmware: bios` do not start
                  $ apt-get install ovmf
                fail seabios: missing
                  VMs with `firmware: bios` do not start
                  $ apt-get install seabios
                warn swtpm: missing
                  VMs with `tpm: true` (and Windows 11) do not start
                  $ apt-get install swtpm swtpm-tools
            "#]],
        );
        check(
            |f| {
                f.secure_boot = false;
                f.swtpm_setup = false;
            },
            expect![[r#"
                warn ovmf: without Secure Boot
                  VMs with `secure_boot: true` (and Windows) do not start
                  $ apt-get install ovmf
                ok seabios: is there
                warn swtpm: swtpm without swtpm_setup
                  VMs with `tpm: true` (and Windows 11) do not start
                  $ apt-get install swtpm swtpm-tools
            "#]],
        );
        check(
            |f| f.descriptors = 0,
            expect![[r#"
                fail ovmf: no descriptors in /usr/share/qemu/firmware
                  libvirt chooses firmware by them
                  $ apt-get install ovmf
                ok seabios: is there
                ok swtpm: is there
            "#]],
        );
    }
}
