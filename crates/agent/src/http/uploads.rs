//! Images on their way in: bytes appended at an offset, into a file of the pool's staging folder.
//!
//! A broken connection leaves what has arrived, and the client goes on from there. The file is the only state, so uploads
//! survive the daemon. The pool's sweep removes what nobody finished within 7 days.

use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};
use uuid::Uuid;
use vmkeep_api::body::UploadCreated;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::NodeHttp;
use super::answer::{Answer, Asked, io_failure};
use crate::pool::room::Room;

/// Uploads in staging at once, finished or not.
const UPLOADS_MAX: usize = 64;
/// The largest image that is taken.
const UPLOAD_MAX: ByteCount = ByteCount::from_gib(16 << 10);
/// Written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Uploads that are being written: one writer each.
#[derive(Default)]
pub struct Writers(Mutex<BTreeSet<Uuid>>);

struct Writing<'a> {
    writers: &'a Writers,
    id: Uuid,
}

impl Writers {
    fn begin(&self, id: Uuid) -> Answer<Writing<'_>> {
        if !self.0.lock().expect("no panic holds this lock").insert(id) {
            return Err(Error::conflict(format!("upload {id} is being written by another request")).into());
        }
        Ok(Writing { writers: self, id })
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.writers.0.lock().expect("no panic holds this lock").remove(&self.id);
    }
}

#[derive(Deserialize)]
pub struct Into_ {
    pool: Option<Name>,
}

#[derive(Deserialize)]
pub struct At {
    offset: u64,
}

pub async fn create(State(node): State<Arc<NodeHttp>>, Asked(into): Asked<Into_>) -> Answer<Json<UploadCreated>> {
    let pool = node.pool(&into.pool.unwrap_or_else(|| Name::known("default"))).await?;
    pool.ensure().await?;
    let staging = pool.staging();
    // By the time in it the control plane knows when nobody asks for it any more.
    let upload = Uuid::now_v7();
    let path = file_of(&staging, upload);
    let cannot = |e: std::io::Error| io_failure(&format!("cannot make an upload in {}", staging.display()), &e);
    let present =
        std::fs::read_dir(&staging).map_err(cannot)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("upload-")).count();
    if present >= UPLOADS_MAX {
        let words = format!("{present} uploads wait in {} already", staging.display());
        return Err(Error::new(Code::TooLarge, words)
            .hint("import them, or drop those that nobody wants: DELETE /v1/uploads/ID; each is named upload-ID there")
            .into());
    }
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(cannot)?;
    Ok(Json(UploadCreated { upload, have: 0 }))
}

pub async fn show(State(node): State<Arc<NodeHttp>>, Path(id): Path<String>) -> Answer<Json<UploadCreated>> {
    let (upload, path) = find(&node, &id).await?;
    Ok(Json(UploadCreated { upload, have: length(&path)? }))
}

pub async fn append(
    State(node): State<Arc<NodeHttp>>,
    Path(id): Path<String>,
    Asked(at): Asked<At>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<UploadCreated>> {
    let (upload, path) = find(&node, &id).await?;
    let _writing = node.uploads.begin(upload)?;
    let have = length(&path)?;
    if at.offset != have {
        let words = format!("the upload has {have} bytes; it goes on there and not at {}", at.offset);
        return Err(Error::conflict(words).hint(format!("GET /v1/uploads/{upload} says where to go on")).into());
    }
    let promised = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    refuse_too_large(have, promised.unwrap_or(0))?;
    Room::around(&path).fits(promised.unwrap_or(0))?;
    let have = write(&path, have, body).await?;
    Ok(Json(UploadCreated { upload, have }))
}

pub async fn drop_it(State(node): State<Arc<NodeHttp>>, Path(id): Path<String>) -> Answer<Json<serde_json::Value>> {
    let (upload, path) = find(&node, &id).await?;
    let _writing = node.uploads.begin(upload)?;
    std::fs::remove_file(&path).map_err(|e| io_failure("cannot remove the upload", &e))?;
    Ok(Json(serde_json::json!({})))
}

fn refuse_too_large(have: u64, more: u64) -> Result<(), Error> {
    if have.saturating_add(more) > UPLOAD_MAX.bytes() {
        return Err(Error::new(Code::TooLarge, format!("an upload may have {} at most", UPLOAD_MAX.human())));
    }
    Ok(())
}

/// Appends until the body ends or breaks; what arrived stays either way.
async fn write(path: &FilePath, have: u64, body: Body) -> Answer<u64> {
    let cannot = |e: std::io::Error| io_failure("cannot write the upload", &e);
    let mut file = tokio::fs::File::options().write(true).custom_flags(libc::O_NOFOLLOW).open(path).await.map_err(cannot)?;
    file.seek(std::io::SeekFrom::Start(have)).await.map_err(cannot)?;
    let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
    let mut stream = body.into_data_stream();
    let (mut written, mut room) = (have, Room::around(path));
    let ended: Answer<()> = loop {
        match stream.next().await {
            None => break Ok(()),
            Some(Err(e)) => break Err(Error::new(Code::Unavailable, format!("the upload broke off: {e}")).into()),
            Some(Ok(bytes)) => {
                if let Err(e) = file.write_all(&bytes).await {
                    break Err(cannot(e));
                }
                // A body without a length, or other writers in the pool.
                written += bytes.len() as u64;
                if let Err(e) = refuse_too_large(written, 0).and_then(|()| room.took(bytes.len() as u64)) {
                    break Err(e.into());
                }
            }
        }
    };
    let kept = async {
        file.flush().await?;
        file.get_ref().sync_data().await
    };
    kept.await.map_err(cannot)?;
    ended.map(|()| written)
}

fn file_of(staging: &FilePath, id: Uuid) -> PathBuf {
    staging.join(format!("upload-{id}"))
}

async fn find(node: &NodeHttp, id: &str) -> Answer<(Uuid, PathBuf)> {
    let upload: Uuid = id.parse().map_err(|_| Error::invalid(format!("'{id}' is not an upload's id")))?;
    let pools = node.config.pools.all().await?;
    let found = pools.values().map(|pool| file_of(&pool.staging(), upload)).find(|path| path.symlink_metadata().is_ok_and(|m| m.is_file()));
    let absent = || Error::not_found("upload", upload).hint("it was imported, or swept after 7 days; begin a new one");
    Ok((upload, found.ok_or_else(absent)?))
}

fn length(path: &FilePath) -> Answer<u64> {
    Ok(path.symlink_metadata().map_err(|e| io_failure("cannot look at the upload", &e))?.len())
}
