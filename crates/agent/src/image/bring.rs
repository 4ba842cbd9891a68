//! An image that another node has, fetched from its agent before anything is made from it here.
//!
//! ```text
//!  holder 1 ─ content ─► staging, SHA-256 on the way ─ digest of the holder ─► same? ─► pool
//!  holder 2 …            tried when the one before did not answer or has it no more
//! ```
//! How it fails: what arrived is thrown away unless it is whole and the holder's own digest fits; the next try begins anew. A
//! crash leaves a file in staging, which is swept. One image comes at a time.

use std::path::Path;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Response, header};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::ImageId;
use vmkeep_types::name::Name;
use vmkeep_types::order::{Holder, ImageBrief, Progress};

use crate::http::ImageDigest;
use crate::pool::room::Room;
use crate::pool::{Pool, ProgressSink};
use crate::runtime::Node;

/// A digest is a line; more is no digest.
const DIGEST_BYTES_MAX: usize = 4096;
/// Hashed and read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Agents of other nodes.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// GET `path` of the agent of `node`, which proves to be it.
    ///
    /// # Errors
    /// `Unavailable` with the reason.
    async fn get(&self, node: &Name, address: &str, path: &str) -> Result<Response<Body>, Error>;
}

/// Makes the image one of this node's; the holder that it came from.
///
/// # Errors
/// No holder has it whole: what the last one said. No room.
pub async fn bring(node: &Node, pool: &dyn Pool, id: ImageId, brief: &ImageBrief, sink: &ProgressSink) -> Result<Name, Error> {
    let _turn = node.fetch_turn.lock().await;
    let Some(peers) = &node.config.peers else {
        return Err(Error::conflict(format!("image '{}' is on another node, and this one is in no cluster", brief.name)));
    };
    pool.ensure().await?;
    let mut failed = Error::not_found("image", &brief.name);
    for holder in &brief.holders {
        if pool.image_path(id).exists() {
            return Ok(holder.node.clone());
        }
        match fetch(peers.as_ref(), pool, id, brief, holder, sink).await {
            Ok(()) => return Ok(holder.node.clone()),
            Err(error) => failed = error,
        }
    }
    let words = format!("image '{}' could not be fetched: {}", brief.name, failed.message);
    Err(Error::new(failed.code, words).hint("it is tried again; `vmkeep node list` shows which nodes are online"))
}

async fn fetch(
    peers: &dyn Peers,
    pool: &dyn Pool,
    id: ImageId,
    brief: &ImageBrief,
    holder: &Holder,
    sink: &ProgressSink,
) -> Result<(), Error> {
    sink(None, &format!("fetching image {} from {}", brief.name, holder.node));
    let ask = |what: &str| format!("/n/images/{id}/{what}?pool={}", brief.pool);
    let content = accepted(holder, peers.get(&holder.node, &holder.address, &ask("content")).await?).await?;
    let is_iso = content.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-iso9660-image");
    let suffix = if is_iso { "iso" } else { "qcow2" };
    let part = tempfile::Builder::new().prefix(&format!("fetch-{id}-")).suffix(&format!(".{suffix}")).tempfile_in(pool.staging());
    let part = part.map_err(|e| Error::refused(format!("cannot write into {}: {e}", pool.staging().display())))?.into_temp_path();
    let arrived = receive(&part, content, holder, sink).await?;
    let told = accepted(holder, peers.get(&holder.node, &holder.address, &ask("digest")).await?).await?;
    let bytes = axum::body::to_bytes(told.into_body(), DIGEST_BYTES_MAX).await.map_err(|e| broke(holder, &e))?;
    let wanted: ImageDigest = serde_json::from_slice(&bytes).map_err(|e| broke(holder, &e))?;
    if wanted != arrived {
        let words = format!("image '{}' did not arrive whole from {}: {arrived}, there {wanted}", brief.name, holder.node);
        return Err(Error::new(Code::Unavailable, words));
    }
    pool.adopt_image(&part, id).await
}

async fn accepted(holder: &Holder, response: Response<Body>) -> Result<Response<Body>, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = axum::body::to_bytes(response.into_body(), DIGEST_BYTES_MAX).await.unwrap_or_default();
    let error = vmkeep_api::problem::read(status.as_u16(), &bytes);
    Err(Error::new(Code::Unavailable, format!("{}: {}", holder.node, error.message)))
}

/// The line to a node, or the node at its end, broke.
pub fn broke(holder: &Holder, error: &dyn std::fmt::Display) -> Error {
    Error::new(Code::Unavailable, format!("the answer of {} broke off: {error}", holder.node))
}

async fn receive(part: &Path, content: Response<Body>, holder: &Holder, sink: &ProgressSink) -> Result<ImageDigest, Error> {
    let cannot = |e: std::io::Error| Error::refused(format!("cannot write {}: {e}", part.display()));
    let total = content.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
    let mut room = Room::around(part);
    room.fits(total)?;
    let file = tokio::fs::File::options().write(true).open(part).await.map_err(cannot)?;
    let mut file = tokio::io::BufWriter::with_capacity(PIECE_BYTES, file);
    let (mut hash, mut bytes) = (Sha256::new(), 0u64);
    let mut stream = content.into_body().into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|e| broke(holder, &e))?;
        hash.update(&piece);
        bytes += piece.len() as u64;
        file.write_all(&piece).await.map_err(cannot)?;
        room.took(piece.len() as u64)?;
        sink(Some(Progress { done: bytes, total }), "");
    }
    file.flush().await.map_err(cannot)?;
    Ok(ImageDigest { bytes, sha256: hex(&hash.finalize()) })
}

/// What a file is, read whole; `sink` hears how far it is.
///
/// # Errors
/// The disk's.
pub async fn digest(path: &Path, sink: &ProgressSink) -> std::io::Result<ImageDigest> {
    let mut file = tokio::fs::File::open(path).await?;
    let total = file.metadata().await?.len();
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
    sink(Some(Progress { done: bytes, total }), "reading");
    loop {
        let count = file.read(&mut piece).await?;
        if count == 0 {
            return Ok(ImageDigest { bytes, sha256: hex(&hash.finalize()) });
        }
        hash.update(&piece[..count]);
        bytes += count as u64;
        sink(Some(Progress { done: bytes, total }), "");
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
