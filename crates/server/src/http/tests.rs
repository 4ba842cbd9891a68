//! The API in one process, with a store in memory and a node that only remembers what it was asked.

mod apply;
mod bad_input;
mod conditions;
mod ha;
mod lists;
mod many_nodes;
mod nouns;
mod placement;
mod pools;
mod room;
mod secrets;
mod vms;
mod watched;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Mutex;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::HeaderMap;
use expect_test::{Expect, expect};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Op, Store, Txn, keys, typed};
use vmkeep_types::host::NodeFacts;
use vmkeep_types::ids::{Epoch, ImageId, VmId};
use vmkeep_types::image::{Found, ImageFacts, ImageKind, ImageRecord, ImageSource, ImageSpec};
use vmkeep_types::name::Name;
use vmkeep_types::record::{Role, Via};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Firmware, OsFamily};

use super::*;
use crate::audit::Audit;
use crate::gate::NodeGate;

/// A node that answers everything and remembers what it was asked.
#[derive(Default)]
struct FakeNode {
    asked: Mutex<Vec<String>>,
    /// Answers by path; others get `{}`.
    answers: Mutex<Vec<(&'static str, Value)>>,
}

#[async_trait]
impl NodeGate for FakeNode {
    async fn call(&self, node: &Name, request: Request) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        // A whole wish is of no interest here.
        let wish = serde_json::from_slice::<Value>(&body).ok().filter(|_| parts.uri.path() == "/n/wish");
        let body = wish.map_or_else(|| String::from_utf8_lossy(&body).into_owned(), |wish| word(&wish["spec"]["name"]));
        let told = parts.headers.contains_key("authorization");
        let line = format!("{node} {} {} {body}{}", parts.method, parts.uri, if told { " WITH TOKEN" } else { "" });
        self.asked.lock().expect("lock").push(line.trim_end().to_owned());
        let answers = self.answers.lock().expect("lock");
        let answer = answers.iter().find(|(path, _)| *path == parts.uri.path()).map_or_else(|| json!({}), |(_, answer)| answer.clone());
        let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
        Response::new(Body::from(text))
    }
}

struct Bed {
    router: Router,
    store: Arc<EmbeddedStore>,
    server: Arc<Server>,
    node: Arc<FakeNode>,
    role: Role,
}

/// An answer, read whole.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// As a person would want to read it.
    fn words(&self) -> String {
        let kind = self.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let Ok(body) = serde_json::from_str::<Value>(&self.body) else { return format!("{} {}", self.status, self.body) };
        if self.status >= 400 {
            assert_eq!(kind, "application/problem+json", "{}", self.body);
            assert_eq!(body["status"], self.status, "{}", self.body);
            return format!("{} {}", self.status, problem_words(&body));
        }
        if let Some(op) = body.get("operation") {
            return format!("{} {} {} {}", self.status, word(&op["kind"]), word(&op["resource"]["name"]), word(&op["state"]));
        }
        if let Some(items) = body.get("items").and_then(Value::as_array) {
            let name = |item: &Value| word(item.get("spec").map_or(&item["name"], |spec| &spec["name"]));
            let next = body["next"].as_str().and_then(|next| next.splitn(3, ':').nth(2));
            return format!("{} [{}] next {}", self.status, items.iter().map(name).collect::<Vec<_>>().join(" "), json!(next));
        }
        format!("{} {}", self.status, self.body)
    }
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn problem_words(body: &Value) -> String {
    let mut out = format!("{}: {}", word(&body["code"]), word(&body["detail"]));
    for problem in body["problems"].as_array().into_iter().flatten() {
        let _ = write!(out, "\n  {}: {}", word(&problem["field"]), word(&problem["message"]));
    }
    if let Some(hint) = body.get("hint") {
        let _ = write!(out, "\n  hint: {}", word(hint));
    }
    out
}

fn default() -> Name {
    Name::known("default")
}

