//! Pages, labels, and reads that see what was written before them.

use super::*;

#[tokio::test]
async fn pages_go_on_where_the_last_ended() {
    let bed = Bed::new().await;
    for name in ["c", "a", "e", "b", "d"] {
        bed.vm(name).await;
    }
    bed.check("GET /v1/vms?limit=2", Value::Null, expect![[r#"200 [a b] next "b""#]]).await;
    bed.check("GET /v1/vms?limit=2&after=b", Value::Null, expect![[r#"200 [c d] next "d""#]]).await;
    bed.check("GET /v1/vms?limit=2&after=d", Value::Null, expect!["200 [e] next null"]).await;
    bed.check("GET /v1/vms?limit=2&after=e", Value::Null, expect!["200 [] next null"]).await;
    bed.check("GET /v1/vms?limit=1001", Value::Null, expect!["422 invalid: limit '1001' is not between 1 and 1000"]).await;
    bed.check("GET /v1/projects/other/vms", Value::Null, expect!["200 [] next null"]).await;
}

#[tokio::test]
async fn labels_choose() {
    let bed = Bed::new().await;
    for (name, labels) in [("a", json!({"tier": "db"})), ("b", json!({"tier": "db", "env": "prod"})), ("c", json!({}))] {
        bed.call("POST /v1/vms", json!({"name": name, "run": "manual", "labels": labels})).await;
    }
    bed.check("GET /v1/vms?label=tier%3Ddb", Value::Null, expect!["200 [a b] next null"]).await;
    bed.check("GET /v1/vms?label=tier=db,env=prod", Value::Null, expect!["200 [b] next null"]).await;
    bed.check("GET /v1/vms?label=tier=web", Value::Null, expect!["200 [] next null"]).await;
    bed.check("GET /v1/vms?label=tier=db&limit=1", Value::Null, expect![[r#"200 [a] next "a""#]]).await;
}

/// The list is made of kept rows; each must be what the VM's own view is, after every kind of change.
#[tokio::test]
async fn a_read_sees_every_write_before_it() {
    let bed = Bed::new().await;
    for n in 0..30 {
        bed.vm(&format!("vm{n:02}")).await;
    }
    for round in 0..20_u32 {
        let name: &'static str = ["vm03", "vm07", "vm11"][round as usize % 3];
        let id = bed.vm_id(name).await;
        match round % 4 {
            0 => drop(
                bed.call(&format!("PUT /v1/vms/{name}"), json!({"name": name, "run": "manual", "description": round.to_string()})).await,
            ),
            1 => drop(bed.call(&format!("POST /v1/vms/{name}/actions/start"), Value::Null).await),
            2 => watched::seen_running(&bed, id, json!({})).await,
            _ => watched::seen_off(&bed, id).await,
        }
        let truth =
            serde_json::to_value(crate::app::vm_parts::show(bed.store.as_ref(), &default(), &Name::known(name)).await.expect("there"))
                .expect("plain data");
        assert_eq!(bed.get(&format!("/v1/vms/{name}")).await, truth, "round {round}");
        let list = bed.get("/v1/vms").await;
        let row = list["items"].as_array().expect("items").iter().find(|vm| vm["spec"]["name"] == name).expect("listed");
        assert_eq!(*row, truth, "round {round}");
    }
    let id = bed.vm_id("vm03").await;
    bed.put_all(vec![Op::Delete(keys::vm(&default(), id)), Op::Delete(keys::name("vm", &default(), &Name::known("vm03")))]).await;
    bed.check("GET /v1/vms/vm03", Value::Null, expect!["404 not_found: there is no vm 'vm03'"]).await;
    assert_eq!(bed.get("/v1/vms").await["items"].as_array().map(Vec::len), Some(29));
}
