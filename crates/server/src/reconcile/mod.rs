//! The leader's loop: one view of the cluster, a pure planner, and writes under the leader's compare.
//!
//! ```text
//!  store watch ──► ClusterView ──touched──► vm::next / drain::next / deletion::next / task::next / file_events ──► Txn + leader compare ──► store
//!       ▲                                                                                                                    │
//!       └────────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! It takes no input but the store, does the same thing twice without harm, and never retries inside: a compare that fails
//! means that somebody wrote, and the next batch wakes it again. Leadership lost, watch broken or compacted: it starts over
//! from a listing.

mod brought;
pub mod deletion;
pub mod drain;
pub mod ha;
mod intake;
mod marks;
pub mod migrate;
pub mod pulse;
pub mod recovery;
pub mod task;
pub mod view;
pub mod vm;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vmkeep_core::ha::timers::Timers;
use vmkeep_core::ha::vigil::{PowerIs, WritesAre};
use vmkeep_store::{Compare, Held, Leadership, Store, StoreError, Txn, WatchBatch};
use vmkeep_types::ids::{OperationId, VmId};
use vmkeep_types::name::Name;

use brought::Notes;
use ha::Desk;
use intake::Intake;
use pulse::Pulse;
use view::{ClusterView, Touched};

/// Writes on their way at once: etcd makes its disk sure once for all that come together, and one after the other each waits for it.
const WRITES_AT_ONCE: usize = 64;
/// Between two looks for deadlines.
const TURNS: Duration = Duration::from_secs(3);
/// VMs that are looked at between two looks at the nodes: those must not wait until 20 000 VMs have had their turn.
const VMS_PER_LOOK: usize = 256;
/// Wait before another try when the store refuses, or leading ended.
const REST: Duration = Duration::from_secs(1);
/// While somebody else leads: nobody does from the end of its lease to the next question.
const LED_BY_ANOTHER: Duration = Duration::from_millis(250);
/// Housekeeping of old operations and events: for the first time, when what is waited for was done, and then. A daemon that is restarted
/// often would else never come to it.
const HOUSEKEEPING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// Leads whenever it can, until shutdown; hears the nodes all the time.
pub async fn run(store: Arc<dyn Store>, candidate: Name, desk: Arc<Desk>, shutdown: CancellationToken) {
    let ears = tokio::spawn(ha::ears::run(store.clone(), desk.clone(), candidate.clone(), shutdown.clone()));
    lead_when_it_can(&store, &candidate, &desk, &shutdown).await;
    let _ = ears.await;
}

