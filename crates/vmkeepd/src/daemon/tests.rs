//! The whole daemon on the fake hypervisor, spoken to by the real client.

use std::time::Instant;

use axum::extract::Request;
use axum::routing::post;
use tower::ServiceExt;
use vmkeep_server::audit::Audit;
use vmkeep_types::record::{Caller, Role};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use vmkeep_api::body::{Accepted, HostCheck, VersionAnswer};
use vmkeep_api::client::Client;
use vmkeep_api::client::websocket::Message;
use vmkeep_types::record::Via;

use super::*;
use crate::config::HypervisorKind;
use crate::gate::Gate;

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    client: Client,
    config: Config,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<Ended>>,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn new() -> Self {
        Self::at(tempfile::tempdir().expect("a folder")).await
    }

    /// On what is in a folder already.
    async fn at(dir: tempfile::TempDir) -> Self {
        let at = |name: &str| dir.path().join(name);
        let config = Config {
            node: Some(Name::known("node1")),
            store: at("store"),
            socket: at("vmkeepd.sock"),
            hypervisor: HypervisorKind::Fake,
            pool: at("pool"),
            serial_log_dir: at("logs"),
            run_dir: at("run"),
            ..Config::default()
        };
        // VMKEEP_LOG=debug shows what went on.
        log::begin(&Config { log_filter: "off".into(), ..config.clone() });
        let shutdown = CancellationToken::new();
        let hangup = signal(SignalKind::hangup()).expect("signals");
        let task = tokio::spawn(serve(config.clone(), Arc::new(Notify::from_env()), hangup, shutdown.clone()));
        let running = Self { client: Client::unix(&config.socket), config, shutdown, task, _dir: dir };
        running.until("the daemon answers", || async { running.client.call("version").answer::<VersionAnswer>().await.is_ok() }).await;
        running
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, mut look: impl FnMut() -> F) {
        let begin = Instant::now();
        while !look().await {
            if begin.elapsed() > PATIENCE {
                let vms: Value = self.client.call("vm.list").answer().await.unwrap_or_default();
                panic!("{what} did not come true: {vms:#}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is left when it has ended.
    async fn end(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("no error");
        self._dir
    }

    async fn vm(&self, name: &str) -> Value {
        self.client.call("vm.get").field("name", name).answer().await.expect("the VM")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_becomes_a_running_vm_with_a_console_and_the_daemons_end_leaves_it() {
    let running = Running::new().await;
    let wish =
        json!({"name": "web", "memory": "64M", "firmware": "bios", "nics": [], "disks": [{"name": "root", "empty": true, "size": "1M"}]});
    running.client.call("vm.create").json(&wish).answer::<Accepted>().await.expect("accepted");
    running.until("it runs", || async { running.vm("web").await["status"]["phase"] == "running" }).await;

    // Socket, server, gate, node router: the upgrade passes them all.
    let mut console = running.client.call("vm.console").field("name", "web").websocket().await.expect("a console");
    console.send(Message::binary(b"echo passed\r".to_vec())).await.expect("typed");
    let mut heard = String::new();
    while !heard.contains("passed\r\ntiny#") {
        match tokio::time::timeout(PATIENCE, console.next()).await.expect("in time") {
            Some(Ok(Message::Binary(bytes))) => heard += &String::from_utf8_lossy(&bytes),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    let check: HostCheck = running.client.call("host.check").answer().await.expect("a check");
    assert!(check.rows.iter().any(|row| row.id == "kvm"));

    // An open console does not hold the end up.
    running.shutdown.cancel();
    tokio::time::timeout(PATIENCE, running.task).await.expect("it ends").expect("no panic").expect("no error");
    assert!(!running.config.socket.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_shutdown_stops_vms_and_the_next_start_is_allowed_again() {
    let running = Running::new().await;
    let wish = json!({"name": "web", "memory": "64M", "firmware": "bios", "run": "always", "nics": [], "disks": [{"name": "root", "empty": true, "size": "1M"}]});
    running.client.call("vm.create").json(&wish).answer::<Accepted>().await.expect("accepted");
    running.until("it runs", || async { running.vm("web").await["status"]["phase"] == "running" }).await;
    let socket = running.config.socket.clone();
    let ask = |route: &'static str| {
        let socket = socket.clone();
        tokio::task::spawn_blocking(move || crate::guests::ask(&[socket], route))
    };
    ask("/n/guests/shutdown").await.expect("no panic").expect("all are down");
    running.until("it is off", || async { running.vm("web").await["status"]["phase"] != "running" }).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_ne!(running.vm("web").await["status"]["phase"], "running", "run: always does not fight a host that goes down");
    ask("/n/guests/resume").await.expect("no panic").expect("called off");
    running.until("it runs again", || async { running.vm("web").await["status"]["phase"] == "running" }).await;
    assert!(ask("/n/guests/nothing").await.expect("no panic").is_err());
    running.shutdown.cancel();
    tokio::time::timeout(PATIENCE, running.task).await.expect("it ends").expect("no panic").expect("no error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_same_store_is_refused() {
    let running = Running::new().await;
    let hangup = signal(SignalKind::hangup()).expect("signals");
    let second = Config { socket: running.config.socket.with_extension("2"), ..running.config.clone() };
    let error = serve(second, Arc::new(Notify::from_env()), hangup, CancellationToken::new()).await.expect_err("the store is locked");
    assert!(format!("{error:#}").contains("cannot open the store"), "{error:#}");
    running.shutdown.cancel();
    tokio::time::timeout(PATIENCE, running.task).await.expect("it ends").expect("no panic").expect("no error");
}

/// The store of a daemon that has ended; what it had begun may hold it a moment longer.
async fn store_in(dir: &tempfile::TempDir) -> EmbeddedStore {
    let begin = Instant::now();
    loop {
        match EmbeddedStore::open(&dir.path().join("store/vmkeep.db")) {
            Ok(store) => return store,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(60), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Records that this version writes again when a VM is changed and started.
const WRITTEN: [&str; 7] = ["vm/", "choices/", "power/", "owner/", "volume/", "n/node1/order/", "n/node1/seen/"];

/// What a newer version would write beside our fields: at the top, in the wish, in a struct of it, in one of its disks.
fn newer(key: &str, mut value: Value) -> Value {
    value["later"] = json!({"by": "2.0"});
    if key.starts_with("vm/") {
        value["spec"]["tier"] = json!("gold");
        value["spec"]["restart"]["jitter"] = json!("3s");
        value["spec"]["disks"][0]["wear"] = json!(7);
    }
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_version_wrote_outlives_changes_by_this_one() {
    let running = Running::new().await;
    let disks = json!([{"name": "root", "empty": true, "size": "1M"}]);
    let mut wish = json!({"name": "web", "memory": "64M", "firmware": "bios", "run": "manual", "nics": [], "disks": disks});
    running.client.call("vm.create").json(&wish).answer::<Accepted>().await.expect("accepted");
    running.until("it is off", || async { running.vm("web").await["status"]["phase"] == "stopped" }).await;
    let dir = running.end().await;

    let store = store_in(&dir).await;
    let mut before = Vec::new();
    for kv in store.list_many(&WRITTEN).await.expect("a listing").items {
        let value = newer(&kv.key, serde_json::from_slice(&kv.value).expect("JSON"));
        store.txn(vmkeep_store::Txn::default().then(typed::put(kv.key.clone(), &value))).await.expect("written");
        before.push(kv.key);
    }
    assert!(WRITTEN.iter().all(|prefix| before.iter().any(|key| key.starts_with(prefix))), "{before:?}");
    let upgraded = store.revision().await.expect("a revision");
    drop(store);

    let running = Running::at(dir).await;
    wish["description"] = json!("changed by the older one");
    wish["disks"][0]["size"] = json!("2M");
    running.client.call("vm.put").field("name", "web").json(&wish).answer::<Accepted>().await.expect("accepted");
    running
        .client
        .call("vm.action")
        .field("name", "web")
        .field("action", "start")
        .json(&json!({}))
        .answer::<Accepted>()
        .await
        .expect("accepted");
    running.until("it runs", || async { running.vm("web").await["status"]["phase"] == "running" }).await;
    let dir = running.end().await;

    let store = store_in(&dir).await;
    let after = store.list_many(&WRITTEN).await.expect("a listing").items;
    let written: Vec<&str> =
        after.iter().filter(|kv| kv.modified > upgraded).map(|kv| kv.key.split('/').rev().nth(1).unwrap_or_default()).collect();
    for kind in ["default", "power", "order", "seen"] {
        assert!(written.contains(&kind), "{kind} was written by the edit, the leader or the agent: {written:?}");
    }
    for kv in after {
        let value: Value = serde_json::from_slice(&kv.value).expect("JSON");
        assert_eq!(newer(&kv.key, value.clone()), value, "{} kept all of it", kv.key);
    }
}

#[tokio::test]
async fn only_administrators_shut_all_vms_down() {
    let node = Router::new().route("/n/guests/shutdown", post(|| async { "done" }));
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("audit.log");
    let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
    let gate = Arc::new(Gate { node: Name::known("node1"), local: Some(node.clone()), remote: None });
    let server = Server::new(store, gate, Name::known("node1"), Audit::open(&log).expect("a log"));
    let status = |role: Option<Role>| {
        let routes = control::guest_routes(node.clone(), server.clone());
        let mut request = Request::post("/n/guests/shutdown").body(axum::body::Body::empty()).expect("a request");
        request.extensions_mut().extend(
            role.map(|role| {
                let mut of = http::Extensions::new();
                of.insert(Caller { name: "me".into(), role, via: Via::Uid(1), projects: None });
                of
            })
            .unwrap_or_default(),
        );
        async move { routes.oneshot(request).await.expect("an answer").status().as_u16() }
    };
    assert_eq!(status(None).await, 403);
    assert_eq!(status(Some(Role::Operator)).await, 403);
    assert_eq!(status(Some(Role::Admin)).await, 200);
    let text = std::fs::read_to_string(&log).expect("text");
    let noted: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = noted.iter().map(|line| (line["via"].as_str(), line["path"].as_str(), line["status"].as_u64())).collect();
    let path = Some("/n/guests/shutdown");
    assert_eq!(told, [(None, path, Some(403)), (Some("uid 1"), path, Some(403)), (Some("uid 1"), path, Some(200))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_vms_of_its_own_joins_nobody() {
    let running = Running::new().await;
    let token = format!("vmkj_{}_{}_{}", "0".repeat(12), "1".repeat(64), "2".repeat(64));
    let join = async || {
        let wish = json!({"address": "127.0.0.1:1", "token": token});
        running.client.call("cluster.join").json(&wish).answer::<Value>().await.expect_err("refused").to_string()
    };
    let nobody = join().await;
    assert!(nobody.contains("127.0.0.1"), "nobody is there: {nobody}");
    let wish = json!({"name": "web", "memory": "64M", "firmware": "bios", "run": "manual", "nics": [], "disks": []});
    running.client.call("vm.create").json(&wish).answer::<Accepted>().await.expect("accepted");
    let refused = join().await;
    assert!(refused.contains("this host has 1 VMs of its own: web"), "{refused}");
    assert!(!running.config.store.join("cluster").exists(), "nothing stays of either");
}
