//! SIGKILL to everything in the VMs' cgroup, never through libvirt: that may be what hangs.
//!
//! Version 2 does it in one write (`cgroup.kill`). In version 1 the subtree is frozen, so that nobody forks away, every process is
//! killed and the subtree thawed, in rounds until none is left. Either way the guard comes again every second: what is forked
//! later dies then, and what does not die (a process in D state) is the watchdog's.

use std::ffi::{CStr, CString};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, read, write};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, openat};

/// Where libvirt puts `<partition>/machine/vmkeepha</partition>`: with systemd, and without.
const PLACES: [&str; 2] = ["machine.slice/machine-vmkeepha.slice", "machine/vmkeepha.partition"];

/// Rounds in a cgroup of version 1 before the next look, a second later.
const ROUNDS_MAX: usize = 8;
/// libvirt nests three deep.
const DEPTH_MAX: usize = 8;

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// The cgroups that are killed, as far as they are there then.
#[derive(Debug)]
pub struct Cgroups(Vec<CString>);

impl Cgroups {
    /// These, or libvirt's partition in every hierarchy that can kill.
    pub fn find(given: &[PathBuf]) -> Self {
        let found = if given.is_empty() { places(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()) } else { given.to_vec() };
        Self(found.iter().filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok()).collect())
    }

    pub fn kill(&self) {
        self.0.iter().for_each(|path| kill_in(path));
    }
}

impl std::fmt::Display for Cgroups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().enumerate().try_for_each(|(n, path)| {
            f.write_str(if n == 0 { "" } else { ", " })?;
            f.write_str(&path.to_string_lossy())
        })
    }
}

fn places(mounts: &str) -> Vec<PathBuf> {
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let kills = kind == "cgroup2" || kind == "cgroup" && options.split(',').any(|option| option == "freezer");
        kills.then_some(at)
    });
    roots.flat_map(|root| PLACES.map(|place| Path::new(root).join(place))).collect()
}

fn kill_in(path: &CStr) {
    let Ok(root) = openat(CWD, path, FOLDER, Mode::empty()) else { return };
    if put(root.as_fd(), c"cgroup.kill", b"1") {
        return;
    }
    for _ in 0..ROUNDS_MAX {
        put(root.as_fd(), c"freezer.state", b"FROZEN");
        let mut found = 0;
        kill_below(root.as_fd(), 0, &mut found);
        // A frozen process does not even die.
        put(root.as_fd(), c"freezer.state", b"THAWED");
        if found == 0 {
            return;
        }
    }
}

/// Was it written? A file that is not there is no error: the hierarchy is of the other version.
fn put(folder: BorrowedFd<'_>, file: &CStr, word: &[u8]) -> bool {
    open_in(folder, file, OFlags::WRONLY).is_some_and(|file| write(&file, word).is_ok())
}

fn open_in(folder: BorrowedFd<'_>, file: &CStr, how: OFlags) -> Option<OwnedFd> {
    openat(folder, file, how | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn kill_below(folder: BorrowedFd<'_>, depth: usize, found: &mut usize) {
    kill_members(folder, found);
    let Some(listed) = open_in(folder, c".", FOLDER).filter(|_| depth < DEPTH_MAX) else { return };
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(&listed, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory
            && name != c"."
            && name != c".."
            && let Some(child) = open_in(folder, name, FOLDER)
        {
            kill_below(child.as_fd(), depth + 1, found);
        }
    }
}

fn kill_members(folder: BorrowedFd<'_>, found: &mut usize) {
    let Some(list) = open_in(folder, c"cgroup.procs", OFlags::RDONLY) else { return };
    let (mut buffer, mut pid, me) = ([0u8; 1024], 0i32, getpid().as_raw());
    while let Ok(length @ 1..) = read(&list, &mut buffer) {
        for byte in &buffer[..length] {
            if byte.is_ascii_digit() {
                pid = pid.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
                continue;
            }
            // 0 is a process of another pid namespace, and to signal it would be to signal ourselves.
            if pid > 1 && pid != me && kill(Pid::from_raw(pid), Signal::SIGKILL) != Err(Errno::ESRCH) {
                *found += 1;
            }
            pid = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_looked_for_where_something_can_be_killed() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
            cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let found = Cgroups(places(mounts).iter().map(|p| CString::new(p.as_os_str().as_bytes()).expect("a path")).collect());
        assert_eq!(
            found.to_string(),
            "/sys/fs/cgroup/freezer/machine.slice/machine-vmkeepha.slice, /sys/fs/cgroup/freezer/machine/vmkeepha.partition, \
             /sys/fs/cgroup/unified/machine.slice/machine-vmkeepha.slice, /sys/fs/cgroup/unified/machine/vmkeepha.partition"
        );
    }
}
