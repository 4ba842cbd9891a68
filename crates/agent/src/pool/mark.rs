//! The mark in a shared pool's folder. Hosts that read the same one have the same files there; a host whose folder is the empty one
//! below a mount has another, or none.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use uuid::Uuid;
use vmkeep_types::ids::PoolMark;

const FILE: &str = ".vmkeep-pool";
/// A UUID and the end of its line; of a longer file no more is read.
const BYTES_MAX: u64 = 64;

/// The folder's mark. One that has none gets one: hosts that come at once agree on the first. Blocks as long as the storage does.
///
/// # Errors
/// The folder is not there, or neither tells nor takes one.
pub fn of(folder: &Path) -> std::io::Result<PoolMark> {
    match read(&folder.join(FILE)) {
        Err(e) if e.kind() == ErrorKind::NotFound => make(folder),
        told => told,
    }
}

fn read(file: &Path) -> std::io::Result<PoolMark> {
    // Whoever else may write there gets nothing of the host's read by a link.
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file)?;
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    text.trim().parse().map_err(|e: uuid::Error| std::io::Error::new(ErrorKind::InvalidData, e))
}

fn make(folder: &Path) -> std::io::Result<PoolMark> {
    let mut fresh = tempfile::Builder::new().prefix(FILE).tempfile_in(folder)?;
    writeln!(fresh, "{}", Uuid::new_v4())?;
    fresh.as_file().sync_all()?;
    match fresh.persist_noclobber(folder.join(FILE)) {
        Err(e) if e.error.kind() != ErrorKind::AlreadyExists => Err(e.error),
        _ => read(&folder.join(FILE)),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use vmkeep_types::ids::VolumeId;

    use super::*;
    use crate::pool::Pool;
    use crate::pool::dir::DirPool;

    #[test]
    fn hosts_of_one_folder_agree() {
        let dir = tempfile::tempdir().expect("a folder");
        let hosts: Vec<_> = std::thread::scope(|s| {
            let begun: Vec<_> = (0..8).map(|_| s.spawn(|| of(dir.path()).expect("a mark"))).collect();
            begun.into_iter().map(|host| host.join().expect("no panic")).collect()
        });
        assert!(hosts.iter().all(|mark| *mark == hosts[0]), "{hosts:?}");
        let left = std::fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!((of(dir.path()).ok(), left), (Some(hosts[0]), 1));
        let other = tempfile::tempdir().expect("a folder");
        assert_ne!(of(other.path()).expect("a mark"), hosts[0]);
    }

    /// A folder that is mounted over, or is not mounted, gets neither disks nor images, and none is taken for deleted there.
    #[tokio::test]
    async fn nothing_is_made_where_the_mark_is_another() {
        let dir = tempfile::tempdir().expect("a folder");
        let pool = DirPool::new(&dir.path().join("pool")).expect("a pool");
        assert_eq!(pool.mark(), None, "the folder is not there, and is not made to be marked");
        pool.expect(Some(PoolMark(Uuid::nil())));
        let refused = |error: vmkeep_types::error::Error| error.message.replace(&dir.path().display().to_string(), "DIR");
        expect!["what is at DIR/pool is not the shared pool"].assert_eq(&refused(pool.ensure().await.expect_err("no folder")));
        std::fs::create_dir(dir.path().join("pool")).expect("a folder");
        expect!["what is at DIR/pool is not the shared pool"].assert_eq(&refused(pool.ensure().await.expect_err("another folder")));
        let gone = pool.delete_volume(VolumeId(Uuid::nil())).await.expect_err("the volume is not gone, it is elsewhere");
        expect!["what is at DIR/pool is not the shared pool"].assert_eq(&refused(gone));
        pool.expect(pool.mark());
        pool.ensure().await.expect("the pool");
        pool.delete_volume(VolumeId(Uuid::nil())).await.expect("there is none");
    }

    #[test]
    fn what_is_no_mark_is_none_and_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(of(&dir.path().join("none")).expect_err("no folder").kind(), ErrorKind::NotFound);
        std::fs::write(dir.path().join("elsewhere"), Uuid::nil().to_string()).expect("written");
        std::os::unix::fs::symlink("elsewhere", dir.path().join(FILE)).expect("a link");
        of(dir.path()).expect_err("a link is not followed");
        std::fs::remove_file(dir.path().join(FILE)).expect("removed");
        std::fs::write(dir.path().join(FILE), "words").expect("written");
        of(dir.path()).expect_err("words are none");
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).expect("there"), "words");
    }
}
