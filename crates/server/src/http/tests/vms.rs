//! VMs: written, changed by two, repeated, commanded, copied, deleted.

use vmkeep_types::order::{NodeTask, Work};
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Leaving, Power, PowerWish, VmChoices, VmRecord};

use super::*;

#[tokio::test]
async fn a_vm_is_one_transaction_of_all_its_records() {
    let bed = Bed::new().await;
    let before = bed.store.revision().await.expect("a revision");
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "image": "tiny", "disks": [{"name": "root", "size": "2G"}, {"name": "data", "empty": true, "size": "1G"}]}),
        expect!["202 vm.create web1 pending"],
    )
    .await;
    assert_eq!(bed.store.revision().await.expect("a revision"), before.next(), "one revision");
    let id = bed.vm_id("web1").await;
    let record: VmRecord = bed.stored(&keys::vm(&default(), id)).await;
    for disk in ["root", "data"] {
        let volume: VolumeRecord = bed.stored(&keys::volume(&default(), record.volumes[&Name::known(disk)])).await;
        assert_eq!((volume.name.as_str(), volume.attached.map(|a| a.vm)), (format!("web1-{disk}").as_str(), Some(id)));
        assert_eq!(volume.image.is_some(), disk == "root");
    }
    let power: Power = bed.stored(&keys::power(id)).await;
    assert_eq!((power.want, power.cycle), (PowerWish::On, 1));
    let view = bed.get("/v1/vms/web1").await;
    assert!(word(&view["choices"]["macs"]["lan"]).starts_with("52:54:00:"), "{view}");
    assert_eq!(word(&view["choices"]["serials"]["root"]).len(), 20);
    assert_eq!((&view["status"]["phase"], &view["status"]["text"]), (&json!("pending"), &json!("waiting for a node")));
}

#[tokio::test]
async fn who_only_stays_off_is_off() {
    let bed = Bed::new().await;
    for (name, run, want) in [
        ("a", "always", PowerWish::On),
        ("b", "on-failure", PowerWish::On),
        ("c", "manual", PowerWish::Off),
        ("d", "halted", PowerWish::Off),
    ] {
        assert_eq!(bed.call("POST /v1/vms", json!({"name": name, "run": run})).await.status, 202);
        let id = bed.vm_id(Box::leak(name.to_owned().into_boxed_str())).await;
        assert_eq!(bed.stored::<Power>(&keys::power(id)).await.want, want, "{run}");
    }
}

#[tokio::test]
async fn the_second_of_two_writers_learns_the_newer_revision() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let read = bed.call("GET /v1/vms/web1", Value::Null).await;
    let tag = read.headers["etag"].to_str().expect("text").to_owned();
    assert_eq!(tag, format!("\"{}\"", read.json()["spec_revision"]));
    let write = |description: &str| {
        let mut spec = read.json()["spec"].clone();
        spec["description"] = json!(description);
        bed.reply(Request::builder().method("PUT").uri("/v1/vms/web1").header("if-match", &tag), spec.to_string())
    };
    let (first, second) = tokio::join!(write("one"), write("two"));
    let (won, lost) = if first.status == 202 { (first, second) } else { (second, first) };
    assert_eq!((won.status, lost.status), (202, 409), "{} {}", won.body, lost.body);
    let now = bed.get("/v1/vms/web1").await["spec_revision"].clone();
    assert_eq!((&lost.json()["extra"]["revision"], &lost.json()["code"]), (&now, &json!("stale")));
    assert_eq!(lost.headers["etag"], format!("\"{now}\"").as_str());
    assert!(lost.body.contains(&format!("it has revision {now} now")), "{}", lost.body);
    let any = |name: &str| {
        bed.reply(
            Request::builder().method("PUT").uri(format!("/v1/vms/{name}")).header("if-match", "*"),
            json!({"name": name, "description": "any"}).to_string(),
        )
    };
    assert_eq!(any("web1").await.status, 202);
    expect![[r#"
        404 not_found: there is no vm 'web2'
          hint: `vmkeep vm list -A` shows VMs, and libvirt's domains that `vmkeep vm adopt` takes over"#]]
    .assert_eq(&any("web2").await.words());
}

#[tokio::test]
async fn without_if_match_both_get_through() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let write = |n: u32| {
        let bed = &bed;
        async move { bed.call("PUT /v1/vms/web1", json!({"name": "web1", "run": "manual", "description": n.to_string()})).await.status }
    };
    assert_eq!(tokio::join!(write(1), write(2), write(3)), (202, 202, 202));
}

