//! What a member asks of a control node, on the agent's port and by its own certificate.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmkeep_api::body::ProblemBody;
use vmkeep_server::app::cluster as members;
use vmkeep_store::Store;
use vmkeep_types::cluster::{MemberRecord, MemberRole};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::pki::in_url;
use super::refused;
use crate::member::{AGENT_PORT, Paths};
use crate::mtls::Mtls;

const ANSWER_BYTES_MAX: usize = 1 << 20;
/// For a control node, which may change etcd's members meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// The control nodes that `node` may ask, and where.
pub fn controls<'a>(records: &'a [MemberRecord], node: &'a Name) -> impl Iterator<Item = (&'a Name, String)> {
    let others = records.iter().filter(move |record| record.roles.contains(&MemberRole::Control) && record.node != *node);
    others.map(|record| (&record.node, format!("{}:{AGENT_PORT}", in_url(&record.address))))
}

/// Says it to one control node after the other, for `node`, whose files these are, until one answers.
///
/// # Errors
/// The refusal; `Unavailable` when none of them answers.
pub async fn any<A: DeserializeOwned>(
    store: &dyn Store,
    paths: &Paths,
    node: &Name,
    path: &str,
    body: &impl Serialize,
) -> Result<A, Error> {
    let records = members::members(store).await?;
    let mtls = Mtls::open(paths.clone()).map_err(refused)?;
    let mut last = no_control();
    for (control, address) in controls(&records, node) {
        match post(&mtls, control, &address, path, body).await {
            Err(error) if error.code == Code::Unavailable => last = error,
            done => return done,
        }
    }
    Err(last)
}

pub fn no_control() -> Error {
    Error::new(Code::Unavailable, "the cluster has no control node")
}

/// # Errors
/// Its refusal; `Unavailable` when it does not answer.
pub async fn post<A: DeserializeOwned>(mtls: &Mtls, control: &Name, address: &str, path: &str, body: &impl Serialize) -> Result<A, Error> {
    let body = serde_json::to_vec(body).map_err(|e| Error::internal(e.to_string()))?;
    let request = http::Request::post(path).header("content-type", "application/json").body(body.into());
    let request = request.map_err(|e| Error::internal(e.to_string()))?;
    let silent = |why: String| Error::new(Code::Unavailable, format!("'{control}' at {address}: {why}"));
    let answered = async {
        let answer = mtls.send(control, address, request).await.map_err(|e| silent(format!("{e:#}")))?;
        let (status, body) = (answer.status(), Limited::new(answer.into_body(), ANSWER_BYTES_MAX));
        Ok::<_, Error>((status, body.collect().await.map_err(|e| silent(e.to_string()))?.to_bytes()))
    };
    let late = |_| silent(format!("no answer within {} s", PATIENCE.as_secs()));
    let (status, bytes) = tokio::time::timeout(PATIENCE, answered).await.map_err(late)??;
    if !status.is_success() {
        let told: Result<ProblemBody, _> = serde_json::from_slice(&bytes);
        return Err(told.map_or_else(|_| silent(format!("it answers {status}")), Error::from));
    }
    serde_json::from_slice(&bytes).map_err(|e| silent(format!("it answers something else: {e}")))
}
