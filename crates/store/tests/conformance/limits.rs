//! Limits: what is over them is refused before anything is written.

use vmkeep_store::{Compare, Op, StoreError, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX};

use crate::{Shared, get, put, run};

async fn refuse(store: &Shared, txn: Txn) {
    let outcome = store.txn(txn).await;
    assert!(matches!(outcome, Err(StoreError::TooLarge(_))), "{outcome:?}");
}

fn puts(count: usize) -> Vec<Op> {
    (0..count).map(|n| put(format!("k/{n}"), "v")).collect()
}

pub async fn ops(store: Shared) {
    let compares = |count: usize| (0..count).map(|n| Compare::Absent(format!("none/{n}"))).collect::<Vec<_>>();
    let full = Txn { compare: compares(TXN_OPS_MAX), then: puts(TXN_OPS_MAX), otherwise: puts(TXN_OPS_MAX) };
    run(&store, full).await;
    refuse(&store, Txn { compare: compares(TXN_OPS_MAX + 1), ..Txn::default() }).await;
    refuse(&store, Txn { then: puts(TXN_OPS_MAX + 1), ..Txn::default() }).await;
    refuse(&store, Txn { otherwise: puts(TXN_OPS_MAX + 1), ..Txn::default() }).await;
}

pub async fn values(store: Shared) {
    let largest: Vec<u8> = (0..VALUE_BYTES_MAX).map(|n| u8::try_from(n % 251).expect("small")).collect();
    run(&store, Txn::default().then(put("large", largest.clone()))).await;
    assert_eq!(get(&store, "large").await.expect("written").value, largest);
    run(&store, Txn::default().then(put("empty", ""))).await;
    assert_eq!(get(&store, "empty").await.expect("an empty value is a value").value, b"");
    refuse(&store, Txn::default().then(put("larger", vec![0; VALUE_BYTES_MAX + 1]))).await;
    refuse(&store, Txn::default().otherwise(put("larger", vec![0; VALUE_BYTES_MAX + 1]))).await;
}

/// Many values that each fit, together too much for one request to etcd.
pub async fn bytes(store: Shared) {
    let halves = |count: usize| (0..count).map(|n| put(format!("half/{n}"), vec![b'x'; VALUE_BYTES_MAX / 2])).collect::<Vec<_>>();
    run(&store, Txn { then: halves(2), ..Txn::default() }).await;
    refuse(&store, Txn { then: halves(3), ..Txn::default() }).await;
    refuse(&store, Txn { then: halves(2), otherwise: halves(1), ..Txn::default() }).await;
}

pub async fn nothing_left_behind(store: Shared) {
    let before = store.revision().await.expect("a read");
    refuse(&store, Txn::default().then(put("small", "1")).then(put("larger", vec![0; VALUE_BYTES_MAX + 1]))).await;
    assert_eq!(get(&store, "small").await, None);
    assert_eq!(store.revision().await, Ok(before));
}