#[tokio::test]
async fn the_same_wish_again_changes_nothing() {
    let bed = Bed::new().await;
    let wish = json!({"name": "web1", "image": "tiny", "cloud_init": {"password": "hunter2", "users": [{"name": "bob", "passwd": "$6$x"}]}, "display": {"password": "12345678"}});
    bed.check("PUT /v1/vms/web1", wish.clone(), expect!["202 vm.create web1 pending"]).await;
    let before = bed.get("/v1/vms/web1").await["spec_revision"].clone();
    bed.check("PUT /v1/vms/web1", wish, expect!["200 vm.update web1 done"]).await;
    let written = bed.store.revision().await.expect("a revision");
    // Read, and sent back as it was read: secrets are not shown, and not lost.
    let read = bed.by(Role::Viewer).get("/v1/vms/web1").await;
    assert!(
        !read.to_string().contains("hunter2") && !read.to_string().contains("12345678") && !read.to_string().contains("$6$x"),
        "{read}"
    );
    bed.check("PUT /v1/vms/web1", read["spec"].clone(), expect!["200 vm.update web1 done"]).await;
    assert_eq!(bed.get("/v1/vms/web1").await["spec_revision"], before, "the wish was not written again");
    assert_eq!(bed.store.revision().await.expect("a revision"), written, "and the operation that says so once");
    let id = bed.vm_id("web1").await;
    let record: VmRecord = bed.stored(&keys::vm(&default(), id)).await;
    assert_eq!(record.spec.cloud_init.expect("a seed").password.as_deref(), Some("hunter2"));
}

