//! A transaction in etcd's words.

use etcd_client::{Compare as EtcdCompare, CompareOp, DeleteOptions, Txn as EtcdTxn, TxnOp, TxnOpResponse};

use super::error::Purpose;
use super::members::Members;
use super::{etcd_revision, key_value, kv, range_end, range_start, revision};
use crate::{Compare, Held, Op, StoreError, Txn, TxnOutcome, crash};

pub async fn run(members: &Members, txn: Txn) -> Result<TxnOutcome, StoreError> {
    let purpose = if writes(&txn) { Purpose::Write } else { Purpose::Read };
    let (then, otherwise) = (gets(&txn.then), gets(&txn.otherwise));
    let request = EtcdTxn::new()
        .when(txn.compare.iter().map(compare).collect::<Vec<_>>())
        .and_then(txn.then.into_iter().map(op).collect::<Vec<_>>())
        .or_else(txn.otherwise.into_iter().map(op).collect::<Vec<_>>());
    if purpose == Purpose::Write {
        crash::point("store.txn.before");
    }
    let answered = members.outcome(purpose, |client| {
        let (mut kv, request) = (kv(&client), request.clone());
        async move { kv.txn(request).await }
    });
    let answer = answered.await?;
    if purpose == Purpose::Write {
        crash::point("store.txn.after");
    }
    let held = if answer.succeeded() { Held::Yes } else { Held::No };
    let wanted = if held == Held::Yes { then } else { otherwise };
    let at = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let mut found = Vec::with_capacity(wanted);
    for response in answer.op_responses() {
        if let TxnOpResponse::Get(mut got) = response {
            found.push(got.take_kvs().pop().map(key_value).transpose()?);
        }
    }
    if found.len() != wanted {
        return Err(StoreError::Corrupt(format!("etcd answered {} of {wanted} reads of a transaction", found.len())));
    }
    Ok(TxnOutcome { held, revision: revision(at), gets: found })
}

fn writes(txn: &Txn) -> bool {
    txn.then.iter().chain(&txn.otherwise).any(|op| !matches!(op, Op::Get(_)))
}

fn gets(ops: &[Op]) -> usize {
    ops.iter().filter(|op| matches!(op, Op::Get(_))).count()
}

/// A key that is absent has revision 0 and no value; so has the only "key" of an empty range.
fn compare(compare: &Compare) -> EtcdCompare {
    match compare {
        Compare::Absent(key) => EtcdCompare::create_revision(key.as_str(), CompareOp::Equal, 0),
        Compare::Present(key) => EtcdCompare::create_revision(key.as_str(), CompareOp::Greater, 0),
        Compare::ModifiedAt(key, at) => EtcdCompare::mod_revision(key.as_str(), CompareOp::Equal, etcd_revision(*at)),
        Compare::ValueIs(key, value) => EtcdCompare::value(key.as_str(), CompareOp::Equal, value.as_slice()),
        Compare::PrefixEmpty(prefix) => {
            EtcdCompare::create_revision(range_start(prefix), CompareOp::Equal, 0).with_range(range_end(prefix))
        }
    }
}

fn op(op: Op) -> TxnOp {
    match op {
        Op::Put(key, value) => TxnOp::put(key, value, None),
        Op::Get(key) => TxnOp::get(key, None),
        Op::Delete(key) => TxnOp::delete(key, None),
        Op::DeletePrefix(prefix) => TxnOp::delete(range_start(&prefix), Some(DeleteOptions::new().with_range(range_end(&prefix)))),
    }
}
