//! An etcd with two doors, one of which stops to let anything through, as the member whose host has lost its network does: it hangs up
//! on nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_store::{Store, StoreError, Txn};

use crate::etcd::{Etcd, next};
use crate::put;

/// For a door that lets through to be used.
const PATIENCE: Duration = Duration::from_secs(60);

/// Passes on what comes, while it is open.
struct Door {
    at: String,
    open: watch::Sender<bool>,
    /// Bytes that clients sent, also while it is shut.
    asked: Arc<AtomicUsize>,
}

impl Door {
    async fn to(etcd: &Etcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = format!("http://{}", listener.local_addr().expect("an address"));
        let to = etcd.endpoint().trim_start_matches("http://").to_owned();
        let (open, is_open) = watch::channel(true);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, is_open, count) = (to.clone(), is_open.clone(), count.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(&to).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::join!(pass(from_client, to_server, is_open.clone(), Some(count)), pass(from_server, to_client, is_open, None));
                });
            }
        });
        Self { at, open, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut open: watch::Receiver<bool>,
    count: Option<Arc<AtomicUsize>>,
) {
    let mut part = vec![0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut part).await {
        if let Some(count) = &count {
            count.fetch_add(bytes, Ordering::Relaxed);
        }
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&part[..bytes]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hangs_is_left_alone_until_it_answers() {
    let etcd = Etcd::start(&[]);
    drop(etcd.connect().await);
    let (good, bad) = (Door::to(&etcd).await, Door::to(&etcd).await);
    let config = EtcdConfig { endpoints: vec![bad.at.clone(), good.at.clone()], tls: None };
    let store = EtcdStore::connect(&config).await.expect("an etcd");
    // Whichever was the second to answer as the store connected is asked in its turn after its next probe.
    asked_by_reads(&store, &good).await;
    asked_by_reads(&store, &bad).await;

    bad.open.send_replace(false);
    for _ in 0..4 {
        store.get("k").await.expect("a read that was asked at the wrong door is asked at the other one, too");
    }
    for n in 0..50 {
        let written = store.txn(Txn::default().then(put("k", n.to_string()))).await;
        written.unwrap_or_else(|error| panic!("write {n}, after the door was found shut: {error}"));
    }
    let late = EtcdStore::connect(&config).await.expect("one of them answers");
    for n in 0..10 {
        let written = late.txn(Txn::default().then(put("late", n.to_string()))).await;
        written.unwrap_or_else(|error| panic!("write {n} of one who came later: {error}"));
    }
    let mut watch = store.watch("k", store.revision().await.expect("a read").next()).await.expect("a watch beside the shut door");
    store.txn(Txn::default().then(put("k", "seen"))).await.expect("written");
    watch.recv().await.expect("no end").expect("a change");

    bad.open.send_replace(true);
    asked_by_reads(&store, &bad).await;
}

/// Reads until this open door was asked for more than probes say.
async fn asked_by_reads(store: &EtcdStore, door: &Door) {
    let (began, before) = (Instant::now(), door.asked());
    while door.asked() < before + (4 << 10) {
        assert!(began.elapsed() < PATIENCE, "it lets through, and nobody asks it");
        store.get("k").await.expect("a read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A watch asks nothing, so that no call finds out for it: its own pings do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_open_at_a_member_that_hangs_goes_on_at_another() {
    let etcd = Etcd::start(&[]);
    let writer = etcd.connect().await;
    let write = async |value: &str| drop(writer.txn(Txn::default().then(put("k", value))).await.expect("written past the doors"));
    let (good, bad) = (Door::to(&etcd).await, Door::to(&etcd).await);
    let store = EtcdStore::connect(&EtcdConfig { endpoints: vec![bad.at.clone()], tls: None }).await.expect("an etcd");
    let mut watch = store.watch("k", store.revision().await.expect("a read").next()).await.expect("a watch");
    write("1").await;
    assert_eq!(next(&mut watch).await.expect("through the only door"), r#"["k=1"]"#);
    store.add_endpoint(&good.at).await.expect("an endpoint");
    asked_by_reads(&store, &good).await;

    bad.open.send_replace(false);
    for value in ["2", "3", "4"] {
        write(value).await;
    }
    for value in ["2", "3", "4"] {
        assert_eq!(next(&mut watch).await.expect("it goes on"), format!(r#"["k={value}"]"#), "none is missed, and none comes twice");
    }
}

/// Whoever is the only one left is asked, whatever it did before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_is_asked_though_it_was_silent() {
    let etcd = Etcd::start(&[]);
    drop(etcd.connect().await);
    let door = Door::to(&etcd).await;
    let store = EtcdStore::connect(&EtcdConfig { endpoints: vec![door.at.clone()], tls: None }).await.expect("an etcd");
    door.open.send_replace(false);
    let refused = store.get("k").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let unknown = store.txn(Txn::default().then(put("k", "1"))).await;
    assert!(matches!(unknown, Err(StoreError::Unknown(_))), "{unknown:?}");
    door.open.send_replace(true);
    let began = Instant::now();
    while let Err(error) = store.get("k").await {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
    store.remove_endpoint(&door.at);
    store.get("k").await.expect("the last one is not forgotten");
}
