//! Images from URLs, resumed after a break.

use std::path::PathBuf;

use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::image::ImageFacts;
use vmkeep_types::order::Progress;

use super::import::import_file;
use crate::pool::{Pool, ProgressSink};

/// The largest file that is fetched.
const DOWNLOAD_BYTES_MAX: u64 = 256 << 30;
/// Redirects followed: mirrors use one or two.
const REDIRECTS_MAX: usize = 5;
/// Breaks that are resumed.
const TRIES_MAX: u32 = 5;

/// Fetches and imports.
pub async fn fetch(pool: &dyn Pool, id: ImageId, url: &str, sha256: Option<&str>, sink: &ProgressSink) -> Result<ImageFacts, Error> {
    pool.ensure().await?;
    let part = part_file(pool, url);
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
        .read_timeout(std::time::Duration::from_secs(60))
        .build()
        .map_err(|e| Error::internal(format!("no HTTP client: {e}")))?;
    sink(None, "downloading");
    let mut tries = 1;
    while let Err(error) = download(&client, url, &part, sink).await {
        if !error.code.retryable() || tries >= TRIES_MAX {
            return Err(error);
        }
        tries += 1;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let imported = import_file(pool, id, &part, sha256, sink).await;
    let _ = std::fs::remove_file(&part);
    imported
}

/// Named by the URL, so that another try finds what is there.
fn part_file(pool: &dyn Pool, url: &str) -> PathBuf {
    let hash: String = Sha256::digest(url.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect();
    pool.staging().join(format!("download-{hash}"))
}

async fn download(client: &reqwest::Client, url: &str, part: &PathBuf, sink: &ProgressSink) -> Result<(), Error> {
    let lost = |e: reqwest::Error| Error::new(Code::Unavailable, format!("the download of {url} broke: {e}"));
    let have = std::fs::metadata(part).map_or(0, |m| m.len());
    let mut request = client.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let answer = request.send().await.map_err(lost)?;
    let status = answer.status().as_u16();
    if status == 416 {
        return Ok(()); // nothing is left to fetch: the file was whole
    }
    if !answer.status().is_success() {
        let code = if status >= 500 { Code::Unavailable } else { Code::Refused };
        return Err(Error::new(code, format!("{url} answers {}", answer.status())));
    }
    let resumed = status == 206;
    let mut done = if resumed { have } else { 0 };
    let total = answer.content_length().map(|rest| rest + done);
    if total.is_some_and(|total| total > DOWNLOAD_BYTES_MAX) {
        return Err(Error::new(Code::TooLarge, format!("{url} has {} bytes, the limit is {DOWNLOAD_BYTES_MAX}", total.unwrap_or(0))));
    }
    let disk = |e: std::io::Error| Error::refused(format!("cannot write {}: {e}", part.display()));
    let mut file = tokio::fs::File::options().create(true).write(true).append(resumed).truncate(!resumed).open(part).await.map_err(disk)?;
    let mut stream = answer.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(lost)?;
        done += chunk.len() as u64;
        if done > DOWNLOAD_BYTES_MAX {
            return Err(Error::new(Code::TooLarge, format!("{url} is larger than {DOWNLOAD_BYTES_MAX} bytes")));
        }
        file.write_all(&chunk).await.map_err(disk)?;
        sink(Some(Progress { done, total: total.unwrap_or(0) }), "");
    }
    file.flush().await.map_err(disk)?;
    if total.is_some_and(|total| done < total) {
        return Err(Error::new(Code::Unavailable, format!("the download of {url} ended after {done} bytes")));
    }
    Ok(())
}
