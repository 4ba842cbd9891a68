//! A host dies: others learn it, prove it, and run its highly available VMs; and what happens when it is back.
//!
//! Time is the test's: each tick of a [`Pulse`] lets half a second pass for the leader, and the living renew meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use vmkeep_api::ha::ConfirmDead;
use vmkeep_server::app::ha;
use vmkeep_server::reconcile::ha::Desk;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Store, Txn, keys, typed};
use vmkeep_types::ha::{Armed, Confirmed, Proof, WatchdogKind};
use vmkeep_types::host::{EpochRecord, Heartbeat, NodeHealth, NodeState};
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;

use super::cluster::{Cluster, ask};

/// Of the leader's time for each tick, ms.
const STEP_MS: u64 = 500;

/// The heartbeats of the living, and time.
struct Pulse {
    living: Arc<Mutex<BTreeSet<&'static str>>>,
    going: JoinHandle<()>,
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.going.abort();
    }
}

impl Pulse {
    fn of(c: &Cluster) -> Self {
        let living = Arc::new(Mutex::new(BTreeSet::from(["a", "b"])));
        let (store, desk, clock, alive) = (c.store.clone(), c.desk.clone(), c.clock.clone(), living.clone());
        let going = tokio::spawn(async move {
            for seq in 1.. {
                clock.fetch_add(STEP_MS, Ordering::Relaxed);
                desk.canary(desk.now());
                let now = alive.lock().expect("no panic holds this lock").clone();
                for node in now {
                    renew(&store, &desk, &Name::known(node), seq).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { living, going }
    }

    fn stops(&self, node: &'static str) {
        self.living.lock().expect("no panic holds this lock").remove(node);
    }

    fn goes_on(&self, node: &'static str) {
        self.living.lock().expect("no panic holds this lock").insert(node);
    }
}

async fn renew(store: &EmbeddedStore, desk: &Desk, node: &Name, seq: u64) {
    let Some(life) = typed::get_json::<EpochRecord>(store, &keys::epoch(node)).await.expect("a read") else { return };
    let (key, beat) = (keys::heartbeat(node), Heartbeat { epoch: life.value.epoch, seq, profile: Default::default() });
    let outcome = store.txn(Txn::default().then(typed::put(key, &beat))).await.expect("a write");
    desk.hear(node, beat, outcome.revision);
}

/// As the agent writes it when its watchdog is open.
async fn armed(c: &Cluster, node: &'static str) {
    let name = Name::known(node);
    let life = typed::get_json::<EpochRecord>(c.store.as_ref(), &keys::epoch(&name)).await.expect("a read").expect("joined");
    let armed = Armed::Watchdog { pet_ms: 19_000, watchdog_ms: 8_000, kind: WatchdogKind::Hardware };
    c.store.txn(Txn::default().then(typed::put(keys::armed(&name, life.value.epoch), &armed))).await.expect("a write");
}

/// Power lost: its agent and its guest are gone.
async fn dies(c: &mut Cluster, node: &'static str, vm: VmId) {
    c.end(node).await;
    c.hv(node).destroy(vm).await.expect("a guest");
}

async fn proof(c: &Cluster, node: &'static str) -> Option<Proof> {
    let all = typed::list_json::<Confirmed>(c.store.as_ref(), &keys::all_confirmed(&Name::known(node))).await.expect("a listing");
    all.into_iter().next().map(|kept| kept.value.proof)
}

async fn is_sealed(c: &Cluster, node: &'static str) -> bool {
    !c.store.list(&keys::fences(&Name::known(node))).await.expect("a listing").items.is_empty()
}

async fn offline(c: &Cluster, node: &'static str) {
    let state = NodeState { state: NodeHealth::Offline, since: jiff::Timestamp::UNIX_EPOCH };
    c.store.txn(Txn::default().then(typed::put(keys::state(&Name::known(node)), &state))).await.expect("a write");
}

async fn cluster(pool: &Path) -> (Cluster, VmId) {
    let c = Cluster::of_fakes(pool, true).await;
    let vm = c.vm(json!({"run": "always", "ha": {"priority": 1}})).await;
    (c, vm)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_of_a_dead_host_runs_elsewhere_and_the_host_that_is_back_leaves_it_there() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm) = cluster(pool.path()).await;
    let pulse = Pulse::of(&c);
    armed(&c, "a").await;
    armed(&c, "b").await;
    let before = c.owner(vm).await;
    dies(&mut c, "a", vm).await;
    pulse.stops("a");
    let silent_at = c.clock.load(Ordering::Relaxed);
    c.until("it is proved", async |c| proof(c, "a").await.is_some()).await;
    let passed_ms = c.clock.load(Ordering::Relaxed) - silent_at;
    assert!(passed_ms >= 38_000 - STEP_MS, "proved after {passed_ms} ms");
    assert_eq!(proof(&c, "a").await, Some(Proof::Watchdog));
    c.until("it runs on b", async |c| c.runs_on(vm).await == ["b"]).await;
    let after = c.owner(vm).await;
    assert_eq!((after.node.as_str(), after.generation), ("b", before.generation.next()));
    c.begin("a");
    pulse.goes_on("a");
    let gone = async |c: &Cluster| c.hv("a").list().await.is_ok_and(|all| all.is_empty());
    c.until("what a had of it is taken away", gone).await;
    assert_eq!(c.runs_on(vm).await, ["b"]);
    assert!(!c.two_ran(), "two guests ran at once");
    c.until("the history tells it", async |c| {
        let told = ha::history(c.store.as_ref()).await.expect("a history").incidents;
        told.len() == 1 && told[0].vms.len() == 1 && told[0].vms[0].running_at.is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_watchdog_only_a_person_says_that_a_host_is_dead() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm) = cluster(pool.path()).await;
    let pulse = Pulse::of(&c);
    let typed = |word: &str| ConfirmDead { typed: word.into() };
    let a = Name::known("a");
    let refused = ha::confirm_dead(c.store.as_ref(), &ask(), &a, &typed("a")).await.expect_err("it lives");
    assert!(refused.message.contains("is not dead"), "{refused}");
    dies(&mut c, "a", vm).await;
    pulse.stops("a");
    let silent_at = c.clock.load(Ordering::Relaxed);
    c.until("two minutes pass", async |c| c.clock.load(Ordering::Relaxed) - silent_at > 120_000).await;
    assert!(!is_sealed(&c, "a").await, "no proof would ever come");
    let refused = ha::confirm_dead(c.store.as_ref(), &ask(), &a, &typed("b")).await.expect_err("mistyped");
    assert!(refused.message.contains("not the name"), "{refused}");
    // The leader says by its own clock whether it is offline, and may write so in between.
    c.until("a person's word is taken", async |c| {
        offline(c, "a").await;
        ha::confirm_dead(c.store.as_ref(), &ask(), &a, &typed("a")).await.is_ok()
    })
    .await;
    assert_eq!(proof(&c, "a").await, Some(Proof::Operator));
    c.until("it runs on b", async |c| c.runs_on(vm).await == ["b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disarmed_nothing_is_sealed_and_vms_that_are_not_highly_available_stay() {
    let pool = tempfile::tempdir().expect("a folder");
    let (mut c, vm) = cluster(pool.path()).await;
    let plain = c.create(json!({"name": "plain", "firmware": "bios", "memory": "64M", "disks": [], "nics": [], "cloud_init": null})).await;
    c.over(&plain).await;
    let plain = VmId(plain.resource.uid);
    let pulse = Pulse::of(&c);
    let at = c.owner(plain).await.node;
    armed(&c, "a").await;
    ha::disarm(c.store.as_ref(), &ask(), Default::default()).await.expect("disarmed");
    dies(&mut c, "a", vm).await;
    pulse.stops("a");
    let silent_at = c.clock.load(Ordering::Relaxed);
    c.until("two minutes pass", async |c| c.clock.load(Ordering::Relaxed) - silent_at > 120_000).await;
    assert!(!is_sealed(&c, "a").await);
    ha::arm(c.store.as_ref()).await.expect("armed");
    c.until("it runs on b", async |c| c.runs_on(vm).await.contains(&"b")).await;
    assert_eq!(c.owner(plain).await.node, at, "it waits for its node");
}
