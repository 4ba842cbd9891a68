//! The kernel: version, IOMMU for passthrough, vhost-net.

use std::fs;
use std::path::Path;

use vmkeep_types::host::CheckRow;

use super::row::{fail, ok, warn};
use super::versions::number;

#[derive(Clone, Debug)]
pub struct KernelFacts {
    pub release: String,
    pub iommu_groups: usize,
    /// `hypervisor` in the CPU's flags.
    pub virtual_host: bool,
    pub intel: bool,
    pub vhost_net: bool,
}

pub fn gather() -> KernelFacts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    KernelFacts {
        release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        iommu_groups: fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count),
        virtual_host: crate::host::facts::cpu_flags(&cpuinfo).contains(&"hypervisor"),
        intel: cpuinfo.contains("GenuineIntel"),
        vhost_net: Path::new("/dev/vhost-net").exists(),
    }
}

pub fn judge(facts: &KernelFacts) -> Vec<CheckRow> {
    vec![kernel(facts), iommu(facts), vhost_net(facts)]
}

fn kernel(facts: &KernelFacts) -> CheckRow {
    match number(&facts.release) {
        version if version >= (6, 1) => ok("kernel", facts.release.clone()),
        version if version >= (5, 10) => {
            let why = "vmkeep is tested from Linux 6.1 (Debian 12) on";
            warn("kernel", facts.release.clone(), why, Some("apt-get install linux-image-amd64".into()))
        }
        _ => fail(
            "kernel",
            facts.release.clone(),
            "io_uring and cgroup v2 are not complete before Linux 5.10",
            Some("upgrade to Debian 12 or 13".into()),
        ),
    }
}

fn iommu(facts: &KernelFacts) -> CheckRow {
    if facts.iommu_groups > 0 {
        return ok("iommu", format!("{} groups", facts.iommu_groups));
    }
    if facts.virtual_host {
        return ok("iommu", "none (this host is itself a VM): no PCI passthrough");
    }
    let option = if facts.intel { "intel_iommu=on iommu=pt" } else { "iommu=pt" };
    let mend = format!(
        "switch VT-d or AMD-Vi on in the firmware setup, add '{option}' to GRUB_CMDLINE_LINUX in /etc/default/grub; update-grub; reboot"
    );
    warn("iommu", "off", "PCI devices cannot be given to VMs (`devices.pci`)", Some(mend))
}

fn vhost_net(facts: &KernelFacts) -> CheckRow {
    if facts.vhost_net {
        return ok("vhost-net", "/dev/vhost-net is there");
    }
    let why = "virtio NICs are served by QEMU itself instead of the kernel: more CPU per packet";
    warn("vhost-net", "missing", why, Some("modprobe vhost_net && echo vhost_net > /etc/modules-load.d/vhost-net.conf".into()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(change: impl FnOnce(&mut KernelFacts), expect: Expect) {
        let mut facts =
            KernelFacts { release: "6.12.48+deb13-amd64".into(), iommu_groups: 31, virtual_host: false, intel: true, vhost_net: true };
        change(&mut facts);
        expect.assert_eq(&show(&judge(&facts)));
    }

    #[test]
    fn all_is_well() {
        check(
            |_| {},
            expect![[r#"
                ok kernel: 6.12.48+deb13-amd64
                ok iommu: 31 groups
                ok vhost-net: /dev/vhost-net is there
            "#]],
        );
    }

    #[test]
    fn old_kernels() {
        check(
            |f| f.release = "5.10.0-32-amd64".into(),
            expect![[r#"
                warn kernel: 5.10.0-32-amd64
                  vmkeep is tested from Linux 6.1 (Debian 12) on
                  $ apt-get install linux-image-amd64
                ok iommu: 31 groups
                ok vhost-net: /dev/vhost-net is there
            "#]],
        );
        check(
            |f| f.release = "4.19.0-27-amd64".into(),
            expect![[r#"
                fail kernel: 4.19.0-27-amd64
                  io_uring and cgroup v2 are not complete before Linux 5.10
                  $ upgrade to Debian 12 or 13
                ok iommu: 31 groups
                ok vhost-net: /dev/vhost-net is there
            "#]],
        );
    }

    #[test]
    fn no_iommu_and_no_vhost() {
        check(
            |f| {
                f.iommu_groups = 0;
                f.vhost_net = false;
            },
            expect![[r#"
                ok kernel: 6.12.48+deb13-amd64
                warn iommu: off
                  PCI devices cannot be given to VMs (`devices.pci`)
                  $ switch VT-d or AMD-Vi on in the firmware setup, add 'intel_iommu=on iommu=pt' to GRUB_CMDLINE_LINUX in /etc/default/grub; update-grub; reboot
                warn vhost-net: missing
                  virtio NICs are served by QEMU itself instead of the kernel: more CPU per packet
                  $ modprobe vhost_net && echo vhost_net > /etc/modules-load.d/vhost-net.conf
            "#]],
        );
        check(
            |f| {
                f.iommu_groups = 0;
                f.virtual_host = true;
            },
            expect![[r#"
                ok kernel: 6.12.48+deb13-amd64
                ok iommu: none (this host is itself a VM): no PCI passthrough
                ok vhost-net: /dev/vhost-net is there
            "#]],
        );
    }
}
