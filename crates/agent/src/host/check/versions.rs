//! Versions of libvirt and QEMU, and what an older one lacks.
//!
//! Debian 12 ships QEMU 7.2 and libvirt 9.0; vmkeep works with both and says what is missing.

use vmkeep_types::host::CheckRow;

use super::row::{fail, ok, warn};
use crate::hypervisor::HvVersions;

type Number = (u32, u32);

/// Oldest versions that vmkeep works with.
const LIBVIRT_MIN: Number = (9, 0);
const QEMU_MIN: Number = (7, 2);

/// What came with which version, as far as an operator would miss it.
const LIBVIRT_NEWS: [(Number, &str); 3] = [
    ((9, 5), "discard-no-unref (less fragmented qcow2 files)"),
    ((9, 9), "reverting external snapshots"),
    ((10, 0), "several io threads per disk"),
];
const QEMU_NEWS: [(Number, &str); 2] =
    [((8, 1), "discard-no-unref (less fragmented qcow2 files)"), ((9, 0), "several io threads per disk")];

const BACKPORTS: &str = "apt-get install -t bookworm-backports qemu-system-x86 libvirt-daemon-system (running VMs go on; they use the new QEMU after their next start)";

/// The first two numbers in `10.0.3`, `6.12.48+deb13-amd64`.
pub fn number(text: &str) -> Number {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

pub fn judge(versions: &Result<HvVersions, String>) -> Vec<CheckRow> {
    match versions {
        Ok(versions) => {
            vec![one("libvirt", &versions.libvirt, LIBVIRT_MIN, &LIBVIRT_NEWS), one("qemu", &versions.qemu, QEMU_MIN, &QEMU_NEWS)]
        }
        // The libvirt-daemon row says why.
        Err(_) => Vec::new(),
    }
}

fn one(id: &str, version: &str, least: Number, news: &[(Number, &str)]) -> CheckRow {
    let has = number(version);
    if has < least {
        let why = format!("vmkeep needs {}.{} or newer (Debian 12)", least.0, least.1);
        return fail(id, version, why, Some("upgrade to Debian 12 or 13".into()));
    }
    let missing: Vec<String> =
        news.iter().filter(|(since, _)| has < *since).map(|(since, what)| format!("{what} needs {}.{}", since.0, since.1)).collect();
    if missing.is_empty() {
        return ok(id, version);
    }
    warn(id, version, format!("it works; missing here: {}", missing.join(", ")), Some(BACKPORTS.into()))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(libvirt: &str, qemu: &str, expect: Expect) {
        expect.assert_eq(&show(&judge(&Ok(HvVersions { libvirt: libvirt.into(), qemu: qemu.into() }))));
    }

    #[test]
    fn debian_13_12_and_11() {
        check(
            "11.3.0",
            "10.0.3",
            expect![[r#"
                ok libvirt: 11.3.0
                ok qemu: 10.0.3
            "#]],
        );
        check(
            "9.0.0",
            "7.2.17",
            expect![[r#"
                warn libvirt: 9.0.0
                  it works; missing here: discard-no-unref (less fragmented qcow2 files) needs 9.5, reverting external snapshots needs 9.9, several io threads per disk needs 10.0
                  $ apt-get install -t bookworm-backports qemu-system-x86 libvirt-daemon-system (running VMs go on; they use the new QEMU after their next start)
                warn qemu: 7.2.17
                  it works; missing here: discard-no-unref (less fragmented qcow2 files) needs 8.1, several io threads per disk needs 9.0
                  $ apt-get install -t bookworm-backports qemu-system-x86 libvirt-daemon-system (running VMs go on; they use the new QEMU after their next start)
            "#]],
        );
        check(
            "7.0.0",
            "5.2.0",
            expect![[r#"
                fail libvirt: 7.0.0
                  vmkeep needs 9.0 or newer (Debian 12)
                  $ upgrade to Debian 12 or 13
                fail qemu: 5.2.0
                  vmkeep needs 7.2 or newer (Debian 12)
                  $ upgrade to Debian 12 or 13
            "#]],
        );
    }

    #[test]
    fn numbers() {
        for (text, n) in [("10.0.3", (10, 0)), ("6.12.48+deb13-amd64", (6, 12)), ("", (0, 0)), ("x", (0, 0))] {
            assert_eq!(number(text), n, "{text}");
        }
    }
}
