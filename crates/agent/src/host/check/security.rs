//! What confines QEMU: AppArmor or SELinux, and its own seccomp sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use vmkeep_types::host::CheckRow;

use super::row::{ok, warn};

/// What libvirt's AppArmor helper may read everywhere; our files end so.
const LIBVIRT_IMAGES: &str = "/var/lib/libvirt/images";

#[derive(Clone, Debug)]
pub struct SecurityFacts {
    /// The kernel has AppArmor, and it is on.
    pub apparmor: bool,
    /// libvirt's helper has its profile.
    pub aa_helper: bool,
    pub selinux_enforcing: bool,
    /// `security_driver` of qemu.conf.
    pub security_driver: Option<String>,
    /// `seccomp_sandbox` of qemu.conf.
    pub seccomp_sandbox: Option<String>,
    /// The kernel filters system calls.
    pub kernel_seccomp: bool,
    pub pool: PathBuf,
}

pub fn gather(pool: &Path) -> SecurityFacts {
    let conf = fs::read_to_string("/etc/libvirt/qemu.conf").unwrap_or_default();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    SecurityFacts {
        apparmor: read("/sys/module/apparmor/parameters/enabled").trim() == "Y",
        aa_helper: Path::new("/etc/apparmor.d/usr.lib.libvirt.virt-aa-helper").exists(),
        selinux_enforcing: read("/sys/fs/selinux/enforce").trim() == "1",
        security_driver: setting(&conf, "security_driver"),
        seccomp_sandbox: setting(&conf, "seccomp_sandbox"),
        kernel_seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        pool: pool.to_owned(),
    }
}

/// A setting of qemu.conf: `name = "value"`, `name = 1`, `name = [ "a" ]`; the last one counts.
pub fn setting(conf: &str, name: &str) -> Option<String> {
    let lines = conf.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let value = lines.filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('=')).next_back()?;
    Some(value.trim().trim_matches(['[', ']', ' ']).trim_matches('"').to_owned())
}

pub fn judge(facts: &SecurityFacts) -> Vec<CheckRow> {
    vec![confinement(facts), seccomp(facts)]
}

fn confinement(facts: &SecurityFacts) -> CheckRow {
    let off = facts.security_driver.as_deref() == Some("none");
    let why = "a guest that breaks out of QEMU meets no further wall than its user's rights";
    if off && (facts.apparmor || facts.selinux_enforcing) {
        return warn(
            "confinement",
            "switched off by security_driver in qemu.conf",
            why,
            Some("remove security_driver from /etc/libvirt/qemu.conf; restart libvirt".into()),
        );
    }
    if facts.selinux_enforcing {
        return ok("confinement", "SELinux, enforcing");
    }
    if !facts.apparmor {
        let mend = "apt-get install apparmor; reboot (kernel line: apparmor=1 security=apparmor)";
        return warn("confinement", "neither AppArmor nor SELinux is on", why, Some(mend.into()));
    }
    if !facts.aa_helper {
        return warn(
            "confinement",
            "AppArmor without libvirt's profiles",
            why,
            Some("apt-get install --reinstall libvirt-daemon-system".into()),
        );
    }
    if !facts.pool.starts_with(LIBVIRT_IMAGES) && in_a_home(&facts.pool) {
        let why = "AppArmor lets libvirt's helper read hidden files of homes nowhere: disks there may be refused";
        let found = format!("AppArmor; the pool lies in {}", facts.pool.display());
        return warn("confinement", found, why, Some(format!("put the pool below {LIBVIRT_IMAGES}")));
    }
    ok("confinement", "AppArmor, one profile per VM")
}

fn in_a_home(path: &Path) -> bool {
    path.starts_with("/home") || path.starts_with("/root")
}

fn seccomp(facts: &SecurityFacts) -> CheckRow {
    let why = "QEMU may then use every system call, spawn programs and gain rights";
    if !facts.kernel_seccomp {
        return warn("seccomp", "the kernel has no seccomp", why, None);
    }
    match facts.seccomp_sandbox.as_deref() {
        Some("0") => {
            let mend = "remove seccomp_sandbox from /etc/libvirt/qemu.conf; restart libvirt";
            warn("seccomp", "QEMU's sandbox is switched off in qemu.conf", why, Some(mend.into()))
        }
        _ => ok("seccomp", "QEMU's sandbox is on"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(change: impl FnOnce(&mut SecurityFacts), expect: Expect) {
        let mut facts = SecurityFacts {
            apparmor: true,
            aa_helper: true,
            selinux_enforcing: false,
            security_driver: None,
            seccomp_sandbox: None,
            kernel_seccomp: true,
            pool: "/var/lib/libvirt/images/vmkeep".into(),
        };
        change(&mut facts);
        expect.assert_eq(&show(&judge(&facts)));
    }

    #[test]
    fn stock_debian_and_selinux() {
        check(
            |_| {},
            expect![[r#"
                ok confinement: AppArmor, one profile per VM
                ok seccomp: QEMU's sandbox is on
            "#]],
        );
        check(
            |f| {
                f.apparmor = false;
                f.selinux_enforcing = true;
            },
            expect![[r#"
                ok confinement: SELinux, enforcing
                ok seccomp: QEMU's sandbox is on
            "#]],
        );
    }

    #[test]
    fn walls_that_are_down() {
        check(
            |f| {
                f.apparmor = false;
                f.kernel_seccomp = false;
            },
            expect![[r#"
                warn confinement: neither AppArmor nor SELinux is on
                  a guest that breaks out of QEMU meets no further wall than its user's rights
                  $ apt-get install apparmor; reboot (kernel line: apparmor=1 security=apparmor)
                warn seccomp: the kernel has no seccomp
                  QEMU may then use every system call, spawn programs and gain rights
            "#]],
        );
        check(
            |f| {
                f.security_driver = Some("none".into());
                f.seccomp_sandbox = Some("0".into());
            },
            expect![[r#"
                warn confinement: switched off by security_driver in qemu.conf
                  a guest that breaks out of QEMU meets no further wall than its user's rights
                  $ remove security_driver from /etc/libvirt/qemu.conf; restart libvirt
                warn seccomp: QEMU's sandbox is switched off in qemu.conf
                  QEMU may then use every system call, spawn programs and gain rights
                  $ remove seccomp_sandbox from /etc/libvirt/qemu.conf; restart libvirt
            "#]],
        );
        check(
            |f| f.aa_helper = false,
            expect![[r#"
                warn confinement: AppArmor without libvirt's profiles
                  a guest that breaks out of QEMU meets no further wall than its user's rights
                  $ apt-get install --reinstall libvirt-daemon-system
                ok seccomp: QEMU's sandbox is on
            "#]],
        );
        check(
            |f| f.pool = "/home/me/vms".into(),
            expect![[r#"
                warn confinement: AppArmor; the pool lies in /home/me/vms
                  AppArmor lets libvirt's helper read hidden files of homes nowhere: disks there may be refused
                  $ put the pool below /var/lib/libvirt/images
                ok seccomp: QEMU's sandbox is on
            "#]],
        );
    }

    #[test]
    fn settings_of_qemu_conf() {
        let conf = "# user = \"x\"\nuser = \"root\"\nsecurity_driver = [ \"none\" ]\nseccomp_sandbox=0\nusergroup = \"y\"\n";
        assert_eq!(setting(conf, "user").as_deref(), Some("root"));
        assert_eq!(setting(conf, "security_driver").as_deref(), Some("none"));
        assert_eq!(setting(conf, "seccomp_sandbox").as_deref(), Some("0"));
        assert_eq!(setting(conf, "group"), None);
    }
}
