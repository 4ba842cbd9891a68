//! The one thread that writes.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use vmkeep_types::ids::Revision;

use super::watchers::Watchers;
use super::{get_one, log, prefix_end, schema};
use crate::{Change, Compare, Held, KeyValue, Op, StoreError, Txn, TxnOutcome, WatchBatch, crash};

/// Transactions that may wait for the writer; more callers wait for room.
const QUEUE_MAX: usize = 1024;

/// Transactions of one commit at most: bounds what a failed commit takes with it.
const GROUP_MAX: usize = 64;

struct Request {
    txn: Txn,
    answer: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

type Answer = (oneshot::Sender<Result<TxnOutcome, StoreError>>, TxnOutcome);

/// The thread and the way to it. Dropped, it waits until what was queued is written: the file's lock must not go first.
pub struct Handle {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    pub fn spawn(connection: Arc<Mutex<Connection>>, watchers: Arc<Watchers>, revision: Revision) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { connection, watchers, revision, grown: log::COMPACT_BYTES };
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(queue));
        Self { requests: Some(requests), thread: Some(thread.expect("the system has room for a thread")) }
    }

    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let stopped = || StoreError::Unavailable("the store's writer has stopped".into());
        let requests = self.requests.as_ref().expect("only drop takes it");
        requests.send(Request { txn, answer }).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    connection: Arc<Mutex<Connection>>,
    watchers: Arc<Watchers>,
    revision: Revision,
    /// Bytes of history since it was last looked at.
    grown: u64,
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
                self.grown += batches.iter().map(|batch| log::size(&batch.changes)).sum::<u64>();
                self.watchers.publish(&batches, self.revision);
                let answers: Vec<Answer> = senders.into_iter().zip(outcomes).collect();
                for (sender, outcome) in answers {
                    let _ = sender.send(Ok(outcome));
                }
                self.compact();
            }
            Err(told) => {
                for sender in senders {
                    let _ = sender.send(Err(told.clone()));
                }
            }
        }
    }

    /// All transactions of a group in one SQLite transaction; each sees what the ones before it wrote.
    fn write(&self, txns: &[Txn]) -> Result<(Vec<TxnOutcome>, Vec<WatchBatch>), StoreError> {
        let mut connection = self.connection.lock().expect("no panic holds this lock");
        let begun = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let sql = begun.map_err(|e| schema::failed(&e))?;
        let written = self.write_all(&sql, txns).map_err(|e| schema::failed(&e))?;
        sql.commit().map_err(|e| schema::commit_failed(&e))?;
        Ok(written)
    }

    fn write_all(&self, sql: &Connection, txns: &[Txn]) -> rusqlite::Result<(Vec<TxnOutcome>, Vec<WatchBatch>)> {
        let mut revision = self.revision;
        let mut batches = Vec::new();
        let mut outcomes = Vec::with_capacity(txns.len());
        for txn in txns {
            let held = compare_all(sql, &txn.compare)?;
            let ops = if held == Held::Yes { &txn.then } else { &txn.otherwise };
            let (changes, gets) = carry_out(sql, ops, revision.next())?;
            if !changes.is_empty() {
                revision = revision.next();
                log::append(sql, revision, &changes)?;
                batches.push(WatchBatch { revision, changes });
            }
            outcomes.push(TxnOutcome { held, revision, gets });
        }
        Ok((outcomes, batches))
    }

    /// Shortens the history now and then. Watchers learn it first: a replay then either has all it asked for, or is refused.
    fn compact(&mut self) {
        // The guards end with their statements: a watcher takes its own lock first and this one second.
        let due = log::due(&self.connection.lock().expect("no panic holds this lock"), self.revision, self.grown);
        if self.grown >= log::COMPACT_BYTES {
            self.grown = 0;
        }
        let outcome = due.and_then(|keep| {
            let Some(keep) = keep else { return Ok(()) };
            self.watchers.compacted(keep);
            log::shorten(&self.connection.lock().expect("no panic holds this lock"), keep)
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "the store's history was not shortened; it is tried again");
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
            Compare::PrefixEmpty(prefix) => is_empty(sql, prefix)?,
        };
        if !holds {
            return Ok(Held::No);
        }
    }
    Ok(Held::Yes)
}

fn is_empty(sql: &Connection, prefix: &str) -> rusqlite::Result<bool> {
    let end = prefix_end(prefix);
    sql.prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM kv WHERE key >= ?1 AND key < ?2)")?.query_row((prefix, end), |row| row.get(0))
}

fn keys_of(sql: &Connection, prefix: &str) -> rusqlite::Result<Vec<String>> {
    let end = prefix_end(prefix);
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
