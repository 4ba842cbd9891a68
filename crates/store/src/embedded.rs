//! The store of one host: SQLite in the daemon's own folder.
//!
//! ```text
//!  txn ──► queue ──► writer thread: BEGIN, compare, write, COMMIT (fsync) ──► watchers ──► answers
//!  get, list ──► reader connection (WAL: never waits for the writer)
//! ```
//! Transactions that wait together share one commit. A transaction is answered only after its commit is on disk and its
//! watchers have it, so that what was acknowledged survives SIGKILL and a watcher never lags behind an answer.
//!
//! How it fails: a second daemon on the same file is refused by a lock; a file of a newer format is refused; a damaged one
//! says so and is left alone.

mod log;
mod schema;
mod watchers;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};
use vmkeep_types::ids::Revision;

use crate::keys::LEADER;
use crate::{Compare, Held, KeyValue, Leadership, Listing, Op, Store, StoreError, StoreId, Txn, TxnOutcome, Watch, limits, typed};
use watchers::Watchers;

pub struct EmbeddedStore {
    id: StoreId,
    reader: Arc<Mutex<Connection>>,
    writer: writer::Handle,
    watchers: Arc<Watchers>,
    /// Who leads; by this process's clock, since the lock keeps every other process out.
    lease: tokio::sync::Mutex<Option<Lease>>,
    /// Held as long as the file is open; the kernel drops it with the process.
    _lock: Option<std::fs::File>,
}

struct Lease {
    candidate: String,
    leadership: Leadership,
    until: Instant,
}

impl EmbeddedStore {
    /// Opens or creates the store at `path`; its folder is made with mode 0700.
    ///
    /// # Errors
    /// Another process has it open, it is damaged, or it was written by a newer vmkeep.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = schema::lock_file(path)?;
        let writer = schema::open_file(path, schema::WRITER_KIB)?;
        schema::check(&writer)?;
        let reader = schema::open_file(path, schema::READER_KIB)?;
        Self::start(writer, Some(reader), Some(lock))
    }

    /// A store that lives as long as this value.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::start(schema::open_memory()?, None, None)
    }

    fn start(writer: Connection, reader: Option<Connection>, lock: Option<std::fs::File>) -> Result<Self, StoreError> {
        let id = schema::store_id(&writer)?;
        let revision = log::newest(&writer)?;
        let watchers = Arc::new(Watchers::new(revision, log::oldest(&writer)?));
        let writer = Arc::new(Mutex::new(writer));
        let reader = reader.map_or_else(|| writer.clone(), |reader| Arc::new(Mutex::new(reader)));
        let writer = writer::Handle::spawn(writer, watchers.clone(), revision);
        Ok(Self { id, reader, writer, watchers, lease: tokio::sync::Mutex::new(None), _lock: lock })
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let connection = self.reader.lock().expect("no panic holds this lock");
        query(&connection).map_err(|e| schema::failed(&e))
    }

    fn leader_compare(old: Option<&KeyValue>) -> Compare {
        old.map_or_else(|| Compare::Absent(LEADER.into()), |kv| Compare::ModifiedAt(LEADER.into(), kv.modified))
    }
}

/// The first key after all keys with this prefix.
fn prefix_end(prefix: &str) -> String {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        let next = (last..=char::MAX).nth(1);
        if let Some(next) = next {
            end.push(next);
            return end;
        }
    }
    // Every key is below the largest character repeated; keys have none of it.
    char::MAX.to_string()
}

/// No limit, in SQL.
const ALL: i64 = -1;

/// At most `count` of them; all with [`ALL`].
fn list_into(connection: &Connection, prefix: &str, count: i64, items: &mut Vec<KeyValue>) -> rusqlite::Result<()> {
    let end = prefix_end(prefix);
    let mut query =
        connection.prepare_cached("SELECT key, value, created, modified FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3")?;
    let rows = query.query_map((prefix, end, count), row_to_kv)?;
    for row in rows {
        items.push(row?);
    }
    Ok(())
}

fn get_one(connection: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    let mut query = connection.prepare_cached("SELECT key, value, created, modified FROM kv WHERE key = ?1")?;
    query.query_row((key,), row_to_kv).optional()
}

fn row_to_kv(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyValue> {
    let revision = |n: i64| Revision(u64::try_from(n).unwrap_or(0));
    Ok(KeyValue { key: row.get(0)?, value: row.get(1)?, created: revision(row.get(2)?), modified: revision(row.get(3)?) })
}

#[async_trait]
impl Store for EmbeddedStore {
    fn id(&self) -> StoreId {
        self.id.clone()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.read(|c| get_one(c, key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.list_many(&[prefix]).await
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        self.read(|c| {
            let mut items = Vec::new();
            list_into(c, prefix, i64::try_from(count).unwrap_or(i64::MAX), &mut items)?;
            Ok(items)
        })
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        self.read(|c| {
            let snapshot = c.unchecked_transaction()?;
            let revision = log::newest_row(&snapshot)?;
            let mut items = Vec::new();
            for prefix in prefixes {
                list_into(&snapshot, prefix, ALL, &mut items)?;
            }
            Ok(Listing { revision, items })
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        limits::check(&txn)?;
        self.writer.txn(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.watchers.add(prefix, from, |upto| self.read(|c| log::replay(c, prefix, from, upto)))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.watchers.published())
    }

    async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<Leadership>, StoreError> {
        let mut lease = self.lease.lock().await;
        let now = Instant::now();
        if let Some(held) = lease.as_mut().filter(|held| held.until > now) {
            if held.candidate != candidate {
                return Ok(None);
            }
            held.until = now + ttl;
            return Ok(Some(held.leadership.clone()));
        }
        let old = self.get(LEADER).await?;
        let txn = Txn::default().when(Self::leader_compare(old.as_ref())).then(typed::put(LEADER, candidate));
        let outcome = self.txn(txn).await?;
        if outcome.held == Held::No {
            return Ok(None);
        }
        let leadership = Leadership { key: LEADER.into(), revision: outcome.revision };
        *lease = Some(Lease { candidate: candidate.into(), leadership: leadership.clone(), until: now + ttl });
        Ok(Some(leadership))
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        let mut lease = self.lease.lock().await;
        if lease.as_ref().is_some_and(|held| held.leadership == *lead) {
            *lease = None;
            let txn = Txn::default().when(Compare::ModifiedAt(lead.key.clone(), lead.revision)).then(Op::Delete(lead.key.clone()));
            self.txn(txn).await?;
        }
        Ok(())
    }
}
