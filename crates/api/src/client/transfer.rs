//! Uploads that go on where they broke, and downloads.
//!
//! An upload is `POST /v1/uploads`, then `PUT …?offset=` with as many bytes as there are; when the connection breaks the server
//! is asked how much it has. Failure: after [`ATTEMPTS_MAX`] breaks in a row without a byte of progress the last error stands,
//! and the upload's id stays valid for another try.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};
use vmkeep_types::error::{Code, Error};

use super::{Body, Call, Client};
use crate::body::UploadCreated;

/// Bytes read from the file at once.
const PIECE_BYTES: usize = 256 << 10;

/// Breaks in a row without progress.
const ATTEMPTS_MAX: u32 = 8;

/// A whole image goes up in one request, at the speed of the link.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Told how many bytes of how many are done; None = the size is not known.
pub type OnBytes = dyn Fn(u64, Option<u64>) + Send + Sync;

impl Client {
    /// A new upload, or one that was begun before and how much of it is there.
    pub async fn begin_upload(&self, resume: Option<uuid::Uuid>) -> Result<UploadCreated, Error> {
        match resume {
            Some(id) => self.call("upload.get").field("id", id).answer().await,
            None => self.call("upload.create").answer().await,
        }
    }

    /// Sends what is missing of a file.
    pub async fn upload(&self, file: &Path, mut state: UploadCreated, on_bytes: std::sync::Arc<OnBytes>) -> Result<(), Error> {
        let unreadable = |e: std::io::Error| Error::invalid(format!("cannot read {}: {e}", file.display()));
        let total = tokio::fs::metadata(file).await.map_err(unreadable)?.len();
        let mut attempts = 0;
        while state.have < total {
            let body = file_body(file, state.have, total, on_bytes.clone()).await.map_err(unreadable)?;
            let failed = match self.put_rest(&state, body, total).await {
                Ok(now) if now.have > state.have => {
                    state = now;
                    attempts = 0;
                    continue;
                }
                Ok(now) => Error::new(Code::Unavailable, format!("the server keeps {} of {total} bytes and takes no more", now.have)),
                Err(e) if e.code == Code::Unavailable => e,
                Err(e) => return Err(e),
            };
            attempts += 1;
            if attempts == ATTEMPTS_MAX {
                return Err(failed);
            }
            tokio::time::sleep(Duration::from_millis(250 << attempts.min(5))).await;
            if let Ok(now) = self.call("upload.get").field("id", state.upload).answer::<UploadCreated>().await {
                attempts = if now.have > state.have { 0 } else { attempts };
                state = now;
            }
        }
        if state.have > total {
            return Err(Error::conflict(format!("the server has {} bytes of {}, which has only {total}", state.have, file.display()))
                .hint("the file changed since the upload began; begin a new one"));
        }
        on_bytes(total, Some(total));
        Ok(())
    }

    async fn put_rest(&self, state: &UploadCreated, body: Body, total: u64) -> Result<UploadCreated, Error> {
        let call = self
            .call("upload.put")
            .field("id", state.upload)
            .query("offset", state.have)
            .header("content-type", "application/octet-stream")
            .patience(UPLOAD_PATIENCE);
        let request = call.request(body, Some(total - state.have))?;
        let (response, _sender) = call.respond_to(request).await?;
        super::parse(&self.collect(response).await?)
    }
}

/// The file's bytes from `from` on, told to `on_bytes` as they are handed to the socket.
async fn file_body(file: &Path, from: u64, total: u64, on_bytes: std::sync::Arc<OnBytes>) -> Result<Body, std::io::Error> {
    let mut file = tokio::fs::File::open(file).await?;
    file.seek(std::io::SeekFrom::Start(from)).await?;
    let pieces = stream::try_unfold((file, from), move |(mut file, at)| {
        let on_bytes = on_bytes.clone();
        async move {
            on_bytes(at, Some(total));
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            // What was promised in Content-Length and no more, should the file grow meanwhile.
            let room = (total - at).min(PIECE_BYTES as u64) as usize;
            let got = (&mut file).take(room as u64).read_buf(&mut piece).await?;
            Ok::<_, std::io::Error>((got > 0).then(|| (Frame::data(Bytes::from(piece)), (file, at + got as u64))))
        }
    });
    Ok(BodyExt::boxed_unsync(StreamBody::new(pieces)))
}

impl Call<'_> {
    /// Streams the answer's bytes into `out`; gives their number.
    pub async fn download(self, out: &mut (impl AsyncWrite + Unpin), on_bytes: &OnBytes) -> Result<u64, Error> {
        let client = self.client;
        let (response, _sender) = self.respond().await?;
        let total = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok());
        let mut body = response.into_body();
        let mut done = 0;
        let unwritable = |e: std::io::Error| Error::refused(format!("cannot write what was downloaded: {e}"));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| client.broken(&e))?;
            if let Some(bytes) = frame.data_ref() {
                out.write_all(bytes).await.map_err(unwritable)?;
                done += bytes.len() as u64;
                on_bytes(done, total);
            }
        }
        out.flush().await.map_err(unwritable)?;
        Ok(done)
    }
}
