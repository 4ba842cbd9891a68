//! What the host itself does for its cluster: files, certificates, etcd's process. The daemon has it; the control plane asks.

use async_trait::async_trait;
use vmkeep_types::cluster::{
    ClusterBackup, ClusterFormed, ClusterInit, ClusterJoin, ClusterLeave, ClusterLeft, ClusterRecover, ClusterRecovering, ClusterView,
    JoinTokenCreate, JoinTokenCreated,
};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

/// Every method can be repeated after a crash in its middle.
#[async_trait]
pub trait HostCluster: Send + Sync + 'static {
    /// Makes this host the first member. The daemon starts anew when the answer is out.
    async fn init(&self, wish: ClusterInit) -> Result<ClusterFormed, Error>;

    /// Makes this host a member of another's cluster. The daemon starts anew when the answer is out.
    async fn join(&self, wish: ClusterJoin) -> Result<ClusterFormed, Error>;

    /// Takes this host out of its cluster. The daemon starts anew when the answer is out, and leaves before it serves.
    async fn leave(&self, wish: ClusterLeave) -> Result<ClusterLeft, Error>;

    /// Restores the store when etcd's majority is lost for good. The daemon starts anew when the answer is out, and restores before
    /// it serves.
    async fn recover(&self, wish: ClusterRecover) -> Result<ClusterRecovering, Error>;

    /// A token for one host.
    async fn token(&self, wish: JoinTokenCreate) -> Result<JoinTokenCreated, Error>;

    async fn status(&self) -> Result<ClusterView, Error>;

    /// Takes a member out that does not come back.
    async fn remove(&self, node: &Name) -> Result<(), Error>;

    /// Makes a compute node a control node: its record says so, and its host follows.
    async fn promote(&self, node: &Name) -> Result<(), Error>;

    /// Makes a control node a compute node: its record says so, its etcd is taken out, and its host follows.
    async fn demote(&self, node: &Name) -> Result<(), Error>;

    /// Copies etcd's database to a file of this host.
    async fn backup(&self) -> Result<ClusterBackup, Error>;

    /// Gives disk space of etcd's members back, one after the other, and lets writes in again.
    async fn defragment(&self) -> Result<(), Error>;
}
