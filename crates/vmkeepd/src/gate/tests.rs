//! Two members, one with an agent: requests, bodies and upgrades pass; who is no control node is refused.

use std::path::Path;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::routing::{any, get, post};
use expect_test::{Expect, expect};
use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Txn, typed};

use super::*;
use crate::cluster::pki::{Authority, Purpose, issue_own};
use crate::listen::{Controls, Serve, agent};
use crate::member::Paths;

struct Bed {
    store: Arc<EmbeddedStore>,
    shutdown: CancellationToken,
    dir: tempfile::TempDir,
}

fn member(dir: &Path, name: &'static str) -> Arc<Mtls> {
    let paths = Paths::new(&dir.join(name));
    paths.make().expect("a folder");
    let ca = Paths::new(&dir.join("ca"));
    let authority = Authority::open_or_make(&ca, Uuid::from_u128(1)).expect("an authority");
    std::fs::copy(ca.ca(), paths.ca()).expect("copied");
    issue_own(&authority, &paths, &Name::known(name), "127.0.0.1", &[Purpose::Node]).expect("issued");
    Mtls::open(paths).expect("usable")
}

/// What an agent serves, at an address that the store knows; node1 is a control node, node3 is none.
async fn bed() -> Bed {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("bound").to_string();
    let facts = serde_json::json!({
        "name": "node2", "epoch": 1, "boot_id": "b", "cpus": 1, "memory": "1G", "kvm": {"is": "usable"}, "libvirt_version": null,
        "qemu_version": null, "vmkeep_version": "0", "hypervisor_up": true, "address": at,
    });
    let node2 = Name::known("node2");
    let control = Op::Put(keys::control(&Name::known("node1")), Vec::new());
    store.txn(Txn::default().then(typed::put(keys::facts(&node2), &facts)).then(control)).await.expect("written");
    let echo = |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(Message::Text(text))) = socket.next().await {
                let _ = socket.send(Message::Text(format!("heard {text}").into())).await;
            }
        })
    };
    let router = Router::new()
        .route("/n/stats", get(|| async { "stats" }))
        .route("/n/uploads", post(|body: String| async move { format!("{} bytes", body.len()) }))
        .route("/n/images/{id}/content", get(|| async { "image" }))
        .route("/n/guests/shutdown", post(|| async { "down" }))
        .route("/n/vms/x/console", any(echo));
    let shutdown = CancellationToken::new();
    let serve = Serve { router, shutdown: shutdown.clone(), connections: TaskTracker::new() };
    tokio::spawn(agent(serve, listener, member(dir.path(), "node2"), Arc::new(Controls::new(store.clone()))));
    Bed { store, shutdown, dir }
}

impl Bed {
    fn gate(&self, from: &'static str) -> Gate {
        let remote = Remote { store: self.store.clone(), mtls: member(self.dir.path(), from) };
        Gate { node: Name::known(from), local: None, remote: Some(remote) }
    }

    async fn check(&self, from: &'static str, method: &str, path: &str, body: &str, expect: Expect) {
        let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).expect("a request");
        let response = self.gate(from).call(&Name::known("node2"), request).await;
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let told = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|v| v["detail"].as_str().map(str::to_owned));
        expect.assert_eq(&format!("{status} {}", told.unwrap_or(text)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_control_nodes_pass_and_others_get_images_only() {
    let bed = bed().await;
    bed.check("node1", "GET", "/n/stats", "", expect!["200 stats"]).await;
    bed.check("node1", "POST", "/n/uploads", &"x".repeat(300_000), expect!["200 300000 bytes"]).await;
    bed.check("node3", "GET", "/n/stats", "", expect!["403 'node3' is no control node"]).await;
    bed.check("node3", "GET", "/n/images/x/content", "", expect!["200 image"]).await;
    bed.check("node1", "POST", "/n/guests/shutdown", "", expect!["403 only the host itself shuts all its VMs down"]).await;
    bed.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_there_is_told() {
    let bed = bed().await;
    let gate = bed.gate("node1");
    let ask = async |node: &'static str| {
        let request = Request::builder().uri("/n/stats").body(Body::empty()).expect("a request");
        gate.call(&Name::known(node), request).await.status()
    };
    assert_eq!(ask("node9").await, 503, "it never joined");
    // Another answers at its address: a certificate of node2 is none of node4's.
    let found = app::get::<serde_json::Value>(bed.store.as_ref(), &keys::facts(&Name::known("node2"))).await.expect("read").expect("there");
    let put = typed::put(keys::facts(&Name::known("node4")), &found.value);
    bed.store.txn(Txn::default().then(put)).await.expect("written");
    assert_eq!(ask("node4").await, 503);
    bed.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_passes_both_ways() {
    let bed = bed().await;
    let gate = Arc::new(bed.gate("node1"));
    let front = Router::new().fallback(move |request: Request| {
        let gate = gate.clone();
        async move { gate.call(&Name::known("node2"), request).await }
    });
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("front.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
    tokio::spawn(async move { axum::serve(listener, front).await });
    let stream = tokio::net::UnixStream::connect(&socket).await.expect("connected");
    let (mut client, _) = tokio_tungstenite::client_async("ws://front/n/vms/x/console", stream).await.expect("upgraded");
    futures_util::SinkExt::send(&mut client, tokio_tungstenite::tungstenite::Message::text("hello")).await.expect("sent");
    let heard = tokio::time::timeout(Duration::from_secs(10), client.next()).await.expect("in time").expect("open").expect("a message");
    assert_eq!(heard.to_text().expect("text"), "heard hello");
    bed.shutdown.cancel();
}
