//! A node's word to a store that was restored: which VMs it has, so that the leader learns what the backup does not know.
//!
//! Told until the recovery is over, and again when it changed. In all other times this looks once and ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmkeep_store::{StoreError, Txn, keys, typed};
use vmkeep_types::cluster::{Recovery, Rejoined};
use vmkeep_types::ids::VmId;

use super::node::Node;
use crate::domain::marks;

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Goes on until the recovery is over, or `stop`.
pub async fn tell(node: Arc<Node>, stop: CancellationToken) {
    let mut told = None;
    loop {
        match look(&node, &mut told).await {
            Ok(Wanted::No) => return,
            Ok(Wanted::Yes) => {}
            Err(why) => tracing::warn!(why, "this node's domains are told to the restored store later"),
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Whether the store waits for what runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Yes,
    No,
}

async fn look(node: &Node, told: &mut Option<Rejoined>) -> Result<Wanted, String> {
    let store = |e: StoreError| e.to_string();
    let recovery = typed::get_json::<Recovery>(node.store.as_ref(), keys::CLUSTER_RECOVERY).await.map_err(store)?;
    let Some(recovery) = recovery else { return Ok(Wanted::No) };
    let domains = node.hv.list().await.map_err(|e| e.to_string())?;
    let ours = domains.iter().filter(|domain| marks(domain.metadata.as_deref(), domain.uuid));
    let domains: BTreeMap<VmId, bool> = ours.map(|domain| (domain.uuid, domain.state.is_live())).collect();
    let now = Rejoined { incarnation: recovery.value.incarnation, epoch: node.epoch(), domains };
    if told.as_ref() == Some(&now) {
        return Ok(Wanted::Yes);
    }
    let Some(life) = node.this_life().await.map_err(store)? else { return Err("its life is over".into()) };
    let written = node.store.txn(Txn::default().when(life).then(typed::put(keys::rejoined(&node.name), &now))).await.map_err(store)?;
    if written.held == vmkeep_store::Held::Yes {
        tracing::info!(domains = now.domains.len(), "told the restored store what is here");
        *told = Some(now);
    }
    Ok(Wanted::Yes)
}

#[cfg(test)]
mod tests {
    use vmkeep_store::Store;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::cluster::Incarnation;
    use vmkeep_types::ids::Epoch;

    use super::super::claim::tests::joined;
    use super::*;

    #[tokio::test]
    async fn a_node_begins_anew_in_a_restored_store_and_says_what_it_has() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let before = joined(&store, dir.path(), "one").await;
        assert_eq!(look(&before, &mut None).await, Ok(Wanted::No), "nobody asks");
        let recovery =
            Recovery { incarnation: 7, since: jiff::Timestamp::UNIX_EPOCH, nodes: [before.name.clone()].into(), lost: [].into() };
        let life = Incarnation { number: 7, id: uuid::Uuid::from_u128(7) };
        let txn = Txn::default().then(typed::put(keys::CLUSTER_RECOVERY, &recovery)).then(typed::put(keys::CLUSTER_INCARNATION, &life));
        store.txn(txn).await.expect("written");
        let after = joined(&store, dir.path(), "one").await;
        assert_eq!(after.epoch(), Epoch::first_of(7), "the same boot, another life");
        assert!(look(&before, &mut None).await.is_err(), "the life before says nothing any more");
        let mut told = None;
        assert_eq!(look(&after, &mut told).await, Ok(Wanted::Yes));
        assert_eq!(told, Some(Rejoined { incarnation: 7, epoch: Epoch::first_of(7), domains: BTreeMap::new() }));
    }
}
