//! Images built on the host from its own apt sources, with no other download.
//!
//! | recipe | what |
//! |---|---|
//! | `tiny` | Debian's cloud kernel, busybox and a small init: for tests and demos, root without password on its serial console |
//! | `debian-12`, `debian-13` | Debian with cloud-init, the guest agent and ssh; no password, no host keys, an empty machine-id |
//!
//! All boot under BIOS and UEFI. No loop device and no mount: file systems are made by `mke2fs -d` and mtools, GRUB is put
//! into place byte by byte. Work lies in the pool's staging folder and goes with the task.

mod apt;
mod debian;
mod disk;
mod grub;
mod tiny;
mod tool;

use vmkeep_types::error::Error;
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::{BuildRecipe, Found, ImageFacts};
use vmkeep_types::vm::{Firmware, OsFamily};

use super::import::facts_of;
use crate::pool::qemu_img::{self, Trust};
use crate::pool::room::Room;
use crate::pool::{Pool, ProgressSink};

/// What the builders run or read beyond Debian's essential packages: program or file, and its package. `host check` looks for
/// them.
pub const BUILD_TOOLS: [(&str, &str); 14] = [
    ("mmdebstrap", "mmdebstrap"),
    ("unshare", "util-linux"),
    ("sfdisk", "fdisk"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("mmd", "mtools"),
    ("mcopy", "mtools"),
    ("syslinux", "syslinux"),
    (tiny::MBR, "syslinux-common"),
    ("grub-mkimage", "grub-common"),
    (grub::EFI_FILES, "grub-efi-amd64-bin"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
];

/// Builds and takes in.
///
/// # Errors
/// A missing tool, apt's words, no space.
pub async fn build(pool: &dyn Pool, id: ImageId, recipe: BuildRecipe, sink: &ProgressSink) -> Result<ImageFacts, Error> {
    pool.ensure().await?;
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(pool.staging())
        .map_err(|e| Error::refused(format!("cannot work in {}: {e}", pool.staging().display())))?;
    let raw = work.path().join("disk.raw");
    match recipe {
        BuildRecipe::Tiny => tiny::build(work.path(), &raw, sink).await?,
        BuildRecipe::Debian12 => debian::build("bookworm", work.path(), &raw, sink).await?,
        BuildRecipe::Debian13 => debian::build("trixie", work.path(), &raw, sink).await?,
    }
    let image = work.path().join("image.qcow2");
    let args = [
        "convert".as_ref(),
        "-p".as_ref(),
        "-f".as_ref(),
        "raw".as_ref(),
        "-O".as_ref(),
        "qcow2".as_ref(),
        raw.as_os_str(),
        image.as_os_str(),
    ];
    let room = Room::around(work.path());
    qemu_img::run_guarded(args, Trust::Ours, &|| room.fits(0), "converting", sink).await?;
    qemu_img::run(["check".as_ref(), "-q".as_ref(), image.as_os_str()], Trust::Ours).await?;
    let facts = ImageFacts {
        // Both boot; SeaBIOS is up a second or more before UEFI, and tiny is for those who wait for it.
        firmware: if recipe == BuildRecipe::Tiny { Firmware::Bios } else { Firmware::Uefi },
        os: OsFamily::Linux,
        os_name: Some(os_name(recipe).into()),
        cloud_init: if recipe == BuildRecipe::Tiny { Found::No } else { Found::Yes },
        guest_agent: if recipe == BuildRecipe::Tiny { Found::No } else { Found::Yes },
        virtio: Found::Yes,
        warnings: Vec::new(),
        ..facts_of(&image).await?
    };
    pool.adopt_image(&image, id).await?;
    sink(None, "done");
    Ok(facts)
}

fn os_name(recipe: BuildRecipe) -> &'static str {
    match recipe {
        BuildRecipe::Tiny => "vmkeep tiny (Linux, busybox)",
        BuildRecipe::Debian12 => "Debian GNU/Linux 12 (bookworm)",
        BuildRecipe::Debian13 => "Debian GNU/Linux 13 (trixie)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of packages that every Debian has.
    const ESSENTIAL: [&str; 6] = ["apt-cache", "apt-get", "chroot", "dpkg-deb", "find", "gzip"];

    #[test]
    fn the_list_names_every_program_that_a_builder_runs() {
        let sources =
            [include_str!("build/debian.rs"), include_str!("build/disk.rs"), include_str!("build/grub.rs"), include_str!("build/tiny.rs")];
        for source in sources {
            let calls = source.split("tool::run(").chain(source.split("tool::run_with_input(")).skip(1);
            let programs = calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next());
            for program in programs {
                let known = ESSENTIAL.contains(&program) || BUILD_TOOLS.iter().any(|(tool, _)| *tool == program);
                assert!(known, "{program} is missing in BUILD_TOOLS");
            }
        }
    }
}
