//! Ticks that a guest prints on its serial port, as somebody outside sees them come: in the serial logs of both hosts.
//!
//! The guest's own clock stands still while the guest does, so the time of a tick is the looker's.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the guest is told to do: ten ticks a second, each with its number.
pub const TELL: &str = "(n=0; while :; do n=$((n+1)); echo tick-$n-; sleep 0.1; done) &\n";
/// Between two looks: a tenth of a tick.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One file as far as it was read.
struct Log {
    path: PathBuf,
    inode: u64,
    at: u64,
    rest: String,
}

impl Log {
    fn news(&mut self, seen: &mut Vec<(u64, Instant)>) {
        let Ok(mut file) = File::open(&self.path) else { return };
        // It goes with the guest that moves away, and is made anew when that comes back.
        let Ok(found) = file.metadata() else { return };
        if found.ino() != self.inode || found.len() < self.at {
            (self.inode, self.at, self.rest) = (found.ino(), 0, String::new());
        }
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(self.at)).is_err() || file.read_to_end(&mut bytes).is_err() {
            return;
        }
        self.at += u64::try_from(bytes.len()).expect("a few");
        self.rest += &String::from_utf8_lossy(&bytes);
        let now = Instant::now();
        while let Some((line, rest)) = self.rest.split_once('\n') {
            let number = line.rsplit_once("tick-").and_then(|(_, number)| number.trim_end().strip_suffix('-')?.parse().ok());
            seen.extend(number.map(|n: u64| (n, now)));
            self.rest = rest.to_owned();
        }
    }
}

/// Looks until it is asked what it saw.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    going: JoinHandle<Vec<(u64, Instant)>>,
}

impl Watcher {
    pub fn of(files: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let going = std::thread::spawn(move || {
            let mut logs: Vec<Log> = files.into_iter().map(|path| Log { path, inode: 0, at: 0, rest: String::new() }).collect();
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                logs.iter_mut().for_each(|log| log.news(&mut seen));
                std::thread::sleep(LOOK_EVERY);
            }
            seen
        });
        Self { stop, going }
    }

    /// The longest wait for a tick in each of these times, and how many ticks there were in all.
    pub fn gaps(self, times: &[(Instant, Instant)]) -> (Vec<Duration>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = self.going.join().expect("it looks to the end");
        // A restored log may be read after a newer one: by number, and the first sight of each counts.
        seen.sort();
        seen.dedup_by_key(|(n, _)| *n);
        let longest = |(begin, end): &(Instant, Instant)| {
            let in_it = seen.windows(2).filter(|two| two[1].1 >= *begin && two[0].1 <= *end);
            let last = seen.last().map(|(n, at)| (*n, begin.saturating_duration_since(*at)));
            let wait = in_it.map(|two| two[1].1.saturating_duration_since(two[0].1)).max();
            wait.unwrap_or_else(|| panic!("no tick in {:?}; the last of {} was {last:?} before", *end - *begin, seen.len()))
        };
        (times.iter().map(longest).collect(), seen.len())
    }
}
