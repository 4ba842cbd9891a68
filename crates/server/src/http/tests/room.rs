//! How much fits, what may fail, and what an apply does to it.

use super::placement::{joins, two_nodes};
use super::*;

#[tokio::test]
async fn room_is_counted_and_warned_of() {
    let bed = two_nodes().await;
    let capacity = bed.get("/v1/cluster/capacity").await;
    assert_eq!((&capacity["may_fail"], &capacity["largest"]["node"]), (&json!(1), &json!("node2")));
    let simulated =
        bed.call("POST /v1/cluster/simulate", json!({"add": [{"count": 20, "spec": {"name": "app", "memory": "2G"}}]})).await.json();
    expect![[r#"
        12 of 20: {"node1":4,"node2":8} may fail 1 0
        {"nodes":[{"fits":false,"node":"node1","text":"needs 2G of memory, 0B of 8G are free"},{"fits":false,"node":"node2","text":"needs 2G of memory, 0B of 16G are free"}],"vm":"app-13"}"#]].assert_eq(&format!(
        "{} of {}: {} may fail {} {}\n{}",
        simulated["placed"], simulated["wanted"], simulated["by_node"], simulated["may_fail_before"], simulated["may_fail_after"], simulated["broken"]
    ));
    let plan = |memory: &str| json!({"dry_run": true, "manifests": [{"kind": "vm", "name": "big", "memory": memory, "nics": []}]});
    let fine = bed.call("POST /v1/apply", plan("8G")).await.json();
    assert_eq!(fine["results"][0]["warnings"], json!([]));
    let much = bed.call("POST /v1/apply", plan("12G")).await.json();
    assert_eq!(
        much["results"][0]["warnings"],
        json!(["with this, no node may fail any more with everything still fitting on the others (vmkeep cluster capacity)"])
    );
    // 16 GiB, 16 GiB and 8 GiB: two may fail while the rest fits on 8 GiB.
    joins(&bed, "node3", "16G").await;
    assert_eq!(bed.get("/v1/cluster/capacity").await["may_fail"], json!(2));
    assert_eq!(bed.call("POST /v1/apply", plan("8G")).await.json()["results"][0]["warnings"], json!([]));
    let more = bed.call("POST /v1/apply", plan("12G")).await.json();
    assert_eq!(
        more["results"][0]["warnings"],
        json!([
            "with this, only one node may fail, and no longer two, with everything still fitting on the others (vmkeep cluster capacity)"
        ])
    );
}

/// A VM on a bridge goes where the bridge is, one that is simulated too.
#[tokio::test]
async fn room_is_counted_where_the_network_is() {
    let bed = two_nodes().await;
    for (node, bridges) in [("node1", json!([])), ("node2", json!(["br0"]))] {
        let mut facts: Value = serde_json::to_value(bed.stored::<NodeFacts>(&keys::facts(&Name::known(node))).await).expect("plain data");
        facts["offers"] = json!({"arch": "x86_64", "bridges": bridges});
        bed.put_all(vec![typed::put(keys::facts(&Name::known(node)), &facts)]).await;
    }
    bed.call("PUT /v1/networks/lan", json!({"name": "lan", "mode": "bridge", "bridge": "br0"})).await;
    let spec = |network: &str| json!({"name": "app", "memory": "2G", "nics": [{"network": network}]});
    let simulated = bed.call("POST /v1/cluster/simulate", json!({"add": [{"count": 9, "spec": spec("lan")}]})).await.json();
    expect![[r#"
        8 of 9: {"node2":8}
        {"nodes":[{"fits":false,"node":"node1","text":"network 'lan' is not reachable: there is no bridge br0"},{"fits":false,"node":"node2","text":"needs 2G of memory, 0B of 16G are free"}],"vm":"app-9"}"#]].assert_eq(&format!(
        "{} of {}: {}\n{}",
        simulated["placed"], simulated["wanted"], simulated["by_node"], simulated["broken"]
    ));
    bed.check(
        "POST /v1/cluster/simulate",
        json!({"add": [{"count": 1, "spec": spec("lna")}]}),
        expect![[r#"
        422 invalid: a VM to be simulated is on a network that there is not
          add[0].spec.nics[lan].network: there is no network 'lna'"#]],
    )
    .await;
    // Without a network the other host takes it when one is lost; with this one nobody else can.
    let mut wish = json!({"kind": "vm", "name": "one", "memory": "2G", "nics": []});
    let mut warnings = Vec::new();
    for nics in [json!([]), json!([{"network": "lan"}])] {
        wish["nics"] = nics;
        let planned = bed.call("POST /v1/apply", json!({"dry_run": true, "manifests": [wish]})).await.json();
        warnings.push(planned["results"][0]["warnings"].to_string());
    }
    expect![[r#"
        []
        ["with this, no node may fail any more with everything still fitting on the others (vmkeep cluster capacity)"]"#]]
    .assert_eq(&warnings.join("\n"));
}
