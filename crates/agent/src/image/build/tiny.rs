//! `tiny`: a kernel, busybox and one init, on one FAT partition.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::disk::{self, MIB, SECTOR};
use super::{grub, tool};
use crate::pool::ProgressSink;

/// Modules the guest loads, where its kernel has them; their dependencies come along.
const MODULES: [&str; 23] = [
    "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon", "virtio_gpu", "button", "ext4",
    "vfat", "nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8", "isofs", "ahci", "nvme", "e1000e", "i6300esb", "acpiphp", "evdev",
];
const KERNEL_META: &str = "linux-image-cloud-amd64";
const DISK_BYTES: u64 = 96 * MIB;
const FIRST_SECTOR: u64 = 2048;
const CONFIG: &str = "search --no-floppy --file /vmlinuz --set=root\nlinux /vmlinuz console=tty0 console=ttyS0 quiet random.trust_cpu=on\ninitrd /initrd\nboot\n";
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
    let efi = grub::efi(CONFIG, work).await?;
    let fat = work.join("esp.fat");
    let files = [(kernel.as_path(), "/vmlinuz"), (initrd.as_path(), "/initrd"), (efi.as_path(), "/EFI/BOOT/BOOTX64.EFI")];
    let volume = disk::Fat { label: "VMKTINY", id: "564D4B31", folders: &["/EFI", "/EFI/BOOT"], files: &files };
    disk::fat(&fat, DISK_BYTES - FIRST_SECTOR * SECTOR, &volume, work).await?;
    disk::create(raw, DISK_BYTES, &format!("label: dos\nstart={FIRST_SECTOR}, type=ef, bootable\n"), work).await?;
    disk::put_file(raw, FIRST_SECTOR * SECTOR, &fat)?;
    grub::bios(raw, 1, CONFIG, work).await
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
    named.map(str::to_owned).ok_or_else(|| Error::refused(format!("apt does not know {KERNEL_META}")).hint("check /etc/apt/sources.list.d and run apt-get update"))
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
    fs::read_dir(dir).map_err(io)?.flatten().find(named).map(|e| e.path()).ok_or_else(|| Error::refused(format!("no {prefix}* in {}", dir.display())))
}

async fn initrd(tree: &Path, release: &str, work: &Path) -> Result<PathBuf, Error> {
    let root = work.join("initrd-root");
    for dir in ["bin", "dev", "proc", "sys", "mnt", "run", "etc"] {
        fs::create_dir_all(root.join(dir)).map_err(io)?;
    }
    let busybox = ["usr/bin/busybox", "bin/busybox"].iter().map(|p| tree.join(p)).find(|p| p.exists()).ok_or_else(|| Error::refused("busybox-static has no busybox"))?;
    fs::copy(busybox, root.join("bin/busybox")).map_err(io)?;
    let init = root.join("init");
    fs::write(&init, INIT).map_err(io)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).map_err(io)?;
    let order = modules(tree, release, &root, work).await?;
    fs::write(root.join("etc/modules"), order.join("\n") + "\n").map_err(io)?;
    let list = tool::run("find", ["."], &root).await?;
    let cpio = work.join("initrd.cpio");
    let out = format!("--file={}", cpio.display());
    tool::run_with_input("cpio", ["--create", "--format=newc", "--quiet", "--owner=0:0", &out], &root, list.as_bytes()).await?;
    tool::run("gzip", ["-1".as_ref(), "-f".as_ref(), cpio.as_os_str()], work).await?;
    Ok(work.join("initrd.cpio.gz"))
}

/// Copies the modules and what they need; their names in the order to load them.
async fn modules(tree: &Path, release: &str, root: &Path, work: &Path) -> Result<Vec<String>, Error> {
    let base = ["usr/lib/modules", "lib/modules"].iter().map(|p| tree.join(p).join(release)).find(|p| p.exists()).ok_or_else(|| Error::refused("the kernel has no modules"))?;
    let prefix = base.ancestors().nth(if base.starts_with(tree.join("usr")) { 4 } else { 3 }).expect("the tree is above");
    // depmod looks below lib/modules of its base.
    let depmod_base = if base.starts_with(tree.join("usr")) { tree.join("usr") } else { prefix.to_owned() };
    tool::run("depmod", ["-b".as_ref(), depmod_base.as_os_str(), release.as_ref()], work).await?;
    let deps = fs::read_to_string(base.join("modules.dep")).map_err(io)?;
    let mut order: Vec<String> = Vec::new();
    for wanted in MODULES {
        let Some(line) = deps.lines().find(|l| module_name(l.split(':').next().unwrap_or_default()) == wanted) else { continue };
        let (file, needs) = line.split_once(':').unwrap_or((line, ""));
        for path in needs.split_whitespace().rev().chain([file]) {
            let name = format!("{}.ko", module_name(path));
            if order.contains(&name) {
                continue;
            }
            let target = root.join("etc").join(&name);
            fs::copy(base.join(path), root.join("etc").join(Path::new(path).file_name().unwrap_or_default())).map_err(io)?;
            if path.ends_with(".xz") {
                tool::run("xz", ["-d".as_ref(), "-f".as_ref(), target.with_extension("ko.xz").as_os_str()], work).await?;
            } else {
                let copied = root.join("etc").join(Path::new(path).file_name().unwrap_or_default());
                fs::rename(copied, &target).map_err(io)?;
            }
            order.push(name);
        }
    }
    Ok(order)
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
