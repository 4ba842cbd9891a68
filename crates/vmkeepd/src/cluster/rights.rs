//! Each member's rights in etcd follow from the members' records; control nodes see to it.
//!
//! ```text
//!  level < 4: everybody may do everything      level 4: users and roles made ─► asked for from then on
//!  a host is let in ─► it has its rights before it has its certificate
//!  taken out        ─► it may read that it was, and nothing else
//! ```
//! How it fails: what was not done is done 20 s later, by whichever control node. A control node that leaves keeps its rights until
//! it has taken its etcd out.

use std::collections::BTreeMap;

use vmkeep_server::app::{cluster as members, store_error};
use vmkeep_store::etcd::rights::Right;
use vmkeep_store::{Store, keys, typed};
use vmkeep_types::cluster::{MemberRecord, MemberRole};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::Cluster;

/// What this process knows to be so.
pub type Kept = BTreeMap<Name, Right>;

fn right_of(record: &MemberRecord) -> Right {
    if record.roles.contains(&MemberRole::Control) { Right::All } else { Right::Own }
}

/// # Errors
/// The store's.
pub async fn in_force(store: &dyn Store) -> Result<bool, Error> {
    let level = typed::get_json::<u64>(store, keys::LEVEL).await.map_err(store_error)?;
    Ok(level.is_some_and(|level| level.value >= keys::LEVEL_RIGHTS))
}

impl Cluster {
    /// Makes etcd's users and roles what the records say. Nothing to do but on a control node that is itself a member: another one
    /// would lock itself out.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn keep_rights(&self) -> Result<(), Error> {
        if self.is_external() || !self.member()?.has(MemberRole::Control) || !in_force(self.store.as_ref()).await? {
            return Ok(());
        }
        let mut kept = self.rights.lock().await;
        let etcd = self.etcd_store()?;
        if settled(&kept, &members::members(self.store.as_ref()).await?) {
            return Ok(());
        }
        let mut rights = etcd.rights().await.map_err(store_error)?;
        let users: Vec<Name> = rights.nodes().collect();
        // After the users: a host that is let in has its record before it is one of them.
        let records = members::members(self.store.as_ref()).await?;
        let own = records.iter().find(|record| record.node == self.node);
        if own.is_none_or(|own| right_of(own) != Right::All) {
            return Ok(());
        }
        let is_new = |record: &&MemberRecord| kept.get(&record.node) != Some(&right_of(record));
        for record in records.iter().filter(is_new).collect::<Vec<_>>() {
            rights.give(&record.node, right_of(record)).await.map_err(store_error)?;
            kept.insert(record.node.clone(), right_of(record));
        }
        let voters = etcd.members().await.map_err(store_error)?;
        for node in users.iter().filter(|node| records.iter().all(|record| record.node != **node)) {
            let leaves = voters.iter().any(|voter| voter.name == node.as_str());
            if !leaves {
                rights.give(node, Right::None).await.map_err(store_error)?;
            }
            kept.insert(node.clone(), if leaves { Right::All } else { Right::None });
        }
        rights.enforce().await.map_err(store_error)?;
        tracing::info!(members = records.len(), "etcd holds each member to its own keys");
        Ok(())
    }
}

fn settled(kept: &Kept, records: &[MemberRecord]) -> bool {
    let are_members = kept.values().filter(|right| **right != Right::None).count();
    are_members == records.len() && records.iter().all(|record| kept.get(&record.node) == Some(&right_of(record)))
}
