//! Migrations between two agents: broken at every point, their programs killed in every phase, and tried again.

mod cluster;
mod cold;
mod cpu;
mod dead;
mod drain;
mod images;
mod policy;
mod real;
mod records;
mod shutdown;
mod ticks;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use expect_test::expect;
use serde_json::json;
use vmkeep_agent::hypervisor::HvError;
use vmkeep_agent::hypervisor::fake::Fault;
use vmkeep_server::app::op;
use vmkeep_store::{Store, Txn, keys, typed};
use vmkeep_types::ids::{OperationId, VmId};
use vmkeep_types::migration::{MigrateOptions, MoveManner, MoveOrder, MovePart, MovePhase, Travel};
use vmkeep_types::name::Name;
use vmkeep_types::operation::Operation;
use vmkeep_types::order::Order;
use vmkeep_types::units::Seconds;

use cluster::{Cluster, ask, uri};

fn to(node: &'static str) -> MigrateOptions {
    MigrateOptions { to: Some(Name::known(node)), ..MigrateOptions::default() }
}

async fn shared() -> (Cluster, tempfile::TempDir) {
    let pool = tempfile::tempdir().expect("a folder");
    (Cluster::of_fakes(pool.path(), true).await, pool)
}

/// Where the disk of a guest lies that moves while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// In a pool of both hosts.
    Shared,
    /// In a pool of each host: its data goes along.
    Own,
}

impl Disk {
    /// A VM that runs on `a`.
    async fn vm(self) -> (Cluster, VmId, tempfile::TempDir) {
        let pool = tempfile::tempdir().expect("a folder");
        let cluster = Cluster::of_fakes(pool.path(), self == Self::Shared).await;
        let vm = cluster.vm(json!({"disks": [{"name": "root", "empty": true, "size": "4M"}]})).await;
        (cluster, vm, pool)
    }

