//! SIGKILL loses nothing that was acknowledged.
//!
//! The test runs itself as a child that writes from several tasks and prints each acknowledged row; the parent kills it at
//! a moment of its own, or the child kills itself at a crash point, and the parent looks at what is on disk.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Store, Txn};
use vmkeep_types::ids::Revision;

use crate::Shared;

const TEST: &str = "crash::acknowledged_rows_survive_sigkill";
const CHILD: &str = "VMKEEP_TEST_STORE_OF_CHILD";
const KILLS: u64 = 20;
/// Tasks of the child that write at once, so that commits are groups.
const WRITERS: u64 = 4;

/// What the child had printed when it died.
struct Ack {
    key: String,
    revision: u64,
}

#[derive(Clone, Copy)]
enum Death {
    /// By the parent, this long after the first acknowledged row.
    After(Duration),
    /// By itself, at the N-th crash point.
    AtPoint(u64),
}

#[test]
fn acknowledged_rows_survive_sigkill() {
    if let Some(file) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&file));
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("store.db");
    let mut acks = Vec::new();
    for life in 0..KILLS {
        let death = if life % 4 == 3 { Death::AtPoint(10 + life) } else { Death::After(Duration::from_millis(3 + life * 7)) };
        let newest = acks.iter().map(|ack: &Ack| ack.revision).max().unwrap_or(0);
        let printed = live_and_die(&file, life, death);
        assert!(!printed.is_empty(), "life {life} acknowledged nothing");
        assert!(printed.iter().all(|ack| ack.revision > newest), "revisions grow over crashes");
        acks.extend(printed);
        look(&file, &acks);
    }
}

fn write_until_killed(file: &Path) -> ! {
    let store: Shared = Arc::new(EmbeddedStore::open(file).expect("the dead one's lock is gone"));
    let life = std::env::var("LIFE").expect("set by the parent");
    let write = async move {
        let writers = (0..WRITERS).map(|writer| {
            let (store, life) = (store.clone(), life.clone());
            tokio::spawn(async move {
                for n in 0_u64.. {
                    let key = format!("row/{life}/{writer}/{n}");
                    let outcome = store.txn(Txn::default().then(Op::Put(key.clone(), vec![b'x'; 300]))).await.expect("a write");
                    // One write(2) per line, past every buffer: what the parent reads was acknowledged before.
                    let line = format!("ack {key} {}\n", outcome.revision);
                    std::io::stderr().write_all(line.as_bytes()).expect("the parent reads");
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("no panic");
        }
    };
    tokio::runtime::Runtime::new().expect("a runtime").block_on(write);
    unreachable!("it writes until it is killed")
}

/// Runs the child until its death; the rows it had acknowledged.
fn live_and_die(file: &Path, life: u64, death: Death) -> Vec<Ack> {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([TEST, "--exact", "--nocapture"]).env(CHILD, file).env("LIFE", life.to_string());
    if let Death::AtPoint(point) = death {
        command.env("VMKEEP_CRASH_AT", point.to_string());
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("this program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut acks: Vec<Ack> = lines.by_ref().map_while(|line| parse(&line.expect("text"))).take(1).collect();
    if let Death::After(wait) = death {
        std::thread::sleep(wait);
        child.kill().expect("our child");
    }
    acks.extend(lines.map_while(|line| parse(&line.expect("text"))));
    let status = child.wait().expect("our child");
    assert_eq!(status.signal(), Some(libc::SIGKILL), "killed, not failed: {status}");
    acks
}

fn parse(line: &str) -> Option<Ack> {
    let mut words = line.strip_prefix("ack ")?.split(' ');
    let key = words.next()?.to_owned();
    Some(Ack { key, revision: words.next()?.parse().ok()? })
}

/// Every acknowledged row is there, with the revision that was told, in the values and in the history.
fn look(file: &Path, acks: &[Ack]) {
    let store = EmbeddedStore::open(file).expect("a store that opens after a crash");
    let look = async {
        let listing = store.list("row/").await.expect("a read");
        let rows: std::collections::HashMap<_, _> = listing.items.iter().map(|kv| (kv.key.as_str(), kv)).collect();
        for ack in acks {
            let row = rows.get(ack.key.as_str()).unwrap_or_else(|| panic!("{} was acknowledged and is lost", ack.key));
            assert_eq!((row.modified.0, row.value.len()), (ack.revision, 300), "{}", ack.key);
        }
        assert_eq!(store.revision().await, Ok(listing.revision));
        let mut revisions: Vec<Revision> = listing.items.iter().map(|kv| kv.modified).collect();
        revisions.sort_unstable();
        let (first, last) = (Revision(1), listing.revision);
        let whole = revisions.iter().map(|revision| revision.0).eq(first.0..=last.0);
        assert!(whole, "one row per revision: values and counter agree");
        let oldest = Revision(last.0.saturating_sub(2_000).max(1));
        let mut events = store.watch("row/", oldest).await.expect("history of the newest rows");
        for expected in oldest.0..=last.0 {
            assert_eq!(events.try_recv().expect("replayed").expect("a batch").revision.0, expected);
        }
    };
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(look);
}
