//! `tiny`: a kernel, busybox and one init, on one FAT partition.
//!
//! By BIOS it is started by syslinux: GRUB moves the kernel byte by byte, which takes 2 s under TCG. By UEFI by GRUB, which
//! needs 256 MiB of memory; by BIOS 128 MiB are enough. syslinux updates no kernel, and nor does tiny.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::disk::{self, MIB, SECTOR};
use super::{grub, tool};
use crate::pool::ProgressSink;

/// Modules that saying hello needs, where the guest's kernel has them; their dependencies come along.
const MODULES_FIRST: [&str; 9] =
    ["virtio_pci", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_iso8859_1", "nls_ascii", "button", "evdev"];
/// Loaded after the hello: each costs a tenth of a second under TCG.
const MODULES_LATER: [&str; 14] = [
    "virtio_scsi",
    "sd_mod",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "virtio_gpu",
    "ext4",
    "nls_utf8",
    "isofs",
    "ahci",
    "nvme",
    "e1000e",
    "i6300esb",
    "acpiphp",
];
const KERNEL_META: &str = "linux-image-cloud-amd64";
const DISK_BYTES: u64 = 96 * MIB;
const FIRST_SECTOR: u64 = 2048;
pub const MBR: &str = "/usr/lib/syslinux/mbr/mbr.bin";
const MBR_CODE_BYTES: usize = 440;
/// The test of the kernel's ciphers alone takes a tenth of the start under TCG.
const COMMAND_LINE: &str = "console=tty0 console=ttyS0 quiet random.trust_cpu=on cryptomgr.notests no_timer_check 8250.nr_uarts=1";
const INIT: &str = include_str!("tiny-init");

pub async fn build(work: &Path, raw: &Path, sink: &ProgressSink) -> Result<(), Error> {
    sink(None, "downloading the kernel and busybox with apt");
    let tree = work.join("tree");
    for package in [&kernel_package(work).await?, "busybox-static"] {
        unpack(package, work, &tree).await?;
    }
    sink(None, "making the initrd");
    let kernel = first_file(&tree.join("boot"), "vmlinuz-")?;
    let release = kernel.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("vmlinuz-")).unwrap_or_default().to_owned();
    let initrd = initrd(&tree, &release, work).await?;
    sink(None, "making the disk");
    let efi =
        grub::efi(&format!("search --no-floppy --file /vmlinuz --set=root\nlinux /vmlinuz {COMMAND_LINE}\ninitrd /initrd\nboot\n"), work)
            .await?;
    let menu = work.join("syslinux.cfg");
    fs::write(&menu, format!("DEFAULT tiny\nPROMPT 0\nLABEL tiny\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND {COMMAND_LINE}\n"))
        .map_err(io)?;
    let fat = work.join("esp.fat");
    let files = [
        (kernel.as_path(), "/vmlinuz"),
        (initrd.as_path(), "/initrd"),
        (efi.as_path(), "/EFI/BOOT/BOOTX64.EFI"),
        (menu.as_path(), "/syslinux.cfg"),
    ];
    let volume = disk::Fat { label: "VMKTINY", id: "564D4B31", folders: &["/EFI", "/EFI/BOOT"], files: &files };
    disk::fat(&fat, DISK_BYTES - FIRST_SECTOR * SECTOR, &volume, work).await?;
    tool::run("syslinux", ["--install".as_ref(), fat.as_os_str()], work).await?;
    disk::create(raw, DISK_BYTES, &format!("label: dos\nstart={FIRST_SECTOR}, type=ef, bootable\n"), work).await?;
    disk::put_file(raw, FIRST_SECTOR * SECTOR, &fat)?;
    let mbr = fs::read(MBR).map_err(|e| Error::refused(format!("cannot read {MBR}: {e}")).hint("apt-get install syslinux-common"))?;
    disk::put_bytes(raw, 0, &mbr[..mbr.len().min(MBR_CODE_BYTES)])
}

fn io(e: std::io::Error) -> Error {
    Error::refused(format!("cannot build the image: {e}"))
}

/// The versioned package that the meta package stands for.
async fn kernel_package(work: &Path) -> Result<String, Error> {
    let ask = || tool::run("apt-cache", ["depends", "--no-recommends", "--no-suggests", KERNEL_META], work);
    let mut told = ask().await.unwrap_or_default();
    if !told.contains("linux-image-") {
        tool::run("apt-get", ["update", "-q"], work).await?;
        told = ask().await?;
    }
    let named = told.lines().filter_map(|l| l.trim().strip_prefix("Depends: ")).find(|p| p.starts_with("linux-image-"));
    named.map(str::to_owned).ok_or_else(|| {
        Error::refused(format!("apt does not know {KERNEL_META}")).hint("check /etc/apt/sources.list.d and run apt-get update")
    })
}

