//! Watches: replay, live, in order, without gaps.

use std::collections::BTreeMap;
use std::time::Duration;

use vmkeep_store::{Change, Op, StoreError, WATCH_QUEUE_MAX, Watch, WatchBatch};
use vmkeep_types::ids::Revision;

use crate::{Shared, put, write};

/// Long enough for a loaded machine, short enough for a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

async fn watch(store: &Shared, prefix: &str, from: Revision) -> Watch {
    store.watch(prefix, from).await.expect("not compacted")
}

async fn next(watch: &mut Watch) -> WatchBatch {
    tokio::time::timeout(PATIENCE, watch.recv()).await.expect("an event in time").expect("not closed").expect("not compacted")
}

/// `a=1 -b`: what a batch says.
fn told(batch: &WatchBatch) -> String {
    let one = |change: &Change| match change {
        Change::Put(kv) => {
            assert_eq!(kv.modified, batch.revision);
            format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value))
        }
        Change::Deleted { key, at } => {
            assert_eq!(*at, batch.revision);
            format!("-{key}")
        }
    };
    batch.changes.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// The revision that the next write gets.
async fn first_write(store: &Shared) -> u64 {
    store.revision().await.expect("a read").0 + 1
}

async fn write_many(store: &Shared, prefix: &str, count: usize) {
    let tasks = (0..32).map(|task| {
        let (store, prefix) = (store.clone(), prefix.to_owned());
        tokio::spawn(async move {
            for n in (task..count).step_by(32) {
                write(&store, [put(format!("{prefix}{n}"), n.to_string())]).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
}

pub async fn from_the_past(store: Shared) {
    let first = write(&store, [put("a/1", "1"), put("b/1", "1"), put("a/2", "1")]).await;
    let second = write(&store, [put("b/1", "2")]).await;
    let third = write(&store, [put("a/1", "3")]).await;
    let mut all = watch(&store, "", first).await;
    assert_eq!(told(&next(&mut all).await), "a/1=1 b/1=1 a/2=1", "a transaction in one piece, in its order");
    assert_eq!(told(&next(&mut all).await), "b/1=2");
    let mut some = watch(&store, "a/", second).await;
    let batch = next(&mut some).await;
    assert_eq!((batch.revision, told(&batch).as_str()), (third, "a/1=3"), "only its prefix, only from there");
    let Change::Put(kv) = &batch.changes[0] else { panic!("a put: {batch:?}") };
    assert_eq!(kv.created, first);
    write(&store, [put("b/9", "4"), put("a/9", "4"), put("a", "4"), put("a0", "4")]).await;
    assert_eq!(told(&next(&mut some).await), "a/9=4", "goes on live");
    let mut beginning = watch(&store, "a/", Revision(0)).await;
    assert_eq!(told(&next(&mut beginning).await), "a/1=1 a/2=1", "revision 0 means the first");
}

pub async fn from_the_future(store: Shared) {
    let at = write(&store, [put("a", "1")]).await;
    let mut watch = watch(&store, "a", Revision(at.0 + 3)).await;
    for n in 2..=5 {
        write(&store, [put("a", n.to_string())]).await;
    }
    assert_eq!(told(&next(&mut watch).await), "a=4", "revisions before the asked one are not told");
    assert_eq!(told(&next(&mut watch).await), "a=5");
}

pub async fn deletions(store: Shared) {
    let at = write(&store, ["a/1", "a/2", "a/3", "b/1"].map(|key| put(key, "1"))).await;
    let mut live = watch(&store, "a/", at.next()).await;
    write(&store, [Op::Delete("a/2".into()), Op::Delete("b/1".into())]).await;
    write(&store, [Op::DeletePrefix(String::new()), Op::Delete("none".into())]).await;
    let mut replayed = watch(&store, "a/", at.next()).await;
    for watch in [&mut live, &mut replayed] {
        assert_eq!(told(&next(watch).await), "-a/2");
        assert_eq!(told(&next(watch).await), "-a/1 -a/3");
    }
}

/// Watchers that begin at any moment of a storm of writes see every revision, once, in order.
pub async fn no_gap_under_writes(store: Shared) {
    const WRITES: usize = 600;
    let first = first_write(&store).await;
    let storm = tokio::spawn({
        let store = store.clone();
        async move { write_many(&store, "k/", WRITES).await }
    });
    let mut watchers = Vec::new();
    while watchers.len() < 2 || (!storm.is_finished() && watchers.len() < 200) {
        let from = Revision(first.max(store.revision().await.expect("a read").0 / 2));
        let mut events = watch(&store, "k/", from).await;
        watchers.push(tokio::spawn(async move {
            for expected in from.0..first + WRITES as u64 {
                assert_eq!(next(&mut events).await.revision.0, expected);
            }
        }));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    storm.await.expect("no panic");
    for watcher in watchers {
        watcher.await.expect("every revision, once, in order");
    }
}

/// What every client does: list, watch from the revision after, and the copy stays equal.
pub async fn list_then_watch(store: Shared) {
    const WRITES: usize = 400;
    let storm = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..WRITES {
                let key = format!("k/{}", n % 7);
                let op = if n % 5 == 4 { Op::Delete(key) } else { put(key, n.to_string()) };
                write(&store, [op, put("beat", n.to_string())]).await;
            }
        }
    });
    while store.revision().await.expect("a read").0 < WRITES as u64 / 4 {
        tokio::task::yield_now().await;
    }
    let listing = store.list("").await.expect("a read");
    let mut copy: BTreeMap<String, Vec<u8>> = listing.items.into_iter().map(|kv| (kv.key, kv.value)).collect();
    let mut events = watch(&store, "", listing.revision.next()).await;
    while copy.get("beat").is_none_or(|beat| *beat != (WRITES - 1).to_string().into_bytes()) {
        for change in next(&mut events).await.changes {
            match change {
                Change::Put(kv) => drop(copy.insert(kv.key, kv.value)),
                Change::Deleted { key, .. } => drop(copy.remove(&key)),
            }
        }
    }
    storm.await.expect("no panic");
    let truth = store.list("").await.expect("a read").items;
    assert_eq!(copy, truth.into_iter().map(|kv| (kv.key, kv.value)).collect());
}

/// Who does not read is told so in the end, and holds nobody else up.
pub async fn slow_watcher(store: Shared) {
    let count = (WATCH_QUEUE_MAX + 100) as u64;
    let first = first_write(&store).await;
    let mut slow = watch(&store, "k/", Revision(first)).await;
    let mut quick = watch(&store, "k/", Revision(first)).await;
    let reader = tokio::spawn(async move {
        for expected in first..first + count {
            assert_eq!(next(&mut quick).await.revision.0, expected);
        }
    });
    write_many(&store, "k/", WATCH_QUEUE_MAX + 100).await;
    reader.await.expect("the quick one misses nothing");
    for expected in first..first + WATCH_QUEUE_MAX as u64 {
        assert_eq!(next(&mut slow).await.revision.0, expected, "what it has is without gaps");
    }
    let last = slow.recv().await.expect("told why");
    assert!(matches!(last, Err(StoreError::Compacted { .. })), "{last:?}");
    assert_eq!(slow.recv().await, None, "and closed");
}

/// Far more writes than any store keeps: old revisions are refused by name, the rest is whole, values are all there.
pub async fn history_ends(store: Shared) {
    const WRITES: usize = 11_500;
    let mut live = watch(&store, "k/", Revision(1)).await;
    let reader = tokio::spawn(async move {
        for expected in 1..=WRITES as u64 {
            assert_eq!(next(&mut live).await.revision.0, expected, "compaction is not seen by who keeps up");
        }
    });
    write_many(&store, "k/", WRITES).await;
    reader.await.expect("every revision");
    let mut refused = store.watch("k/", Revision(1)).await.map(|_| "a watch");
    for _ in 0..100 {
        if refused.is_err() {
            break;
        }
        // The history is shortened after the answers of a commit.
        tokio::time::sleep(Duration::from_millis(20)).await;
        refused = store.watch("k/", Revision(1)).await.map(|_| "a watch");
    }
    let Err(StoreError::Compacted { asked: Revision(1), oldest }) = refused else { panic!("{refused:?}") };
    let mut rest = watch(&store, "k/", oldest).await;
    for expected in oldest.0..=WRITES as u64 {
        assert_eq!(next(&mut rest).await.revision.0, expected);
    }
    let before = store.watch("k/", Revision(oldest.0 - 1)).await.map(|_| "a watch");
    assert_eq!(before, Err(StoreError::Compacted { asked: Revision(oldest.0 - 1), oldest }));
    assert_eq!(store.list("k/").await.expect("a read").items.len(), WRITES);
}
