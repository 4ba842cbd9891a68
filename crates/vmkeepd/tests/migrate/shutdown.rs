//! A host is shut down or rebooted in order: what becomes of its VMs, by the cluster's policy. Nobody takes it for dead.

use std::time::Duration;

use serde_json::json;
use vmkeep_agent::hypervisor::HvError;
use vmkeep_agent::hypervisor::fake::Fault;
use vmkeep_api::ha::{HaChange, HaNodeState};
use vmkeep_server::app::ha;
use vmkeep_server::cache::Cache;
use vmkeep_store::{Store, Txn, keys, typed};
use vmkeep_types::ha::{Confirmed, Farewell, Proof, ShutdownPolicy};
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;

use super::cluster::Cluster;

/// Two hosts; a highly available VM and a plain one on `a`.
async fn begin(pool: &std::path::Path, policy: Option<ShutdownPolicy>) -> (Cluster, VmId, VmId) {
    let c = Cluster::of_members(pool).await;
    if policy.is_some() {
        ha::set(c.store.as_ref(), &HaChange { shutdown_policy: policy, ..HaChange::default() }).await.expect("set");
    }
    c.node("b", "cordon").await;
    let vm = c.vm(json!({"run": "always", "ha": {}})).await;
    let plain = c.vm(json!({"name": "plain", "run": "always"})).await;
    c.node("b", "uncordon").await;
    (c, vm, plain)
}

async fn down(c: &Cluster, why: Farewell) {
    c.handle("a").shutdown_guests(why).await.expect("all are off");
    assert!(c.fake("a").running().is_empty(), "it ended before its guests did");
}

async fn proof(c: &Cluster) -> Option<Proof> {
    let all = typed::list_json::<Confirmed>(c.store.as_ref(), &keys::all_confirmed(&Name::known("a"))).await.expect("a listing");
    all.into_iter().next().map(|kept| kept.value.proof)
}

async fn state(c: &Cluster, node: &str) -> (HaNodeState, String) {
    let told = ha::status(c.store.as_ref(), &Cache::follow(c.store.clone())).await.expect("a status");
    let node = told.nodes.into_iter().find(|is| is.node.as_str() == node).expect("it is known");
    (node.state, node.proof)
}

