//! The life of the node that stands in the store when an agent starts, and whether the next one may begin.
//!
//! | it was | this boot | another boot |
//! |---|---|---|
//! | not armed | goes on; sealed and proved dead: what others own by now is ended here, then the next | that boot was its end, unless its heartbeat goes on |
//! | armed | goes on; sealed: only a reset leads on | waits until its end is proved |
//! | closed by its own goodbye | the next | the next |
//!
//! What decides is `core::ha::life`. A host alone has nobody who could take its VMs: it begins anew with each boot.

use vmkeep_core::ha::life::{Before, Boot, Guests, Join, join};
use vmkeep_store::{Compare, Op, StoreError, Txn, keys, typed};
use vmkeep_types::host::EpochRecord;
use vmkeep_types::ids::Revision;
use vmkeep_types::record::Owner;

use super::node::Node;
use super::standing::Life;

/// What must hold when the next life begins, beside that the record is unchanged.
///
/// # Errors
/// It may not begin now, and why; the store's.
pub async fn judge(node: &Node, record: &EpochRecord, read_at: Revision, before: &Before) -> Result<Option<Compare>, StoreError> {
    if node.config.peers.is_none() {
        return Ok(None);
    }
    if before.boot == Boot::Another && !before.armed {
        if !before.closed {
            node.wait_for_silence().await?;
        }
        return Ok(None);
    }
    let was_taken = before.boot == Boot::This && before.sealed && !before.armed;
    let guests = if was_taken { end_strays(node).await? } else { Guests::None };
    let (name, epoch) = (&node.name, record.epoch);
    let no = |why: String| Err(StoreError::Unavailable(why));
    match join(*before, guests) {
        Join::GoOn => Ok(None),
        Join::Next if before.closed => Ok(None),
        Join::Next => Ok(Some(Compare::Present(keys::confirmed(name, epoch)))),
        Join::Ended => {
            node.config.guard.sealed().await;
            node.standing.set_life(Life::Sealed);
            no(format!("the cluster has ended this life of {name}: the host must be reset"))
        }
        Join::Wait => {
            if before.boot == Boot::Another {
                let same = Compare::ModifiedAt(keys::epoch(name), read_at);
                node.store.txn(Txn::default().when(same).then(Op::Put(keys::waiting(name), Vec::new()))).await?;
            }
            no(format!("{name} waits for the proof that its life before has ended (epoch {epoch}): vmkeep ha status"))
        }
    }
}

/// Ends the guests of VMs that this node does not own any more: they may run elsewhere.
async fn end_strays(node: &Node) -> Result<Guests, StoreError> {
    let Ok(domains) = node.hv.list().await else { return Ok(Guests::Some) };
    let mut guests = Guests::None;
    for domain in domains.iter().filter(|domain| domain.is_our_guest()) {
        let owner = typed::get_json::<Owner>(node.store.as_ref(), &keys::owner(domain.uuid)).await?;
        if owner.is_some_and(|owner| owner.value.node == node.name) {
            continue;
        }
        tracing::error!(vm = %domain.name, "it is another node's by now, and is ended here");
        if node.hv.destroy(domain.uuid).await.is_err() {
            guests = Guests::Some;
        }
    }
    Ok(guests)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use tokio_util::sync::CancellationToken;
    use vmkeep_core::health::SUSPECT_MS;
    use vmkeep_store::Store;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::ids::{Epoch, Generation, VmId};
    use vmkeep_types::name::Name;

    use super::super::claim::tests::member;
    use super::super::guard::NoGuard;
    use super::super::heartbeat;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A member with a VM, whose heartbeat goes on until `stop`.
    struct Bed {
        store: Arc<EmbeddedStore>,
        dir: tempfile::TempDir,
        original: Arc<Node>,
        stop: CancellationToken,
        beats: tokio::task::JoinHandle<()>,
    }

    impl Bed {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
            let original = member(&store, dir.path(), "one", Arc::new(NoGuard));
            original.join().await.expect("joined");
            let (vm, generation) = (VmId(uuid::Uuid::from_u128(1)), Generation(1));
            let (project, node) = (Name::known("default"), original.name.clone());
            let owner = Owner { vm, project, node, epoch: original.epoch(), generation, to: None };
            store.txn(Txn::default().then(typed::put(keys::owner(vm), &owner))).await.expect("written");
            let stop = CancellationToken::new();
            let beats = tokio::spawn(heartbeat::run(store.clone(), original.clone(), stop.clone()));
            let bed = Self { store, dir, original, stop, beats };
            bed.beat_after(None).await;
            bed
        }

        async fn beat(&self) -> Option<Revision> {
            self.store.get(&keys::heartbeat(&self.original.name)).await.expect("a read").map(|kv| kv.modified)
        }

        /// Until there is a heartbeat later than this one.
        async fn beat_after(&self, before: Option<Revision>) {
            let began = Instant::now();
            while self.beat().await <= before {
                assert!(began.elapsed() < PATIENCE, "no heartbeat");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        /// Its epoch, the ways it would die, who owns what: with the revisions they were written at.
        async fn cluster(&self) -> Vec<vmkeep_store::KeyValue> {
            let name = &self.original.name;
            let (epoch, armed) = (keys::epoch(name), keys::armed(name, self.original.epoch()));
            self.store.list_many(&[&epoch, &armed, keys::ALL_OWNERS, &keys::waiting(name)]).await.expect("a listing").items
        }
    }

    /// A copied disk: the same name, the same certificates, another boot.
    #[tokio::test]
    async fn a_clone_of_a_host_that_lives_begins_nothing() {
        let bed = Bed::new().await;
        let clone = member(&bed.store, bed.dir.path(), "two", Arc::new(NoGuard));
        let before = bed.cluster().await;
        assert_eq!(before.len(), 3, "{before:?}");
        let mut joining = std::pin::pin!(clone.join());
        let (seen, node) = (bed.beat().await, bed.original.clone());
        let refused = tokio::select! {
            // To where it waits; the store is in memory.
            biased;
            told = &mut joining => told,
            () = async { node.standing.stirred.notify_one(); bed.beat_after(seen).await } => {
                tokio::time::pause();
                joining.await
            }
        };
        let refused = refused.expect_err("the other one lives").to_string();
        expect_test::expect!["the store refuses this host: another host runs as node1 and lives: its heartbeat goes on"]
            .assert_eq(&refused);
        assert_eq!(bed.cluster().await, before);
        assert_eq!(clone.epoch(), Epoch(0), "it has no life here");
        assert!(bed.original.this_life().await.expect("a read").is_some(), "the first one's goes on");
    }

    #[tokio::test]
    async fn a_new_boot_of_a_silent_host_begins_the_next_life() {
        let mut bed = Bed::new().await;
        bed.stop.cancel();
        (&mut bed.beats).await.expect("it ends");
        tokio::time::pause();
        let (asked, node) = (tokio::time::Instant::now(), member(&bed.store, bed.dir.path(), "two", Arc::new(NoGuard)));
        node.join().await.expect("nobody else lives");
        assert!(asked.elapsed() >= Duration::from_millis(SUSPECT_MS), "it has looked for as long as others wait for a heartbeat");
        assert_eq!(node.epoch(), bed.original.epoch().next());
        assert!(node.this_life().await.expect("a read").is_some());
        assert!(bed.original.this_life().await.expect("a read").is_none(), "the one before is over");
    }
}
