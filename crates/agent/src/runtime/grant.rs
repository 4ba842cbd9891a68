//! Grants for libvirt's hook: in a cluster no domain of ours starts without one, whoever asks libvirt for it.
//!
//! ```text
//!  claim granted ──► grants/UUID = "until when" ──► libvirt: hook "prepare" ──► younger? ──► QEMU
//!                                                                └── else refused: virsh start, a call that came too late
//! ```
//! The hook (`/etc/libvirt/hooks/qemu.d/vmkeep`) is a script that reads these files and nothing else, so it works while vmkeepd is
//! away. On a host alone nothing is required: `virsh start` is a person's right there. A grant that stays behind does no harm: a
//! start's is over with its claim, and that for a guest that arrives stands as long as its migration.

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;
use vmkeep_types::ids::VmId;

/// There = the hook asks for grants.
const REQUIRED: &str = "required";
/// A grant that stands until it is taken back.
const UNTIL_TAKEN: &str = "taken";

#[derive(Clone, Debug)]
pub struct Grants {
    dir: PathBuf,
}

/// How long a grant is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// ms of CLOCK_BOOTTIME.
    Ms(u64),
    Taken,
}

impl Grants {
    pub fn in_folder(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("grants") }
    }

    /// Says whether the hook asks at all.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&self, required: bool) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir)?;
        let mark = self.dir.join(REQUIRED);
        match (required, std::fs::remove_file(&mark)) {
            (true, _) => std::fs::write(mark, ""),
            (false, Err(error)) if error.kind() != ErrorKind::NotFound => Err(error),
            (false, _) => Ok(()),
        }
    }

    /// # Errors
    /// The disk's: nothing would start.
    pub fn give(&self, vm: VmId, until: Until) -> Result<(), Error> {
        let text = match until {
            // As /proc/uptime counts, which the hook compares: 1/100 s.
            Until::Ms(ms) => (ms / 10).to_string(),
            Until::Taken => UNTIL_TAKEN.to_owned(),
        };
        let (file, new) = (self.dir.join(vm.to_string()), self.dir.join(format!(".{vm}")));
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file));
        written.map_err(|e| Error::internal(format!("cannot write {}: {e}", file.display())))
    }

    pub fn take(&self, vm: VmId) {
        let _ = std::fs::remove_file(self.dir.join(vm.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use expect_test::{Expect, expect};

    use super::super::clock::boottime_ms;
    use super::*;

    const VM: VmId = VmId(uuid::Uuid::from_u128(1));
    const OURS: &str = "<domain><name>web1</name>\n  <uuid>00000000-0000-0000-0000-000000000001</uuid>\n  \
        <metadata><vmkeep:vm xmlns:vmkeep=\"https://vmkeep.dev/xmlns/1\" id=\"x\"/></metadata></domain>";
    const FOREIGN: &str = "<domain><uuid>00000000-0000-0000-0000-000000000001</uuid></domain>";

    /// What libvirt would be told, by the real script.
    fn asked(grants: &Grants, xml: &str, doing: &str) -> String {
        let hook = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/libvirt-hook");
        let mut child = Command::new("sh")
            .args([hook, "web1", doing, "begin", "-"])
            .env("VMKEEP_GRANTS", &grants.dir)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        // A hook that needs no description may be over before it was written.
        let _ = child.stdin.take().expect("piped").write_all(xml.as_bytes());
        let out = child.wait_with_output().expect("ended");
        assert!(out.stdout.is_empty(), "libvirt would take it for another description");
        let told = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        if out.status.success() { format!("yes {told}").trim().to_owned() } else { format!("no: {told}") }
    }

    fn check(required: bool, until: Option<Until>, xml: &str, doing: &str, wanted: Expect) {
        let dir = tempfile::tempdir().expect("a folder");
        let grants = Grants::in_folder(dir.path());
        grants.begin(true).expect("begun");
        grants.begin(required).expect("begun again");
        if let Some(until) = until {
            grants.give(VM, until).expect("given");
        }
        wanted.assert_eq(&asked(&grants, xml, doing));
    }

    #[test]
    fn in_a_cluster_a_domain_of_ours_starts_with_a_grant_only() {
        let soon = || Some(Until::Ms(boottime_ms() + 60_000));
        check(
            true,
            None,
            OURS,
            "prepare",
            expect!["no: vmkeep: 'web1' belongs to a cluster, and this host has no grant to start it; use 'vmkeep vm start web1'"],
        );
        check(true, soon(), OURS, "prepare", expect!["yes"]);
        check(true, Some(Until::Taken), OURS, "prepare", expect!["yes"]);
        check(
            true,
            Some(Until::Ms(boottime_ms() - 1000)),
            OURS,
            "prepare",
            expect!["no: vmkeep: the grant to start 'web1' is over; vmkeep tries again"],
        );
    }

    #[test]
    fn the_rest_is_nobodys_business() {
        check(false, None, OURS, "prepare", expect!["yes"]);
        check(true, None, FOREIGN, "prepare", expect!["yes"]);
        check(true, None, OURS, "release", expect!["yes"]);
        check(true, None, OURS, "reconnect", expect!["yes"]);
    }

    #[test]
    fn a_grant_is_taken_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let grants = Grants::in_folder(dir.path());
        grants.begin(true).expect("begun");
        grants.give(VM, Until::Taken).expect("given");
        grants.take(VM);
        grants.take(VM);
        assert!(asked(&grants, OURS, "prepare").starts_with("no"));
    }
}
