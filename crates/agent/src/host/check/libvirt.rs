//! Which libvirt daemons answer, and whether libvirt-guests would fight us over shutdown.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmkeep_types::host::CheckRow;

use super::row::{fail, ok, warn};

const SOCKETS: [(&str, &str); 5] = [
    ("libvirtd", "libvirt-sock"),
    ("virtqemud", "virtqemud-sock"),
    ("virtnetworkd", "virtnetworkd-sock"),
    ("virtlogd", "virtlogd-sock"),
    ("virtlockd", "virtlockd-sock"),
];

#[derive(Clone, Debug)]
pub struct LibvirtFacts {
    /// Why libvirt does not answer; None = it does.
    pub down: Option<String>,
    /// Daemons whose socket takes connections.
    pub daemons: Vec<&'static str>,
    /// Packages' programs that are installed.
    pub has_libvirtd: bool,
    pub has_virtqemud: bool,
    /// libvirt-guests.service is wanted at boot.
    pub libvirt_guests: bool,
    /// vmkeep-guests.service is: it is ordered so that libvirt-guests finds nothing left to do.
    pub vmkeep_guests: bool,
    /// `ON_BOOT=start` in libvirt-guests' settings.
    pub guests_start_at_boot: bool,
}

pub fn gather(down: Option<String>) -> LibvirtFacts {
    let answers = |socket: &str| UnixStream::connect(Path::new("/run/libvirt").join(socket)).is_ok();
    let settings = fs::read_to_string("/etc/default/libvirt-guests").unwrap_or_default();
    LibvirtFacts {
        down,
        daemons: SOCKETS.iter().filter(|(_, socket)| answers(socket)).map(|(name, _)| *name).collect(),
        has_libvirtd: Path::new("/usr/sbin/libvirtd").exists(),
        has_virtqemud: Path::new("/usr/sbin/virtqemud").exists(),
        libvirt_guests: enabled("libvirt-guests.service"),
        vmkeep_guests: enabled("vmkeep-guests.service"),
        guests_start_at_boot: settings.lines().any(|l| l.trim().trim_matches('"').replace(['"', '\''], "") == "ON_BOOT=start"),
    }
}

/// Wanted by multi-user.target, and not masked.
fn enabled(unit: &str) -> bool {
    let masked = fs::read_link(Path::new("/etc/systemd/system").join(unit)).is_ok_and(|to| to == Path::new("/dev/null"));
    !masked && Path::new("/etc/systemd/system/multi-user.target.wants").join(unit).symlink_metadata().is_ok()
}

pub fn judge(facts: &LibvirtFacts) -> Vec<CheckRow> {
    let mut rows = vec![daemon(facts)];
    if facts.down.is_none() {
        rows.push(logd(facts));
    }
    rows.push(guests(facts));
    rows
}

fn daemon(facts: &LibvirtFacts) -> CheckRow {
    let daemons = facts.daemons.join(", ");
    if let Some(down) = &facts.down {
        let why = format!("{down}. Running VMs go on; nothing can be started or changed");
        let mend = match (facts.has_libvirtd, facts.has_virtqemud) {
            (_, true) => "systemctl start virtqemud.socket virtnetworkd.socket virtlogd.socket",
            (true, false) => "systemctl start libvirtd",
            (false, false) => "apt-get install libvirt-daemon-system",
        };
        let found = if daemons.is_empty() { "does not answer".to_owned() } else { format!("does not answer; sockets of {daemons} do") };
        return fail("libvirt-daemon", found, why, Some(mend.into()));
    }
    if facts.daemons.contains(&"libvirtd") && facts.daemons.contains(&"virtqemud") {
        let why = "libvirtd and virtqemud manage the same QEMUs and do not know of each other";
        return warn(
            "libvirt-daemon",
            daemons,
            why,
            Some("systemctl disable --now libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket".into()),
        );
    }
    ok("libvirt-daemon", if daemons.is_empty() { "answers".to_owned() } else { daemons })
}

fn logd(facts: &LibvirtFacts) -> CheckRow {
    if facts.daemons.contains(&"virtlogd") {
        return ok("virtlogd", "answers");
    }
    let why =
        "it writes the VMs' serial logs and QEMU's messages; without it VMs do not start, unless qemu.conf says stdio_handler=\"file\"";
    warn("virtlogd", "does not answer", why, Some("systemctl start virtlogd.socket".into()))
}

