//! What one request costs does not hang on how many nodes and VMs there are.

use std::sync::atomic::{AtomicUsize, Ordering};

use vmkeep_store::{Compare, KeyValue, Leadership, Listing, StoreError, StoreId, TxnOutcome, Watch};
use vmkeep_types::ids::{OperationId, Revision};
use vmkeep_types::order::{NodeTask, Work};

use super::*;

/// More than one transaction may name.
const MANY: usize = 150;
/// More than are looked at for one wish.
const SOME: usize = 20;

/// Counts what is asked of it, and what it answers.
struct Counting {
    store: Arc<EmbeddedStore>,
    calls: AtomicUsize,
    keys: AtomicUsize,
    /// Of so many writes somebody else writes first what they were decided from.
    overtaken: AtomicUsize,
}

impl Counting {
    fn over(bed: &Bed) -> Arc<Self> {
        let [calls, keys, overtaken] = [const { AtomicUsize::new(0) }; 3];
        Arc::new(Self { store: bed.store.clone(), calls, keys, overtaken })
    }

    /// The same values as before, at new revisions.
    async fn overtake(&self, txn: &Txn) {
        let take = |left: usize| left.checked_sub(1);
        let compared = txn.compare.iter().filter_map(|compare| match compare {
            Compare::ModifiedAt(key, _) => Some(key),
            _ => None,
        });
        let mut written = Txn::default();
        for key in compared {
            let there = self.store.get(key).await.expect("a read").expect("it is compared");
            written = written.then(Op::Put(there.key, there.value));
        }
        if !written.then.is_empty() && self.overtaken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            self.store.txn(written).await.expect("written");
        }
    }

    fn note(&self, keys: usize) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.keys.fetch_add(keys, Ordering::SeqCst);
    }
}

#[async_trait]
impl Store for Counting {
    fn id(&self) -> StoreId {
        self.store.id()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.note(1);
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.list_many(&[prefix]).await
    }

    async fn first(&self, prefix: &str, count: usize) -> Result<Vec<KeyValue>, StoreError> {
        self.store.first(prefix, count).await.inspect(|found| self.note(found.len()))
    }

