//! The header of a qcow2 file (QEMU docs/interop/qcow2.txt; numbers are big-endian). Spares a process per look.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The format's limit for the name of a backing file.
const NAME_BYTES_MAX: u32 = 1023;
/// Incompatible features that say how data lies in the file, and nothing of other files or of damage: compression type,
/// extended L2 entries.
const LAYOUT_FEATURES: u64 = 1 << 3 | 1 << 4;

#[derive(Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes that the guest sees.
    pub size: u64,
    /// As it is written there.
    pub backing: Option<String>,
    pub cluster_bits: u32,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub encrypted: bool,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Incompatible features; a reader that does not know one must not read on.
    pub features: u64,
}

impl Header {
    /// # Errors
    /// It cannot be read, or is no qcow2.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(&File::open(path)?)
    }

    /// # Errors
    /// As [`Header::read`].
    pub fn of(file: &File) -> Result<Self> {
        let mut header = [0; 80];
        file.read_exact_at(&mut header, 0)?;
        let u32_at = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let version = u32_at(4);
        if header[..4] != *b"QFI\xfb" || !(2..=3).contains(&version) {
            return Err(Error::other("not a qcow2 file"));
        }
        let (offset, length) = (u64_at(8), u32_at(16));
        let backing = if offset == 0 || length > NAME_BYTES_MAX {
            None
        } else {
            let mut name = vec![0; length as usize];
            file.read_exact_at(&mut name, offset)?;
            Some(String::from_utf8_lossy(&name).into_owned())
        };
        Ok(Self {
            version,
            size: u64_at(24),
            backing,
            cluster_bits: u32_at(20),
            l1_entries: u32_at(36),
            l1_offset: u64_at(40),
            encrypted: u32_at(32) != 0,
            snapshots: u32_at(60),
            features: if version == 2 { 0 } else { u64_at(72) },
        })
    }

    /// The same bytes elsewhere are the same disk: no data in another file but the backing one, no damage, no snapshots to carry
    /// along.
    pub fn copies_as_it_is(&self) -> bool {
        !self.encrypted && self.snapshots == 0 && self.features & !LAYOUT_FEATURES == 0
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use expect_test::{Expect, expect};

    use super::*;

    fn check(options: &[&str], expect: Expect) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("disk");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).args(options).args(["disk", "3M"]).current_dir(&dir);
        let made = create.output().expect("qemu-img");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let header = Header::read(&path).expect("a header");
        let words =
            format!("{} bytes on {:?}, version {}, as it is: {}", header.size, header.backing, header.version, header.copies_as_it_is());
        expect.assert_eq(&words);
    }

    #[test]
    fn headers_that_qemu_writes() {
        check(&[], expect!["3145728 bytes on None, version 3, as it is: true"]);
        check(&["-o", "compat=0.10"], expect!["3145728 bytes on None, version 2, as it is: true"]);
        check(&["-o", "extended_l2=on"], expect!["3145728 bytes on None, version 3, as it is: true"]);
        check(&["-u", "-b", "/pool/base", "-F", "qcow2"], expect![[r#"3145728 bytes on Some("/pool/base"), version 3, as it is: true"#]]);
        check(&["-o", "data_file=data"], expect!["3145728 bytes on None, version 3, as it is: false"]);
    }

    #[test]
    fn what_is_no_qcow2_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for content in [Vec::new(), b"QFI\xfb".to_vec(), vec![0; 200]] {
            std::fs::write(file.path(), content).expect("written");
            assert!(Header::read(file.path()).is_err());
        }
    }
}
