//! What is said of high availability, by hosts that have it and by one that cannot.

use super::*;

#[tokio::test]
async fn a_host_alone_is_told_that_nothing_is_armed() {
    let bed = Bed::new().await;
    let told = bed.get("/v1/ha").await;
    assert!(word(&told["alone"]).starts_with("this host is alone: "), "{told}");
    assert_eq!(told["nodes"][0]["proof"], json!("its VMs wait until it is back, and start then as their `run` says"));
    let second = Name::known("node2");
    let facts = NodeFacts::of(second.clone(), 4, ByteCount::from_gib(8));
    bed.put_all(vec![Op::Put(keys::joined(&second), Vec::new()), typed::put(keys::facts(&second), &facts)]).await;
    let told = bed.get("/v1/ha").await;
    assert_eq!(told.get("alone"), None, "two hosts are none alone");
    assert!(word(&told["nodes"][0]["proof"]).contains("confirm-dead node1"), "{told}");
}
