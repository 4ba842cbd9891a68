//! A directory of qcow2 and raw files.
//!
//! ```text
//!  PATH/UID.qcow2|.raw       volumes; clones name their image by absolute path
//!  PATH/UID.nvram            UEFI variables kept with a volume
//!  PATH/images/UID.qcow2     images, read-only
//!  PATH/staging/             work in progress, uploads
//! ```
//! Files lie where libvirt's AppArmor profile lets QEMU read. libvirt sets the owner of a disk at each start.

mod fill;

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use vmkeep_api::body::PoolSpace;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{ImageId, PoolMark, VolumeId};
use vmkeep_types::observed::VolumeSeen;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::DiskFormat;

use super::qcow2::Header;
use super::qemu_img::{self, Trust};
use super::{Pool, ProgressSink, mark};

/// Kept free on the file system: a full one corrupts guests' writes.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Work in staging that is older than this was left by a crash; uploads may rest as long.
const STAGING_AGE_SECONDS_MAX: u64 = 7 * 86400;

pub struct DirPool {
    root: PathBuf,
    mark: Mutex<Option<PoolMark>>,
    /// Volumes that a call is about.
    turns: Mutex<BTreeMap<VolumeId, Weak<tokio::sync::Mutex<()>>>>,
}

/// Work in progress; what is left of it when it is dropped goes.
struct Fresh(PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What became of a file's way to its final name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Placed,
    /// A file has that name already, and stays: a QEMU may have it open.
    WasThere,
}

impl DirPool {
    pub fn new(root: &Path) -> Result<Self, Error> {
        let plain = root.is_absolute() && !root.components().any(|c| matches!(c, std::path::Component::ParentDir));
        if plain {
            Ok(Self { root: root.to_owned(), mark: Mutex::default(), turns: Mutex::default() })
        } else {
            Err(Error::invalid(format!("{} is not an absolute path without '..'", root.display())))
        }
    }

    /// A link on the way may lead to where the written path could not: among the system's files.
    fn check_links(&self) -> Result<(), Error> {
        let there = self.root.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
        let Some((above, real)) = there else { return Ok(()) };
        let real = real.join(self.root.strip_prefix(above).unwrap_or(Path::new("")));
        let fit = |path: &Path| vmkeep_types::check::pool_folder(&path.to_string_lossy());
        match (fit(&self.root), fit(&real)) {
            (Ok(()), Err(why)) => {
                Err(Error::refused(format!("the pool's folder {} leads to {}: {why}", self.root.display(), real.display())))
            }
            _ => Ok(()),
        }
    }

    fn path_of(&self, id: VolumeId, format: DiskFormat) -> PathBuf {
        let suffix = if format == DiskFormat::Raw { "raw" } else { "qcow2" };
        self.root.join(format!("{id}.{suffix}"))
    }

    /// A new file in staging; what a crash left of an earlier one goes.
    fn fresh(&self, path: &Path) -> Fresh {
        let prefix = staged(path);
        self.clear(&prefix);
        Fresh(self.staging().join(format!("{prefix}{}", uuid::Uuid::new_v4())))
    }

    fn clear(&self, prefix: &str) {
        for entry in std::fs::read_dir(self.staging()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Waits until no other call is about this volume.
    async fn turn(&self, id: VolumeId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().expect("no panic holds this lock");
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(&id).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(id, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }

    fn check_space(&self, needed_bytes: u64) -> Result<(), Error> {
        let stat = nix::sys::statvfs::statvfs(&self.root).map_err(|e| self.io("look at", &self.root, &e.into()))?;
        let free_bytes = stat.blocks_available() * stat.fragment_size();
        if free_bytes < needed_bytes.saturating_add(FREE_BYTES_MIN) {
            let (free, needed) = (ByteCount::from_bytes(free_bytes).human(), ByteCount::from_bytes(needed_bytes).human());
            let message = format!("{} has {free} free; {needed} are needed, and 64M stay free", self.root.display());
            return Err(Error::new(Code::NoCapacity, message)
                .hint("delete unused volumes (vmkeep volume list) and images, or enlarge the file system"));
        }
        Ok(())
    }

    fn io(&self, what: &str, path: &Path, error: &std::io::Error) -> Error {
        let code = if error.raw_os_error() == Some(libc::ENOSPC) { Code::NoCapacity } else { Code::Refused };
        Error::new(code, format!("cannot {what} {}: {error}", path.display()))
    }

    /// Into place under its final name, durable before it is reported. Syncing gigabytes takes long: on a thread for that.
    async fn settle(&self, fresh: &Path, path: &Path, mode: u32) -> Result<Settled, Error> {
        let (fresh, target) = (fresh.to_owned(), path.to_owned());
        let settle = move || {
            std::fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
            File::open(&fresh)?.sync_all()?;
            let settled = rename_new(&fresh, &target)?;
            File::open(target.parent().expect("a file in a folder"))?.sync_all()?;
            Ok(settled)
        };
        let settled = tokio::task::spawn_blocking(settle)
            .await
            .map_err(|e| Error::internal(format!("putting {} into place: {e}", path.display())))?;
        settled.map_err(|e: std::io::Error| self.io("put into place", path, &e))
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(self.io("remove", path, &e)),
            _ => Ok(()),
        }
    }

    /// A disk in the pool that needs this image: records do not tell of those that were released.
    fn clone_of(&self, image: &Path) -> Option<PathBuf> {
        let files = [self.root.clone(), self.staging()].map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
        // By our names alone: what lies in a raw disk or in an upload is somebody's word.
        let ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".qcow2"));
        let mut paths = files.into_iter().flatten().map(|entry| entry.path()).filter(ours);
        paths.find(|path| Header::read(path).is_ok_and(|header| header.backing.is_some_and(|backing| Path::new(&backing) == image)))
    }

