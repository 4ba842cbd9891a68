//! Event streams: what they tell, resumed without a gap, ended with 410.

use std::time::Duration;

use vmkeep_types::ids::Generation;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Owner, VmRecord};

use super::*;

/// The VM is node1's, and its volumes are there.
pub async fn owned(bed: &Bed, id: VmId) {
    let owner = Owner { vm: id, project: default(), node: Name::known("node1"), epoch: Epoch(1), generation: Generation(1), to: None };
    let mut ops = vec![typed::put(keys::owner(id), &owner)];
    let record = typed::get_json::<VmRecord>(bed.store.as_ref(), &keys::vm(&default(), id)).await.expect("readable");
    for volume in record.into_iter().flat_map(|record| record.value.volumes.into_values()) {
        let key = keys::volume(&default(), volume);
        let volume = VolumeRecord { node: Some(Name::known("node1")), ..bed.stored(&key).await };
        ops.push(typed::put(key, &volume));
    }
    bed.put_all(ops).await;
}

/// The node's word, with `more` over it.
async fn seen(bed: &Bed, id: VmId, domain: &str, more: Value) {
    let mut seen = json!({"vm": id, "generation": 1, "epoch": 1, "spec_revision": 1, "power_cycle": 1, "domain": {"is": "known", "what": domain},
        "doing": null, "held": null, "error": null, "steps": [], "choices": {"macs": {}, "serials": {}}, "pending": [], "drift": [], "conflicts": [],
        "qemu": null, "volumes": {}, "restarts": {"count": 0, "last_reason": null, "last_at": null}, "since": "2026-01-01T00:00:00Z", "warnings": []});
    for (field, value) in more.as_object().into_iter().flatten() {
        seen[field] = value.clone();
    }
    owned(bed, id).await;
    bed.put_all(vec![typed::put(keys::seen(&Name::known("node1"), id), &seen)]).await;
}

pub async fn seen_off(bed: &Bed, id: VmId) {
    seen(bed, id, "off", json!({})).await;
}

pub async fn seen_running(bed: &Bed, id: VmId, more: Value) {
    seen(bed, id, "running", more).await;
}

/// A stream of events under way.
pub struct Stream {
    body: Body,
    text: String,
}

pub struct Event {
    pub id: String,
    kind: String,
    pub data: Value,
}

pub async fn open(bed: &Bed, path: &str, last: Option<&str>) -> Stream {
    let mut request = Request::builder().uri(path);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = bed.send(request, Body::empty()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    Stream { body: response.into_body(), text: String::new() }
}

impl Stream {
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().to_owned();
                let data = serde_json::from_str(&field("data: ")).expect("JSON");
                let event = Event { id: field("id: "), kind: field("event: "), data };
                self.text = rest.to_owned();
                return Some(event);
            }
            let frame = tokio::time::timeout(Duration::from_secs(60), self.body.frame()).await.expect("something comes")?.expect("a frame");
            self.text += &String::from_utf8_lossy(frame.data_ref().expect("data"));
        }
    }

    pub async fn one(&mut self) -> Event {
        self.next().await.expect("not over")
    }
}

fn words(event: &Event) -> String {
    let object = &event.data["object"];
    match event.kind.as_str() {
        "put" => format!("put {} {}", word(&object["spec"]["name"]), word(&object["status"]["text"])),
        _ => format!("{} {}", event.kind, word(&event.data["name"])),
    }
}

#[tokio::test]
async fn vms_are_watched_as_they_are_listed() {
    let bed = Bed::new().await;
    bed.vm("old").await;
    let mut stream = open(&bed, "/v1/vms?watch", None).await;
    bed.vm("web1").await;
    assert_eq!(words(&stream.one().await), "put web1 waiting for a node");
    let id = bed.vm_id("web1").await;
    // Two writes at once may be told as two changes or twice as their end.
    seen_running(&bed, id, json!({})).await;
    while words(&stream.one().await) != "put web1 running" {}
    let gone = bed.vm_id("old").await;
    bed.put_all(vec![Op::Delete(keys::vm(&default(), gone)), Op::Delete(keys::name("vm", &default(), &Name::known("old")))]).await;
    let last = loop {
        let event = stream.one().await;
        if words(&event) != "put web1 running" {
            break event;
        }
    };
    assert_eq!((words(&last), &last.data["id"]), ("deleted old".to_owned(), &json!(gone)));
}

