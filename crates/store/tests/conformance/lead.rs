//! The leader lease.

use std::time::{Duration, Instant};

use vmkeep_store::{Compare, Held, Leadership, Txn};

use crate::{Shared, put, run};

/// Never expires within a test.
const LONG: Duration = Duration::from_secs(600);
/// The shortest that etcd grants.
const SHORT: Duration = Duration::from_secs(1);

async fn lead(store: &Shared, candidate: &str, ttl: Duration) -> Option<Leadership> {
    store.lead(candidate, ttl).await.expect("the store answers")
}

/// A write as leaders write.
pub async fn write_as(store: &Shared, leader: &Leadership) -> Held {
    run(store, Txn::default().when(Compare::ModifiedAt(leader.key.clone(), leader.revision)).then(put("by-leader", "1"))).await.held
}

pub async fn one_leads(store: Shared) {
    let first = lead(&store, "one", LONG).await.expect("nobody leads yet");
    assert_eq!(lead(&store, "two", LONG).await, None);
    assert_eq!(lead(&store, "one", LONG).await, Some(first.clone()), "kept, with the same revision");
    assert_eq!(write_as(&store, &first).await, Held::Yes);
}

pub async fn hand_over_on_expiry(store: Shared) {
    let begin = Instant::now();
    let first = lead(&store, "one", SHORT).await.expect("nobody leads yet");
    let second = loop {
        assert!(begin.elapsed() < Duration::from_secs(20), "the lease never ends");
        match lead(&store, "two", LONG).await {
            Some(second) => break second,
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(begin.elapsed() >= SHORT - Duration::from_millis(100), "not before its end");
    assert!(second.revision > first.revision);
    assert_eq!(write_as(&store, &first).await, Held::No, "a leader that slept writes nothing");
    assert_eq!(write_as(&store, &second).await, Held::Yes);
    assert_eq!(lead(&store, "one", LONG).await, None);
}

pub async fn resigned(store: Shared) {
    let first = lead(&store, "one", LONG).await.expect("nobody leads yet");
    store.resign(&first).await.expect("the store answers");
    assert_eq!(write_as(&store, &first).await, Held::No);
    let second = lead(&store, "two", LONG).await.expect("at once");
    assert!(second.revision > first.revision);
}

/// A resignation that comes late does not unseat the next leader.
pub async fn stale_resignation(store: Shared) {
    let first = lead(&store, "one", LONG).await.expect("nobody leads yet");
    store.resign(&first).await.expect("the store answers");
    let second = lead(&store, "two", LONG).await.expect("at once");
    store.resign(&first).await.expect("the store answers");
    assert_eq!(lead(&store, "one", LONG).await, None);
    assert_eq!(write_as(&store, &second).await, Held::Yes);
}
