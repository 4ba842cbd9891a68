//! Pools: where volumes and images lie. One trait, one driver per kind of storage.
//!
//! Every call is idempotent and leaves nothing half-made under a final name: work goes into the staging folder and is
//! renamed in, never over a file that is there. A call that is dropped takes its work away; what a crash leaves in staging is
//! swept by [`Pool::ensure`]. Calls about one volume wait for each other.

pub mod dir;
pub mod mark;
pub mod qcow2;
pub mod qemu_img;
pub mod reflink;
pub mod room;
pub mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use vmkeep_api::body::PoolSpace;
use vmkeep_types::error::Error;
use vmkeep_types::ids::{ImageId, PoolMark, VolumeId};
use vmkeep_types::observed::VolumeSeen;
use vmkeep_types::order::Progress;
use vmkeep_types::pool::{PoolDriver, PoolSpec, VolumeRecord};
use vmkeep_types::units::ByteCount;

/// Told how far work is, and each new step in words; an empty step only moves the progress.
pub type ProgressSink = dyn Fn(Option<Progress>, &str) + Send + Sync;

#[async_trait]
pub trait Pool: Send + Sync {
    /// The pool is there and usable; leftovers of a crash are gone.
    async fn ensure(&self) -> Result<(), Error>;
    /// The mark of a pool that every host reaches, as it lies here; None: it is not here. Blocks as long as the storage does.
    fn mark(&self) -> Option<PoolMark>;
    /// What [`Pool::ensure`] must find from now on: nothing is made in what only looks like the pool. None: not known yet.
    fn expect(&self, mark: Option<PoolMark>);
    /// Where the pool keeps a volume of its own.
    fn volume_path(&self, volume: &VolumeRecord) -> PathBuf;
    /// Host path QEMU opens: that, or a file that vmkeep did not make.
    fn data_path(&self, volume: &VolumeRecord) -> PathBuf {
        volume.foreign_path.as_ref().map_or_else(|| self.volume_path(volume), PathBuf::from)
    }
    fn image_path(&self, image: ImageId) -> PathBuf;
    /// Where the UEFI variables of a VM that is gone lie, for the next one that boots this volume; they go with the volume.
    fn variables_path(&self, volume: VolumeId) -> PathBuf;
    /// Makes the volume if it is not there; `volume.image` is cloned copy-on-write.
    async fn create_volume(&self, volume: &VolumeRecord) -> Result<VolumeSeen, Error>;
    async fn stat_volume(&self, volume: &VolumeRecord) -> Result<Option<VolumeSeen>, Error>;
    /// Offline growth; a volume that is as large already is left.
    async fn grow_volume(&self, volume: &VolumeRecord, size: ByteCount) -> Result<(), Error>;
    /// Absent is fine.
    async fn delete_volume(&self, volume: VolumeId) -> Result<(), Error>;
    /// A copy of another disk, whose format the caller knows: a guess could read the host's files for a guest. It shares blocks
    /// with its source where the file system can, and reads from `to.image` what its source reads from it; otherwise it needs
    /// no other file.
    async fn copy_volume(&self, from: &Path, format: &str, to: &VolumeRecord, progress: &ProgressSink) -> Result<(), Error>;
    /// Takes a finished file of staging in as the volume; one that is there is of an earlier try, and goes. Durable when it returns.
    async fn adopt_volume(&self, file: &Path, volume: &VolumeRecord) -> Result<(), Error>;
    async fn delete_image(&self, image: ImageId) -> Result<(), Error>;
    /// Takes a finished file of staging in as an image.
    async fn adopt_image(&self, file: &Path, image: ImageId) -> Result<(), Error>;
    /// How much there is and how much is left for root's users; None before the pool is first used.
    fn space(&self) -> Option<PoolSpace>;
    /// A folder on the same file system for work in progress.
    fn staging(&self) -> PathBuf;
}

/// The driver that `spec` names.
///
/// # Errors
/// The spec is impossible, such as a relative path.
pub fn open(spec: &PoolSpec) -> Result<Arc<dyn Pool>, Error> {
    match &spec.driver {
        PoolDriver::Dir { path, .. } => Ok(Arc::new(dir::DirPool::new(Path::new(path))?)),
    }
}
