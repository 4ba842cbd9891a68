//! Where disks and the store lie: room, kind of file system, and whether QEMU's user gets there.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vmkeep_api::body::PoolSpace;
use vmkeep_types::host::CheckRow;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::row::{fail, ok, warn};
use crate::pool::reflink;

/// Less room than this in the pool: guests will soon be paused by a full disk.
const POOL_FREE_MIN: ByteCount = ByteCount::from_gib(10);
/// Less than this: not even a small image fits.
const POOL_FREE_LEAST: ByteCount = ByteCount::from_gib(1);
/// The store grows by kilobytes; without room nothing can be changed any more.
const STORE_FREE_MIN: ByteCount = ByteCount::from_mib(256);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub path: PathBuf,
    pub file_system: String,
    pub free: ByteCount,
    pub total: ByteCount,
}

/// What a try with a real file showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    Works,
    Fails,
    /// No file could be made to try with.
    Unknown,
}

/// One folder on the way to the pool.
#[derive(Clone, Debug)]
pub struct Folder {
    pub path: PathBuf,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// It has an access list, which the mode does not show.
    pub acl: bool,
}

#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// None = its file system cannot be asked.
    pub pool: Option<Space>,
    pub store: Option<Space>,
    pub o_direct: Tried,
    pub reflink: Tried,
    /// From the root down to the pool.
    pub way: Vec<Folder>,
    /// The user QEMU runs as; None = root, or unknown.
    pub qemu: Option<QemuUser>,
}

#[derive(Clone, Debug)]
pub struct QemuUser {
    pub name: String,
    pub uid: u32,
    pub gids: Vec<u32>,
}

pub fn gather(pool: &Path, store: &Path) -> DiskFacts {
    let there = nearest(pool);
    let reflink = match reflink::works(&there) {
        Some(true) => Tried::Works,
        Some(false) => Tried::Fails,
        None => Tried::Unknown,
    };
    DiskFacts {
        pool: space(pool, &there),
        store: space(store, &nearest(store)),
        o_direct: try_direct(&there),
        reflink,
        way: there.ancestors().filter_map(folder).collect::<Vec<_>>().into_iter().rev().collect(),
        qemu: qemu_user(),
    }
}

/// The path itself, or the deepest parent that is there.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn space(path: &Path, there: &Path) -> Option<Space> {
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    let block = stat.fragment_size();
    Some(Space {
        path: path.to_owned(),
        file_system: file_system(there),
        free: ByteCount::from_bytes(stat.blocks_available().saturating_mul(block)),
        total: ByteCount::from_bytes(stat.blocks().saturating_mul(block)),
    })
}

/// The type of the mount that holds `path`, from `/proc/self/mountinfo`: the last mount at the longest matching point.
fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    type_of(&mounts, &real).unwrap_or_else(|| "unknown".into())
}

