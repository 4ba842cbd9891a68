//! The history that watches replay: every change of the newest revisions.

use rusqlite::Connection;
use vmkeep_types::ids::Revision;

use super::{prefix_end, schema};
use crate::{Change, KeyValue, StoreError, WatchBatch};

/// Revisions kept for replay; a watcher that was away longer lists again.
const KEEP_REVISIONS: u64 = 10_000;
/// The history is shortened once per this many revisions.
const COMPACT_EVERY: u64 = 1_000;
/// Bytes of keys and values kept for replay, whatever their revisions: keeps the file of a busy host small.
const KEEP_BYTES: i64 = 64 << 20;
/// The history's size is looked at once per this many bytes.
pub const COMPACT_BYTES: u64 = 16 << 20;

const OLDEST: &str = "SELECT value FROM counters WHERE name = 'oldest'";

pub fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).expect("a revision per nanosecond would last for 292 years")
}

fn revision(n: i64) -> Revision {
    Revision(u64::try_from(n).unwrap_or(0))
}

/// The newest revision, from within a transaction.
pub fn newest_row(sql: &Connection) -> rusqlite::Result<Revision> {
    sql.prepare_cached("SELECT value FROM counters WHERE name = 'revision'")?.query_row((), |row| row.get(0)).map(revision)
}

pub fn newest(sql: &Connection) -> Result<Revision, StoreError> {
    newest_row(sql).map_err(|e| schema::failed(&e))
}

/// The oldest revision whose changes are all there.
pub fn oldest(sql: &Connection) -> Result<Revision, StoreError> {
    sql.query_row(OLDEST, (), |row| row.get(0)).map(revision).map_err(|e| schema::failed(&e))
}

pub fn append(sql: &Connection, at: Revision, changes: &[Change]) -> rusqlite::Result<()> {
    let mut insert = sql.prepare_cached("INSERT INTO log (revision, seq, key, value, created) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (seq, change) in changes.iter().enumerate() {
        let seq = i64::try_from(seq).expect("a transaction has few changes");
        match change {
            Change::Put(kv) => insert.execute((number(at), seq, &kv.key, Some(&kv.value), number(kv.created)))?,
            Change::Deleted { key, .. } => insert.execute((number(at), seq, key, None::<Vec<u8>>, 0i64))?,
        };
    }
    sql.prepare_cached("UPDATE counters SET value = ?1 WHERE name = 'revision'")?.execute((number(at),))?;
    Ok(())
}

/// The batches of a prefix from `from` to `upto`, both included.
pub fn replay(sql: &Connection, prefix: &str, from: Revision, upto: Revision) -> rusqlite::Result<Vec<WatchBatch>> {
    let end = prefix_end(prefix);
    let mut query = sql.prepare_cached(
        "SELECT revision, key, value, created FROM log WHERE revision >= ?1 AND revision <= ?2 AND key >= ?3 AND key < ?4 ORDER BY revision, seq",
    )?;
    let mut rows = query.query((number(from), number(upto), prefix, end))?;
    let mut batches: Vec<WatchBatch> = Vec::new();
    while let Some(row) = rows.next()? {
        let at = revision(row.get(0)?);
        let key: String = row.get(1)?;
        let change = match row.get::<_, Option<Vec<u8>>>(2)? {
            Some(value) => Change::Put(KeyValue { key, value, created: revision(row.get(3)?), modified: at }),
            None => Change::Deleted { key, at },
        };
        match batches.last_mut().filter(|batch| batch.revision == at) {
            Some(batch) => batch.changes.push(change),
            None => batches.push(WatchBatch { revision: at, changes: vec![change] }),
        }
    }
    Ok(batches)
}

/// Keys and values of the changes; what counts towards [`KEEP_BYTES`].
pub fn size(changes: &[Change]) -> u64 {
    let of_one = |change: &Change| match change {
        Change::Put(kv) => kv.key.len() + kv.value.len(),
        Change::Deleted { key, .. } => key.len(),
    };
    changes.iter().map(|change| of_one(change) as u64).sum()
}

/// Where the history should begin, if it is time to shorten it; `grown` is what was appended since the last time.
pub fn due(sql: &Connection, newest: Revision, grown: u64) -> rusqlite::Result<Option<Revision>> {
    let oldest: i64 = sql.prepare_cached(OLDEST)?.query_row((), |row| row.get(0))?;
    let oldest = revision(oldest);
    if newest.0 < oldest.0 + KEEP_REVISIONS + COMPACT_EVERY && grown < COMPACT_BYTES {
        return Ok(None);
    }
    let by_count = newest.0.saturating_sub(KEEP_REVISIONS);
    let keep = Revision(by_count.max(first_that_fits(sql)?.0));
    Ok((keep > oldest).then_some(keep))
}

/// The oldest revision from which on the history takes at most [`KEEP_BYTES`].
fn first_that_fits(sql: &Connection) -> rusqlite::Result<Revision> {
    let mut query =
        sql.prepare_cached("SELECT revision, length(key) + ifnull(length(value), 0) FROM log ORDER BY revision DESC, seq DESC")?;
    let mut rows = query.query(())?;
    let mut sum = 0;
    while let Some(row) = rows.next()? {
        sum += row.get::<_, i64>(1)?;
        if sum > KEEP_BYTES {
            return Ok(revision(row.get::<_, i64>(0)?).next());
        }
    }
    Ok(Revision(0))
}

/// Forgets everything before `keep`.
pub fn shorten(sql: &Connection, keep: Revision) -> rusqlite::Result<()> {
    let both = sql.unchecked_transaction()?;
    both.execute("DELETE FROM log WHERE revision < ?1", (number(keep),))?;
    both.execute("UPDATE counters SET value = ?1 WHERE name = 'oldest'", (number(keep),))?;
    both.commit()
}
