//! The way from the control plane to a node's router: in one process a plain call, to another host over mutual TLS. The request
//! stays whole, so a WebSocket upgrade passes with it.
//!
//! ```text
//!  this node, same process ──────────────► router
//!  else: n/NODE/facts ─ address ─► mTLS ─► its agent's listener (listen::agent) ──► router
//! ```
//! How it fails: a node that does not answer in time is `unavailable`, with its name, its address and why.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::StatusCode;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tower::ServiceExt;
use vmkeep_server::app;
use vmkeep_server::gate::NodeGate;
use vmkeep_store::{Store, keys};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::name::Name;

use crate::listen::refuse;
use crate::mtls::Mtls;

pub struct Gate {
    /// This host's node.
    pub node: Name,
    /// Its router, where its agent is in this process.
    pub local: Option<Router>,
    /// None: a host alone.
    pub remote: Option<Remote>,
}

/// The agents of other processes.
pub struct Remote {
    pub store: Arc<dyn Store>,
    pub mtls: Arc<Mtls>,
}

#[async_trait]
impl NodeGate for Gate {
    async fn call(&self, node: &Name, request: Request) -> Response<Body> {
        match (&self.local, &self.remote) {
            (Some(router), _) if *node == self.node => router.clone().oneshot(bare(request)).await.unwrap_or_else(|never| match never {}),
            (_, Some(remote)) => remote.pass(node, bare(request)).await.unwrap_or_else(refuse),
            (_, None) => refuse(Error::new(Code::Unavailable, format!("there is no way to node '{node}' from '{}'", self.node))),
        }
    }
}

/// As over a wire: the first router's path fields would mix with the second's. Only the upgrade belongs to the request.
fn bare(mut request: Request) -> Request {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    request.extensions_mut().clear();
    if let Some(upgrade) = upgrade {
        request.extensions_mut().insert(upgrade);
    }
    request
}

impl Remote {
    async fn pass(&self, node: &Name, mut request: Request) -> Result<Response, Error> {
        let facts = app::get::<NodeFacts>(self.store.as_ref(), &keys::facts(node)).await?;
        let facts = facts.ok_or_else(|| Error::new(Code::Unavailable, format!("node '{node}' has not joined yet")))?.value;
        let no_address = || Error::new(Code::Unavailable, format!("node '{node}' told no address"));
        let address = facts.address.ok_or_else(no_address)?;
        let silent = |why: anyhow::Error| {
            Error::new(Code::Unavailable, format!("node '{node}' does not answer at {address}: {why:#}"))
                .hint("`vmkeep node list` shows which nodes are online; its VMs go on without an answer")
        };
        let ours = request.extensions_mut().remove::<OnUpgrade>();
        let mut response = self.mtls.send(node, &address, request).await.map_err(silent)?;
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(ours)) = (response.status(), ours) {
            tokio::spawn(join(ours, hyper::upgrade::on(&mut response)));
        }
        Ok(response.map(Body::new))
    }
}

/// Bytes both ways, until either side ends.
async fn join(ours: OnUpgrade, theirs: OnUpgrade) {
    let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) else { return };
    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
}

#[cfg(test)]
mod tests;
