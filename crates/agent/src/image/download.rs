//! Images from URLs, resumed after a break and after a restart of the daemon.
//!
//! ```text
//!  staging/download-HASH        what has come so far; locked while somebody writes it
//!  staging/download-HASH.tag    the server's name of that version: a file that changed there is begun anew
//! ```

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::ImageFacts;
use vmkeep_types::order::Progress;

use super::import::import_file;
use super::reach::{self, Reach};
use crate::pool::room::Room;
use crate::pool::{Pool, ProgressSink};

/// The largest file that is fetched.
const DOWNLOAD_BYTES_MAX: u64 = 256 << 30;
/// Redirects followed: mirrors use one or two.
const REDIRECTS_MAX: usize = 5;
/// Breaks that are resumed within one operation.
const TRIES_MAX: u32 = 5;
/// A server that sends nothing for so long is taken for gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// What is fetched.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    pub url: &'a str,
    pub sha256: Option<&'a str>,
    pub reach: Reach,
}

/// Fetches and imports.
///
/// # Errors
/// An address out of reach, the server's refusal, a broken line after several tries, and all of [`import_file`].
pub async fn fetch(pool: &dyn Pool, id: ImageId, remote: Remote<'_>, sink: &ProgressSink) -> Result<ImageFacts, Error> {
    let Remote { url, sha256, reach } = remote;
    reach.check_url(url)?;
    pool.ensure().await?;
    let part = Part::open(&pool.staging(), url)?;
    let client = client(reach)?;
    sink(None, "downloading");
    let mut tries = 1;
    while let Err(error) = download(&client, url, &part, sink).await {
        if !error.code.retryable() || tries >= TRIES_MAX {
            return Err(error);
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
    let imported = import_file(pool, id, &part.path, sha256, sink).await;
    part.forget();
    imported
}

fn client(reach: Reach) -> Result<reqwest::Client, Error> {
    // One provider for the process; an error means that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reach.limit(reqwest::Client::builder(), REDIRECTS_MAX).read_timeout(SILENCE_MAX).build().map_err(|e| {
        Error::refused(format!("no HTTP client: {}", chain(&e))).hint("the host's certificates are in the package ca-certificates")
    })
}

/// reqwest's own words leave the cause out.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A download under way, named by its URL so that another try finds it.
struct Part {
    path: PathBuf,
    tag: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl Part {
    fn open(staging: &Path, url: &str) -> Result<Self, Error> {
        let hash: String = Sha256::digest(url.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect();
        let path = staging.join(format!("download-{hash}"));
        let file = File::options().create(true).append(true).open(&path).map_err(|e| disk(&path, &e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { tag: path.with_extension("tag"), path, _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::refused(format!("{url} is being downloaded already")).hint("see `vmkeep op list`")),
            Err(TryLockError::Error(e)) => Err(disk(&path, &e)),
        }
    }

    /// Bytes that can be kept, and the version they are of.
    fn kept(&self) -> Option<(u64, String)> {
        let bytes = std::fs::metadata(&self.path).ok()?.len();
        let tag = std::fs::read_to_string(&self.tag).ok()?;
        (bytes > 0 && !tag.is_empty()).then_some((bytes, tag))
    }

    fn forget(&self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.tag);
    }
}

fn disk(path: &Path, error: &std::io::Error) -> Error {
    let code = if error.raw_os_error() == Some(libc::ENOSPC) { Code::NoCapacity } else { Code::Refused };
    Error::new(code, format!("cannot write {}: {error}", path.display()))
}

/// A strong name of this version (RFC 9110 13.1.5 forbids weak ones for If-Range).
fn tag(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|t| !t.starts_with("W/")).or_else(|| text(LAST_MODIFIED)).unwrap_or_default()
}

async fn download(client: &reqwest::Client, url: &str, part: &Part, sink: &ProgressSink) -> Result<(), Error> {
    let lost = |e: &reqwest::Error| {
        let words = || Error::new(Code::Unavailable, format!("the download of {url} broke: {}", chain(e)));
        reach::refusal(e).unwrap_or_else(words)
    };
    let kept = part.kept();
    let mut request = client.get(url);
    if let Some((bytes, tag)) = &kept {
        request = request.header(RANGE, format!("bytes={bytes}-")).header(IF_RANGE, tag);
    }
    let answer = request.send().await.map_err(|e| lost(&e))?;
    let status = answer.status().as_u16();
    let have = kept.map_or(0, |(bytes, _)| bytes);
    if status == 416 && answer.headers().get(CONTENT_RANGE).is_some_and(|r| r.as_bytes() == format!("bytes */{have}").as_bytes()) {
        return Ok(()); // nothing is left to fetch: the file was whole
    }
    if !answer.status().is_success() {
        let code = if status >= 500 { Code::Unavailable } else { Code::Refused };
        return Err(Error::new(code, format!("{url} answers {}", answer.status())));
    }
    let from = if status == 206 { have } else { 0 };
    let total = answer.content_length().map(|rest| rest.saturating_add(from));
    if total.is_some_and(|total| total > DOWNLOAD_BYTES_MAX) {
        return Err(too_large(url));
    }
    std::fs::write(&part.tag, tag(answer.headers())).map_err(|e| disk(&part.tag, &e))?;
    let mut file = tokio::fs::File::options()
        .write(true)
        .append(from > 0)
        .truncate(from == 0)
        .open(&part.path)
        .await
        .map_err(|e| disk(&part.path, &e))?;
    let mut room = Room::around(&part.path);
    room.fits(total.map_or(0, |total| total.saturating_sub(from)))?;
    let mut stream = answer.bytes_stream();
    let mut done = from;
    let mut broken = None;
    while let Some(chunk) = stream.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(e) => {
                broken = Some(lost(&e));
                break;
            }
        };
        done += chunk.len() as u64;
        if done > DOWNLOAD_BYTES_MAX {
            return Err(too_large(url));
        }
        room.took(chunk.len() as u64)?;
        file.write_all(&chunk).await.map_err(|e| disk(&part.path, &e))?;
        sink(Some(Progress { done, total: total.unwrap_or(0) }), "");
    }
    // What came before a break is kept: the next try asks for the rest of it.
    file.flush().await.map_err(|e| disk(&part.path, &e))?;
    match (broken, total) {
        (Some(error), _) => Err(error),
        (None, Some(total)) if done < total => {
            Err(Error::new(Code::Unavailable, format!("the download of {url} ended after {done} bytes")))
        }
        _ => Ok(()),
    }
}

fn too_large(url: &str) -> Error {
    Error::new(Code::TooLarge, format!("{url} is larger than {DOWNLOAD_BYTES_MAX} bytes"))
}
