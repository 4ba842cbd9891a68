//! Where a highly available VM goes, and what its node is asked first: what the leader writes, look by look.

use std::fmt::Write as _;

use expect_test::{Expect, expect};
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::{Held, Op, Store, Txn, keys, typed};
use vmkeep_types::ha::{Armed, WatchdogKind};
use vmkeep_types::host::{EpochRecord, Heartbeat};
use vmkeep_types::ids::{Epoch, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::record::{Power, PowerWish, VmRecord};
use vmkeep_types::stonith::{FenceFound, FenceRecord, FenceTested};
use vmkeep_types::vm::{Ha, VmSpec};

use crate::reconcile::ha::tests::facts;
use crate::reconcile::plan;
use crate::reconcile::view::{ClusterView, PREFIXES, Touched};

const VM: VmId = VmId(uuid::Uuid::from_u128(1));

struct Bed {
    store: EmbeddedStore,
    view: ClusterView,
    seconds: i64,
}

fn name(node: &'static str) -> Name {
    Name::known(node)
}

impl Bed {
    /// Two nodes that renew their lives and have said nothing of their watchdogs, and a wish for a highly available VM.
    async fn begin() -> Self {
        let store = EmbeddedStore::in_memory().expect("memory");
        let bed = Self { store, view: ClusterView::default(), seconds: 0 };
        for node in ["a", "b"] {
            let life = EpochRecord { epoch: Epoch(1), boot_id: "b".into(), closed: false };
            bed.put(typed::put(keys::facts(&name(node)), &facts(node))).await;
            bed.put(typed::put(keys::epoch(&name(node)), &life)).await;
            bed.put(typed::put(keys::heartbeat(&name(node)), &Heartbeat { epoch: Epoch(1), seq: 1, profile: Default::default() })).await;
            bed.says(node, Armed::None).await;
        }
        bed.wish(VM, "web").await;
        bed
    }

    async fn wish(&self, id: VmId, called: &'static str) {
        let record = VmRecord::created(
            id,
            name("default"),
            VmSpec { nics: Vec::new(), ha: Some(Ha::default()), ..VmSpec::named(name(called)) },
            jiff::Timestamp::UNIX_EPOCH,
        );
        let power = Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None };
        self.put(typed::put(keys::vm(&name("default"), id), &record)).await;
        self.put(typed::put(keys::power(id), &power)).await;
    }

    async fn put(&self, op: Op) {
        self.store.txn(Txn::default().then(op)).await.expect("a write");
    }

    async fn says(&self, node: &'static str, armed: Armed) {
        self.put(typed::put(keys::armed(&name(node), Epoch(1)), &armed)).await;
    }

    /// What the leader writes next, until it has nothing more to do; then so many seconds pass.
    async fn check(&mut self, seconds: i64, expect: Expect) {
        let mut told = String::new();
        for _ in 0..10 {
            let listing = self.store.list_many(&PREFIXES).await.expect("a listing");
            let (in_vain, now) = (std::mem::take(&mut self.view.asked_in_vain), self.now());
            let (view, mut touched) = ClusterView::new(listing.revision, &listing.items);
            self.view = view;
            in_vain.iter().for_each(|node| self.view.ask_in_vain(node, &mut Touched::default()));
            let mut txns = super::look(&mut self.view, &mut touched, now);
            txns.extend(plan(&mut self.view, &mut touched, now).into_iter().map(|(_, txn)| txn));
            for txn in txns {
                self.write(txn, &mut told).await;
            }
        }
        expect.assert_eq(&told);
        self.seconds += seconds;
    }

    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_700_000_000 + self.seconds).expect("a time")
    }

    async fn write(&self, txn: Txn, told: &mut String) {
        let ops = txn.then.clone();
        if self.store.txn(txn).await.expect("a write").held == Held::No {
            return;
        }
        for op in ops {
            match op {
                Op::Put(key, _) if ["owner/", "own/", "n/"].iter().any(|of| key.starts_with(of)) => writeln!(told, "put {key}"),
                Op::Delete(key) => writeln!(told, "delete {key}"),
                _ => Ok(()),
            }
            .expect("a string takes all");
        }
    }
}

