//! Stores that an older vmkeep wrote, brought to today's key layout.
//!
//! ```text
//!  level 1                          level 2
//!  run/N/UID, stopped/N/UID/G  ──►  n/N/run/UID, n/N/stopped/UID/G
//!  armed/N/E, epoch/N          ──►  n/N/armed/E, n/N/epoch and joined/N
//! ```
//! Each transaction moves some keys whole, from the old place to the new one; the last one raises the level, and only while
//! nothing is left behind. A crash anywhere leaves a store of level 1 with fewer old keys, and the next start goes on. An older
//! vmkeep refuses the new level, so nobody looks for the old keys any more.
//!
//! Further levels move nothing: they say which records there may be. A host alone takes the newest; in a cluster an operator
//! raises the level, when every member knows it.

use crate::keys::{ALL_MEMBERS, LEVEL, LEVEL_NOW, LEVEL_OLDEST};
use crate::{Compare, Held, KeyValue, Op, Store, StoreError, Txn, typed};

/// Prefixes of level 1 that agents wrote to.
const OLD: [&str; 4] = ["run/", "stopped/", "armed/", "epoch/"];
/// Keys of one transaction: each is a compare and up to three writes.
const MOVES_PER_TXN: usize = 30;

/// Raises a store to [`LEVEL_OLDEST`], and one without members to [`LEVEL_NOW`]. Called once at the start of a control plane, before anything else is read.
///
/// # Errors
/// The store's.
pub async fn upgrade(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        let Some(level) = typed::get_json::<u64>(store, LEVEL).await? else { return Ok(()) };
        if level.value >= LEVEL_OLDEST {
            let raise = Txn::default().when(Compare::ModifiedAt(LEVEL.into(), level.modified)).then(typed::put(LEVEL, &LEVEL_NOW));
            if level.value < LEVEL_NOW {
                store.txn(raise.when(Compare::PrefixEmpty(ALL_MEMBERS.into()))).await?;
            }
            return Ok(());
        }
        let old = store.list_many(&OLD).await?.items;
        for part in old.chunks(MOVES_PER_TXN) {
            store.txn(part.iter().fold(Txn::default(), moved)).await?;
        }
        let raise = Txn::default().when(Compare::ModifiedAt(LEVEL.into(), level.modified)).then(typed::put(LEVEL, &LEVEL_OLDEST));
        let raise = OLD.iter().fold(raise, |txn, old| txn.when(Compare::PrefixEmpty((*old).into())));
        if store.txn(raise).await?.held == Held::Yes {
            tracing::info!(keys = old.len(), level = LEVEL_OLDEST, "the store has today's layout");
        }
    }
}

fn moved(txn: Txn, old: &KeyValue) -> Txn {
    let txn = txn.when(Compare::ModifiedAt(old.key.clone(), old.modified)).then(Op::Delete(old.key.clone()));
    let (kind, rest) = old.key.split_once('/').expect("it was found by a prefix with one");
    let (node, rest) = rest.split_once('/').unwrap_or((rest, ""));
    if kind == "epoch" {
        let joined = Op::Put(format!("joined/{node}"), Vec::new());
        return txn.then(Op::Put(format!("n/{node}/epoch"), old.value.clone())).then(joined);
    }
    txn.then(Op::Put(format!("n/{node}/{kind}/{rest}"), old.value.clone()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::embedded::EmbeddedStore;

    fn put(key: &str, value: &str) -> Op {
        Op::Put(key.into(), value.into())
    }

    async fn told(store: &EmbeddedStore) -> String {
        let all = store.list("").await.expect("a listing").items;
        let line = |kv: KeyValue| format!("{} = {}\n", kv.key, String::from_utf8_lossy(&kv.value));
        all.into_iter().map(line).collect()
    }

    /// As the release before wrote it.
    async fn level_1() -> EmbeddedStore {
        let store = EmbeddedStore::in_memory().expect("memory");
        let keys = [
            put(LEVEL, "1"),
            put("epoch/node1", r#"{"epoch":3,"boot_id":"b"}"#),
            put("armed/node1/3", r#"{"mode":"none"}"#),
            put("run/node1/u1", "claim"),
            put("stopped/node1/u1/2", ""),
            put("owner/u1", "owner"),
            put("n/node1/facts", "facts"),
        ];
        store.txn(Txn { then: keys.to_vec(), ..Txn::default() }).await.expect("written");
        store
    }

    const NEW: &str = r#"cluster/level = 8
joined/node1 = 
n/node1/armed/3 = {"mode":"none"}
n/node1/epoch = {"epoch":3,"boot_id":"b"}
n/node1/facts = facts
n/node1/run/u1 = claim
n/node1/stopped/u1/2 = 
owner/u1 = owner
"#;

    #[tokio::test]
    async fn a_store_of_level_1_is_moved_once() {
        let store = level_1().await;
        upgrade(&store).await.expect("moved");
        assert_eq!(told(&store).await, NEW);
        let before = store.revision().await.expect("a revision");
        upgrade(&store).await.expect("nothing to do");
        assert_eq!(store.revision().await.expect("a revision"), before);
    }

    #[tokio::test]
    async fn what_a_crash_left_half_moved_is_moved_on() {
        let store = level_1().await;
        let first = store.list("run/").await.expect("a listing").items.remove(0);
        store.txn(moved(Txn::default(), &first)).await.expect("one key moved");
        upgrade(&store).await.expect("moved");
        assert_eq!(told(&store).await, NEW);
    }

    #[tokio::test]
    async fn a_cluster_keeps_its_level_until_an_operator_raises_it() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let keys = [put(LEVEL, "2"), put("cluster/member/node1", "{}")];
        store.txn(Txn { then: keys.to_vec(), ..Txn::default() }).await.expect("written");
        upgrade(&store).await.expect("nothing to do");
        assert_eq!(told(&store).await, "cluster/level = 2\ncluster/member/node1 = {}\n");
    }

    #[tokio::test]
    async fn many_keys_take_many_transactions() {
        let store = level_1().await;
        for n in 0..100 {
            store.txn(Txn::default().then(put(&format!("run/node1/x{n}"), ""))).await.expect("written");
        }
        upgrade(&store).await.expect("moved");
        assert_eq!(store.list("n/node1/run/").await.expect("a listing").items.len(), 101);
        expect![[r#"Ok(None)"#]].assert_eq(&format!("{:?}", store.get("run/node1/u1").await));
    }
}
