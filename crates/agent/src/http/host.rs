//! `vmkeep host check`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use vmkeep_api::body::HostCheck;

use super::NodeHttp;
use crate::host::check;

pub async fn check(State(node): State<Arc<NodeHttp>>) -> Json<HostCheck> {
    Json(HostCheck { rows: check::run(&node.config.check, node.hv()).await })
}