fn hardware() -> Armed {
    Armed::Watchdog { pet_ms: 19_000, watchdog_ms: 8_000, kind: WatchdogKind::Hardware }
}

fn unusable() -> Armed {
    Armed::Unusable { why: "there is none".into() }
}

#[tokio::test]
async fn two_vms_of_one_look_ask_two_nodes() {
    let mut bed = Bed::begin().await;
    bed.wish(VmId(uuid::Uuid::from_u128(2)), "other").await;
    bed.check(
        1,
        expect![[r#"
            put n/a/arm-wanted
            put n/b/arm-wanted
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_node_is_asked_to_arm_and_owns_only_then() {
    let mut bed = Bed::begin().await;
    bed.check(
        1,
        expect![[r#"
            put n/a/arm-wanted
        "#]],
    )
    .await;
    bed.check(1, expect![""]).await;
    bed.says("a", hardware()).await;
    bed.check(
        59,
        expect![[r#"
            put owner/00000000-0000-0000-0000-000000000001
            put own/a/00000000-0000-0000-0000-000000000001
            put n/a/order/00000000-0000-0000-0000-000000000001
            put n/a/arm-wanted
        "#]],
    )
    .await;
    bed.check(1, expect![""]).await;
    // Its order has come by then.
    bed.check(
        1,
        expect![[r#"
            delete n/a/arm-wanted
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_node_whose_watchdog_cannot_be_armed_is_passed_over() {
    let mut bed = Bed::begin().await;
    bed.check(
        1,
        expect![[r#"
            put n/a/arm-wanted
        "#]],
    )
    .await;
    bed.says("a", unusable()).await;
    bed.check(
        1,
        expect![[r#"
            put n/b/arm-wanted
        "#]],
    )
    .await;
    bed.says("b", hardware()).await;
    bed.check(
        1,
        expect![[r#"
            put owner/00000000-0000-0000-0000-000000000001
            put own/b/00000000-0000-0000-0000-000000000001
            put n/b/order/00000000-0000-0000-0000-000000000001
            put n/b/arm-wanted
        "#]],
    )
    .await;
}

#[tokio::test]
async fn one_whose_power_can_be_cut_is_not() {
    let mut bed = Bed::begin().await;
    let tested = Some(FenceTested { at: jiff::Timestamp::UNIX_EPOCH, found: FenceFound::On });
    let fence = FenceRecord { agent: "nshost".into(), options: Default::default(), tested };
    bed.put(typed::put(keys::stonith(&name("a")), &fence)).await;
    bed.says("a", unusable()).await;
    bed.check(
        1,
        expect![[r#"
            put owner/00000000-0000-0000-0000-000000000001
            put own/a/00000000-0000-0000-0000-000000000001
            put n/a/order/00000000-0000-0000-0000-000000000001
            put n/a/arm-wanted
        "#]],
    )
    .await;
}

#[tokio::test]
async fn where_no_death_could_be_proved_any_node_will_do() {
    let mut bed = Bed::begin().await;
    bed.check(
        1,
        expect![[r#"
            put n/a/arm-wanted
        "#]],
    )
    .await;
    bed.says("a", unusable()).await;
    bed.says("b", unusable()).await;
    bed.check(
        1,
        expect![[r#"
            put owner/00000000-0000-0000-0000-000000000001
            put own/a/00000000-0000-0000-0000-000000000001
            put n/a/order/00000000-0000-0000-0000-000000000001
            put n/a/arm-wanted
        "#]],
    )
    .await;
}

#[tokio::test]
async fn one_that_does_not_answer_is_not_waited_for() {
    let mut bed = Bed::begin().await;
    bed.check(
        16,
        expect![[r#"
            put n/a/arm-wanted
        "#]],
    )
    .await;
    bed.check(
        16,
        expect![[r#"
            put n/b/arm-wanted
        "#]],
    )
    .await;
    bed.check(
        1,
        expect![[r#"
            put owner/00000000-0000-0000-0000-000000000001
            put own/a/00000000-0000-0000-0000-000000000001
            put n/a/order/00000000-0000-0000-0000-000000000001
            put n/a/arm-wanted
        "#]],
    )
    .await;
}
