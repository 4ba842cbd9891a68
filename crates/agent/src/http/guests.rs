//! Host shutdown: `vmkeep-guests.service` asks for it, once the host goes down.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use vmkeep_types::error::Error;
use vmkeep_types::ha::Farewell;

use super::NodeHttp;
use super::answer::{Answer, Asked};
use crate::runtime;
use crate::runtime::standing::Stand;

/// What the runtime does for a host that goes down.
#[async_trait]
pub trait Guests: Send + Sync + 'static {
    /// No restarts any more; VMs down by reverse start order, each with its stop_timeout, then killed. Ends when none runs.
    async fn shutdown(&self, why: Farewell) -> Result<(), Error>;
    /// A shutdown that was called off.
    async fn resume(&self) -> Result<(), Error>;
    /// How this life of the node stands.
    fn stand(&self) -> Stand;
}

#[async_trait]
impl Guests for runtime::Handle {
    async fn shutdown(&self, why: Farewell) -> Result<(), Error> {
        self.shutdown_guests(why).await
    }
    async fn resume(&self) -> Result<(), Error> {
        self.resume_guests().await;
        Ok(())
    }
    fn stand(&self) -> Stand {
        self.0.standing.now()
    }
}

#[derive(Debug, Deserialize)]
pub struct Going {
    /// Not said: for longer, as far as anybody knows.
    #[serde(default)]
    why: Farewell,
}

pub async fn shutdown(State(node): State<Arc<NodeHttp>>, Asked(going): Asked<Going>) -> Answer<Json<()>> {
    // Goes on when the asking program is killed: systemd's patience is not the VMs'.
    let guests = node.config.guests.clone();
    let done = tokio::spawn(async move { guests.shutdown(going.why).await }).await;
    done.map_err(|e| Error::internal(format!("the shutdown of VMs stopped: {e}")))??;
    Ok(Json(()))
}

pub async fn resume(State(node): State<Arc<NodeHttp>>) -> Answer<Json<()>> {
    node.config.guests.resume().await?;
    Ok(Json(()))
}
