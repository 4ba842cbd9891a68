//! A host goes down in order: the cluster is told why, VMs that are to move away do so first, and when none runs any more this life of
//! the node ends by its own word, so that nobody takes it for dead.
//!
//! ```text
//!  n/NODE/leaving ─► the leader's word in it ─┬─ migrate: wait until another word stands there ─┐
//!                                             └─ freeze, failover ───────────────────────────────┴─► guests off ─► nothing runs ─► goodbye
//! ```
//! The goodbye closes the epoch in a transaction that no claim of it outlives; only then may others own its VMs. What cannot be told
//! is taken for a death, which is safe. A leader that does not answer holds up no shutdown: the VMs wait for their host then, unless
//! its word comes later.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use vmkeep_store::{Compare, Held, Op, StoreError, Txn, keys, typed};
use vmkeep_types::ha::{Armed, Departure, Farewell, Parting};
use vmkeep_types::host::EpochRecord;

use super::arming;
use super::node::{Node, STARTS_AT_ONCE};
use super::standing::Life;
use crate::hypervisor::DomainBrief;

/// The leader says what becomes of the VMs within this time, or they stay the host's.
const WORD: Duration = Duration::from_secs(10);
/// A store that was silent for so long is not waited for.
const STORE_SILENT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// For a write before the host goes, and for starts that are still under way.
const GOODBYE: Duration = Duration::from_secs(5);
/// A guest that nobody ordered to stop may still run after this time; the VMs stay the host's then.
const STRAYS: Duration = Duration::from_secs(20);

/// Does anything of ours run?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guests {
    /// Nothing, and nothing is being started.
    None,
    Perhaps,
}

impl Node {
    /// Says that the host goes down, and waits until what moves away has moved.
    pub(super) async fn announce(&self, why: Farewell) {
        if self.config.peers.is_none() || self.standing.life() != Life::Open {
            return;
        }
        match timeout(GOODBYE, self.tell_departure(why)).await {
            Ok(Ok(Held::Yes)) => self.wait_for_word().await,
            Ok(Ok(Held::No)) => tracing::warn!(node = %self.name, "this life is over already"),
            Ok(Err(error)) => tracing::warn!(node = %self.name, %error, "the cluster is not told that this host goes down"),
            Err(_) => tracing::warn!(node = %self.name, "the store does not take that this host goes down"),
        }
    }

    async fn tell_departure(&self, farewell: Farewell) -> Result<Held, StoreError> {
        let Some(life) = self.this_life().await? else { return Ok(Held::No) };
        let (key, epoch) = (keys::leaving(&self.name), self.epoch());
        // Asked for again.
        let told = typed::get_json::<Departure>(self.store.as_ref(), &key).await?;
        if told.is_some_and(|told| told.value.epoch == epoch) {
            return Ok(Held::Yes);
        }
        let departure = Departure { epoch, farewell, at: jiff::Timestamp::now(), then: None };
        let txn = Txn::default().when(life).when(Compare::Absent(keys::fence(&self.name, epoch))).then(typed::put(key, &departure));
        Ok(self.store.txn(txn).await?.held)
    }

    async fn wait_for_word(&self) {
        let asked = Instant::now();
        let mut heard = asked;
        loop {
            match typed::get_json::<Departure>(self.store.as_ref(), &keys::leaving(&self.name)).await {
                Ok(Some(told)) => {
                    heard = Instant::now();
                    match told.value.then {
                        Some(Parting::Migrate) => {}
                        Some(then) => return tracing::info!(node = %self.name, "this host goes down: {}", then.words()),
                        None if asked.elapsed() < WORD => {}
                        None => {
                            return tracing::warn!(node = %self.name, "no control node says what becomes of the VMs; they wait for this host");
                        }
                    }
                }
                // Called off.
                Ok(None) => return,
                Err(error) if heard.elapsed() >= STORE_SILENT => {
                    return tracing::warn!(node = %self.name, %error, "the store is silent: the host goes down without a word");
                }
                Err(_) => {}
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The shutdown was called off.
    pub(super) async fn stay(&self) {
        if self.config.peers.is_none() {
            return;
        }
        let delete = Txn::default().then(Op::Delete(keys::leaving(&self.name)));
        match timeout(GOODBYE, self.store.txn(delete)).await {
            Ok(Ok(_)) => {}
            // The next life of the node does it.
            Ok(Err(error)) => tracing::warn!(node = %self.name, %error, "the cluster is not told that the shutdown was called off"),
            Err(_) => tracing::warn!(node = %self.name, "the store does not take that the shutdown was called off"),
        }
    }

    /// The host goes down and runs nothing any more: this life ends in order, so that nobody takes it for a death, and the watchdog
    /// closes.
    pub(super) async fn say_goodbye(&self) {
        if self.config.peers.is_none() || self.standing.life() != Life::Open {
            return;
        }
        let begun = Instant::now();
        while self.guests().await == Guests::Perhaps && begun.elapsed() < STRAYS {
            sleep(LOOK_EVERY).await;
        }
        // From before the last look on: no claim may begin that it does not know of.
        self.standing.set_life(Life::Closed);
        let guests = self.guests().await;
        match timeout(GOODBYE, self.close_life(guests)).await {
            Ok(Ok(Held::Yes)) => arming::close(self).await,
            Ok(Ok(Held::No)) => tracing::warn!(node = %self.name, "this life was over before its goodbye"),
            Ok(Err(error)) => tracing::warn!(node = %self.name, %error, "the goodbye is not told; the others will take this host for dead"),
            Err(_) => tracing::warn!(node = %self.name, "the store does not take the goodbye; the others will take this host for dead"),
        }
    }

    /// A start holds its permit from before its claim to its end.
    async fn guests(&self) -> Guests {
        let Ok(Ok(_all)) = timeout(GOODBYE, self.starts.acquire_many(STARTS_AT_ONCE)).await else { return Guests::Perhaps };
        match self.hv.list().await {
            Ok(domains) if !domains.iter().any(DomainBrief::is_our_guest) => Guests::None,
            Ok(_) | Err(_) => Guests::Perhaps,
        }
    }

    async fn close_life(&self, guests: Guests) -> Result<Held, StoreError> {
        let Some(life) = self.this_life().await? else { return Ok(Held::No) };
        let epoch = self.epoch();
        let record = EpochRecord { epoch, boot_id: self.boot_id.clone(), closed: true };
        let mut txn = Txn::default()
            .when(life)
            .when(Compare::Absent(keys::fence(&self.name, epoch)))
            .then(typed::put(keys::epoch(&self.name), &record))
            .then(typed::put(keys::armed(&self.name, epoch), &Armed::None));
        if guests == Guests::Perhaps {
            // Others would start what may still run here.
            tracing::warn!(node = %self.name, "a guest may still run: the VMs of this host wait for it");
            txn = txn.then(Op::Delete(keys::leaving(&self.name)));
        }
        let held = self.store.txn(txn).await?.held;
        tracing::info!(node = %self.name, %epoch, ?held, "this life says goodbye");
        Ok(held)
    }
}