async fn lead_when_it_can(store: &Arc<dyn Store>, candidate: &Name, desk: &Arc<Desk>, shutdown: &CancellationToken) {
    while !shutdown.is_cancelled() {
        let mut rest = REST;
        match store.lead(candidate.as_str(), lasts(desk)).await {
            Ok(Some(lead)) => {
                tracing::info!(%candidate, "leads");
                let ended = lead_until_it_ends(store, candidate, &lead, desk, shutdown).await;
                if let Err(error) = ended {
                    tracing::warn!(%error, "leading ended; starting over from a listing");
                }
                if shutdown.is_cancelled() {
                    let _ = store.resign(&lead).await;
                    return;
                }
            }
            Ok(None) => rest = LED_BY_ANOTHER,
            Err(error) => tracing::warn!(%error, "cannot ask for leadership"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// The lease is renewed by a task of its own, however long the work computes; a leader that lost it writes nothing any more.
async fn lead_until_it_ends(
    store: &Arc<dyn Store>,
    candidate: &Name,
    lead: &Leadership,
    desk: &Arc<Desk>,
    shutdown: &CancellationToken,
) -> Result<(), StoreError> {
    let keeper = AbortOnDropHandle::new(tokio::spawn(keep_leading(store.clone(), candidate.clone(), lead.clone(), desk.clone())));
    let _housekeeper = AbortOnDropHandle::new(tokio::spawn(keep_house(store.clone(), lead.clone())));
    tokio::select! {
        ended = keeper => Err(ended.unwrap_or_else(|stopped| StoreError::Unavailable(format!("its lease is not renewed: {stopped}")))),
        ended = decide(store.as_ref(), lead, desk, shutdown) => ended,
    }
}

/// How long leadership lasts without being renewed: a leader that dies with its host must not hold up what follows from that.
fn lasts(desk: &Desk) -> Duration {
    Duration::from_millis(desk.timers().lease_ms)
}

/// Until somebody else leads, or nobody knows, or the cluster's profile wants another lease.
async fn keep_leading(store: Arc<dyn Store>, candidate: Name, lead: Leadership, desk: Arc<Desk>) -> StoreError {
    let ttl = lasts(&desk);
    let mut renew = interval(ttl / 3);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed_at = Instant::now();
    loop {
        renew.tick().await;
        if lasts(&desk) != ttl {
            let resigned = store.resign(&lead).await;
            return resigned
                .err()
                .unwrap_or_else(|| StoreError::Unavailable("the cluster has another profile: leading begins anew".into()));
        }
        match store.lead(candidate.as_str(), ttl).await {
            Ok(Some(now)) if now == lead => renewed_at = Instant::now(),
            Ok(_) => return StoreError::Unavailable("its lease ran out".into()),
            // Until then nobody else can have it, and each write compares it.
            Err(error) if renewed_at.elapsed() < ttl => tracing::warn!(%error, "the leader's lease is not renewed"),
            Err(error) => return error,
        }
    }
}

/// Beside the decisions: in a large cluster it reads much.
async fn keep_house(store: Arc<dyn Store>, lead: Leadership) {
    tokio::time::sleep(HOUSEKEEPING.0).await;
    loop {
        if let Err(error) = crate::app::housekeeping(store.as_ref(), Some(&still_leading(&lead))).await {
            tracing::warn!(%error, "old operations and events stay for another hour");
        }
        tokio::time::sleep(HOUSEKEEPING.1).await;
    }
}

async fn decide(store: &dyn Store, lead: &Leadership, desk: &Arc<Desk>, shutdown: &CancellationToken) -> Result<(), StoreError> {
    let (mut view, mut touched) = (ClusterView::default(), Touched::default());
    let revision = store.visit(&view::PREFIXES, &mut |part| view.begin(&part, &mut touched)).await?;
    let mut intake = Intake::new(store.watch("", revision.next()).await?);
    view.begun(revision, &mut touched);
    tracing::info!(vms = view.vms.len(), nodes = view.nodes.len(), "has listed the cluster");
    let mut turns = interval(TURNS);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::default();
    let mut beat_at = Instant::now();
    loop {
        intake.meanwhile(carry_out(store, lead, &mut view, &mut touched)).await?;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = turns.tick() => {
                // Deadlines, and turns that have come.
                touched.vms.extend(view.moves.keys().chain(view.memories.keys()));
                let asked = ha::arm::look(&mut view, &mut touched, jiff::Timestamp::now());
                intake.meanwhile(write_all(store, lead, asked)).await?;
            }
            () = sleep_until(beat_at) => {
                beat_at = Instant::now() + Duration::from_millis(Timers::of(view.ha_settings.profile).tick_ms);
                let states = pulse.look(&view, Instant::now(), jiff::Timestamp::now());
                intake.meanwhile(write_all(store, lead, states.into_iter().chain(marks::look(&view)))).await?;
                intake.meanwhile(look_after_nodes(store, lead, &mut view, desk)).await?;
            }
            () = std::future::ready(()), if !touched.is_empty() => {}
            batch = intake.next() => take_in(&mut view, &mut touched, batch?, &mut intake)?,
        }
    }
}

/// Who is dead, and which of their VMs get another node now.
async fn look_after_nodes(store: &dyn Store, lead: &Leadership, view: &mut ClusterView, desk: &Arc<Desk>) -> Result<(), StoreError> {
    let now = jiff::Timestamp::now();
    let todo = desk.look(view, now);
    let ahead = ha::rescue::ahead(view, now);
    let going = ha::farewell::look(view, now);
    let (arrived, trimmed) = (ha::rescue::arrived(view, now), ha::rescue::trim(view, now));
    write_all(store, lead, todo.txns.into_iter().chain(going).chain(ahead).chain(arrived).chain(trimmed)).await?;
    for node in todo.pings {
        let address = view.nodes.get(&node).and_then(|keys| keys.facts.as_ref()?.value.address.clone());
        let desk = desk.clone();
        tokio::spawn(async move {
            if let Some(address) = address
                && ha::ears::answers(&address).await
            {
                desk.pong(&node);
            }
        });
    }
    for (node, epoch) in todo.cuts {
        let desk = desk.clone();
        tokio::spawn(async move {
            let cut = desk.levers().power.cut(&node, epoch).await;
            let power =
                cut.inspect_err(|why| tracing::error!(%node, why, "its power is not cut")).map_or(PowerIs::Unknown, |()| PowerIs::Off);
            desk.power_cut(&node, epoch, power);
        });
    }
    for (node, epoch, pools) in todo.refusals {
        let desk = desk.clone();
        tokio::spawn(async move {
            let storage = desk.levers().storage.clone();
            let refusing = pools.iter().map(|pool| storage.refuse(&node, epoch, pool));
            let refused = try_join_all(refusing).await;
            let writes = refused
                .inspect_err(|why| tracing::error!(%node, why, "the storage does not refuse it"))
                .map_or(WritesAre::Unknown, |_| WritesAre::Refused);
            desk.writes_refused(&node, epoch, writes);
        });
    }
    rescue(store, lead, view, desk).await
}

async fn rescue(store: &dyn Store, lead: &Leadership, view: &mut ClusterView, desk: &Desk) -> Result<(), StoreError> {
    let rescued = desk.rescue(view, jiff::Timestamp::now());
    rescued.iter().filter_map(|(vm, txn)| vm::owner_written(*vm, txn)).for_each(|owner| view.take_seat(&owner));
    write_each(store, lead, view, rescued.into_iter().map(|(vm, txn)| (Whose::Seat(vm), txn))).await
}

/// Writes that do not wait for one another: when the network between a thousand nodes breaks, each of them has one.
async fn write_all(store: &dyn Store, lead: &Leadership, txns: impl IntoIterator<Item = Txn>) -> Result<(), StoreError> {
    let writes = txns.into_iter().map(|txn| store.txn(txn.when(still_leading(lead))));
    stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).try_for_each(|_| std::future::ready(Ok(()))).await
}

fn still_leading(lead: &Leadership) -> Compare {
    Compare::ModifiedAt(lead.key.clone(), lead.revision)
}

/// Takes in a batch and all that wait behind it, so that one look serves many changes.
fn take_in(view: &mut ClusterView, touched: &mut Touched, first: WatchBatch, intake: &mut Intake) -> Result<(), StoreError> {
    view.apply(first.revision, &first.changes, touched);
    while let Some(next) = intake.at_hand() {
        let batch = next?;
        view.apply(batch.revision, &batch.changes, touched);
    }
    Ok(())
}

/// Whom a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// It writes who owns this VM: the seat counts as taken while the write is on its way.
    Seat(VmId),
    /// It goes on with this VM.
    Vm(VmId),
    /// A drain's, a node's, an image's or a network's.
    Other,
}

/// Everything that what was touched asks for. What is written comes back by the watch and is looked at again. Each write compares
/// what it was decided from, so it does not matter which of them comes first.
async fn carry_out(store: &dyn Store, lead: &Leadership, view: &mut ClusterView, touched: &mut Touched) -> Result<(), StoreError> {
    let planned = plan(view, touched, jiff::Timestamp::now());
    write_each(store, lead, view, planned).await
}

/// Writes, each with whom it is for: one that comes to nothing gives the seat back, and its VM is looked at again when it is known who
/// wrote first.
async fn write_each(
    store: &dyn Store,
    lead: &Leadership,
    view: &mut ClusterView,
    txns: impl IntoIterator<Item = (Whose, Txn)>,
) -> Result<(), StoreError> {
    let writes = txns.into_iter().map(|(whose, txn)| async move { (whose, store.txn(txn.when(still_leading(lead))).await) });
    let mut written = stream::iter(writes).buffer_unordered(WRITES_AT_ONCE);
    while let Some((whose, outcome)) = written.next().await {
        let forestalled = match outcome {
            Ok(outcome) if outcome.held == Held::No => true,
            Ok(_) => continue,
            // It would fail again after a new listing, and the other objects must not wait for it.
            Err(error @ (StoreError::TooLarge(_) | StoreError::Invalid(_))) => {
                tracing::error!(%error, "one write of the leader was left out");
                false
            }
            Err(error) => return Err(error),
        };
        if let Whose::Seat(vm) = whose {
            view.give_back(vm);
        }
        if let Whose::Seat(vm) | Whose::Vm(vm) = whose
            && forestalled
        {
            view.look_again(vm);
        }
    }
    Ok(())
}

/// The writes that what was touched asks for, each with whom it is for; of VMs [`VMS_PER_LOOK`] at most, those first that
/// changes name, the others stay touched. A node that was chosen counts as taken at once: else all VMs of one look would get the same one.
pub fn plan(view: &mut ClusterView, touched: &mut Touched, now: jiff::Timestamp) -> Vec<(Whose, Txn)> {
    let mut txns = Vec::new();
    if let Some(recovery) = &view.recovery {
        // All are looked at again when it is over.
        touched.forget_vms();
        txns.extend(recovery::next(view, recovery).into_iter().map(|txn| (Whose::Other, txn)));
    }
    if touched.homeless {
        touched.busy.extend(view.fleet().homeless().map(|guest| guest.id));
    }
    let (mut for_now, mut notes) = (Vec::new(), Notes::default());
    for id in touched.next_vms(VMS_PER_LOOK) {
        for txn in vm::next(view, id, now) {
            let owner = vm::owner_written(id, &txn);
            owner.iter().for_each(|owner| view.take_seat(owner));
            if let Some(node) = ha::arm::asked(&txn).filter(|_| owner.is_none()) {
                view.expect(id, &node);
                for_now.push(id);
            }
            let whose = owner.map_or(Whose::Vm(id), |_| Whose::Seat(id));
            if !notes.add(&mut txns, whose, txn) {
                for_now.push(id);
                view.look_again(id);
            }
        }
    }
    // Whoever asks a node to arm, or comes after another, has it in this look only.
    for_now.into_iter().for_each(|id| view.give_back(id));
    txns.extend(view.drains.keys().filter_map(|node| Some((Whose::Other, drain::next(view, node, now)?))));
    let of_deletion = |op: &OperationId| view.ops.get(op).is_some_and(|op| deletion::is_one(&op.value));
    let (deletions, tasks): (Vec<_>, Vec<_>) = touched.tasks.iter().partition(|(_, op)| of_deletion(op));
    let deletions: BTreeSet<OperationId> = deletions.into_iter().map(|(_, op)| *op).chain(touched.deletions.iter().copied()).collect();
    txns.extend(deletions.into_iter().flat_map(|op| deletion::next(view, op, now)).map(|txn| (Whose::Other, txn)));
    txns.extend(tasks.into_iter().filter_map(|(node, op)| Some((Whose::Other, task::next(view, node, *op, now)?))));
    txns.extend(touched.nodes_with_events.iter().filter_map(|node| Some((Whose::Other, task::file_events(view, node)?))));
    let joiners = touched.joiners.iter().filter(|node| !view.joined.contains(*node));
    txns.extend(joiners.map(|node| (Whose::Other, task::enter(node))));
    touched.clear_all_but_vms();
    txns
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod together;
