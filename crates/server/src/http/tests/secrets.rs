//! The keys of secrets, as they are shown and renewed.

use vmkeep_store::seal::ring;
use vmkeep_store::seal::text::SecretKey;

use super::*;

#[tokio::test]
async fn keys_are_shown_by_their_ids_and_renewed_by_admins() {
    let (bed, node, key) = (Bed::new().await, Name::known("node1"), SecretKey::random());
    let shown = key.public().to_text().into_bytes();
    bed.put_all(vec![Op::Put(keys::control(&node), shown.clone()), Op::Put(keys::seal_key(&node), shown)]).await;
    ring::open_or_make(bed.store.as_ref(), &key).await.expect("a ring");
    bed.by(Role::Operator)
        .check("POST /v1/secrets/rotate", Value::Null, expect!["403 forbidden: 'alice' may not do this: it needs the role admin"])
        .await;
    assert_eq!(bed.get("/v1/secrets").await["rotation"], Value::Null);
    let begun = bed.call("POST /v1/secrets/rotate", Value::Null).await.json();
    assert_eq!((&begun["rotation"]["by"], &begun["rotation"]["waits_for"]), (&json!("alice"), &json!(["node1"])), "{begun}");
    let again = bed.call("POST /v1/secrets/rotate", Value::Null).await.json();
    assert_eq!(again, begun, "one that is under way goes on");
    assert_eq!((again["hosts"][0]["key"].as_str(), again["keys"].as_array().map(Vec::len)), (Some(key.public().id().as_str()), Some(1)));
    assert!(!again.to_string().contains(&key.to_text()), "no private key");
}
