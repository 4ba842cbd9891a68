//! Transactions: compares, branches, revisions.

use vmkeep_store::{Compare, Held, Op, StoreError, Txn};

use crate::{Shared, get, keys, put, run, write};

pub async fn compares(store: Shared) {
    let first = write(&store, [put("a", "1"), put("dir/x", "x")]).await;
    let second = write(&store, [put("b", "2")]).await;
    let cases = [
        (Compare::Absent("c".into()), Held::Yes),
        (Compare::Absent("a".into()), Held::No),
        (Compare::Present("a".into()), Held::Yes),
        (Compare::Present("c".into()), Held::No),
        (Compare::ModifiedAt("a".into(), first), Held::Yes),
        (Compare::ModifiedAt("a".into(), second), Held::No),
        (Compare::ModifiedAt("c".into(), first), Held::No),
        (Compare::ValueIs("b".into(), b"2".to_vec()), Held::Yes),
        (Compare::ValueIs("b".into(), b"22".to_vec()), Held::No),
        (Compare::ValueIs("c".into(), Vec::new()), Held::No),
        (Compare::PrefixEmpty("di/".into()), Held::Yes),
        (Compare::PrefixEmpty("dir/y".into()), Held::Yes),
        (Compare::PrefixEmpty("dir/".into()), Held::No),
        (Compare::PrefixEmpty("dir/x".into()), Held::No),
    ];
    for (compare, held) in &cases {
        assert_eq!(run(&store, Txn::default().when(compare.clone())).await.held, *held, "{compare:?}");
        let with_one_that_fails = Txn::default().when(compare.clone()).when(Compare::Absent("a".into()));
        assert_eq!(run(&store, with_one_that_fails).await.held, Held::No, "all must hold: {compare:?}");
    }
    assert_eq!(run(&store, Txn::default()).await.held, Held::Yes, "no compare, nothing to fail");
}

pub async fn branches(store: Shared) {
    write(&store, [put("a", "1"), put("b", "2")]).await;
    let txn = |compare| {
        let txn = Txn::default().when(compare).then(put("ran", "then")).then(Op::Get("b".into())).then(Op::Get("none".into()));
        txn.then(Op::Get("a".into())).otherwise(put("ran", "otherwise")).otherwise(Op::Get("a".into()))
    };
    let values = |gets: Vec<Option<vmkeep_store::KeyValue>>| gets.into_iter().map(|kv| kv.map(|kv| kv.value)).collect::<Vec<_>>();

    let outcome = run(&store, txn(Compare::Present("a".into()))).await;
    assert_eq!(outcome.held, Held::Yes);
    assert_eq!(values(outcome.gets), [Some(b"2".to_vec()), None, Some(b"1".to_vec())], "in the order of the ops");
    assert_eq!(get(&store, "ran").await.expect("written").value, b"then");

    let outcome = run(&store, txn(Compare::Absent("a".into()))).await;
    assert_eq!(outcome.held, Held::No);
    assert_eq!(values(outcome.gets), [Some(b"1".to_vec())]);
    assert_eq!(get(&store, "ran").await.expect("written").value, b"otherwise");
}

pub async fn one_revision(store: Shared) {
    let before = store.revision().await.expect("a read");
    let at = write(&store, [put("a", "1"), put("b", "1"), put("c", "1")]).await;
    assert_eq!(at, before.next(), "one transaction, one revision");
    for key in ["a", "b", "c"] {
        let kv = get(&store, key).await.expect("written");
        assert_eq!((kv.created, kv.modified), (at, at));
    }
    assert_eq!(store.revision().await, Ok(at));
    assert_eq!(store.list("").await.expect("a read").revision, at);
}

pub async fn unwritten_branches(store: Shared) {
    let at = write(&store, [put("a", "1")]).await;
    let idle = [
        Txn::default(),
        Txn::default().then(Op::Get("a".into())),
        Txn::default().then(Op::Delete("none".into())),
        Txn::default().then(Op::DeletePrefix("none/".into())),
        Txn::default().when(Compare::Absent("a".into())).then(put("b", "1")),
        Txn::default().when(Compare::Present("a".into())).otherwise(put("b", "1")),
    ];
    for txn in idle {
        assert_eq!(run(&store, txn.clone()).await.revision, at, "{txn:?}");
    }
    assert_eq!(store.revision().await, Ok(at));
    assert_eq!(write(&store, [put("a", "1")]).await, at.next(), "the same value is a write all the same");
}

