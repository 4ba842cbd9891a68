//! The way from the control plane to the node's router: in one process a plain call. The request stays whole, so a WebSocket
//! upgrade passes with it.

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use tower::ServiceExt;
use vmkeep_server::gate::NodeGate;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use crate::listen::refuse;

pub struct LocalGate {
    node: Name,
    router: Router,
}

impl LocalGate {
    pub fn new(node: Name, router: Router) -> Self {
        Self { node, router }
    }
}

#[async_trait]
impl NodeGate for LocalGate {
    async fn call(&self, node: &Name, mut request: Request) -> Response<Body> {
        if *node != self.node {
            return refuse(Error::new(Code::Unavailable, format!("there is no way to node '{node}' from '{}'", self.node)));
        }
        // As over a wire: the first router's path fields would mix with the second's. Only the upgrade belongs to the request.
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        request.extensions_mut().clear();
        if let Some(upgrade) = upgrade {
            request.extensions_mut().insert(upgrade);
        }
        self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}
