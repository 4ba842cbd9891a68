//! From a file to an image in a pool.

use std::path::{Path, PathBuf};

use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::{Found, ImageFacts, ImageKind};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::OsFamily;

use super::bring::digest;
use super::detect::{self, Format};
use super::{inside, ova};
use crate::pool::qemu_img::{self, Trust};
use crate::pool::room::Room;
use crate::pool::{Pool, ProgressSink};

/// The largest disk an image may claim: a header can claim anything.
const VIRTUAL_BYTES_MAX: u64 = 16 << 40;

/// Takes `file` in as an image; the file itself stays.
///
/// # Errors
/// A wrong checksum, a format that points elsewhere, a damaged image, no space.
pub async fn import_file(
    pool: &dyn Pool,
    id: ImageId,
    file: &Path,
    sha256: Option<&str>,
    sink: &ProgressSink,
) -> Result<ImageFacts, Error> {
    pool.ensure().await?;
    let sum = checksum(file, sink).await?;
    if let Some(wanted) = sha256.filter(|wanted| !wanted.eq_ignore_ascii_case(&sum)) {
        return Err(
            Error::invalid(format!("the checksum is {sum}, expected {wanted}")).hint("the file is damaged or not the one you meant")
        );
    }
    let work = tempfile::Builder::new().prefix("import-").tempdir_in(pool.staging()).map_err(|e| staging_error(pool, &e))?;
    let format = detect::format(file)?;
    let (source, format, warnings) = if format == Format::Ova {
        let disk = unpacked(file, work.path()).await?;
        (disk.path, disk.format, disk.warnings)
    } else {
        (file.to_owned(), format, Vec::new())
    };
    let mut facts = if format == Format::Iso {
        take_iso(pool, id, &source, work.path()).await?
    } else {
        take_disk(pool, id, &source, format, work.path(), sink).await?
    };
    facts.warnings.splice(0..0, warnings);
    Ok(ImageFacts { sha256: Some(sum), ..facts })
}

/// On a thread of its own: an archive takes minutes to read.
async fn unpacked(ova: &Path, work: &Path) -> Result<ova::OvaDisk, Error> {
    let (ova, work) = (ova.to_owned(), work.to_owned());
    let unpacked = tokio::task::spawn_blocking(move || ova::disk(&ova, &work)).await;
    unpacked.map_err(|e| Error::internal(format!("unpacking the OVA: {e}")))?
}

/// A disk whose format is on record. It is never guessed: a guest can write any header into a raw disk.
#[derive(Clone, Copy, Debug)]
pub struct VolumeSource<'a> {
    pub path: &'a Path,
    /// `raw` or `qcow2`.
    pub format: &'a str,
    /// The image that it was cloned from, the only file its header may name.
    pub image: Option<&'a Path>,
}

/// A copy of a stopped VM's disk, flattened.
///
/// # Errors
/// A disk that points elsewhere, one in use, no space.
pub async fn from_volume(pool: &dyn Pool, id: ImageId, source: VolumeSource<'_>, sink: &ProgressSink) -> Result<ImageFacts, Error> {
    pool.ensure().await?;
    let work = tempfile::Builder::new().prefix("import-").tempdir_in(pool.staging()).map_err(|e| staging_error(pool, &e))?;
    let VolumeSource { path, format, image } = source;
    if format != "raw" {
        let info = qemu_img::info(path, format, Trust::Nobodys).await?;
        refuse_pointers(path, &info, image)?;
    }
    convert(pool, id, path, format, work.path(), sink).await
}

fn staging_error(pool: &dyn Pool, error: &std::io::Error) -> Error {
    Error::refused(format!("cannot work in {}: {error}", pool.staging().display()))
}

async fn checksum(path: &Path, sink: &ProgressSink) -> Result<String, Error> {
    let unreadable = |e: std::io::Error| Error::refused(format!("cannot read {}: {e}", path.display()));
    Ok(digest(path, sink).await.map_err(unreadable)?.sha256)
}

async fn take_iso(pool: &dyn Pool, id: ImageId, source: &Path, work: &Path) -> Result<ImageFacts, Error> {
    let copy = work.join("disc.iso");
    Room::around(work).fits(std::fs::metadata(source).map_or(0, |m| m.len()))?;
    let bytes = tokio::fs::copy(source, &copy).await.map_err(|e| staging_error(pool, &e))?;
    pool.adopt_image(&copy, id).await?;
    let size = ByteCount::from_bytes(bytes);
    Ok(ImageFacts { kind: ImageKind::Iso, virtual_size: size, stored_size: size, ..unknown() })
}

