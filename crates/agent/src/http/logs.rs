//! The last lines of a VM's serial log or of QEMU's own log.
//!
//! Only regular files below the two log folders are read, whatever the domain's XML says. A log that was rotated a moment ago
//! is continued with the piece before it. A reader may stay for what is written from then on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path as Segment, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use vmkeep_api::body::LogQuery;
use vmkeep_types::error::{Code, Error};

use super::NodeHttp;
use super::answer::{Answer, Asked, io_failure};
use super::follow::Follow;
use super::xml::facts;
use crate::hypervisor::XmlKind;

const LINES: usize = 200;
const LINES_MAX: usize = 10_000;
/// Read from the end of a log at most.
const TAIL_BYTES_MAX: u64 = 2 << 20;

pub async fn logs(State(node): State<Arc<NodeHttp>>, Segment(uid): Segment<String>, Asked(query): Asked<LogQuery>) -> Answer<Response> {
    let lines = query.lines.unwrap_or(LINES);
    if lines == 0 || lines > LINES_MAX {
        return Err(Error::invalid(format!("{lines} lines: 1 to {LINES_MAX} can be read")).into());
    }
    let domain = node.our_domain(&uid).await?;
    let file = match query.source.as_deref().unwrap_or("serial") {
        "serial" => {
            let xml = node.hv().xml(domain.uuid, XmlKind::Inactive).await?;
            facts(&xml)
                .serial_log
                .ok_or_else(|| Error::not_found("serial log of VM", &domain.name).hint("its serial console has no log file"))?
        }
        "qemu" => qemu_log(&node.config.qemu_log_dir, &domain.name)?,
        other => return Err(Error::invalid(format!("there is no log '{other}'; sources are serial and qemu")).into()),
    };
    let roots = [node.config.log_dir.clone(), node.config.qemu_log_dir.clone()];
    let (name, within) = (file.clone(), roots.clone());
    let read = tokio::task::spawn_blocking(move || read_tail(&name, &within, lines));
    let (text, there) = read.await.map_err(|e| Error::internal(format!("reading the log stopped: {e}")))??;
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    if !query.follow {
        return Ok((kind, text).into_response());
    }
    let follow = Follow::new(Box::new(move || open(&file, &roots)), there);
    let first = stream::iter((!text.is_empty()).then(|| Ok(text.into())));
    Ok((kind, Body::from_stream(first.chain(follow.stream()))).into_response())
}

fn qemu_log(dir: &Path, domain: &str) -> Result<PathBuf, Error> {
    if domain.contains('/') || domain.starts_with('.') {
        return Err(Error::new(Code::Refused, format!("the domain's name '{domain}' is no file name")));
    }
    Ok(dir.join(format!("{domain}.log")))
}

/// The last lines, and the file as far as it was read. None: nothing was ever written.
fn read_tail(file: &Path, roots: &[PathBuf], lines: usize) -> Answer<(String, Option<File>)> {
    let cannot = |e: io::Error| io_failure(&format!("cannot read the log {}", file.display()), &e);
    let (mut text, there) = match open(file, roots).and_then(|mut f| Ok((tail(&mut f, lines)?, Some(f)))) {
        Ok(read) => read,
        Err(e) if e.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(e) => return Err(cannot(e)),
    };
    let missing = lines.saturating_sub(text.lines().count());
    let before = PathBuf::from(format!("{}.0", file.display()));
    if missing > 0
        && let Ok(older) = open(&before, roots).and_then(|mut f| tail(&mut f, missing))
    {
        text.insert_str(0, &older);
    }
    Ok((text, there))
}

/// A regular file that really lies below one of the roots.
fn open(file: &Path, roots: &[PathBuf]) -> io::Result<File> {
    let real = file.canonicalize()?;
    let inside = roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
    if !inside {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it lies outside the log folders"));
    }
    let open = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&real)?;
    if !open.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(open)
}

/// The last lines, whole, as text.
fn tail(file: &mut File, lines: usize) -> io::Result<String> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    let end = bytes.len() - usize::from(bytes.ends_with(b"\n"));
    let breaks = bytes[..end].iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    let begin = match breaks.map(|(at, _)| at + 1).nth(lines - 1) {
        Some(at) => at,
        // The first line may be cut in the middle.
        None if from > 0 => bytes.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1),
        None => 0,
    };
    Ok(String::from_utf8_lossy(&bytes[begin..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &Path, root: &Path, lines: usize) -> Result<String, String> {
        read_tail(file, &[root.to_owned()], lines).map(|(text, _)| text).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn last_lines_over_a_rotation() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("vm.log");
        assert_eq!(read(&log, dir.path(), 3).as_deref(), Ok(""), "nothing was written yet");
        std::fs::write(&log, "one\ntwo\nthree\nfour").expect("a file");
        assert_eq!(read(&log, dir.path(), 2).as_deref(), Ok("three\nfour"));
        assert_eq!(read(&log, dir.path(), 4).as_deref(), Ok("one\ntwo\nthree\nfour"));
        std::fs::write(dir.path().join("vm.log.0"), "minus\nzero\n").expect("a file");
        assert_eq!(read(&log, dir.path(), 5).as_deref(), Ok("zero\none\ntwo\nthree\nfour"));
        std::fs::write(&log, b"bad \xff byte\n").expect("a file");
        assert_eq!(read(&log, dir.path(), 1).as_deref(), Ok("bad \u{fffd} byte\n"));
    }

    #[test]
    fn only_whole_lines_of_a_large_log() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("vm.log");
        std::fs::write(&log, "x".repeat(TAIL_BYTES_MAX as usize) + "\nlast\n").expect("a file");
        assert_eq!(read(&log, dir.path(), 10).as_deref(), Ok("last\n"));
    }

    #[test]
    fn nothing_outside_the_log_folders() {
        let dir = tempfile::tempdir().expect("a folder");
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).expect("a folder");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").expect("a file");
        std::os::unix::fs::symlink(&secret, logs.join("link.log")).expect("a link");
        for bad in [secret.clone(), logs.join("link.log"), logs.join("../secret"), logs.clone()] {
            assert!(read(&bad, &logs, 1).is_err(), "{}", bad.display());
        }
        assert!(qemu_log(&logs, "../secret").is_err());
    }
}
