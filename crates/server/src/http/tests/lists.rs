//! Pages, labels, and reads that see what was written before them.

use super::*;

#[tokio::test]
async fn pages_go_on_where_the_last_ended() {
    let bed = Bed::new().await;
    for name in ["c", "a", "e", "b", "d"] {
        bed.vm(name).await;
    }
    bed.check("GET /v1/vms?limit=2", Value::Null, expect![[r#"200 [a b] next "b""#]]).await;
    let first = bed.get("/v1/vms?limit=2").await;
    bed.vm("aa").await;
    let after = |page: &Value| format!("GET /v1/vms?limit=2&after={}", word(&page["next"]));
    bed.check(&after(&first), Value::Null, expect![[r#"200 [c d] next "d""#]]).await;
    let second = bed.call(&after(&first), Value::Null).await.json();
    assert_eq!(second["revision"], first["revision"], "a watch from there misses no change between the pages");
    bed.check(&after(&second), Value::Null, expect!["200 [e] next null"]).await;
    bed.check("GET /v1/vms?limit=1001", Value::Null, expect!["422 invalid: limit '1001' is not between 1 and 1000"]).await;
    bed.check("GET /v1/projects/other/vms", Value::Null, expect!["200 [] next null"]).await;
}

#[tokio::test]
async fn a_place_in_a_list_ends() {
    let bed = Bed::new().await;
    bed.vm("a").await;
    bed.vm("b").await;
    let place = word(&bed.get("/v1/vms?limit=1").await["next"]);
    let name_of_store = bed.store.id().0;
    bed.check(
        "GET /v1/vms?after=a",
        Value::Null,
        expect![[r#"
        422 invalid: after 'a' is no place in a list
          hint: send the `next` of the page before"#]],
    )
    .await;
    bed.check(
        &format!("GET /v1/volumes?after={}", place.replace(&name_of_store, "other")),
        Value::Null,
        expect![[r#"
        410 stale: the list has to be read anew: the store is another one
          hint: begin again without `after`"#]],
    )
    .await;
    // The embedded store keeps some thousand revisions.
    for n in 0..20_000_u32 {
        if bed.call(&format!("GET /v1/vms?after={place}"), Value::Null).await.status == 410 {
            break;
        }
        for m in 0..200 {
            bed.put_all(vec![typed::put("x/y", &(n * 200 + m))]).await;
        }
    }
    bed.check(
        &format!("GET /v1/vms?after={place}"),
        Value::Null,
        expect![[r#"
        410 stale: the list has to be read anew: its first page is too old
          hint: begin again without `after`"#]],
    )
    .await;
}

#[tokio::test]
async fn a_record_that_does_not_parse_hides_no_other() {
    let bed = Bed::new().await;
    bed.vm("web1").await;
    bed.call("POST /v1/volumes", json!({"name": "data", "size": "1G"})).await;
    for kind in ["image", "volume", "network", "op", "vm"] {
        bed.put_all(vec![Op::Put(format!("{kind}/default/{}", uuid::Uuid::new_v4()), b"{\"id\": 7}".to_vec())]).await;
    }
    bed.put_all(vec![Op::Put(format!("event/default/vm/{}/1-1", uuid::Uuid::new_v4()), b"nonsense".to_vec())]).await;
    bed.check("GET /v1/images", Value::Null, expect!["200 [tiny] next null"]).await;
    bed.check("GET /v1/volumes", Value::Null, expect!["200 [data] next null"]).await;
    bed.check("GET /v1/networks", Value::Null, expect!["200 [default] next null"]).await;
    bed.check("GET /v1/vms", Value::Null, expect!["200 [web1] next null"]).await;
    assert_eq!(bed.get("/v1/operations").await["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(bed.get("/v1/events").await["items"], json!([]));
    crate::app::housekeeping(bed.store.as_ref(), None).await.expect("swept");
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
