//! The tick log of a `tiny` guest's second disk (`crates/agent/src/image/build/tiny-init`), read from outside: who wrote when.
//!
//! ```text
//!  NAME N BOOT K UNIX-TIME     N counts on over all boots, K within one
//! ```
//! Two guests that write at once cannot hide: each counts on from what it read, so that boots alternate, an N is missing, or a boot
//! does not begin with its first tick.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::host::text;

/// Of one line, and how many there are until the log begins anew.
const LINE_BYTES: usize = 64;
const LINES: u64 = 1024;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick {
    n: u64,
    boot: String,
    k: u64,
    at_unix_s: u64,
}

/// All that one boot of a guest wrote, without a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub boot: String,
    /// Of its first and its last tick: the number, and the guest's clock.
    pub first: (u64, u64),
    pub last: (u64, u64),
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot {}: ticks {} to {} in {} s", self.boot, self.first.0, self.last.0, self.last.1.saturating_sub(self.first.1))
    }
}

/// The runs on a disk, the earliest first; the guest may be running.
///
/// # Errors
/// What a second writer leaves behind, in words; a disk that cannot be read.
pub fn runs(disk: &Path) -> Result<Vec<Run>, String> {
    let copy = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let mut read = Command::new("qemu-img");
    let read = read.args(["convert", "-U", "-O", "raw"]).args([disk, copy.path()]).output().map_err(|e| e.to_string())?;
    if !read.status.success() {
        return Err(format!("{}: {}", disk.display(), text(&read.stderr)));
    }
    told_by(&std::fs::read(copy.path()).map_err(|e| e.to_string())?)
}

fn told_by(bytes: &[u8]) -> Result<Vec<Run>, String> {
    let lines = bytes.chunks(LINE_BYTES).take(usize::try_from(LINES).expect("few"));
    let mut ticks: Vec<Tick> = lines.filter_map(|line| tick(&String::from_utf8_lossy(line))).collect();
    ticks.sort();
    let mut runs: Vec<Run> = Vec::new();
    for tick in ticks {
        let Tick { n, boot, k, at_unix_s: at } = tick;
        if let Some(before) = runs.last() {
            let (last, since) = before.last;
            let wrong = if n != last + 1 {
                Some(format!("after tick {last} comes {n}: a line in between was overwritten"))
            } else if at < since {
                Some(format!("tick {n} of boot {boot} is older than the one before it, of boot {}", before.boot))
            } else if before.boot != boot && runs.iter().any(|run| run.boot == boot) {
                Some(format!("boot {boot} writes again at tick {n}, after another one"))
            } else if before.boot != boot && k != 1 {
                Some(format!("boot {boot} follows boot {} with its tick {k}: its first ones were overwritten", before.boot))
            } else {
                None
            };
            wrong.map_or(Ok(()), Err)?;
        }
        match runs.last_mut().filter(|run| run.boot == boot) {
            Some(run) => run.last = (n, at),
            None => runs.push(Run { boot, first: (n, at), last: (n, at) }),
        }
    }
    Ok(runs)
}

fn tick(line: &str) -> Option<Tick> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, n, boot, k, at] = fields.as_slice() else { return None };
    Some(Tick { n: n.parse().ok()?, boot: (*boot).to_owned(), k: k.parse().ok()?, at_unix_s: at.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ticks: &[(u64, &str, u64, u64)], want: Result<&str, &str>) {
        let mut bytes = vec![0; 2 * LINE_BYTES * usize::try_from(LINES).expect("few")];
        for (n, boot, k, at) in ticks {
            let begin = usize::try_from(n % LINES).expect("few") * LINE_BYTES;
            bytes[begin..begin + LINE_BYTES].copy_from_slice(format!("{:<63}\n", format!("tick {n} {boot} {k} {at}")).as_bytes());
        }
        let told = told_by(&bytes).map(|runs| runs.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        assert_eq!(told.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn one_writer_after_the_other_is_fine_and_two_at_once_are_not() {
        check(&[], Ok(""));
        check(
            &[(1, "a", 1, 10), (2, "a", 2, 11), (3, "b", 1, 50), (4, "b", 2, 52)],
            Ok("boot a: ticks 1 to 2 in 1 s; boot b: ticks 3 to 4 in 2 s"),
        );
        check(&[(1024, "a", 1024, 10), (1025, "a", 1025, 11)], Ok("boot a: ticks 1024 to 1025 in 1 s"));
        let ahead = [(1, "a", 1, 10), (2, "b", 1, 11), (3, "a", 3, 12)];
        check(&ahead, Err("boot a writes again at tick 3, after another one"));
        check(&[(1, "a", 1, 10), (3, "b", 2, 12)], Err("after tick 1 comes 3: a line in between was overwritten"));
        check(&[(1, "a", 1, 10), (2, "b", 2, 12)], Err("boot b follows boot a with its tick 2: its first ones were overwritten"));
        check(&[(1, "a", 1, 10), (2, "b", 1, 9)], Err("tick 2 of boot b is older than the one before it, of boot a"));
    }
}
