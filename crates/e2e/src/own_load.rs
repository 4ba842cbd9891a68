//! Hosts on one machine read one /proc, and would all be as busy as the machine. Here each reads what its own programs do, as lxcfs
//! shows it to containers.
//!
//! ```text
//!  CPU time of the host's cgroup ──┐                      ┌─► /proc/stat: what it does not use of the machine's CPUs is idle
//!  pressure of the host's cgroup ──┴── twice a second ────┴─► /proc/pressure/{cpu,memory,io}, in the kernel's words
//! ```
//! Copies, because libvirt takes whatever file of a cgroup is mounted somewhere for the root of all.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{Host, text};

const WRITE_EVERY: Duration = Duration::from_millis(500);
const TICKS_PER_SECOND: u64 = 100;
/// Files are always of one length, so that readers find them whole; the kernel's words are shorter.
const LENGTH: usize = 256;

/// Goes on until it falls.
pub struct OwnLoad {
    end: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
}

impl OwnLoad {
    /// Before the host's daemons start: one who looked at the machine's counters before would see them jump.
    ///
    /// # Panics
    /// The host's cgroups do not count its CPU time.
    pub fn of(host: &Host) -> Self {
        let used = Used::of(&host.name);
        let mut shown = vec![Shown::over(host, "/proc/stat", Source::Used { began: (Instant::now(), used.ns()), used })];
        for what in ["cpu", "memory", "io"] {
            if let Some(told) = pressure(&host.name, what) {
                shown.push(Shown::over(host, &format!("/proc/pressure/{what}"), Source::Words(told)));
            }
        }
        let (end, ended) = channel();
        Self { end: Some(end), writer: Some(std::thread::spawn(move || write_until(&shown, &ended))) }
    }
}

impl Drop for OwnLoad {
    fn drop(&mut self) {
        self.end.take();
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

fn write_until(shown: &[Shown], ended: &Receiver<()>) {
    while ended.recv_timeout(WRITE_EVERY) == Err(RecvTimeoutError::Timeout) {
        shown.iter().for_each(Shown::write);
    }
}

/// A file of ours that a host finds in the place of another.
struct Shown {
    file: File,
    source: Source,
}

enum Source {
    Used { used: Used, began: (Instant, u64) },
    Words(PathBuf),
}

impl Shown {
    fn over(host: &Host, place: &str, source: Source) -> Self {
        let path = host.path(&place.replace('/', "-"));
        let shown = Self { file: File::create(&path).expect("a file"), source };
        shown.write();
        let out = host.exec(["mount".as_ref(), "--bind".as_ref(), path.as_os_str(), place.as_ref()]);
        assert!(out.status.success(), "{place}: {}", text(&out.stderr));
        shown
    }

    fn write(&self) {
        let words = match &self.source {
            Source::Used { used, began: (began, before) } => stat(began.elapsed(), used.ns().saturating_sub(*before)),
            Source::Words(told) => std::fs::read_to_string(told).unwrap_or_default(),
        };
        self.file.write_all_at(format!("{words:LENGTH$}").as_bytes(), 0).expect("written");
    }
}

/// The kernel's first line, of a host that has the machine's CPUs and nobody else on them.
fn stat(since: Duration, used_ns: u64) -> String {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let all = cpus * u64::try_from(since.as_millis()).expect("a test is short") * TICKS_PER_SECOND / 1000;
    let used = (used_ns / (1_000_000_000 / TICKS_PER_SECOND)).min(all);
    format!("cpu  {used} 0 0 {} 0 0 0 0 0 0\n", all - used)
}

/// What counts a host's CPU time: its cgroup of version 1, or of version 2.
struct Used(PathBuf);

impl Used {
    fn of(host: &str) -> Self {
        let v1 = ["cpuacct", "cpu,cpuacct"].map(|v1| format!("/sys/fs/cgroup/{v1}/vmkeep-lab/{host}/cpuacct.usage"));
        let v2 = format!("/sys/fs/cgroup/vmkeep-lab/{host}/cpu.stat");
        let found = v1.into_iter().chain([v2]).map(PathBuf::from).find(|file| file.exists());
        Self(found.expect("the host's cgroups count its CPU time"))
    }

    fn ns(&self) -> u64 {
        let told = std::fs::read_to_string(&self.0).unwrap_or_default();
        let of_v2 = || Some(told.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse::<u64>().ok()? * 1000);
        told.trim().parse().ok().or_else(of_v2).unwrap_or_default()
    }
}

/// None: the kernel does not tell, of the host or at all.
fn pressure(host: &str, what: &str) -> Option<PathBuf> {
    let places = ["unified/", ""].map(|v2| PathBuf::from(format!("/sys/fs/cgroup/{v2}vmkeep-lab/{host}/{what}.pressure")));
    places.into_iter().find(|file| file.exists() && Path::new("/proc/pressure").join(what).exists())
}
