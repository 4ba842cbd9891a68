//! A node is emptied while its agent and the leader are killed; what cannot go says why, and the others go on.

use std::collections::BTreeSet;
use std::time::Duration;

use expect_test::expect;
use serde_json::{Value, json};
use vmkeep_api::place::DrainRequest;
use vmkeep_server::app::{drain, op};
use vmkeep_store::{Change, Store, Watch, keys, typed};
use vmkeep_types::ids::VmId;
use vmkeep_types::migration::MoveManner;
use vmkeep_types::name::Name;
use vmkeep_types::node::NodeRecord;
use vmkeep_types::operation::Operation;

use super::cluster::{Cluster, ask};
use super::cpu::{SKYLAKE, knows_kvm};

async fn begin(cluster: &Cluster, node: &'static str, at_once: u32) -> Operation {
    begin_as(cluster, node, DrainRequest { at_once: Some(at_once), ..DrainRequest::default() }).await
}

async fn begin_as(cluster: &Cluster, node: &'static str, wish: DrainRequest) -> Operation {
    drain::drain(cluster.store.as_ref(), &ask(), &Name::known(node), wish).await.expect("taken")
}

/// VMs that all come to `a`; each is a name and fields over those of a small one.
async fn on_a(cluster: &Cluster, vms: &[(&str, Value)]) -> Vec<VmId> {
    cluster.node("b", "cordon").await;
    let mut ids = Vec::new();
    for (name, fields) in vms {
        let mut wish = json!({"name": name});
        wish.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
        ids.push(cluster.vm(wish).await);
    }
    cluster.node("b", "uncordon").await;
    ids
}

