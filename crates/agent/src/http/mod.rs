//! The node's own HTTP: what must be done where the VM runs. The control plane authorises a request and passes it here whole,
//! WebSocket upgrades too.
//!
//! ```text
//!  server ──NodeGate──► /n/vms/UID/…   console, vnc, screenshot, sendkey, exec, addresses, logs, xml
//!                       /n/domains/…   foreign domains, adoption proposals
//!                       /n/host/check, /n/stats, /n/metrics
//!                       /n/moves/UID/…  what goes along with a VM that is off, for its heir alone
//!                       /n/uploads/…, /n/images/UID/content|digest   bytes into and out of a pool
//!  unix socket ───────► /n/guests/…    host shutdown; root only, the daemon sees to it
//! ```
//! It trusts its caller to have asked for a VM that the user may see, and refuses domains that are not vmkeep's all the same.
//! Every error is problem+json.

mod answer;
mod console;
mod domains;
mod exec;
mod follow;
mod found;
mod guests;
mod host;
mod images;
mod keys;
mod logs;
mod metrics;
mod moves;
mod screen;
mod uploads;
mod vnc;
mod wish;
pub(crate) mod xml;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use vmkeep_api::body::BODY_BYTES_MAX;
use vmkeep_types::error::Error;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;

pub use guests::Guests;
pub use images::ImageDigest;
pub use moves::{Member, MoveList, Moves, TpmState};
pub use wish::Wishes;

use crate::host::check::CheckInput;
use crate::hypervisor::{DomainBrief, HvError, Hypervisor};
use crate::pool::Pool;
use answer::Failure;

/// What the node's routes work with.
pub struct NodeHttpConfig {
    pub node: Name,
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Uploads go to `default` when nothing else is said.
    pub pools: Arc<dyn Pools>,
    /// Serial logs of VMs.
    pub log_dir: PathBuf,
    /// QEMU's own logs, one per domain name.
    pub qemu_log_dir: PathBuf,
    pub check: CheckInput,
    pub guests: Arc<dyn Guests>,
    pub wishes: Arc<dyn Wishes>,
    pub moves: Arc<dyn Moves>,
}

/// The pools of this node, as they are now.
#[async_trait]
pub trait Pools: Send + Sync + 'static {
    /// # Errors
    /// The store's, or a pool that cannot be.
    async fn all(&self) -> Result<BTreeMap<Name, Arc<dyn Pool>>, Error>;
}

pub struct NodeHttp {
    config: NodeHttpConfig,
    consoles: console::Consoles,
    uploads: uploads::Writers,
}

impl NodeHttp {
    pub fn new(config: NodeHttpConfig) -> Arc<Self> {
        let consoles = console::Consoles::new(config.hypervisor.clone());
        Arc::new(Self { config, consoles, uploads: uploads::Writers::default() })
    }

    fn hv(&self) -> &dyn Hypervisor {
        self.config.hypervisor.as_ref()
    }

    /// The domain of one of our VMs.
    async fn our_domain(&self, uid: &str) -> Result<DomainBrief, Failure> {
        let id: VmId = uid.parse().map_err(|_| Error::invalid(format!("'{uid}' is not a VM's id")))?;
        let absent = || Error::not_found("domain of the VM", id).hint("it has not been started on this node yet");
        match self.hv().find(id).await {
            Ok(brief) if brief.metadata.is_some() => Ok(brief),
            Ok(_) | Err(HvError::NoDomain(_)) => Err(absent().into()),
            Err(error) => Err(error.into()),
        }
    }

    async fn pool(&self, name: &Name) -> Result<Arc<dyn Pool>, Failure> {
        let found = self.config.pools.all().await?.remove(name);
        Ok(found.ok_or_else(|| Error::not_found("pool on this node", name))?)
    }
}

/// The node's routes.
pub fn router(node: Arc<NodeHttp>) -> Router {
    Router::new()
        .route("/n/vms/{uid}/xml", get(domains::xml))
        .route("/n/vms/{uid}/console", get(console::console))
        .route("/n/vms/{uid}/vnc", get(vnc::vnc))
        .route("/n/vms/{uid}/screenshot", get(screen::screenshot))
        .route("/n/vms/{uid}/sendkey", post(screen::sendkey))
        .route("/n/vms/{uid}/exec", post(exec::exec))
        .route("/n/vms/{uid}/addresses", get(domains::addresses))
        .route("/n/vms/{uid}/logs", get(logs::logs))
        .route("/n/domains", get(domains::list))
        .route("/n/domains/{domain}/adoption", get(domains::adoption))
        .route("/n/host/check", get(host::check))
        .route("/n/wish", post(wish::check))
        .route("/n/look", post(wish::look))
        .route("/n/pools", get(found::pools))
        .route("/n/networks/{project}/{name}", get(found::network))
        .route("/n/stats", get(metrics::stats))
        .route("/n/metrics", get(metrics::metrics))
        .route("/n/uploads", post(uploads::create))
        .route("/n/uploads/{id}", put(uploads::append).get(uploads::show).delete(uploads::drop_it))
        .route("/n/images/{uid}/content", get(images::content))
        .route("/n/images/{uid}/digest", get(images::digest))
        .route("/n/moves/{uid}", get(moves::list))
        .route("/n/moves/{uid}/same", get(moves::same))
        .route("/n/moves/{uid}/volumes/{volume}", get(moves::volume))
        .route("/n/moves/{uid}/nvram", get(moves::nvram))
        .route("/n/moves/{uid}/tpm", get(moves::tpm))
        .route("/n/guests/shutdown", post(guests::shutdown))
        .route("/n/guests/resume", post(guests::resume))
        .fallback(answer::no_route)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node)
}

#[cfg(test)]
mod tests;
