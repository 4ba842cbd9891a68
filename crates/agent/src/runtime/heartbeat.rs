//! The agent's sign of life: one transaction every 3 s (1 s under the profile `fast`), on a thread and a connection of its own, so that neither a busy agent nor
//! a long listing delays it.
//!
//! *If* the last heartbeat is ours, the epoch is this life's, and nobody sealed it, *then* the next heartbeat is written, and only that
//! answer renews this life, counted from before the question. Sealed: nothing is claimed any more, and the watchdog's guard is told.
//! Refused otherwise, twice: another agent runs under this node's name; it says so and goes on trying. The store gone: it beats again when
//! the store is back; an armed host that cannot is reset meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::timers::Timers;
use vmkeep_store::{Compare, Held, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::ha::{HaSettings, TimerProfile};
use vmkeep_types::host::Heartbeat;
use vmkeep_types::ids::{Epoch, Revision};

use super::arming::{Arming, Wanted};
use super::clock;
use super::guard::Holds;
use super::node::Node;
use super::standing::{Life, Watchdog};

/// A renewal that was not answered in this time, or in that between two renewals, is tried again; its outcome is unknown.
const ANSWER_MS: u64 = 2_500;

/// After one that the store did not take the next one comes as soon as this: with the time of another period the outages that a node
/// rides out would be shorter by it.
const AGAIN: Duration = Duration::from_millis(250);

/// What the next heartbeat is compared with.
#[derive(Clone, Debug)]
struct Last {
    /// None: there is none yet.
    at: Option<Revision>,
    /// That the epoch is this life's.
    life: Compare,
    seq: u64,
    /// What it said that the node lives by.
    profile: TimerProfile,
}

/// A heartbeat that was written.
#[derive(Clone, Debug)]
struct Beat {
    last: Last,
    sent: Now,
    wanted: Wanted,
    /// The cluster's.
    profile: TimerProfile,
}

/// Beats until `stop`; once more then, because whoever is restarted has the whole of its time for that.
pub async fn run(store: Arc<dyn Store>, node: Arc<Node>, stop: CancellationToken) {
    let mut last: Option<Last> = None;
    let mut arming = Arming::default();
    let mut due = Instant::now();
    // Heartbeats that the store did not take, one after the other.
    let mut missed: u32 = 0;
    loop {
        let stopped = tokio::select! {
            () = stop.cancelled() => true,
            () = node.standing.stirred.notified() => false,
            () = sleep_until(due) => false,
        };
        let turned = match node.standing.life() {
            // One that has not joined yet has no life to renew.
            Life::Open if node.epoch() > Epoch(0) => Some(turn(store.as_ref(), &node, last.take(), &mut arming).await),
            Life::Open | Life::Sealed | Life::Closed | Life::Resumed => None,
        };
        // Others expect the next one by what the last one said.
        let mut pause = every(node.standing.now().profile);
        missed = match &turned {
            Some(Err(Missed::Store(error))) => {
                if missed.is_power_of_two() || missed == 0 {
                    tracing::warn!(%error, times = missed + 1, "the store takes no heartbeat");
                }
                pause = AGAIN;
                missed.saturating_add(1)
            }
            Some(Ok(_) | Err(Missed::Sealed | Missed::Refused)) | None => 0,
        };
        last = turned.and_then(Result::ok);
        due = Instant::now() + last.as_ref().map_or(pause, |last| pause.min(every(last.profile)));
        if stopped {
            return;
        }
    }
}

/// Between two renewals.
fn every(profile: TimerProfile) -> Duration {
    Duration::from_millis(Timers::of(profile).renew_ms)
}

/// With one heartbeat.
fn patience(timers: &Timers) -> Duration {
    Duration::from_millis(timers.renew_ms.min(ANSWER_MS))
}

/// What the next heartbeat is compared with changes although nobody else lives: a heartbeat that was given up is written late, and the
/// agent, when the store failed it, joins in the same life again. Once refused it is compared with what is there now.
async fn beat_in_time(store: &dyn Store, node: &Node, last: Option<Last>) -> Result<Beat, Missed> {
    let late = |_| Err(Missed::Store(StoreError::Unknown("no answer in time".into())));
    let answer = patience(&node.standing.timers());
    let told = timeout(answer, beat(store, node, last)).await.unwrap_or_else(late);
    if matches!(told, Err(Missed::Refused)) {
        return timeout(answer, beat(store, node, None)).await.unwrap_or_else(late);
    }
    told
}

/// One renewal, and what follows from it.
async fn turn(store: &dyn Store, node: &Node, last: Option<Last>, arming: &mut Arming) -> Result<Last, Missed> {
    match beat_in_time(store, node, last).await {
        Ok(beat) => {
            node.standing.renewed(beat.sent);
            node.standing.set_profile(beat.profile);
            tell_guard(node, beat.sent).await;
            let armed = timeout(Duration::from_millis(ANSWER_MS), arming.step(store, node, &beat.last.life, beat.sent, beat.wanted)).await;
            let late = |_| Err(StoreError::Unknown("no answer in time".into()));
            if let Err(error) = armed.unwrap_or_else(late) {
                tracing::warn!(%error, "the store does not take how this host would die; it is told again");
            }
            Ok(beat.last)
        }
        Err(Missed::Sealed) => {
            tracing::error!(node = %node.name, epoch = %node.epoch(), "this life of the node was ended by the cluster: it runs nothing any more");
            node.config.guard.sealed().await;
            node.standing.set_life(Life::Sealed);
            Err(Missed::Sealed)
        }
        Err(Missed::Refused) => {
            tracing::error!(node = %node.name, "its heartbeat is refused: another agent runs under this name, or the node was given up");
            Err(Missed::Refused)
        }
        Err(Missed::Store(error)) => Err(Missed::Store(error)),
    }
}

/// A guard that is armed and that nobody tells of renewals resets a host that lives: what it holds is believed before what was asked of it.
async fn tell_guard(node: &Node, sent: Now) {
    let holds = node.config.guard.renewed(sent).await;
    match (holds, node.standing.now().watchdog) {
        (Ok(Holds::Open), Watchdog::Idle | Watchdog::Unusable(_)) => node.standing.set_watchdog(Watchdog::Open),
        (Err(why), Watchdog::Open | Watchdog::Armed(_)) => {
            tracing::error!(why, "the watchdog's guard does not hear that this node lives: when it is armed, it resets this host");
        }
        (Ok(_), _) | (Err(_), Watchdog::Idle | Watchdog::Unusable(_)) => {}
    }
}

#[derive(Debug)]
enum Missed {
    /// This epoch renews no more.
    Sealed,
    Refused,
    Store(StoreError),
}

impl From<StoreError> for Missed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn beat(store: &dyn Store, node: &Node, last: Option<Last>) -> Result<Beat, Missed> {
    let key = keys::heartbeat(&node.name);
    let last = match last {
        Some(last) => last,
        None => {
            let found = store.get(&key).await?;
            let seq = found.as_ref().and_then(|kv| typed::decode::<Heartbeat>(kv).ok()).map_or(0, |beat| beat.seq);
            let life = node.this_life_in(store).await?.ok_or(Missed::Refused)?;
            Last { at: found.map(|kv| kv.modified), life, seq, profile: TimerProfile::default() }
        }
    };
    let unchanged = last.at.map_or_else(|| Compare::Absent(key.clone()), |at| Compare::ModifiedAt(key.clone(), at));
    let profile = node.standing.now().profile;
    let next = Heartbeat { epoch: node.epoch(), seq: last.seq + 1, profile };
    let fence = keys::fence(&node.name, next.epoch);
    let txn = Txn::default()
        .when(unchanged)
        .when(last.life.clone())
        .when(Compare::Absent(fence.clone()))
        .then(typed::put(key, &next))
        .then(Op::Get(keys::HA_DISARM.into()))
        .then(Op::Get(keys::arm_wanted(&node.name)))
        .then(Op::Get(keys::HA_SETTINGS.into()))
        .otherwise(Op::Get(fence));
    let sent = clock::now();
    let outcome = store.txn(txn).await?;
    let mut found = outcome.gets.into_iter();
    match (outcome.held, found.next().flatten()) {
        (Held::Yes, disarm) => {
            let wanted = match (disarm, found.next().flatten()) {
                (Some(_), _) => Wanted::Disarmed,
                (None, Some(_)) => Wanted::Asked,
                (None, None) => Wanted::ForOrders,
            };
            let wanted_profile = typed::setting::<HaSettings>(found.next().flatten()).map_or(profile, |settings| settings.profile);
            let last = Last { at: Some(outcome.revision), seq: next.seq, profile, ..last };
            Ok(Beat { last, sent, wanted, profile: wanted_profile })
        }
        (Held::No, Some(_)) => Err(Missed::Sealed),
        (Held::No, None) => Err(Missed::Refused),
    }
}

#[cfg(test)]
mod tests {
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_types::ha::{Armed, Farewell, WatchdogKind};
    use vmkeep_types::name::Name;

    use super::super::claim::tests::{joined, member, order};
    use super::super::guard::NoGuard;
    use super::super::guard::fake::FakeGuard;
    use super::super::node::Handle;
    use super::*;

    #[tokio::test]
    async fn a_heartbeat_goes_on_over_restarts_and_stops_when_another_lives() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let node = joined(&store, dir.path(), "one").await;
        let first = beat(store.as_ref(), &node, None).await.expect("the first").last;
        beat(store.as_ref(), &node, Some(first.clone())).await.expect("the second");
        assert!(matches!(beat(store.as_ref(), &node, Some(first)).await, Err(Missed::Refused)), "somebody else beat meanwhile");
        assert_eq!(beat(store.as_ref(), &node, None).await.expect("after a restart").last.seq, 3);
        let second = joined(&store, dir.path(), "two").await;
        assert!(matches!(beat(store.as_ref(), &node, None).await, Err(Missed::Refused)), "its life is over");
        beat(store.as_ref(), &second, None).await.expect("the living one");
        let seal = Op::Put(keys::fence(&Name::known("node1"), second.epoch()), Vec::new());
        store.txn(Txn::default().then(seal)).await.expect("sealed");
        assert!(matches!(beat(store.as_ref(), &second, None).await, Err(Missed::Sealed)), "it is sealed");
    }

    #[tokio::test]
    async fn neither_a_late_heartbeat_nor_an_agent_that_joins_again_costs_a_renewal() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let node = joined(&store, dir.path(), "one").await;
        let mut arming = Arming::default();
        let last = turn(store.as_ref(), &node, None, &mut arming).await.expect("the first");
        let late = Heartbeat { epoch: node.epoch(), seq: last.seq + 1, profile: last.profile };
        put(&store, typed::put(keys::heartbeat(&node.name), &late)).await;
        let last = turn(store.as_ref(), &node, Some(last), &mut arming).await.expect("after what was thought lost");
        assert_eq!(last.seq, 3);
        node.join().await.expect("the same life");
        let last = turn(store.as_ref(), &node, Some(last), &mut arming).await.expect("after it joined again");
        let other = joined(&store, dir.path(), "two").await;
        assert!(turn(store.as_ref(), &node, Some(last), &mut arming).await.is_err(), "its life is over");
        turn(store.as_ref(), &other, None, &mut arming).await.expect("the living one");
    }

    /// It began just before a renewal was due, and ended just after an attempt had begun that nobody answers any more.
    #[test]
    fn an_outage_that_is_promised_to_be_ridden_out_is_no_silence_that_seals() {
        for profile in TimerProfile::ALL {
            let timers = Timers::of(profile);
            let silence = every(profile) + Duration::from_millis(timers.rides_out_ms()) + patience(&timers) + AGAIN;
            assert!(silence <= Duration::from_millis(timers.seal_ms), "{}: {silence:?}", profile.as_str());
        }
    }

    /// A store that takes nothing for a while.
    struct Away {
        inner: Arc<EmbeddedStore>,
        left: std::sync::atomic::AtomicU32,
    }

    #[async_trait::async_trait]
    impl Store for Away {
        fn id(&self) -> vmkeep_store::StoreId {
            self.inner.id()
        }
        async fn get(&self, key: &str) -> Result<Option<vmkeep_store::KeyValue>, StoreError> {
            self.inner.get(key).await
        }
        async fn list(&self, prefix: &str) -> Result<vmkeep_store::Listing, StoreError> {
            self.inner.list(prefix).await
        }
        async fn first(&self, prefix: &str, count: usize) -> Result<Vec<vmkeep_store::KeyValue>, StoreError> {
            self.inner.first(prefix, count).await
        }
        async fn list_many(&self, prefixes: &[&str]) -> Result<vmkeep_store::Listing, StoreError> {
            self.inner.list_many(prefixes).await
        }
        async fn txn(&self, txn: Txn) -> Result<vmkeep_store::TxnOutcome, StoreError> {
            use std::sync::atomic::Ordering::Relaxed;
            if self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                return Err(StoreError::Unavailable("it is away".into()));
            }
            self.inner.txn(txn).await
        }
        async fn watch(&self, prefix: &str, from: Revision) -> Result<vmkeep_store::Watch, StoreError> {
            self.inner.watch(prefix, from).await
        }
        async fn revision(&self) -> Result<Revision, StoreError> {
            self.inner.revision().await
        }
        async fn lead(&self, candidate: &str, ttl: Duration) -> Result<Option<vmkeep_store::Leadership>, StoreError> {
            self.inner.lead(candidate, ttl).await
        }
        async fn resign(&self, lead: &vmkeep_store::Leadership) -> Result<(), StoreError> {
            self.inner.resign(lead).await
        }
    }

    #[tokio::test]
    async fn what_the_store_did_not_take_is_told_again_at_once_and_not_a_period_later() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let node = joined(&store, dir.path(), "one").await;
        let away = Arc::new(Away { inner: store.clone(), left: 3.into() });
        let (stop, begun) = (CancellationToken::new(), Instant::now());
        let beats = tokio::spawn(run(away, node.clone(), stop.clone()));
        while node.standing.now().renewed.is_none() {
            assert!(begun.elapsed() < every(TimerProfile::Standard), "three attempts cost a period");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(begun.elapsed() >= 2 * AGAIN, "it does not hammer at the store");
        stop.cancel();
        beats.await.expect("it ends");
    }

    async fn put(store: &EmbeddedStore, op: Op) {
        store.txn(Txn::default().then(op)).await.expect("a write");
    }

    async fn armed(store: &EmbeddedStore, node: &Node) -> Option<Armed> {
        typed::get_json(store, &keys::armed(&node.name, node.epoch())).await.expect("a read").map(|kept| kept.value)
    }

    #[tokio::test]
    async fn the_watchdog_is_armed_for_the_first_order_and_an_end_is_told_to_its_guard() {
        let dir = tempfile::tempdir().expect("a folder");
        let (store, guard) = (Arc::new(EmbeddedStore::in_memory().expect("memory")), Arc::new(FakeGuard::default()));
        let node = member(&store, dir.path(), "one", guard.clone());
        node.join().await.expect("joined");
        let mut arming = Arming::default();
        let mut last = turn(store.as_ref(), &node, None, &mut arming).await.ok();
        assert_eq!((armed(&store, &node).await, guard.told().len()), (Some(Armed::None), 0));

        let mut wish = order(node.epoch());
        wish.spec.ha = Some(serde_json::from_str("{}").expect("a default"));
        node.standing.note(&wish);
        last = turn(store.as_ref(), &node, last, &mut arming).await.ok();
        let watchdog = Armed::Watchdog { pet_ms: 19_000, watchdog_ms: 8_000, kind: WatchdogKind::Hardware };
        assert_eq!(armed(&store, &node).await, Some(watchdog.clone()));
        assert_eq!(node.standing.may_claim(&wish).await, Ok(()));

        // The transaction of a disarming whose answer was lost: what it wrote is put right.
        put(&store, typed::put(keys::armed(&node.name, node.epoch()), &Armed::None)).await;
        arming = Arming::default();
        last = turn(store.as_ref(), &node, last, &mut arming).await.ok();
        assert_eq!(armed(&store, &node).await, Some(watchdog.clone()));

        put(&store, Op::Put(keys::HA_DISARM.into(), Vec::new())).await;
        last = turn(store.as_ref(), &node, last, &mut arming).await.ok();
        assert_eq!(armed(&store, &node).await, Some(Armed::None));
        put(&store, Op::Delete(keys::HA_DISARM.into())).await;
        last = turn(store.as_ref(), &node, last, &mut arming).await.ok();
        assert_eq!(armed(&store, &node).await, Some(watchdog));

        put(&store, Op::Put(keys::fence(&node.name, node.epoch()), Vec::new())).await;
        assert!(turn(store.as_ref(), &node, last, &mut arming).await.is_err());
        assert!(node.standing.may_claim(&wish).await.is_err(), "it is over");
        assert_eq!(guard.told(), ["arm", "renewed", "renewed", "disarm", "arm", "sealed"]);
    }

    /// The store hangs just then, or the agent is killed; and then nobody wants it any more.
    #[tokio::test]
    async fn a_watchdog_that_was_opened_and_not_told_of_hears_of_renewals_and_is_closed_again() {
        for restarted in [false, true] {
            let dir = tempfile::tempdir().expect("a folder");
            let (store, guard) = (Arc::new(EmbeddedStore::in_memory().expect("memory")), Arc::new(FakeGuard::default()));
            let mut node = member(&store, dir.path(), "one", guard.clone());
            node.join().await.expect("joined");
            let mut arming = Arming::default();
            let mut last = turn(store.as_ref(), &node, None, &mut arming).await.ok();
            let life = last.clone().expect("it beats").life;
            let away = Away { inner: store.clone(), left: 1.into() };
            let asked = arming.step(&away, &node, &life, clock::now(), Wanted::Asked).await;
            assert!(asked.is_err(), "{asked:?}");
            assert!(node.standing.now().watchdog == Watchdog::Open, "others do not count on it");
            if restarted {
                node = member(&store, dir.path(), "one", guard.clone());
                node.join().await.expect("the same life");
                (arming, last) = (Arming::default(), None);
            }
            last = turn(store.as_ref(), &node, last, &mut arming).await.ok();
            assert_eq!(guard.told(), ["arm", "renewed"], "it would reset a host that lives");
            assert_eq!((node.standing.now().watchdog, armed(&store, &node).await), (Watchdog::Open, Some(Armed::None)));
            put(&store, Op::Put(keys::HA_DISARM.into(), Vec::new())).await;
            turn(store.as_ref(), &node, last, &mut arming).await.expect("it beats");
            assert_eq!(guard.told(), ["arm", "renewed", "renewed", "disarm"]);
            assert_eq!(node.standing.now().watchdog, Watchdog::Idle);
        }
    }

    #[tokio::test]
    async fn a_node_that_is_asked_arms_before_it_has_an_order_or_says_why_it_cannot() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let guard = Arc::new(FakeGuard::default());
        let asked = Op::Put(keys::arm_wanted(&Name::known("node1")), Vec::new());
        let node = member(&store, dir.path(), "one", guard.clone());
        node.join().await.expect("joined");
        let mut arming = Arming::default();
        let last = turn(store.as_ref(), &node, None, &mut arming).await.ok();
        assert_eq!(armed(&store, &node).await, Some(Armed::None));
        put(&store, asked).await;
        turn(store.as_ref(), &node, last.clone(), &mut arming).await.expect("it beats");
        let watchdog = Armed::Watchdog { pet_ms: 19_000, watchdog_ms: 8_000, kind: WatchdogKind::Hardware };
        assert_eq!(armed(&store, &node).await, Some(watchdog.clone()));
        // Whoever places a VM writes the wish with it: an agent that believes that nobody wants it does not disarm then.
        let life = last.expect("it beats").life;
        arming.disarm(store.as_ref(), &node, &life, Wanted::ForOrders).await.expect("a write");
        assert_eq!(armed(&store, &node).await, Some(watchdog));
        put(&store, Op::Delete(keys::arm_wanted(&node.name))).await;
        arming.disarm(store.as_ref(), &node, &life, Wanted::ForOrders).await.expect("a write");
        assert_eq!((armed(&store, &node).await, guard.told()), (Some(Armed::None), vec!["arm".to_owned(), "disarm".to_owned()]));
    }

    #[tokio::test]
    async fn a_node_without_a_watchdog_says_so_when_it_is_asked() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let node = member(&store, dir.path(), "one", Arc::new(NoGuard));
        node.join().await.expect("joined");
        put(&store, Op::Put(keys::arm_wanted(&node.name), Vec::new())).await;
        turn(store.as_ref(), &node, None, &mut Arming::default()).await.expect("it beats");
        assert_eq!(armed(&store, &node).await, Some(Armed::Unusable { why: "vmkeep-fenced is not set up on this host".into() }));
    }

    async fn settle(store: &EmbeddedStore, profile: TimerProfile) {
        put(store, typed::put(keys::HA_SETTINGS, &HaSettings { profile, ..HaSettings::default() })).await;
    }

    #[tokio::test]
    async fn a_node_takes_the_clusters_profile_while_it_is_not_armed_and_its_watchdog_keeps_up() {
        for (slow_ms, pet_ms, lives_by) in [(0, 6_000, TimerProfile::Fast), (5_000, 19_000, TimerProfile::Standard)] {
            let dir = tempfile::tempdir().expect("a folder");
            let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
            let node = member(&store, dir.path(), "one", Arc::new(FakeGuard::slow(slow_ms)));
            node.join().await.expect("joined");
            settle(&store, TimerProfile::Fast).await;
            let mut arming = Arming::default();
            let first = turn(store.as_ref(), &node, None, &mut arming).await.expect("it beats");
            assert_eq!((first.profile, node.standing.now().profile), (TimerProfile::Standard, TimerProfile::Fast), "said before it counts");
            put(&store, Op::Put(keys::arm_wanted(&node.name), Vec::new())).await;
            let second = turn(store.as_ref(), &node, Some(first), &mut arming).await.expect("it beats");
            assert_eq!((second.profile, node.standing.now().profile), (TimerProfile::Fast, lives_by));
            assert!(matches!(armed(&store, &node).await, Some(Armed::Watchdog { pet_ms: ms, .. }) if ms == pet_ms));
            // Armed, it goes on with what it was armed with.
            settle(&store, TimerProfile::Standard).await;
            let third = turn(store.as_ref(), &node, Some(second), &mut arming).await.expect("it beats");
            assert_eq!((third.profile, node.standing.now().profile), (lives_by, lives_by));
            put(&store, Op::Put(keys::HA_DISARM.into(), Vec::new())).await;
            let fourth = turn(store.as_ref(), &node, Some(third), &mut arming).await.ok();
            turn(store.as_ref(), &node, fourth, &mut arming).await.expect("it beats");
            assert_eq!((armed(&store, &node).await, node.standing.now().profile), (Some(Armed::None), TimerProfile::Standard));
        }
    }

    #[tokio::test]
    async fn a_life_that_was_armed_is_followed_by_the_next_one_only_when_it_is_proved_dead() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        let begin = |boot: &'static str| member(&store, dir.path(), boot, Arc::new(FakeGuard::default()));
        let first = begin("one");
        first.join().await.expect("joined");
        let watchdog = Armed::Watchdog { pet_ms: 1, watchdog_ms: 1, kind: WatchdogKind::Hardware };
        put(&store, typed::put(keys::armed(&first.name, first.epoch()), &watchdog)).await;
        let again = begin("one");
        again.join().await.expect("the same boot goes on");
        assert_eq!(again.epoch(), first.epoch());

        let second = begin("two");
        assert!(second.join().await.expect_err("it must wait").to_string().contains("waits for the proof"));
        assert!(store.get(&keys::waiting(&second.name)).await.expect("a read").is_some(), "and says so");
        assert!(second.awaits_proof().await.expect("a read"));
        put(&store, Op::Put(keys::fence(&first.name, first.epoch()), Vec::new())).await;
        assert!(again.join().await.expect_err("sealed").to_string().contains("must be reset"));
        assert!(second.join().await.is_err(), "a seal is no proof");
        put(&store, Op::Put(keys::confirmed(&first.name, first.epoch()), Vec::new())).await;
        assert!(again.join().await.is_err(), "only a reset leads out of it");
        second.join().await.expect("the next life");
        assert_eq!(second.epoch(), first.epoch().next());
        assert!(store.get(&keys::waiting(&second.name)).await.expect("a read").is_none());

        Handle(second.clone()).shutdown_guests(Farewell::Shutdown).await.expect("nothing runs");
        assert_eq!(second.standing.life(), Life::Closed);
        let third = begin("three");
        third.join().await.expect("the one before said goodbye");
        assert_eq!(third.epoch(), second.epoch().next());
    }
}
