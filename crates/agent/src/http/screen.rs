//! The display as a picture, and keys pressed.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use vmkeep_api::body::SendKeyRequest;
use vmkeep_types::error::Error;

use super::NodeHttp;
use super::answer::{Answer, parse};
use super::keys;

/// What libvirt presses at once.
const KEYS_MAX: usize = 16;

pub async fn screenshot(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>) -> Answer<Response> {
    let domain = node.our_domain(&uid).await?;
    let shot = node.hv().screenshot(domain.uuid).await?;
    Ok(([(header::CONTENT_TYPE, shot.mime)], shot.bytes).into_response())
}

pub async fn sendkey(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, body: Bytes) -> Answer<axum::Json<()>> {
    let SendKeyRequest { keys } = parse(&body)?;
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(Error::invalid(format!("{} keys: 1 to {KEYS_MAX} can be pressed together", keys.len())).into());
    }
    let codes = keys.iter().map(|key| keys::code(key)).collect::<Result<Vec<u32>, Error>>()?;
    let domain = node.our_domain(&uid).await?;
    node.hv().send_keys(domain.uuid, codes).await?;
    Ok(axum::Json(()))
}