pub async fn created_and_modified(store: Shared) {
    let born = write(&store, [put("a", "1")]).await;
    let changed = write(&store, [put("a", "2")]).await;
    let kv = get(&store, "a").await.expect("written");
    assert_eq!((kv.created, kv.modified), (born, changed));
    write(&store, [Op::Delete("a".into())]).await;
    assert_eq!(get(&store, "a").await, None);
    let again = write(&store, [put("a", "3")]).await;
    let kv = get(&store, "a").await.expect("written");
    assert_eq!((kv.created, kv.modified), (again, again), "a new life");
}

pub async fn deletes(store: Shared) {
    let all = ["a", "a/", "a/1", "a/2", "a0", "ab"];
    write(&store, all.map(|key| put(key, "1"))).await;
    write(&store, [Op::Delete("a".into())]).await;
    assert_eq!(keys(&store, "").await, ["a/", "a/1", "a/2", "a0", "ab"], "one key, not its neighbours");
    write(&store, [Op::DeletePrefix("a/".into())]).await;
    assert_eq!(keys(&store, "").await, ["a0", "ab"]);
    write(&store, [Op::DeletePrefix(String::new())]).await;
    assert_eq!(keys(&store, "").await, [""; 0]);
}

pub async fn reads_its_own_writes(store: Shared) {
    write(&store, [put("old", "1")]).await;
    let txn = Txn::default().then(put("new", "2")).then(Op::Get("new".into())).then(Op::Delete("old".into())).then(Op::Get("old".into()));
    let outcome = run(&store, txn).await;
    let seen = outcome.gets[0].as_ref().expect("written before the get");
    assert_eq!((seen.value.as_slice(), seen.modified), (b"2".as_slice(), outcome.revision));
    assert_eq!(outcome.gets[1], None);
}

/// Compare-and-swap loses no update.
pub async fn concurrent_increments(store: Shared) {
    const TASKS: u64 = 8;
    const EACH: u64 = 20;
    write(&store, [put("n", "0")]).await;
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..EACH {
                while increment(&store).await == Held::No {}
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    assert_eq!(get(&store, "n").await.expect("a counter").value, (TASKS * EACH).to_string().into_bytes());
}

async fn increment(store: &Shared) -> Held {
    let kv = get(store, "n").await.expect("a counter");
    let n: u64 = String::from_utf8(kv.value).expect("digits").parse().expect("a number");
    run(store, Txn::default().when(Compare::ModifiedAt("n".into(), kv.modified)).then(put("n", (n + 1).to_string()))).await.held
}

/// etcd refuses them, so no store may take them.
pub async fn contradictions(store: Shared) {
    let before = store.revision().await.expect("a read");
    let refused = [
        vec![put("a", "1"), put("a", "2")],
        vec![put("a", "1"), Op::Delete("a".into())],
        vec![Op::DeletePrefix("a/".into()), put("a/b", "1")],
    ];
    for ops in refused {
        let outcome = store.txn(Txn { then: ops.clone(), ..Txn::default() }).await;
        assert!(matches!(outcome, Err(StoreError::Invalid(_))), "{ops:?}: {outcome:?}");
        let outcome = store.txn(Txn { otherwise: ops.clone(), ..Txn::default() }).await;
        assert!(matches!(outcome, Err(StoreError::Invalid(_))), "the branch that does not run: {ops:?}: {outcome:?}");
    }
    assert_eq!(store.revision().await, Ok(before), "nothing was written");
    write(&store, [put("a0", "1"), Op::DeletePrefix("a/".into()), Op::Delete("a".into())]).await;
    run(&store, Txn::default().when(Compare::Present("a0".into())).then(put("b", "1")).otherwise(put("b", "2"))).await;
    assert_eq!(keys(&store, "").await, ["a0", "b"]);
}
