//! Looks from outside, all the time, at which hosts run a VM. Disk locks stop the second QEMU of a VM on one machine, and would hide
//! that it was started; this does not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One QEMU process, from the first to the last look that found it alive, since the witness began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Index of the host.
    pub host: usize,
    pub pid: u32,
    pub first: Duration,
    pub last: Duration,
}

pub struct Witness {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Life>>,
}

impl Witness {
    /// Begins to look.
    pub fn of(cluster: &Cluster, vm: &str) -> Self {
        let hosts: Vec<PathBuf> = cluster.members.iter().map(|member| member.host.namespace()).collect();
        let words = format!("guest={vm},").into_bytes();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        Self { over, thread: std::thread::spawn(move || look_on(&hosts, &words, &ended)) }
    }

    /// All QEMUs of the VM that there were, in the order in which they began.
    ///
    /// # Panics
    /// Two hosts ran it at once.
    pub fn ends(self) -> Vec<Life> {
        self.over.store(true, Ordering::Relaxed);
        let lives = self.thread.join().expect("the witness does not panic");
        for (n, life) in lives.iter().enumerate() {
            let beside = lives[..n].iter().find(|before| before.host != life.host && life.first <= before.last);
            assert!(beside.is_none(), "two hosts ran it at once: {beside:?} and {life:?}");
        }
        lives
    }
}

fn look_on(hosts: &[PathBuf], words: &[u8], over: &AtomicBool) -> Vec<Life> {
    let begin = Instant::now();
    let mut lives: BTreeMap<u32, Life> = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        for (pid, host) in running(hosts, words) {
            // Of the moment after the look: a process that ended during it is not told as alive later.
            let now = begin.elapsed();
            lives.entry(pid).or_insert(Life { host, pid, first: now, last: now }).last = now;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let mut lives: Vec<Life> = lives.into_values().collect();
    lives.sort_by_key(|life| life.first);
    lives
}

/// QEMUs of the VM at this moment, with their hosts; stopped ones too, ended ones that nobody has waited for not.
fn running(hosts: &[PathBuf], words: &[u8]) -> Vec<(u32, usize)> {
    let pids =
        std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32| {
        // Empty for a process that has ended.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let qemu = command.starts_with(b"/usr/bin/qemu") && command.windows(words.len()).any(|part| part == words);
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok().filter(|_| qemu)?;
        Some((pid, hosts.iter().position(|host| *host == namespace)?))
    };
    pids.filter_map(of).collect()
}
