//! GRUB for both firmwares, without grub-install.
//!
//! BIOS: `boot.img` goes into the first 440 bytes of the disk and holds the sector of `core.img`; the first sector of
//! `core.img` (diskboot) holds where its rest lies. Both are written by us: boot.S has `kernel_sector` at 0x5c, diskboot.S its
//! block list (start, length, segment) in the last 12 bytes of the sector (GRUB 2.06 grub-core/boot/i386/pc).
//! UEFI: one file, `EFI/BOOT/BOOTX64.EFI`.

use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::disk::{SECTOR, put_bytes};
use super::tool;

const LIB: &str = "/usr/lib/grub";
const KERNEL_SECTOR_AT: usize = 0x5c;
const BLOCK_LIST_AT: usize = 0x1f4;
const MBR_CODE_BYTES: usize = 440;

const COMMON: [&str; 12] =
    ["part_msdos", "part_gpt", "fat", "ext2", "linux", "search", "search_label", "search_fs_file", "normal", "configfile", "echo", "test"];

async fn image(format: &str, modules: &[&str], config: &Path, out: &Path, dir: &Path) -> Result<(), Error> {
    let mut args: Vec<&std::ffi::OsStr> = vec!["-O".as_ref(), format.as_ref(), "-p".as_ref(), "/boot/grub".as_ref(), "-c".as_ref(), config.as_os_str()];
    args.extend(["-o".as_ref(), out.as_os_str()]);
    args.extend(COMMON.iter().chain(modules).map(std::ffi::OsStr::new));
    tool::run("grub-mkimage", args, dir).await.map(drop)
}

/// The file for UEFI; `config` is run before anything else.
pub async fn efi(config: &str, dir: &Path) -> Result<PathBuf, Error> {
    let (early, out) = (early(config, dir)?, dir.join("BOOTX64.EFI"));
    image("x86_64-efi", &["efi_gop", "all_video"], &early, &out, dir).await?;
    Ok(out)
}

/// Boots `disk` by BIOS, with GRUB's core at `core_sector`.
pub async fn bios(disk: &Path, core_sector: u64, config: &str, dir: &Path) -> Result<(), Error> {
    let (early, out) = (early(config, dir)?, dir.join("core.img"));
    image("i386-pc", &["biosdisk"], &early, &out, dir).await?;
    embed(disk, core_sector, &Path::new(LIB).join("i386-pc/boot.img"), &out)
}

/// Writes GRUB's first sector and its core, each told where the other's sectors lie.
pub fn embed(disk: &Path, core_sector: u64, boot: &Path, core: &Path) -> Result<(), Error> {
    let (mut boot, mut core) = (read(boot)?, read(core)?);
    boot[KERNEL_SECTOR_AT..KERNEL_SECTOR_AT + 8].copy_from_slice(&core_sector.to_le_bytes());
    core[BLOCK_LIST_AT..BLOCK_LIST_AT + 8].copy_from_slice(&(core_sector + 1).to_le_bytes());
    put_bytes(disk, 0, &boot[..MBR_CODE_BYTES])?;
    put_bytes(disk, core_sector * SECTOR, &core)
}

fn early(config: &str, dir: &Path) -> Result<PathBuf, Error> {
    let path = dir.join("early.cfg");
    std::fs::write(&path, config).map_err(|e| Error::refused(format!("cannot write {}: {e}", path.display())))?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let hint = "apt-get install grub-pc-bin grub-efi-amd64-bin grub-common";
    let bytes = std::fs::read(path).map_err(|e| Error::refused(format!("cannot read {}: {e}", path.display())).hint(hint))?;
    if bytes.len() < 512 { Err(Error::refused(format!("{} is too short for GRUB", path.display()))) } else { Ok(bytes) }
}