    /// Is what lies here the shared pool, as far as it is known to be one?
    fn check_mark(&self) -> Result<(), Error> {
        let wanted = *self.mark.lock().expect("no panic holds this lock");
        if wanted.is_some_and(|mark| self.mark() != Some(mark)) {
            return Err(Error::refused(format!("what is at {} is not the shared pool", self.root.display()))
                .hint("mount it; the mark that tells is the file .vmkeep-pool in the pool's folder"));
        }
        Ok(())
    }

    fn sweep(&self) {
        let now = std::time::SystemTime::now();
        for entry in std::fs::read_dir(self.staging()).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| now.duration_since(at).ok());
            if age.is_some_and(|age| age.as_secs() > STAGING_AGE_SECONDS_MAX) {
                let path = entry.path();
                let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            }
        }
    }
}

/// How the names of a volume's files in staging begin.
fn staged(path: &Path) -> String {
    format!("{}.", path.file_name().expect("volume paths have a name").to_string_lossy())
}

#[async_trait]
impl Pool for DirPool {
    async fn ensure(&self) -> Result<(), Error> {
        self.check_links()?;
        self.check_mark()?;
        for (path, mode) in [(self.root.clone(), 0o711), (self.root.join("images"), 0o711), (self.staging(), 0o700)] {
            std::fs::DirBuilder::new().recursive(true).mode(mode).create(&path).map_err(|e| self.io("make", &path, &e))?;
        }
        self.sweep();
        Ok(())
    }

    fn mark(&self) -> Option<PoolMark> {
        self.check_links().ok()?;
        mark::of(&self.root).inspect_err(|error| tracing::debug!(pool = %self.root.display(), %error, "no mark")).ok()
    }

    fn expect(&self, mark: Option<PoolMark>) {
        *self.mark.lock().expect("no panic holds this lock") = mark;
    }

    fn volume_path(&self, volume: &VolumeRecord) -> PathBuf {
        self.path_of(volume.id, volume.format)
    }

    fn variables_path(&self, volume: VolumeId) -> PathBuf {
        self.root.join(format!("{volume}.nvram"))
    }

    fn image_path(&self, image: ImageId) -> PathBuf {
        let iso = self.root.join("images").join(format!("{image}.iso"));
        if iso.exists() { iso } else { self.root.join("images").join(format!("{image}.qcow2")) }
    }

    async fn create_volume(&self, volume: &VolumeRecord) -> Result<VolumeSeen, Error> {
        let _turn = self.turn(volume.id).await;
        if let Some(seen) = self.stat_volume(volume).await? {
            return Ok(seen);
        }
        self.ensure().await?;
        self.check_space(0)?;
        let path = self.volume_path(volume);
        let fresh = self.fresh(&path);
        self.make(volume, &fresh.0).await?;
        self.settle(&fresh.0, &path, 0o600).await?;
        self.stat_volume(volume).await?.ok_or_else(|| Error::internal(format!("{} vanished after it was made", path.display())))
    }

    async fn stat_volume(&self, volume: &VolumeRecord) -> Result<Option<VolumeSeen>, Error> {
        let path = self.data_path(volume);
        let Ok(metadata) = std::fs::metadata(&path) else { return Ok(None) };
        let size = if volume.data_format()? == "raw" { raw_size(&path) } else { Header::read(&path).map(|header| header.size) };
        let size_bytes = size.map_err(|e| self.io("read", &path, &e))?;
        let allocated_bytes = if metadata.file_type().is_block_device() { size_bytes } else { metadata.blocks() * 512 };
        Ok(Some(VolumeSeen { size_bytes, allocated_bytes }))
    }

