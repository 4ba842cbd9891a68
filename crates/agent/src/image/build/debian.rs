//! `debian-12` and `debian-13`: what Debian's own cloud images are, made here from the host's apt sources.
//!
//! ```text
//!  mmdebstrap ──► tree ──► our files ──► mke2fs -d ──► GPT: 14 bios-boot, 15 ESP (shim, GRUB), 1 root (last, so it can grow)
//! ```
//! The guest updates its own kernel and GRUB: `grub-cloud-amd64` installs for both firmwares. Secure Boot works by Debian's
//! shim. A first boot makes machine-id and host keys, grows root and reads the seed (cloud-init); without a seed it takes DHCP.

use std::fs;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::disk::{self, MIB, SECTOR};
use super::{apt, grub, tool};
use crate::pool::ProgressSink;

/// The size a VM sees before it asks for more; root uses all but the first 128 MiB.
const DISK_BYTES: u64 = 3 << 30;
const CORE_SECTOR: u64 = 2048;
const ESP_SECTOR: u64 = 8192;
const ROOT_SECTOR: u64 = 128 * MIB / SECTOR;
/// The backup GPT takes the last MiB.
const ROOT_BYTES: u64 = DISK_BYTES - 129 * MIB;

const PACKAGES: [&str; 28] = [
    "systemd-sysv",
    "systemd-resolved",
    "systemd-timesyncd",
    "libpam-systemd",
    "dbus",
    "udev",
    "init",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "grub-cloud-amd64",
    "cloud-init",
    "cloud-guest-utils",
    "fdisk",
    "netplan.io",
    "qemu-guest-agent",
    "openssh-server",
    "sudo",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "less",
    "vim-tiny",
    "procps",
    "kmod",
    "e2fsprogs",
    "debian-archive-keyring",
    "bash-completion",
    "netbase",
];

/// Files of ours, over what the packages brought. GRUB's script of grub-cloud looks for `enable_cloud`.
const FILES: [(&str, &str); 7] = [
    ("etc/hostname", "debian\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n"),
    ("etc/machine-id", ""),
    ("etc/grub.d/enable_cloud", ""),
    (
        "etc/default/grub.d/50_vmkeep.cfg",
        "GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200\"\nGRUB_TERMINAL=\"console serial\"\n",
    ),
    (
        "etc/cloud/cloud.cfg.d/50_vmkeep.cfg",
        "# A seed of vmkeep, a config drive, or none: then DHCP and a grown root.\ndatasource_list: [NoCloud, ConfigDrive, None]\nlocale: C.UTF-8\n",
    ),
    ("etc/apt/apt.conf.d/50vmkeep", "APT::Install-Recommends \"true\";\n"),
];
/// What a first boot makes anew, and what only the build needed.
const LEFT_OUT: [&str; 4] =
    ["var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "etc/apt/apt.conf.d/99mmdebstrap", "var/log/bootstrap.log"];

pub async fn build(release: &str, work: &Path, raw: &Path, sink: &ProgressSink) -> Result<(), Error> {
    sink(None, &format!("installing Debian {release} with mmdebstrap"));
    let tree = work.join("tree");
    install(release, &tree, work).await?;
    sink(None, "setting up the first boot");
    let (root_id, esp_id) = (uuid::Uuid::new_v4(), esp_id());
    finish_tree(&tree, &root_id.to_string(), &esp_id)?;
    let core = core_image(&tree, &root_id.to_string(), work).await?;
    sink(None, "making the disk");
    disk::create(raw, DISK_BYTES, &table(), work).await?;
    let esp = esp(&tree, &root_id.to_string(), &esp_id, work).await?;
    disk::put_file(raw, ESP_SECTOR * SECTOR, &esp)?;
    let root = work.join("root.ext4");
    disk::ext4(&root, ROOT_BYTES, &root_id.to_string(), &tree, work).await?;
    disk::put_file(raw, ROOT_SECTOR * SECTOR, &root)?;
    fs::remove_file(&root).map_err(io)?;
    grub::embed(raw, CORE_SECTOR, &tree.join("usr/lib/grub/i386-pc/boot.img"), &core)
}

fn io(e: std::io::Error) -> Error {
    Error::refused(format!("cannot build the image: {e}"))
}

/// In namespaces of its own, so that nothing it started or mounted outlives a cancelled build.
async fn install(release: &str, tree: &Path, work: &Path) -> Result<(), Error> {
    let list = work.join("sources.list");
    fs::write(&list, apt::sources_for(release, Path::new("/etc"))?).map_err(io)?;
    let include = format!("--include={}", PACKAGES.join(","));
    let fixed = [
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation=private",
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
    ];
    let mut args: Vec<&std::ffi::OsStr> = fixed.iter().map(std::ffi::OsStr::new).collect();
    args.extend([include.as_ref(), release.as_ref(), tree.as_os_str(), list.as_os_str()]);
    tool::run("unshare", args, work).await.map(drop)
}

/// Replaces a file of the tree without following a link out of it.
fn put(tree: &Path, path: &str, text: &str) -> Result<(), Error> {
    let path = tree.join(path);
    fs::create_dir_all(path.parent().expect("below the tree")).map_err(io)?;
    remove(&path)?;
    fs::write(&path, text).map_err(io)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(e)),
        _ => Ok(()),
    }
}

