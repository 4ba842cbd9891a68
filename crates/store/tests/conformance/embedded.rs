//! What only the embedded store is: a file with its lock, mode, format and damage, and a history that it shortens by itself.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmkeep_store::StoreError;
use vmkeep_store::embedded::EmbeddedStore;

use crate::{Shared, get, put, write};

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("state/store.db");
    (dir, file)
}

fn open(path: &Path) -> Shared {
    Arc::new(EmbeddedStore::open(path).expect("a store"))
}

fn refusal(path: &Path) -> StoreError {
    EmbeddedStore::open(path).err().expect("refused")
}

#[tokio::test]
async fn a_new_start_finds_everything() {
    let (_dir, path) = folder();
    let store = open(&path);
    let (id, at) = (store.id(), write(&store, [put("a", "1")]).await);
    drop(store);
    let store = open(&path);
    assert_eq!((store.id(), store.revision().await), (id, Ok(at)), "the same history");
    assert_eq!(get(&store, "a").await.expect("kept").value, b"1");
    let mut events = store.watch("", at).await.expect("replay over restarts");
    assert_eq!(events.try_recv().expect("replayed at once").expect("a batch").revision, at);
    assert_eq!(write(&store, [put("a", "2")]).await, at.next());
}

#[tokio::test]
async fn other_histories_have_other_names() {
    let ((_a, a), (_b, b)) = (folder(), folder());
    assert_ne!(open(&a).id(), open(&b).id());
}

#[tokio::test]
async fn only_its_owner_reads_it() {
    let (_dir, path) = folder();
    let store = open(&path);
    write(&store, [put("a", "1")]).await;
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    let folder = path.parent().expect("a folder");
    assert_eq!(mode(folder), 0o700);
    let files: Vec<PathBuf> = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() >= 3, "the file, its log, its lock: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("our file");
    drop(open(&path));
    assert_eq!(mode(&path), 0o600, "a copy that was too open is closed");
}

#[tokio::test]
async fn one_daemon_per_file() {
    let (_dir, path) = folder();
    let first = open(&path);
    let refused = refusal(&path).to_string();
    assert!(refused.contains("is in use by another vmkeepd"), "{refused}");
    write(&first, [put("a", "1")]).await;
    drop(first);
    assert!(get(&open(&path), "a").await.is_some(), "free again");
}

#[tokio::test]
async fn a_newer_file_is_refused_and_left_alone() {
    let (_dir, path) = folder();
    drop(open(&path));
    let sql = rusqlite::Connection::open(&path).expect("a file");
    sql.pragma_update(None, "user_version", 99).expect("a version");
    drop(sql);
    let refused = refusal(&path);
    assert!(matches!(refused, StoreError::Newer(_)), "{refused}");
    let sql = rusqlite::Connection::open(&path).expect("a file");
    assert_eq!(sql.query_row("PRAGMA user_version", (), |row| row.get::<_, i64>(0)), Ok(99));
}

#[tokio::test]
async fn damage_is_found_at_the_start() {
    let (_dir, path) = folder();
    let store = open(&path);
    for n in 0..200 {
        write(&store, [put(format!("k/{n}"), vec![b'x'; 500])]).await;
    }
    drop(store);
    let file = std::fs::File::options().write(true).open(&path).expect("our file");
    let pages = file.metadata().expect("metadata").len() / 4096;
    for page in 2..pages {
        file.write_all_at(&[0xa5; 64], page * 4096).expect("a write");
    }
    let refused = refusal(&path);
    assert!(matches!(&refused, StoreError::Corrupt(told) if told.contains("restore a backup")), "{refused}");
}

#[tokio::test]
async fn what_is_no_store_is_refused() {
    let (_dir, path) = folder();
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, "this is a letter to my aunt, not a data base; long enough to have a header, and then some more. ".repeat(20))
        .expect("a file");
    let refused = refusal(&path);
    assert!(matches!(&refused, StoreError::Corrupt(told) if told.contains("restore a backup")), "{refused}");
    assert!(std::fs::read_to_string(&path).expect("a file").starts_with("this is a letter"), "left alone");
}

/// etcd's history ends when it is told so: see [`crate::etcd`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_ends_on_file() {
    let (store, _dir) = crate::on_file();
    crate::watch::history_ends(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_ends_in_memory() {
    let (store, ()) = crate::in_memory();
    crate::watch::history_ends(store).await;
}

/// Values of a busy host are large; the history is kept short by bytes too.
#[tokio::test]
async fn history_is_bounded_in_bytes() {
    let (_dir, path) = folder();
    let store = open(&path);
    for n in 0..100 {
        write(&store, [put("large", vec![u8::try_from(n).expect("small"); 1 << 20])]).await;
    }
    let mut oldest = None;
    for _ in 0..100 {
        if let Err(StoreError::Compacted { oldest: found, .. }) = store.watch("", vmkeep_types::ids::Revision(1)).await {
            oldest = Some(found.0);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let oldest = oldest.expect("100 MiB of history are not kept");
    assert!((2..=80).contains(&oldest), "some history is kept, most is gone: {oldest}");
}