    async fn grow_volume(&self, volume: &VolumeRecord, size: ByteCount) -> Result<(), Error> {
        let _turn = self.turn(volume.id).await;
        let path = self.data_path(volume);
        let now = self.stat_volume(volume).await?.ok_or_else(|| Error::not_found("volume", &volume.name))?;
        if now.size_bytes >= size.bytes() {
            return Ok(());
        }
        let format = volume.data_format()?;
        if format == "raw" && path.starts_with("/dev") {
            let message = format!("{} is a device of {}, not of {size}", path.display(), ByteCount::from_bytes(now.size_bytes).human());
            return Err(Error::refused(message).hint("enlarge it with the tool that made it (lvextend), then start the VM again"));
        }
        let bytes = size.bytes().to_string();
        qemu_img::run(["resize".as_ref(), "-q".as_ref(), "-f".as_ref(), format.as_ref(), path.as_os_str(), bytes.as_ref()], Trust::Ours)
            .await
            .map(drop)
    }

    async fn delete_volume(&self, volume: VolumeId) -> Result<(), Error> {
        let _turn = self.turn(volume).await;
        // What is not there now would lie there for ever.
        self.check_mark()?;
        for format in [DiskFormat::Qcow2, DiskFormat::Raw] {
            let path = self.path_of(volume, format);
            self.clear(&staged(&path));
            self.remove(&path)?;
        }
        self.remove(&self.variables_path(volume))
    }

    async fn copy_volume(&self, from: &Path, source_format: &str, to: &VolumeRecord, progress: &ProgressSink) -> Result<(), Error> {
        let _turn = self.turn(to.id).await;
        self.ensure().await?;
        let path = self.volume_path(to);
        if path.exists() {
            return Ok(());
        }
        let fresh = self.fresh(&path);
        self.copy(from, source_format, to, &fresh.0, progress).await?;
        vmkeep_store::crash::point("volume copied");
        self.settle(&fresh.0, &path, 0o600).await?;
        vmkeep_store::crash::point("copy in place");
        Ok(())
    }

    async fn adopt_volume(&self, file: &Path, volume: &VolumeRecord) -> Result<(), Error> {
        let _turn = self.turn(volume.id).await;
        let path = self.volume_path(volume);
        self.remove(&path)?;
        match self.settle(file, &path, 0o600).await? {
            Settled::Placed => Ok(()),
            Settled::WasThere => Err(Error::conflict(format!("{} appeared while it was put into place", path.display()))),
        }
    }

    async fn delete_image(&self, image: ImageId) -> Result<(), Error> {
        let path = self.image_path(image);
        if let Some(user) = self.clone_of(&path) {
            let words = format!("the disk {} is a clone of this image and reads from it", user.display());
            return Err(Error::conflict(words).hint(
                "it may belong to a VM that vmkeep released; make it whole first (virsh blockpull, or qemu-img rebase -b \"\" when it is off)",
            ));
        }
        self.remove(&path)
    }

    async fn adopt_image(&self, file: &Path, image: ImageId) -> Result<(), Error> {
        self.ensure().await?;
        let suffix = if file.extension().is_some_and(|e| e == "iso") { "iso" } else { "qcow2" };
        let path = self.root.join("images").join(format!("{image}.{suffix}"));
        self.settle(file, &path, 0o444).await.map(drop)
    }

    fn space(&self) -> Option<PoolSpace> {
        let stat = nix::sys::statvfs::statvfs(&self.root).ok()?;
        let bytes = |blocks: u64| ByteCount::from_bytes(blocks.saturating_mul(stat.fragment_size()));
        Some(PoolSpace { size: bytes(stat.blocks()), free: bytes(stat.blocks_available()) })
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }
}

/// `fresh` becomes `target`, unless that name is taken. File systems without such a rename (NFS) have links.
fn rename_new(fresh: &Path, target: &Path) -> std::io::Result<Settled> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    let placed = match renameat2(AT_FDCWD, fresh, AT_FDCWD, target, RenameFlags::RENAME_NOREPLACE) {
        Err(nix::Error::EINVAL | nix::Error::ENOSYS) => std::fs::hard_link(fresh, target).and_then(|()| std::fs::remove_file(fresh)),
        other => other.map_err(std::io::Error::from),
    };
    match placed {
        Ok(()) => Ok(Settled::Placed),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(Settled::WasThere),
        Err(e) => Err(e),
    }
}

