//! An image's bytes, as they lie in the pool (qcow2, or an ISO as it came).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio_util::io::ReaderStream;
use vmkeep_types::error::Error;
use vmkeep_types::ids::ImageId;
use vmkeep_types::name::Name;

use super::NodeHttp;
use super::answer::{Answer, Asked, io_failure};

/// Read from the disk at once.
const PIECE_BYTES: usize = 256 << 10;

/// What a holder says of an image's bytes, for a node that has fetched them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDigest {
    pub bytes: u64,
    /// Hex.
    pub sha256: String,
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, SHA-256 {}", self.bytes, self.sha256)
    }
}

#[derive(Deserialize)]
pub struct From_ {
    pool: Option<Name>,
}

async fn find(node: &NodeHttp, uid: &str, from: From_) -> Answer<(ImageId, PathBuf)> {
    let id: ImageId = uid.parse().map_err(|_| Error::invalid(format!("'{uid}' is not an image's id")))?;
    Ok((id, node.pool(&from.pool.unwrap_or_else(|| Name::known("default"))).await?.image_path(id)))
}

pub async fn digest(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, Asked(from): Asked<From_>) -> Answer<Json<ImageDigest>> {
    let (id, path) = find(&node, &uid, from).await?;
    let read = crate::image::digest(&path, &|_, _| {}).await;
    Ok(Json(read.map_err(|e| io_failure(&format!("cannot read the image {id}"), &e))?))
}

pub async fn content(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, Asked(from): Asked<From_>) -> Answer<Response> {
    let (id, path) = find(&node, &uid, from).await?;
    let cannot = |e: std::io::Error| io_failure(&format!("cannot read the image {id}"), &e);
    let file = tokio::fs::File::open(&path).await.map_err(cannot)?;
    let length = file.metadata().await.map_err(cannot)?.len();
    let kind = if path.extension().is_some_and(|e| e == "iso") { "application/x-iso9660-image" } else { "application/octet-stream" };
    let body = Body::from_stream(ReaderStream::with_capacity(file, PIECE_BYTES));
    Ok(([(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_LENGTH, length.to_string())], body).into_response())
}
