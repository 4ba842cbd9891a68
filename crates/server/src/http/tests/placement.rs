//! Questions about placement, and what people say of nodes.

use vmkeep_types::drain::Drain;
use vmkeep_types::host::{NodeHealth, NodeState};
use vmkeep_types::ids::{Generation, PoolId};
use vmkeep_types::migration::Stop;
use vmkeep_types::node::{Averages, NodeLoad, VmLoad};
use vmkeep_types::record::{Owner, VmChoices};

use super::*;

/// Beside `node1` (4 CPUs, 8 GiB) a `node2` of 16 GiB.
pub(super) async fn two_nodes() -> Bed {
    let bed = Bed::new().await;
    joins(&bed, "node2", "16G").await;
    bed
}

pub(super) async fn joins(bed: &Bed, name: &'static str, memory: &str) {
    let mut facts: Value = serde_json::to_value(bed.stored::<NodeFacts>(&keys::facts(&Name::known("node1"))).await).expect("plain data");
    (facts["name"], facts["memory"]) = (json!(name), json!(memory));
    let name = Name::known(name);
    bed.put_all(vec![Op::Put(keys::joined(&name), Vec::new()), typed::put(keys::facts(&name), &facts)]).await;
}

fn small(name: &str, placement: Value) -> Value {
    json!({"name": name, "memory": "2G", "nics": [], "placement": placement})
}