fn image(name: &'static str) -> ImageRecord {
    ImageRecord {
        id: ImageId(uuid::Uuid::new_v4()),
        project: default(),
        spec: ImageSpec {
            name: Name::known(name),
            description: String::new(),
            labels: Default::default(),
            pool: default(),
            source: ImageSource::Build { recipe: vmkeep_types::image::BuildRecipe::Tiny },
        },
        facts: Some(ImageFacts {
            kind: ImageKind::Disk,
            virtual_size: ByteCount::from_gib(1),
            stored_size: ByteCount::from_mib(10),
            sha256: None,
            firmware: Firmware::Auto,
            os: OsFamily::Linux,
            os_name: None,
            cloud_init: Found::Yes,
            guest_agent: Found::No,
            virtio: Found::Yes,
            warnings: Vec::new(),
        }),
        leaving: None,
        copies: Default::default(),
        node: Name::known("node1"),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

impl Bed {
    /// One node with 8 GiB that joined, an image `tiny`, the first pool and network.
    async fn new() -> Self {
        Self::with_audit(Audit::default()).await
    }

    async fn with_audit(audit: Audit) -> Self {
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        crate::app::bootstrap(store.as_ref(), "/pool", false).await.expect("a new store");
        let name = Name::known("node1");
        let facts = NodeFacts::of(name.clone(), 4, ByteCount::from_gib(8));
        let node = Arc::new(FakeNode::default());
        let server = Server::new(store.clone(), node.clone(), name.clone(), audit);
        let bed = Self { router: router(server.clone()), store, server, node, role: Role::Admin };
        let tiny = image("tiny");
        bed.put_all(vec![
            Op::Put(keys::joined(&name), Vec::new()),
            typed::put(keys::facts(&name), &facts),
            typed::put(keys::name("image", &default(), &tiny.spec.name), &tiny.id),
            typed::put(keys::image(&default(), tiny.id), &tiny),
        ])
        .await;
        bed
    }

    fn by(&self, role: Role) -> Self {
        Self { router: self.router.clone(), store: self.store.clone(), server: self.server.clone(), node: self.node.clone(), role }
    }

    async fn put_all(&self, ops: Vec<Op>) {
        self.store.txn(Txn { then: ops, ..Txn::default() }).await.expect("written");
    }

    async fn stored<T: DeserializeOwned>(&self, key: &str) -> T {
        typed::get_json(self.store.as_ref(), key).await.expect("readable").unwrap_or_else(|| panic!("no {key}")).value
    }

    async fn vm_id(&self, name: &'static str) -> VmId {
        self.stored(&keys::name("vm", &default(), &Name::known(name))).await
    }

    async fn send(&self, request: axum::http::request::Builder, body: impl Into<Body>) -> Response {
        let caller = Caller { name: "alice".into(), role: self.role, via: Via::Uid(1000), projects: None };
        let request = request.extension(caller).body(body.into()).expect("a request");
        self.router.clone().oneshot(request).await.expect("routers answer")
    }

    async fn reply(&self, request: axum::http::request::Builder, body: impl Into<Body>) -> Reply {
        let response = self.send(request, body).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() }
    }

    async fn call(&self, line: &str, body: Value) -> Reply {
        let (method, path) = line.split_once(' ').expect("METHOD PATH");
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.reply(Request::builder().method(method).uri(path), body).await
    }

    async fn get(&self, path: &str) -> Value {
        let reply = self.call(&format!("GET {path}"), Value::Null).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.json()
    }

    async fn check(&self, line: &str, body: Value, expected: Expect) {
        expected.assert_eq(&self.call(line, body).await.words());
    }

    /// A VM without disks that stays off.
    async fn vm(&self, name: &str) {
        let reply = self.call("POST /v1/vms", json!({"name": name, "run": "manual"})).await;
        assert_eq!(reply.status, 202, "{}", reply.body);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.node.asked.lock().expect("lock"))
    }
}