#[tokio::test]
async fn a_reader_that_comes_back_missed_nothing() {
    let bed = Bed::new().await;
    let mut stream = open(&bed, "/v1/vms?watch", None).await;
    bed.vm("first").await;
    let token = stream.one().await.id;
    drop(stream);
    for n in 0..300 {
        bed.vm(&format!("vm{n:03}")).await;
    }
    let mut stream = open(&bed, "/v1/vms?watch", Some(&token)).await;
    let mut names = Vec::new();
    for _ in 0..300 {
        names.push(word(&stream.one().await.data["object"]["spec"]["name"]));
    }
    assert_eq!(names, (0..300).map(|n| format!("vm{n:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_page_says_where_a_watch_goes_on() {
    let bed = Bed::new().await;
    let page = bed.get("/v1/vms").await;
    bed.vm("web1").await;
    let token = format!("{}:{}", bed.store.id().0, page["revision"]);
    let mut stream = open(&bed, &format!("/v1/vms?watch&since={token}"), None).await;
    assert_eq!(words(&stream.one().await), "put web1 waiting for a node");
}

#[tokio::test]
async fn tokens_of_other_stores_and_times_are_gone() {
    let bed = Bed::new().await;
    for token in ["nonsense", "other:1", &format!("{}:999999", bed.store.id().0), &format!("{}:x", bed.store.id().0)] {
        let reply = bed.reply(Request::builder().uri("/v1/vms?watch").header("last-event-id", token), Body::empty()).await;
        assert_eq!(reply.status, 410, "{token}: {}", reply.body);
        assert_eq!(reply.json()["status"], json!(410));
    }
}

#[tokio::test]
async fn labels_choose_what_is_watched() {
    let bed = Bed::new().await;
    let mut stream = open(&bed, "/v1/vms?watch&label=tier=db", None).await;
    let mut told = String::new();
    for (name, tier) in [("web1", "web"), ("db1", "db"), ("db1", "old")] {
        bed.call(&format!("PUT /v1/vms/{name}"), json!({"name": name, "run": "manual", "labels": {"tier": tier}})).await;
        told += &format!("{}\n", words(&stream.one().await));
    }
    expect![[r#"
        deleted web1
        put db1 waiting for a node
        deleted db1
    "#]]
    .assert_eq(&told);
}

#[tokio::test]
async fn other_nouns_are_watched_as_they_are_listed() {
    let bed = Bed::new().await;
    let mut stream = open(&bed, "/v1/volumes?watch", None).await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    let event = stream.one().await;
    let listed = bed.get("/v1/volumes/data").await;
    assert_eq!(event.data["object"], listed);
    let id: vmkeep_types::ids::VolumeId = word(&listed["id"]).parse().expect("an id");
    bed.put_all(vec![Op::Delete(keys::volume(&default(), id)), Op::Delete(keys::name("volume", &default(), &Name::known("data")))]).await;
    assert_eq!(words(&stream.one().await), "deleted data");
}

#[tokio::test]
async fn an_operation_is_followed_to_its_end() {
    let bed = Bed::new().await;
    let begun = bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await.json();
    let id = word(&begun["operation"]["id"]);
    let mut stream = open(&bed, &format!("/v1/operations/{id}?watch"), None).await;
    assert_eq!(stream.one().await.data["object"]["state"], json!("pending"));
    bed.call(&format!("DELETE /v1/operations/{id}"), Value::Null).await;
    assert_eq!(stream.one().await.data["object"]["state"], json!("cancelled"));
    assert!(stream.next().await.is_none(), "over");
}

#[tokio::test]
async fn bookmarks_move_the_token_of_a_quiet_line() {
    let mut bed = Bed::new().await;
    let mut quick = Server::new(bed.store.clone(), bed.node.clone(), Name::known("node1"), Audit::default());
    Arc::get_mut(&mut quick).expect("nobody else has it yet").bookmark_every = Duration::from_millis(300);
    bed.router = router(quick);
    let mut stream = open(&bed, "/v1/networks?watch", None).await;
    bed.vm("web1").await;
    let newest = format!("{}:{}", bed.store.id().0, bed.store.revision().await.expect("a revision"));
    // The first may come before the VM is there.
    for _ in 0..100 {
        let bookmark = stream.one().await;
        assert_eq!(bookmark.kind, "bookmark");
        if bookmark.id == newest {
            return;
        }
    }
    panic!("no bookmark tells {newest}");
}

#[tokio::test]
async fn what_does_not_parse_is_left_out_and_the_stream_goes_on() {
    let bed = Bed::new().await;
    let mut stream = open(&bed, "/v1/volumes?watch", None).await;
    bed.put_all(vec![Op::Put(format!("volume/default/{}", uuid::Uuid::new_v4()), b"nonsense".to_vec())]).await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    assert_eq!(word(&stream.one().await.data["object"]["name"]), "data");
}

#[tokio::test]
async fn one_caller_has_so_many_streams_and_no_more() {
    let bed = Bed::new().await;
    let mut streams = Vec::new();
    for _ in 0..crate::streams::STREAMS_PER_CALLER_MAX {
        streams.push(open(&bed, "/v1/vms?watch", None).await);
    }
    let refused = bed.call("GET /v1/images?watch", Value::Null).await;
    expect![[r#"
        429 unavailable: you have 32 event streams already; no more at once
          hint: end some; one stream of a list tells of all its objects"#]]
    .assert_eq(&refused.words());
    drop(streams.pop());
    // Its task sees that the reader is gone, and gives the place back.
    while bed.call("GET /v1/images?watch&since=other:1", Value::Null).await.status == 429 {
        tokio::task::yield_now().await;
    }
    let mut last = open(&bed, "/v1/vms?watch", None).await;
    bed.vm("web1").await;
    assert_eq!(words(&last.one().await), "put web1 waiting for a node");
    for mut stream in streams {
        assert_eq!(words(&stream.one().await), "put web1 waiting for a node");
    }
}
