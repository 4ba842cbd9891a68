//! The leader's loop: one view of the cluster, a pure planner, and writes under the leader's compare.
//!
//! ```text
//!  store watch ──► ClusterView ──touched──► vm::next / drain::next / task::next / file_events ──► Txn + leader compare ──► store
//!       ▲                                                                                                  │
//!       └──────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! It takes no input but the store, does the same thing twice without harm, and never retries inside: a compare that fails
//! means that somebody wrote, and that write wakes it again. Leadership lost, watch broken or compacted: it starts over
//! from a listing.

pub mod drain;
pub mod migrate;
pub mod pulse;
pub mod recovery;
pub mod task;
pub mod view;
pub mod vm;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use vmkeep_store::{Compare, Held, Leadership, Store, StoreError, Txn, Watch, WatchBatch};
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;

use pulse::Pulse;
use view::{ClusterView, Touched};

/// How long leadership lasts without being renewed.
const LEAD_TTL: Duration = Duration::from_secs(9);
const LEAD_RENEW: Duration = Duration::from_secs(3);
/// Between looks at the nodes' heartbeats.
const PULSE: Duration = Duration::from_secs(1);
/// Wait before another try when the store refuses or somebody else leads.
const REST: Duration = Duration::from_secs(1);
/// Housekeeping of old operations and events.
const HOUSEKEEPING: Duration = Duration::from_secs(3600);

/// Leads whenever it can, until shutdown.
pub async fn run(store: Arc<dyn Store>, candidate: Name, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match store.lead(candidate.as_str(), LEAD_TTL).await {
            Ok(Some(lead)) => {
                tracing::info!(%candidate, "leads");
                let ended = lead_until_it_ends(store.as_ref(), candidate.as_str(), &lead, &shutdown).await;
                if let Err(error) = ended {
                    tracing::warn!(%error, "leading ended; starting over from a listing");
                }
                if shutdown.is_cancelled() {
                    let _ = store.resign(&lead).await;
                    return;
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "cannot ask for leadership"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(REST) => {}
        }
    }
}

async fn lead_until_it_ends(store: &dyn Store, candidate: &str, lead: &Leadership, shutdown: &CancellationToken) -> Result<(), StoreError> {
    let listing = store.list_many(&view::PREFIXES).await?;
    let mut watch = store.watch("", listing.revision.next()).await?;
    let (mut view, mut touched) = ClusterView::new(listing.revision, &listing.items);
    drop(listing);
    let mut renew = interval(LEAD_RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::default();
    let mut beat = interval(PULSE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // At once, too: a daemon that is restarted often would else never come to it.
    let mut housekeeping_at = Instant::now();
    loop {
        carry_out(store, lead, &mut view, &mut touched).await?;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = renew.tick() => {
                if store.lead(candidate, LEAD_TTL).await?.as_ref() != Some(lead) {
                    return Ok(());
                }
                // Deadlines, and turns that have come.
                touched.vms.extend(view.moves.keys());
                if Instant::now() >= housekeeping_at {
                    housekeeping_at = Instant::now() + HOUSEKEEPING;
                    crate::app::housekeeping(store, Some(&still_leading(lead))).await?;
                }
            }
            _ = beat.tick() => for txn in pulse.look(&view, Instant::now(), jiff::Timestamp::now()) {
                store.txn(txn.when(still_leading(lead))).await?;
            },
            batch = watch.recv() => take_in(&mut view, &mut touched, batch.unwrap_or_else(|| Err(closed()))?, &mut watch)?,
        }
    }
}

fn still_leading(lead: &Leadership) -> Compare {
    Compare::ModifiedAt(lead.key.clone(), lead.revision)
}

fn closed() -> StoreError {
    StoreError::Unavailable("the watch was closed".into())
}

/// Takes in a batch and all that wait behind it, so that one look serves many changes.
fn take_in(view: &mut ClusterView, touched: &mut Touched, first: WatchBatch, watch: &mut Watch) -> Result<(), StoreError> {
    view.apply(first.revision, &first.changes, touched);
    while let Ok(next) = watch.try_recv() {
        let batch = next?;
        view.apply(batch.revision, &batch.changes, touched);
    }
    Ok(())
}

/// Everything that what was touched asks for. What is written comes back by the watch and is looked at again.
async fn carry_out(store: &dyn Store, lead: &Leadership, view: &mut ClusterView, touched: &mut Touched) -> Result<(), StoreError> {
    for (vm, txn) in plan(view, touched, jiff::Timestamp::now()) {
        match (store.txn(txn.when(still_leading(lead))).await, vm) {
            (Ok(outcome), Some(vm)) if outcome.held == Held::No => view.give_back(vm),
            (Ok(_), _) => {}
            // It would fail again after a new listing, and the other objects must not wait for it.
            (Err(error @ (StoreError::TooLarge(_) | StoreError::Invalid(_))), vm) => {
                tracing::error!(%error, "one write of the leader was left out");
                vm.into_iter().for_each(|vm| view.give_back(vm));
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(())
}

/// The writes that what was touched asks for, each with the VM whose owner it writes. A node that was chosen counts as
/// taken at once: else all VMs of one look would get the same one.
pub fn plan(view: &mut ClusterView, touched: &mut Touched, now: jiff::Timestamp) -> Vec<(Option<VmId>, Txn)> {
    let mut txns = Vec::new();
    if let Some(recovery) = &view.recovery {
        // All are looked at again when it is over.
        touched.vms.clear();
        txns.extend(recovery::next(view, recovery).into_iter().map(|txn| (None, txn)));
    }
    for id in std::mem::take(&mut touched.vms) {
        for txn in vm::next(view, id, now) {
            let owner = vm::owner_written(id, &txn);
            owner.iter().for_each(|owner| view.take_seat(owner));
            txns.push((owner.map(|_| id), txn));
        }
    }
    txns.extend(view.drains.keys().filter_map(|node| Some((None, drain::next(view, node, now)?))));
    txns.extend(touched.tasks.iter().filter_map(|(node, op)| Some((None, task::next(view, node, *op, now)?))));
    txns.extend(touched.nodes_with_events.iter().filter_map(|node| Some((None, task::file_events(view, node)?))));
    let joiners = touched.joiners.iter().filter(|node| !view.joined.contains(*node));
    txns.extend(joiners.map(|node| (None, task::enter(node))));
    touched.clear();
    txns
}

#[cfg(test)]
mod tests;
