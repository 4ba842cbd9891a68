//! Reads: order, prefixes, one revision for several prefixes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Shared, keys, put, write};

pub async fn order_and_prefixes(store: Shared) {
    let mixed = ["b", "a/10", "a/9", "A", "a", "a-", "a/é", "a/z", "a0"];
    for key in mixed {
        write(&store, [put(key, key)]).await;
    }
    assert_eq!(keys(&store, "").await, ["A", "a", "a-", "a/10", "a/9", "a/z", "a/é", "a0", "b"], "by bytes");
    assert_eq!(keys(&store, "a/").await, ["a/10", "a/9", "a/z", "a/é"]);
    assert_eq!(keys(&store, "a/é").await, ["a/é"]);
    assert_eq!(keys(&store, "c").await, [""; 0]);
    let many = store.list_many(&["b", "a/"]).await.expect("a read");
    assert_eq!(many.items.iter().map(|kv| kv.key.as_str()).collect::<Vec<_>>(), ["b", "a/10", "a/9", "a/z", "a/é"], "prefix by prefix");
    assert_eq!(many.items[0].value, b"b");
    let mut parts = Vec::new();
    let at = store.visit(&["b", "a/"], &mut |part| parts.extend(part)).await.expect("a read");
    assert_eq!((at, parts), (many.revision, many.items), "part by part it is the same");
    let first = async |prefix, count| {
        let found = store.first(prefix, count).await.expect("a read");
        found.into_iter().map(|kv| kv.key).collect::<Vec<_>>()
    };
    assert_eq!(first("a/", 2).await, ["a/10", "a/9"]);
    assert_eq!(first("a/", 9).await, ["a/10", "a/9", "a/z", "a/é"]);
    assert_eq!(first("c", 1).await, [""; 0]);
}

/// Two keys are always written together; no view may show them apart, nor a revision that does not fit them.
pub async fn consistent_under_writes(store: Shared) {
    const WRITES: u64 = 300;
    let over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, over) = (store.clone(), over.clone());
        async move {
            for n in 0..WRITES {
                write(&store, [put("x/1", n.to_string()), put("y/1", n.to_string())]).await;
            }
            over.store(true, Ordering::SeqCst);
        }
    });
    let (mut views, mut newest) = (0, 0);
    while !over.load(Ordering::SeqCst) {
        let view = store.list_many(&["x/", "y/"]).await.expect("a read");
        if let [x, y] = view.items.as_slice() {
            assert_eq!((&x.value, x.modified), (&y.value, y.modified), "a torn view");
            assert_eq!(x.modified, view.revision, "every revision writes both");
            assert!(view.revision.0 >= newest, "time runs forward");
            newest = view.revision.0;
            views += 1;
        }
        tokio::task::yield_now().await;
    }
    writer.await.expect("no panic");
    assert!(views > 0, "some views were taken during the writes");
}
