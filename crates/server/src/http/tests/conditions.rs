//! Conditions of a request: If-Match, Idempotency-Key, admission, projects, a client that hangs up.

use std::collections::BTreeSet;

use futures_util::poll;
use vmkeep_types::record::Caller;

use super::*;
use crate::app::Ask;
use crate::app::ask::{Admission, Admit, Wish};

fn with(line: &str, header: &'static str, value: &[u8]) -> axum::http::request::Builder {
    let (method, path) = line.split_once(' ').expect("METHOD PATH");
    Request::builder().method(method).uri(path).header(header, axum::http::HeaderValue::from_bytes(value).expect("a header"))
}

#[tokio::test]
async fn a_client_that_hangs_up_is_in_the_audit_log_and_its_change_is_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("audit.log");
    let bed = Bed::with_audit(Audit::open(&file).expect("a log")).await;
    {
        let mut request = Box::pin(bed.call("POST /v1/vms", json!({"name": "web1", "run": "manual"})));
        assert!(poll!(request.as_mut()).is_pending(), "under way");
    }
    bed.server.changes.close();
    bed.server.changes.wait().await;
    let line: Value = serde_json::from_str(std::fs::read_to_string(&file).expect("text").trim()).expect("one line");
    assert_eq!((word(&line["route"]), &line["status"]), ("vm.create".to_owned(), &json!(202)));
    assert_eq!(bed.get("/v1/vms/web1").await["spec"]["name"], json!("web1"));
}

#[tokio::test]
async fn every_change_of_one_object_can_be_guarded() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    bed.call("PUT /v1/networks/lan", json!({"name": "lan", "mode": "bridge", "bridge": "br0"})).await;
    let lan = json!({"name": "lan", "mode": "bridge", "bridge": "br1"});
    let changes = [
        ("/v1/vms/web1", "POST /v1/vms/web1/actions/stop", Value::Null),
        ("/v1/vms/web1", "DELETE /v1/vms/web1", Value::Null),
        ("/v1/volumes/data", "DELETE /v1/volumes/data", Value::Null),
        ("/v1/networks/lan", "PUT /v1/networks/lan", lan),
        ("/v1/networks/lan", "DELETE /v1/networks/lan", Value::Null),
        ("/v1/images/tiny", "DELETE /v1/images/tiny", Value::Null),
    ];
    for (object, line, body) in changes {
        let tag = bed.call(&format!("GET {object}"), Value::Null).await.headers["etag"].clone();
        let sent = || if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let unreadable = bed.reply(with(line, "if-match", b"\"\xff\""), sent()).await;
        assert_eq!(unreadable.status, 422, "{line}: {}", unreadable.body);
        let older = bed.reply(with(line, "if-match", b"\"1\""), sent()).await;
        assert_eq!((older.status, older.json()["code"].clone()), (409, json!("stale")), "{line}: {}", older.body);
        let right = bed.reply(with(line, "if-match", tag.as_bytes()), sent()).await;
        // A volume that is being made is refused for that, which is looked at behind the condition.
        assert!(right.status < 300 || right.body.contains("is still being made"), "{line}: {}", right.body);
    }
    let put = json!({"name": "web2", "run": "manual"});
    let made = bed.call("PUT /v1/vms/web2", put.clone()).await;
    assert_eq!(made.headers["etag"], bed.call("GET /v1/vms/web2", Value::Null).await.headers["etag"]);
    let same = bed.reply(with("PUT /v1/vms/web2", "if-match", made.headers["etag"].as_bytes()), put.to_string()).await;
    assert_eq!((same.status, same.headers["etag"].clone()), (200, made.headers["etag"].clone()), "{}", same.body);
}

#[tokio::test]
async fn what_begins_something_begins_it_once_per_key() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let requests = [
        ("POST /v1/images", json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}})),
        ("POST /v1/volumes", json!({"name": "data", "size": "1G"})),
        ("POST /v1/vms/web1/actions/start", json!({})),
    ];
    for (n, (line, body)) in requests.into_iter().enumerate() {
        let key = format!("key-{n}");
        let send = |body: &Value| bed.reply(with(line, "idempotency-key", key.as_bytes()), body.to_string());
        let (first, second) = (send(&body).await, send(&body).await);
        assert_eq!((first.status, second.status), (202, 202), "{line}: {} {}", first.body, second.body);
        assert_eq!(first.json()["operation"]["id"], second.json()["operation"]["id"], "{line}");
        let mut other = body.clone();
        other["description"] = json!("another");
        let other = send(&other).await;
        assert_eq!((other.status, other.json()["code"].clone()), (409, json!("conflict")), "{line}: {}", other.body);
    }
    let token = || bed.reply(with("POST /v1/tokens", "idempotency-key", b"t"), json!({"name": "ci", "role": "viewer"}).to_string());
    assert_eq!(token().await.status, 200);
    let again = token().await;
    assert_eq!(again.status, 409, "{}", again.body);
    assert!(again.body.contains("its secret was shown then"), "{}", again.body);
    assert_eq!(bed.get("/v1/tokens").await["items"].as_array().map(Vec::len), Some(1));
}