fn finish_tree(tree: &Path, root_id: &str, esp_id: &str) -> Result<(), Error> {
    for (path, text) in FILES {
        put(tree, path, text)?;
    }
    put(tree, "etc/fstab", &format!("UUID={root_id} / ext4 errors=remount-ro 0 1\nUUID={esp_id} /boot/efi vfat umask=0077,nofail 0 1\n"))?;
    for path in LEFT_OUT {
        remove(&tree.join(path))?;
    }
    for entry in fs::read_dir(tree.join("etc/ssh")).map_err(io)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            remove(&entry.path())?;
        }
    }
    remove(&tree.join("etc/resolv.conf"))?;
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", tree.join("etc/resolv.conf")).map_err(io)?;
    fs::create_dir_all(tree.join("boot/efi")).map_err(io)?;
    let modules = tree.join("boot/grub/i386-pc");
    fs::create_dir_all(&modules).map_err(io)?;
    for entry in fs::read_dir(tree.join("usr/lib/grub/i386-pc")).map_err(io)?.flatten() {
        fs::copy(entry.path(), modules.join(entry.file_name())).map_err(io)?;
    }
    put(tree, "boot/grub/grub.cfg", &menu(tree, root_id)?)
}

/// Until the guest's first update-grub. The newest kernel alone: there is one.
fn menu(tree: &Path, root_id: &str) -> Result<String, Error> {
    let kernel = fs::read_dir(tree.join("boot"))
        .map_err(io)?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .find(|n| n.starts_with("vmlinuz-"));
    let release =
        kernel.as_deref().and_then(|n| n.strip_prefix("vmlinuz-")).ok_or_else(|| Error::refused("the installed system has no kernel"))?;
    Ok(format!(
        "serial --unit=0 --speed=115200\nterminal_input console serial\nterminal_output console serial\nset timeout=1\n\
         search --no-floppy --fs-uuid --set=root {root_id}\n\
         menuentry 'Debian' {{\n  linux /boot/vmlinuz-{release} root=UUID={root_id} ro console=tty0 console=ttyS0,115200\n  initrd /boot/initrd.img-{release}\n}}\n"
    ))
}

/// GRUB for BIOS by the guest's own GRUB: its modules must be of the same version.
async fn core_image(tree: &Path, root_id: &str, work: &Path) -> Result<PathBuf, Error> {
    put(tree, "boot/grub/early.cfg", &format!("search.fs_uuid {root_id} root\nset prefix=($root)/boot/grub\n"))?;
    let inside = ["grub-mkimage", "-O", "i386-pc", "-p", "/boot/grub", "-c", "/boot/grub/early.cfg", "-o", "/boot/grub/i386-pc/core.img"];
    let modules = ["biosdisk", "part_gpt", "ext2", "search_fs_uuid", "normal", "configfile", "linux"];
    let args = std::iter::once(tree.as_os_str()).chain(inside.iter().chain(&modules).map(std::ffi::OsStr::new));
    tool::run("chroot", args, work).await?;
    Ok(tree.join("boot/grub/i386-pc/core.img"))
}

/// Numbers as in Debian's cloud images: root is 1 and lies last.
fn table() -> String {
    format!(
        "label: gpt\n14: start={CORE_SECTOR}, size={}, type=21686148-6449-6E6F-744E-656564454649\n15: start={ESP_SECTOR}, size={}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         1: start={ROOT_SECTOR}, size={}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n",
        ESP_SECTOR - CORE_SECTOR,
        ROOT_SECTOR - ESP_SECTOR,
        ROOT_BYTES / SECTOR
    )
}

/// A FAT volume's id, as fstab writes it.
fn esp_id() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
    format!("{}-{}", &id[..4], &id[4..8])
}

/// Debian's signed GRUB reads `EFI/debian/grub.cfg`; the removable path starts it without boot entries.
async fn esp(tree: &Path, root_id: &str, esp_id: &str, work: &Path) -> Result<PathBuf, Error> {
    let config = work.join("esp-grub.cfg");
    fs::write(&config, format!("search.fs_uuid {root_id} root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"))
        .map_err(io)?;
    let shim = tree.join("usr/lib/shim/shimx64.efi.signed");
    let manager = tree.join("usr/lib/shim/mmx64.efi.signed");
    let signed = tree.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let files = [
        (shim.as_path(), "/EFI/BOOT/BOOTX64.EFI"),
        (manager.as_path(), "/EFI/BOOT/mmx64.efi"),
        (signed.as_path(), "/EFI/BOOT/grubx64.efi"),
        (shim.as_path(), "/EFI/debian/shimx64.efi"),
        (signed.as_path(), "/EFI/debian/grubx64.efi"),
        (config.as_path(), "/EFI/debian/grub.cfg"),
    ];
    let image = work.join("esp.fat");
    let volume = disk::Fat { label: "ESP", id: &esp_id.replace('-', ""), folders: &["/EFI", "/EFI/BOOT", "/EFI/debian"], files: &files };
    disk::fat(&image, (ROOT_SECTOR - ESP_SECTOR) * SECTOR, &volume, work).await?;
    Ok(image)
}
