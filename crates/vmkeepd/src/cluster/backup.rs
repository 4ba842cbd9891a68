//! Copies of etcd's database, on each control node: what a restore by hand (docs/guide/cluster.md) begins with when the majority is lost
//! for good.
//!
//! ```text
//!  every 6 hours, and on request: snapshot ─► etcd-TIME.snapshot.new ─► renamed; the newest 8 are kept
//! ```
//! How it fails: a copy that broke off has another name and is replaced by the next one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vmkeep_server::app;
use vmkeep_types::cluster::ClusterBackup;
use vmkeep_types::error::Error;
use vmkeep_types::units::ByteCount;

use super::Cluster;

/// Between two copies.
const EVERY: Duration = Duration::from_secs(6 * 3600);
/// Two days of them, and no more than eight databases' worth of disk.
const KEPT: usize = 8;
const SUFFIX: &str = ".snapshot";

impl Cluster {
    fn backups(&self) -> PathBuf {
        self.paths().dir.join("backup")
    }

    /// A copy now.
    pub(super) async fn back_up(&self) -> Result<ClusterBackup, Error> {
        let store = self.etcd_store()?;
        let dir = self.backups();
        let disk = |e: std::io::Error| Error::refused(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(disk)?;
        let stamp = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let file = dir.join(format!("etcd-{stamp}{SUFFIX}"));
        let new = file.with_extension("new");
        store.snapshot(&new).await.map_err(app::store_error)?;
        std::fs::rename(&new, &file).map_err(disk)?;
        let size = ByteCount::from_bytes(std::fs::metadata(&file).map_err(disk)?.len());
        for old in too_many(found(&dir), &file) {
            let _ = std::fs::remove_file(old);
        }
        Ok(ClusterBackup { node: self.node.clone(), file: file.display().to_string(), size })
    }

    /// A copy when the newest is old.
    pub(super) async fn back_up_when_due(&self) -> Result<(), Error> {
        if !is_fresh(&found(&self.backups())) {
            let made = self.back_up().await?;
            tracing::info!(file = made.file, "etcd was backed up");
        }
        Ok(())
    }
}

/// One is young. Those from the time of a clock that was ahead are of no known age.
fn is_fresh(copies: &[PathBuf]) -> bool {
    let age = |copy: &PathBuf| std::fs::metadata(copy).ok()?.modified().ok()?.elapsed().ok();
    copies.iter().filter_map(age).any(|age| age < EVERY)
}

/// Beside the one that was made now: by its name it is not the newest where the clock was ahead once.
fn too_many(mut copies: Vec<PathBuf>, made: &Path) -> Vec<PathBuf> {
    copies.retain(|copy| copy != made);
    copies.truncate((copies.len() + 1).saturating_sub(KEPT));
    copies
}

/// Whole copies, oldest first: their names sort by time.
fn found(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with(SUFFIX));
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_clock_that_was_ahead_brings_no_copy_each_time_and_loses_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, at: SystemTime| {
            let file = dir.path().join(format!("etcd-{name}{SUFFIX}"));
            std::fs::File::create(&file).and_then(|made| made.set_modified(at)).expect("a file");
            file
        };
        let year = Duration::from_secs(365 * 24 * 3600);
        let now = SystemTime::now();
        let ahead: Vec<_> = (1..=KEPT).map(|n| write(&format!("2027010{n}T000000Z"), now + year)).collect();
        assert!(!is_fresh(&found(dir.path())), "nobody knows how old they are");
        let made = write("20260101T000000Z", now);
        assert!(is_fresh(&found(dir.path())));
        assert_eq!(too_many(found(dir.path()), &made), ahead[..1], "the one that was made stays");
        write("20250101T000000Z", now - EVERY);
        assert_eq!(too_many(found(dir.path()), &made).len(), 2);
    }

    #[test]
    fn six_hours_are_old() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join(format!("etcd-1{SUFFIX}"));
        let of = |age: Duration| std::fs::File::create(&file).and_then(|made| made.set_modified(SystemTime::now() - age)).expect("a file");
        of(EVERY);
        assert!(!is_fresh(&found(dir.path())));
        of(EVERY - Duration::from_secs(60));
        assert!(is_fresh(&found(dir.path())));
        assert_eq!(too_many(found(dir.path()), &file), Vec::<PathBuf>::new());
    }
}
