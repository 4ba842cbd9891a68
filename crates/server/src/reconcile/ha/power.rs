//! Cutting a node's power from elsewhere, as high availability asks for it.

use async_trait::async_trait;
use vmkeep_types::name::Name;

/// Whoever can cut nodes' power.
#[async_trait]
pub trait Power: Send + Sync {
    /// Is there a way to cut this node's power?
    fn can_cut(&self, node: &Name) -> bool;

    /// Cuts it, and makes sure of it. Asked for only after the node was sealed.
    ///
    /// # Errors
    /// It may still be on, and why.
    async fn cut(&self, node: &Name) -> Result<(), String>;
}

/// No node's power can be cut.
pub struct NoPower;

#[async_trait]
impl Power for NoPower {
    fn can_cut(&self, _: &Name) -> bool {
        false
    }

    async fn cut(&self, node: &Name) -> Result<(), String> {
        Err(format!("there is no way to cut the power of {node}"))
    }
}
