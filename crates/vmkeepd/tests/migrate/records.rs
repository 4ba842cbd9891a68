//! How much a VM takes in the store, and that its records change their form with the store's level, in the middle of its life.

use std::collections::BTreeSet;

use serde_json::json;
use vmkeep_agent::hypervisor::XmlKind;
use vmkeep_store::{KeyValue, Store, Txn, keys, typed};
use vmkeep_types::ids::VmId;

use super::cluster::Cluster;
use super::{shared, to};

/// 20 000 VMs in a database of 200 MiB, of which pages that are not full are nearly a half.
const BYTES_MAX: usize = 5300;

/// All that the store has of it, its operation and its events too.
async fn records(cluster: &Cluster, vm: VmId) -> Vec<KeyValue> {
    let (id, all) = (vm.to_string(), cluster.store.list("").await.expect("a listing").items);
    all.into_iter().filter(|kv| kv.key.contains(&id) || String::from_utf8_lossy(&kv.value).contains(&id)).collect()
}

fn sizes(records: &[KeyValue]) -> String {
    let line = |kv: &KeyValue| format!("{:5} {}", kv.key.len() + kv.value.len(), kv.key);
    records.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Which of its records have a PCI address, and in which form.
async fn forms(cluster: &Cluster, vm: VmId) -> Vec<&'static str> {
    let mut told = Vec::new();
    for kv in records(cluster, vm).await {
        let text = String::from_utf8(kv.value).expect("JSON");
        let (long, short) = (text.contains("<address type='pci'"), text.contains(r#":"0000:0"#));
        let what = if kv.key.starts_with("choices/") {
            ("choices long", "choices short")
        } else if kv.key.contains("/order/") {
            ("order long", "order short")
        } else {
            ("seen long", "seen short")
        };
        told.extend(long.then_some(what.0));
        told.extend(short.then_some(what.1));
    }
    told
}

/// Where libvirt has its devices.
async fn places(cluster: &Cluster, node: &str, vm: VmId) -> BTreeSet<String> {
    let xml = cluster.hv(node).xml(vm, XmlKind::Inactive).await.expect("its description");
    let places = xml.split("<address type='pci'").skip(1).filter_map(|rest| rest.split_once("/>"));
    places.map(|(place, _)| place.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_vm_takes() {
    let (cluster, _pool) = shared().await;
    let vm = cluster.vm(json!({"run": "always"})).await;
    let short = ["choices short", "order short"];
    cluster.until("all of it is kept", async |c| forms(c, vm).await == short).await;
    let records = records(&cluster, vm).await;
    let bytes: usize = records.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    eprintln!("{bytes} bytes\n{}", sizes(&records));
    assert!(bytes <= BYTES_MAX, "{bytes} bytes:\n{}", sizes(&records));
}

/// Members of the version before read the long form only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_form_of_addresses_follows_the_level() {
    let (mut cluster, _pool) = shared().await;
    let level = async |c: &Cluster, level: u64| {
        c.store.txn(Txn::default().then(typed::put(keys::LEVEL, &level))).await.expect("a write");
    };
    level(&cluster, keys::LEVEL_SHORT - 1).await;
    cluster.stop_leading().await;
    cluster.lead();
    let vm = cluster.vm(json!({"run": "always"})).await;
    cluster.until("all of it is kept", async |c| forms(c, vm).await == ["choices long", "order long", "seen long"]).await;
    let before = places(&cluster, "a", vm).await;
    level(&cluster, keys::LEVEL_SHORT).await;
    cluster.stop_leading().await;
    cluster.lead();
    let short = ["choices short", "order short"];
    cluster.until("the next leader writes it anew, and the node says nothing twice", async |c| forms(c, vm).await == short).await;
    let told = cluster.ending(&cluster.migrate(to("b")).await).await;
    assert!(told.starts_with("Done; runs on b"), "{told}");
    assert_eq!(before, places(&cluster, "b", vm).await, "its devices are where they were");
    cluster.until("all of it is kept there", async |c| forms(c, vm).await == short).await;
    let at_rest = async |c: &Cluster| {
        let settled = c.store.revision().await.expect("a revision");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        c.store.revision().await.expect("a revision").0 - settled.0 < 5
    };
    cluster.until("nobody writes it again and again", at_rest).await;
}
