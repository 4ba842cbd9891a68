//! Deaths as stories: what stands in the store, what a control node heard, and what it writes then. Time is the test's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use expect_test::{Expect, expect};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::turns::STARTS_PER_NODE;
use vmkeep_core::ha::vigil::WritesAre;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Compare, Held, Op, Store, Txn, keys, typed};
use vmkeep_types::ha::{Armed, Confirmed, Disarm, DisarmMode, HaSettings, Incident, Proof, TimerProfile, WatchdogKind};
use vmkeep_types::host::{EpochRecord, Heartbeat, NodeFacts};
use vmkeep_types::ids::{Epoch, Generation, PoolId, Revision, VmId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::pool::{Attachment, PoolDriver, PoolRecord, PoolSpec, VolumeRecord};
use vmkeep_types::record::{Owner, Power, PowerWish, VmRecord};
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{DiskFormat, Ha, VmSpec};

use super::power::NoPower;
use super::storage::{NoStorageFence, StorageFence};
use super::{Desk, Levers};
use crate::reconcile::view::{ClusterView, PREFIXES};

struct Bed {
    store: EmbeddedStore,
    ms: Arc<AtomicU64>,
    desk: Arc<Desk>,
    seq: u64,
    last: BTreeMap<&'static str, (Heartbeat, Revision)>,
    /// Nodes that say that they live by the profile `fast`.
    fast: BTreeSet<&'static str>,
}

fn name(node: &'static str) -> Name {
    Name::known(node)
}

fn vm(n: u128) -> VmId {
    VmId(uuid::Uuid::from_u128(n))
}

/// A node that has joined, with room for a few VMs.
pub fn facts(node: &'static str) -> NodeFacts {
    NodeFacts::of(name(node), 8, ByteCount::from_gib(8))
}

impl Bed {
    /// Nodes that have joined, in epoch 1 and armed.
    async fn of(nodes: &[&'static str]) -> Self {
        let ms = Arc::new(AtomicU64::new(1_000_000));
        let desk = desk(&ms, Arc::new(NoStorageFence));
        let bed =
            Self { store: EmbeddedStore::in_memory().expect("memory"), ms, desk, seq: 0, last: BTreeMap::new(), fast: BTreeSet::new() };
        for node in nodes {
            bed.put(typed::put(keys::facts(&name(node)), &facts(node))).await;
            bed.put(typed::put(keys::epoch(&name(node)), &EpochRecord { epoch: Epoch(1), boot_id: "b".into(), closed: false })).await;
            bed.armed(node, WatchdogKind::Hardware).await;
        }
        bed
    }

    async fn put(&self, op: Op) {
        self.store.txn(Txn::default().then(op)).await.expect("a write");
    }

    async fn armed(&self, node: &'static str, kind: WatchdogKind) {
        let armed = Armed::Watchdog { pet_ms: 19_000, watchdog_ms: 8_000, kind };
        self.put(typed::put(keys::armed(&name(node), Epoch(1)), &armed)).await;
    }

    /// A VM that runs on `node`.
    async fn owned(&self, n: u128, node: &'static str, priority: Option<u8>) {
        let (id, project) = (vm(n), name("default"));
        let spec = VmSpec { nics: Vec::new(), ha: priority.map(|priority| Ha { priority, ..Ha::default() }), ..VmSpec::named(name("web")) };
        let record = VmRecord::created(id, project.clone(), spec, jiff::Timestamp::UNIX_EPOCH);
        let owner = Owner { vm: id, project: project.clone(), node: name(node), epoch: Epoch(1), generation: Generation(1), to: None };
        let power = Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None };
        self.put(typed::put(keys::vm(&project, id), &record)).await;
        self.put(typed::put(keys::power(id), &power)).await;
        self.put(typed::put(keys::owner(id), &owner)).await;
        self.put(Op::Put(keys::own(&name(node), id), Vec::new())).await;
    }

    /// A highly available VM that runs on `node`, with a disk in a shared pool.
    async fn disk(&self, n: u128, node: &'static str, pool: &'static str) {
        self.owned(n, node, Some(1)).await;
        let (id, project, at) = (VolumeId(uuid::Uuid::from_u128(n)), name("default"), jiff::Timestamp::UNIX_EPOCH);
        let driver = PoolDriver::Dir { path: format!("/{pool}"), shared: true };
        let spec = PoolSpec { name: name(pool), description: String::new(), driver };
        let known = PoolId(uuid::Uuid::from_bytes([pool.as_bytes()[0]; 16]));
        self.put(typed::put(keys::pool(known), &PoolRecord { id: known, spec, leaving: false, mark: None, created_at: at })).await;
        let volume = VolumeRecord {
            id,
            project: project.clone(),
            name: format!("web{n}-root").parse().expect("a name"),
            pool: name(pool),
            node: None,
            size: Some(ByteCount::from_gib(1)),
            format: DiskFormat::Qcow2,
            image: None,
            foreign_path: None,
            filling: None,
            made: true,
            attached: Some(Attachment { vm: vm(n), disk: name("root") }),
            created_at: at,
        };
        self.put(typed::put(keys::volume(&project, id), &volume)).await;
        let key = keys::vm(&project, vm(n));
        let record: VmRecord = typed::decode(&self.store.get(&key).await.expect("read").expect("there")).expect("whole");
        self.put(typed::put(key, &VmRecord { volumes: [(name("root"), id)].into(), ..record })).await;
    }

    async fn beat(&mut self, node: &'static str) {
        self.seq += 1;
        let profile = if self.fast.contains(node) { TimerProfile::Fast } else { TimerProfile::Standard };
        let beat = Heartbeat { epoch: Epoch(1), seq: self.seq, profile };
        let txn =
            Txn::default().when(Compare::Absent(keys::fence(&name(node), Epoch(1)))).then(typed::put(keys::heartbeat(&name(node)), &beat));
        let outcome = self.store.txn(txn).await.expect("a write");
        if outcome.held == Held::Yes {
            self.last.insert(node, (beat, outcome.revision));
            self.desk.hear(&name(node), beat, outcome.revision);
        }
    }

    /// A second passes; the living renew, the store takes this control node's writes, and the leader looks. What it wrote.
    async fn second(&mut self, living: &[&'static str]) -> String {
        self.ms.fetch_add(1000, Ordering::Relaxed);
        for node in living {
            self.beat(node).await;
        }
        self.desk.canary(self.desk.now());
        self.look().await
    }

    async fn look(&mut self) -> String {
        let mut told = String::new();
        let todo = self.desk.look(&self.view().await, jiff::Timestamp::UNIX_EPOCH);
        for txn in todo.txns {
            self.write(txn, &mut told).await;
        }
        for (node, epoch, pools) in todo.refusals {
            let storage = self.desk.levers().storage.clone();
            for pool in pools {
                let refused = storage.refuse(&node, epoch, &pool).await.map_or(WritesAre::Unknown, |()| WritesAre::Refused);
                self.desk.writes_refused(&node, epoch, refused);
            }
        }
        let rescued = self.desk.rescue(&self.view().await, jiff::Timestamp::UNIX_EPOCH);
        for (_, txn) in rescued {
            self.write(txn, &mut told).await;
        }
        told
    }

    async fn write(&self, txn: Txn, told: &mut String) {
        let puts: Vec<_> = txn.then.iter().filter_map(|op| if let Op::Put(key, _) = op { Some(key.clone()) } else { None }).collect();
        if self.store.txn(txn).await.expect("a write").held == Held::Yes {
            for key in puts.iter().filter(|key| ["fence/", "confirmed/", "owner/", "own/"].iter().any(|of| key.starts_with(of))) {
                writeln!(told, "{key}").expect("a string takes all");
            }
        }
    }

    async fn view(&self) -> ClusterView {
        let listing = self.store.list_many(&PREFIXES).await.expect("a listing");
        ClusterView::new(listing.revision, &listing.items).0
    }

    /// What is written in so many seconds, each with the second in which it was.
    async fn check(&mut self, seconds: u32, living: &[&'static str], expect: Expect) {
        let mut told = String::new();
        for second in 1..=seconds {
            for line in self.second(living).await.lines() {
                writeln!(told, "{second} {}", line.replace("00000000-0000-0000-0000-00000000000", "")).expect("a string takes all");
            }
        }
        expect.assert_eq(&told);
    }
}

/// Refuses nodes what lies in the pool `ceph`, from the second time it is asked.
#[derive(Default)]
struct Blocklist(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl StorageFence for Blocklist {
    fn can_refuse(&self, pool: &PoolSpec) -> bool {
        pool.name == name("ceph")
    }

    async fn refuse(&self, node: &Name, epoch: Epoch, pool: &PoolSpec) -> Result<(), String> {
        let mut asked = self.0.lock().expect("no panic holds it");
        asked.push(format!("{node} {epoch} {}", pool.name));
        if asked.len() > 1 { Ok(()) } else { Err("the monitors do not answer".into()) }
    }
}

async fn with_a_disk_at_the_blocklist() -> (Bed, Arc<Blocklist>) {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    let blocklist = Arc::new(Blocklist::default());
    bed.desk = desk(&bed.ms, blocklist.clone());
    bed.disk(1, "a", "ceph").await;
    (bed, blocklist)
}

fn desk(ms: &Arc<AtomicU64>, storage: Arc<dyn StorageFence>) -> Arc<Desk> {
    let ms = ms.clone();
    let clock = move || {
        let ms = ms.load(Ordering::Relaxed);
        Now { boottime_ms: ms, raw_ms: ms }
    };
    Desk::new(&name("c"), Levers { power: Arc::new(NoPower), storage }, Arc::new(clock))
}

#[tokio::test]
async fn silent_sealed_proved_and_its_vms_elsewhere_by_priority() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.owned(2, "a", Some(1)).await;
    bed.owned(3, "a", None).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(
        60,
        &["b", "c"],
        expect![[r#"
        15 fence/a/1
        38 confirmed/a/1
        38 owner/2
        38 own/b/2
        58 owner/1
        58 own/c/1
    "#]],
    )
    .await;
    let told = typed::get_json::<Incident>(&bed.store, &keys::incident(&name("a"), Epoch(1))).await.expect("a read").expect("told").value;
    assert_eq!(told.sealed_at.duration_since(told.silent_since).as_secs(), 15, "from its last renewal, whatever its state was");
}

#[tokio::test]
async fn more_than_half_silent_are_rather_our_own_network() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(90, &["c"], expect![""]).await;
    // One of them is back: the other one is what it was taken for.
    bed.check(
        60,
        &["b", "c"],
        expect![[r#"
        1 fence/a/1
        2 confirmed/a/1
        2 owner/1
        2 own/b/1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_host_alone_does_not_renew_and_is_left_in_peace() {
    let mut bed = Bed::of(&["a"]).await;
    bed.owned(1, "a", Some(1)).await;
    assert_eq!(bed.look().await, "");
    assert!(!bed.desk.has_heard(), "its leader writes no canary");
    bed.check(60, &[], expect![""]).await;
}

#[tokio::test]
async fn a_software_watchdog_and_no_watchdog_prove_nothing_by_waiting() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.armed("a", WatchdogKind::Software).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(
        120,
        &["b", "c"],
        expect![[r#"
        15 fence/a/1
    "#]],
    )
    .await;
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.put(typed::put(keys::armed(&name("a"), Epoch(1)), &Armed::None)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(120, &["b", "c"], expect![""]).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_makes_nobody_silent() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    for _ in 0..60 {
        bed.ms.fetch_add(1000, Ordering::Relaxed);
        assert_eq!(bed.look().await, "", "the canary is not answered");
    }
    // When it answers again everybody has time for two renewals; whoever is silent still was silent all the time.
    bed.check(5, &["b", "c"], expect![""]).await;
    bed.check(
        3,
        &["b", "c"],
        expect![[r#"
        2 fence/a/1
        3 confirmed/a/1
        3 owner/1
        3 own/b/1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_renewal_that_the_watch_lost_is_read_before_its_node_is_taken_for_silent() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    for second in 1..=60 {
        bed.ms.fetch_add(1000, Ordering::Relaxed);
        bed.beat("b").await;
        bed.beat("c").await;
        // Written, and nobody hears of it.
        bed.put(typed::put(keys::heartbeat(&name("a")), &Heartbeat { epoch: Epoch(1), seq: second, profile: TimerProfile::Standard }))
            .await;
        bed.desk.canary(bed.desk.now());
        if second % 3 == 0 {
            super::ears::look_for(&bed.store, &bed.desk).await;
        }
        let todo = bed.desk.look(&bed.view().await, jiff::Timestamp::UNIX_EPOCH);
        assert!(todo.txns.is_empty(), "after {second} s: {:?}", todo.txns);
    }
}

#[tokio::test]
async fn a_new_leader_that_heard_all_the_time_need_not_wait_anew() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    // It hears and does not look: another one leads.
    for _ in 0..30 {
        bed.ms.fetch_add(1000, Ordering::Relaxed);
        bed.beat("b").await;
        bed.beat("c").await;
        bed.desk.canary(bed.desk.now());
        bed.desk.tick();
    }
    bed.check(
        12,
        &["b", "c"],
        expect![[r#"
        1 fence/a/1
        8 confirmed/a/1
        8 owner/1
        8 own/b/1
    "#]],
    )
    .await;
    // One that has heard nothing waits the whole of it.
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(
        16,
        &["b", "c"],
        expect![[r#"
        15 fence/a/1
    "#]],
    )
    .await;
    bed.desk = desk(&bed.ms, Arc::new(NoStorageFence));
    let (beat, revision) = bed.last["a"];
    bed.desk.hear(&name("a"), beat, revision);
    bed.check(
        100,
        &["b", "c"],
        expect![[r#"
        38 confirmed/a/1
        38 owner/1
        38 own/b/1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn the_storages_word_ends_the_wait_where_all_disks_are_its() {
    let (mut bed, blocklist) = with_a_disk_at_the_blocklist().await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(
        30,
        &["b", "c"],
        expect![[r#"
            15 fence/a/1
            28 confirmed/a/1
            28 owner/1
            28 own/b/1
        "#]],
    )
    .await;
    assert_eq!(*blocklist.0.lock().expect("no panic holds it"), ["a 1 ceph", "a 1 ceph"], "tried again, and no more");
    let proof = bed.store.get(&keys::confirmed(&name("a"), Epoch(1))).await.expect("read").expect("there");
    let proof: Confirmed = typed::decode(&proof).expect("whole");
    assert_eq!(proof.proof, Proof::Storage);

    // With one disk elsewhere its word proves nothing, and it is not asked.
    let (mut bed, blocklist) = with_a_disk_at_the_blocklist().await;
    bed.disk(2, "a", "nfs").await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(
        30,
        &["b", "c"],
        expect![[r#"
            15 fence/a/1
        "#]],
    )
    .await;
    assert!(blocklist.0.lock().expect("no panic holds it").is_empty());
}

#[tokio::test]
async fn disarmed_nothing_is_written() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    bed.owned(1, "a", Some(3)).await;
    let disarm = Disarm { mode: DisarmMode::Freeze, by: "root".into(), at: jiff::Timestamp::UNIX_EPOCH, why: String::new() };
    bed.put(typed::put(keys::HA_DISARM, &disarm)).await;
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    bed.check(60, &["b", "c"], expect![""]).await;
}

#[tokio::test]
async fn a_node_is_asked_to_start_four_at_once() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    for n in 1..=10 {
        bed.owned(n, "a", Some(2)).await;
    }
    bed.check(20, &["a", "b", "c"], expect![""]).await;
    let mut given = 0;
    for _ in 0..60 {
        given += bed.second(&["b", "c"]).await.lines().filter(|line| line.starts_with("owner/")).count();
    }
    assert_eq!(given, 2 * STARTS_PER_NODE, "nobody says that one of them runs");
}

/// The cluster's profile.
async fn set_profile(bed: &Bed, profile: TimerProfile) {
    bed.put(typed::put(keys::HA_SETTINGS, &HaSettings { profile, ..HaSettings::default() })).await;
}

/// Its watchdog was opened with the timers of `fast`, and it says so.
async fn lives_fast(bed: &mut Bed, node: &'static str) {
    let armed = Armed::Watchdog { pet_ms: 6_000, watchdog_ms: 4_000, kind: WatchdogKind::Hardware };
    bed.put(typed::put(keys::armed(&name(node), Epoch(1)), &armed)).await;
    bed.fast.insert(node);
}

#[tokio::test]
async fn under_fast_a_node_that_says_standard_is_given_its_time() {
    let mut bed = Bed::of(&["a", "b", "c", "d", "e"]).await;
    set_profile(&bed, TimerProfile::Fast).await;
    for node in ["a", "c", "d", "e"] {
        lives_fast(&mut bed, node).await;
    }
    bed.check(20, &["a", "b", "c", "d", "e"], expect![[""]]).await;
    bed.check(
        40,
        &["c", "d", "e"],
        expect![[r#"
        4 fence/a/1
        15 fence/b/1
        17 confirmed/a/1
        38 confirmed/b/1
    "#]],
    )
    .await;
}

#[tokio::test]
async fn under_standard_a_node_that_still_lives_fast_is_not_sealed_sooner() {
    let mut bed = Bed::of(&["a", "b", "c"]).await;
    lives_fast(&mut bed, "a").await;
    bed.check(20, &["a", "b", "c"], expect![[""]]).await;
    bed.check(
        30,
        &["b", "c"],
        expect![[r#"
        15 fence/a/1
        17 confirmed/a/1
    "#]],
    )
    .await;
}