#[tokio::test]
async fn a_repeated_post_is_one_vm() {
    let bed = Bed::new().await;
    let post = |key: &str, name: &str| {
        bed.reply(
            Request::builder().method("POST").uri("/v1/vms").header("idempotency-key", key),
            json!({"name": name, "run": "manual"}).to_string(),
        )
    };
    let (first, second) = tokio::join!(post("k1", "web1"), post("k1", "web1"));
    assert_eq!((first.status, second.status), (202, 202), "{} {}", first.body, second.body);
    assert_eq!(first.json()["operation"]["id"], second.json()["operation"]["id"]);
    assert_eq!(post("k1", "web1").await.json()["operation"]["id"], first.json()["operation"]["id"]);
    expect![[r#"
        409 conflict: this Idempotency-Key was used for vm.create of 'web1', and the request was another one
          hint: a new request takes a new key"#]]
    .assert_eq(&post("k1", "web2").await.words());
    expect![[r#"
        409 conflict: there is a VM 'web1' already
          hint: change it with 'vmkeep vm set web1', or take another name"#]]
    .assert_eq(&post("k2", "web1").await.words());
    expect!["422 invalid: Idempotency-Key is at most 64 characters of A-Z, a-z, 0-9 and '-'"].assert_eq(&post("a b", "web1").await.words());
    // The key is forgotten with its operation.
    let op = keys::op(&default(), word(&first.json()["operation"]["id"]).parse().expect("an id"));
    bed.put_all(vec![Op::Delete(op)]).await;
    crate::app::housekeeping(bed.store.as_ref(), None).await.expect("swept");
    assert!(bed.store.list("idem/").await.expect("a list").items.is_empty());
}

#[tokio::test]
async fn commands_are_power_wishes_and_holds() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    let id = bed.vm_id("web1").await;
    let mut story = String::new();
    for verb in ["start", "stop", "kill", "restart", "start"] {
        let words = bed.call(&format!("POST /v1/vms/web1/actions/{verb}"), Value::Null).await.words();
        let power: Power = bed.stored(&keys::power(id)).await;
        let _ = writeln!(story, "{words}: {:?} at {}, held by {:?}", power.want, power.cycle, power.held.map(|h| h.by));
    }
    expect![[r#"
        202 vm.start web1 pending: On at 2, held by None
        202 vm.stop web1 pending: Off at 3, held by Some("alice")
        202 vm.kill web1 pending: Killed at 4, held by Some("alice")
        202 vm.restart web1 pending: Restart at 5, held by None
        202 vm.start web1 pending: On at 6, held by None
    "#]]
    .assert_eq(&story);
    bed.check(
        "POST /v1/vms/web1/actions/fly",
        Value::Null,
        expect![[r#"
            404 not_found: there is no action 'fly'
              hint: known are start, stop, kill, restart, reboot, reset, pause, resume, rename, clone, reinit, upgrade-machine, rebuild, release, migrate"#]],
    )
    .await;
    bed.check("POST /v1/vms/web1/actions/start", json!({"name": "x"}), expect!["422 invalid: 'start' takes no `name`"]).await;
    bed.check("POST /v1/vms/web1/actions/stop", json!({"timeout": "5s"}), expect!["202 vm.stop web1 pending"]).await;
    bed.check(
        "POST /v1/vms/web1/actions/stop",
        json!({"tiemout": "5s"}),
        expect![[r#"
        422 invalid: the request has 1 problem
          tiemout: there is no field 'tiemout'; did you mean 'timeout'?"#]],
    )
    .await;
    bed.call("POST /v1/vms", json!({"name": "never", "run": "halted"})).await;
    bed.check(
        "POST /v1/vms/never/actions/start",
        Value::Null,
        expect![[r#"
        409 conflict: 'never' has run: halted
          hint: vmkeep vm set never run=on-failure"#]],
    )
    .await;
}

#[tokio::test]
async fn tasks_go_to_the_node_that_has_the_vm() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    bed.check("POST /v1/vms/web1/actions/reboot", Value::Null, expect!["409 conflict: 'web1' has no node yet"]).await;
    let id = bed.vm_id("web1").await;
    watched::owned(&bed, id).await;
    for verb in ["reboot", "reset", "pause", "resume"] {
        let reply = bed.call(&format!("POST /v1/vms/web1/actions/{verb}"), Value::Null).await;
        let op = word(&reply.json()["operation"]["id"]).parse().expect("an id");
        let task: NodeTask = bed.stored(&keys::task(&Name::known("node1"), op)).await;
        let fits = matches!((verb, task.work), ("reboot", Work::Reboot { vm }) | ("reset", Work::Reset { vm }) | ("pause", Work::Pause { vm }) | ("resume", Work::Resume { vm }) if vm == id);
        assert!(fits, "{verb}");
    }
}

#[tokio::test]
async fn renamed_it_is_the_same_vm() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    bed.vm("web2").await;
    let id = bed.vm_id("web1").await;
    bed.check(
        "POST /v1/vms/web1/actions/rename",
        Value::Null,
        expect![[r#"
        422 invalid: the new name is missing
          hint: send {"name": "…"}"#]],
    )
    .await;
    bed.check(
        "POST /v1/vms/web1/actions/rename",
        json!({"name": "web2"}),
        expect!["409 conflict: there is a VM 'web2' already, or 'web1' changed meanwhile"],
    )
    .await;
    bed.check("POST /v1/vms/web1/actions/rename", json!({"name": "web9"}), expect!["202 vm.rename web9 pending"]).await;
    assert_eq!(bed.vm_id("web9").await, id);
    bed.check("GET /v1/vms/web1", Value::Null, expect!["404 not_found: there is no vm 'web1'"]).await;
    bed.check("GET /v1/vms", Value::Null, expect!["200 [web2 web9] next null"]).await;
}

#[tokio::test]
async fn a_clone_has_its_own_identity_and_volumes() {
    let bed = Bed::new().await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    nouns::made(&bed, "data").await;
    bed.call(
        "POST /v1/vms",
        json!({"name": "web1", "image": "tiny", "disks": [{"name": "root"}, {"name": "data", "volume": "data"}], "run": "manual"}),
    )
    .await;
    bed.check(
        "POST /v1/vms/web1/actions/clone",
        json!({"name": "web2"}),
        expect![[r#"
        409 conflict: 'web1' is waiting for a node; a clone of a running disk would be torn
          hint: vmkeep vm stop web1"#]],
    )
    .await;
    let id = bed.vm_id("web1").await;
    watched::seen_off(&bed, id).await;
    bed.check("POST /v1/vms/web1/actions/clone", json!({"name": "web2"}), expect!["202 vm.clone web2 pending"]).await;
    let (one, two) = (bed.get("/v1/vms/web1").await, bed.get("/v1/vms/web2").await);
    assert_ne!(one["id"], two["id"]);
    assert_ne!(one["choices"]["macs"]["lan"], two["choices"]["macs"]["lan"]);
    assert_ne!(one["choices"]["serials"]["root"], two["choices"]["serials"]["root"]);
    assert_eq!(two["spec"]["disks"][1]["volume"], json!("web2-data"));
    bed.check("GET /v1/volumes", Value::Null, expect!["200 [data web1-root web2-data web2-root] next null"]).await;
    let copies = bed.store.list(&keys::tasks(&Name::known("node1"))).await.expect("a list").items;
    let copies = copies.iter().filter(|kv| matches!(typed::decode::<NodeTask>(kv).expect("a task").work, Work::CopyVolume { .. })).count();
    assert_eq!(copies, 2);
    bed.check(
        "POST /v1/vms/web1/actions/clone",
        json!({"name": "web2"}),
        expect!["409 conflict: 'web2' or one of its volumes is taken, or 'web1' changed at the same time"],
    )
    .await;
    let copy = bed.get("/v1/volumes/web2-root").await["filling"].as_str().expect("it is being filled").to_owned();
    bed.check(
        "DELETE /v1/volumes/web2-root",
        Value::Null,
        expect![[r#"
        409 conflict: volume 'web2-root' is disk 'root' of VM 'web2'
          hint: drop the disk from the VM first"#]],
    )
    .await;
    bed.call(&format!("DELETE /v1/operations/{copy}"), Value::Null).await;
    let clone: VmRecord = bed.stored(&keys::vm(&default(), bed.vm_id("web2").await)).await;
    assert_eq!(clone.leaving, Some(Leaving::Delete), "half a clone is none");
}

#[tokio::test]
async fn deletion_is_asked_once_and_refused_when_protected() {
    let bed = Bed::new().await;
    bed.call("POST /v1/vms", json!({"name": "web1", "image": "tiny", "protect": true})).await;
    bed.check(
        "DELETE /v1/vms/web1",
        Value::Null,
        expect![[r#"
        409 conflict: 'web1' is protected from deletion
          hint: vmkeep vm set web1 protect=false"#]],
    )
    .await;
    bed.call("PUT /v1/vms/web1", json!({"name": "web1", "image": "tiny"})).await;
    bed.check("DELETE /v1/vms/web1?keep_disks=true", Value::Null, expect!["202 vm.delete web1 pending"]).await;
    let id = bed.vm_id("web1").await;
    assert_eq!(bed.stored::<VmRecord>(&keys::vm(&default(), id)).await.leaving, Some(Leaving::DeleteKeepDisks));
    let again = |path: &'static str| async { word(&bed.call(path, Value::Null).await.json()["operation"]["id"]) };
    let path = "DELETE /v1/vms/web1?keep_disks=true";
    assert_eq!(again(path).await, again(path).await, "asked again, it is the same operation");
    assert_eq!(bed.get("/v1/operations").await["items"].as_array().map(Vec::len), Some(3), "create, update, delete");
    bed.check("DELETE /v1/vms/web1", Value::Null, expect!["409 conflict: 'web1' is being deleted already"]).await;
    bed.check("PUT /v1/vms/web1", json!({"name": "web1"}), expect!["409 conflict: 'web1' is being deleted"]).await;
    bed.check("POST /v1/vms/web1/actions/start", Value::Null, expect!["409 conflict: 'web1' is being deleted"]).await;
    bed.check(
        "DELETE /v1/vms/nobody",
        Value::Null,
        expect![[r#"
        404 not_found: there is no vm 'nobody'
          hint: `vmkeep vm list -A` shows VMs, and libvirt's domains that `vmkeep vm adopt` takes over"#]],
    )
    .await;
    assert_eq!(bed.get("/v1/vms/web1").await["status"]["phase"], json!("deleting"));
}

#[tokio::test]
async fn disks_grow_go_and_come() {
    let bed = Bed::new().await;
    let with = |disks: Value| json!({"name": "web1", "run": "manual", "disks": disks});
    bed.call("POST /v1/vms", with(json!([{"name": "root", "image": "tiny"}, {"name": "data", "empty": true, "size": "1G"}]))).await;
    bed.check(
        "PUT /v1/vms/web1",
        with(json!([{"name": "root", "image": "tiny", "size": "512M"}, {"name": "data", "empty": true, "size": "1G"}])),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[root].size: 512M is smaller than the disk is (1G); a disk can only grow"#]],
    )
    .await;
    bed.check(
        "PUT /v1/vms/web1",
        with(json!([{"name": "root", "image": "tiny", "size": "3G"}, {"name": "data", "empty": true, "size": "1G"}])),
        expect!["202 vm.update web1 pending"],
    )
    .await;
    assert_eq!(bed.get("/v1/volumes/web1-root").await["size"], json!("3G"));
    bed.check("PUT /v1/vms/web1", with(json!([{"name": "root", "image": "tiny", "size": "3G"}])), expect!["202 vm.update web1 pending"])
        .await;
    assert_eq!(bed.get("/v1/volumes/web1-data").await["vm"], json!("web1"), "the guest has it until its node says otherwise");
    bed.check(
        "DELETE /v1/volumes/web1-data",
        Value::Null,
        expect![[r#"
        409 conflict: volume 'web1-data' was disk 'data' of VM 'web1', which has not let go of it yet
          hint: a guest that keeps it lets go at its next cold start: vmkeep vm restart web1"#]],
    )
    .await;
    bed.check(
        "POST /v1/vms",
        json!({"name": "web2", "run": "manual", "disks": [{"name": "d", "volume": "web1-data"}]}),
        expect![[r#"
        422 invalid: vm web2 has 1 problem
          disks[d].volume: volume 'web1-data' was disk 'data' of VM 'web1', which has not let go of it yet"#]],
    )
    .await;
    bed.check("PUT /v1/vms/web1", with(json!([{"name": "root", "image": "tiny", "size": "3G"}, {"name": "data", "empty": true, "size": "1G"}])), expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[data].name: there is a volume 'web1-data' already, perhaps kept from a deleted VM; use it (volume: web1-data) or delete it"#]]).await;
    bed.check(
        "PUT /v1/vms/web1",
        with(json!([{"name": "root", "image": "tiny", "size": "3G"}, {"name": "more", "volume": "web1-data", "size": "512M"}])),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[more].size: 512M is smaller than volume 'web1-data' (1G); a disk can only grow"#]],
    )
    .await;
    bed.check(
        "PUT /v1/vms/web1",
        with(json!([{"name": "root", "image": "tiny", "size": "3G"}, {"name": "more", "volume": "web1-data"}])),
        expect!["202 vm.update web1 pending"],
    )
    .await;
    bed.check(
        "DELETE /v1/volumes/web1-data",
        Value::Null,
        expect![[r#"
        409 conflict: volume 'web1-data' is disk 'more' of VM 'web1'
          hint: drop the disk from the VM first"#]],
    )
    .await;
}

#[tokio::test]
async fn a_guest_is_made_a_new_instance() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/vms/web1", json!({"name": "web1", "run": "manual", "cloud_init": null})).await;
    bed.check(
        "POST /v1/vms/web1/actions/reinit",
        Value::Null,
        expect!["409 conflict: 'web1' has no cloud_init: no first boot was ever prepared for it"],
    )
    .await;
    bed.call("PUT /v1/vms/web1", json!({"name": "web1", "run": "manual", "cloud_init": {"hostname": "w"}})).await;
    bed.check("POST /v1/vms/web1/actions/reinit", Value::Null, expect!["202 vm.reinit web1 pending"]).await;
    let record: VmRecord = bed.stored(&keys::vm(&default(), bed.vm_id("web1").await)).await;
    assert_eq!((record.instance, record.needs_reinit()), (1, false));
}

#[tokio::test]
async fn what_only_a_first_boot_reads_is_told_until_there_is_another() {
    let bed = Bed::new().await;
    let wish = |run: &str, host: &str| json!({"name": "web1", "run": run, "cloud_init": {"hostname": host}});
    let late = async |bed: &Bed| bed.stored::<VmRecord>(&keys::vm(&default(), bed.vm_id("web1").await)).await.needs_reinit();
    bed.call("PUT /v1/vms/web1", wish("manual", "a")).await;
    bed.call("PUT /v1/vms/web1", wish("manual", "b")).await;
    assert!(!late(&bed).await, "it never ran");
    bed.call("POST /v1/vms/web1/actions/start", Value::Null).await;
    bed.call("PUT /v1/vms/web1", wish("manual", "c")).await;
    assert!(late(&bed).await);
    let shown = bed.get("/v1/vms/web1").await;
    let warned = shown["status"]["warnings"].to_string();
    assert!(warned.contains("vmkeep vm reinit web1"), "{warned}");
    bed.call("POST /v1/vms/web1/actions/reinit", Value::Null).await;
    assert!(!late(&bed).await);
}

#[tokio::test]
async fn a_machine_is_asked_to_be_the_newest_of_its_kind() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/vms/web1", json!({"name": "web1", "run": "manual", "machine": "pc"})).await;
    let key = keys::choices(bed.vm_id("web1").await);
    let chosen: VmChoices = bed.stored(&key).await;
    let old = VmChoices { machine: Some("pc-i440fx-7.2".into()), ..chosen };
    bed.store.txn(Txn::default().then(typed::put(key.clone(), &old))).await.expect("a write");
    bed.check("POST /v1/vms/web1/actions/upgrade-machine", Value::Null, expect!["202 vm.upgrade-machine web1 pending"]).await;
    assert_eq!(bed.stored::<VmChoices>(&key).await, VmChoices { machine: Some("pc".into()), ..old });
}

#[tokio::test]
async fn a_root_disk_is_made_anew_from_another_image() {
    let bed = Bed::new().await;
    let mut next = image("next");
    next.facts.as_mut().expect("facts").virtual_size = ByteCount::from_gib(3);
    bed.put_all(vec![
        typed::put(keys::name("image", &default(), &next.spec.name), &next.id),
        typed::put(keys::image(&default(), next.id), &next),
    ])
    .await;
    bed.call("POST /v1/vms", json!({"name": "web1", "image": "tiny", "run": "manual", "protect": true})).await;
    let id = bed.vm_id("web1").await;
    let root = Name::known("root");
    let old: VmRecord = bed.stored(&keys::vm(&default(), id)).await;
    let path = "POST /v1/vms/web1/actions/rebuild";
    bed.check(
        path,
        Value::Null,
        expect![[r#"
        409 conflict: 'web1' is waiting for a node; only a stopped VM is rebuilt
          hint: vmkeep vm stop web1"#]],
    )
    .await;
    watched::seen_off(&bed, id).await;
    bed.check(
        path,
        Value::Null,
        expect![[r#"
        409 conflict: 'web1' is protected
          hint: vmkeep vm set web1 protect=false"#]],
    )
    .await;
    bed.call("PUT /v1/vms/web1", json!({"name": "web1", "image": "tiny", "run": "manual"})).await;
    bed.check(
        path,
        json!({"image": "none"}),
        expect![[r#"
        404 not_found: there is no image 'none'
          hint: `vmkeep image list` shows what there is"#]],
    )
    .await;
    bed.check("POST /v1/vms/web1/actions/start", json!({"image": "next"}), expect!["422 invalid: 'start' takes no `image`"]).await;
    bed.check(path, json!({"image": "next"}), expect!["202 vm.rebuild web1 pending"]).await;
    let new: VmRecord = bed.stored(&keys::vm(&default(), id)).await;
    assert_ne!(new.volumes[&root], old.volumes[&root]);
    let volume: VolumeRecord = bed.stored(&keys::volume(&default(), new.volumes[&root])).await;
    assert_eq!((volume.name.as_str(), volume.size.map(|s| s.to_string())), ("web1-root", Some("3G".to_owned())));
    let gone: VolumeRecord = bed.stored(&keys::volume(&default(), old.volumes[&root])).await;
    assert_eq!(gone.name.to_string(), format!("replaced-{}", gone.id), "it waits for its deletion under a name of its own");
}

#[tokio::test]
async fn what_reaches_the_host_is_an_admins_to_take_away_and_to_copy() {
    let bed = Bed::new().await;
    let share = json!({"name": "web1", "run": "manual", "shares": [{"name": "s", "path": "/srv/s"}]});
    assert_eq!(bed.call("POST /v1/vms", share.clone()).await.status, 202);
    let operator = bed.by(Role::Operator);
    operator
        .check(
            "PUT /v1/vms/web1",
            json!({"name": "web1", "run": "manual"}),
            expect![[r#"
        403 forbidden: only admins may set shares
          hint: they reach the host itself"#]],
        )
        .await;
    let mut other = share.clone();
    other["description"] = json!("with the share as it is");
    operator.check("PUT /v1/vms/web1", other, expect!["202 vm.update web1 pending"]).await;
    let id = bed.vm_id("web1").await;
    watched::seen_off(&bed, id).await;
    operator
        .check(
            "POST /v1/vms/web1/actions/clone",
            json!({"name": "web2"}),
            expect![[r#"
        403 forbidden: only admins may copy a VM with shares
          hint: they reach the host itself"#]],
        )
        .await;
    bed.check("POST /v1/vms/web1/actions/clone", json!({"name": "web2"}), expect!["202 vm.clone web2 pending"]).await;
}

#[tokio::test]
async fn a_policy_that_runs_it_starts_it_unless_it_is_held() {
    let bed = Bed::new().await;
    let put = |run: &'static str| bed.call("PUT /v1/vms/web1", json!({"name": "web1", "run": run}));
    put("halted").await;
    let id = bed.vm_id("web1").await;
    let power = || async { bed.stored::<Power>(&keys::power(id)).await };
    put("manual").await;
    assert_eq!((power().await.want, power().await.cycle), (PowerWish::Off, 1));
    put("always").await;
    assert_eq!((power().await.want, power().await.cycle), (PowerWish::On, 2));
    bed.call("POST /v1/vms/web1/actions/stop", Value::Null).await;
    put("manual").await;
    put("always").await;
    assert_eq!((power().await.want, power().await.cycle), (PowerWish::Off, 3), "stopped on purpose");
}

#[tokio::test]
async fn two_vms_that_come_at_once_do_not_get_one_mac() {
    let bed = Bed::new().await;
    let wish = |name: &str, mac: &str| json!({"name": name, "run": "manual", "nics": [{"name": "lan", "mac": mac}]});
    let post = |name: &'static str| bed.call("POST /v1/vms", wish(name, "52:54:00:00:00:0A"));
    let (one, two) = tokio::join!(post("a"), post("b"));
    let mut codes = [one.status, two.status];
    codes.sort_unstable();
    assert_eq!(codes, [202, 422], "{} {}", one.body, two.body);
    let (winner, loser) = if one.status == 202 { ("a", "b") } else { ("b", "a") };
    // Given up, it is free.
    assert_eq!(bed.call(&format!("PUT /v1/vms/{winner}"), wish(winner, "52:54:00:00:00:0b")).await.status, 202);
    assert_eq!(bed.call("POST /v1/vms", wish(loser, "52:54:00:00:00:0a")).await.status, 202);
    let index: Vec<String> = bed.store.list("mac/").await.expect("a list").items.into_iter().map(|kv| kv.key).collect();
    assert_eq!(index, ["mac/52:54:00:00:00:0a", "mac/52:54:00:00:00:0b"]);
}

#[tokio::test]
async fn a_wish_too_large_for_its_order_is_refused() {
    let bed = Bed::new().await;
    let text = format!("#cloud-config\n{}", "\"".repeat(250 << 10));
    bed.check(
        "POST /v1/vms",
        json!({"name": "web1", "cloud_init": {"user_data": text, "network_data": text}}),
        expect![[r#"
        413 too_large: VM 'web1' takes 1000 KiB in all; the limit is 768 KiB
          hint: let cloud-init fetch long data: `#include` with a URL in user_data"#]],
    )
    .await;
}

#[tokio::test]
async fn one_name_on_a_host_is_one_vm_whatever_its_project() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    bed.call("PUT /v1/projects/other/networks/default", json!({"name": "default"})).await;
    let wish = json!({"name": "web1", "run": "manual"});
    bed.check(
        "POST /v1/projects/other/vms",
        wish,
        expect![[r#"
        409 conflict: there is a VM 'web1' in project 'default' already, and libvirt on a host knows VMs by name only
          hint: choose another name"#]],
    )
    .await;
    bed.check("POST /v1/projects/other/vms", json!({"name": "web2", "run": "manual"}), expect!["202 vm.create web2 pending"]).await;
    bed.check(
        "POST /v1/vms/web1/actions/rename",
        json!({"name": "web2"}),
        expect![[r#"
        409 conflict: there is a VM 'web2' in project 'other' already, and libvirt on a host knows VMs by name only
          hint: choose another name"#]],
    )
    .await;
}

#[tokio::test]
async fn memory_that_is_not_free_is_warned_of_and_not_refused() {
    let bed = Bed::new().await;
    let averages = json!({"minute": 0, "five_minutes": 0});
    let load = json!({"at": "2026-01-01T00:00:00Z", "cpu": averages, "memory_used": "6G"});
    bed.put_all(vec![typed::put(keys::load(&Name::known("node1")), &load)]).await;
    let make = async |name: &str, memory: &str| bed.call("POST /v1/vms", json!({"name": name, "run": "manual", "memory": memory})).await;
    let (small, large) = (make("small", "2G").await, make("large", "3G").await);
    assert_eq!((small.status, &small.json()["warnings"]), (202, &Value::Null));
    expect!["its memory (3G) is more than the 2G that are free on 'node1' now: the host may swap, or the kernel end a process"]
        .assert_eq(&word(&large.json()["warnings"][0]));
    let started = bed.call("POST /v1/vms/large/actions/start", Value::Null).await;
    assert_eq!((started.status, started.json()["warnings"].as_array().map(Vec::len)), (202, Some(1)));
    let id = bed.vm_id("large").await;
    watched::seen_running(&bed, id, json!({})).await;
    assert_eq!(
        bed.call("POST /v1/vms/large/actions/start", Value::Null).await.json()["warnings"],
        Value::Null,
        "it has its memory already"
    );
    let grown = bed.call("PUT /v1/vms/small", json!({"name": "small", "run": "manual", "memory": "4G"})).await.json();
    assert!(word(&grown["warnings"][0]).starts_with("its memory (4G)"), "{grown}");
}

#[tokio::test]
async fn a_wish_that_has_no_effect_is_warned_of() {
    let bed = Bed::new().await;
    let made = bed.call("POST /v1/vms", json!({"name": "web1", "run": "manual", "display": {"password": "12345678"}})).await.json();
    assert!(word(&made["warnings"][0]).starts_with("display.password has no effect"), "{made}");
    let put = bed.call("PUT /v1/vms/web1", json!({"name": "web1", "run": "manual", "ha": {}})).await.json();
    assert!(word(&put["warnings"][0]).starts_with("ha does nothing on one host"), "{put}");
}

/// The name of a domain, and whose it is by the index.
async fn domains(bed: &Bed) -> Vec<String> {
    let all = bed.store.list("domain/").await.expect("a list").items;
    all.into_iter().map(|kv| kv.key["domain/".len()..].to_owned()).collect()
}

#[tokio::test]
async fn two_projects_that_take_one_name_at_once_do_not_both_get_it() {
    let bed = Bed::new().await;
    for project in ["a", "b"] {
        bed.call(&format!("PUT /v1/projects/{project}/networks/default"), json!({"name": "default"})).await;
    }
    let bed = &bed;
    let make = |project: &'static str, name: &'static str| async move {
        bed.call(&format!("POST /v1/projects/{project}/vms"), json!({"name": name, "run": "manual"})).await
    };
    for name in ["web1", "web2", "web3"] {
        let (one, two) = tokio::join!(make("a", name), make("b", name));
        let mut codes = [one.status, two.status];
        codes.sort_unstable();
        assert_eq!(codes, [202, 409], "{} {}", one.body, two.body);
    }
    // A rename gives the old name up and takes the new one.
    let owner = if bed.call("GET /v1/projects/a/vms/web1", Value::Null).await.status == 200 { "a" } else { "b" };
    let renamed = bed.call(&format!("POST /v1/projects/{owner}/vms/web1/actions/rename"), json!({"name": "web9"})).await;
    assert_eq!(renamed.status, 202, "{}", renamed.body);
    assert_eq!(domains(bed).await, ["web2", "web3", "web9"]);
    assert_eq!(make("a", "web1").await.status, 202);
    assert_eq!(make("b", "web9").await.status, 409);
}

/// An older vmkeep knows no index of domains: it leaves names out of it, and entries in it whose VM is gone.
#[tokio::test]
async fn names_of_an_older_vmkeep_are_held_and_given_up_too() {
    let bed = Bed::new().await;
    bed.call("PUT /v1/projects/other/networks/default", json!({"name": "default"})).await;
    bed.vm("web1").await;
    let unindexed = Op::Delete(keys::domain(&Name::known("web1")));
    let stale = typed::put(keys::domain(&Name::known("gone")), &uuid::Uuid::from_u128(9));
    bed.put_all(vec![unindexed, stale, Op::Delete(keys::INDEXED.into())]).await;
    crate::app::bootstrap(bed.store.as_ref(), "/pool", false).await.expect("as a control plane starts");
    let make = async |name: &str| bed.call("POST /v1/projects/other/vms", json!({"name": name, "run": "manual"})).await.status;
    assert_eq!((make("web1").await, make("gone").await, make("gone").await), (409, 202, 409));
}

#[tokio::test]
async fn a_name_that_libvirt_has_already_is_refused_before_anything_is_written() {
    let bed = Bed::new().await;
    let foreign = json!([{"name": "old", "uuid": uuid::Uuid::from_u128(9), "state": "running", "ours": false}]);
    bed.node.answers.lock().expect("lock").push(("/n/domains", foreign));
    let before = bed.store.revision().await.expect("a revision");
    let wanted = expect![[r#"
        422 invalid: vm old has 1 problem
          name: libvirt on this host has a domain 'old' that vmkeep did not make; take it over with `vmkeep vm adopt old`, or choose another name"#]];
    bed.check("POST /v1/vms", json!({"name": "old", "run": "manual"}), wanted).await;
    for dry_run in [true, false] {
        let apply = json!({"manifests": [{"kind": "vm", "name": "old", "run": "manual"}], "dry_run": dry_run});
        assert_eq!(bed.call("POST /v1/apply", apply).await.status, 422);
    }
    assert_eq!(bed.store.revision().await.expect("a revision"), before);
    assert_eq!(bed.call("POST /v1/vms", json!({"name": "new", "run": "manual"})).await.status, 202);
}

#[tokio::test]
async fn labels_to_choose_by_are_pairs() {
    let bed = Bed::new().await;
    bed.check("GET /v1/vms?label=tier", Value::Null, expect!["422 invalid: label 'tier' is no KEY=VALUE"]).await;
}