/// At most so many objects are made.
struct Quota(Mutex<u32>);

impl Admit for Quota {
    fn check(&self, ask: &Ask, wish: &Wish<'_>) -> Result<(), Error> {
        let mut left = self.0.lock().expect("lock");
        if *left == 0 {
            return Err(Error::new(Code::NoCapacity, format!("no {} for project {}", wish.kind, ask.project)));
        }
        *left -= 1;
        Ok(())
    }
}

#[tokio::test]
async fn the_admission_chain_is_asked_before_anything_is_written() {
    let mut bed = Bed::new().await;
    let mut server = Server::new(bed.store.clone(), bed.node.clone(), Name::known("node1"), Audit::default());
    let quota = Quota(Mutex::new(1));
    Arc::get_mut(&mut server).expect("nobody else has it yet").admission = Admission(Arc::new(vec![Box::new(quota)]));
    bed.router = router(server);
    bed.vm("web1").await;
    for (line, body) in [
        ("POST /v1/vms", json!({"name": "web2", "run": "manual"})),
        ("PUT /v1/vms/web1", json!({"name": "web1", "run": "manual", "description": "x"})),
        ("POST /v1/volumes", json!({"name": "data", "size": "1G"})),
        ("POST /v1/images", json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}})),
        ("PUT /v1/networks/lan", json!({"name": "lan", "mode": "bridge", "bridge": "br0"})),
        ("POST /v1/vms/web1/actions/rename", json!({"name": "web3"})),
        ("DELETE /v1/vms/web1", Value::Null),
    ] {
        let before = bed.store.revision().await.expect("a revision");
        let reply = bed.call(line, body).await;
        assert_eq!(reply.status, 507, "{line}: {}", reply.body);
        assert_eq!(bed.store.revision().await.expect("a revision"), before, "{line}");
    }
}

#[tokio::test]
async fn a_caller_of_one_project_sees_no_other() {
    let bed = Bed::new().await;
    let status = async |line: &str| {
        let (method, path) = line.split_once(' ').expect("METHOD PATH");
        let only = Some(BTreeSet::from([Name::known("shop")]));
        let caller = Caller { name: "ci".into(), role: Role::Admin, via: Via::Token("1".into()), projects: only };
        let request = Request::builder().method(method).uri(path).extension(caller).body(Body::empty()).expect("a request");
        bed.router.clone().oneshot(request).await.expect("routers answer").status().as_u16()
    };
    for open in ["GET /v1/projects/shop/vms", "GET /v1/projects/shop/events", "GET /v1/version", "GET /v1/pools"] {
        assert_eq!(status(open).await, 200, "{open}");
    }
    let closed = [
        "GET /v1/vms",
        "GET /v1/projects/other/vms?watch",
        "DELETE /v1/vms/x",
        "GET /v1/tokens",
        "POST /v1/tokens",
        "GET /v1/domains",
        "GET /metrics",
    ];
    for closed in closed {
        assert_eq!(status(closed).await, 403, "{closed}");
    }
}

#[tokio::test]
async fn viewers_see_neither_passwords_nor_the_text_people_put_them_in() {
    let bed = Bed::new().await;
    let secret = json!({"name": "web1", "run": "manual", "cloud_init": {"password": "hunter2", "user_data": "#cloud-config\nx: hunter3\n", "network_data": "hunter4: {}"}});
    let made = bed.call("POST /v1/vms", secret).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let viewer = bed.by(Role::Viewer);
    for path in ["/v1/vms/web1", "/v1/vms", "/v1/vms", "/v1/vms?label="] {
        let text = viewer.get(path).await.to_string();
        assert!(text.contains("web1") && !text.contains("hunter"), "{path}: {text}");
        let text = bed.get(path).await.to_string();
        assert!(text.contains("hunter3") && text.contains("hunter4") && !text.contains("hunter2"), "{path}: {text}");
    }
    let mut stream = watched::open(&viewer, "/v1/vms?watch", None).await;
    // What a viewer read and an operator sends back must not become the guest's text.
    let mut spec = viewer.get("/v1/vms/web1").await["spec"].clone();
    spec["description"] = json!("edited");
    let put = bed.call("PUT /v1/vms/web1", spec.clone()).await;
    assert_eq!(put.status, 422, "{}", put.body);
    spec["cloud_init"]["user_data"] = json!("#cloud-config\nx: hunter3\n");
    let put = bed.call("PUT /v1/vms/web1", spec).await;
    assert_eq!(put.status, 202, "{}", put.body);
    let told = stream.one().await.data.to_string();
    assert!(told.contains("edited") && !told.contains("hunter"), "{told}");
    assert!(bed.get("/v1/vms/web1").await.to_string().contains("hunter4"), "kept behind the stars");
}