/// Of a file, or of a block device.
fn raw_size(path: &Path) -> std::io::Result<u64> {
    File::open(path)?.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmkeep_types::name::Name;

    fn volume(id: u128, size: &str, format: DiskFormat, image: Option<ImageId>) -> VolumeRecord {
        VolumeRecord {
            id: VolumeId(uuid::Uuid::from_u128(id)),
            project: Name::known("default"),
            name: Name::known("a-root"),
            pool: Name::known("default"),
            node: Some(Name::known("node1")),
            size: Some(size.parse().expect("a size")),
            format,
            image,
            foreign_path: None,
            filling: None,
            made: false,
            attached: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_link_does_not_lead_a_pool_among_the_systems_files() {
        let pool = |root: &Path| DirPool::new(root).expect("a pool");
        // Tests lie in /tmp, which is no place for a pool that people name; a link from a good place is needed to tell.
        let good = Path::new("/var/lib/libvirt/images/x");
        assert!(pool(good).check_links().is_ok(), "not there yet");
        // On Debian /lib is a link; what lies below is the system's either way, and was refused when it was written.
        assert!(pool(Path::new("/lib/x")).check_links().is_ok());
        let dir = tempfile::tempdir_in("/var").expect("a folder");
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).expect("a link");
        let refused = pool(&dir.path().join("link/pool")).ensure().await.expect_err("it leads to /etc");
        assert!(
            refused.message.ends_with("leads to /etc/pool: '/etc/pool' lies in /etc, which is the system's; use a folder like /srv/vmkeep"),
            "{refused}"
        );
        assert!(!Path::new("/etc/pool").exists());
    }

    #[tokio::test]
    async fn volumes_are_made_grown_cloned_and_deleted() {
        let dir = tempfile::tempdir().expect("a folder");
        let pool = DirPool::new(dir.path()).expect("a pool");
        let base = volume(1, "4M", DiskFormat::Qcow2, None);
        assert_eq!(pool.create_volume(&base).await.expect("made").size_bytes, 4 << 20);
        pool.grow_volume(&base, ByteCount::from_mib(8)).await.expect("grown");
        assert_eq!(pool.create_volume(&base).await.expect("there").size_bytes, 8 << 20, "making it again leaves it");

        let image = ImageId(uuid::Uuid::from_u128(9));
        let staged = pool.staging().join("image");
        std::fs::copy(pool.volume_path(&base), &staged).expect("a copy");
        pool.adopt_image(&staged, image).await.expect("adopted");
        let clone = volume(2, "16M", DiskFormat::Qcow2, Some(image));
        assert_eq!(pool.create_volume(&clone).await.expect("cloned").size_bytes, 16 << 20);
        let raw = pool.create_volume(&volume(4, "16M", DiskFormat::Raw, Some(image))).await.expect_err("raw reads from no image");
        assert!(raw.message.contains("must be qcow2"), "{raw}");

        let silent: &ProgressSink = &|_, _| {};
        let (from, base) = (pool.volume_path(&clone), pool.image_path(image).display().to_string());
        for (id, of, backing) in [(5, Some(image), Some(base)), (6, None, None)] {
            let copy = volume(id, "16M", DiskFormat::Qcow2, of);
            pool.copy_volume(&from, "qcow2", &copy, silent).await.expect("copied");
            let header = Header::read(&pool.volume_path(&copy)).expect("a header");
            assert_eq!((header.size, header.backing), (16 << 20, backing), "it reads from the image that its record names");
            pool.delete_volume(copy.id).await.expect("deleted");
        }
        pool.delete_volume(clone.id).await.expect("deleted");
        assert_eq!(pool.stat_volume(&clone).await.expect("a look"), None);
        let small = pool.create_volume(&volume(3, "1M", DiskFormat::Qcow2, Some(image))).await.expect_err("smaller than its image");
        assert!(small.message.contains("can only grow"), "{small}");
        assert_eq!(std::fs::read_dir(pool.staging()).expect("staging").count(), 0, "nothing half-made stays");
    }

    #[tokio::test]
    async fn an_image_stays_as_long_as_a_disk_reads_from_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let pool = DirPool::new(dir.path()).expect("a pool");
        let (base, image) = (volume(1, "4M", DiskFormat::Qcow2, None), ImageId(uuid::Uuid::from_u128(9)));
        pool.create_volume(&base).await.expect("made");
        let staged = pool.staging().join("image");
        std::fs::copy(pool.volume_path(&base), &staged).expect("a copy");
        pool.adopt_image(&staged, image).await.expect("adopted");
        let (clone, copy) = (volume(2, "4M", DiskFormat::Qcow2, Some(image)), volume(3, "4M", DiskFormat::Raw, None));
        pool.create_volume(&clone).await.expect("cloned");
        pool.create_volume(&copy).await.expect("made");
        std::fs::copy(pool.volume_path(&clone), pool.volume_path(&copy)).expect("a guest may write this into its raw disk");
        let kept = pool.delete_image(image).await.expect_err("a clone needs it");
        assert_eq!(kept.code, Code::Conflict, "{kept}");
        assert!(kept.message.contains(&clone.id.to_string()) && pool.image_path(image).exists(), "{kept}");
        pool.delete_volume(clone.id).await.expect("deleted");
        pool.delete_image(image).await.expect("nobody needs it");
        assert!(!pool.image_path(image).exists());
    }

    #[tokio::test]
    async fn a_copy_reads_the_format_it_is_told_whatever_the_name_says() {
        let dir = tempfile::tempdir().expect("a folder");
        let pool = DirPool::new(dir.path()).expect("a pool");
        let silent: &ProgressSink = &|_, _| {};
        let source = volume(1, "4M", DiskFormat::Qcow2, None);
        pool.create_volume(&source).await.expect("made");
        let image = dir.path().join("web.img");
        std::fs::copy(pool.volume_path(&source), &image).expect("a copy");
        let copy = volume(2, "4M", DiskFormat::Qcow2, None);
        pool.copy_volume(&image, "qcow2", &copy, silent).await.expect("copied");
        assert_eq!(pool.stat_volume(&copy).await.expect("a look").expect("there").size_bytes, 4 << 20, "the disk, not its container");
        // A guest can write a qcow2 header with a backing file of the host's into its raw disk.
        let raw = dir.path().join("raw.qcow2");
        std::fs::copy(&image, &raw).expect("a copy");
        let exact = volume(3, "4M", DiskFormat::Raw, None);
        pool.copy_volume(&raw, "raw", &exact, silent).await.expect("copied");
        let (from, to) = (std::fs::read(&raw).expect("source"), std::fs::read(pool.volume_path(&exact)).expect("copy"));
        assert!(to.starts_with(&from) && to[from.len()..].iter().all(|b| *b == 0), "byte by byte");
        assert_eq!(std::fs::read_dir(pool.staging()).expect("staging").count(), 0, "nothing half-made stays");
    }

    #[test]
    fn a_file_that_is_there_is_never_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let (fresh, target) = (dir.path().join("fresh"), dir.path().join("target"));
        std::fs::write(&fresh, "new").expect("a file");
        assert_eq!(rename_new(&fresh, &target).expect("a rename"), Settled::Placed);
        std::fs::write(&fresh, "newer").expect("a file");
        assert_eq!(rename_new(&fresh, &target).expect("a look"), Settled::WasThere);
        assert_eq!(std::fs::read_to_string(&target).expect("a file"), "new");
    }

    #[tokio::test]
    async fn a_file_that_vmkeep_did_not_make_grows_by_its_own_format_and_is_never_deleted() {
        let dir = tempfile::tempdir().expect("a folder");
        let pool = DirPool::new(&dir.path().join("pool")).expect("a pool");
        pool.ensure().await.expect("there");
        let made = volume(1, "4M", DiskFormat::Qcow2, None);
        pool.create_volume(&made).await.expect("made");
        let theirs = dir.path().join("old.img");
        std::fs::copy(pool.volume_path(&made), &theirs).expect("a copy");
        for (format, bytes) in [(DiskFormat::Qcow2, 8 << 20), (DiskFormat::Raw, 16 << 20)] {
            let foreign = VolumeRecord { foreign_path: Some(theirs.display().to_string()), ..volume(2, "16M", format, None) };
            pool.grow_volume(&foreign, ByteCount::from_bytes(bytes)).await.expect("grown");
            assert_eq!(pool.stat_volume(&foreign).await.expect("a look").expect("there").size_bytes, bytes);
            pool.delete_volume(foreign.id).await.expect("nothing of ours");
        }
        assert!(theirs.exists());
    }

    #[tokio::test]
    async fn a_missing_image_and_a_relative_path_are_refused() {
        assert!(DirPool::new(Path::new("relative")).is_err());
        assert!(DirPool::new(Path::new("/a/../b")).is_err());
        let dir = tempfile::tempdir().expect("a folder");
        let pool = DirPool::new(dir.path()).expect("a pool");
        let lost =
            pool.create_volume(&volume(1, "1M", DiskFormat::Qcow2, Some(ImageId(uuid::Uuid::from_u128(7))))).await.expect_err("no image");
        assert_eq!(lost.code, Code::NotFound, "{lost}");
    }
}
