//! The watchdog is armed exactly while the node has orders for highly available VMs, or is asked to be ready for them; what others may
//! count on is written first when it goes off, last when it goes on.
//!
//! ```text
//!  idle ── asked, or an order ─► guard opens it ─► armed/E = watchdog ─► orders, claims     nothing for a while, disarmed, host leaves
//!   ▲                                 └─ it cannot ─► armed/E = unusable, and why              │
//!   └────────────────── guard closes it ◄── armed/E = none, in one transaction ◄───────────────┘
//! ```
//! Each step is taken after a renewal that succeeded and is taken again when it was cut off; in between it is [`Watchdog::Open`].

use std::time::Duration;

use tokio::time::Instant;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_store::{Compare, Held, Store, StoreError, Txn, keys, typed};
use vmkeep_types::ha::Armed;

use super::guard::Opened;
use super::node::Node;
use super::standing::Watchdog;

/// A node that owns nothing stays armed for so long: VMs come and go.
const IDLE_BEFORE_DISARM: Duration = Duration::from_secs(10);
/// Between two looks for a watchdog that was not usable.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What is to become of a word that it cannot arm: it may be asked anew, for somebody may have set the watchdog up.
const EXCUSED_FOR: Duration = Duration::from_secs(300);

/// Does the cluster want this host's watchdog?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// For highly available VMs that it has orders for.
    ForOrders,
    /// The leader is about to give it one.
    Asked,
    /// High availability is disarmed.
    Disarmed,
}

/// What others read of the open watchdog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    /// A transaction may have changed it and was not answered, or this agent has just started.
    #[default]
    Unknown,
    Watchdog,
}

#[derive(Default)]
pub struct Arming {
    idle_since: Option<Instant>,
    looked: Option<Instant>,
    told: Told,
}

impl Arming {
    /// After a renewal that was sent at `sent`. `life`: the compare that this life is still the node's.
    ///
    /// # Errors
    /// The store's; the next renewal goes on from there.
    pub async fn step(&mut self, store: &dyn Store, node: &Node, life: &Compare, sent: Now, wanted: Wanted) -> Result<(), StoreError> {
        let wants = match wanted {
            Wanted::ForOrders => node.standing.owns_protected(),
            Wanted::Asked => true,
            Wanted::Disarmed => false,
        };
        let now = Instant::now();
        self.idle_since = if wants { None } else { self.idle_since.or(Some(now)) };
        let idle = self.idle_since.is_some_and(|since| now.duration_since(since) >= IDLE_BEFORE_DISARM) || wanted == Wanted::Disarmed;
        match node.standing.now().watchdog {
            Watchdog::Idle | Watchdog::Open if wants => self.arm(store, node, life, sent).await,
            Watchdog::Unusable(_) if wants && self.looked.is_none_or(|at| now.duration_since(at) >= LOOK_AGAIN) => {
                self.arm(store, node, life, sent).await
            }
            Watchdog::Unusable(_) if !wants && self.looked.is_none_or(|at| now.duration_since(at) >= EXCUSED_FOR) => {
                if write(store, node, life, &Armed::None).await? == Held::Yes {
                    node.standing.set_watchdog(Watchdog::Idle);
                }
                Ok(())
            }
            Watchdog::Open | Watchdog::Armed(_) if idle => self.disarm(store, node, life, wanted).await,
            Watchdog::Armed(opened) if wants && self.told == Told::Unknown => self.tell(store, node, life, opened).await,
            Watchdog::Idle | Watchdog::Open | Watchdog::Unusable(_) | Watchdog::Armed(_) => Ok(()),
        }
    }

    async fn arm(&mut self, store: &dyn Store, node: &Node, life: &Compare, sent: Now) -> Result<(), StoreError> {
        self.looked = Some(Instant::now());
        // First: whoever is cut off from here on has an open watchdog that must hear of renewals, and be closed when nobody wants it.
        node.standing.set_watchdog(Watchdog::Open);
        let opened = match open(node, sent).await {
            Ok(opened) => opened,
            Err(why) => {
                tracing::warn!(node = %node.name, why, "no watchdog: its highly available VMs are recovered only by STONITH or a person's word");
                // Who asked waits for this word.
                let told = write(store, node, life, &Armed::Unusable { why: why.clone() }).await;
                node.standing.set_watchdog(Watchdog::Unusable(why));
                return told.map(drop);
            }
        };
        self.tell(store, node, life, opened).await?;
        // Sealed (the next renewal tells) or disarmed: an open watchdog is closed by a transaction, as always.
        node.standing.set_watchdog(Watchdog::Armed(opened));
        Ok(())
    }

    async fn tell(&mut self, store: &dyn Store, node: &Node, life: &Compare, opened: Opened) -> Result<(), StoreError> {
        let armed = Armed::Watchdog { pet_ms: opened.pet_ms, watchdog_ms: opened.watchdog_ms, kind: opened.kind };
        if write(store, node, life, &armed).await? == Held::Yes {
            tracing::info!(node = %node.name, ?opened, "the watchdog is armed: this host is reset when it loses the cluster");
            self.told = Told::Watchdog;
        }
        Ok(())
    }

    pub(super) async fn disarm(&mut self, store: &dyn Store, node: &Node, life: &Compare, wanted: Wanted) -> Result<(), StoreError> {
        let mut txn = in_this_life(node, life);
        txn = match wanted {
            Wanted::Disarmed => txn.when(Compare::Present(keys::HA_DISARM.into())),
            // A VM that is placed in this moment is placed with this wish.
            Wanted::ForOrders | Wanted::Asked => txn.when(Compare::Absent(keys::arm_wanted(&node.name))),
        };
        // Its answer may be lost.
        self.told = Told::Unknown;
        let outcome = store.txn(txn.then(typed::put(keys::armed(&node.name, node.epoch()), &Armed::None))).await?;
        if outcome.held == Held::Yes {
            close(node).await;
        }
        Ok(())
    }
}

/// By the timers that the node lives by; where the watchdog cannot be so quick, by the usual ones.
async fn open(node: &Node, sent: Now) -> Result<Opened, String> {
    let profile = node.standing.now().profile;
    let opened = node.config.guard.arm(sent, &Timers::of(profile)).await;
    match (opened, profile) {
        (Err(why), Profile::Fast) => {
            tracing::warn!(node = %node.name, why, "the watchdog cannot keep up with the profile fast: this node stays with standard");
            node.config.guard.arm(sent, &Timers::of(Profile::Standard)).await
        }
        (opened, Profile::Fast | Profile::Standard) => opened,
    }
}

/// While high availability is not switched off.
async fn write(store: &dyn Store, node: &Node, life: &Compare, armed: &Armed) -> Result<Held, StoreError> {
    let txn = in_this_life(node, life).when(Compare::Absent(keys::HA_DISARM.into()));
    Ok(store.txn(txn.then(typed::put(keys::armed(&node.name, node.epoch()), armed))).await?.held)
}

fn in_this_life(node: &Node, life: &Compare) -> Txn {
    Txn::default().when(life.clone()).when(Compare::Absent(keys::fence(&node.name, node.epoch())))
}

/// After the transaction that shows that nobody waits for this host's reset.
pub async fn close(node: &Node) {
    match node.config.guard.disarm().await {
        Ok(()) => {
            tracing::info!(node = %node.name, "the watchdog is disarmed");
            node.standing.set_watchdog(Watchdog::Idle);
        }
        Err(why) => tracing::error!(node = %node.name, why, "the watchdog does not close; it is asked again"),
    }
}
