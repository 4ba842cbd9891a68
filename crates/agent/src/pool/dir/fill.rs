//! What lies in a new volume: nothing, an image's data, or another disk's.
//!
//! | volume | from an image | from another disk |
//! |---|---|---|
//! | qcow2 | reads from the image what nobody wrote | blocks shared, or copied; what its source reads from an image it reads there too |
//! | raw | refused | blocks shared, or copied |
//!
//! Blocks are shared where the file system can (`reflink`).

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::units::ByteCount;

use super::DirPool;
use crate::pool::qcow2::Header;
use crate::pool::qemu_img::{self, Trust};
use crate::pool::{Pool, ProgressSink, reflink};

impl DirPool {
    pub(super) async fn make(&self, volume: &VolumeRecord, fresh: &Path) -> Result<(), Error> {
        let format = volume.data_format()?;
        let size = volume.size.map(|s| s.bytes().to_string());
        match (volume.image, size) {
            (Some(_), _) if format == "raw" => Err(Error::invalid(format!("volume {} has an image and must be qcow2", volume.name))),
            (Some(image), size) => {
                self.clone_image(volume, image, fresh).await?;
                match size {
                    Some(size) => run(["resize", "-q", "-f", format], [fresh.as_os_str(), size.as_ref()]).await,
                    None => Ok(()),
                }
            }
            (None, Some(size)) => run(["create", "-q", "-f", format], [fresh.as_os_str(), size.as_ref()]).await,
            (None, None) => Err(Error::invalid(format!("volume {} has neither an image nor a size", volume.name))),
        }
    }

    async fn clone_image(&self, volume: &VolumeRecord, image: ImageId, fresh: &Path) -> Result<(), Error> {
        let base = self.image_path(image);
        let header = Header::read(&base).map_err(|e| no_image(&base, self.io("read", &base, &e)))?;
        check_size(volume, header.size)?;
        run(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"], [base.as_os_str(), fresh.as_os_str()]).await
    }

    async fn share(&self, from: &Path, to: &Path) -> Result<bool, Error> {
        let (source, fresh) = (from.to_owned(), to.to_owned());
        let shared = tokio::task::spawn_blocking(move || reflink::share(&source, &fresh)).await;
        shared.map_err(|e| Error::internal(format!("copying {}: {e}", from.display())))?.map_err(|e| self.io("copy", from, &e))
    }

    /// `from`, of the format `format`, to `fresh`, which becomes the volume `to`.
    pub(super) async fn copy(
        &self,
        from: &Path,
        format: &str,
        to: &VolumeRecord,
        fresh: &Path,
        progress: &ProgressSink,
    ) -> Result<(), Error> {
        self.check_space(0)?;
        // The one file that a copy may read from, as its record says.
        let base = to.image.map(|image| self.image_path(image));
        let header = if format == "qcow2" { Header::read(from).ok() } else { None };
        let reads_from = header.as_ref().and_then(|header| header.backing.as_deref()).map(Path::new);
        let kept = reads_from.is_some() && reads_from == base.as_deref();
        let same_bytes = format == "raw" || header.is_some_and(|h| h.copies_as_it_is() && (kept || h.backing.is_none()));
        let wanted = to.data_format()?;
        if format == wanted && same_bytes && self.share(from, fresh).await? {
            return Ok(());
        }
        let allocated_bytes = std::fs::metadata(from).map_err(|e| self.io("read", from, &e))?.blocks() * 512;
        self.check_space(allocated_bytes)?;
        let mut args: Vec<&OsStr> = ["convert", "-p", "-f", format, "-O", wanted].map(OsStr::new).to_vec();
        if let Some(base) = base.as_ref().filter(|_| kept && wanted == "qcow2") {
            args.extend([OsStr::new("-F"), OsStr::new("qcow2"), OsStr::new("-B"), base.as_os_str()]);
        }
        args.extend([from.as_os_str(), fresh.as_os_str()]);
        qemu_img::run_with_progress(args, "copying", progress).await
    }
}

async fn run<const N: usize>(words: [&str; N], files: [&OsStr; 2]) -> Result<(), Error> {
    qemu_img::run(words.map(OsStr::new).into_iter().chain(files), Trust::Ours).await.map(drop)
}

fn no_image(path: &Path, error: Error) -> Error {
    if path.exists() {
        error
    } else {
        Error::new(Code::NotFound, format!("the image's file {} is missing", path.display())).hint("import the image again")
    }
}

fn check_size(volume: &VolumeRecord, image_bytes: u64) -> Result<(), Error> {
    match volume.size {
        Some(size) if size.bytes() < image_bytes => {
            let image = ByteCount::from_bytes(image_bytes).human();
            Err(Error::invalid(format!("volume {} is wished with {size}, its image has {image}; a disk can only grow", volume.name)))
        }
        _ => Ok(()),
    }
}
