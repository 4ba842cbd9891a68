//! Copies that share their blocks with what they were copied from, until one of the two is written to: ioctl_ficlone(2), which
//! xfs and btrfs have and ext4 has not. Such a copy takes no time and no room.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;

/// Whether files of this folder can share blocks, found by a try. None: no file could be made to try with.
pub fn works(folder: &Path) -> Option<bool> {
    let mut from = tempfile::NamedTempFile::new_in(folder).ok()?;
    // An empty file clones anywhere.
    from.write_all(&[0; 4096]).ok()?;
    let to = tempfile::tempfile_in(folder).ok()?;
    Some(rustix::fs::ioctl_ficlone(&to, from.as_file()).is_ok())
}

/// Makes `to`, a new file, a copy of the file `from` that shares its blocks. It takes long where a file lies in many pieces: on
/// a thread that may block. False: here they cannot share (another file system, or one without this, or a device), and `to` is
/// not there.
///
/// # Errors
/// Reading or writing fails, or `to` is there already.
pub fn share(from: &Path, to: &Path) -> std::io::Result<bool> {
    let from = File::open(from)?;
    let fresh = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let shared = rustix::fs::ioctl_ficlone(&fresh, &from);
    if shared.is_err() {
        std::fs::remove_file(to)?;
    }
    match shared {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM | Errno::ISDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shared_is_said_and_leaves_no_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("to");
        // A device has no blocks of a file system's.
        assert!(!share(Path::new("/dev/zero"), &to).expect("an answer"));
        assert!(!to.exists());
        let from = dir.path().join("from");
        std::fs::write(&from, "words").expect("written");
        let shared = share(&from, &to).expect("an answer");
        assert_eq!(Some(shared), works(dir.path()), "the try tells what happens");
        assert_eq!(std::fs::read_to_string(&to).ok(), shared.then(|| "words".to_owned()));
        std::fs::write(&to, "other").expect("written");
        assert!(share(&from, &to).is_err(), "a file that is there stays");
        assert_eq!(std::fs::read_to_string(&to).expect("read"), "other");
    }
}
