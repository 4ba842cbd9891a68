//! The CPU of the cluster: who gets it, when, and what happens to it as hosts come.

use expect_test::expect;
use serde_json::json;
use vmkeep_core::place;
use vmkeep_types::host::KvmState;
use vmkeep_types::node::NodeRecord;

use super::*;

/// The node's CPU as guests can have it: whole models, and features beyond its own.
fn with_cpu(name: &'static str, models: &[&str], features: &[&str]) -> NodeFacts {
    let mut facts = NodeFacts { name: Name::known(name), ..facts(ByteCount::from_gib(8)) };
    facts.kvm = KvmState::Usable;
    facts.offers.cpu_models = models.iter().map(|name| (*name).to_owned()).collect();
    facts.offers.cpu_features = features.iter().map(|name| (*name).to_owned()).collect();
    facts.offers.cpu_guest_features.clone_from(&facts.offers.cpu_features);
    facts.offers.cpu_model = models.last().map(|name| (*name).to_owned()).unwrap_or_default();
    facts
}

/// The kept CPU, and the one that the node was told.
async fn cpus(store: &EmbeddedStore) -> String {
    let kept = typed::get_json::<VmChoices>(store, &keys::choices(VM)).await.expect("a read").expect("choices").value.cpu_xml;
    let order = typed::get_json::<Order>(store, &keys::order(&node(), VM)).await.expect("a read");
    let told = order.and_then(|order| order.value.choices.cpu_xml);
    assert!(told.is_none() || told == kept, "{told:?}");
    let model = |xml: &String| place::cpu::GuestCpu::parse(xml).map(|cpu| format!("{} with {:?}", cpu.model, cpu.with));
    kept.as_ref().and_then(model).unwrap_or_else(|| "none".into())
}

#[tokio::test]
async fn the_cpu_of_the_cluster_is_chosen_with_the_first_node_and_kept() {
    let store = begin(ByteCount::from_gib(8)).await;
    let put = async |ops: Vec<Op>| drop(store.txn(Txn { then: ops, ..Txn::default() }).await.expect("a write"));
    let wants = |model: &str| {
        let mut wish = record(None);
        wish.spec.cpu.model = model.into();
        typed::put(keys::vm(&project(), VM), &wish)
    };
    let other = Name::known("node0");
    let new = with_cpu("node1", &["Nehalem", "Haswell-noTSX", "Cooperlake"], &["pdpe1gb", "ssbd"]);
    put(vec![wants("cluster"), typed::put(keys::facts(&node()), &new)]).await;
    // A node that tells no models: nobody knows what all can run.
    put(vec![Op::Put(keys::joined(&other), Vec::new()), typed::put(keys::facts(&other), &with_cpu("node0", &[], &[]))]).await;
    put(vec![typed::put(keys::node(&other), &closed(&other))]).await;
    lead(&store).await;
    assert_eq!(cpus(&store).await, "none", "the node gives it its own");
    put(vec![typed::put(keys::facts(&other), &with_cpu("node0", &["Nehalem", "Haswell-noTSX"], &["ssbd"]))]).await;
    lead(&store).await;
    expect![[r#"Haswell-noTSX with {"ssbd"}"#]].assert_eq(&cpus(&store).await);
    // An older host joins: what a guest has is not taken from it.
    put(vec![typed::put(keys::facts(&other), &with_cpu("node0", &["Nehalem"], &[]))]).await;
    lead(&store).await;
    expect![[r#"Haswell-noTSX with {"ssbd"}"#]].assert_eq(&cpus(&store).await);
    let now = view(&store).await;
    let strangers = place::cpu::strangers(now.fleet());
    let told: Vec<String> = strangers.iter().map(|found| format!("{} VM not on {}: {}", found.vms, found.node, found.lack)).collect();
    expect!["1 VM not on node0: guests cannot have the CPU Haswell-noTSX, which all nodes could run when the VM got it, here"]
        .assert_eq(&told.join("\n"));
    expect![[r#"Ok(Baseline { model: "Nehalem", features: {} })"#]].assert_eq(&format!("{:?}", now.baseline()));
}

#[tokio::test]
async fn other_models_get_no_cpu_of_the_cluster() {
    for model in ["auto", "host", "Nehalem"] {
        let store = begin(ByteCount::from_gib(8)).await;
        let mut wish = record(None);
        wish.spec.cpu.model = model.into();
        let facts = with_cpu("node1", &["Nehalem"], &["ssbd"]);
        let txn = Txn::default().then(typed::put(keys::vm(&project(), VM), &wish)).then(typed::put(keys::facts(&node()), &facts));
        store.txn(txn).await.expect("a write");
        lead(&store).await;
        assert_eq!(cpus(&store).await, "none", "{model}");
    }
}

fn closed(node: &Name) -> NodeRecord {
    let cordon = json!({"by": "alice", "at": now(), "why": "", "closure": "cordon"});
    NodeRecord { cordon: serde_json::from_value(cordon).ok(), ..NodeRecord::named(node.clone()) }
}
