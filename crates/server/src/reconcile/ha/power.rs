//! Cutting a node's power from elsewhere, as high availability asks for it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use vmkeep_store::Store;
use vmkeep_types::ids::Epoch;
use vmkeep_types::name::Name;

use crate::stonith::{Cut, off};

/// Whoever can cut nodes' power.
#[async_trait]
pub trait Power: Send + Sync {
    /// Cuts it, and makes sure of it. Asked for only after the epoch was sealed, of nodes that have a fence agent.
    ///
    /// # Errors
    /// It may still be on, and why.
    async fn cut(&self, node: &Name, epoch: Epoch) -> Result<(), String>;
}

/// No node's power can be cut.
pub struct NoPower;

#[async_trait]
impl Power for NoPower {
    async fn cut(&self, node: &Name, _: Epoch) -> Result<(), String> {
        Err(format!("there is no way to cut the power of {node}"))
    }
}

/// By the fence agents in a folder.
pub struct FenceAgents {
    pub store: Arc<dyn Store>,
    pub folder: PathBuf,
}

#[async_trait]
impl Power for FenceAgents {
    async fn cut(&self, node: &Name, epoch: Epoch) -> Result<(), String> {
        match off(self.store.as_ref(), &self.folder, node, epoch).await {
            Cut::Confirmed => Ok(()),
            Cut::Failed(why) => Err(why),
        }
    }
}
