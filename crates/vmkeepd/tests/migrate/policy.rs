//! What the leader does for a highly available VM whose host lives: other hosts when it does not start, and home after a maintenance.

use serde_json::json;
use vmkeep_api::place::DrainRequest;
use vmkeep_server::app::drain;
use vmkeep_store::{keys, typed};
use vmkeep_types::event::Event;
use vmkeep_types::ha::HaMemory;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::node::Closure;
use vmkeep_types::observed::{Doing, DomainState, Observed, Seen};

use super::cluster::{Cluster, ask};

async fn memory(c: &Cluster, vm: VmId) -> HaMemory {
    typed::get_json(c.store.as_ref(), &keys::ha_memory(vm)).await.expect("a read").map(|kept| kept.value).unwrap_or_default()
}

async fn was_told(c: &Cluster, vm: VmId, code: &str) -> bool {
    let ring = keys::events_of(&Name::known("default"), "vm", vm);
    let events = typed::list_json::<Event>(c.store.as_ref(), &ring).await.expect("a listing");
    events.iter().any(|event| event.value.code == code)
}

/// It runs there, and its host knows it.
async fn runs_well(c: &Cluster, vm: VmId, node: &'static str) -> bool {
    let seen = typed::get_json::<Seen>(c.store.as_ref(), &keys::seen(&Name::known(node), vm)).await.expect("a read");
    let knows = seen.is_some_and(|seen| seen.value.domain == Observed::Known(DomainState::Running) && seen.value.doing.is_none());
    knows && c.runs_on(vm).await == [node] && c.phase(vm).await.is_none()
}

/// Its host does not start it again by itself.
async fn gave_up(c: &Cluster, vm: VmId, node: &'static str) -> bool {
    let seen = typed::get_json::<Seen>(c.store.as_ref(), &keys::seen(&Name::known(node), vm)).await.expect("a read");
    seen.is_some_and(|seen| matches!(seen.value.doing, Some(Doing::GaveUp { .. })))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_gave_up_is_tried_on_another_host() {
    let pool = tempfile::tempdir().expect("a folder");
    let c = Cluster::of_fakes(pool.path(), true).await;
    let vm = c.vm(json!({"run": "always", "ha": {"max_restart": 0}})).await;
    let before = c.owner(vm).await;
    c.fake("a").kill_qemu(vm).expect("it runs");
    c.until("it runs on b", async |c| runs_well(c, vm, "b").await).await;
    let after = c.owner(vm).await;
    assert_eq!((after.node.as_str(), after.generation), ("b", before.generation.next()));
    assert!(was_told(&c, vm, "vm.relocated").await);
    assert!(!c.two_ran(), "two guests ran at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_starts_nowhere_is_left_to_a_person_whose_start_begins_anew() {
    let pool = tempfile::tempdir().expect("a folder");
    let c = Cluster::of_fakes(pool.path(), true).await;
    let vm = c.vm(json!({"run": "always", "ha": {"max_restart": 0, "max_relocate": 1}})).await;
    c.fake("a").kill_qemu(vm).expect("it runs");
    c.until("it runs on b", async |c| runs_well(c, vm, "b").await).await;
    let cycle = c.power_cycle(vm).await;
    c.fake("b").kill_qemu(vm).expect("it runs");
    c.until("a person is told", async |c| was_told(c, vm, "vm.starts-nowhere").await).await;
    assert!(gave_up(&c, vm, "b").await);
    assert_eq!((c.runs_on(vm).await, c.power_cycle(vm).await), (vec![], cycle), "nobody started it again");
    assert_eq!((c.owner(vm).await.node, memory(&c, vm).await.tried), (Name::known("b"), vec![Name::known("a"), Name::known("b")]));
    let op = c.command("start").await;
    assert_eq!(c.over(&op).await.error, None);
    c.until("it runs where it is", async |c| runs_well(c, vm, "b").await).await;
    c.fake("b").kill_qemu(vm).expect("it runs");
    c.until("the other host is tried again", async |c| runs_well(c, vm, "a").await).await;
    assert!(!c.two_ran(), "two guests ran at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_comes_home_after_the_maintenance_of_its_host() {
    let pool = tempfile::tempdir().expect("a folder");
    let c = Cluster::of_fakes(pool.path(), true).await;
    let vm = c.vm(json!({"ha": {}})).await;
    let wish = DrainRequest { closure: Closure::Maintenance, ..DrainRequest::default() };
    let op = drain::drain(c.store.as_ref(), &ask(), &Name::known("a"), wish).await.expect("taken");
    c.over(&op).await;
    c.until("it runs on b", async |c| c.runs_on(vm).await == ["b"]).await;
    assert_eq!(memory(&c, vm).await.home.map(|home| home.node), Some(Name::known("a")));
    c.node("a", "uncordon").await;
    c.until("it is back home, and that is over", async |c| {
        c.runs_on(vm).await == ["a"] && c.phase(vm).await.is_none() && memory(c, vm).await.home.is_none()
    })
    .await;
    assert!(!c.two_ran(), "two guests ran at once");
}
