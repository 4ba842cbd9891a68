//! The file: its lock, its tables, its format.

use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::{StoreError, StoreId};

/// Written into new files; a file with a higher one is refused.
const FORMAT: i64 = 1;
/// Cache of the reader, in KiB: the records of a thousand VMs fit, so that listing them reads no file.
pub const READER_KIB: i64 = 8192;
/// Cache of the writer, in KiB: it touches a few pages at a time.
pub const WRITER_KIB: i64 = 2048;
/// The file holds secrets: its owner only.
const MODE: u32 = 0o600;
/// The log file that SQLite leaves behind after a large transaction is cut back to this.
const WAL_BYTES: i64 = 16 << 20;

/// The two large tables have rowids: a record of 2 KiB then lies in its page, not in an overflow page of its own.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS log (revision INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, created INTEGER NOT NULL,
  PRIMARY KEY (revision, seq));
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counters VALUES ('revision', 0), ('oldest', 1);
";

const RESTORE: &str = "stop vmkeepd, keep a copy of the file, and restore a backup";

/// The error of SQLite in our terms.
pub fn failed(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(format!("{error}; {RESTORE}")),
        Some(ErrorCode::DiskFull) => StoreError::Unavailable(format!("{error}; free space on the store's file system")),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// The error of a COMMIT: after an I/O error nobody knows whether a crash would bring the transaction back.
pub fn commit_failed(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure) => StoreError::Unknown(format!("{error}; look at the disk and the kernel's log")),
        _ => failed(error),
    }
}

/// Two daemons on one file would each believe to be alone.
pub fn lock_file(path: &Path) -> Result<File, StoreError> {
    let io = |what: &str, e: &std::io::Error| StoreError::Unavailable(format!("cannot {what} {}: {e}", path.display()));
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| io("make the folder of", &e))?;
    }
    let lock = path.with_extension("lock");
    let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(&lock).map_err(|e| io("lock", &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let whose = format!("{} is in use by another vmkeepd; stop that one, or give this one its own data folder", path.display());
            Err(StoreError::Unavailable(whose))
        }
        Err(TryLockError::Error(e)) => Err(io("lock", &e)),
    }
}

pub fn open_file(path: &Path, cache_kib: i64) -> Result<Connection, StoreError> {
    // SQLite makes its files with the umask; the mode of the main file is the mode of the others.
    let file = File::options().create(true).append(true).mode(MODE).open(path);
    let private = file.and_then(|file| file.set_permissions(Permissions::from_mode(MODE)));
    private.map_err(|e| StoreError::Unavailable(format!("cannot open {}: {e}", path.display())))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| failed(&e))?;
    prepare(&connection, cache_kib)?;
    Ok(connection)
}

pub fn open_memory() -> Result<Connection, StoreError> {
    let connection = Connection::open_in_memory().map_err(|e| failed(&e))?;
    prepare(&connection, WRITER_KIB)?;
    Ok(connection)
}

fn prepare(connection: &Connection, cache_kib: i64) -> Result<(), StoreError> {
    let format: i64 = connection.query_row("PRAGMA user_version", (), |row| row.get(0)).map_err(|e| failed(&e))?;
    if format > FORMAT {
        let hint = "start the newer one again, or restore a backup from before the upgrade";
        return Err(StoreError::Newer(format!("its file has format {format}, this vmkeep knows {FORMAT}; {hint}")));
    }
    let set_up = || -> rusqlite::Result<()> {
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -cache_kib)?;
        connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
        connection.execute_batch(TABLES)?;
        connection.pragma_update(None, "user_version", FORMAT)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(())
    };
    set_up().map_err(|e| failed(&e))
}

/// Looks over the whole file once: a damaged page is better met at the start than in the middle of a launch.
pub fn check(connection: &Connection) -> Result<(), StoreError> {
    let said: String = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get(0)).map_err(|e| failed(&e))?;
    if said == "ok" { Ok(()) } else { Err(StoreError::Corrupt(format!("{said}; {RESTORE}"))) }
}

/// The store's identity, made once.
pub fn store_id(connection: &Connection) -> Result<StoreId, StoreError> {
    let read = || connection.query_row("SELECT value FROM identity WHERE name = 'store'", (), |row| row.get(0)).optional();
    if let Some(id) = read().map_err(|e| failed(&e))? {
        return Ok(StoreId(id));
    }
    let id = uuid::Uuid::new_v4().to_string();
    connection.execute("INSERT INTO identity VALUES ('store', ?1)", (&id,)).map_err(|e| failed(&e))?;
    Ok(StoreId(id))
}
