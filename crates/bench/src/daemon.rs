//! The daemon behind a socket, as the kernel sees it: `/proc/PID`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::UnixStream;

/// Ticks per second of the times in `/proc/PID/stat`: the same on every Linux that Debian builds.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(u32);

impl Pid {
    /// Who listens on the socket.
    pub async fn behind(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).await.with_context(|| format!("cannot connect to {}", socket.display()))?;
        match stream.peer_cred()?.pid() {
            Some(1) => bail!("systemd made {}: name the daemon with --pid", socket.display()),
            Some(pid) if pid > 0 => Ok(Self(pid.unsigned_abs())),
            _ => bail!("the daemon behind {} is in another pid namespace: name it with --pid", socket.display()),
        }
    }

    pub fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Resident memory in MiB.
    pub fn resident(self) -> anyhow::Result<f64> {
        let status = self.read("status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS: the daemon has ended")?;
        let kib: f64 = kib.trim().trim_end_matches(" kB").parse().context("VmRSS is a number of kB")?;
        Ok(kib / 1024.0)
    }

    /// CPU time used so far, by all threads.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        let ticks = ticks(&self.read("stat")?).context("/proc/PID/stat has no times")?;
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
    }

    fn read(self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.0);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

/// utime + stime: the 14th and 15th field; the 2nd is a name that may hold spaces and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_times() {
        let stat = "42 (a) b (c) S 1 2 3 0 -1 4 5 6 7 8 900 77 0 0 20 0 4 0 1 2 3";
        assert_eq!(ticks(stat), Some(977));
        assert_eq!(ticks("42 (short) S 1"), None);
    }

    #[test]
    fn this_process_has_memory_and_uses_the_cpu() {
        let own = Pid::new(std::process::id());
        let before = own.cpu().expect("times");
        let begin = std::time::Instant::now();
        while own.cpu().expect("times") == before {
            assert!(begin.elapsed() < Duration::from_secs(20), "a busy loop uses CPU time");
        }
        let ballast = vec![1_u8; 64 << 20];
        let resident = own.resident().expect("memory");
        assert!((64.0..4096.0).contains(&resident), "{resident} MiB with {} bytes of ballast", ballast.len());
        assert!(Pid::new(u32::MAX).resident().is_err());
    }
}
