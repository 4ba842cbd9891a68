//! The one thread that writes.

use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use vmkeep_types::ids::Revision;

use super::watchers::Watchers;
use super::{get_one, log, prefix_end, schema};
use crate::{Change, Compare, Held, KeyValue, Op, StoreError, Txn, TxnOutcome, WatchBatch, crash};

/// Transactions of one commit at most: bounds what a failed commit takes with it.
const GROUP_MAX: usize = 64;

pub struct Request {
    pub txn: Txn,
    pub answer: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

type Answer = (oneshot::Sender<Result<TxnOutcome, StoreError>>, TxnOutcome);

/// Starts the thread; it ends when the last sender of `queue` is gone.
pub fn spawn(connection: Arc<Mutex<Connection>>, queue: mpsc::Receiver<Request>, watchers: Arc<Watchers>, revision: Revision) {
    let writer = Writer { connection, watchers, revision };
    std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(queue)).expect("the system has room for a thread");
}

struct Writer {
    connection: Arc<Mutex<Connection>>,
    watchers: Arc<Watchers>,
    revision: Revision,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_MAX
                && let Ok(next) = queue.try_recv()
            {
                group.push(next);
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, group: Vec<Request>) {
        crash::point("store.txn.before");
        let (txns, senders): (Vec<Txn>, Vec<_>) = group.into_iter().map(|r| (r.txn, r.answer)).unzip();
        match self.write(&txns) {
            Ok((outcomes, batches)) => {
                crash::point("store.txn.after");
                self.revision = batches.last().map_or(self.revision, |batch| batch.revision);
                self.watchers.publish(&batches, self.revision);
                let answers: Vec<Answer> = senders.into_iter().zip(outcomes).collect();
                for (sender, outcome) in answers {
                    let _ = sender.send(Ok(outcome));
                }
                self.compact();
            }
            Err(error) => {
                let told = schema::failed(&error);
                for sender in senders {
                    let _ = sender.send(Err(told.clone()));
                }
            }
        }
    }

    /// All transactions of a group in one SQLite transaction; each sees what the ones before it wrote.
    fn write(&self, txns: &[Txn]) -> rusqlite::Result<(Vec<TxnOutcome>, Vec<WatchBatch>)> {
        let mut connection = self.connection.lock().expect("no panic holds this lock");
        let sql = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut revision = self.revision;
        let mut batches = Vec::new();
        let mut outcomes = Vec::with_capacity(txns.len());
        for txn in txns {
            let held = compare_all(&sql, &txn.compare)?;
            let ops = if held == Held::Yes { &txn.then } else { &txn.otherwise };
            let (changes, gets) = carry_out(&sql, ops, revision.next())?;
            if !changes.is_empty() {
                revision = revision.next();
                log::append(&sql, revision, &changes)?;
                batches.push(WatchBatch { revision, changes });
            }
            outcomes.push(TxnOutcome { held, revision, gets });
        }
        sql.commit()?;
        Ok((outcomes, batches))
    }

    fn compact(&self) {
        // The guard ends with this statement: a watcher takes its own lock first and this one second.
        let outcome = log::compact(&self.connection.lock().expect("no panic holds this lock"), self.revision);
        match outcome {
            Ok(Some(oldest)) => self.watchers.compacted(oldest),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the store's history was not shortened; it is tried again"),
        }
    }
}

fn compare_all(sql: &Connection, compares: &[Compare]) -> rusqlite::Result<Held> {
    for compare in compares {
        let holds = match compare {
            Compare::Absent(key) => get_one(sql, key)?.is_none(),
            Compare::Present(key) => get_one(sql, key)?.is_some(),
            Compare::ModifiedAt(key, revision) => get_one(sql, key)?.is_some_and(|kv| kv.modified == *revision),
            Compare::ValueIs(key, value) => get_one(sql, key)?.is_some_and(|kv| kv.value == *value),
            Compare::PrefixEmpty(prefix) => keys_of(sql, prefix)?.is_empty(),
        };
        if !holds {
            return Ok(Held::No);
        }
    }
    Ok(Held::Yes)
}

fn keys_of(sql: &Connection, prefix: &str) -> rusqlite::Result<Vec<String>> {
    let end = prefix_end(prefix).unwrap_or_else(|| "\u{10ffff}".into());
    let mut query = sql.prepare_cached("SELECT key FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key")?;
    query.query_map((prefix, end), |row| row.get(0))?.collect()
}

fn carry_out(sql: &Connection, ops: &[Op], revision: Revision) -> rusqlite::Result<(Vec<Change>, Vec<Option<KeyValue>>)> {
    let (mut changes, mut gets) = (Vec::new(), Vec::new());
    for op in ops {
        match op {
            Op::Put(key, value) => changes.push(put(sql, key, value, revision)?),
            Op::Delete(key) => changes.extend(delete(sql, key, revision)?),
            Op::DeletePrefix(prefix) => {
                for key in keys_of(sql, prefix)? {
                    changes.extend(delete(sql, &key, revision)?);
                }
            }
            Op::Get(key) => gets.push(get_one(sql, key)?),
        }
    }
    Ok((changes, gets))
}

fn put(sql: &Connection, key: &str, value: &[u8], revision: Revision) -> rusqlite::Result<Change> {
    let created = get_one(sql, key)?.map_or(revision, |old| old.created);
    let mut upsert = sql.prepare_cached("INSERT OR REPLACE INTO kv (key, value, created, modified) VALUES (?1, ?2, ?3, ?4)")?;
    upsert.execute((key, value, log::number(created), log::number(revision)))?;
    Ok(Change::Put(KeyValue { key: key.to_owned(), value: value.to_vec(), created, modified: revision }))
}

fn delete(sql: &Connection, key: &str, at: Revision) -> rusqlite::Result<Option<Change>> {
    let gone = sql.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute((key,))?;
    Ok((gone > 0).then(|| Change::Deleted { key: key.to_owned(), at }))
}
