//! Pools made, changed and deleted; what is said of images; one event.

use vmkeep_store::{Compare, Held};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::VolumeId;
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::pool::{PoolRecord, VolumeRecord};
use vmkeep_types::vm::DiskFormat;

use super::*;

fn fast() -> Value {
    json!({"name": "fast", "driver": "dir", "path": "/srv/fast"})
}

async fn record(bed: &Bed, name: &str) -> PoolRecord {
    let all = typed::list_json::<PoolRecord>(bed.store.as_ref(), keys::ALL_POOLS).await.expect("pools");
    all.into_iter().map(|p| p.value).find(|p| p.spec.name.as_str() == name).expect("the pool")
}

#[tokio::test]
async fn a_pool_is_made_changed_and_deleted() {
    let bed = Bed::new().await;
    assert_eq!(bed.call("PUT /v1/pools/fast", fast()).await.status, 200);
    bed.check("GET /v1/pools", Value::Null, expect!["200 [default fast] next null"]).await;
    let made = bed.call("GET /v1/pools/fast", Value::Null).await;
    let tag = made.headers["etag"].clone();
    assert_eq!(made.json()["spec"], json!({"name": "fast", "description": "", "driver": "dir", "path": "/srv/fast"}));
    let said = json!({"name": "fast", "driver": "dir", "path": "/srv/fast", "description": "NVMe"});
    assert_eq!(bed.call("PUT /v1/pools/fast", said.clone()).await.json()["spec"]["description"], "NVMe");
    let late = Request::builder().method("PUT").uri("/v1/pools/fast").header("if-match", tag);
    let late = bed.reply(late, said.to_string()).await;
    assert!(late.words().starts_with("409 stale: 'fast' was changed by somebody else"), "{}", late.body);
    // Nothing lies in it: it may lie elsewhere.
    let moved = json!({"name": "fast", "driver": "dir", "path": "/srv/faster", "shared": true});
    assert_eq!(bed.call("PUT /v1/pools/fast", moved).await.json()["spec"]["path"], "/srv/faster");
    assert_eq!(bed.call("DELETE /v1/pools/fast", Value::Null).await.status, 204);
    bed.check(
        "DELETE /v1/pools/fast",
        Value::Null,
        expect![[r#"
            404 not_found: there is no pool 'fast'
              hint: see 'vmkeep pool list'"#]],
    )
    .await;
    bed.check(
        "DELETE /v1/pools/default",
        Value::Null,
        expect!["409 conflict: pool 'default' is where everything lies that names no other pool; it cannot be deleted"],
    )
    .await;
    let operator = bed.by(Role::Operator);
    operator.check("PUT /v1/pools/fast", fast(), expect!["403 forbidden: 'alice' may not do this: it needs the role admin"]).await;
}

#[tokio::test]
async fn a_pool_has_a_folder_of_its_own() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/pools/fast", fast()).await;
    let mut told = String::new();
    for path in ["/srv/fast", "/srv/fast/x", "/srv//", "/pool/x", "/", "srv/x", "/srv/../etc", "/etc/vms", "/var/lib/libvirt/qemu", "/usr"]
    {
        let reply = bed.call("PUT /v1/pools/more", json!({"name": "more", "driver": "dir", "path": path})).await;
        let _ = writeln!(told, "{path}: {}", reply.words().lines().last().unwrap_or_default().trim());
    }
    expect![[r#"
        /srv/fast: path: '/srv/fast' is the folder of pool 'fast' already
        /srv/fast/x: path: '/srv/fast/x' lies in pool 'fast' (/srv/fast)
        /srv//: path: others have their files in '/srv//' too; use a folder of its own, like /srv/vmkeep
        /pool/x: path: '/pool/x' lies in pool 'default' (/pool)
        /: path: the root directory is not allowed here
        srv/x: path: 'srv/x' is not an absolute path
        /srv/../etc: path: '/srv/../etc' contains '.' or '..'; write the path in full
        /etc/vms: path: '/etc/vms' lies in /etc, which is the system's; use a folder like /srv/vmkeep
        /var/lib/libvirt/qemu: path: '/var/lib/libvirt/qemu' lies among libvirt's own files; use a folder like /var/lib/libvirt/images/fast
        /usr: path: '/usr' lies in /usr, which is the system's; use a folder like /srv/vmkeep
    "#]]
    .assert_eq(&told);
    for path in ["/srv/fast2", "/tank", "/var/lib/libvirt/images/fast"] {
        let reply = bed.call("PUT /v1/pools/more", json!({"name": "more", "driver": "dir", "path": path})).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
    bed.check(
        "PUT /v1/pools/more",
        json!({"name": "more", "driver": "dir", "path": "/srv/m", "paht": "x"}),
        expect![[r#"
        422 invalid: the manifest has 1 problem
          paht: there is no field 'paht'; did you mean 'path'?"#]],
    )
    .await;
}

#[tokio::test]
async fn a_pool_in_use_stays() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/pools/fast", fast()).await;
    let disks = json!([{"name": "root", "image": "tiny", "pool": "fast"}, {"name": "data", "empty": true, "size": "1G", "pool": "fast"}]);
    assert_eq!(bed.call("POST /v1/vms", json!({"name": "web1", "run": "manual", "disks": disks})).await.status, 202);
    let image = json!({"name": "deb", "pool": "fast", "source": {"from": "build", "recipe": "debian-13"}});
    assert_eq!(bed.call("POST /v1/images", image).await.status, 202);
    let volume = bed.call("POST /v1/projects/shop/volumes", json!({"name": "db", "size": "1G", "pool": "fast"})).await;
    assert_eq!(volume.status, 202, "{}", volume.body);
    bed.check(
        "DELETE /v1/pools/fast",
        Value::Null,
        expect!["409 conflict: pool 'fast' is in use by volumes 'shop/db', 'web1-data' and 1 more and image 'deb'"],
    )
    .await;
    bed.check("PUT /v1/pools/fast", json!({"name": "fast", "driver": "dir", "path": "/srv/other"}), expect![[r#"
        409 conflict: pool 'fast' is in use by volumes 'shop/db', 'web1-data' and 1 more and image 'deb'; what lies in /srv/fast is not moved, nor told to be elsewhere
          hint: make another pool, and let new disks lie there"#]]).await;
    let said = json!({"name": "fast", "driver": "dir", "path": "/srv/fast", "description": "NVMe"});
    assert_eq!(bed.call("PUT /v1/pools/fast", said).await.status, 200, "what is said of it may change");
    assert!(!record(&bed, "fast").await.leaving, "a refusal leaves no mark");
}

/// What a crash between the mark and the end leaves behind.
#[tokio::test]
async fn a_pool_on_its_way_out_takes_nothing_new_and_is_ended_by_the_next_change() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/pools/fast", fast()).await;
    let marked = PoolRecord { leaving: true, ..record(&bed, "fast").await };
    bed.put_all(vec![typed::put(keys::pool(marked.id), &marked)]).await;
    bed.check(
        "POST /v1/volumes",
        json!({"name": "v", "size": "1G", "pool": "fast"}),
        expect![[r#"
        409 conflict: pool 'fast' is being deleted or moved
          hint: 'vmkeep pool delete' or 'pool edit' ends what was begun"#]],
    )
    .await;
    let image = json!({"name": "deb", "pool": "fast", "source": {"from": "build", "recipe": "debian-13"}});
    bed.check(
        "POST /v1/images",
        image,
        expect![[r#"
        409 conflict: pool 'fast' is being deleted or moved
          hint: 'vmkeep pool delete' or 'pool edit' ends what was begun"#]],
    )
    .await;
    let disks = json!([{"name": "data", "empty": true, "size": "1G", "pool": "fast"}]);
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "disks": disks}),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[data].pool: pool 'fast' is being deleted or moved"#]],
    )
    .await;
    assert_eq!(bed.call("PUT /v1/pools/fast", fast()).await.status, 200);
    assert!(!record(&bed, "fast").await.leaving);
    bed.put_all(vec![typed::put(keys::pool(marked.id), &marked)]).await;
    assert_eq!(bed.call("DELETE /v1/pools/fast", Value::Null).await.status, 204);
    bed.check("GET /v1/pools", Value::Null, expect!["200 [default] next null"]).await;
}

/// Both read what was there before; the one that is written second must not hold.
#[tokio::test]
async fn what_comes_into_a_pool_and_its_end_see_each_other() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/pools/fast", fast()).await;
    let (_, unmarked) = crate::app::pool::open(bed.store.as_ref(), &Name::known("fast")).await.expect("open");
    let volume = VolumeRecord {
        id: VolumeId(uuid::Uuid::from_u128(1)),
        project: default(),
        name: Name::known("v"),
        pool: Name::known("fast"),
        node: None,
        size: Some(ByteCount::from_gib(1)),
        format: DiskFormat::Qcow2,
        image: None,
        foreign_path: None,
        filling: None,
        made: true,
        attached: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let key = keys::volume(&default(), volume.id);
    let write = Txn::default().when(unmarked).then(typed::put(key.clone(), &volume));
    let marked = PoolRecord { leaving: true, ..record(&bed, "fast").await };
    bed.put_all(vec![typed::put(keys::pool(marked.id), &marked)]).await;
    assert_eq!(bed.store.txn(write).await.expect("a txn").held, Held::No, "the mark was first");
    // The volume was first: the deletion sees it after its mark, and takes the mark back.
    bed.store.txn(Txn::default().when(Compare::Absent(key.clone())).then(typed::put(key, &volume))).await.expect("a txn");
    bed.check("DELETE /v1/pools/fast", Value::Null, expect!["409 conflict: pool 'fast' is in use by volume 'v'"]).await;
}

#[tokio::test]
async fn two_pools_at_once_do_not_lie_in_each_other() {
    let bed = Bed::new().await;
    let calls = (0..8).map(|n| {
        let path = if n % 2 == 0 { "/srv/a".to_owned() } else { format!("/srv/a/{n}") };
        let name = format!("p{n}");
        let bed = &bed;
        async move { bed.call(&format!("PUT /v1/pools/{name}"), json!({"name": name, "driver": "dir", "path": path})).await.status }
    });
    let made = futures_util::future::join_all(calls).await.into_iter().filter(|status| *status == 200).count();
    let pools = bed.get("/v1/pools").await;
    let paths: Vec<String> = pools["items"].as_array().expect("items").iter().map(|p| word(&p["spec"]["path"])).collect();
    assert_eq!(paths.len(), made + 1, "{paths:?}");
    for (n, a) in paths.iter().enumerate() {
        assert!(paths[n + 1..].iter().all(|b| !a.starts_with(b.as_str()) && !b.starts_with(a.as_str())), "{paths:?}");
    }
}

#[tokio::test]
async fn pools_come_with_manifests() {
    let bed = Bed::new().await;
    let vm =
        json!({"kind": "vm", "name": "web1", "run": "manual", "disks": [{"name": "data", "empty": true, "size": "1G", "pool": "fast"}]});
    let pool = json!({"kind": "pool", "name": "fast", "driver": "dir", "path": "/srv/fast"});
    let apply =
        async |dry_run: bool, manifests: Value| bed.call("POST /v1/apply", json!({"manifests": manifests, "dry_run": dry_run})).await;
    let told = async |dry_run, manifests| {
        let answer = apply(dry_run, manifests).await;
        let results = answer.json()["results"].as_array().cloned().unwrap_or_default();
        let line = |r: &Value| format!("{} {} {} {}", word(&r["kind"]), word(&r["name"]), word(&r["action"]), r["changes"]);
        if results.is_empty() { answer.words() } else { results.iter().map(line).collect::<Vec<_>>().join("\n") }
    };
    expect![[r#"
        vm web1 create []
        pool fast create []"#]]
    .assert_eq(&told(true, json!([vm, pool])).await);
    bed.check("GET /v1/pools", Value::Null, expect!["200 [default] next null"]).await;
    expect![[r#"
        vm web1 create []
        pool fast create []"#]]
    .assert_eq(&told(false, json!([vm, pool])).await);
    let said = json!({"kind": "pool", "name": "fast", "driver": "dir", "path": "/srv/fast", "description": "NVMe"});
    expect![[r#"pool fast update [{"field":"description","from":"''","to":"NVMe","when":"live"}]"#]]
        .assert_eq(&told(false, json!([said])).await);
    expect!["pool fast unchanged []"].assert_eq(&told(false, json!([said])).await);
    let moved = json!({"kind": "pool", "name": "fast", "driver": "dir", "path": "/srv/x"});
    expect![[r#"
        422 invalid: the list of manifests has 1 problem
          manifests[0]: pool 'fast' is in use by volume 'web1-data'; what lies in /srv/fast is not moved, nor told to be elsewhere (make another pool, and let new disks lie there)"#]].assert_eq(&told(true, json!([moved])).await);
    let refused = bed.by(Role::Operator).call("POST /v1/apply", json!({"manifests": [said]})).await;
    expect![[r#"
        403 forbidden: the list of manifests has 1 problem
          manifests[0]: only admins may change pools"#]]
    .assert_eq(&refused.words());
}

#[tokio::test]
async fn what_is_said_of_an_image_changes_and_what_it_is_made_of_does_not() {
    let bed = Bed::new().await;
    let source = json!({"from": "build", "recipe": "tiny"});
    let said = json!({"name": "tiny", "description": "for tests", "labels": {"team": "web"}, "source": source});
    let view = bed.call("PUT /v1/images/tiny", said.clone()).await.json();
    assert_eq!((&view["spec"]["description"], &view["spec"]["labels"]["team"]), (&json!("for tests"), &json!("web")));
    assert_eq!(bed.get("/v1/images/tiny").await["facts"]["cloud_init"], "yes", "what was found in it stays");
    bed.check("GET /v1/images?label=team=web", Value::Null, expect!["200 [tiny] next null"]).await;
    bed.check("GET /v1/images?label=team=db", Value::Null, expect!["200 [] next null"]).await;
    let other = json!({"name": "tiny", "pool": "fast", "labels": {"a b": "c"}, "source": {"from": "build", "recipe": "debian-13"}});
    bed.check(
        "PUT /v1/images/tiny",
        other,
        expect![[r#"
        422 invalid: the manifest has 1 problem
          labels.a b: a label's key has 1 to 63 letters, digits, '.', '_', '/' or '-'"#]],
    )
    .await;
    let moved = json!({"name": "tiny", "pool": "fast", "source": {"from": "build", "recipe": "debian-13"}});
    let refused = bed.call("PUT /v1/images/tiny", moved).await.words();
    assert!(refused.starts_with("422 invalid: image tiny has 2 problems\n  source: ") && refused.contains("\n  pool: "), "{refused}");
    bed.check(
        "PUT /v1/images/none",
        json!({"name": "none", "source": source}),
        expect![[r#"
        404 not_found: there is no image 'none'
          hint: `vmkeep image list` shows what there is"#]],
    )
    .await;
    let mut manifest = said.clone();
    manifest["kind"] = json!("image");
    manifest["description"] = json!("");
    let planned = bed.call("POST /v1/apply", json!({"manifests": [manifest]})).await.json();
    assert_eq!(
        (&planned["results"][0]["action"], &planned["results"][0]["changes"][0]["field"]),
        (&json!("update"), &json!("description"))
    );
    assert_eq!(bed.get("/v1/images/tiny").await["spec"]["description"], "");
    bed.by(Role::Viewer)
        .check("PUT /v1/images/tiny", said, expect!["403 forbidden: 'alice' may not do this: it needs the role operator"])
        .await;
}

#[tokio::test]
async fn one_event_is_shown() {
    let bed = Bed::new().await;
    let uid = uuid::Uuid::from_u128(7);
    let event = Event {
        at: jiff::Timestamp::UNIX_EPOCH,
        resource: ResourceRef { kind: "vm".into(), project: default(), name: Name::known("web1"), uid },
        level: Level::Info,
        code: "vm.started".into(),
        message: "started".into(),
        node: None,
    };
    bed.put_all(vec![typed::put(keys::event(&default(), "vm", uid, "00000000000000000001-00000000-000001"), &event)]).await;
    let listed = bed.get("/v1/events").await["items"][0].clone();
    expect!["vm.00000000000000000000000000000007.00000000000000000001-00000000-000001"].assert_eq(&word(&listed["id"]));
    assert_eq!(bed.get(&format!("/v1/events/{}", word(&listed["id"]))).await, listed);
    bed.check(
        "GET /v1/events/vm.7",
        Value::Null,
        expect![[r#"
        422 invalid: 'vm.7' is not an event's id
          hint: 'vmkeep event list -o wide' shows them"#]],
    )
    .await;
    bed.check(
        "GET /v1/events/vm.00000000000000000000000000000007.2",
        Value::Null,
        expect![[r#"
        404 not_found: there is no event 'vm.00000000000000000000000000000007.2'
          hint: the newest 200 of each object are kept: vmkeep event list"#]],
    )
    .await;
}

#[tokio::test]
async fn tokens_counters_and_domains_come_in_pages() {
    let bed = Bed::new().await;
    for name in ["a", "b", "c"] {
        assert_eq!(bed.call("POST /v1/tokens", json!({"name": name, "role": "viewer"})).await.status, 200);
    }
    let first = bed.get("/v1/tokens?limit=2").await;
    assert_eq!(first["items"].as_array().map(Vec::len), Some(2));
    let second = bed.get(&format!("/v1/tokens?limit=2&after={}", word(&first["next"]))).await;
    assert_eq!((second["items"].as_array().map(Vec::len), &second["next"]), (Some(1), &Value::Null));
    let domain = |name: &str| json!({"uuid": uuid::Uuid::from_u128(1), "name": name, "state": "off", "ours": false});
    bed.node.answers.lock().expect("lock").push(("/n/domains", json!([domain("b"), domain("a"), domain("c")])));
    bed.check("GET /v1/domains?limit=2", Value::Null, expect![[r#"200 [a b] next "b""#]]).await;
    let next = word(&bed.get("/v1/domains?limit=2").await["next"]);
    bed.check(&format!("GET /v1/domains?limit=2&after={next}"), Value::Null, expect!["200 [c] next null"]).await;
    bed.check(
        "GET /v1/domains?after=x",
        Value::Null,
        expect![[r#"
        422 invalid: after 'x' is no place in a list
          hint: send the `next` of the page before"#]],
    )
    .await;
}
