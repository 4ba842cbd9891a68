//! What nodes find of pools and networks just now. For showing: a node that does not answer is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::Request;
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmkeep_api::body::{DomainView, NetworkFound, NetworkView, NodeView, PoolSpace, PoolView, WishCheck};
use vmkeep_store::keys;
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::host::NodeHealth;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkMode;
use vmkeep_types::record::{Owner, VmChoices};
use vmkeep_types::vm::VmSpec;

use super::call::Call;
use super::relay::{ask_node, read};
use crate::app::{get, network, node, vm_adopt, vm_parts};

/// More are not asked: a listing would wait for the slowest of them.
const NODES_MAX: usize = 16;
const PATIENCE: Duration = Duration::from_secs(1);
/// VMs of one request that are looked at: a look takes libvirt some 10 ms.
const LOOKS_MAX: usize = 50;
/// More names are not asked for one by one.
const NAMED_MAX: usize = 16;

pub async fn pools(call: &Call, views: &mut [PoolView]) -> Result<(), Error> {
    let nodes = online(call).await?;
    for (node, mut spaces) in everywhere::<BTreeMap<Name, PoolSpace>>(call, &nodes, "/n/pools").await {
        for view in views.iter_mut() {
            view.found.extend(spaces.remove(&view.spec.name).map(|space| (node.clone(), space)));
        }
    }
    Ok(())
}

pub async fn networks(call: &Call, views: &mut [NetworkView]) -> Result<(), Error> {
    let views: Vec<&mut NetworkView> = views.iter_mut().filter(|view| view.spec.mode == NetworkMode::Nat).collect();
    let nodes = if views.is_empty() { Vec::new() } else { online(call).await? };
    for view in views {
        let path = format!("/n/networks/{}/{}", view.project, view.spec.name);
        view.found = everywhere::<NetworkFound>(call, &nodes, &path).await.into_iter().collect();
    }
    Ok(())
}

/// Names of domains that are not vmkeep's, where one of `wished` is new here: libvirt knows a domain by its name only. On one host
/// alone; where there are more, nobody knows yet where a VM will be.
pub async fn foreign_domains(call: &mut Call, wished: &[Name]) -> Result<(), Error> {
    let Some(only) = node::alone(call.store()).await? else { return Ok(()) };
    let there = node::key_of_each(call.store(), wished, |name| keys::name("vm", &call.ask.project, name)).await?;
    let new: Vec<&str> = wished.iter().zip(there).filter(|(_, there)| there.is_none()).map(|(name, _)| name.as_str()).collect();
    if new.is_empty() {
        return Ok(());
    }
    // An address has its limits, and so many names are quickly found in the list of all.
    let path = if new.len() > NAMED_MAX { "/n/domains".to_owned() } else { format!("/n/domains?named={}", new.join(",")) };
    let domains = tokio::time::timeout(PATIENCE, ask_node::<Vec<DomainView>>(call, &only, &path)).await;
    // libvirt that does not answer says so when the VM is defined.
    let mut domains = domains.ok().and_then(Result::ok).unwrap_or_default();
    vm_adopt::mark_lost(call.store(), &mut domains).await?;
    call.ask.foreign = domains.into_iter().filter(|domain| !domain.ours).map(|domain| domain.name).collect();
    Ok(())
}

/// What is planned of these VMs is planned from how they are now: nothing tells of a `virsh setmem --config`, which is found at the
/// next look only. A node that does not answer in time is taken at its last word.
pub async fn look_again(call: &Call, names: &[Name]) -> Result<(), Error> {
    let mut by_node: BTreeMap<Name, Vec<VmId>> = BTreeMap::new();
    for name in names.iter().take(LOOKS_MAX) {
        let Some(id) = get::<VmId>(call.store(), &keys::name("vm", &call.ask.project, name)).await? else { continue };
        let Some(owner) = get::<Owner>(call.store(), &keys::owner(id.value)).await? else { continue };
        by_node.entry(owner.value.node).or_default().push(id.value);
    }
    let looks = by_node.iter().map(|(node, vms)| tokio::time::timeout(PATIENCE, post_node(call, node, "/n/look", vms)));
    for look in join_all(looks).await {
        if let Ok(Err(error)) = look {
            tracing::debug!(%error, "a node did not look at its VMs");
        }
    }
    Ok(())
}

/// On one host alone: could it carry the wish out? Else a wish that is refused only by the node stays written, and takes the VM
/// down at its next restart. A VM whose wish was as impossible before may be changed.
///
/// # Errors
/// Why it could not.
pub async fn check_wish(call: &Call, spec: &VmSpec) -> Result<(), Error> {
    let Some(only) = node::alone(call.store()).await? else { return Ok(()) };
    let old = match vm_parts::record(call.store(), &call.ask.project, &spec.name).await {
        Ok(old) => Some(old.value),
        Err(error) if error.code == Code::NotFound => None,
        Err(error) => return Err(error),
    };
    let choices = match &old {
        Some(old) => get::<VmChoices>(call.store(), &keys::choices(old.id)).await?.map(|kept| kept.value),
        None => None,
    };
    let mut check = WishCheck {
        project: call.ask.project.clone(),
        spec: check::normalize(spec.clone()),
        choices: choices.unwrap_or_default(),
        networks: BTreeMap::new(),
    };
    for nic in &check.spec.nics {
        if let Ok(network) = network::stored(call.store(), &call.ask.project, &nic.network).await {
            check.networks.insert(nic.network.clone(), network.value.spec);
        }
    }
    let Err(error) = ask_about(call, &only, &check).await else { return Ok(()) };
    if let Some(old) = old {
        check.spec = old.spec;
        if ask_about(call, &only, &check).await.is_err_and(|before| before.message == error.message) {
            return Ok(());
        }
    }
    Err(Error { message: format!("vm {}: {}; nothing was written", spec.name, error.message), ..error })
}

/// A node that cannot say now refuses nothing.
async fn ask_about(call: &Call, node: &Name, check: &WishCheck) -> Result<(), Error> {
    match tokio::time::timeout(PATIENCE, post_node(call, node, "/n/wish", check)).await {
        Ok(Err(error)) if matches!(error.code, Code::Invalid | Code::Refused | Code::Conflict) => Err(error),
        Ok(Err(error)) if error.code == Code::NotFound && error.message.starts_with("nics[") => Err(error),
        _ => Ok(()),
    }
}

async fn post_node(call: &Call, node: &Name, path: &'static str, body: &impl Serialize) -> Result<(), Error> {
    let body = serde_json::to_vec(body).map_err(|e| Error::internal(e.to_string()))?;
    let request = Request::post(path).header("content-type", "application/json").body(body.into()).expect("a fixed path");
    read(call.server.gate.call(node, request).await).await
}

/// Nodes that answer, as many as are asked.
async fn online(call: &Call) -> Result<Vec<Name>, Error> {
    let answers = |node: &NodeView| node.state.as_ref().is_none_or(|state| state.state == NodeHealth::Online);
    let nodes = node::list(call.store()).await?.into_iter().filter(answers);
    Ok(nodes.take(NODES_MAX).map(|node| node.facts.name).collect())
}

async fn everywhere<T: DeserializeOwned>(call: &Call, nodes: &[Name], path: &str) -> Vec<(Name, T)> {
    let asked = nodes.iter().map(|node| async {
        let answer = tokio::time::timeout(PATIENCE, ask_node::<T>(call, node, path)).await;
        Some((node.clone(), answer.ok()?.ok()?))
    });
    join_all(asked).await.into_iter().flatten().collect()
}
