//! Room on the pool's file system while something comes in whose size nobody vouches for.

use std::path::{Path, PathBuf};

use vmkeep_types::error::{Code, Error};
use vmkeep_types::units::ByteCount;

/// Left free for running guests: a full file system breaks their writes.
pub const KEPT: ByteCount = ByteCount::from_mib(256);
/// Written between two looks; well below what is kept.
const LOOK_EVERY_BYTES: u64 = KEPT.bytes() / 4;

/// A look at the file system every so many bytes.
#[derive(Clone, Debug)]
pub struct Room {
    path: PathBuf,
    kept_bytes: u64,
    unseen_bytes: u64,
}

impl Room {
    /// `path`: a file or folder on the file system.
    pub fn around(path: &Path) -> Self {
        Self { path: path.to_owned(), kept_bytes: KEPT.bytes(), unseen_bytes: 0 }
    }

    /// # Errors
    /// `more` bytes would not leave [`KEPT`] free.
    pub fn fits(&self, more: u64) -> Result<(), Error> {
        // Where the file system does not tell, writing does.
        let Ok(stat) = nix::sys::statvfs::statvfs(&self.path) else { return Ok(()) };
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if more.saturating_add(self.kept_bytes) <= free {
            return Ok(());
        }
        let what = if more == 0 { "this does not fit".into() } else { format!("{} more do not fit", ByteCount::from_bytes(more).human()) };
        let words = format!("{what} into the pool, which keeps {} free", ByteCount::from_bytes(self.kept_bytes).human());
        Err(Error::new(Code::NoCapacity, words).hint("delete images or volumes that nobody uses, or enlarge the file system"))
    }

    /// Counts bytes that were written.
    ///
    /// # Errors
    /// The file system is nearly full.
    pub fn took(&mut self, bytes: u64) -> Result<(), Error> {
        self.unseen_bytes += bytes;
        if self.unseen_bytes < LOOK_EVERY_BYTES {
            return Ok(());
        }
        self.unseen_bytes = 0;
        self.fits(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_never_filled() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut room = Room::around(dir.path());
        assert_eq!(room.fits(u64::MAX).expect_err("nobody has so much").code, Code::NoCapacity);
        room.kept_bytes = u64::MAX;
        assert_eq!(room.took(LOOK_EVERY_BYTES - 1), Ok(()), "not looked at yet");
        assert_eq!(room.took(1).expect_err("now it is").code, Code::NoCapacity);
    }
}
