//! Debian with cloud-init, from the host's own apt sources.
//!
//! GPT: BIOS boot partition, ESP, root (ext4, last, so that it can grow). The root's own `grub.cfg` names `/vmlinuz` and
//! `/initrd.img`, which Debian keeps pointing at the newest kernel, so that kernel upgrades need no `update-grub`.

use std::fs;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;

use super::disk::{self, MIB, SECTOR};
use super::{grub, tool};
use crate::pool::ProgressSink;

const DISK_BYTES: u64 = 2560 * MIB;
const BIOS_FIRST: u64 = 2048;
const ESP_FIRST: u64 = 4096;
const ESP_BYTES: u64 = 64 * MIB;
const ROOT_FIRST: u64 = ESP_FIRST + ESP_BYTES / SECTOR;
/// The second table of a GPT takes the last 33 sectors.
const ROOT_BYTES: u64 = DISK_BYTES - ROOT_FIRST * SECTOR - MIB;

const PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,systemd-sysv,dbus,udev,cloud-init,cloud-guest-utils,qemu-guest-agent,openssh-server,\
sudo,ca-certificates,iproute2,iputils-ping,ifupdown,isc-dhcp-client,netplan.io,systemd-resolved,grub2-common,grub-pc-bin,grub-efi-amd64-bin,e2fsprogs,less,locales";

const EARLY: &str = "search --no-floppy --label vmkroot --set=root\nset prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n";
const GRUB_CFG: &str = "set timeout=0\nsearch --no-floppy --label vmkroot --set=root\nlinux /vmlinuz root=LABEL=vmkroot ro console=tty0 console=ttyS0,115200 quiet\n\
initrd /initrd.img\nboot\n";
const FSTAB: &str = "LABEL=vmkroot / ext4 errors=remount-ro 0 1\nLABEL=VMKESP /boot/efi vfat umask=0077,nofail 0 1\n";
const CLOUD: &str = "datasource_list: [NoCloud, None]\ndatasource: {NoCloud: {fs_label: CIDATA}}\n";

pub async fn build(suite: &str, work: &Path, raw: &Path, sink: &ProgressSink) -> Result<(), Error> {
    sink(None, &format!("installing Debian {suite} with mmdebstrap (minutes)"));
    let tree = work.join("root");
    bootstrap(suite, &tree, work).await?;
    sink(None, "preparing the system");
    prepare(&tree)?;
    sink(None, "making the file systems");
    let root = work.join("root.ext4");
    fs::File::create(&root).and_then(|f| f.set_len(ROOT_BYTES)).map_err(io)?;
    tool::run("mke2fs", ["-q".as_ref(), "-t".as_ref(), "ext4".as_ref(), "-L".as_ref(), "vmkroot".as_ref(), "-d".as_ref(), tree.as_os_str(), root.as_os_str()], work).await?;
    let efi = grub::efi(EARLY, work).await?;
    let esp = work.join("esp.fat");
    disk::fat(&esp, ESP_BYTES, "VMKESP", &["/EFI", "/EFI/BOOT"], &[(&efi, "/EFI/BOOT/BOOTX64.EFI")], work).await?;
    sink(None, "making the disk");
    let table = format!(
        "label: gpt\nstart={BIOS_FIRST}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         start={ESP_FIRST}, size={}, type=U\nstart={ROOT_FIRST}, size={}, type=L\n",
        ESP_FIRST - BIOS_FIRST,
        ESP_BYTES / SECTOR,
        ROOT_BYTES / SECTOR
    );
    disk::create(raw, DISK_BYTES, &table, work).await?;
    disk::put_file(raw, ESP_FIRST * SECTOR, &esp)?;
    disk::put_file(raw, ROOT_FIRST * SECTOR, &root)?;
    grub::bios(raw, BIOS_FIRST, EARLY, work).await
}

fn io(e: std::io::Error) -> Error {
    Error::refused(format!("cannot build the image: {e}"))
}

async fn bootstrap(suite: &str, tree: &Path, work: &Path) -> Result<(), Error> {
    let sources = work.join("sources.list");
    fs::write(&sources, sources_for(suite)?).map_err(io)?;
    let include = format!("--include={PACKAGES}");
    let args = [
        "--mode=root", "--variant=minbase", "--format=directory", "--skip=check/empty,cleanup/reproducible", "--aptopt=APT::Install-Recommends \"false\"",
        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=force-unsafe-io",
        // Without a machine-id and host keys each clone makes its own.
        "--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_*", &include, suite,
    ];
    let args = args.iter().map(std::ffi::OsStr::new).chain([tree.as_os_str(), sources.as_os_str()]);
    tool::run("mmdebstrap", args, work).await.map(drop)
}

/// The host's own Debian sources, for another suite of the same archive.
fn sources_for(suite: &str) -> Result<String, Error> {
    let dir = Path::new("/etc/apt/sources.list.d");
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "sources"));
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).map(str::to_owned);
        let is_debian = field("Suites:").is_some_and(|s| s.split_whitespace().any(|s| ["bookworm", "trixie", "stable"].contains(&s)));
        if let (true, Some(uri)) = (is_debian, field("URIs:")) {
            let uri = uri.split_whitespace().next().unwrap_or_default().to_owned();
            return Ok(lines_for(suite, &uri, field("Signed-By:").as_deref()));
        }
    }
    let old = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let uri = old.lines().filter(|l| l.starts_with("deb ")).find_map(|l| l.split_whitespace().find(|w| w.contains("://")).map(str::to_owned));
    uri.map(|uri| lines_for(suite, &uri, None)).ok_or_else(|| Error::refused("no Debian apt source is configured on this host"))
}

fn lines_for(suite: &str, uri: &str, key: Option<&str>) -> String {
    let options = key.map(|k| format!("[signed-by={k}] ")).unwrap_or_default();
    format!("deb {options}{uri} {suite} main\ndeb {options}{uri} {suite}-updates main\n")
}

fn prepare(tree: &Path) -> Result<(), Error> {
    let put = |path: &str, text: &str| {
        let path: PathBuf = tree.join(path);
        fs::create_dir_all(path.parent().expect("a file in a folder")).and_then(|()| fs::write(&path, text)).map_err(io)
    };
    put("etc/fstab", FSTAB)?;
    put("boot/grub/grub.cfg", GRUB_CFG)?;
    put("etc/machine-id", "")?;
    put("etc/hostname", "debian\n")?;
    put("etc/cloud/cloud.cfg.d/90-vmkeep.cfg", CLOUD)?;
    put("etc/systemd/network/90-dhcp.network", "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n")?;
    fs::create_dir_all(tree.join("boot/efi")).map_err(io)?;
    // The serial console, without waiting for a generator to see the kernel's.
    let wants = tree.join("etc/systemd/system/getty.target.wants");
    fs::create_dir_all(&wants).map_err(io)?;
    let getty = wants.join("serial-getty@ttyS0.service");
    if !getty.exists() {
        std::os::unix::fs::symlink("/lib/systemd/system/serial-getty@.service", getty).map_err(io)?;
    }
    Ok(())
}