#[tokio::test]
async fn every_node_says_why() {
    let bed = two_nodes().await;
    bed.call("POST /v1/vms", small("web1", json!({"node_selector": {"disk": "ssd"}}))).await;
    let told = async |bed: &Bed| {
        let answer = bed.get("/v1/vms/web1/placement").await;
        let nodes = answer["nodes"].as_array().expect("nodes");
        let lines: Vec<String> = nodes.iter().map(|n| format!("{} {} {}", n["node"], n["fits"], n["text"])).collect();
        format!("{} {}\n{}", answer["node"], answer["choice"], lines.join("\n"))
    };
    expect![[r#"
        null null
        "node1" false "node_selector wants disk=ssd, and it has no label disk"
        "node2" false "node_selector wants disk=ssd, and it has no label disk""#]]
    .assert_eq(&told(&bed).await);
    let wish = json!({"name": "node2", "labels": {"disk": "ssd"}, "failure_domain": "rack2"});
    let put = bed.call("PUT /v1/nodes/node2", wish.clone()).await;
    assert_eq!(put.status, 200, "{}", put.body);
    let tag = put.headers["etag"].to_str().expect("a tag").to_owned();
    expect![[r#"
        null "node2"
        "node2" true "12.5 % used then"
        "node1" false "node_selector wants disk=ssd, and it has no label disk""#]]
    .assert_eq(&told(&bed).await);
    let cordoned = bed.call("POST /v1/nodes/node2/actions/cordon", json!({"why": "new disks"})).await;
    assert_eq!(cordoned.json()["cordon"]["by"], json!("alice"), "{}", cordoned.body);
    expect![[r#"
        null null
        "node1" false "node_selector wants disk=ssd, and it has no label disk"
        "node2" false "it is cordoned (by alice: new disks)""#]]
    .assert_eq(&told(&bed).await);
    let late = bed.reply(Request::builder().method("PUT").uri("/v1/nodes/node2").header("if-match", tag), wish.to_string()).await;
    assert_eq!(late.status, 409, "{}", late.body);
    bed.call("POST /v1/nodes/node2/actions/uncordon", json!({})).await;
    let shown = bed.get("/v1/nodes/node2").await;
    assert_eq!((&shown["cordon"], &shown["spec"]["failure_domain"]), (&Value::Null, &json!("rack2")));
}

/// The CPU that a VM has been given and what a host cannot run of it.
#[tokio::test]
async fn a_vm_says_where_its_cpu_is_none() {
    let bed = two_nodes().await;
    let names = |names: &str| names.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let cpu = async |node: &'static str, own: &str, models: &str, features: &str, without: Value| {
        let key = keys::facts(&Name::known(node));
        let mut facts: Value = serde_json::to_value(bed.stored::<NodeFacts>(&key).await).expect("plain data");
        (facts["kvm"], facts["offers"]["cpu_model"]) = (json!({"is": "usable"}), json!(own));
        (facts["offers"]["cpu_models"], facts["offers"]["cpu_guest_features"]) = (json!(names(models)), json!(names(features)));
        facts["offers"]["cpu_models_without"] = without;
        bed.put_all(vec![typed::put(key, &facts)]).await;
    };
    cpu("node1", "Cooperlake", "Nehalem Haswell", "avx2 ssbd", json!({"Cooperlake": ["mpx"]})).await;
    cpu("node2", "Haswell", "Nehalem Haswell", "avx2 ssbd", json!({"Haswell": [], "Cooperlake": ["avx512f", "mpx"]})).await;
    for (name, model) in [("web1", "auto"), ("web2", "cluster")] {
        let made = bed.call("POST /v1/vms", json!({"name": name, "memory": "2G", "nics": [], "cpu": {"model": model}})).await;
        assert_eq!(made.status, 202, "{}", made.body);
    }
    let xml = "<cpu mode='custom'><model fallback='forbid'>Cooperlake</model><feature policy='disable' name='mpx'/></cpu>";
    for name in ["web1", "web2"] {
        let id = bed.vm_id(name).await;
        let mut choices = bed.stored::<VmChoices>(&keys::choices(id)).await;
        (choices.cpu_xml, choices.domain_type) = (Some(xml.into()), Some("kvm".into()));
        let owner = Owner {
            vm: id,
            project: Name::known("default"),
            node: Name::known("node1"),
            epoch: Epoch(1),
            generation: Generation(1),
            to: None,
        };
        bed.put_all(vec![typed::put(keys::choices(id), &choices), typed::put(keys::owner(id), &owner)]).await;
    }
    let movable = bed.get("/v1/vms/web1/movable").await;
    expect![[r#"
        {
          "cold": {
            "why_not": [
              "cpu: no other node can run it (node2: of the CPU Cooperlake, which was chosen for the VM and is kept, guests cannot have here: avx512f)"
            ]
          },
          "live": {
            "why_not": [
              "cpu: no other node can run it (node2: of the CPU Cooperlake, which was chosen for the VM and is kept, guests cannot have here: avx512f)"
            ]
          },
          "warnings": []
        }"#]].assert_eq(&serde_json::to_string_pretty(&movable).expect("JSON"));
    let answer = bed.get("/v1/vms/web2/placement").await;
    expect![[r#""node1" "of the CPU Cooperlake, which all nodes could run when the VM got it, guests cannot have here: avx512f""#]]
        .assert_eq(&format!("{} {}", answer["choice"], answer["nodes"][1]["text"]));
    let capacity = bed.get("/v1/cluster/capacity").await;
    expect![[r#"
        {
          "features": [],
          "model": "Nehalem",
          "strangers": [
            {
              "node": "node2",
              "text": "of the CPU Cooperlake, which all nodes could run when the VM got it, guests cannot have here: avx512f",
              "vms": 1
            }
          ],
          "why_not": null
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&capacity["cpu"]).expect("JSON"));
}

/// What was chosen for the VM alone gives way to the CPU of the cluster; no other change takes it away.
#[tokio::test]
async fn a_vm_that_is_changed_to_the_cpu_of_the_cluster_gives_up_its_own() {
    let bed = Bed::new().await;
    let wish = |model: &str| json!({"name": "web1", "run": "manual", "nics": [], "cpu": {"model": model}});
    let made = bed.call("POST /v1/vms", wish("auto")).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let key = keys::choices(bed.vm_id("web1").await);
    let kept = VmChoices { cpu_xml: Some("<cpu><model>Haswell</model></cpu>".into()), ..bed.stored::<VmChoices>(&key).await };
    bed.put_all(vec![typed::put(key.clone(), &kept)]).await;
    let mut said = String::new();
    for model in ["Nehalem", "auto", "cluster", "auto"] {
        let changed = bed.call("PUT /v1/vms/web1", wish(model)).await;
        assert_eq!(changed.status, 202, "{}", changed.body);
        said += &format!("{model}: {:?}\n", bed.stored::<VmChoices>(&key).await.cpu_xml);
    }
    expect![[r#"
        Nehalem: Some("<cpu><model>Haswell</model></cpu>")
        auto: Some("<cpu><model>Haswell</model></cpu>")
        cluster: None
        auto: None
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn what_is_said_of_nodes_is_checked() {
    let bed = two_nodes().await;
    bed.check(
        "PUT /v1/nodes/node1",
        json!({"name": "node1", "labels": {"a b": "c", "node": "x"}, "taints": [{"key": ""}]}),
        expect![[r#"
        422 invalid: node node1 has 3 problems
          labels.a b: a label's key has 1 to 63 letters, digits, '.', '_', '/' or '-'
          labels.node: every node has its own name as the label 'node'; choose another key
          taints[0].key: a label's key has 1 to 63 letters, digits, '.', '_', '/' or '-'"#]],
    )
    .await;
    bed.check(
        "PUT /v1/nodes/node1",
        json!({"name": "node1", "overcommit": {"memory": 1000}, "labls": {}}),
        expect![[r#"
        422 invalid: the request has 2 problems
          labls: there is no field 'labls'; did you mean 'labels'?
          overcommit.memory: '1000' is no factor; write a number from 0.01 to 100, like 1.5"#]],
    )
    .await;
    bed.check(
        "PUT /v1/nodes/node9",
        json!({"name": "node9"}),
        expect![[r#"
        404 not_found: there is no node 'node9'
          hint: see 'vmkeep node list'"#]],
    )
    .await;
    bed.check(
        "POST /v1/nodes/node1/actions/explode",
        json!({}),
        expect![[r#"
        404 not_found: there is no action 'explode'
          hint: known are cordon, uncordon"#]],
    )
    .await;
    bed.by(Role::Operator)
        .check("POST /v1/nodes/node1/actions/cordon", json!({}), expect!["403 forbidden: 'alice' may not do this: it needs the role admin"])
        .await;
}

#[tokio::test]
async fn a_node_is_drained_by_an_operation() {
    let bed = two_nodes().await;
    let begun = bed.call("POST /v1/nodes/node2/drain", json!({"why": "new disks", "closure": "maintenance"})).await;
    assert_eq!(begun.status, 202, "{}", begun.body);
    let op = begun.json()["operation"].clone();
    assert_eq!((&op["kind"], &op["resource"]["name"]), (&json!("node.drain"), &json!("node2")));
    let again = bed.call("POST /v1/nodes/node2/drain", json!({})).await;
    let id = op["id"].as_str().expect("an id");
    expect!["409 conflict: 'node2' is being drained already: operation ID\n  hint: vmkeep op show ID, vmkeep op cancel ID"]
        .assert_eq(&again.words().replace(id, "ID"));
    bed.check(
        "POST /v1/nodes/node1/drain",
        json!({"at_once": 9}),
        expect!["422 invalid: at_once is 1 to 3: more only share the node's network, and each takes longer"],
    )
    .await;
    bed.check(
        "POST /v1/nodes/node9/drain",
        json!({}),
        expect![[r#"
        404 not_found: there is no node 'node9'
          hint: see 'vmkeep node list'"#]],
    )
    .await;
    let offline = NodeState { state: NodeHealth::Offline, since: jiff::Timestamp::UNIX_EPOCH };
    bed.put_all(vec![typed::put(keys::state(&Name::known("node1")), &offline)]).await;
    bed.check(
        "POST /v1/nodes/node1/drain",
        json!({}),
        expect![[r#"
        409 conflict: 'node1' does not answer: nothing can be moved from it
          hint: its VMs may still run there; they are found as they were when it is back"#]],
    )
    .await;
    // A cordon of its own does not end maintenance; opening the node ends all of it.
    let cordoned = bed.call("POST /v1/nodes/node2/actions/cordon", json!({})).await;
    expect![[r#""maintenance" "new disks""#]].assert_eq(&format!(
        "{} {}",
        cordoned.json()["cordon"]["closure"],
        cordoned.json()["cordon"]["why"]
    ));
    bed.call("POST /v1/nodes/node2/actions/uncordon", json!({})).await;
    assert_eq!(bed.get("/v1/nodes/node2").await["cordon"], Value::Null);
    let drain: Drain = bed.stored(&keys::drain(&Name::known("node2"))).await;
    assert_eq!(drain.stop, Some(Stop::Against { why: "uncordoned by alice".into() }));
}

/// Of hosts that are as good the one that has the image starts it sooner.
#[tokio::test]
async fn of_equal_hosts_the_one_with_the_image_is_chosen() {
    let bed = Bed::new().await;
    joins(&bed, "node2", "8G").await;
    let big = ImageRecord { node: Name::known("node2"), ..image("big") };
    let stored = async |image: &ImageRecord| bed.put_all(vec![typed::put(keys::image(&image.project, image.id), image)]).await;
    bed.put_all(vec![typed::put(keys::name("image", &big.project, &big.spec.name), &big.id)]).await;
    stored(&big).await;
    bed.call("POST /v1/vms", json!({"name": "web1", "memory": "2G", "nics": [], "disks": [{"name": "root", "image": "big"}]})).await;
    let told = async || {
        let answer = bed.get("/v1/vms/web1/placement").await;
        let nodes = answer["nodes"].as_array().expect("nodes");
        nodes.iter().map(|node| format!("{}: {}", node["node"], node["text"])).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        "node2": "25.0 % used then"
        "node1": "25.0 % used then, it fetches an image first""#]]
    .assert_eq(&told().await);
    stored(&ImageRecord { copies: BTreeSet::from([Name::known("node1")]), ..big }).await;
    expect![[r#"
        "node1": "25.0 % used then"
        "node2": "25.0 % used then""#]]
    .assert_eq(&told().await);
}

/// A shared pool is where its mark is: not on a host that has not mounted it.
#[tokio::test]
async fn a_vm_goes_where_its_shared_pool_is() {
    let bed = two_nodes().await;
    bed.call("PUT /v1/pools/nfs", json!({"name": "nfs", "driver": "dir", "path": "/srv/nfs", "shared": true})).await;
    let id = bed.get("/v1/pools/nfs").await["id"].clone();
    let key = keys::pool(PoolId(id.as_str().expect("an id").parse().expect("a UUID")));
    let (marked, other) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
    let mut record: Value = bed.stored(&key).await;
    record["mark"] = json!(marked);
    bed.put_all(vec![typed::put(key, &record)]).await;
    let on = async |node: &'static str, marks: Value| {
        let key = keys::facts(&Name::known(node));
        let mut facts: Value = bed.stored(&key).await;
        facts["offers"]["pool_marks"] = marks;
        bed.put_all(vec![typed::put(key, &facts)]).await;
    };
    let disks = json!([{"name": "root", "empty": true, "size": "1G", "pool": "nfs"}]);
    bed.call("POST /v1/vms", json!({"name": "web1", "memory": "2G", "nics": [], "disks": disks})).await;
    let told = async || {
        let nodes = bed.get("/v1/vms/web1/placement").await["nodes"].clone();
        let lines = nodes.as_array().into_iter().flatten().map(|n| format!("{} {}", n["node"], n["text"]));
        let add = json!([{"count": 1, "spec": {"name": "app", "memory": "1G", "nics": [], "disks": disks}}]);
        let app = bed.call("POST /v1/cluster/simulate", json!({"add": add})).await.json();
        format!("{}\n{} not on {}", lines.collect::<Vec<_>>().join("\n"), app["by_node"], bed.get("/v1/pools/nfs").await["not_on"])
    };
    on("node1", json!({id.as_str().expect("an id"): other})).await;
    expect![[r#"
        "node2" "12.5 % used then"
        "node1" "pool 'nfs' is not reachable: what is at its path is not the pool (not mounted?)"
        {"node2":1} not on ["node1"]"#]]
    .assert_eq(&told().await);
    on("node1", json!({id.as_str().expect("an id"): marked})).await;
    on("node2", json!({})).await;
    expect![[r#"
        "node1" "25.0 % used then"
        "node2" "pool 'nfs' is not reachable: what is at its path is not the pool (not mounted?)"
        {"node1":1} not on ["node2"]"#]]
    .assert_eq(&told().await);
}

#[tokio::test]
async fn moves_are_proposed_from_what_was_measured() {
    let bed = two_nodes().await;
    for vm in ["web1", "web2"] {
        bed.call("POST /v1/vms", small(vm, json!({}))).await;
    }
    let (hot, cool) = (Name::known("node1"), Name::known("node2"));
    let ids = [bed.vm_id("web1").await, bed.vm_id("web2").await];
    let mut writes = Vec::new();
    for id in ids {
        let owner = json!({"vm": id, "project": "default", "node": hot, "epoch": 1, "generation": 1});
        writes.push(typed::put(keys::owner(id), &owner));
    }
    let cpu = |permille| Averages { minute: permille, five_minutes: permille };
    let load = |permille, vms: &[VmId]| NodeLoad {
        at: jiff::Timestamp::now(),
        cpu: cpu(permille),
        memory_used: ByteCount::from_gib(1),
        cpu_stall: Averages::default(),
        memory_stall: Averages::default(),
        io_stall: Averages::default(),
        vms: vms.iter().map(|id| (*id, VmLoad { cpu: 1600, memory: ByteCount::from_gib(2) })).collect(),
    };
    writes.push(typed::put(keys::load(&hot), &load(900, &ids)));
    bed.put_all(writes).await;
    let first = bed.get("/v1/cluster/balance").await;
    assert_eq!((&first["moves"], &first["not_measured"]), (&json!([]), &json!(["node2"])));
    bed.put_all(vec![typed::put(keys::load(&cool), &load(100, &[]))]).await;
    let moves = bed.get("/v1/cluster/balance").await["moves"].clone();
    let found = &moves[0];
    expect![[r#"1 moves; "node1" to "node2" gains 400: 900 -> 500, 100 -> 500"#]].assert_eq(&format!(
        "{} moves; {} to {} gains {}: {} -> {}, {} -> {}",
        moves.as_array().map_or(0, Vec::len),
        found["from"],
        found["to"],
        found["gain"],
        found["from_before"],
        found["from_after"],
        found["to_before"],
        found["to_after"]
    ));
}

/// A disk of one host goes along; a device of the host does not.
#[tokio::test]
async fn vms_with_disks_of_their_host_are_proposed_and_bound_ones_are_not() {
    let bed = two_nodes().await;
    let (hot, cool) = (Name::known("node1"), Name::known("node2"));
    let disk = |size: &str| json!([{"name": "root", "empty": true, "size": size}]);
    bed.call("POST /v1/vms", json!({"name": "light", "memory": "2G", "nics": [], "disks": disk("1G")})).await;
    bed.call("POST /v1/vms", json!({"name": "heavy", "memory": "2G", "nics": [], "disks": disk("2T")})).await;
    let shares = json!([{"name": "src", "path": "/srv/src"}]);
    bed.call("POST /v1/vms", json!({"name": "shares", "memory": "2G", "nics": [], "shares": shares})).await;
    let ids = [bed.vm_id("light").await, bed.vm_id("heavy").await, bed.vm_id("shares").await];
    let mut writes = Vec::new();
    for id in ids {
        writes.push(typed::put(keys::owner(id), &json!({"vm": id, "project": "default", "node": hot, "epoch": 1, "generation": 1})));
    }
    for volume in ["light-root", "heavy-root"] {
        let id: vmkeep_types::ids::VolumeId = bed.stored(&keys::name("volume", &default(), &Name::known(volume))).await;
        let mut record = bed.stored::<Value>(&keys::volume(&default(), id)).await;
        record["node"] = json!(hot);
        writes.push(typed::put(keys::volume(&default(), id), &record));
    }
    bed.put_all(writes).await;
    let load = |cpu: u32, vms: &[VmId]| NodeLoad {
        at: jiff::Timestamp::now(),
        cpu: Averages { minute: cpu, five_minutes: cpu },
        memory_used: ByteCount::from_gib(1),
        cpu_stall: Averages::default(),
        memory_stall: Averages::default(),
        io_stall: Averages::default(),
        vms: vms.iter().map(|id| (*id, VmLoad { cpu: 1000, memory: ByteCount::from_gib(2) })).collect(),
    };
    let mut told = String::new();
    for vms in [&ids[..], &ids[1..], &ids[2..]] {
        bed.put_all(vec![typed::put(keys::load(&hot), &load(900, vms)), typed::put(keys::load(&cool), &load(100, &[]))]).await;
        let moves = bed.get("/v1/cluster/balance").await["moves"].clone();
        told += &format!("{} of {}: {}\n", moves.as_array().map_or(0, Vec::len), vms.len(), moves[0]["vm"]);
    }
    expect![[r#"
        1 of 3: "light"
        0 of 2: null
        0 of 1: null
    "#]]
    .assert_eq(&told);
}

/// As the leader sees it: what its answers are worth.
#[tokio::test]
async fn a_disk_in_a_shared_pool_binds_no_vm_and_a_silent_node_takes_none() {
    let bed = two_nodes().await;
    let pool = bed.call("PUT /v1/pools/nfs", json!({"name": "nfs", "driver": "dir", "path": "/nfs", "shared": true})).await;
    assert!(pool.status < 300, "{}", pool.body);
    let disks = json!([{"name": "root", "empty": true, "size": "1G", "pool": "nfs"}]);
    bed.call("POST /v1/vms", json!({"name": "web1", "memory": "2G", "nics": [], "disks": disks})).await;
    let id: vmkeep_types::ids::VolumeId = bed.stored(&keys::name("volume", &default(), &Name::known("web1-root"))).await;
    let mut volume: Value = serde_json::to_value(bed.stored::<Value>(&keys::volume(&default(), id)).await).expect("plain data");
    volume["node"] = json!("node1");
    bed.put_all(vec![typed::put(keys::volume(&default(), id), &volume)]).await;
    let told = async |bed: &Bed| {
        let answer = bed.get("/v1/vms/web1/placement").await;
        let nodes = answer["nodes"].as_array().expect("nodes").clone();
        nodes.iter().map(|n| format!("{} {} {}", n["node"], n["fits"], n["text"])).collect::<Vec<_>>().join("\n")
    };
    expect![[r#"
        "node2" true "12.5 % used then"
        "node1" true "25.0 % used then""#]]
    .assert_eq(&told(&bed).await);
    assert_eq!(bed.get("/v1/cluster/capacity").await["bound"], json!(0));
    let offline = NodeState { state: NodeHealth::Offline, since: jiff::Timestamp::UNIX_EPOCH };
    bed.put_all(vec![typed::put(keys::state(&Name::known("node2")), &offline)]).await;
    expect![[r#"
        "node1" true "25.0 % used then"
        "node2" false "it does not answer""#]]
    .assert_eq(&told(&bed).await);
}
