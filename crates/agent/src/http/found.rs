//! Pools and networks as they are on this host just now.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use vmkeep_api::body::{NetworkFound, PoolSpace};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::NodeHttp;
use super::answer::Failure;
use crate::net;

/// Those that can be looked at; a pool's folder is made when it is first used.
pub async fn pools(State(node): State<Arc<NodeHttp>>) -> Result<Json<BTreeMap<Name, PoolSpace>>, Failure> {
    let pools = node.config.pools.all().await?;
    Ok(Json(pools.into_iter().filter_map(|(name, pool)| Some((name, pool.space()?))).collect()))
}

pub async fn network(State(node): State<Arc<NodeHttp>>, Path((project, name)): Path<(Name, Name)>) -> Result<Json<NetworkFound>, Failure> {
    let xml = node.hv().network_xml(&net::libvirt_name(&project, &name)).await?;
    let xml = xml.ok_or_else(|| Error::not_found("network on this node", &name))?;
    Ok(Json(net::found(&xml)?))
}
