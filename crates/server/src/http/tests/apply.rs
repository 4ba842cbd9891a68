//! `POST /v1/apply`: planned, all problems at once, carried out.

use vmkeep_types::record::VmRecord;

use super::*;

fn summary(answer: &Value) -> String {
    let mut out = String::new();
    for result in answer["results"].as_array().expect("results") {
        let _ = writeln!(out, "{} {}: {}", word(&result["kind"]), word(&result["name"]), word(&result["action"]));
        for change in result["changes"].as_array().expect("changes") {
            let _ = writeln!(
                out,
                "  {} {} -> {} ({})",
                word(&change["field"]),
                word(&change["from"]),
                word(&change["to"]),
                word(&change["when"])
            );
        }
        for warning in result["warnings"].as_array().expect("warnings") {
            let _ = writeln!(out, "  warning: {}", word(warning));
        }
        if let Some(op) = result["operation"].as_object() {
            let _ = writeln!(out, "  operation {}", word(&op["kind"]));
        }
    }
    out
}

async fn check(bed: &Bed, body: Value, expected: Expect) {
    let reply = bed.call("POST /v1/apply", body).await;
    let words = if reply.status == 200 { summary(&reply.json()) } else { reply.words() };
    expected.assert_eq(&words);
}

#[tokio::test]
async fn planned_created_changed_and_unchanged() {
    let bed = Bed::new().await;
    let both = json!([{"kind": "vm", "name": "web1", "image": "tiny", "nics": [{"name": "lan", "network": "blue"}]}, {"kind": "network", "name": "blue"}]);
    let before = bed.store.revision().await.expect("a revision");
    check(
        &bed,
        json!({"manifests": both, "dry_run": true}),
        expect![[r#"
        vm web1: create
        network blue: create
    "#]],
    )
    .await;
    assert_eq!(bed.store.revision().await.expect("a revision"), before, "a plan writes nothing");
    check(
        &bed,
        json!({"manifests": both}),
        expect![[r#"
        vm web1: create
          operation vm.create
        network blue: create
    "#]],
    )
    .await;
    check(
        &bed,
        json!({"manifests": both}),
        expect![[r#"
        vm web1: unchanged
        network blue: unchanged
    "#]],
    )
    .await;
    let id = bed.vm_id("web1").await;
    watched::seen_running(&bed, id, json!({})).await;
    let changed = json!([{"kind": "vm", "name": "web1", "image": "tiny", "cpus": 2, "description": "x", "machine": "q35", "firmware": "bios", "nics": [{"name": "lan", "network": "blue"}]}]);
    check(
        &bed,
        json!({"manifests": changed, "dry_run": true}),
        expect![[r#"
        vm web1: update
          cpus.count 1 -> 2 (restart)
          description '' -> x (live)
          firmware auto -> bios (restart)
    "#]],
    )
    .await;
    check(
        &bed,
        json!({"manifests": changed, "restart": true}),
        expect![[r#"
        vm web1: update
          cpus.count 1 -> 2 (restart)
          description '' -> x (live)
          firmware auto -> bios (restart)
          operation vm.restart
    "#]],
    )
    .await;
}

#[tokio::test]
async fn drift_is_mended_and_chains_are_left_alone() {
    let bed = Bed::new().await;
    let manifests = json!([{"kind": "vm", "name": "web1", "image": "tiny"}]);
    bed.call("POST /v1/apply", json!({"manifests": manifests})).await;
    let id = bed.vm_id("web1").await;
    let drift = json!({"drift": [{"field": "memory.size", "from": "1G", "to": "2G"}], "conflicts": [{"field": "disks[root].source", "from": "/o.qcow2", "to": "/r.qcow2"}]});
    watched::seen_running(&bed, id, drift).await;
    check(
        &bed,
        json!({"manifests": manifests, "dry_run": true}),
        expect![[r#"
        vm web1: mend
          memory.size 1G -> 2G (drift)
          disks[root].source /o.qcow2 -> /r.qcow2 (conflict)
    "#]],
    )
    .await;
    let before = typed::get_json::<VmRecord>(bed.store.as_ref(), &keys::vm(&default(), id)).await.expect("readable").expect("there");
    check(
        &bed,
        json!({"manifests": manifests}),
        expect![[r#"
        vm web1: mend
          memory.size 1G -> 2G (drift)
          disks[root].source /o.qcow2 -> /r.qcow2 (conflict)
          operation vm.update
    "#]],
    )
    .await;
    let after = typed::get_json::<VmRecord>(bed.store.as_ref(), &keys::vm(&default(), id)).await.expect("readable").expect("there");
    assert!(after.modified > before.modified && after.value == before.value, "the same wish, written again");
}

#[tokio::test]
async fn what_waits_for_a_restart_is_restarted_when_asked() {
    let bed = Bed::new().await;
    let manifests = json!([{"kind": "vm", "name": "web1", "image": "tiny"}]);
    bed.call("POST /v1/apply", json!({"manifests": manifests})).await;
    let id = bed.vm_id("web1").await;
    watched::seen_running(&bed, id, json!({"pending": [{"field": "firmware", "from": "uefi", "to": "bios"}]})).await;
    check(
        &bed,
        json!({"manifests": manifests}),
        expect![[r#"
            vm web1: unchanged
              firmware uefi -> bios (pending)
        "#]],
    )
    .await;
    check(
        &bed,
        json!({"manifests": manifests, "restart": true}),
        expect![[r#"
            vm web1: unchanged
              firmware uefi -> bios (pending)
              operation vm.restart
        "#]],
    )
    .await;
}

#[tokio::test]
async fn all_problems_of_all_manifests_and_nothing_written() {
    let bed = Bed::new().await;
    let before = bed.store.revision().await.expect("a revision");
    check(&bed, json!({"manifests": [{"kind": "vm", "name": "good"}, {"kind": "vm", "name": "web1", "memory": "5"}, {"kind": "vmm"}, {"kind": "vm", "name": "a/b"}]}), expect![[r#"
        422 invalid: the list of manifests has 3 problems
          manifests[1].memory: '5' has no unit; write 5M or 5G
          manifests[2].kind: there is no kind 'vmm'; did you mean 'vm'?
          manifests[3].name: 'a/b' is not a name: use only a-z, 0-9 and '-'"#]]).await;
    check(
        &bed,
        json!({"manifests": [
            {"kind": "vm", "name": "web1", "image": "none", "nics": [{"name": "lan", "mac": "52:54:00:00:00:01"}]},
            {"kind": "vm", "name": "web1", "disks": [{"name": "d", "volume": "shared"}]},
            {"kind": "vm", "name": "web3", "nics": [{"name": "lan", "mac": "52:54:00:00:00:01"}], "disks": [{"name": "d", "volume": "shared"}]},
        ]}),
        expect![[r#"
            422 invalid: the list of manifests has 6 problems
              manifests[1].name: vm 'web1' is in manifests[0] too
              manifests[2].nics[lan].mac: MAC '52:54:00:00:00:01' is in manifests[0] too
              manifests[2].disks[d].volume: volume 'shared' is in manifests[1] too
              manifests[0].disks[root].image: there is no image 'none'
              manifests[1].disks[d].volume: there is no volume 'shared'
              manifests[2].disks[d].volume: there is no volume 'shared'"#]],
    )
    .await;
    check(
        &bed,
        json!({"manifests": [], "dryrun": true}),
        expect![[r#"
        422 invalid: the request has 1 problem
          dryrun: there is no field 'dryrun'; did you mean 'dry_run'?"#]],
    )
    .await;
    check(
        &bed.by(Role::Operator),
        json!({"manifests": [{"kind": "network", "name": "blue"}]}),
        expect![[r#"
        403 forbidden: the list of manifests has 1 problem
          manifests[0]: only admins may change networks"#]],
    )
    .await;
    assert_eq!(bed.store.revision().await.expect("a revision"), before);
}

#[tokio::test]
async fn an_image_and_a_vm_of_it_are_one_request() {
    let bed = Bed::new().await;
    let image = json!({"kind": "image", "name": "deb", "source": {"from": "build", "recipe": "debian-13"}});
    let vm = json!({"kind": "vm", "name": "web1", "image": "deb"});
    let both = json!({"manifests": [vm, image]});
    check(
        &bed,
        both.clone(),
        expect![[r#"
        vm web1: create
          operation vm.create
        image deb: create
          operation image.import
    "#]],
    )
    .await;
    check(
        &bed,
        both,
        expect![[r#"
        vm web1: unchanged
        image deb: unchanged
    "#]],
    )
    .await;
    check(&bed, json!({"manifests": [{"kind": "image", "name": "deb", "source": {"from": "build", "recipe": "debian-12"}}]}), expect![[r#"
        422 invalid: the list of manifests has 1 problem
          manifests[0].source: the image 'deb' was made from another source; import it under another name, and `vmkeep vm rebuild` what is to be made from it"#]])
    .await;
}

#[tokio::test]
async fn a_changed_network_and_a_dropped_disk_are_told() {
    let bed = Bed::new().await;
    let data = json!({"name": "data", "empty": true, "size": "1G"});
    let root = json!({"name": "root", "image": "tiny"});
    let all = |disks: Value, mtu: Value| json!({"manifests": [{"kind": "network", "name": "blue", "mtu": mtu}, {"kind": "vm", "name": "web1", "disks": disks}]});
    bed.call("POST /v1/apply", all(json!([root, data]), Value::Null)).await;
    check(
        &bed,
        all(json!([root]), json!(9000)),
        expect![[r#"
        network blue: update
          mtu none -> 9000 (live)
        vm web1: update
          disks[data] {empty: true, size: 1G} -> none (live)
          warning: disk 'data' is detached, and its data kept as an unused volume (vmkeep volume list)
          operation vm.update
    "#]],
    )
    .await;
}
