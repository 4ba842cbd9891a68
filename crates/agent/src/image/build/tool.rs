//! Outside tools, with their own words when they fail.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use vmkeep_types::error::{Code, Error};

/// Last words of a failed tool that are kept.
const WORDS_BYTES_MAX: usize = 2000;

/// A command with a plain environment, killed when the task is cancelled.
fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs in `dir`; its stdout.
pub async fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>, dir: &Path) -> Result<String, Error> {
    finish(program, command(program, dir).args(args).output().await)
}

/// The same with something to read.
pub async fn run_with_input<A: AsRef<OsStr>>(
    program: &str,
    args: impl IntoIterator<Item = A>,
    dir: &Path,
    input: &[u8],
) -> Result<String, Error> {
    let mut child = command(program, dir).args(args).stdin(Stdio::piped()).spawn().map_err(|e| missing(program, &e))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A tool that ends early says why on stderr; a broken pipe says nothing more.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    finish(program, child.wait_with_output().await)
}

fn finish(program: &str, output: std::io::Result<std::process::Output>) -> Result<String, Error> {
    let output = output.map_err(|e| missing(program, &e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let from = words.len().saturating_sub(WORDS_BYTES_MAX);
    let last = words.char_indices().map(|(at, _)| at).find(|at| *at >= from).map_or("", |at| &words[at..]);
    let code = if words.contains("No space left") { Code::NoCapacity } else { Code::Refused };
    Err(Error::new(code, format!("{program} failed ({}): {}", output.status, last.trim())))
}

fn missing(program: &str, error: &std::io::Error) -> Error {
    Error::refused(format!("cannot run {program}: {error}")).hint("install the package that has it: `vmkeep host check` names them")
}
