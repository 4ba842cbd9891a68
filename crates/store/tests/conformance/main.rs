//! What every store must do, as functions over a fresh store; run on the embedded one, on a file and in memory, and on a real
//! etcd.
//!
//! [`embedded`] and [`crash`] are about files only, [`etcd`] about what only a server can suffer, [`members`] about several of them.

mod crash;
mod embedded;
mod etcd;
mod lead;
mod limits;
mod members;
mod read;
mod txn;
mod watch;

use std::sync::Arc;

use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{KeyValue, Op, Store, Txn, TxnOutcome};
use vmkeep_types::ids::Revision;

/// A store that tasks can share.
type Shared = Arc<dyn Store>;

/// A fresh store, and what must outlive it.
fn on_file() -> (Shared, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = EmbeddedStore::open(&dir.path().join("store.db")).expect("a new store");
    (Arc::new(store), dir)
}

fn in_memory() -> (Shared, ()) {
    (Arc::new(EmbeddedStore::in_memory().expect("memory")), ())
}

async fn on_etcd() -> (Shared, etcd::Etcd) {
    let etcd = etcd::Etcd::start(&[]);
    (Arc::new(etcd.connect().await), etcd)
}

macro_rules! on_stores {
    ($($cases:ident { $($case:ident)* })*) => { $(
        mod $cases {
            $(
                mod $case {
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn on_etcd() {
                        let (store, _etcd) = crate::on_etcd().await;
                        crate::$cases::$case(store).await;
                    }

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn on_file() {
                        let (store, _dir) = crate::on_file();
                        crate::$cases::$case(store).await;
                    }

                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn in_memory() {
                        let (store, ()) = crate::in_memory();
                        crate::$cases::$case(store).await;
                    }
                }
            )*
        }
    )* };
}

mod conformance {
    on_stores! {
        txn {
            compares branches one_revision unwritten_branches created_and_modified deletes
            reads_its_own_writes concurrent_increments contradictions
        }
        read { order_and_prefixes consistent_under_writes }
        watch { from_the_past from_the_future deletions no_gap_under_writes list_then_watch slow_watcher }
        lead { one_leads hand_over_on_expiry resigned stale_resignation }
        limits { ops values bytes nothing_left_behind }
    }
}

fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Op {
    Op::Put(key.into(), value.into())
}

async fn write(store: &Shared, ops: impl IntoIterator<Item = Op>) -> Revision {
    run(store, Txn { then: ops.into_iter().collect(), ..Txn::default() }).await.revision
}

async fn run(store: &Shared, txn: Txn) -> TxnOutcome {
    store.txn(txn).await.expect("a transaction within the limits")
}

async fn get(store: &Shared, key: &str) -> Option<KeyValue> {
    store.get(key).await.expect("a read")
}

async fn keys(store: &Shared, prefix: &str) -> Vec<String> {
    store.list(prefix).await.expect("a read").items.into_iter().map(|kv| kv.key).collect()
}
