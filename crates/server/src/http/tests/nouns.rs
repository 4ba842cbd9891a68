//! Images, volumes, networks, pools, tokens, operations, nodes, adopted domains.

use vmkeep_types::ids::{OperationId, VolumeId};
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::pool::{PoolDriver, PoolRecord, VolumeRecord};
use vmkeep_types::record::{VmOrigin, VmRecord};
use vmkeep_types::vm::DiskFormat;

use super::*;

#[tokio::test]
async fn images() {
    let bed = Bed::new().await;
    let build = json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}});
    bed.check("POST /v1/images", build.clone(), expect!["202 image.import deb pending"]).await;
    bed.check(
        "POST /v1/images",
        build,
        expect![[r#"
        409 conflict: there is an image 'deb' already
          hint: choose another --name, or delete the old one first"#]],
    )
    .await;
    bed.check(
        "POST /v1/images",
        json!({"name": "x", "source": {"from": "url", "url": "file:///etc/passwd", "sha256": null}}),
        expect![[r#"
        422 invalid: the manifest has 1 problem
          source.url: 'file:///etc/passwd' is no http:// or https:// address"#]],
    )
    .await;
    bed.check(
        "DELETE /v1/images/deb",
        Value::Null,
        expect![[r#"
        409 conflict: image 'deb' is still being made
          hint: cancel its operation: vmkeep op list, vmkeep op cancel ID"#]],
    )
    .await;
    bed.call("POST /v1/vms", json!({"name": "web1", "image": "tiny"})).await;
    bed.check("DELETE /v1/images/tiny", Value::Null, expect!["409 conflict: image 'tiny' is in use by 'web1-root'"]).await;
    bed.check("GET /v1/images", Value::Null, expect!["200 [deb tiny] next null"]).await;
    assert_eq!(bed.get("/v1/images/tiny").await["used_by"], json!(["web1-root"]));
}

#[tokio::test]
async fn a_cancelled_import_leaves_nothing() {
    let bed = Bed::new().await;
    let begun = bed.call("POST /v1/images", json!({"name": "deb", "source": {"from": "build", "recipe": "debian-13"}})).await.json();
    let id = word(&begun["operation"]["id"]);
    let cancelled = bed.call(&format!("DELETE /v1/operations/{id}"), Value::Null).await.json();
    assert_eq!(cancelled["state"], json!("cancelled"));
    bed.check(
        "GET /v1/images/deb",
        Value::Null,
        expect![[r#"
        404 not_found: there is no image 'deb'
          hint: `vmkeep image list` shows what there is"#]],
    )
    .await;
    assert!(bed.store.list(&keys::tasks(&Name::known("node1"))).await.expect("a list").items.is_empty());
    let again = bed.call(&format!("DELETE /v1/operations/{id}"), Value::Null).await;
    assert_eq!(again.status, 409, "{}", again.body);
    bed.vm("web1").await;
    let ops = bed.get("/v1/operations").await;
    let wish = ops["items"].as_array().expect("items").iter().find(|op| op["kind"] == "vm.create").expect("one").clone();
    bed.check(
        &format!("DELETE /v1/operations/{}", word(&wish["id"])),
        Value::Null,
        expect![[r#"
        409 conflict: this operation only reports how a wish is carried out; it cannot be cancelled
          hint: change the wish instead: stop, apply or delete"#]],
    )
    .await;
    let begun = bed.call("POST /v1/volumes", json!({"name": "v", "size": "1G"})).await.json();
    bed.call(&format!("DELETE /v1/operations/{}", word(&begun["operation"]["id"])), Value::Null).await;
    bed.check(
        "GET /v1/volumes/v",
        Value::Null,
        expect![[r#"
        404 not_found: there is no volume 'v'
          hint: `vmkeep volume list` shows what there is"#]],
    )
    .await;
}

#[tokio::test]
async fn volumes() {
    let bed = Bed::new().await;
    bed.check("POST /v1/volumes", json!({"name": "data", "size": "1G"}), expect!["202 volume.create data pending"]).await;
    bed.check("POST /v1/volumes", json!({"name": "data", "size": "1G"}), expect!["409 conflict: there is a volume 'data' already"]).await;
    bed.check(
        "POST /v1/volumes",
        json!({"name": "none"}),
        expect![[r#"
        422 invalid: volume none has 1 problem
          size: an empty volume needs a size, like 20G"#]],
    )
    .await;
    bed.check(
        "POST /v1/volumes",
        json!({"name": "copy", "image": "no-image"}),
        expect![[r#"
        404 not_found: there is no image 'no-image'
          hint: `vmkeep image list` shows what there is"#]],
    )
    .await;
    bed.check(
        "POST /v1/volumes",
        json!({"name": "copy", "image": "tiny", "pool": "fast"}),
        expect![[r#"
            404 not_found: there is no pool 'fast'
              hint: see 'vmkeep pool list'"#]],
    )
    .await;
    made(&bed, "data").await;
    bed.check("DELETE /v1/volumes/data", Value::Null, expect!["202 volume.delete data pending"]).await;
    // From now on nobody takes it, and the deletion may be asked for again.
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "disks": [{"name": "d", "volume": "data"}]}),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[d].volume: volume 'data' is being deleted"#]],
    )
    .await;
    bed.check("DELETE /v1/volumes/data", Value::Null, expect!["202 volume.delete data pending"]).await;
    assert_eq!(bed.get("/v1/volumes/data").await["attached"], Value::Null);
}

/// Its node was dead and is removed: nobody has its data any more, or everybody who reaches the pool.
#[tokio::test]
async fn a_volume_of_a_node_that_is_gone_can_be_deleted() {
    let bed = Bed::new().await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    made(&bed, "data").await;
    let mut volume = typed::list_json::<VolumeRecord>(bed.store.as_ref(), keys::ALL_VOLUMES).await.expect("volumes").remove(0);
    volume.value.node = Some(Name::known("gone"));
    bed.store.txn(Txn::default().then(typed::put(volume.key, &volume.value))).await.expect("written");
    bed.check("DELETE /v1/volumes/data", Value::Null, expect!["200 volume.delete data done"]).await;
    assert_eq!(bed.call("GET /v1/volumes/data", Value::Null).await.status, 404);
    assert_eq!(bed.store.list("n/gone/").await.expect("a list").items.len(), 0, "nobody is asked");

    bed.call("POST /v1/volumes", json!({"name": "shared", "size": "1G"})).await;
    made(&bed, "shared").await;
    let mut volume = typed::list_json::<VolumeRecord>(bed.store.as_ref(), keys::ALL_VOLUMES).await.expect("volumes").remove(0);
    volume.value.node = Some(Name::known("gone"));
    let mut pool = typed::list_json::<PoolRecord>(bed.store.as_ref(), keys::ALL_POOLS).await.expect("pools").remove(0);
    let PoolDriver::Dir { shared, .. } = &mut pool.value.spec.driver;
    *shared = true;
    let both = Txn::default().then(typed::put(volume.key, &volume.value)).then(typed::put(pool.key, &pool.value));
    bed.store.txn(both).await.expect("written");
    bed.check("DELETE /v1/volumes/shared", Value::Null, expect!["202 volume.delete shared pending"]).await;
}

#[tokio::test]
async fn networks_and_pools() {
    let bed = Bed::new().await;
    assert_eq!(bed.call("PUT /v1/networks/lan", json!({"name": "lan", "mode": "bridge", "bridge": "br0"})).await.status, 200);
    bed.check("PUT /v1/networks/lan", json!({"name": "wan"}), expect!["422 invalid: the body names 'wan', the path 'lan'"]).await;
    bed.check(
        "PUT /v1/networks/lan",
        json!({"name": "lan", "mode": "bridge"}),
        expect![[r#"
        422 invalid: the manifest has 1 problem
          bridge: mode: bridge needs the name of an existing bridge of the host"#]],
    )
    .await;
    bed.call("POST /v1/vms", json!({"name": "web1", "nics": [{"name": "lan", "network": "lan"}]})).await;
    bed.check("DELETE /v1/networks/lan", Value::Null, expect!["409 conflict: network 'lan' is in use by 'web1'"]).await;
    let nat = |name: &str, ipv4: &str| json!({"name": name, "ipv4": ipv4});
    assert_eq!(bed.call("PUT /v1/networks/back", nat("back", "10.9.0.1/24")).await.status, 200);
    assert_eq!(bed.call("PUT /v1/networks/back", nat("back", "10.9.0.1/25")).await.status, 200, "its own addresses are no others'");
    bed.check(
        "PUT /v1/networks/dup",
        nat("dup", "10.9.0.9/16"),
        expect![[r#"
        422 invalid: network dup has 1 problem
          ipv4: it overlaps network 'back' (10.9.0.1/25): a host can route to one of them only"#]],
    )
    .await;
    assert_eq!(bed.call("PUT /v1/networks/beside", nat("beside", "10.9.0.129/25")).await.status, 200);
    bed.check("GET /v1/networks", Value::Null, expect!["200 [back beside default lan] next null"]).await;
    bed.check("GET /v1/pools", Value::Null, expect!["200 [default] next null"]).await;
    bed.check(
        "GET /v1/pools/fast",
        Value::Null,
        expect![[r#"
        404 not_found: there is no pool 'fast'
          hint: see 'vmkeep pool list'"#]],
    )
    .await;
    assert_eq!(bed.get("/v1/pools/default").await["spec"]["path"], json!("/pool"));
    let nodes = bed.get("/v1/nodes").await;
    assert_eq!(nodes["items"][0]["facts"]["name"], json!("node1"));
}

#[tokio::test]
async fn a_token_is_shown_once() {
    let bed = Bed::new().await;
    let made = bed.call("POST /v1/tokens", json!({"name": "ci", "role": "operator", "expires_in": "30d"})).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let secret = word(&made.json()["secret"]);
    let caller = crate::auth::authenticate_token(bed.store.as_ref(), &secret).await.expect("valid");
    assert_eq!((caller.name.as_str(), caller.role), ("ci", Role::Operator));
    let list = bed.get("/v1/tokens").await;
    assert!(!list.to_string().contains(&secret[17..]), "{list}");
    let id = word(&list["items"][0]["id"]);
    assert_eq!(bed.call(&format!("DELETE /v1/tokens/{id}"), Value::Null).await.status, 204);
    assert!(crate::auth::authenticate_token(bed.store.as_ref(), &secret).await.is_err());
    bed.check("DELETE /v1/tokens/0", Value::Null, expect!["404 not_found: there is no token '0'"]).await;
}

#[tokio::test]
async fn an_adopted_domain_keeps_its_uuid_and_its_files() {
    let bed = Bed::new().await;
    let uuid = uuid::Uuid::from_u128(7);
    let mut spec = serde_json::to_value(vmkeep_types::vm::VmSpec::named(Name::known("old"))).expect("plain data");
    spec["disks"] = json!([{"name": "vda", "volume": "vda"}]);
    let proposal = json!({"uuid": uuid, "name": "old", "spec": spec, "choices": {"macs": {"lan": "52:54:00:01:02:03"}, "serials": {}},
        "disks": {"vda": {"path": "/srv/old.qcow2", "format": "raw"}}, "running": true, "warnings": []});
    bed.node.answers.lock().expect("lock").push(("/n/domains/old/adoption", proposal));
    bed.check(
        "POST /v1/adopt",
        json!({"domain": "../x"}),
        expect![[r#"
        422 invalid: '../x' is no libvirt domain name that can be taken over
          hint: give its UUID instead"#]],
    )
    .await;
    bed.check("POST /v1/adopt", json!({"domain": "old", "name": "web1"}), expect!["202 vm.adopt web1 pending"]).await;
    assert_eq!(bed.vm_id("web1").await, VmId(uuid));
    let record: VmRecord = bed.stored(&keys::vm(&default(), VmId(uuid))).await;
    assert_eq!(record.origin, VmOrigin::Adopted);
    let volume: VolumeRecord = bed.stored(&keys::volume(&default(), record.volumes[&Name::known("vda")])).await;
    assert_eq!((volume.foreign_path.as_deref(), volume.format), (Some("/srv/old.qcow2"), DiskFormat::Raw), "as the domain says");
    assert_eq!(bed.get("/v1/volumes/web1-vda").await["foreign_path"], json!("/srv/old.qcow2"));
    bed.check(
        "POST /v1/adopt",
        json!({"domain": "old"}),
        expect![[r#"
        409 conflict: 'old', its domain, or one of its volumes or MACs is in vmkeep already
          hint: choose another name with --name"#]],
    )
    .await;
    bed.by(Role::Operator)
        .check("POST /v1/adopt", json!({"domain": "old"}), expect!["403 forbidden: 'alice' may not do this: it needs the role admin"])
        .await;
}

/// As after the restore of an older store.
#[tokio::test]
async fn a_domain_of_ours_that_the_store_has_lost_is_shown_and_taken_back() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let (kept, lost, disk) = (bed.vm_id("web1").await, uuid::Uuid::from_u128(7), uuid::Uuid::from_u128(8));
    let domains = json!([{"name": "web1", "uuid": kept, "state": "off", "ours": true}, {"name": "db", "uuid": lost, "state": "running", "ours": true}]);
    let spec = |name: &str, disks: Value| {
        let mut spec = serde_json::to_value(vmkeep_types::vm::VmSpec::named(Name::known("x"))).expect("plain data");
        (spec["name"], spec["disks"]) = (json!(name), disks);
        spec
    };
    let proposal = |name: &str, uuid: Value, path: &str| {
        json!({"uuid": uuid, "name": name, "spec": spec(name, json!([{"name": "root", "volume": "root"}])), "choices": {"macs": {}, "serials": {}},
            "disks": {"root": {"path": path, "format": "qcow2"}}, "running": true, "ours": true, "warnings": []})
    };
    {
        let mut answers = bed.node.answers.lock().expect("lock");
        answers.push(("/n/domains/db/adoption", proposal("db", json!(lost), &format!("/pool/{disk}.qcow2"))));
        answers.push(("/n/domains/web1/adoption", proposal("web1", json!(kept), "/pool/x.qcow2")));
        answers.push(("/n/domains", domains));
    }
    let told = bed.get("/v1/domains").await;
    let whose = |n: usize| {
        (word(&told["items"][n]["name"]).to_owned(), told["items"][n]["ours"] == json!(true), told["items"][n]["lost"] == json!(true))
    };
    assert_eq!([whose(0), whose(1)], [("db".into(), false, true), ("web1".into(), true, false)]);
    bed.check(
        "POST /v1/adopt",
        json!({"domain": "web1"}),
        expect![[r#"
            409 conflict: the domain 'web1' is a VM of vmkeep already
              hint: `vmkeep vm list` shows it, where it is of another project with --project NAME"#]],
    )
    .await;
    let answer = bed.call("POST /v1/adopt", json!({"domain": "db"})).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert!(answer.body.contains("carries vmkeep's mark"), "{}", answer.body);
    let record: VmRecord = bed.stored(&keys::vm(&default(), VmId(lost))).await;
    let volume: VolumeRecord = bed.stored(&keys::volume(&default(), record.volumes[&Name::known("root")])).await;
    assert_eq!((volume.id.0, volume.foreign_path, volume.made), (disk, None, true), "a file of the pool's own is that volume again");
}

/// As after the restore of a store from before its volume had a VM.
#[tokio::test]
async fn a_lost_domain_takes_the_volume_that_the_store_knows_as_nobodys() {
    let bed = Bed::new().await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G", "format": "raw"})).await;
    made(&bed, "data").await;
    let (id, lost): (VolumeId, _) = (bed.stored(&keys::name("volume", &default(), &Name::known("data"))).await, uuid::Uuid::from_u128(7));
    let mut spec = serde_json::to_value(vmkeep_types::vm::VmSpec::named(Name::known("db"))).expect("plain data");
    spec["disks"] = json!([{"name": "root", "volume": "db-root"}]);
    let proposal = json!({"uuid": lost, "name": "db", "spec": spec, "choices": {"macs": {}, "serials": {}}, "running": true, "ours": true,
        "disks": {"root": {"path": format!("/pool/{id}.raw"), "format": "raw"}}, "instance": 2, "warnings": []});
    bed.node.answers.lock().expect("lock").push(("/n/domains/db/adoption", proposal));
    bed.check("POST /v1/adopt", json!({"domain": "db"}), expect!["202 vm.adopt db pending"]).await;
    let record: VmRecord = bed.stored(&keys::vm(&default(), VmId(lost))).await;
    assert_eq!((record.volumes[&Name::known("root")], record.spec.disks[0].volume.clone()), (id, Some(Name::known("data"))));
    assert_eq!(record.instance, 2, "as its seed says");
    let volume: VolumeRecord = bed.stored(&keys::volume(&default(), id)).await;
    let attached = volume.attached.expect("it is its disk");
    assert_eq!((attached.vm.0, attached.disk, volume.node, volume.made), (lost, Name::known("root"), Some(Name::known("node1")), true));
    bed.check(
        "DELETE /v1/volumes/data",
        Value::Null,
        expect![[r#"
            409 conflict: volume 'data' is disk 'root' of VM 'db'
              hint: drop the disk from the VM first"#]],
    )
    .await;
}

#[tokio::test]
async fn an_accepted_overlay_has_its_own_format_and_is_left_again() {
    let bed = Bed::new().await;
    let wish = json!({"name": "web1", "run": "manual", "disks": [{"name": "root", "empty": true, "size": "1G", "format": "raw"}]});
    bed.call("POST /v1/vms", wish).await;
    let uuid = bed.vm_id("web1").await;
    let record: VmRecord = bed.stored(&keys::vm(&default(), uuid)).await;
    let id = record.volumes[&Name::known("root")];
    let (own, overlay) = (format!("/pool/{id}.raw"), format!("/pool/{id}.snap1"));
    let elsewhere = format!("/mnt/{id}.raw");
    for (path, format, kept, of) in [
        (&overlay, "qcow2", Some(overlay.clone()), DiskFormat::Qcow2),
        (&own, "raw", None, DiskFormat::Raw),
        (&elsewhere, "raw", Some(elsewhere.clone()), DiskFormat::Raw),
    ] {
        let spec = serde_json::to_value(&record.spec).expect("plain data");
        let proposal = json!({"uuid": uuid, "name": "web1", "spec": spec, "choices": {"macs": {}, "serials": {}},
            "disks": {"root": {"path": path, "format": format}}, "running": false, "warnings": []});
        {
            let mut answers = bed.node.answers.lock().expect("lock");
            answers.clear();
            answers.push(("/n/domains/web1/adoption", proposal));
        }
        bed.check("POST /v1/adopt", json!({"domain": "web1", "disks": true}), expect!["202 vm.adopt web1 pending"]).await;
        let volume: VolumeRecord = bed.stored(&keys::volume(&default(), id)).await;
        assert_eq!((volume.foreign_path, volume.format), (kept, of), "{path}");
        let record: VmRecord = bed.stored(&keys::vm(&default(), uuid)).await;
        assert_eq!(record.spec.disks[0].format, of, "the wish tells what is there");
    }
}

#[tokio::test]
async fn old_operations_and_events_are_forgotten() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let id = bed.vm_id("web1").await;
    let first: Operation = serde_json::from_value(bed.get("/v1/operations").await["items"][0].clone()).expect("an operation");
    let over = |days: i64, uid: u128| {
        let ended = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        let id = OperationId(uuid::Uuid::now_v7());
        let mut op = Operation { id, state: OpState::Done, ended_at: Some(ended), ..first.clone() };
        op.resource.uid = uuid::Uuid::from_u128(uid);
        crate::app::put_op(&op)
    };
    bed.put_all((0..30).map(|_| over(1, 1)).chain([over(8, 2), over(6, 3)]).collect()).await;
    let event = json!({"at": "2026-01-01T00:00:00Z", "resource": {"kind": "vm", "project": "default", "name": "web1", "uid": id}, "level": "info", "code": "vm.started", "message": "started", "node": null});
    for part in 0..3 {
        bed.put_all((0..100).map(|n| typed::put(keys::event(&default(), "vm", id, format!("{:020}-0", part * 100 + n)), &event)).collect())
            .await;
    }
    crate::app::housekeeping(bed.store.as_ref(), None).await.expect("swept");
    let ops = bed.get("/v1/operations").await;
    assert_eq!(ops["items"].as_array().map(Vec::len), Some(1 + 20 + 1), "the open one, the newest 20 of an object, the one of 6 days");
    let events = bed.get("/v1/vms/web1/events").await;
    assert_eq!(events["items"].as_array().map(Vec::len), Some(200));
    // All of one moment, and yet each page goes on where the last one ended.
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let page = bed.get(&format!("/v1/events?limit=70{after}")).await;
        count += page["items"].as_array().expect("items").len();
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(count, 200);
}

#[tokio::test]
async fn a_deletion_and_a_new_user_do_not_miss_each_other() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/networks/blue", json!({"name": "blue"})).await;
    let wish = json!({"name": "web1", "image": "tiny", "nics": [{"name": "lan", "network": "blue"}]});
    for path in ["DELETE /v1/images/tiny", "DELETE /v1/networks/blue"] {
        let (first, again) = (bed.call(path, Value::Null).await.json(), bed.call(path, Value::Null).await.json());
        assert_eq!(first["operation"]["id"], again["operation"]["id"], "asked again, it is the same operation");
    }
    bed.check(
        "POST /v1/vms",
        wish.clone(),
        expect![[r#"
        422 invalid: vm web1 has 2 problems
          nics[lan].network: network 'blue' is being deleted
          disks[root].image: image 'tiny' is being deleted"#]],
    )
    .await;
    bed.check("POST /v1/volumes", json!({"name": "v", "image": "tiny"}), expect!["409 conflict: image 'tiny' is being deleted"]).await;
    bed.check("PUT /v1/networks/blue", json!({"name": "blue", "mtu": 9000}), expect!["409 conflict: network 'blue' is being deleted"])
        .await;
    // The name is taken until the file is gone.
    let build = json!({"name": "tiny", "source": {"from": "build", "recipe": "tiny"}});
    assert_eq!(bed.call("POST /v1/images", build).await.status, 409);
    // A network's deletion that is called off leaves a network; an image may have lost its file.
    for op in bed.get("/v1/operations").await["items"].as_array().expect("items") {
        bed.call(&format!("DELETE /v1/operations/{}", word(&op["id"])), Value::Null).await;
    }
    bed.check(
        "POST /v1/vms",
        wish,
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[root].image: image 'tiny' is being deleted"#]],
    )
    .await;
    bed.check("DELETE /v1/images/tiny", Value::Null, expect!["202 image.delete tiny pending"]).await;
}

#[tokio::test]
async fn a_vm_decided_before_the_mark_is_not_written_after_it() {
    let bed = Bed::new().await;
    let caller = Caller { name: "alice".into(), role: Role::Admin, via: Via::Uid(1), projects: None };
    let ask = crate::app::Ask {
        project: default(),
        caller,
        if_match: None,
        repeat: None,
        admission: Default::default(),
        foreign: Default::default(),
    };
    let store = bed.store.as_ref();
    let spec: vmkeep_types::vm::VmSpec = serde_json::from_value(json!({"name": "web1", "image": "tiny"})).expect("a wish");
    let tiny = Name::known("tiny");
    let (made, gone) = tokio::join!(crate::app::vm_write::create(store, &ask, spec), crate::app::image::delete(store, &ask, &tiny),);
    assert_ne!(made.is_ok(), gone.is_ok(), "one of the two: {made:?} {gone:?}");
    let image: ImageRecord =
        bed.stored(&keys::image(&default(), bed.stored(&keys::name("image", &default(), &Name::known("tiny"))).await)).await;
    assert_eq!(image.leaving.is_some(), gone.is_ok(), "a mark that was in vain is taken back");
}

#[tokio::test]
async fn a_volume_is_nobodys_until_it_is_made() {
    let bed = Bed::new().await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "disks": [{"name": "d", "volume": "data"}]}),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[d].volume: volume 'data' is still being made; `vmkeep op list` shows how far it is"#]],
    )
    .await;
    bed.check(
        "DELETE /v1/volumes/data",
        Value::Null,
        expect![[r#"
        409 conflict: volume 'data' is still being made
          hint: cancel its operation: vmkeep op list, vmkeep op cancel ID"#]],
    )
    .await;
    made(&bed, "data").await;
    bed.check("POST /v1/vms", json!({"name": "web1", "disks": [{"name": "d", "volume": "data"}]}), expect!["202 vm.create web1 pending"])
        .await;
}

/// The volume as it is when the node has made it.
pub(super) async fn made(bed: &Bed, name: &'static str) {
    let id = bed.stored(&keys::name("volume", &default(), &Name::known(name))).await;
    let key = keys::volume(&default(), id);
    let volume = VolumeRecord { filling: None, ..bed.stored(&key).await };
    bed.put_all(vec![typed::put(key, &volume)]).await;
}

#[tokio::test]
async fn images_are_used_as_what_they_are() {
    let bed = Bed::new().await;
    let mut iso = image("cd");
    iso.facts.as_mut().expect("facts").kind = ImageKind::Iso;
    bed.put_all(vec![
        typed::put(keys::name("image", &default(), &iso.spec.name), &iso.id),
        typed::put(keys::image(&default(), iso.id), &iso),
    ])
    .await;
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "image": "cd", "cdroms": [{"name": "cd0", "image": "tiny"}]}),
        expect![[r#"
        422 invalid: vm web1 has 2 problems
          cdroms[cd0].image: image 'tiny' is a disk, no ISO; disks are made from it (disks[].image)
          disks[root].image: image 'cd' is an installation medium, no disk; put it into a tray (cdroms), beside an empty disk"#]],
    )
    .await;
    bed.check(
        "POST /v1/volumes",
        json!({"name": "v", "image": "cd"}),
        expect!["422 invalid: image 'cd' is an installation medium, no disk"],
    )
    .await;
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "image": "tiny", "cdroms": [{"name": "cd0", "image": "cd"}]}),
        expect!["202 vm.create web1 pending"],
    )
    .await;
}

#[tokio::test]
async fn events_of_what_is_gone_are_forgotten_after_a_week() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let there = bed.vm_id("web1").await.0;
    let (gone, lately) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
    let days = |days: i64| (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)).as_nanosecond();
    let event = |uid: uuid::Uuid, at: i128| typed::put(keys::event(&default(), "vm", uid, format!("{at:020}-0")), &json!({}));
    bed.put_all(vec![event(there, days(9)), event(gone, days(9)), event(gone, days(8)), event(lately, days(9)), event(lately, days(1))])
        .await;
    // Not by somebody who leads no more.
    let other = vmkeep_store::Compare::Present("leader".into());
    crate::app::housekeeping(bed.store.as_ref(), Some(&other)).await.expect("swept");
    assert_eq!(bed.store.list("event/").await.expect("a list").items.len(), 5);
    crate::app::housekeeping(bed.store.as_ref(), None).await.expect("swept");
    let left: Vec<String> = bed.store.list("event/").await.expect("a list").items.into_iter().map(|kv| kv.key).collect();
    assert_eq!((left.len(), left.iter().any(|key| key.contains(&gone.to_string()))), (3, false), "{left:?}");
}

#[tokio::test]
async fn a_domain_of_another_vm_is_not_taken() {
    let bed = Bed::new().await;
    let spec = serde_json::to_value(vmkeep_types::vm::VmSpec::named(Name::known("old"))).expect("plain data");
    let proposal = |uuid: uuid::Uuid| json!({"uuid": uuid, "name": "old", "spec": spec, "choices": {"macs": {}, "serials": {}}, "disks": {}, "running": true, "warnings": []});
    bed.vm("web1").await;
    // The same uuid in another project.
    let id = bed.vm_id("web1").await;
    bed.node.answers.lock().expect("lock").push(("/n/domains/old/adoption", proposal(id.0)));
    let power: vmkeep_types::record::Power = bed.stored(&keys::power(id)).await;
    bed.check(
        "POST /v1/projects/other/adopt",
        json!({"domain": "old"}),
        expect![[r#"
        409 conflict: 'old', its domain, or one of its volumes or MACs is in vmkeep already
          hint: choose another name with --name"#]],
    )
    .await;
    assert_eq!(bed.stored::<vmkeep_types::record::Power>(&keys::power(id)).await, power);
    // Disks of one domain for another's VM.
    bed.vm("web2").await;
    bed.check(
        "POST /v1/adopt",
        json!({"domain": "old", "name": "web2", "disks": true}),
        expect![[r#"
        409 conflict: the domain 'old' is not the one of VM 'web2'
          hint: vmkeep vm adopt --disks web2"#]],
    )
    .await;
}
