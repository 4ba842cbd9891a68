//! Which folder is a shared pool's: the one that most of the nodes have found, at least two of them. A node that has another one there,
//! or none, has not mounted it.
//!
//! Kept in the pool's record from then on, so that a room of hosts that all come back without their storage is not taken for the pool.
//! Only a pool that nothing lies in gets another one. Whoever makes something in a pool compares its record, and is seen or sees.

use std::collections::BTreeMap;

use vmkeep_core::migrate::check::is_shared;
use vmkeep_store::{Compare, Txn, keys, typed};
use vmkeep_types::host::NodeHealth;
use vmkeep_types::ids::{PoolId, PoolMark};
use vmkeep_types::name::Name;
use vmkeep_types::pool::PoolRecord;

use super::view::{ClusterView, Kept};

/// One alone may have found the empty folder below a mount.
const NODES_MIN: usize = 2;

/// What is to be kept now.
pub fn look(view: &ClusterView) -> Vec<Txn> {
    let shared = view.pools.values().filter(|pool| is_shared(&pool.value.spec) && !pool.value.leaving);
    shared.filter_map(|pool| settled(view, pool)).collect()
}

fn settled(view: &ClusterView, pool: &Kept<PoolRecord>) -> Option<Txn> {
    let found = found(view, pool.value.id);
    if let Some(mark) = pool.value.mark
        && (found.contains_key(&mark) || in_use(view, &pool.value.spec.name))
    {
        return None;
    }
    let most = *found.values().max()?;
    let mut first = found.into_iter().filter(|(_, nodes)| *nodes == most);
    let (mark, _) = first.next().filter(|_| most >= NODES_MIN)?;
    // As many have found another.
    if first.next().is_some() {
        return None;
    }
    let key = keys::pool(pool.value.id);
    let record = PoolRecord { mark: Some(mark), ..pool.value.clone() };
    Some(Txn::default().when(Compare::ModifiedAt(key.clone(), pool.modified)).then(typed::put(key, &record)))
}

/// Marks, and how many nodes have each.
fn found(view: &ClusterView, pool: PoolId) -> BTreeMap<PoolMark, usize> {
    let online = view.fleet().seats().filter(|seat| seat.health == NodeHealth::Online);
    let marks = online.filter_map(|seat| seat.facts.offers.pool_marks.as_ref()?.get(&pool));
    marks.fold(BTreeMap::new(), |mut found, mark| {
        *found.entry(*mark).or_default() += 1;
        found
    })
}

fn in_use(view: &ClusterView, pool: &Name) -> bool {
    let images = view.images.values().any(|image| image.value.spec.pool == *pool);
    images || view.volumes.values().any(|volume| volume.value.pool == *pool)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_store::{Op, Store};
    use vmkeep_types::host::{NodeFacts, NodeState};
    use vmkeep_types::pool::{PoolDriver, PoolSpec};
    use vmkeep_types::units::ByteCount;

    use super::super::view::PREFIXES;
    use super::*;

    const POOL: PoolId = PoolId(uuid::Uuid::from_u128(5));

    struct Bed(EmbeddedStore);

    impl Bed {
        async fn put(&self, op: Op) {
            self.0.txn(Txn::default().then(op)).await.expect("a write");
        }

        async fn view(&self) -> ClusterView {
            let listing = self.0.list_many(&PREFIXES).await.expect("a listing");
            ClusterView::new(listing.revision, &listing.items).0
        }

        /// Each node with the mark that it finds; 0: it has looked in vain.
        async fn found(&self, nodes: &[(&'static str, u128)]) {
            for (node, mark) in nodes {
                let mut facts = NodeFacts::of(Name::known(node), 4, ByteCount::from_gib(8));
                let mark = (*mark > 0).then(|| (POOL, PoolMark(uuid::Uuid::from_u128(*mark))));
                facts.offers.pool_marks = Some(mark.into_iter().collect());
                self.put(typed::put(keys::facts(&facts.name), &facts)).await;
            }
        }

        async fn check(&self, nodes: &[(&'static str, u128)], expect: Expect) {
            self.found(nodes).await;
            for txn in look(&self.view().await) {
                self.0.txn(txn).await.expect("a write");
            }
            let view = self.view().await;
            expect.assert_eq(&view.pools[&POOL].value.mark.map(|mark| mark.0.as_u128().to_string()).unwrap_or_default());
        }
    }

    async fn bed(shared: bool) -> Bed {
        let bed = Bed(EmbeddedStore::in_memory().expect("memory"));
        let driver = PoolDriver::Dir { path: "/srv/nfs".into(), shared };
        let spec = PoolSpec { name: Name::known("nfs"), description: String::new(), driver };
        let record = PoolRecord { id: POOL, spec, leaving: false, mark: None, created_at: jiff::Timestamp::UNIX_EPOCH };
        bed.put(typed::put(keys::pool(POOL), &record)).await;
        bed
    }

    #[tokio::test]
    async fn the_pool_is_where_most_nodes_have_it() {
        let bed = bed(true).await;
        bed.check(&[], expect![""]).await;
        bed.check(&[("node1", 1)], expect![""]).await;
        bed.check(&[("node1", 1), ("node2", 2)], expect![""]).await;
        bed.check(&[("node1", 1), ("node2", 2), ("node3", 2), ("node4", 1)], expect![""]).await;
        let silent = NodeState { state: NodeHealth::Offline, since: jiff::Timestamp::UNIX_EPOCH };
        bed.put(typed::put(keys::state(&Name::known("node4")), &silent)).await;
        bed.check(&[], expect!["2"]).await;
        // It stays as long as anybody has it, and is another one's only where nothing lies in it.
        bed.check(&[("node1", 1), ("node2", 1)], expect!["2"]).await;
        bed.check(&[("node3", 1)], expect!["1"]).await;
    }

    #[tokio::test]
    async fn a_pool_in_use_is_not_given_up() {
        let bed = bed(true).await;
        bed.check(&[("node1", 1), ("node2", 1)], expect!["1"]).await;
        let volume = serde_json::json!({
            "id": uuid::Uuid::from_u128(6), "project": "default", "name": "a-root", "pool": "nfs", "node": "node1", "size": "1G",
            "format": "qcow2", "image": null, "attached": null, "created_at": "2026-01-01T00:00:00Z"
        });
        bed.put(typed::put(keys::volume(&Name::known("default"), vmkeep_types::ids::VolumeId(uuid::Uuid::from_u128(6))), &volume)).await;
        bed.check(&[("node1", 2), ("node2", 2)], expect!["1"]).await;
    }

    #[tokio::test]
    async fn a_pool_of_each_host_has_none() {
        bed(false).await.check(&[("node1", 1), ("node2", 1)], expect![""]).await;
    }
}
