//! What lies in the store, and what each process reads of it.

use serde_json::json;
use vmkeep_types::name::Name;

use super::*;
use crate::embedded::EmbeddedStore;

const UID: &str = "11111111-1111-1111-1111-111111111111";

fn fields(key: &str) -> &'static [Path] {
    match key.split('/').collect::<Vec<_>>()[..] {
        ["vm", _, _] | ["n", _, "order", _] => &[&["spec", "password"], &["spec", "users", "*", "passwd"]],
        _ => &[],
    }
}

struct World {
    raw: Arc<EmbeddedStore>,
    control: Arc<Sealing>,
    node1: Arc<Sealing>,
    node2: Arc<Sealing>,
}

/// A control plane on node1's host, and two nodes that have shown their keys.
async fn world() -> World {
    let raw = Arc::new(EmbeddedStore::in_memory().expect("memory"));
    let host = SecretKey::random();
    let ring::Found::Held(opened) = ring::open_or_make(raw.as_ref(), &host).await.expect("a ring") else { panic!("its own") };
    let keys = Keys::of_node(host);
    keys.take_ring(&opened);
    let control = Sealing::over(raw.clone(), fields, keys);
    let mut nodes = Vec::new();
    for name in ["node1", "node2"] {
        let own = SecretKey::random();
        let key = keys::seal_key(&Name::known(name));
        raw.txn(Txn::default().then(Op::Put(key, own.public().to_text().into_bytes()))).await.expect("shown");
        nodes.push(Sealing::over(raw.clone(), fields, Keys::of_node(own)));
    }
    let (node2, node1) = (nodes.pop().expect("two"), nodes.pop().expect("two"));
    World { raw, control, node1, node2 }
}

fn put(key: &str, value: &Value) -> Txn {
    Txn::default().then(Op::Put(key.into(), serde_json::to_vec(value).expect("JSON")))
}

async fn read(store: &dyn Store, key: &str) -> String {
    String::from_utf8(store.get(key).await.expect("read").expect("there").value).expect("text")
}

fn record() -> Value {
    json!({"spec": {"password": "s3cret", "users": [{"name": "bob", "passwd": "hush"}]}})
}

#[tokio::test]
async fn a_record_is_sealed_at_rest_and_read_by_the_control_plane_only() {
    let w = world().await;
    let key = format!("vm/default/{UID}");
    let mut watch = w.control.watch("vm/", Revision(1)).await.expect("a watch");
    w.control.txn(put(&key, &record())).await.expect("written");
    let raw = read(w.raw.as_ref(), &key).await;
    assert!(!raw.contains("s3cret") && !raw.contains("hush") && raw.contains("bob"), "{raw}");
    assert_eq!(read(w.control.as_ref(), &key).await, record().to_string());
    assert_eq!(read(w.node1.as_ref(), &key).await, raw, "a node passes it on closed");
    let batch = watch.recv().await.expect("open").expect("a batch");
    let Change::Put(kv) = &batch.changes[0] else { panic!("a put") };
    assert_eq!(kv.value, record().to_string().into_bytes());
    let got = w.control.txn(Txn::default().then(Op::Get(key))).await.expect("read").gets.remove(0);
    assert_eq!(got.expect("there").value, record().to_string().into_bytes());
}

#[tokio::test]
async fn an_order_is_read_by_its_node_and_no_other() {
    let w = world().await;
    let key = format!("n/node1/order/{UID}");
    w.control.txn(put(&key, &record())).await.expect("written");
    assert!(!read(w.raw.as_ref(), &key).await.contains("s3cret"));
    assert_eq!(read(w.node1.as_ref(), &key).await, record().to_string());
    assert_eq!(read(w.control.as_ref(), &key).await, record().to_string());
    assert!(!read(w.node2.as_ref(), &key).await.contains("s3cret"));
}

#[tokio::test]
async fn a_node_of_a_version_before_reads_its_orders() {
    let w = world().await;
    let key = format!("n/node3/order/{UID}");
    w.control.txn(put(&key, &record())).await.expect("written");
    assert_eq!(read(w.raw.as_ref(), &key).await, record().to_string());
}

#[tokio::test]
async fn what_was_not_opened_is_written_as_it_is() {
    let w = world().await;
    let key = format!("vm/default/{UID}");
    w.control.txn(put(&key, &record())).await.expect("written");
    let raw = read(w.raw.as_ref(), &key).await;
    let other = SecretKey::random();
    ring::renew(w.raw.as_ref(), &[other.public()]).await.expect("a ring that the first does not hold");
    let ring::Found::Held(opened) = ring::open_or_make(w.raw.as_ref(), &other).await.expect("a ring") else { panic!("its own") };
    let keys = Keys::of_node(other);
    keys.take_ring(&opened);
    let blind = Sealing::over(w.raw.clone(), fields, keys);
    let closed: Value = serde_json::from_str(&read(blind.as_ref(), &key).await).expect("JSON");
    blind.txn(put(&key, &closed)).await.expect("written");
    assert_eq!(read(w.raw.as_ref(), &key).await, raw);
    assert_eq!(read(w.control.as_ref(), &key).await, record().to_string());
}

#[tokio::test]
async fn what_was_written_before_sealing_is_read_and_sealed_by_the_next_write() {
    let w = world().await;
    let key = format!("vm/default/{UID}");
    w.raw.txn(put(&key, &record())).await.expect("as before");
    let read_back: Value = serde_json::from_str(&read(w.control.as_ref(), &key).await).expect("JSON");
    assert_eq!(read_back, record());
    w.control.txn(put(&key, &read_back)).await.expect("written");
    assert!(!read(w.raw.as_ref(), &key).await.contains("s3cret"));
}

#[tokio::test]
async fn what_another_has_sealed_under_a_newer_key_is_read_by_every_way() {
    let (raw, host) = (Arc::new(EmbeddedStore::in_memory().expect("memory")), SecretKey::random());
    let ring::Found::Held(old) = ring::open_or_make(raw.as_ref(), &host).await.expect("a ring") else { panic!("its own") };
    let knows = |ring: &ring::Opened| {
        let keys = Keys::of_node(host.clone());
        keys.take_ring(ring);
        Sealing::over(raw.clone(), fields, keys)
    };
    ring::renew(raw.as_ref(), &[host.public()]).await.expect("renewed");
    let new = ring::find(raw.as_ref(), std::slice::from_ref(&host)).await.expect("read").expect("held");
    let key = format!("vm/default/{UID}");
    knows(&new).txn(put(&key, &record())).await.expect("written");

    // Each of them has heard of the old key only.
    let mut found = vec![knows(&old).get(&key).await.expect("read")];
    found.push(knows(&old).list("vm/").await.expect("read").items.pop());
    found.push(knows(&old).first("vm/", 1).await.expect("read").pop());
    found.push(knows(&old).list_many(&["vm/"]).await.expect("read").items.pop());
    found.push(knows(&old).txn(Txn::default().then(Op::Get(key.clone()))).await.expect("read").gets.remove(0));
    knows(&old).visit(&["vm/"], &mut |part| found.extend(part.into_iter().map(Some))).await.expect("read");
    let batch = knows(&old).watch("vm/", Revision(1)).await.expect("a watch").recv().await.expect("open").expect("a batch");
    found.extend(batch.changes.into_iter().map(|change| match change {
        Change::Put(kv) => Some(kv),
        Change::Deleted { .. } => None,
    }));
    assert_eq!(found.len(), 7);
    for (n, kv) in found.into_iter().enumerate() {
        assert_eq!(kv.expect("there").value, record().to_string().into_bytes(), "way {n}");
    }
}
