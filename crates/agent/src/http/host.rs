//! `vmkeep host check`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use vmkeep_api::body::HostCheck;

use super::NodeHttp;
use crate::host::check;

pub async fn check(State(node): State<Arc<NodeHttp>>) -> Json<HostCheck> {
    // A store that cannot be read hides the pools; the check of the rest is worth more then.
    let pools = node.config.pools.all().await.unwrap_or_default();
    let pools = pools.into_iter().filter_map(|(name, pool)| Some((name, pool.space()?))).collect();
    Json(HostCheck { rows: check::run(&node.config.check, pools, node.hv()).await })
}
