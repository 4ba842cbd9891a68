//! The agent's sign of life: one transaction every 3 s, on a thread and a connection of its own, so that neither a busy agent nor
//! a long listing delays it.
//!
//! *If* the last heartbeat is ours, the epoch is this life's, and nobody sealed it, *then* the next heartbeat is written. Refused:
//! another agent runs under this node's name, or the node was given up; it says so and goes on trying. The store gone: VMs go
//! on, and it beats again when the store is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vmkeep_core::health::BEAT_MS;
use vmkeep_store::{Compare, Held, Store, StoreError, Txn, keys, typed};
use vmkeep_types::host::Heartbeat;
use vmkeep_types::ids::Revision;

use super::node::Node;

/// What the next heartbeat is compared with.
#[derive(Clone, Debug)]
struct Last {
    /// None: there is none yet.
    at: Option<Revision>,
    /// That the epoch is this life's.
    life: Compare,
    seq: u64,
}

/// Beats until `stop`.
pub async fn run(store: Arc<dyn Store>, node: Arc<Node>, stop: CancellationToken) {
    let mut tick = interval(Duration::from_millis(BEAT_MS));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<Last> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        last = match beat(store.as_ref(), &node, last).await {
            Ok(next) => Some(next),
            Err(Missed::Refused) => {
                tracing::error!(node = %node.name, "its heartbeat is refused: another agent runs under this name, or the node was given up");
                None
            }
            Err(Missed::Store(error)) => {
                tracing::warn!(%error, "the store takes no heartbeat; VMs go on");
                None
            }
        };
    }
}

#[derive(Debug)]
enum Missed {
    Refused,
    Store(StoreError),
}

impl From<StoreError> for Missed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn beat(store: &dyn Store, node: &Node, last: Option<Last>) -> Result<Last, Missed> {
    let key = keys::heartbeat(&node.name);
    let last = match last {
        Some(last) => last,
        None => {
            let found = store.get(&key).await?;
            let seq = found.as_ref().and_then(|kv| typed::decode::<Heartbeat>(kv).ok()).map_or(0, |beat| beat.seq);
            let life = node.this_life_in(store).await?.ok_or(Missed::Refused)?;
            Last { at: found.map(|kv| kv.modified), life, seq }
        }
    };
    let unchanged = last.at.map_or_else(|| Compare::Absent(key.clone()), |at| Compare::ModifiedAt(key.clone(), at));
    let next = Heartbeat { epoch: node.epoch(), seq: last.seq + 1 };
    let txn = Txn::default()
        .when(unchanged)
        .when(last.life.clone())
        .when(Compare::Absent(keys::fence(&node.name, next.epoch)))
        .then(typed::put(key, &next));
    let outcome = store.txn(txn).await?;
    match outcome.held {
        Held::Yes => Ok(Last { at: Some(outcome.revision), seq: next.seq, ..last }),
        Held::No => Err(Missed::Refused),
    }
}

#[cfg(test)]
mod tests {
    use vmkeep_store::Op;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::name::Name;

    use super::super::claim::tests::joined;
    use super::*;

    #[tokio::test]
    async fn a_heartbeat_goes_on_over_restarts_and_stops_when_another_lives() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let node = joined(&store, dir.path(), "one").await;
        let first = beat(store.as_ref(), &node, None).await.expect("the first");
        beat(store.as_ref(), &node, Some(first.clone())).await.expect("the second");
        assert!(matches!(beat(store.as_ref(), &node, Some(first)).await, Err(Missed::Refused)), "somebody else beat meanwhile");
        assert_eq!(beat(store.as_ref(), &node, None).await.expect("after a restart").seq, 3);
        let second = joined(&store, dir.path(), "two").await;
        assert!(matches!(beat(store.as_ref(), &node, None).await, Err(Missed::Refused)), "its life is over");
        beat(store.as_ref(), &second, None).await.expect("the living one");
        let seal = Op::Put(keys::fence(&Name::known("node1"), second.epoch()), Vec::new());
        store.txn(Txn::default().then(seal)).await.expect("sealed");
        assert!(matches!(beat(store.as_ref(), &second, None).await, Err(Missed::Refused)), "it is sealed");
    }
}
