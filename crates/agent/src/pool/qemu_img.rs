//! `qemu-img`, called with arguments and limits, never through a shell.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::order::Progress;

use super::ProgressSink;

/// Memory for looking at a file that nobody vouches for: a crafted header must not eat the host's.
const UNTRUSTED_MEMORY_BYTES_MAX: u64 = 1 << 30;
/// CPU seconds for such a look.
const UNTRUSTED_CPU_SECONDS_MAX: u64 = 30;
/// Memory for reading the whole of such a file: QEMU's buffers and threads fit many times.
const UNTRUSTED_COPY_MEMORY_BYTES_MAX: u64 = 4 << 30;
/// Between two looks at the room while a copy is made: less comes in meanwhile than is kept free.
const ROOM_LOOK: Duration = Duration::from_millis(200);
/// Words of an error that are kept.
const STDERR_BYTES_MAX: u64 = 8 << 10;

/// Whether the file's content is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Ours,
    Nobodys,
    /// Nobody's, read from end to end: that takes as long as it takes.
    NobodysWhole,
}

impl Trust {
    /// Memory, and CPU seconds.
    fn limits(self) -> Option<(u64, Option<u64>)> {
        match self {
            Self::Ours => None,
            Self::Nobodys => Some((UNTRUSTED_MEMORY_BYTES_MAX, Some(UNTRUSTED_CPU_SECONDS_MAX))),
            Self::NobodysWhole => Some((UNTRUSTED_COPY_MEMORY_BYTES_MAX, None)),
        }
    }
}

/// What `qemu-img info` says; only what is used.
#[derive(Debug, serde::Deserialize)]
pub struct Info {
    #[serde(rename = "virtual-size")]
    pub virtual_size: u64,
    #[serde(rename = "actual-size", default)]
    pub actual_size: u64,
    pub format: String,
    #[serde(rename = "backing-filename")]
    pub backing_filename: Option<String>,
    #[serde(rename = "format-specific")]
    pub specific: Option<serde_json::Value>,
}

fn command(trust: Trust) -> Command {
    let mut command = Command::new("qemu-img");
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some((memory_bytes, cpu_seconds)) = trust.limits() {
        // Each arena of malloc reserves address space, one per thread otherwise.
        command.env("MALLOC_ARENA_MAX", "2");
        let limit = move || -> std::io::Result<()> {
            setrlimit(Resource::RLIMIT_AS, memory_bytes, memory_bytes)?;
            if let Some(seconds) = cpu_seconds {
                setrlimit(Resource::RLIMIT_CPU, seconds, seconds)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only two system calls are made, no allocation and no lock.
        unsafe { command.pre_exec(limit) };
    }
    command
}

/// Runs it to the end; its stdout.
pub async fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, trust: Trust) -> Result<Vec<u8>, Error> {
    let output = command(trust).args(args).output().await.map_err(|e| missing(&e))?;
    if output.status.success() { Ok(output.stdout) } else { Err(failed(&output.stderr)) }
}

fn missing(error: &std::io::Error) -> Error {
    Error::refused(format!("cannot run qemu-img: {error}")).hint("apt-get install qemu-utils")
}

fn failed(stderr: &[u8]) -> Error {
    let words = String::from_utf8_lossy(stderr).trim().to_owned();
    let code = if words.contains("No space left") { Code::NoCapacity } else { Code::Refused };
    Error::new(code, words)
}

/// What a file is. `format` is given by us, never guessed, unless nobody can be harmed by the guess.
pub async fn info(path: &Path, format: &str, trust: Trust) -> Result<Info, Error> {
    let args = [OsStr::new("info"), OsStr::new("--output=json"), OsStr::new("-U"), OsStr::new("-f"), OsStr::new(format), path.as_os_str()];
    let out = run(args, trust).await?;
    serde_json::from_slice(&out).map_err(|e| Error::refused(format!("qemu-img's answer about {} does not parse: {e}", path.display())))
}

/// Runs with `-p` and tells its percents.
pub async fn run_with_progress<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, step: &str, sink: &ProgressSink) -> Result<(), Error> {
    run_guarded(args, Trust::Ours, &|| Ok(()), step, sink).await
}

/// The same, stopped when `guard` refuses what it sees.
pub async fn run_guarded<A: AsRef<OsStr>>(
    args: impl IntoIterator<Item = A>,
    trust: Trust,
    guard: &(dyn Fn() -> Result<(), Error> + Send + Sync),
    step: &str,
    sink: &ProgressSink,
) -> Result<(), Error> {
    let mut child = command(trust).args(args).spawn().map_err(|e| missing(&e))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let words = tokio::spawn(async move {
        let mut words = Vec::new();
        let _ = stderr.take(STDERR_BYTES_MAX).read_to_end(&mut words).await;
        words
    });
    let mut parts = BufReader::new(stdout).split(b'\r');
    sink(None, step);
    let mut looks = tokio::time::interval(ROOM_LOOK);
    loop {
        tokio::select! {
            part = parts.next_segment() => match part {
                Ok(Some(part)) => if let Some(percent) = percent(&part) {
                    sink(Some(Progress { done: percent, total: 100 }), "");
                },
                Ok(None) | Err(_) => break,
            },
            _ = looks.tick() => if let Err(refused) = guard() {
                // An error means that it has ended by itself.
                let _ = child.kill().await;
                return Err(refused);
            },
        }
    }
    let status = child.wait().await.map_err(|e| missing(&e))?;
    if status.success() { Ok(()) } else { Err(failed(&words.await.unwrap_or_default())) }
}

/// `    (42.17/100%)`
fn percent(part: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(part);
    let (number, _) = text.trim().strip_prefix('(')?.split_once('/')?;
    number.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_that_the_guard_refuses_is_stopped() {
        let dir = tempfile::tempdir().expect("a folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![1; 8 << 20]).expect("written");
        let looks = std::sync::atomic::AtomicU32::new(0);
        let guard = || match looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Error::new(Code::NoCapacity, "full")),
        };
        // So slow that it would take minutes.
        let args = ["convert", "-p", "-r", "64K", "-f", "raw", "-O", "raw"].map(OsStr::new);
        let args = args.into_iter().chain([from.as_os_str(), to.as_os_str()]);
        let stopped = run_guarded(args, Trust::NobodysWhole, &guard, "copying", &|_, _| {}).await;
        assert_eq!(stopped.expect_err("it is stopped").message, "full");
        assert_eq!(looks.into_inner(), 2);
    }

    #[test]
    fn percents_are_read() {
        assert_eq!(percent(b"    (42.17/100%)"), Some(42));
        assert_eq!(percent(b"done"), None);
    }
}