    /// How a migration ended, and that each host took away what was its to take away, and nothing else: the one folder of both is
    /// without the file of whom has it no more.
    async fn ending(self, cluster: &Cluster, op: &Operation, pool: &Path) -> String {
        let told = cluster.ending(op).await;
        assert_eq!(cold::disks(pool).len(), usize::from(self == Self::Shared), "{self:?}: {told}");
        told
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_and_forth() {
    let (cluster, _pool) = shared().await;
    let vm = cluster.vm(json!({})).await;
    let rounds = if std::env::var("VMKEEP_TEST_ALL").is_ok_and(|v| v == "1") { 50 } else { 3 };
    for _ in 0..rounds {
        for node in ["b", "a"] {
            let told = cluster.ending(&cluster.migrate(to(node)).await).await;
            assert!(told.starts_with(&format!("Done; runs on {node}")), "{told}");
        }
    }
    assert_eq!(cluster.owner(vm).await.generation.0, 2 * rounds + 1);
    let op = cluster.over(&cluster.migrate(MigrateOptions::default()).await).await;
    assert_eq!(op.error, None);
    let steps = op.steps.join("\n");
    expect![[r#"
        a -> b, live
        b is ready
        has left a
        is on b"#]]
    .assert_eq(&steps);
    let seeds = cluster.store.list(&format!("n/a/seen/{vm}")).await.expect("a listing").items;
    assert!(seeds.is_empty(), "the source says nothing of it any more");
}

/// The way back is asked for before the source has taken away what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_back_at_once_waits_until_what_was_left_there_is_gone() {
    let (mut cluster, _pool) = shared().await;
    let (vm, a) = (cluster.vm(json!({})).await, Name::known("a"));
    let told = cluster.ending(&cluster.migrate(to("b")).await).await;
    assert!(told.starts_with("Done; runs on b"), "{told}");
    let left = keys::move_order(&a, vm);
    cluster.until("it is gone", async |c| c.store.get(&left).await.expect("a read").is_none()).await;
    cluster.end("a").await;
    let order = typed::get_json::<Order>(cluster.store.as_ref(), &keys::order(&Name::known("b"), vm)).await.expect("a read");
    let part = MovePart::Forget { volumes: BTreeMap::new() };
    let order =
        MoveOrder { op: OperationId(uuid::Uuid::from_u128(9)), vm, part, order: order.expect("its order").value, travel: Travel::Running };
    cluster.store.txn(Txn::default().then(typed::put(left, &order))).await.expect("a write");
    let op = cluster.migrate(to("a")).await;
    let waits = "a still takes away what an earlier migration left there";
    cluster.until("it waits", async |c| c.op(&op).await.blocked.as_deref() == Some(waits)).await;
    cluster.begin("a");
    let told = cluster.ending(&op).await;
    assert!(told.starts_with("Done; runs on a"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_at_every_point_and_repeated() {
    broken_at_every_point(Disk::Shared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_at_every_point_and_repeated_with_a_disk_that_is_copied() {
    broken_at_every_point(Disk::Own).await;
}

async fn broken_at_every_point(disk: Disk) {
    let (cluster, _, pool) = disk.vm().await;
    let broke = || Fault::Fail(HvError::Refused("it broke".to_owned()));
    let points = [
        ("source", "migrate", broke()),
        ("source", "migrate", Fault::LoseAnswer),
        ("destination", "migrate_prepare", broke()),
        ("source", "migrate_copy", broke()),
        ("destination", "migrate_finish", broke()),
        ("destination", "migrate_finish", Fault::LoseAnswer),
        ("source", "migrate_confirm", broke()),
        ("destination", "resume", broke()),
        ("destination", "resume", Fault::LoseAnswer),
        ("source", "find", Fault::Fail(HvError::Disconnected("libvirt is gone".to_owned()))),
        ("destination", "list", broke()),
    ];
    let mut told = String::new();
    for (side, call, fault) in points {
        let word = if fault == Fault::LoseAnswer { "loses its answer" } else { "fails" };
        let here = if cluster.hv("a").list().await.expect("a list").is_empty() { ("b", "a") } else { ("a", "b") };
        let (source, destination) = here;
        cluster.fake(if side == "source" { source } else { destination }).fault_next(call, fault);
        let first = disk.ending(&cluster, &cluster.migrate(to(destination)).await, pool.path()).await;
        let name = |text: String| {
            text.replace(&format!("on {source}"), "on the source").replace(&format!("on {destination}"), "on the destination")
        };
        told += &format!("{call} at the {side} {word}: {}\n", name(first).split(" by generation").next().unwrap_or_default());
        if !cluster.hv(source).list().await.expect("a list").is_empty() {
            let again = disk.ending(&cluster, &cluster.migrate(to(destination)).await, pool.path()).await;
            assert!(again.starts_with("Done"), "again: {again}");
        }
    }
    expect![[r#"
        migrate at the source fails: Failed: libvirt: it broke; runs on the source
        migrate at the source loses its answer: Done; runs on the destination
        migrate_prepare at the destination fails: Failed: libvirt: it broke; runs on the source
        migrate_copy at the source fails: Failed: libvirt: it broke; runs on the source
        migrate_finish at the destination fails: Failed: libvirt: it broke; runs on the source
        migrate_finish at the destination loses its answer: Failed: libvirt: the answer to the end of the migration was lost; runs on the source
        migrate_confirm at the source fails: Failed: libvirt: it broke; runs on the source
        resume at the destination fails: Done; runs on the destination
        resume at the destination loses its answer: Done; runs on the destination
        find at the source fails: Done; runs on the destination
        list at the destination fails: Failed: on the destination: libvirt: it broke; runs on the source
    "#]].assert_eq(&told);
}

/// The other host's libvirt is restarted under it. What had gone is not sent twice: a person decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_up_on_before_anything_went_it_is_sent_again_and_not_for_ever() {
    let (cluster, _pool) = shared().await;
    cluster.vm(json!({})).await;
    let broke = || Fault::Fail(HvError::Disconnected("client socket is closed".to_owned()));
    let mut told = String::new();
    // Whoever copies is seen to.
    let watched = Duration::from_secs(4);
    for (at, call, times, copies) in
        [("b", "migrate_prepare", 3, Duration::ZERO), ("a", "migrate_copy", 1, watched), ("b", "migrate_prepare", 2, Duration::ZERO)]
    {
        cluster.fake("a").set_delay_of("migrate_copy", copies);
        (0..times).for_each(|_| cluster.fake(at).fault_next(call, broke()));
        told += &format!("{call}, {times}: {}\n", cluster.ending(&cluster.migrate(to("b")).await).await);
    }
    expect![[r#"
        migrate_prepare, 3: Failed: libvirt of one of the two hosts hung up: client socket is closed; runs on a by generation 1
        migrate_copy, 1: Failed: libvirt of one of the two hosts hung up: client socket is closed; runs on a by generation 1
        migrate_prepare, 2: Done; runs on b by generation 2
    "#]]
    .assert_eq(&told);
}

/// Which program is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Source,
    Destination,
    Leader,
}

async fn killed_in(phase: MovePhase, who: Who, disk: Disk) -> String {
    let (mut cluster, vm, pool) = disk.vm().await;
    // Each phase lasts long enough to be met.
    let slow = Duration::from_millis(400);
    cluster.fake("b").set_delay_of("list", if phase == MovePhase::Preparing { slow } else { Duration::ZERO });
    cluster.fake("a").set_delay_of("migrate_copy", slow);
    cluster.fake("b").set_delay_of("resume", slow);
    let op = cluster.migrate(to("b")).await;
    cluster.until("the phase is met", async |c| c.phase(vm).await == Some(phase) || c.op(&op).await.state.is_over()).await;
    assert_eq!(cluster.phase(vm).await, Some(phase), "it was over too early");
    match who {
        Who::Source => {
            cluster.end("a").await;
            tokio::time::sleep(slow).await;
            cluster.begin("a");
        }
        Who::Destination => {
            cluster.end("b").await;
            tokio::time::sleep(slow).await;
            cluster.begin("b");
        }
        Who::Leader => {
            cluster.stop_leading().await;
            tokio::time::sleep(slow).await;
            cluster.lead();
        }
    }
    format!("{phase:?}, {who:?}: {}\n", disk.ending(&cluster, &op, pool.path()).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_killed_in_every_phase() {
    killed_in_every_phase(Disk::Shared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_killed_in_every_phase_while_a_disk_is_copied() {
    killed_in_every_phase(Disk::Own).await;
}

async fn killed_in_every_phase(disk: Disk) {
    let mut told = String::new();
    for phase in [MovePhase::Preparing, MovePhase::Copying, MovePhase::Arriving] {
        for who in [Who::Source, Who::Destination, Who::Leader] {
            told += &killed_in(phase, who, disk).await;
        }
    }
    expect![[r#"
        Preparing, Source: Done; runs on b by generation 2
        Preparing, Destination: Done; runs on b by generation 2
        Preparing, Leader: Done; runs on b by generation 2
        Copying, Source: Done; runs on b by generation 2
        Copying, Destination: Done; runs on b by generation 2
        Copying, Leader: Done; runs on b by generation 2
        Arriving, Source: Done; runs on b by generation 2
        Arriving, Destination: Done; runs on b by generation 2
        Arriving, Leader: Done; runs on b by generation 2
    "#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn called_off_by_people_time_and_a_cut_line() {
    let (cluster, _pool) = shared().await;
    let vm = cluster.vm(json!({})).await;
    cluster.fake("a").set_delay_of("migrate_copy", Duration::from_secs(30));
    let copying = async || {
        let op = cluster.migrate(MigrateOptions { timeout: Some(Seconds::new(3600)), ..to("b") }).await;
        cluster.until("it copies", async |c| c.op(&op).await.progress.is_some_and(|p| p.done > 0)).await;
        let copying = cluster.op(&op).await.copying.expect("told with the bytes");
        assert_eq!((copying.dirty_rate, copying.expected_downtime_ms), (1 << 20, 30), "what the hypervisor measured");
        op
    };
    let mut told = String::new();
    let going = copying().await;
    let second = vmkeep_server::app::vm_migrate::migrate(cluster.store.as_ref(), &ask(), &Name::known("web"), to("b")).await;
    told += &format!("again: {}\n", second.expect_err("one at a time").message.replace(&going.id.to_string(), "ID"));
    op::cancel(cluster.store.as_ref(), &ask(), &going.id.to_string()).await.expect("called off");
    told += &format!("cancelled: {}\n", cluster.ending(&going).await);
    let going = copying().await;
    cluster.wire.cut(&uri("b"));
    told += &format!("cut: {}\n", cluster.ending(&going).await);
    cluster.wire.join(&uri("b"), cluster.fake("b"));
    let late = cluster.migrate(MigrateOptions { timeout: Some(Seconds::new(1)), ..to("b") }).await;
    told += &format!("late: {}\n", cluster.ending(&late).await);
    let going = copying().await;
    let killed = cluster.command("kill").await;
    told += &format!(
        "killed: {:?}: {}\n",
        cluster.over(&going).await.state,
        cluster.over(&going).await.error.map(|e| e.message).unwrap_or_default()
    );
    told += &format!("kill: {:?}\n", cluster.over(&killed).await.state);
    assert!(cluster.runs_on(vm).await.is_empty());
    expect![[r#"
        again: 'web' is migrating already: operation ID
        cancelled: Cancelled: cancelled by alice; the guest stayed where it was; runs on a by generation 1
        cut: Failed: libvirt: operation failed: migration out job: unexpectedly failed; runs on a by generation 1
        late: Failed: it was not through in time and was called off; the guest stayed where it was; runs on a by generation 1
        killed: Failed: called off: it was told to stop or to restart
        kill: Done
    "#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_moves_off_and_running_vms_with_their_memory() {
    let (cluster, _pool) = shared().await;
    let vm = cluster.vm(json!({})).await;
    let cold = |node| MigrateOptions { manner: MoveManner::Cold, ..to(node) };
    let mut told = format!("running, cold: {}\n", cluster.ending(&cluster.migrate(cold("b")).await).await);
    cluster.over(&cluster.command("stop").await).await;
    let op = cluster.over(&cluster.migrate(to("a")).await).await;
    let off = cluster.runs_on(vm).await.is_empty();
    told += &format!("off: {:?}, owned by {}, still off: {off}\n", op.state, cluster.owner(vm).await.node);
    cluster.over(&cluster.command("start").await).await;
    told += &format!("started on {:?}\n", cluster.runs_on(vm).await);
    expect![[r#"
        running, cold: Done; runs on b by generation 2
        off: Done, owned by a, still off: true
        started on ["a"]
    "#]]
    .assert_eq(&told);
}

/// Data of a pool of one host goes along, and none of it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_a_pool_that_is_not_shared_is_made_there_and_removed_here() {
    let pool = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::of_fakes(pool.path(), false).await;
    cluster.vm(json!({"disks": [{"name": "root", "empty": true, "size": "4M"}]})).await;
    let op = cluster.migrate(to("b")).await;
    let mut told = format!("live: {}\n", cluster.ending(&op).await);
    told += &cluster.over(&op).await.steps.join("\n");
    // At once: its node may not have looked at the disk yet.
    told += &format!("\nback: {}", cluster.ending(&cluster.migrate(to("a")).await).await);
    expect![[r#"
        live: Done; runs on b by generation 2
        a -> b, live, 1 disks copied along
        b is ready
        has left a
        is on b
        back: Done; runs on a by generation 3"#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_move_says_why_before_anything_happens() {
    let (cluster, _pool) = shared().await;
    let vm = cluster.vm(json!({})).await;
    let mut told = String::new();
    for node in ["a", "nowhere"] {
        let op = cluster
            .over(&cluster.migrate(MigrateOptions { to: Some(node.parse().expect("a name")), ..MigrateOptions::default() }).await)
            .await;
        told += &format!("{node}: {}\n", op.error.map(|e| e.message).unwrap_or_default());
    }
    cluster.fake("b").disconnect();
    cluster
        .until("it is known", async |c| {
            let kv = c.store.get(&keys::facts(&Name::known("b"))).await.expect("a read").expect("facts");
            String::from_utf8_lossy(&kv.value).contains("\"hypervisor_up\":false")
        })
        .await;
    let op = cluster.over(&cluster.migrate(MigrateOptions::default()).await).await;
    told += &format!("b without libvirt: {}\n", op.error.map(|e| e.message).unwrap_or_default());
    assert_eq!(cluster.runs_on(vm).await, ["a"]);
    expect![[r#"
        a: it is on a already
        nowhere: there is no node 'nowhere'
        b without libvirt: it has nowhere to go (b: libvirt does not answer)
    "#]]
    .assert_eq(&told);
}
