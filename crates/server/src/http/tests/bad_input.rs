//! What is refused before anything is written, and in which words.

use futures_util::StreamExt;

use super::*;

async fn check(bed: &Bed, spec: Value, expected: Expect) {
    let before = bed.store.revision().await.expect("a revision");
    expected.assert_eq(&bed.call("POST /v1/vms", spec).await.words());
    assert_eq!(bed.store.revision().await.expect("a revision"), before, "nothing was written");
}

#[tokio::test]
async fn manifests_that_cannot_be() {
    let bed = Bed::new().await;
    check(
        &bed,
        json!({"name": "web/1"}),
        expect![[r#"
        422 invalid: the manifest has 1 problem
          name: 'web/1' is not a name: use only a-z, 0-9 and '-'"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "cpuss": 2, "memroy": "2G"}),
        expect![[r#"
        422 invalid: the manifest has 2 problems
          cpuss: there is no field 'cpuss'; did you mean 'cpus'?
          memroy: there is no field 'memroy'; did you mean 'memory'?"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "memory": "64G"}),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          memory.size: 64G is more than node node1 has (8G)"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "disks": [{"name": "root", "empty": true, "size": "-1G"}]}),
        expect![[r#"
        422 invalid: the manifest has 1 problem
          disks[root].size: '-1G' is not a size; write a whole number and a unit, like 512M or 20G"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "image": "debian-13"}),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[root].image: there is no image 'debian-13'"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "image": "tiny", "disks": [{"name": "root", "size": "512M"}]}),
        expect![[r#"
        422 invalid: vm web1 has 1 problem
          disks[root].size: 512M is smaller than the image (1G); a disk can only grow"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "nics": [{"name": "a", "network": "lan", "mac": "52:54:00:00:00:01"}, {"name": "b", "mac": "52:54:00:00:00:01"}],
            "disks": [{"name": "root", "image": "no-image", "pool": "fast"}, {"name": "data", "volume": "no-volume"}], "cdroms": [{"name": "cd0", "image": "no-iso"}]}),
        expect![[r#"
            422 invalid: the manifest has 1 problem
              nics[b].mac: NIC 'a' has the same MAC"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "cloud_init": {"password": "********", "ssh_keys": ["@~/.ssh/id.pub"]}}),
        expect![[r#"
        422 invalid: the manifest has 1 problem
          cloud_init.ssh_keys[0]: @FILE is read by the vmkeep command; send the file's text"#]],
    )
    .await;
    check(
        &bed,
        json!({"name": "web1", "cloud_init": {"password": "********", "users": [{"name": "bob", "passwd": "********"}]}}),
        expect![[r#"
        422 invalid: vm web1 has 2 problems
          cloud_init.password: vmkeep does not show passwords; write the real one here
          cloud_init.users[bob].passwd: vmkeep does not show passwords; write the real one here"#]],
    )
    .await;
}

#[tokio::test]
async fn bodies_that_are_none() {
    let bed = Bed::new().await;
    let send = |body: &'static str| bed.reply(Request::builder().method("POST").uri("/v1/vms"), body);
    expect![[r#"
        422 invalid: the manifest has 1 problem
          name: it is missing"#]]
    .assert_eq(&send("").await.words());
    expect!["422 invalid: the body is no JSON: EOF while parsing an object at line 1 column 1"].assert_eq(&send("{").await.words());
    expect![[r#"
        422 invalid: the manifest has 1 problem
          : a manifest is a map of fields, like {kind: vm, name: hello, image: debian-13}"#]]
    .assert_eq(&send("[1]").await.words());
    bed.check(
        "PUT /v1/vms/web2",
        json!({"name": "web1"}),
        expect![[r#"
        422 invalid: the body names 'web1', the path 'web2'
          hint: rename with the action `rename`"#]],
    )
    .await;
    bed.check("GET /v1/vms?limit=0", Value::Null, expect!["422 invalid: limit '0' is not between 1 and 1000"]).await;
    bed.check("GET /v1/operations/x", Value::Null, expect!["422 invalid: 'x' is not an operation's id"]).await;
    let stale = bed.reply(Request::builder().method("PUT").uri("/v1/vms/web1").header("if-match", "W/x"), r#"{"name":"web1"}"#).await;
    expect![[r#"
        422 invalid: If-Match W/x is no ETag of ours
          hint: send one ETag as it came, or *"#]]
    .assert_eq(&stale.words());
}

#[tokio::test]
async fn a_body_of_100_mb_is_not_read() {
    let bed = Bed::new().await;
    let claimed = bed.reply(Request::builder().method("POST").uri("/v1/vms").header("content-length", "104857600"), Body::empty()).await;
    expect!["413 too_large: the body is larger than 4194304 bytes"].assert_eq(&claimed.words());
    let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = taken.clone();
    let chunks = futures_util::stream::iter(0..1600).map(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b' '; 65536]))
    });
    let unclaimed = bed.reply(Request::builder().method("POST").uri("/v1/vms"), Body::from_stream(chunks)).await;
    assert_eq!(unclaimed.status, 413);
    assert!(taken.load(std::sync::atomic::Ordering::Relaxed) <= 66, "it stops at the limit");
}

#[tokio::test]
async fn what_another_vm_has() {
    let bed = Bed::new().await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    nouns::made(&bed, "data").await;
    let first =
        json!({"name": "web1", "nics": [{"name": "lan", "mac": "52:54:00:00:00:01"}], "disks": [{"name": "data", "volume": "data"}]});
    assert_eq!(bed.call("POST /v1/vms", first.clone()).await.status, 202);
    let mut second = first;
    second["name"] = json!("web2");
    second["nics"][0]["mac"] = json!("52:54:00:00:00:01");
    check(
        &bed,
        second,
        expect![[r#"
            422 invalid: vm web2 has 2 problems
              nics[lan].mac: 52:54:00:00:00:01 is the MAC of VM 'web1'
              disks[data].volume: volume 'data' is disk 'data' of VM 'web1'"#]],
    )
    .await;
    let chosen = bed.get("/v1/vms/web1").await;
    assert_eq!(chosen["choices"]["macs"], json!({}), "a written MAC is not chosen");
    check(
        &bed,
        json!({"name": "web1"}),
        expect![[r#"
        409 conflict: there is a VM 'web1' already
          hint: change it with 'vmkeep vm set web1', or take another name"#]],
    )
    .await;
    bed.vm("web3").await;
    let auto = word(&bed.get("/v1/vms/web3").await["choices"]["macs"]["lan"]);
    let taken = json!({"name": "web4", "nics": [{"name": "lan", "mac": auto.to_uppercase()}]});
    let words = bed.call("POST /v1/vms", taken).await.words();
    assert!(words.contains("is the MAC of VM 'web3'"), "{words}");
}

#[tokio::test]
async fn operators_do_not_reach_the_host() {
    let bed = Bed::new().await;
    let patched = json!({"name": "web1", "libvirt_xml": [{"op": "add", "path": "devices", "value": "<x/>"}], "shares": [{"name": "etc", "path": "/etc"}]});
    let operator = bed.by(Role::Operator);
    operator
        .check(
            "POST /v1/vms",
            patched.clone(),
            expect![[r#"
        403 forbidden: only admins may set shares, libvirt_xml
          hint: they reach the host itself"#]],
        )
        .await;
    operator
        .check(
            "POST /v1/apply",
            json!({"manifests": [{"kind": "vm", "name": "web1", "shares": [{"name": "etc", "path": "/etc"}]}]}),
            expect![[r#"
        403 forbidden: the list of manifests has 1 problem
          manifests[0]: only admins may set shares (they reach the host itself)"#]],
        )
        .await;
    assert_eq!(bed.call("POST /v1/vms", patched.clone()).await.status, 202);
    // What an admin put there may stay when an operator changes something else.
    let mut changed = patched;
    changed["description"] = json!("mine");
    assert_eq!(operator.call("PUT /v1/vms/web1", changed.clone()).await.status, 202);
    changed["shares"][0]["path"] = json!("/root");
    assert_eq!(operator.call("PUT /v1/vms/web1", changed).await.status, 403);
}
