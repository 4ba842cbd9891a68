//! What every store refuses before it writes anything: too many operations, values too large, branches that contradict themselves.

use std::collections::BTreeSet;

use crate::{Compare, Op, StoreError, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, VALUE_BYTES_MAX};

pub fn check(txn: &Txn) -> Result<(), StoreError> {
    let count = txn.compare.len().max(txn.then.len()).max(txn.otherwise.len());
    if count > TXN_OPS_MAX {
        return Err(StoreError::TooLarge(format!("{count} compares or operations, the limit is {TXN_OPS_MAX}")));
    }
    check_branch(&txn.then)?;
    check_branch(&txn.otherwise)?;
    let bytes = txn.compare.iter().map(compared).chain(txn.then.iter().chain(&txn.otherwise).map(carried)).sum::<usize>();
    if bytes > TXN_BYTES_MAX {
        return Err(StoreError::TooLarge(format!("the transaction has {bytes} bytes, the limit is {TXN_BYTES_MAX}")));
    }
    Ok(())
}

fn compared(compare: &Compare) -> usize {
    match compare {
        Compare::ValueIs(key, value) => key.len() + value.len(),
        Compare::Absent(key) | Compare::Present(key) | Compare::ModifiedAt(key, _) | Compare::PrefixEmpty(key) => key.len(),
    }
}

fn carried(op: &Op) -> usize {
    match op {
        Op::Put(key, value) => key.len() + value.len(),
        Op::Delete(key) | Op::DeletePrefix(key) | Op::Get(key) => key.len(),
    }
}

/// Values fit, and no key is written twice: etcd refuses a branch that puts a key again or also deletes it.
fn check_branch(ops: &[Op]) -> Result<(), StoreError> {
    let mut put = BTreeSet::new();
    for op in ops {
        let Op::Put(key, value) = op else { continue };
        if value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge(format!("the value of '{key}' has {} bytes, the limit is {VALUE_BYTES_MAX}", value.len())));
        }
        if !put.insert(key.as_str()) {
            return Err(StoreError::Invalid(format!("'{key}' is put twice")));
        }
    }
    let hit = ops.iter().find_map(|op| match op {
        Op::Delete(key) => put.get(key.as_str()),
        Op::DeletePrefix(prefix) => put.range(prefix.as_str()..).next().filter(|key| key.starts_with(prefix)),
        Op::Put(..) | Op::Get(_) => None,
    });
    hit.map_or(Ok(()), |key| Err(StoreError::Invalid(format!("'{key}' is put and deleted"))))
}