/// Nobody was sealed, and the history knows no death.
async fn nobody_died(c: &Cluster) {
    assert!(c.store.list(keys::ALL_FENCES).await.expect("a listing").items.is_empty(), "an orderly shutdown is no death");
    assert!(ha::history(c.store.as_ref()).await.expect("a history").incidents.is_empty());
    assert!(!c.two_ran(), "two guests ran at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_shutdown_highly_available_vms_start_elsewhere_and_the_others_wait() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm, plain) = begin(pool.path(), None).await;
    let before = c.owner(vm).await;
    down(&c, Farewell::Shutdown).await;
    c.until("it runs on b", async |c| c.runs_on(vm).await == ["b"]).await;
    let after = c.owner(vm).await;
    assert_eq!((after.node.as_str(), after.generation, proof(&c).await), ("b", before.generation.next(), Some(Proof::Goodbye)));
    let told = "it was shut down in order (shutdown); its highly available VMs start elsewhere";
    assert_eq!(state(&c, "a").await, (HaNodeState::Away, told.into()));
    assert_eq!((c.owner(plain).await.node.as_str(), c.runs_on(plain).await), ("a", vec![]));
    c.boots("a").await;
    c.until("the other runs where it was", async |c| c.runs_on(plain).await == ["a"]).await;
    c.until("what a had of it is taken away", async |c| c.hv("a").list().await.is_ok_and(|all| all.len() == 1)).await;
    c.until("it is told online", async |c| state(c, "a").await.0 == HaNodeState::Online).await;
    assert_eq!(c.runs_on(vm).await, ["b"]);
    nobody_died(&c).await;
}

/// A member of the version before may lead next: it reads no goodbye, so none is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_member_reads_no_goodbye_vms_wait_for_their_host_as_it_is_used_to() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm, _) = begin(pool.path(), None).await;
    c.store.txn(Txn::default().then(typed::put(keys::LEVEL, &(keys::LEVEL_GOODBYES - 1)))).await.expect("a write");
    let before = c.owner(vm).await;
    down(&c, Farewell::Shutdown).await;
    assert_eq!(state(&c, "a").await, (HaNodeState::Away, "it was shut down in order (shutdown); its VMs wait for it".into()));
    // What was said stays said, also when all members are new by now.
    c.store.txn(Txn::default().then(typed::put(keys::LEVEL, &keys::LEVEL_NOW))).await.expect("a write");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((proof(&c).await, c.owner(vm).await, c.runs_on(vm).await), (None, before, vec![]));
    c.boots("a").await;
    c.until("it runs where it was", async |c| c.runs_on(vm).await == ["a"]).await;
    nobody_died(&c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_reboot_vms_wait_for_their_host() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm, plain) = begin(pool.path(), None).await;
    let before = c.owner(vm).await;
    down(&c, Farewell::Reboot).await;
    let told = "it was shut down in order (reboot); its VMs wait for it";
    assert_eq!(state(&c, "a").await, (HaNodeState::Away, told.into()));
    c.boots("a").await;
    c.until("both run where they were", async |c| c.runs_on(vm).await == ["a"] && c.runs_on(plain).await == ["a"]).await;
    assert_eq!((c.owner(vm).await.node, proof(&c).await), (before.node, None));
    nobody_died(&c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_waits_until_its_vms_have_moved_away_and_they_come_back() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm, plain) = begin(pool.path(), Some(ShutdownPolicy::Migrate)).await;
    c.fake("a").set_delay_of("migrate_copy", Duration::from_secs(1));
    down(&c, Farewell::Reboot).await;
    // It never stopped: the start there was a guest's that came by itself.
    assert_eq!((c.runs_on(vm).await, c.owner(vm).await.node.as_str()), (vec!["b"], "b"));
    assert!(!c.fake("b").calls().iter().any(|call| call.starts_with("start ")), "{:?}", c.fake("b").calls());
    c.boots("a").await;
    c.until("both are at home", async |c| c.runs_on(vm).await == ["a"] && c.runs_on(plain).await == ["a"]).await;
    c.until("nothing is under way", async |c| c.phase(vm).await.is_none()).await;
    assert_eq!(proof(&c).await, None);
    nobody_died(&c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_cannot_move_away_starts_elsewhere_afterwards() {
    let pool = tempfile::tempdir().expect("a folder");
    let (c, vm, _) = begin(pool.path(), Some(ShutdownPolicy::Migrate)).await;
    for _ in 0..3 {
        c.fake("a").fault_next("migrate", Fault::Fail(HvError::Refused("no way".into())));
    }
    down(&c, Farewell::Shutdown).await;
    c.until("it runs on b", async |c| c.runs_on(vm).await == ["b"]).await;
    assert_eq!(proof(&c).await, Some(Proof::Goodbye));
    nobody_died(&c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_that_is_called_off_leaves_everything_where_it_is() {
    let pool = tempfile::tempdir().expect("a folder");
    let (c, vm, plain) = begin(pool.path(), Some(ShutdownPolicy::Migrate)).await;
    c.fake("a").set_delay_of("migrate_copy", Duration::from_secs(2));
    let handle = c.handle("a");
    let going = tokio::spawn(async move { handle.shutdown_guests(Farewell::Reboot).await });
    let leaves = async |c: &Cluster| c.store.get(&keys::drain(&Name::known("a"))).await.expect("a read").is_some();
    c.until("it waits for its VMs", leaves).await;
    assert_eq!(state(&c, "a").await, (HaNodeState::Leaving, "it goes down (reboot); its highly available VMs move away first".into()));
    going.abort();
    let _ = going.await;
    c.handle("a").resume_guests().await;
    c.until("nobody empties it any more", async |c| !leaves(c).await && c.phase(vm).await.is_none()).await;
    c.until("all runs", async |c| c.runs_on(vm).await.len() == 1 && c.runs_on(plain).await == ["a"]).await;
    c.until("it is told online", async |c| state(c, "a").await.0 == HaNodeState::Online).await;
    nobody_died(&c).await;
}
