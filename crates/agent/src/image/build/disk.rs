//! A raw disk put together from partitions, without a loop device.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmkeep_types::error::Error;

use super::tool;

pub const SECTOR: u64 = 512;
pub const MIB: u64 = 1 << 20;

fn io(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |e| Error::refused(format!("cannot write {path}: {e}"))
}

/// An empty disk of `bytes` with a partition table in sfdisk's words.
pub async fn create(disk: &Path, bytes: u64, table: &str, dir: &Path) -> Result<(), Error> {
    File::create(disk).and_then(|f| f.set_len(bytes)).map_err(io(disk))?;
    tool::run_with_input(
        "sfdisk",
        ["--quiet".as_ref(), "--no-reread".as_ref(), "--no-tell-kernel".as_ref(), disk.as_os_str()],
        dir,
        table.as_bytes(),
    )
    .await?;
    Ok(())
}

/// Writes a file at an offset; holes stay holes.
pub fn put_file(disk: &Path, offset: u64, file: &Path) -> Result<(), Error> {
    let target = File::options().write(true).open(disk).map_err(io(disk))?;
    let mut source = File::open(file).map_err(io(file))?;
    let (mut at, mut buffer) = (offset, vec![0; 1 << 20]);
    loop {
        let count = source.read(&mut buffer).map_err(io(file))?;
        if count == 0 {
            return Ok(());
        }
        if buffer[..count].iter().any(|b| *b != 0) {
            target.write_all_at(&buffer[..count], at).map_err(io(disk))?;
        }
        at += count as u64;
    }
}

pub fn put_bytes(disk: &Path, offset: u64, bytes: &[u8]) -> Result<(), Error> {
    File::options().write(true).open(disk).and_then(|f| f.write_all_at(bytes, offset)).map_err(io(disk))
}

/// What goes into a FAT file system.
pub struct Fat<'a> {
    pub label: &'a str,
    /// Eight hex digits.
    pub id: &'a str,
    /// Parents first.
    pub folders: &'a [&'a str],
    /// Each is (host file, path inside).
    pub files: &'a [(&'a Path, &'a str)],
}

/// A FAT file system with files, as a file.
pub async fn fat(image: &Path, bytes: u64, volume: &Fat<'_>, dir: &Path) -> Result<(), Error> {
    File::create(image).and_then(|f| f.set_len(bytes)).map_err(io(image))?;
    // GRUB reads cluster by cluster: with FAT32's small ones on a small volume it needs ten times as long.
    let kind = ["-F", "16", "-s", "32"].map(std::ffi::OsStr::new);
    let rest = ["-n".as_ref(), volume.label.as_ref(), "-i".as_ref(), volume.id.as_ref(), image.as_os_str()];
    tool::run("mkfs.vfat", kind.into_iter().chain(rest), dir).await?;
    for folder in volume.folders {
        tool::run("mmd", ["-i".as_ref(), image.as_os_str(), format!("::{folder}").as_ref()], dir).await?;
    }
    for (file, inside) in volume.files {
        tool::run("mcopy", ["-i".as_ref(), image.as_os_str(), file.as_os_str(), format!("::{inside}").as_ref()], dir).await?;
    }
    Ok(())
}

/// An ext4 file system with a folder's content, owners and modes as they are, as a file.
pub async fn ext4(image: &Path, bytes: u64, id: &str, content: &Path, dir: &Path) -> Result<(), Error> {
    File::create(image).and_then(|f| f.set_len(bytes)).map_err(io(image))?;
    let args = [
        "-q".as_ref(),
        "-F".as_ref(),
        "-t".as_ref(),
        "ext4".as_ref(),
        "-U".as_ref(),
        id.as_ref(),
        "-d".as_ref(),
        content.as_os_str(),
        image.as_os_str(),
    ];
    tool::run("mke2fs", args, dir).await.map(drop)
}
