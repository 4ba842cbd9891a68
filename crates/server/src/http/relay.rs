//! Requests that a node answers: asked for something of its own, or handed the whole request.

use axum::http::Uri;
use axum::response::Response;
use vmkeep_store::keys;
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::observed::{Observed, Seen};
use vmkeep_types::record::Owner;

use super::call::Call;
use super::handlers::Answer;
use crate::app::{self, vm_parts};

/// Something of the node's, as JSON.
pub async fn ask_node<T: serde::de::DeserializeOwned>(call: &Call, node: &Name, path: &str) -> Result<T, Error> {
    let request = axum::extract::Request::builder().uri(path).body(axum::body::Body::empty()).expect("a checked path");
    read(call.server.gate.call(node, request).await).await
}

/// A node's whole answer.
pub async fn read<T: serde::de::DeserializeOwned>(response: Response) -> Result<T, Error> {
    use http_body_util::{BodyExt, Limited};
    /// The largest that is read whole.
    const ANSWER_BYTES_MAX: usize = 16 << 20;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|e| Error::internal(format!("the node's answer broke: {e}")))?
        .to_bytes();
    if !status.is_success() {
        return Err(vmkeep_api::problem::read(status.as_u16(), &bytes));
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::internal(format!("the node's answer does not parse: {e}")))
}

/// The whole request, handed to the VM's node.
pub async fn to_vm(call: Call) -> Answer {
    let name = call.name()?;
    let record = vm_parts::record(call.store(), &call.ask.project, &name).await?.value;
    let owner = app::get::<Owner>(call.store(), &keys::owner(record.id))
        .await?
        .ok_or_else(|| Error::conflict(format!("'{name}' has no node yet")))?;
    let what = call.route.path.rsplit('/').next().unwrap_or_default();
    if what != "logs" {
        has_domain(&call, &owner.value, &name).await?;
    }
    let path = format!("/n/vms/{}/{what}", record.id);
    to_node(call, &owner.value.node, &path).await
}

/// The node knows uids only, and not why.
async fn has_domain(call: &Call, owner: &Owner, name: &Name) -> Result<(), Error> {
    let seen = app::get::<Seen>(call.store(), &keys::seen(&owner.node, owner.vm)).await?.map(|seen| seen.value);
    let Some(seen) = seen.filter(|seen| seen.domain == Observed::Absent) else { return Ok(()) };
    let why = seen.error.map(|error| format!(": {}", error.message)).unwrap_or_default();
    Err(Error::conflict(format!("'{name}' has no domain yet{why}")).hint(format!("vmkeep vm show {name}")))
}

pub async fn to_node(call: Call, node: &Name, path: &str) -> Answer {
    let query = call.raw_query();
    to_node_at(call, node, &format!("{path}{query}")).await
}

pub async fn to_node_at(call: Call, node: &Name, uri: &str) -> Answer {
    let server = call.server.clone();
    let mut request = call.into_request();
    *request.uri_mut() = uri.parse::<Uri>().map_err(|e| Error::invalid(format!("the query does not read: {e}")))?;
    Ok(server.gate.call(node, request).await)
}
