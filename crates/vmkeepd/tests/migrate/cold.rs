//! VMs that are off take their disks along. Both hosts look into one folder here, and say that they do not, so what the source
//! takes away in the end is the copy: tests of real hosts look at what has arrived.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use expect_test::expect;
use serde_json::json;
use vmkeep_server::app::op;
use vmkeep_store::{Store, Txn, keys, typed};
use vmkeep_types::ids::VmId;
use vmkeep_types::migration::{MigrateOptions, MovePhase};
use vmkeep_types::operation::Operation;
use vmkeep_types::units::ByteCount;

use super::cluster::{Cluster, ask};
use super::{Who, to};

/// A VM that is off, with a disk that only `a` reaches.
async fn off(pool: &Path) -> (Cluster, VmId) {
    let cluster = Cluster::of_fakes(pool, false).await;
    let vm = cluster.vm(json!({"disks": [{"name": "root", "empty": true, "size": "4M"}]})).await;
    cluster.over(&cluster.command("stop").await).await;
    (cluster, vm)
}

/// So slow that each phase is met: the file of an empty disk takes about 200 kB.
fn slowly() -> MigrateOptions {
    MigrateOptions { bandwidth: Some(ByteCount::from_bytes(96 << 10)), ..to("b") }
}

pub fn disks(pool: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(pool).expect("a folder").flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|e| e == "qcow2")).collect()
}

/// How it ended, and who has it.
async fn ended(cluster: &Cluster, vm: VmId, op: &Operation) -> String {
    let op = cluster.over(op).await;
    let owner = cluster.owner(vm).await;
    assert!(cluster.runs_on(vm).await.is_empty(), "it is off");
    let error = op.error.map(|e| format!(": {}", e.message)).unwrap_or_default();
    format!("{:?}{error}; {}'s by generation {}", op.state, owner.node, owner.generation.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_is_off_takes_its_disks_along() {
    let pool = tempfile::tempdir().expect("a folder");
    let (cluster, vm) = off(pool.path()).await;
    let op = cluster.migrate(slowly()).await;
    cluster.until("the bytes are told", async |c| c.op(&op).await.progress.is_some_and(|p| p.done > 0 && p.total > 0)).await;
    let told = ended(&cluster, vm, &op).await;
    let steps = cluster.op(&op).await.steps.join("\n");
    cluster.until("the source has taken its own away", async |_| disks(pool.path()).is_empty()).await;
    expect![[r#"
        Done; b's by generation 2
        a -> b, off, 1 disks copied along
        b is ready
        its data is on b
        has left a
        is on b"#]]
    .assert_eq(&format!("{told}\n{steps}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_killed_while_it_is_copied() {
    let mut told = String::new();
    for who in [Who::Source, Who::Destination, Who::Leader] {
        let pool = tempfile::tempdir().expect("a folder");
        let (mut cluster, vm) = off(pool.path()).await;
        let op = cluster.migrate(slowly()).await;
        cluster.until("it is copied", async |c| c.op(&op).await.progress.is_some_and(|p| p.done > 0)).await;
        assert_eq!(cluster.phase(vm).await, Some(MovePhase::Fetching));
        let rest = Duration::from_millis(300);
        match who {
            Who::Source => {
                cluster.end("a").await;
                tokio::time::sleep(rest).await;
                cluster.begin("a");
            }
            Who::Destination => {
                cluster.end("b").await;
                tokio::time::sleep(rest).await;
                cluster.begin("b");
            }
            Who::Leader => {
                cluster.stop_leading().await;
                tokio::time::sleep(rest).await;
                cluster.lead();
            }
        }
        told += &format!("{who:?}: {}\n", ended(&cluster, vm, &op).await);
    }
    expect![[r#"
        Source: Done; b's by generation 2
        Destination: Done; b's by generation 2
        Leader: Done; b's by generation 2
    "#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn called_off_it_is_the_sources_still() {
    let pool = tempfile::tempdir().expect("a folder");
    let (cluster, vm) = off(pool.path()).await;
    let op = cluster.migrate(slowly()).await;
    cluster.until("it is copied", async |c| c.op(&op).await.progress.is_some_and(|p| p.done > 0)).await;
    op::cancel(cluster.store.as_ref(), &ask(), &op.id.to_string()).await.expect("called off");
    expect!["Cancelled: cancelled by alice; the guest stayed where it was; a's by generation 1"].assert_eq(&ended(&cluster, vm, &op).await);
    let staged = pool.path().join("staging");
    cluster.until("nothing half-made is left", async |_| std::fs::read_dir(&staged).expect("a folder").count() == 0).await;
}

/// A pool of one folder that is said to be of each host: a copy would go over its own source, and what the loser takes away is the
/// disk of both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_with_one_folder_are_found_out_before_anything_is_touched() {
    let pool = tempfile::tempdir().expect("a folder");
    let (cluster, vm) = off(pool.path()).await;
    cluster.library.one_folder.store(true, Ordering::Relaxed);
    let disk = disks(pool.path()).pop().expect("its disk");
    let before = std::fs::read(&disk).expect("its data");
    let mut told = format!("off: {}\n", ended(&cluster, vm, &cluster.migrate(to("b")).await).await);
    let left = keys::move_order(&"b".parse().expect("a name"), vm);
    cluster.until("b has nothing left to do", async |c| c.store.get(&left).await.expect("a read").is_none()).await;
    cluster.over(&cluster.command("start").await).await;
    told += &format!("live: {}\n", cluster.ending(&cluster.migrate(to("b")).await).await);
    cluster.until("b has nothing left to do", async |c| c.store.get(&left).await.expect("a read").is_none()).await;
    assert!(std::fs::read(&disk).expect("still there") == before);
    expect![[r#"
        off: Failed: on b: pool 'default' is one folder on both hosts, and its record does not say so; a's by generation 1
        live: Failed: on b: pool 'default' is one folder on both hosts, and its record does not say so; runs on a by generation 1
    "#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_members_of_an_older_version_it_stays() {
    let pool = tempfile::tempdir().expect("a folder");
    let (cluster, vm) = off(pool.path()).await;
    let older = keys::LEVEL_FETCHES - 1;
    cluster.store.txn(Txn::default().then(typed::put(keys::LEVEL, &older))).await.expect("a write");
    expect![
        "Failed: its data is on this host, and off it takes that along from store level 7 on; this store has level 6; a's by generation 1"
    ]
    .assert_eq(&ended(&cluster, vm, &cluster.migrate(to("b")).await).await);
}