/// Fetches a package with the host's apt and unpacks it; nothing of it is run.
async fn unpack(package: &str, work: &Path, tree: &Path) -> Result<(), Error> {
    let debs = work.join(format!("deb-{package}"));
    fs::create_dir_all(&debs).map_err(io)?;
    let fetch = ["download", "-q", "-o", "APT::Sandbox::User=root", package];
    if tool::run("apt-get", fetch, &debs).await.is_err() {
        tool::run("apt-get", ["update", "-q"], work).await?;
        tool::run("apt-get", fetch, &debs).await?;
    }
    let deb = first_file(&debs, "")?;
    tool::run("dpkg-deb", ["-x".as_ref(), deb.as_os_str(), tree.as_os_str()], work).await.map(drop)
}

fn first_file(dir: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let named = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with(prefix);
    fs::read_dir(dir)
        .map_err(io)?
        .flatten()
        .find(named)
        .map(|e| e.path())
        .ok_or_else(|| Error::refused(format!("no {prefix}* in {}", dir.display())))
}

async fn initrd(tree: &Path, release: &str, work: &Path) -> Result<PathBuf, Error> {
    let root = work.join("initrd-root");
    for dir in ["bin", "dev", "proc", "sys", "mnt", "run", "etc"] {
        fs::create_dir_all(root.join(dir)).map_err(io)?;
    }
    let busybox = ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|p| tree.join(p))
        .find(|p| p.exists())
        .ok_or_else(|| Error::refused("busybox-static has no busybox"))?;
    fs::copy(busybox, root.join("bin/busybox")).map_err(io)?;
    let init = root.join("init");
    fs::write(&init, INIT).map_err(io)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(io)?;
    let (base, deps) = module_tree(tree, release, work).await?;
    let first = modules(&MODULES_FIRST, &base, &deps, &root, work).await?;
    let later = modules(&MODULES_LATER, &base, &deps, &root, work).await?;
    fs::write(root.join("etc/modules"), first.join("\n") + "\n").map_err(io)?;
    fs::write(root.join("etc/modules-later"), later.join("\n") + "\n").map_err(io)?;
    let list = tool::run("find", ["."], &root).await?;
    let cpio = work.join("initrd.cpio");
    let out = format!("--file={}", cpio.display());
    tool::run_with_input("cpio", ["--create", "--format=newc", "--quiet", "--owner=0:0", &out], &root, list.as_bytes()).await?;
    tool::run("gzip", ["-1".as_ref(), "-f".as_ref(), cpio.as_os_str()], work).await?;
    Ok(work.join("initrd.cpio.gz"))
}

/// The folder of the kernel's modules and what each needs (`modules.dep`).
async fn module_tree(tree: &Path, release: &str, work: &Path) -> Result<(PathBuf, String), Error> {
    let prefix = ["usr", ""].iter().map(|p| tree.join(p)).find(|p| p.join("lib/modules").join(release).exists());
    let prefix = prefix.ok_or_else(|| Error::refused("the kernel has no modules"))?;
    // depmod looks below lib/modules of its base.
    tool::run("depmod", ["-b".as_ref(), prefix.as_os_str(), release.as_ref()], work).await?;
    let base = prefix.join("lib/modules").join(release);
    let deps = fs::read_to_string(base.join("modules.dep")).map_err(io)?;
    Ok((base, deps))
}

/// Copies the modules and what they need, unpacked; their names in the order to load them.
async fn modules(wanted: &[&str], base: &Path, deps: &str, root: &Path, work: &Path) -> Result<Vec<String>, Error> {
    let mut order: Vec<String> = Vec::new();
    for wanted in wanted {
        let Some(line) = deps.lines().find(|l| module_name(l.split(':').next().unwrap_or_default()) == *wanted) else { continue };
        let (file, needs) = line.split_once(':').unwrap_or((line, ""));
        for path in needs.split_whitespace().rev().chain([file]) {
            let name = format!("{}.ko", module_name(path));
            let target = root.join("etc").join(&name);
            if target.exists() {
                continue;
            }
            unpack_module(&base.join(path), &target, work).await?;
            order.push(name);
        }
    }
    Ok(order)
}

async fn unpack_module(file: &Path, target: &Path, work: &Path) -> Result<(), Error> {
    if file.extension().is_some_and(|e| e == "xz") {
        let packed = target.with_extension("ko.xz");
        fs::copy(file, &packed).map_err(io)?;
        return tool::run("xz", ["-d".as_ref(), packed.as_os_str()], work).await.map(drop);
    }
    fs::copy(file, target).map(drop).map_err(io)
}

/// `kernel/drivers/virtio/virtio_pci.ko.xz` is `virtio_pci`; the kernel takes `-` for `_`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names() {
        assert_eq!(module_name("kernel/fs/nls/nls_iso8859-1.ko"), "nls_iso8859_1");
        assert_eq!(module_name("kernel/drivers/virtio/virtio_pci.ko.xz"), "virtio_pci");
    }
}