#[tokio::test]
async fn every_route_of_the_table_is_served_in_both_forms() {
    let bed = Bed::new().await;
    bed.node.answers.lock().expect("lock").extend([("/n/stats", json!([])), ("/n/domains", json!([]))]);
    let mut kinds = BTreeSet::new();
    for route in ROUTES {
        for path in [Some(route.path.to_owned()), route.project_path()].into_iter().flatten() {
            let path = ["project", "name", "action", "id"]
                .iter()
                .zip(["default", "nobody", "start", "00000000-0000-0000-0000-000000000001"])
                .fold(path, |path, (field, value)| path.replace(&format!("{{{field}}}"), value));
            let reply = bed.call(&format!("{} {path}", route.method.as_str()), Value::Null).await;
            let words = reply.words();
            assert_ne!(reply.status, 405, "{path}");
            assert_ne!(reply.status, 500, "{path}: {words}");
            assert!(!words.contains("no route"), "{path}: {words}");
            kinds.insert(reply.status);
        }
    }
    assert!(kinds.contains(&200) && kinds.contains(&404) && kinds.contains(&422), "{kinds:?}");
}

#[tokio::test]
async fn what_is_no_route_is_told_with_the_nearest() {
    let bed = Bed::new().await;
    bed.check(
        "GET /v1/vm",
        Value::Null,
        expect![[r#"
        404 not_found: there is no route /v1/vm
          hint: did you mean /v1/vms? GET /v1/openapi.json lists all routes"#]],
    )
    .await;
    bed.check(
        "GET /v1/projects/p/vmss/web1",
        Value::Null,
        expect![[r#"
        404 not_found: there is no route /v1/projects/p/vmss/web1
          hint: did you mean /v1/vms/web1? GET /v1/openapi.json lists all routes"#]],
    )
    .await;
    bed.check(
        "GET /completely/else",
        Value::Null,
        expect![[r#"
        404 not_found: there is no route /completely/else
          hint: GET /v1/openapi.json lists all routes"#]],
    )
    .await;
    bed.check(
        "PATCH /v1/vms/web1",
        Value::Null,
        expect![[r#"
        405 not_found: PATCH is not for /v1/vms/web1
          hint: it takes GET, PUT, DELETE"#]],
    )
    .await;
    bed.check("GET /v1/projects/Bad_Name/vms", Value::Null, expect!["422 invalid: project: 'Bad_Name' is not a name: use lower case only"])
        .await;
    bed.check("GET /v1/vms/%ff", Value::Null, expect!["422 invalid: the path does not read: Invalid UTF-8 in `name`"]).await;
}

#[tokio::test]
async fn each_role_may_what_its_row_says() {
    let bed = Bed::new().await;
    for route in ROUTES {
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            let reply = bed
                .by(role)
                .call(&format!("{} {}", route.method.as_str(), route.path.replace("{id}", "0").replace(['{', '}'], "")), Value::Null)
                .await;
            let refused = reply.status == 403 && reply.body.contains("it needs the role");
            assert_eq!(refused, role < route.role, "{role:?} {}: {}", route.id, reply.body);
        }
    }
    let request = Request::builder().uri("/v1/vms").body(Body::empty()).expect("a request");
    let nobody = bed.router.clone().oneshot(request).await.expect("routers answer");
    assert_eq!(nobody.status(), 401);
}

#[tokio::test]
async fn changes_are_in_the_audit_log_and_nothing_secret() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("audit/audit.log");
    let bed = Bed::with_audit(Audit::open(&file).expect("a log")).await;
    bed.vm("web1").await;
    bed.get("/v1/vms/web1").await;
    bed.by(Role::Viewer).call("DELETE /v1/vms/web1", Value::Null).await;
    let body = json!({"name": "web1", "cloud_init": {"password": "hunter2"}});
    bed.call("PUT /v1/vms/web1", body).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut lines = String::new();
    for line in std::fs::read_to_string(&file).expect("text").lines() {
        let mut line: Value = serde_json::from_str(line).expect("JSON lines");
        line["at"] = json!("NOW");
        lines += &format!("{line}\n");
    }
    expect![[r#"
        {"at":"NOW","by":"alice","path":"/v1/vms","role":"admin","route":"vm.create","status":202,"via":"uid 1000"}
        {"at":"NOW","by":"alice","path":"/v1/vms/web1","role":"viewer","route":"vm.delete","status":403,"via":"uid 1000"}
        {"at":"NOW","by":"alice","path":"/v1/vms/web1","role":"admin","route":"vm.put","status":202,"via":"uid 1000"}
    "#]]
    .assert_eq(&lines);
}

#[tokio::test]
async fn the_nodes_own_things_are_passed_to_it_by_uid() {
    let bed = Bed::new().await;
    bed.node.answers.lock().expect("lock").push(("/n/domains", json!([])));
    bed.vm("web1").await;
    let no_node = bed.call("GET /v1/vms/web1/xml", Value::Null).await;
    expect!["409 conflict: 'web1' has no node yet"].assert_eq(&no_node.words());
    let id = bed.vm_id("web1").await;
    watched::owned(&bed, id).await;
    for line in [
        "GET /v1/vms/web1/xml",
        "GET /v1/vms/web1/console",
        "GET /v1/vms/web1/logs?lines=5&source=qemu",
        "GET /v1/domains",
        "GET /v1/host/check",
        "POST /v1/uploads",
    ] {
        assert_eq!(bed.call(line, Value::Null).await.status, 200, "{line}");
    }
    bed.call("POST /v1/projects/default/vms/web1/exec", json!({"command": ["id"]})).await;
    bed.reply(Request::builder().uri("/v1/vms/web1/vnc").header("authorization", "Bearer x"), Body::empty()).await;
    let asked = bed.asked().join("\n").replace(&id.to_string(), "UID");
    expect![[r#"
        node1 GET /n/domains?named=web1
        node1 POST /n/wish web1
        node1 GET /n/vms/UID/xml
        node1 GET /n/vms/UID/console
        node1 GET /n/vms/UID/logs?lines=5&source=qemu
        node1 GET /n/domains
        node1 GET /n/host/check
        node1 POST /n/uploads
        node1 POST /n/vms/UID/exec {"command":["id"]}
        node1 GET /n/vms/UID/vnc"#]]
    .assert_eq(&asked);
}

#[tokio::test]
async fn stats_get_their_names_and_metrics_are_of_both() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let id = bed.vm_id("web1").await;
    let numbers = json!({"id": id, "name": "unknown", "at": "2026-01-01T00:00:00Z", "cpu_time_ns": 1, "vcpus": 1, "memory_bytes": 2, "rss_bytes": 3,
        "disk_read_bytes": 4, "disk_write_bytes": 5, "disk_read_ops": 6, "disk_write_ops": 7, "net_rx_bytes": 8, "net_tx_bytes": 9});
    let mut foreign = numbers.clone();
    foreign["id"] = json!(uuid::Uuid::nil());
    bed.node
        .answers
        .lock()
        .expect("lock")
        .extend([("/n/stats", json!([numbers, foreign])), ("/n/metrics", json!("vmkeep_vm_up 1\n# EOF\n"))]);
    let stats = bed.get("/v1/stats").await;
    assert_eq!((stats["items"].as_array().map(Vec::len), &stats["items"][0]["name"]), (Some(1), &json!("web1")));
    let text = bed.call("GET /metrics", Value::Null).await.body;
    for line in [
        "vmkeep_vms{phase=\"pending\"} 1\n",
        "vmkeep_operations_total{kind=\"vm.create\"} 1\n",
        "vmkeep_api_requests_total{route=\"vm.create\",status=\"202\"} 1\n",
        "vmkeep_vm_up 1\n",
        "vmkeep_store_revision ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
}