    async fn list_many(&self, prefixes: &[&str]) -> Result<Listing, StoreError> {
        self.store.list_many(prefixes).await.inspect(|found| self.note(found.items.len()))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.note(txn.compare.len() + txn.then.len());
        self.overtake(&txn).await;
        self.store.txn(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.note(0);
        self.store.revision().await
    }

    async fn lead(&self, candidate: &str, ttl: std::time::Duration) -> Result<Option<Leadership>, StoreError> {
        self.store.lead(candidate, ttl).await
    }

    async fn resign(&self, lead: &Leadership) -> Result<(), StoreError> {
        self.store.resign(lead).await
    }
}

async fn with_nodes(count: usize) -> Bed {
    let bed = Bed::new().await;
    let mut facts: Value = serde_json::to_value(bed.stored::<NodeFacts>(&keys::facts(&Name::known("node1"))).await).expect("plain data");
    for n in 2..=count {
        let name: Name = format!("node{n}").parse().expect("a name");
        facts["name"] = json!(name);
        bed.put_all(vec![Op::Put(keys::joined(&name), Vec::new()), typed::put(keys::facts(&name), &facts)]).await;
    }
    bed
}

/// The same, with requests that go through such a store.
fn counted(bed: Bed) -> (Bed, Arc<Counting>) {
    let counting = Counting::over(&bed);
    let mut server = Server::new(bed.store.clone(), bed.node.clone(), Name::known("node1"), Audit::default());
    // What the cache reads once, at its start, is no request's.
    Arc::get_mut(&mut server).expect("nobody else has it yet").store = counting.clone();
    (Bed { router: router(server.clone()), server, ..bed }, counting)
}

/// Calls of the store, and keys in them, of each request in a cluster of so many nodes and VMs.
async fn cost(nodes: usize, vms: usize, requests: &[(&str, Value)]) -> Vec<(usize, usize)> {
    let bed = with_nodes(nodes).await;
    let mut counters = Vec::new();
    for n in 0..vms {
        let name: Name = format!("there{n}").parse().expect("a name");
        bed.vm(name.as_str()).await;
        let id: VmId = bed.stored(&keys::name("vm", &default(), &name)).await;
        counters.push(json!({"id": id, "name": "x", "at": jiff::Timestamp::UNIX_EPOCH, "cpu_time_ns": 0, "vcpus": 1, "memory_bytes": 0, "rss_bytes": 0,
            "disk_read_bytes": 0, "disk_write_bytes": 0, "disk_read_ops": 0, "disk_write_ops": 0, "net_rx_bytes": 0, "net_tx_bytes": 0}));
    }
    let (bed, counting) = counted(bed);
    bed.node.answers.lock().expect("lock").push(("/n/stats", json!(counters)));
    // The first question about placement has the cache read the cluster.
    let plan = json!({"dry_run": true, "manifests": [{"kind": "vm", "name": "first", "nics": []}]});
    assert_eq!(bed.call("POST /v1/apply", plan).await.status, 200);
    counting.calls.store(0, Ordering::SeqCst);
    counting.keys.store(0, Ordering::SeqCst);
    let mut costs = Vec::new();
    for (line, body) in requests {
        let reply = bed.call(line, body.clone()).await;
        assert!((200..300).contains(&reply.status), "{line}: {}", reply.body);
        costs.push((counting.calls.swap(0, Ordering::SeqCst), counting.keys.swap(0, Ordering::SeqCst)));
    }
    costs
}

#[tokio::test]
async fn a_wish_costs_the_same_in_a_large_cluster() {
    let wish = |memory: &str| json!({"name": "web1", "memory": memory, "disks": [{"name": "root", "image": "tiny"}]});
    let requests = [
        ("PUT /v1/vms/web1", wish("1G")),
        ("PUT /v1/vms/web1", wish("1G")),
        ("PUT /v1/vms/web1", wish("2G")),
        ("POST /v1/vms/web1/actions/stop", json!({})),
        ("POST /v1/vms/web1/actions/start", json!({})),
        ("POST /v1/vms", json!({"name": "web2", "nics": []})),
        ("POST /v1/volumes", json!({"name": "data", "size": "1G"})),
        ("POST /v1/images", json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}})),
        ("POST /v1/apply", json!({"manifests": [{"kind": "vm", "name": "web3", "memory": "1G"}]})),
        ("POST /v1/apply", json!({"manifests": [{"kind": "vm", "name": "web3", "memory": "2G"}]})),
        ("GET /v1/vms/web3/placement", json!(null)),
        ("POST /v1/cluster/simulate", json!({"add": [{"count": 2, "spec": {"name": "app"}}]})),
        ("GET /v1/vms/web3/forecast", json!(null)),
        ("GET /v1/ha", json!(null)),
        ("GET /v1/ha/check", json!(null)),
        ("GET /v1/ha/history", json!(null)),
        ("DELETE /v1/vms/web1", json!(null)),
    ];
    let few = cost(SOME, 3, &requests).await;
    assert_eq!(cost(MANY, 40, &requests).await, few);
    assert!(few.iter().all(|(calls, keys)| (1..30).contains(calls) && *keys < 100), "{few:?}");
}

/// Each node is asked, but their VMs are not looked up one by one.
#[tokio::test]
async fn counters_of_all_vms_cost_two_lists() {
    let requests = [("GET /v1/stats", json!(null))];
    let few = cost(SOME, 3, &requests).await;
    let many = cost(SOME, 40, &requests).await;
    assert_eq!(many, few);
    assert!(few[0].0 < 6 && few[0].1 <= SOME + 1, "{few:?}");
}

#[tokio::test]
async fn an_operation_is_cancelled_where_there_are_many_nodes() {
    let bed = with_nodes(MANY).await;
    let made = bed.call("POST /v1/images", json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}})).await.json();
    let op: OperationId = serde_json::from_value(made["operation"]["id"].clone()).expect("an id");
    let node = Name::known("node77");
    let work = Work::Reboot { vm: VmId(uuid::Uuid::nil()) };
    bed.put_all(vec![typed::put(keys::task(&node, op), &NodeTask { op, project: default(), work })]).await;
    let cancelled = bed.call(&format!("DELETE /v1/operations/{op}"), Value::Null).await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")), "{}", cancelled.body);
    let left = bed.store.list(keys::ALL_NODES).await.expect("a list").items;
    assert!(left.iter().all(|kv| !kv.key.contains("/task/")), "{left:?}");
}

/// A VM compares the network that it names. In the first rollout over many nodes the leader notes them there one after another.
#[tokio::test]
async fn a_vm_is_made_while_its_network_learns_nodes() {
    let (bed, counting) = counted(with_nodes(SOME).await);
    for line in ["POST /v1/vms", "PUT /v1/vms/web2"] {
        counting.overtaken.store(SOME, Ordering::SeqCst);
        let made = bed.call(line, json!({"name": if line.starts_with("PUT") { "web2" } else { "web1" }})).await;
        assert!((200..300).contains(&made.status), "{line}: {}", made.body);
        assert_eq!(counting.overtaken.load(Ordering::SeqCst), 0, "{line}: it went in between");
    }
}
