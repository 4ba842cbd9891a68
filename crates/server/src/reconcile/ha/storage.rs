//! Having the storage refuse a node, as Ceph's blocklist does: proof that no guest of it writes any more, without its power.
//!
//! Asked for only of armed nodes, after their seal: they reset themselves, and a driver makes the storage take the next boot's writes
//! again. The refusal must cover what is under way, name the node by its address at the storage, and have no expiry (design: the node's
//! epoch ends by its reset, not by a clock of the storage).

use async_trait::async_trait;
use vmkeep_types::ids::Epoch;
use vmkeep_types::name::Name;
use vmkeep_types::pool::PoolSpec;

use crate::reconcile::view::ClusterView;

/// A driver of pools that can refuse a node.
#[async_trait]
pub trait StorageFence: Send + Sync {
    /// Whether a node can be refused all that lies in this pool.
    fn can_refuse(&self, pool: &PoolSpec) -> bool;

    /// The pool takes nothing more of what the node writes, begun or new. Again is as good as once.
    ///
    /// # Errors
    /// It may still take some, and why.
    async fn refuse(&self, node: &Name, epoch: Epoch, pool: &PoolSpec) -> Result<(), String>;
}

/// Pools are directories, which nothing can take away from a host that has them mounted.
pub struct NoStorageFence;

#[async_trait]
impl StorageFence for NoStorageFence {
    fn can_refuse(&self, _: &PoolSpec) -> bool {
        false
    }

    async fn refuse(&self, _: &Name, _: Epoch, pool: &PoolSpec) -> Result<(), String> {
        Err(format!("nothing can refuse a node what lies in pool '{}'", pool.name))
    }
}

/// Where everything lies that VMs of this node write, those that do not move included: None: some of it lies where nobody can be
/// refused, or is not known, or there is nothing.
pub fn pools_of(view: &ClusterView, storage: &dyn StorageFence, node: &Name) -> Option<Vec<PoolSpec>> {
    let seat = view.fleet().seat(node)?;
    let mut pools: Vec<PoolSpec> = Vec::new();
    for vm in seat.owned.union(&seat.coming) {
        for volume in view.vms.get(vm)?.value.volumes.values() {
            let volume = &view.volumes.get(volume)?.value;
            let pool = &view.pool_by_name(&volume.pool)?.value.spec;
            if volume.foreign_path.is_some() || !storage.can_refuse(pool) {
                return None;
            }
            if pools.iter().all(|known| known.name != pool.name) {
                pools.push(pool.clone());
            }
        }
    }
    (!pools.is_empty()).then_some(pools)
}