fn guests(facts: &LibvirtFacts) -> CheckRow {
    match (facts.libvirt_guests, facts.vmkeep_guests) {
        (false, true) => ok("host-shutdown", "vmkeep-guests.service shuts VMs down with the host"),
        (true, true) if facts.guests_start_at_boot => {
            let why = "libvirt-guests starts VMs at boot by itself (ON_BOOT=start), beside vmkeep's start order";
            warn(
                "host-shutdown",
                "vmkeep-guests and libvirt-guests",
                why,
                Some("systemctl disable libvirt-guests (without --now, which would stop VMs)".into()),
            )
        }
        (true, true) => ok("host-shutdown", "vmkeep-guests.service, before libvirt-guests"),
        (true, false) => {
            let why = "libvirt-guests shuts VMs down its own way, for up to 300 s each, and does not know vmkeep's order and time-outs";
            let mend = "systemctl enable --now vmkeep-guests; systemctl disable libvirt-guests (without --now, which would stop VMs)";
            warn("host-shutdown", "libvirt-guests", why, Some(mend.into()))
        }
        (false, false) => {
            let why = "VMs are killed when the host shuts down";
            warn("host-shutdown", "nothing shuts VMs down", why, Some("systemctl enable --now vmkeep-guests".into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(change: impl FnOnce(&mut LibvirtFacts), expect: Expect) {
        let mut facts = LibvirtFacts {
            down: None,
            daemons: vec!["libvirtd", "virtlogd"],
            has_libvirtd: true,
            has_virtqemud: false,
            libvirt_guests: false,
            vmkeep_guests: true,
            guests_start_at_boot: false,
        };
        change(&mut facts);
        expect.assert_eq(&show(&judge(&facts)));
    }

    #[test]
    fn libvirt_is_down() {
        check(
            |f| {
                f.down = Some("libvirt does not answer: connection refused".into());
                f.daemons = vec!["virtlogd"];
            },
            expect![[r#"
                fail libvirt-daemon: does not answer; sockets of virtlogd do
                  libvirt does not answer: connection refused. Running VMs go on; nothing can be started or changed
                  $ systemctl start libvirtd
                ok host-shutdown: vmkeep-guests.service shuts VMs down with the host
            "#]],
        );
        check(
            |f| {
                f.down = Some("no socket".into());
                f.daemons = vec![];
                f.has_libvirtd = false;
            },
            expect![[r#"
                fail libvirt-daemon: does not answer
                  no socket. Running VMs go on; nothing can be started or changed
                  $ apt-get install libvirt-daemon-system
                ok host-shutdown: vmkeep-guests.service shuts VMs down with the host
            "#]],
        );
    }

    #[test]
    fn two_daemons_for_one_qemu_and_no_log_daemon() {
        check(
            |f| f.daemons = vec!["libvirtd", "virtqemud"],
            expect![[r#"
                warn libvirt-daemon: libvirtd, virtqemud
                  libvirtd and virtqemud manage the same QEMUs and do not know of each other
                  $ systemctl disable --now libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
                warn virtlogd: does not answer
                  it writes the VMs' serial logs and QEMU's messages; without it VMs do not start, unless qemu.conf says stdio_handler="file"
                  $ systemctl start virtlogd.socket
                ok host-shutdown: vmkeep-guests.service shuts VMs down with the host
            "#]],
        );
    }

    #[test]
    fn who_shuts_vms_down() {
        check(
            |f| {
                f.libvirt_guests = true;
                f.vmkeep_guests = false;
            },
            expect![[r#"
                ok libvirt-daemon: libvirtd, virtlogd
                ok virtlogd: answers
                warn host-shutdown: libvirt-guests
                  libvirt-guests shuts VMs down its own way, for up to 300 s each, and does not know vmkeep's order and time-outs
                  $ systemctl enable --now vmkeep-guests; systemctl disable libvirt-guests (without --now, which would stop VMs)
            "#]],
        );
        check(
            |f| {
                f.libvirt_guests = true;
                f.guests_start_at_boot = true;
            },
            expect![[r#"
                ok libvirt-daemon: libvirtd, virtlogd
                ok virtlogd: answers
                warn host-shutdown: vmkeep-guests and libvirt-guests
                  libvirt-guests starts VMs at boot by itself (ON_BOOT=start), beside vmkeep's start order
                  $ systemctl disable libvirt-guests (without --now, which would stop VMs)
            "#]],
        );
        check(
            |f| f.vmkeep_guests = false,
            expect![[r#"
                ok libvirt-daemon: libvirtd, virtlogd
                ok virtlogd: answers
                warn host-shutdown: nothing shuts VMs down
                  VMs are killed when the host shuts down
                  $ systemctl enable --now vmkeep-guests
            "#]],
        );
    }
}