/// The end in words, once nothing of it is under way any more.
async fn ending(cluster: &Cluster, op: &Operation, vms: &[VmId]) -> String {
    let op = cluster.over(op).await;
    cluster
        .until("nothing is left of it", async |c| {
            let all = c.store.list("").await.expect("a listing").items;
            all.iter().all(|kv| !["drain/", "migrate/"].iter().any(|p| kv.key.starts_with(p)) && !kv.key.contains("/move"))
        })
        .await;
    assert!(!cluster.two_ran(), "two guests ran at once");
    let mut owners = String::new();
    for vm in vms {
        owners += cluster.owner(*vm).await.node.as_str();
    }
    let progress = op.progress.map(|p| format!("{} of {}", p.done, p.total)).unwrap_or_default();
    let mut steps = op.steps.clone();
    steps.sort();
    let error = op.error.map(|error| error.message).unwrap_or_default();
    format!("{:?} {progress}, on {owners}\n{}\n{error}\n", op.state, steps.join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_while_leader_and_agent_are_killed() {
    let pool = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::of_fakes(pool.path(), false).await;
    let disk = json!({"disks": [{"name": "root", "empty": true, "size": "1M"}]});
    let vms = on_a(&cluster, &[("one", json!({})), ("two", json!({})), ("cold", disk), ("idle", json!({})), ("three", json!({}))]).await;
    for name in ["cold", "idle"] {
        cluster.over(&cluster.command_to(name, "kill").await).await;
    }
    cluster.fake("a").set_delay_of("migrate_copy", Duration::from_secs(2));
    let op = begin(&cluster, "a", 2).await;
    cluster.until("the first has gone", async |c| c.op(&op).await.progress.is_some_and(|p| p.done > 0)).await;
    cluster.stop_leading().await;
    cluster.end("a").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.lead();
    cluster.begin("a");
    expect![[r#"
        Done 5 of 5, on bbbbb
        cold is on b
        idle is on b
        one is on b
        three is on b
        two is on b

    "#]]
    .assert_eq(&ending(&cluster, &op, &vms).await);
    let record = typed::get_json::<NodeRecord>(cluster.store.as_ref(), &keys::node(&Name::known("a"))).await.expect("a read");
    assert!(record.expect("it is there").value.cordon.is_some(), "it stays closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn called_off_those_under_way_arrive_and_the_rest_stay() {
    let pool = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::of_fakes(pool.path(), true).await;
    let vms = on_a(&cluster, &[("one", json!({})), ("two", json!({})), ("three", json!({}))]).await;
    cluster.fake("a").set_delay_of("migrate_copy", Duration::from_secs(2));
    let drain = begin(&cluster, "a", 1).await;
    let under_way = async |c: &Cluster| !c.store.list(keys::ALL_MIGRATIONS).await.expect("a listing").items.is_empty();
    cluster.until("one is under way", under_way).await;
    op::cancel(cluster.store.as_ref(), &ask(), &drain.id.to_string()).await.expect("called off");
    expect![[r#"
        Cancelled 1 of 3, on baa
        one is on b
        cancelled by alice; 2 of 3 VMs are still on a: three: not told yet; two: not told yet
    "#]]
    .assert_eq(&ending(&cluster, &drain, &vms).await);
    let drain = begin(&cluster, "a", 1).await;
    cluster.until("one is under way", under_way).await;
    cluster.node("a", "uncordon").await;
    expect![[r#"
        Cancelled 1 of 2, on bab
        three is on b
        uncordoned by alice; 1 of 2 VMs are still on a: two: not told yet
    "#]]
    .assert_eq(&ending(&cluster, &drain, &vms).await);
}

/// Rules are kept: what belongs together goes together, or stays where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_together_goes_together() {
    let pool = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::of_fakes(pool.path(), true).await;
    let with = |vm: &str| json!({"memory": "3G", "placement": {"affinity": [{"vm": vm, "strict": true}]}});
    let vms = on_a(&cluster, &[("app", with("db")), ("db", json!({"memory": "3G"}))]).await;
    cluster.node("a", "cordon").await;
    let large = json!({"name": "large", "memory": "3G", "firmware": "bios", "disks": [], "nics": [], "cloud_init": null});
    let large = cluster.create(large).await;
    cluster.over(&large).await;
    expect![[r#"
        Failed 0 of 2, on aa
        app stays: it has nowhere to go (b: VM 'db' must go along, and: needs 3G of memory, 2G of 8G are free)
        db stays: it has nowhere to go (b: VM 'app' must go along, and: needs 3G of memory, 2G of 8G are free)
        2 of 2 VMs are still on a: app: it has nowhere to go (b: VM 'db' must go along, and: needs 3G of memory, 2G of 8G are free); db: it has nowhere to go (b: VM 'app' must go along, and: needs 3G of memory, 2G of 8G are free)
    "#]]
    .assert_eq(&ending(&cluster, &begin(&cluster, "a", 3).await, &vms).await);
    cluster.over(&cluster.command_to("large", "kill").await).await;
    expect![[r#"
        Done 2 of 2, on bb
        app is on b
        db is on b

    "#]]
    .assert_eq(&ending(&cluster, &begin(&cluster, "a", 3).await, &vms).await);
}

/// The most records of migrations that there were at once; read from every change of them, until so many have gone.
async fn most_at_once(watch: &mut Watch, gone: usize) -> usize {
    let (mut under_way, mut over, mut most) = (BTreeSet::new(), 0, 0);
    while over < gone {
        let batch = watch.recv().await.expect("it goes on").expect("nothing is missing");
        for change in batch.changes {
            match change {
                Change::Put(kv) => drop(under_way.insert(kv.key)),
                Change::Deleted { key, .. } => over += usize::from(under_way.remove(&key)),
            }
        }
        most = most.max(under_way.len());
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_as_were_asked_for_are_under_way_at_once_and_never_more() {
    let pool = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::of_fakes(pool.path(), true).await;
    let vms = on_a(&cluster, &["one", "two", "three", "four", "five"].map(|name| (name, json!({})))).await;
    let mut told = String::new();
    for (from, to, at_once) in [("a", "b", 1), ("b", "a", 2), ("a", "b", 3)] {
        let next = cluster.store.revision().await.expect("a revision").next();
        let mut watch = cluster.store.watch(keys::ALL_MIGRATIONS, next).await.expect("a watch");
        // Nobody makes ready there: those that were told wait for it, and the others for them.
        cluster.end(to).await;
        let op = begin(&cluster, from, at_once).await;
        let under_way = async |c: &Cluster| c.store.list(keys::ALL_MIGRATIONS).await.expect("a listing").items.len();
        cluster.until("as many are under way", async |c| under_way(c).await >= at_once as usize).await;
        cluster.begin(to);
        let ended = ending(&cluster, &op, &vms).await;
        cluster.node(from, "uncordon").await;
        told +=
            &format!("{at_once}: {}, {} at once\n", ended.lines().next().unwrap_or_default(), most_at_once(&mut watch, vms.len()).await);
    }
    expect![[r#"
        1: Done 5 of 5, on bbbbb, 1 at once
        2: Done 5 of 5, on aaaaa, 2 at once
        3: Done 5 of 5, on bbbbb, 3 at once
    "#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_move_live_is_restarted_elsewhere_if_that_is_wanted() {
    let pool = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::of_cpus(pool.path(), SKYLAKE, SKYLAKE).await;
    let vms = on_a(&cluster, &[("bound", json!({"cpu": {"model": "host"}})), ("free", json!({}))]).await;
    cluster.until("its KVM is known", async |c| knows_kvm(c, vms[0]).await).await;
    let mut told = ending(&cluster, &begin(&cluster, "a", 2).await, &vms).await;
    assert_eq!(cluster.runs_on(vms[0]).await, ["a"]);
    let wish = DrainRequest { manner: MoveManner::LiveOrCold, ..DrainRequest::default() };
    told += &ending(&cluster, &begin_as(&cluster, "a", wish).await, &vms).await;
    cluster.until("it runs there", async |c| c.runs_on(vms[0]).await == ["b"]).await;
    expect![[r#"
        Failed 1 of 2, on ab
        bound stays: it cannot move: cpu.model host: the guest sees this host's own CPU; with auto or a named model it can move
        free is on b
        1 of 2 VMs are still on a: bound: it cannot move: cpu.model host: the guest sees this host's own CPU; with auto or a named model it can move
        Done 1 of 1, on bb
        bound is on b

    "#]]
    .assert_eq(&told);
}
