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
        for old in found(&dir).iter().rev().skip(KEPT) {
            let _ = std::fs::remove_file(old);
        }
        Ok(ClusterBackup { node: self.node.clone(), file: file.display().to_string(), size })
    }

    /// A copy when the newest is old.
    pub(super) async fn back_up_when_due(&self) -> Result<(), Error> {
        let newest = found(&self.backups()).pop().and_then(|file| std::fs::metadata(file).ok()?.modified().ok());
        let fresh = newest.is_some_and(|at| at.elapsed().is_ok_and(|age| age < EVERY));
        if !fresh {
            let made = self.back_up().await?;
            tracing::info!(file = made.file, "etcd was backed up");
        }
        Ok(())
    }
}

/// Whole copies, oldest first: their names sort by time.
fn found(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with(SUFFIX));
    files.sort();
    files
}
