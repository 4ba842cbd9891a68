//! GRUB, without grub-install, which wants a mounted disk.
//!
//! BIOS: `boot.img` goes into the first 440 bytes of the disk and holds the sector of `core.img`; the first sector of
//! `core.img` (diskboot) holds where its rest lies. Both are written by us: boot.S has `kernel_sector` at 0x5c, diskboot.S its
//! block list (start, length, segment) in the last 12 bytes of the sector (GRUB 2.06 grub-core/boot/i386/pc).
//! UEFI: one file, `EFI/BOOT/BOOTX64.EFI`, with what it needs built in.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::disk::{SECTOR, put_bytes};
use super::tool;

const KERNEL_SECTOR_AT: usize = 0x5c;
const BLOCK_LIST_AT: usize = 0x1f4;
const MBR_CODE_BYTES: usize = 440;

/// Where `grub-mkimage` finds its modules.
pub const EFI_FILES: &str = "/usr/lib/grub/x86_64-efi";

const EFI_MODULES: [&str; 9] = ["part_msdos", "part_gpt", "fat", "linux", "search", "search_fs_file", "normal", "efi_gop", "all_video"];

/// The file for UEFI; `config` is run before anything else.
pub async fn efi(config: &str, dir: &Path) -> Result<PathBuf, Error> {
    let (early, out) = (dir.join("early.cfg"), dir.join("BOOTX64.EFI"));
    std::fs::write(&early, config).map_err(|e| Error::refused(format!("cannot write {}: {e}", early.display())))?;
    let fixed: [&OsStr; 8] = [
        "-O".as_ref(),
        "x86_64-efi".as_ref(),
        "-p".as_ref(),
        "/boot/grub".as_ref(),
        "-c".as_ref(),
        early.as_os_str(),
        "-o".as_ref(),
        out.as_os_str(),
    ];
    tool::run("grub-mkimage", fixed.into_iter().chain(EFI_MODULES.iter().map(OsStr::new)), dir).await?;
    Ok(out)
}

/// Writes GRUB's first sector and its core, each told where the other's sectors lie.
pub fn embed(disk: &Path, core_sector: u64, boot: &Path, core: &Path) -> Result<(), Error> {
    let (mut boot, mut core) = (read(boot)?, read(core)?);
    boot[KERNEL_SECTOR_AT..KERNEL_SECTOR_AT + 8].copy_from_slice(&core_sector.to_le_bytes());
    core[BLOCK_LIST_AT..BLOCK_LIST_AT + 8].copy_from_slice(&(core_sector + 1).to_le_bytes());
    put_bytes(disk, 0, &boot[..MBR_CODE_BYTES])?;
    put_bytes(disk, core_sector * SECTOR, &core)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::refused(format!("cannot read {}: {e}", path.display())))?;
    if bytes.len() < 512 { Err(Error::refused(format!("{} is too short for GRUB", path.display()))) } else { Ok(bytes) }
}