async fn take_disk(
    pool: &dyn Pool,
    id: ImageId,
    source: &Path,
    format: Format,
    work: &Path,
    sink: &ProgressSink,
) -> Result<ImageFacts, Error> {
    let info = qemu_img::info(source, format.qemu(), Trust::Nobodys).await.map_err(|e| damaged(&e))?;
    refuse_pointers(source, &info, None)?;
    if matches!(format, Format::Qcow2 | Format::Vmdk | Format::Vhdx | Format::Vdi) {
        sink(None, "checking");
        let args = ["check".as_ref(), "-q".as_ref(), "-f".as_ref(), format.qemu().as_ref(), source.as_os_str()];
        qemu_img::run(args, Trust::Nobodys).await.map_err(|e| damaged(&e))?;
    }
    convert(pool, id, source, format.qemu(), work, sink).await
}

/// qemu-img names every cluster that is wrong; the first says enough.
fn damaged(error: &Error) -> Error {
    let first = error.message.lines().next().unwrap_or_default();
    Error::invalid(format!("the image is damaged: {first}")).hint("download or export it again; qemu-img check shows more")
}

/// A hostile image must not make us read other files than `base`, if it has one.
fn refuse_pointers(source: &Path, info: &qemu_img::Info, base: Option<&Path>) -> Result<(), Error> {
    let pointer = |what: &str, to: &str| {
        Error::invalid(format!("the image has {what} ('{to}'); it would be read with the daemon's rights"))
            .hint("flatten it first: qemu-img convert -O qcow2 OLD NEW")
    };
    if let Some(backing) = info.backing_filename.as_ref().filter(|backing| base.is_none_or(|base| base != Path::new(backing))) {
        return Err(pointer("a backing file", backing));
    }
    let data = info.specific.as_ref().and_then(|s| s["data"]["data-file"].as_str());
    if let Some(file) = data {
        return Err(pointer("an external data file", file));
    }
    let own = source.to_string_lossy();
    let extents = info.specific.as_ref().and_then(|s| s["data"]["extents"].as_array()).cloned().unwrap_or_default();
    for extent in extents.iter().filter_map(|e| e["filename"].as_str()) {
        if extent != own {
            return Err(pointer("an extent in another file", extent));
        }
    }
    if info.virtual_size > VIRTUAL_BYTES_MAX {
        let claims = ByteCount::from_bytes(info.virtual_size).human();
        return Err(Error::new(
            Code::TooLarge,
            format!("the image claims {claims}; the limit is {}", ByteCount::from_bytes(VIRTUAL_BYTES_MAX)),
        ));
    }
    Ok(())
}

async fn convert(pool: &dyn Pool, id: ImageId, source: &Path, format: &str, work: &Path, sink: &ProgressSink) -> Result<ImageFacts, Error> {
    let fresh: PathBuf = work.join("image.qcow2");
    let args = [
        "convert".as_ref(),
        "-p".as_ref(),
        "-f".as_ref(),
        format.as_ref(),
        "-O".as_ref(),
        "qcow2".as_ref(),
        source.as_os_str(),
        fresh.as_os_str(),
    ];
    // A few bytes of an image can stand for terabytes.
    let room = Room::around(work);
    qemu_img::run_guarded(args, Trust::NobodysWhole, &|| room.fits(0), "converting", sink).await?;
    let facts = facts_of(&fresh).await?;
    pool.adopt_image(&fresh, id).await?;
    sink(None, "done");
    Ok(facts)
}

/// What a finished qcow2 of ours holds.
pub async fn facts_of(image: &Path) -> Result<ImageFacts, Error> {
    let info = qemu_img::info(image, "qcow2", Trust::Ours).await?;
    let mut facts = unknown();
    facts.virtual_size = ByteCount::from_bytes(info.virtual_size);
    facts.stored_size = ByteCount::from_bytes(info.actual_size);
    let path = image.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        inside::look(&path, &mut facts);
        facts
    });
    looked.await.map_err(|e| Error::internal(format!("looking into the image: {e}")))
}

pub fn unknown() -> ImageFacts {
    ImageFacts {
        kind: ImageKind::Disk,
        virtual_size: ByteCount::ZERO,
        stored_size: ByteCount::ZERO,
        sha256: None,
        firmware: vmkeep_types::vm::Firmware::Auto,
        os: OsFamily::Linux,
        os_name: None,
        cloud_init: Found::Unknown,
        guest_agent: Found::Unknown,
        virtio: Found::Unknown,
        warnings: Vec::new(),
    }
}
