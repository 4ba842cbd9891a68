//! What nodes find of pools and networks just now. For showing: a node that does not answer is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use vmkeep_api::body::{DomainView, NetworkFound, NetworkView, NodeView, PoolSpace, PoolView};
use vmkeep_store::keys;
use vmkeep_types::error::Error;
use vmkeep_types::host::NodeHealth;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkMode;

use super::call::Call;
use super::handlers::ask_node;
use crate::app::{node, store_error};

/// More are not asked: a listing would wait for the slowest of them.
const NODES_MAX: usize = 16;
const PATIENCE: Duration = Duration::from_secs(1);

pub async fn pools(call: &Call, views: &mut [PoolView]) -> Result<(), Error> {
    for (node, mut spaces) in everywhere::<BTreeMap<Name, PoolSpace>>(call, "/n/pools").await? {
        for view in views.iter_mut() {
            view.found.extend(spaces.remove(&view.spec.name).map(|space| (node.clone(), space)));
        }
    }
    Ok(())
}

pub async fn networks(call: &Call, views: &mut [NetworkView]) -> Result<(), Error> {
    for view in views.iter_mut().filter(|view| view.spec.mode == NetworkMode::Nat) {
        let path = format!("/n/networks/{}/{}", view.project, view.spec.name);
        view.found = everywhere::<NetworkFound>(call, &path).await?.into_iter().collect();
    }
    Ok(())
}

/// Names of domains that are not vmkeep's, where one of `wished` is new here: libvirt knows a domain by its name only. On one host
/// alone; where there are more, nobody knows yet where a VM will be.
pub async fn foreign_domains<'a>(call: &mut Call, wished: impl IntoIterator<Item = &'a Name>) -> Result<(), Error> {
    let mut new = false;
    for name in wished {
        let key = keys::name("vm", &call.ask.project, name);
        new |= call.store().get(&key).await.map_err(store_error)?.is_none();
    }
    let nodes = if new { node::names(call.store()).await? } else { Vec::new() };
    let [only] = &nodes[..] else { return Ok(()) };
    let domains = tokio::time::timeout(PATIENCE, ask_node::<Vec<DomainView>>(call, only, "/n/domains")).await;
    // libvirt that does not answer says so when the VM is defined.
    let domains = domains.ok().and_then(Result::ok).unwrap_or_default();
    call.ask.foreign = domains.into_iter().filter(|domain| !domain.ours).map(|domain| domain.name).collect();
    Ok(())
}

async fn everywhere<T: DeserializeOwned>(call: &Call, path: &str) -> Result<Vec<(Name, T)>, Error> {
    let nodes = node::list(call.store()).await?;
    let answers = |node: &&NodeView| node.state.as_ref().is_none_or(|state| state.state == NodeHealth::Online);
    let asked = nodes.iter().filter(answers).take(NODES_MAX).map(|node| async {
        let answer = tokio::time::timeout(PATIENCE, ask_node::<T>(call, &node.facts.name, path)).await;
        Some((node.facts.name.clone(), answer.ok()?.ok()?))
    });
    Ok(join_all(asked).await.into_iter().flatten().collect())
}
