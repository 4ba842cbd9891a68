//! What is inside a disk: partitions, file systems, and for Linux on ext4 its name and its readiness for a VM.
//!
//! Read-only, in safe code of our own, with a budget of reads: nobody vouches for the content. What is not understood is
//! `Unknown`, never an error: an image is not refused for it.

use std::path::Path;

use vmkeep_types::image::{Found, ImageFacts};
use vmkeep_types::vm::{Firmware, OsFamily};

use super::detect;
use super::ext4::Ext4;
use super::qcow2::Disk;

const SECTOR: u64 = 512;
/// Partitions that are looked at.
const PARTITIONS_MAX: usize = 32;
/// Up to the last signature: btrfs has its own at 64K.
const SIGNATURE_BYTES: usize = 68 << 10;
/// Kernels whose modules are looked at.
const KERNELS_MAX: usize = 4;
/// Names of modules that are built in, one per line.
const BUILTIN_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filesystem {
    Ext,
    /// Linux too, not looked into.
    OtherLinux,
    Ntfs,
}

/// Fills in what the finished image `path` shows.
pub fn look(path: &Path, facts: &mut ImageFacts) {
    let Ok(disk) = Disk::open(path) else { return };
    let head = disk.read(0, detect::HEAD_BYTES).unwrap_or_default();
    facts.firmware = detect::firmware(&head);
    if facts.firmware == Firmware::Auto {
        facts.warnings.push("no boot loader was found; the VM may need another disk or a cdrom to boot".into());
    }
    let found: Vec<(u64, Filesystem)> =
        partitions(&head).into_iter().take(PARTITIONS_MAX).filter_map(|at| Some((at, filesystem(&disk, at)?))).collect();
    let has = |wanted: Filesystem| found.iter().any(|(_, filesystem)| *filesystem == wanted);
    facts.os = match () {
        () if has(Filesystem::Ext) || has(Filesystem::OtherLinux) => OsFamily::Linux,
        () if has(Filesystem::Ntfs) => OsFamily::Windows,
        () => facts.os,
    };
    if facts.os == OsFamily::Windows {
        facts.warnings.push("it holds Windows: write os: windows in its VMs' manifests, and attach a CD with virtio drivers".into());
    }
    let roots = found.iter().filter(|(_, filesystem)| *filesystem == Filesystem::Ext).filter_map(|(at, _)| Ext4::open(&disk, *at));
    for root in roots {
        if let Some(release) = root.file("/etc/os-release").or_else(|| root.file("/usr/lib/os-release")) {
            linux(&root, &release, facts);
            break;
        }
    }
    if facts.os == OsFamily::Linux && facts.cloud_init == Found::Unknown {
        facts
            .warnings
            .push("whether it has cloud-init cannot be seen: without it, users, keys and addresses of the manifest have no effect".into());
    }
}

fn linux(root: &Ext4<'_>, release: &[u8], facts: &mut ImageFacts) {
    let release = String::from_utf8_lossy(release);
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    // It goes to terminals.
    facts.os_name = name.map(|n| n.trim_matches(['"', '\'']).chars().filter(|c| !c.is_control()).take(80).collect());
    let any = |paths: &[&str]| if paths.iter().any(|path| root.exists(path)) { Found::Yes } else { Found::No };
    facts.cloud_init = any(&["/usr/bin/cloud-init", "/etc/cloud/cloud.cfg", "/usr/local/bin/cloud-init"]);
    facts.guest_agent = any(&["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"]);
    facts.virtio = virtio(root);
    if facts.cloud_init == Found::No {
        facts.warnings.push("it has no cloud-init: users, keys and addresses of the manifest have no effect".into());
    }
}

fn virtio(root: &Ext4<'_>) -> Found {
    let kernels: Vec<String> = root.names("/usr/lib/modules").or_else(|| root.names("/lib/modules")).unwrap_or_default();
    let ready = |kernel: &String| {
        let base = format!("/lib/modules/{kernel}");
        let module = format!("{base}/kernel/drivers/block/virtio_blk.ko");
        let as_module = ["", ".xz", ".zst", ".gz"].iter().any(|suffix| root.exists(&format!("{module}{suffix}")));
        let built_in = || {
            let list = root.file_up_to(&format!("{base}/modules.builtin"), BUILTIN_BYTES_MAX).unwrap_or_default();
            String::from_utf8_lossy(&list).contains("/virtio_blk.ko")
        };
        as_module || built_in()
    };
    match kernels.len() {
        0 => Found::Unknown,
        _ if kernels.iter().take(KERNELS_MAX).any(ready) => Found::Yes,
        _ => Found::No,
    }
}

/// Where partitions begin, in bytes; a disk without a table is one itself.
fn partitions(head: &[u8]) -> Vec<u64> {
    let u64_at = |at: usize| head.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
    let u32_at = |at: usize| head.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("4 bytes")));
    let mut all: Vec<u64> = if head.get(512..520) == Some(b"EFI PART") {
        (1024..head.len()).step_by(128).map(|entry| u64_at(entry + 32)).collect()
    } else {
        (0..4).map(|n| u64::from(u32_at(446 + n * 16 + 8))).collect()
    };
    all.retain(|sector| *sector != 0);
    all.iter().filter_map(|sector| sector.checked_mul(SECTOR)).chain([0]).collect()
}

fn filesystem(disk: &Disk, at: u64) -> Option<Filesystem> {
    let bytes = disk.read(at, SIGNATURE_BYTES).ok()?;
    let is = |offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    match () {
        () if is(0x438, b"\x53\xef") => Some(Filesystem::Ext),
        () if is(0, b"XFSB") || is(0x10040, b"_BHRfS_M") || is(512, b"LABELONE") || is(0, b"LUKS\xba\xbe") => Some(Filesystem::OtherLinux),
        () if is(3, b"NTFS    ") => Some(Filesystem::Ntfs),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &str, args: &[&str], dir: &Path) {
        let status = std::process::Command::new(program).args(args).current_dir(dir).status().expect(program);
        assert!(status.success(), "{program} {args:?}");
    }

    fn looked(image: &Path) -> ImageFacts {
        let mut facts = super::super::import::unknown();
        look(image, &mut facts);
        facts
    }

    #[test]
    fn lies_of_an_image_are_neither_believed_for_long_nor_fatal() {
        let dir = tempfile::tempdir().expect("a folder");
        let tree = dir.path().join("tree/etc");
        std::fs::create_dir_all(&tree).expect("a folder");
        std::fs::write(tree.join("os-release"), "PRETTY_NAME=\"A \u{1b}[31mname\"\n").expect("written");
        std::os::unix::fs::symlink("loop", tree.join("loop")).expect("a link");
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", "tree", "root.img", "4M"], dir.path());
        run("qemu-img", &["convert", "-O", "qcow2", "-f", "raw", "root.img", "image"], dir.path());
        let image = dir.path().join("image");
        assert_eq!(looked(&image).os_name.as_deref(), Some("A [31mname"), "no escape reaches a terminal");
        let good = std::fs::read(&image).expect("an image");
        for at in (0..good.len().saturating_sub(64)).step_by(509) {
            for value in [0xff, 0x01, 0x80] {
                let mut bad = good.clone();
                bad[at..at + 64].fill(value);
                std::fs::write(&image, bad).expect("written");
                looked(&image);
            }
        }
    }
}