fn type_of(mountinfo: &str, path: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mountinfo.lines() {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        if path.starts_with(&point) && best.is_none_or(|(d, _)| depth >= d) {
            best = Some((depth, after.split(' ').next()?));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

fn try_direct(dir: &Path) -> Tried {
    let Ok(file) = tempfile::NamedTempFile::new_in(dir) else { return Tried::Unknown };
    let direct = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(file.path());
    if direct.is_ok() { Tried::Works } else { Tried::Fails }
}

fn folder(path: &Path) -> Option<Folder> {
    let meta = fs::metadata(path).ok()?;
    Some(Folder { path: path.to_owned(), mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), acl: has_acl(path) })
}

fn has_acl(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: C strings; a null buffer of size 0 asks for the length only.
    unsafe { libc::getxattr(path.as_ptr(), c"system.posix_acl_access".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// `user` of qemu.conf, else Debian's `libvirt-qemu`.
fn qemu_user() -> Option<QemuUser> {
    let conf = fs::read_to_string("/etc/libvirt/qemu.conf").unwrap_or_default();
    let name = super::security::setting(&conf, "user").unwrap_or_else(|| "libvirt-qemu".into());
    let name = name.trim_start_matches('+');
    if name == "root" || name == "0" {
        return None;
    }
    let user = nix::unistd::User::from_name(name).ok()??;
    let name_c = CString::new(name).ok()?;
    let gids = nix::unistd::getgrouplist(&name_c, user.gid).unwrap_or_else(|_| vec![user.gid]);
    Some(QemuUser { name: name.to_owned(), uid: user.uid.as_raw(), gids: gids.into_iter().map(nix::unistd::Gid::as_raw).collect() })
}

pub fn judge(facts: &DiskFacts) -> Vec<CheckRow> {
    let mut rows = vec![pool_space(facts.pool.as_ref()), pool_kind(facts), traversal(facts)];
    rows.extend(facts.store.as_ref().map(store_space));
    rows
}

fn words(space: &Space) -> String {
    format!("{} of {} free in {} ({})", space.free.human(), space.total.human(), space.path.display(), space.file_system)
}

fn pool_space(space: Option<&Space>) -> CheckRow {
    let Some(space) = space else { return fail("disk-space", "unknown", "the pool's file system cannot be asked", None) };
    judge_space("disk-space", words(space), space.free)
}

fn judge_space(row: &str, found: String, free: ByteCount) -> CheckRow {
    let mend = || Some("vmkeep volume list; vmkeep image list".to_owned());
    if free < POOL_FREE_LEAST {
        return fail(row, found, "there is no room for an image; guests that write are paused", mend());
    }
    if free < POOL_FREE_MIN {
        return warn(row, found, "disks are thin: when the pool is full, guests that write are paused", mend());
    }
    ok(row, found)
}

/// Any other pool than `default`.
pub fn pool(name: &Name, space: PoolSpace) -> CheckRow {
    let words = format!("pool '{name}': {} of {} free", space.free.human(), space.size.human());
    judge_space("pool-space", words, space.free)
}

fn store_space(space: &Space) -> CheckRow {
    if space.free < STORE_FREE_MIN {
        let mend = format!("du -xh {} | sort -h | tail", space.path.display());
        return fail("store-space", words(space), "without room for the store nothing can be changed or started", Some(mend));
    }
    ok("store-space", words(space))
}

fn pool_kind(facts: &DiskFacts) -> CheckRow {
    let kind = facts.pool.as_ref().map_or("unknown", |space| space.file_system.as_str());
    let reflink = match facts.reflink {
        Tried::Works => "reflink",
        Tried::Fails => "no reflink: `vm clone` copies what was written",
        Tried::Unknown => "reflink not tried",
    };
    if matches!(kind, "tmpfs" | "ramfs") {
        return warn("disk-type", kind, "disks lie in memory and are gone after a boot", Some("mount a disk at the pool's folder".into()));
    }
    if kind.starts_with("nfs") || matches!(kind, "cifs" | "fuse.sshfs" | "9p") {
        let why = "a pool of kind `dir` is for local disks: file locks and speed over the network are not what VMs need";
        return warn("disk-type", kind, why, None);
    }
    match facts.o_direct {
        Tried::Works => ok("disk-type", format!("{kind}, O_DIRECT, {reflink}")),
        Tried::Fails => {
            let why = "no O_DIRECT: disks use the host's page cache (`cache: writeback`) and cost memory twice";
            warn("disk-type", format!("{kind}, {reflink}"), why, Some("put the pool on ext4, xfs or btrfs".into()))
        }
        Tried::Unknown => warn("disk-type", kind, "no file can be made there, so nothing could be tried", None),
    }
}

/// Whether QEMU's user may go through this folder, as far as the mode tells.
fn may_pass(folder: &Folder, user: &QemuUser) -> bool {
    if folder.uid == user.uid {
        folder.mode & 0o100 != 0
    } else if user.gids.contains(&folder.gid) {
        folder.mode & 0o010 != 0
    } else {
        folder.mode & 0o001 != 0
    }
}

fn traversal(facts: &DiskFacts) -> CheckRow {
    let Some(user) = &facts.qemu else { return ok("pool-access", "QEMU runs as root") };
    let Some(closed) = facts.way.iter().find(|folder| !may_pass(folder, user)) else {
        return ok("pool-access", format!("{} gets to the pool", user.name));
    };
    let found = format!("{} is closed to {} (mode {:04o})", closed.path.display(), user.name, closed.mode);
    if closed.acl {
        return warn(
            "pool-access",
            found,
            "it has an access list, which may let QEMU in all the same",
            Some(format!("getfacl {}", closed.path.display())),
        );
    }
    fail("pool-access", found, "QEMU cannot open any disk below it", Some(format!("chmod o+x {}", closed.path.display())))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn space_of(path: &str, free: ByteCount) -> Space {
        Space { path: path.into(), file_system: "ext4".into(), free, total: ByteCount::from_gib(500) }
    }

    fn dir(path: &str, mode: u32) -> Folder {
        Folder { path: path.into(), mode, uid: 0, gid: 0, acl: false }
    }

    fn check(change: impl FnOnce(&mut DiskFacts), expect: Expect) {
        let mut facts = DiskFacts {
            pool: Some(space_of("/var/lib/libvirt/images/vmkeep", ByteCount::from_gib(200))),
            store: Some(space_of("/var/lib/vmkeep", ByteCount::from_gib(200))),
            o_direct: Tried::Works,
            reflink: Tried::Fails,
            way: vec![dir("/", 0o755), dir("/var", 0o755), dir("/var/lib", 0o755), dir("/var/lib/libvirt", 0o711)],
            qemu: Some(QemuUser { name: "libvirt-qemu".into(), uid: 64055, gids: vec![106, 64055] }),
        };
        change(&mut facts);
        let bad: Vec<CheckRow> = judge(&facts).into_iter().filter(|r| r.level != vmkeep_types::host::CheckLevel::Ok).collect();
        let all = judge(&facts);
        expect.assert_eq(&show(if bad.is_empty() { &all } else { &bad }));
    }

    #[test]
    fn all_is_well() {
        check(
            |_| {},
            expect![[r#"
                ok disk-space: 200G of 500G free in /var/lib/libvirt/images/vmkeep (ext4)
                ok disk-type: ext4, O_DIRECT, no reflink: `vm clone` copies what was written
                ok pool-access: libvirt-qemu gets to the pool
                ok store-space: 200G of 500G free in /var/lib/vmkeep (ext4)
            "#]],
        );
    }

    #[test]
    fn little_room_and_none() {
        check(
            |f| f.pool = Some(space_of("/p", ByteCount::from_gib(3))),
            expect![[r#"
                warn disk-space: 3G of 500G free in /p (ext4)
                  disks are thin: when the pool is full, guests that write are paused
                  $ vmkeep volume list; vmkeep image list
            "#]],
        );
        check(
            |f| {
                f.pool = Some(space_of("/p", ByteCount::from_mib(90)));
                f.store = Some(space_of("/s", ByteCount::from_mib(90)));
            },
            expect![[r#"
                fail disk-space: 90M of 500G free in /p (ext4)
                  there is no room for an image; guests that write are paused
                  $ vmkeep volume list; vmkeep image list
                fail store-space: 90M of 500G free in /s (ext4)
                  without room for the store nothing can be changed or started
                  $ du -xh /s | sort -h | tail
            "#]],
        );
    }

    #[test]
    fn every_pool_has_its_row() {
        let row = |mib| pool(&Name::known("fast"), PoolSpace { size: ByteCount::from_gib(100), free: ByteCount::from_mib(mib) });
        expect![[r#"
            ok pool-space: pool 'fast': 40G of 100G free
            warn pool-space: pool 'fast': 3G of 100G free
              disks are thin: when the pool is full, guests that write are paused
              $ vmkeep volume list; vmkeep image list
            fail pool-space: pool 'fast': 764M of 100G free
              there is no room for an image; guests that write are paused
              $ vmkeep volume list; vmkeep image list
        "#]]
        .assert_eq(&show(&[row(40 << 10), row(3 << 10), row(764)]));
    }

    #[test]
    fn file_systems_that_are_no_good_for_disks() {
        let kind = |kind: &'static str| move |f: &mut DiskFacts| f.pool.as_mut().expect("set above").file_system = kind.into();
        check(
            kind("tmpfs"),
            expect![[r#"
                warn disk-type: tmpfs
                  disks lie in memory and are gone after a boot
                  $ mount a disk at the pool's folder
            "#]],
        );
        check(
            kind("nfs4"),
            expect![[r#"
                warn disk-type: nfs4
                  a pool of kind `dir` is for local disks: file locks and speed over the network are not what VMs need
            "#]],
        );
        check(
            |f| f.o_direct = Tried::Fails,
            expect![[r#"
                warn disk-type: ext4, no reflink: `vm clone` copies what was written
                  no O_DIRECT: disks use the host's page cache (`cache: writeback`) and cost memory twice
                  $ put the pool on ext4, xfs or btrfs
            "#]],
        );
        check(
            |f| f.o_direct = Tried::Unknown,
            expect![[r#"
                warn disk-type: ext4
                  no file can be made there, so nothing could be tried
            "#]],
        );
    }

    #[test]
    fn a_folder_on_the_way_is_closed() {
        check(
            |f| f.way.push(dir("/var/lib/libvirt/images", 0o700)),
            expect![[r#"
                fail pool-access: /var/lib/libvirt/images is closed to libvirt-qemu (mode 0700)
                  QEMU cannot open any disk below it
                  $ chmod o+x /var/lib/libvirt/images
            "#]],
        );
        check(
            |f| f.way.push(Folder { acl: true, ..dir("/home/me", 0o750) }),
            expect![[r#"
                warn pool-access: /home/me is closed to libvirt-qemu (mode 0750)
                  it has an access list, which may let QEMU in all the same
                  $ getfacl /home/me
            "#]],
        );
        let all_ok = |f: &mut DiskFacts| {
            f.way.push(Folder { gid: 64055, ..dir("/pool", 0o750) });
            f.pool = None;
        };
        check(
            all_ok,
            expect![[r#"
                fail disk-space: unknown
                  the pool's file system cannot be asked
            "#]],
        );
    }

    #[test]
    fn the_mount_that_holds_a_path() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:25 / /var/lib rw - xfs /dev/sdb rw\n31 22 0:26 / /var/lib rw - btrfs /dev/sdc rw\n";
        assert_eq!(type_of(mounts, Path::new("/var/lib/libvirt")), Some("btrfs".into()));
        assert_eq!(type_of(mounts, Path::new("/var/libx")), Some("ext4".into()));
    }
}
