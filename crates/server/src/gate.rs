//! The way to a node's own router: in the same process on one host, over mutual TLS in a cluster.

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use vmkeep_types::name::Name;

/// Passes whole requests, WebSocket upgrades included, to the router of a node.
#[async_trait]
pub trait NodeGate: Send + Sync + 'static {
    async fn call(&self, node: &Name, request: Request) -> Response<Body>;
}
