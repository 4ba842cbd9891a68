//! How this life of the node stands: its last renewal, its end, its watchdog, and the VMs for which that is armed.
//!
//! The heartbeat writes it; claims and the dispatcher read it. On a host alone nobody else may run its VMs: there are no renewals,
//! and nothing here holds anything up.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::life::may_start;
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_types::ids::VmId;
use vmkeep_types::order::Order;

use super::clock;
use super::guard::Opened;

/// How long a start waits for the watchdog: for two renewals.
const ARMS_WITHIN: Duration = Duration::from_secs(8);

/// May this life still do anything?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    #[default]
    Open,
    /// Others were told that it is over.
    Sealed,
    /// It said goodbye: the host is being shut down.
    Closed,
    /// That was called off, and the next life is to begin.
    Resumed,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Watchdog {
    #[default]
    Idle,
    /// It is open, or may be, and nobody else counts on that: the guard was asked, and the store was not told yet.
    Open,
    Armed(Opened),
    /// There is none, and why.
    Unusable(String),
}

/// At one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// When the last renewal that succeeded was sent; None on a host alone.
    pub renewed: Option<Now>,
    pub life: Life,
    pub watchdog: Watchdog,
    /// What it lives by.
    pub profile: Profile,
}

#[derive(Default)]
pub struct Standing {
    stand: watch::Sender<Stand>,
    /// Highly available VMs that this node has orders for.
    protected: Mutex<BTreeSet<VmId>>,
    /// Whether the watchdog is wanted has changed.
    pub stirred: Notify,
}

impl Standing {
    pub fn now(&self) -> Stand {
        self.stand.borrow().clone()
    }

    pub fn life(&self) -> Life {
        self.stand.borrow().life
    }

    /// Until another life of the node is to begin.
    pub async fn over(&self) {
        let _ = self.stand.subscribe().wait_for(|stand| matches!(stand.life, Life::Sealed | Life::Resumed)).await;
    }

    pub fn set_life(&self, life: Life) {
        self.stand.send_modify(|stand| stand.life = life);
    }

    /// Armed, the node lives by what it was armed with.
    pub fn set_watchdog(&self, watchdog: Watchdog) {
        self.stand.send_if_modified(|stand| {
            let changed = stand.watchdog != watchdog;
            if let Watchdog::Armed(opened) = &watchdog {
                stand.profile = opened.profile();
            }
            stand.watchdog = watchdog;
            changed
        });
    }

    /// What the node lives by from now on; one that is armed goes on with what it was armed with.
    pub fn set_profile(&self, profile: Profile) {
        self.stand.send_if_modified(|stand| {
            let changes = stand.profile != profile && !matches!(stand.watchdog, Watchdog::Open | Watchdog::Armed(_));
            if changes {
                stand.profile = profile;
            }
            changes
        });
    }

    pub fn timers(&self) -> Timers {
        Timers::of(self.stand.borrow().profile)
    }

    pub fn renewed(&self, sent: Now) {
        self.stand.send_modify(|stand| stand.renewed = Some(sent));
    }

    /// Another life begins, or the same one goes on in another process.
    pub fn begin(&self, watchdog: Watchdog) {
        let profile = if let Watchdog::Armed(opened) = &watchdog { opened.profile() } else { Profile::default() };
        self.stand.send_modify(|stand| (stand.life, stand.watchdog, stand.profile) = (Life::Open, watchdog, profile));
    }

    /// An order that was given to this node.
    pub fn note(&self, order: &Order) {
        let changed = {
            let mut protected = self.protected.lock().expect("no panic holds this lock");
            if order.spec.ha.is_some() { protected.insert(order.vm) } else { protected.remove(&order.vm) }
        };
        if changed {
            self.stirred.notify_one();
        }
    }

    pub fn forget(&self, vm: VmId) {
        self.protected.lock().expect("no panic holds this lock").remove(&vm);
    }

    pub fn forget_all(&self) {
        self.protected.lock().expect("no panic holds this lock").clear();
    }

    pub fn owns_protected(&self) -> bool {
        !self.protected.lock().expect("no panic holds this lock").is_empty()
    }

    /// Before a claim: a highly available VM starts under a young renewal and an armed watchdog, or where there is none to arm.
    ///
    /// # Errors
    /// Why it does not start now, in words.
    pub async fn may_claim(&self, order: &Order) -> Result<(), &'static str> {
        let mut stand = self.stand.subscribe();
        if stand.borrow().life != Life::Open {
            return Err("this life of the node is over");
        }
        if order.spec.ha.is_none() {
            return Ok(());
        }
        let ready = stand.wait_for(|stand| matches!(stand.watchdog, Watchdog::Armed(_) | Watchdog::Unusable(_)));
        if tokio::time::timeout(ARMS_WITHIN, ready).await.is_err() {
            return Err("the watchdog is not armed yet");
        }
        let young = may_start(&self.timers(), clock::now(), self.stand.borrow().renewed);
        if young { Ok(()) } else { Err("the node has not renewed its life for too long") }
    }
}
