//! What a control node hears of the nodes while it leads and while it does not, so that it need not begin to wait when it is its turn.
//!
//! ```text
//!  watch of n/ ──────────────────► hear(o(r)) ──► Vigil
//!  a renewal is overdue ── get ──────┘               canary answered: the store is steady
//! ```
//! A watch that fails is opened anew; one that says nothing is asked past.

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vmkeep_core::ha::timers::Timers;
use vmkeep_store::{Change, KeyValue, Op, Store, StoreError, Txn, keys, typed};
use vmkeep_types::ha::{HaSettings, TimerProfile};
use vmkeep_types::host::Heartbeat;
use vmkeep_types::name::Name;

use super::Desk;
use crate::app::node;

/// Wait before it listens anew after the store failed it.
const REST: Duration = Duration::from_secs(1);
/// An answer to the canary that is later does not count.
const ANSWER: Duration = Duration::from_millis(2_500);
/// After a canary that the store did not take.
const AGAIN: Duration = Duration::from_millis(50);
/// For the answer to a ping.
const PING: Duration = Duration::from_secs(1);

/// Listens until `stop`.
pub async fn run(store: Arc<dyn Store>, desk: Arc<Desk>, me: Name, stop: CancellationToken) {
    let listening = async {
        loop {
            if let Err(error) = listen(store.as_ref(), &desk).await {
                tracing::warn!(%error, "the nodes' heartbeats are not heard; listening anew");
            }
            tokio::time::sleep(REST).await;
        }
    };
    let all = async { tokio::join!(listening, sing(store.as_ref(), &desk, &me), seek(store.as_ref(), &desk)) };
    stop.run_until_cancelled(all).await;
}

async fn listen(store: &dyn Store, desk: &Desk) -> Result<(), StoreError> {
    let failed = |error: vmkeep_types::error::Error| StoreError::Unavailable(error.message);
    let from = store.revision().await?;
    let mut watch = store.watch(keys::ALL_NODES, from.next()).await?;
    let names = node::names(store).await.map_err(failed)?;
    // What is older than the watch; who is newer than this list is in the watch.
    node::key_of_each(store, &names, keys::heartbeat).await.map_err(failed)?.iter().flatten().for_each(|kv| hear(desk, kv));
    while let Some(batch) = watch.recv().await {
        for change in batch?.changes {
            if let Change::Put(kv) = change {
                hear(desk, &kv);
            }
        }
    }
    Err(StoreError::Unavailable("the watch was closed".into()))
}

fn hear(desk: &Desk, kv: &KeyValue) {
    let mut parts = kv.key.split('/');
    let (Some("n"), Some(node), Some("hb"), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else { return };
    if let (Ok(node), Ok(beat)) = (node.parse::<Name>(), typed::decode::<Heartbeat>(kv)) {
        desk.hear(&node, beat, kv.modified);
    }
}

/// Between two canaries: an outage of the store must be noticed long before a node could be sealed.
fn every(timers: &Timers) -> Duration {
    Duration::from_millis(timers.renew_ms.min(timers.seal_ms / 5))
}

/// With one canary: three must fail, one after the other, before the store counts as one that does not answer. The first may have
/// gone to the member of etcd that has just died.
fn patience(profile: TimerProfile) -> Duration {
    let timers = Timers::of(profile);
    let late = Duration::from_millis(timers.canary_late_ms());
    ANSWER.min(late.saturating_sub(every(&timers)) / 2 - AGAIN)
}

/// Silence of nodes counts only while the store takes our own writes. A host alone has nobody to listen for.
async fn sing(store: &dyn Store, desk: &Desk, me: &Name) {
    let mut profile = TimerProfile::default();
    let mut missed: u32 = 0;
    loop {
        desk.tick();
        let mut pause = every(&Timers::of(profile));
        if desk.has_heard() {
            let late = |_| Err(StoreError::Unavailable("no answer in time".into()));
            match timeout(patience(profile), canary(store, desk, me)).await.unwrap_or_else(late) {
                Ok(read) => (profile, missed) = (read.unwrap_or(profile), 0),
                Err(error) => {
                    if missed == 0 || missed.is_power_of_two() {
                        tracing::warn!(%error, times = missed + 1, "the store does not take this control node's canary: nobody is taken for dead");
                    }
                    (pause, missed) = (AGAIN, missed.saturating_add(1));
                }
            }
            desk.set_profile(profile);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Beside the canaries: a read that hangs, at a member of etcd that was cut off, must not make them late.
async fn seek(store: &dyn Store, desk: &Desk) {
    loop {
        look_for(store, desk).await;
        tokio::time::sleep(every(&desk.timers())).await;
    }
}

/// A watch that stands still, or has lost an event, makes nobody silent: what was not heard in time is read. The dead are among those
/// who are read, and say nothing new.
pub(super) async fn look_for(store: &dyn Store, desk: &Desk) {
    let late = desk.late();
    if late.is_empty() {
        return;
    }
    // That the store does not answer is the canary's to tell.
    if let Ok(Ok(found)) = timeout(ANSWER, node::key_of_each(store, &late, keys::heartbeat)).await {
        found.iter().flatten().for_each(|kv| hear(desk, kv));
    }
}

/// The cluster's profile, which is read with it; None: it does not parse.
async fn canary(store: &dyn Store, desk: &Desk, me: &Name) -> Result<Option<TimerProfile>, StoreError> {
    let sent = desk.now();
    let txn = Txn::default().then(Op::Put(keys::canary(me), Vec::new())).then(Op::Get(keys::HA_SETTINGS.into()));
    let outcome = store.txn(txn).await?;
    desk.canary(sent);
    let settings = outcome.gets.into_iter().next().flatten();
    Ok(typed::setting::<HaSettings>(settings).map(|settings| settings.profile))
}

/// Whether a host's network stack answers: a refusal does, too.
pub async fn answers(address: &str) -> bool {
    let Some(at) = address.to_socket_addrs().ok().and_then(|mut all| all.next()) else { return false };
    match timeout(PING, TcpStream::connect(at)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_canary_that_is_lost_is_not_an_outage() {
        for profile in TimerProfile::ALL {
            let third = every(&Timers::of(profile)) + 2 * (patience(profile) + AGAIN);
            assert!(third <= Duration::from_millis(Timers::of(profile).canary_late_ms()), "{}", profile.as_str());
            assert!(patience(profile) >= Duration::from_millis(250), "{}: a busy etcd answers in that time", profile.as_str());
        }
    }
}
