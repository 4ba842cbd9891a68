//! Questions about placement: why there, how much room, what would fit, what should move. All read, none writes.
//!
//! ```text
//!  cache (it follows the store), or one listing and each node's facts ──► ClusterView ──► Fleet ──► core::place
//! ```
//! The same view as the leader's, so that an answer is what the leader would do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vmkeep_api::place::{
    BalanceAnswer, CapacityAnswer, CapacityBreak, CpuBaseline, CpuStranger, LargestVm, NodeRoom, NodeVerdict, PlacementAnswer,
    ProposedMove, SimulateAnswer, SimulateBreak, SimulateRequest,
};
use vmkeep_core::migrate::check::{hindrances, local_disks};
use vmkeep_core::place::{self, Fleet, Guest, Refusal, balance, baseline, capacity, cpu, simulate};
use vmkeep_store::{KeyValue, Store, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Code, Error, Problem};
use vmkeep_types::ids::{Revision, VmId};
use vmkeep_types::manifest;
use vmkeep_types::migration::Travel;
use vmkeep_types::name::Name;
use vmkeep_types::node::NodeLoad;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::{Nic, VmSpec};

use super::{list_readable, node, store_error, uid_of, vm_migrate};
use crate::cache::Cache;
use crate::reconcile::migrate::baggage;
use crate::reconcile::view::ClusterView;

/// Kinds of VMs in one simulation.
const SIMULATED_MAX: usize = 100;

/// What placement and high availability are decided from, beside [`OF_NODES`].
const PREFIXES: [&str; 14] = [
    keys::ALL_VMS,
    keys::ALL_CHOICES,
    keys::ALL_POWER,
    keys::ALL_OWNERS,
    keys::ALL_VOLUMES,
    keys::ALL_NETWORKS,
    keys::ALL_POOLS,
    keys::ALL_NODE_RECORDS,
    keys::ALL_STATES,
    keys::ALL_STONITH,
    keys::ALL_IMAGES,
    keys::ALL_FENCES,
    keys::ALL_CONFIRMED,
    keys::ALL_HA,
];

/// Under `n/NODE/` lie the orders and reports of every VM too; of those only this is read.
const OF_NODES: [&str; 5] = ["facts", "epoch", "leaving", "armed", "waiting"];

/// Is it one of the keys that they are decided from?
pub fn matters(key: &str) -> bool {
    match key.strip_prefix(keys::ALL_NODES) {
        Some(rest) => rest.split('/').nth(1).is_some_and(|part| OF_NODES.contains(&part)),
        None => PREFIXES.iter().any(|prefix| key.starts_with(prefix)),
    }
}

/// All that they are decided from; what nodes say may be newer than the revision.
pub async fn parts(store: &dyn Store) -> Result<(Revision, Vec<KeyValue>), Error> {
    let listing = store.list_many(&PREFIXES).await.map_err(store_error)?;
    let mut items: Vec<KeyValue> = listing.items;
    let nodes = node::names(store).await?;
    let lives = node::lives(store, &nodes).await?;
    items.extend(lives.into_iter().flat_map(|life| [Some(life.epoch), life.armed]).flatten());
    for key in [keys::facts, keys::leaving, keys::waiting] {
        items.extend(node::key_of_each(store, &nodes, key).await?.into_iter().flatten());
    }
    Ok((listing.revision, items))
}

/// Read anew: for whoever has no [`crate::cache::Cache`], or one that is behind.
pub async fn view(store: &dyn Store) -> Result<ClusterView, Error> {
    let (revision, items) = parts(store).await?;
    Ok(ClusterView::new(revision, &items).0)
}

pub async fn explain(store: &dyn Store, cache: &Cache, project: &Name, name: &Name) -> Result<PlacementAnswer, Error> {
    let id: VmId = uid_of(store, "vm", project, name).await?;
    let fleet = cache.fleet(store).await?;
    let guest = fleet.guest(id).ok_or_else(|| Error::not_found("vm", name))?;
    let verdicts = place::explain(&fleet, guest);
    let choice = verdicts.first().filter(|best| best.fits.is_ok()).map(|best| best.node.clone());
    let nodes = verdicts.into_iter().map(|v| verdict(v.node, v.fits)).collect();
    Ok(PlacementAnswer { vm: name.clone(), node: fleet.owner(id).cloned(), choice, nodes })
}

fn verdict(node: Name, fits: Result<place::Score, Refusal>) -> NodeVerdict {
    match fits {
        Ok(score) => NodeVerdict { node, fits: true, text: score.to_string() },
        Err(refusal) => NodeVerdict { node, fits: false, text: refusal.to_string() },
    }
}

pub async fn capacity(store: &dyn Store, cache: &Cache) -> Result<CapacityAnswer, Error> {
    let fleet = cache.fleet(store).await?;
    // Seconds of work in a large cluster: not on a thread that serves others.
    tokio::task::spawn_blocking(move || answer_capacity(&fleet)).await.map_err(|e| Error::internal(format!("the count failed: {e}")))
}

fn answer_capacity(fleet: &Fleet) -> CapacityAnswer {
    let found = capacity::capacity(fleet);
    let room = |seat: &place::Seat| {
        let limits = fleet.limits(seat);
        NodeRoom {
            node: seat.name.clone(),
            vms: seat.taken.vms,
            memory_taken: ByteCount::from_bytes(seat.taken.memory),
            memory_limit: limits.memory.map(ByteCount::from_bytes),
            vcpus_taken: seat.taken.vcpus,
            vcpus_limit: limits.vcpus,
        }
    };
    CapacityAnswer {
        vms: found.vms,
        homeless: found.homeless,
        bound: found.bound,
        may_fail: found.may_fail,
        all_tried: found.all_tried,
        breaks: found.breaks.map(|b| CapacityBreak { failed: b.failed, left_over: b.left_over }),
        largest: found.largest.map(|l| LargestVm { node: l.node, memory: l.memory, vcpus: l.vcpus }),
        nodes: fleet.seats().map(room).collect(),
        cpu: Some(cpu_baseline(fleet)),
    }
}

fn cpu_baseline(fleet: &Fleet) -> CpuBaseline {
    let (model, features, why_not) = match baseline::baseline(fleet.seats().map(|seat| &seat.facts)) {
        Ok(common) => (Some(common.model), common.features.into_iter().collect(), None),
        Err(why) => (None, Vec::new(), Some(why)),
    };
    let told = |found: cpu::Stranger| CpuStranger { node: found.node, vms: found.vms, text: found.lack.to_string() };
    CpuBaseline { model, features, why_not, strangers: cpu::strangers(fleet).into_iter().map(told).collect() }
}

pub async fn simulate(store: &dyn Store, cache: &Cache, project: &Name, request: SimulateRequest) -> Result<SimulateAnswer, Error> {
    if request.add.len() > SIMULATED_MAX {
        return Err(Error::new(Code::TooLarge, format!("{} kinds of VMs; the limit is {SIMULATED_MAX}", request.add.len())));
    }
    let wanted = request.add.iter().fold(0_u32, |sum, vms| sum.saturating_add(vms.count));
    if wanted > simulate::VMS_MAX {
        return Err(Error::new(Code::TooLarge, format!("{wanted} VMs in one simulation; the limit is {}", simulate::VMS_MAX)));
    }
    let seen = cache.view(store).await?;
    let mut kinds = Vec::new();
    for (n, vms) in request.add.into_iter().enumerate() {
        let at = |p: Problem| Problem { field: format!("add[{n}].spec.{}", p.field), ..p };
        let spec = manifest::vm_from_json(vms.spec).map_err(|e| Error { problems: e.problems.into_iter().map(at).collect(), ..e })?;
        let spec = check::normalize(spec);
        let unknown: Vec<Problem> = unknown_networks(&seen, project, &spec).into_iter().map(at).collect();
        if !unknown.is_empty() {
            return Err(Error { problems: unknown, ..Error::invalid("a VM to be simulated is on a network that there is not") });
        }
        kinds.push((seen.planned(VmId(uuid::Uuid::nil()), project.clone(), &spec), vms.count));
    }
    let kept = seen.snapshot();
    // Whoever keeps it may go on changing it in place.
    drop(seen);
    let run = move || {
        let mut fleet = Arc::unwrap_or_clone(kept);
        let may_fail_before = capacity::capacity(&fleet).may_fail;
        let mut answer = SimulateAnswer { wanted, placed: 0, by_node: BTreeMap::new(), broken: None, may_fail_before, may_fail_after: 0 };
        for (guest, count) in &kinds {
            let outcome = simulate::add(&mut fleet, guest, *count);
            answer.placed += outcome.placed;
            for (node, count) in outcome.by_node {
                *answer.by_node.entry(node).or_default() += count;
            }
            if let Some((vm, why)) = outcome.broken {
                let nodes = why.into_iter().map(|(node, why)| verdict(node, Err(why))).collect();
                answer.broken = Some(SimulateBreak { vm, nodes });
                break;
            }
        }
        answer.may_fail_after = capacity::capacity(&fleet).may_fail;
        answer
    };
    tokio::task::spawn_blocking(run).await.map_err(|e| Error::internal(format!("the simulation failed: {e}")))
}

fn unknown_networks(view: &ClusterView, project: &Name, spec: &VmSpec) -> Vec<Problem> {
    let nics = spec.nics.iter().filter(|nic| view.network_by_name(project, &nic.network).is_none());
    let told =
        |nic: &Nic| Problem { field: format!("nics[{}].network", nic.name), message: Error::not_found("network", &nic.network).message };
    nics.map(told).collect()
}

pub async fn balance(store: &dyn Store, cache: &Cache) -> Result<BalanceAnswer, Error> {
    let fleet = cache.fleet(store).await?;
    let now = jiff::Timestamp::now();
    let nodes: Vec<Name> = fleet.seats().map(|seat| seat.name.clone()).collect();
    let found = node::key_of_each(store, &nodes, keys::load).await?;
    let loads = nodes.into_iter().zip(found).filter_map(|(node, kv)| Some((node, typed::readable(typed::decode::<NodeLoad>(&kv?))?)));
    let fresh = |(_, load): &(Name, NodeLoad)| now.duration_since(load.at).as_secs() < balance::STALE_SECONDS;
    let loads: BTreeMap<Name, NodeLoad> = loads.filter(fresh).collect();
    let resting = recently_moved(store, now).await?;
    let view = cache.view(store).await?;
    let measured = loads.values().flat_map(|load| load.vms.keys());
    let carried = measured.filter_map(|id| Some((*id, carried(&view, *id)?))).collect();
    let known = balance::Known { resting, carried };
    let moves = balance::propose(&fleet, &loads, &known, &balance::Policy::default());
    let told = |found: balance::Move| {
        let guest = fleet.guest(found.vm)?;
        Some(ProposedMove {
            vm: guest.name.clone(),
            project: guest.project.clone(),
            from: found.from,
            to: found.to,
            gain: found.gain,
            from_before: found.from_before,
            from_after: found.from_after,
            to_before: found.to_before,
            to_after: found.to_after,
        })
    };
    let not_measured = fleet.seats().map(|seat| &seat.name).filter(|node| !loads.contains_key(*node)).cloned().collect();
    Ok(BalanceAnswer { moves: moves.into_iter().filter_map(told).collect(), pressure: balance::pressures(&fleet, &loads), not_measured })
}

/// What goes along with a VM that moves while it runs. A disk counts as large as the guest sees it: how full it is, its node knows.
fn carried(view: &ClusterView, id: VmId) -> Option<balance::Carried> {
    let vm = &view.vms.get(&id)?.value;
    let choices = view.choices.get(&id).map(|kept| kept.value.clone()).unwrap_or_default();
    let baggage = baggage(view, vm, &choices);
    if !hindrances(&baggage, Travel::Running).is_empty() {
        return Some(balance::Carried::Bound);
    }
    let local = local_disks(&baggage);
    let of_image = |image| Some(view.images.get(&image)?.value.facts.as_ref()?.virtual_size);
    let size = |volume: &VolumeRecord| volume.size.or_else(|| of_image(volume.image?)).map_or(0, ByteCount::bytes);
    let disks = baggage.disks.iter().filter(|(disk, _, _)| local.contains(*disk));
    Some(balance::Carried::Disks(ByteCount::from_bytes(disks.map(|(_, volume, _)| size(volume)).sum())))
}

/// VMs that were given another node within the cool-down.
async fn recently_moved(store: &dyn Store, now: jiff::Timestamp) -> Result<BTreeSet<VmId>, Error> {
    let ops = list_readable::<Operation>(store, keys::ALL_OPS).await?.into_iter().map(|stored| stored.value);
    let recent = |op: &Operation| op.ended_at.is_none_or(|at| now.duration_since(at).as_secs() < balance::COOL_DOWN_SECONDS);
    let moved = ops.filter(|op| op.kind == vm_migrate::KIND && op.state != OpState::Failed && recent(op));
    Ok(moved.map(|op| VmId(op.resource.uid)).collect())
}

/// What `specs` do to the room that is kept for a failed node; None: nothing, or there was none.
pub async fn takes_reserve(store: &dyn Store, cache: &Cache, project: &Name, specs: &[&VmSpec]) -> Result<Option<String>, Error> {
    if specs.is_empty() || node::first_names(store, 2).await?.len() < 2 {
        return Ok(None);
    }
    let seen = cache.view(store).await?;
    let mut after = Fleet::clone(seen.fleet());
    for (n, spec) in specs.iter().enumerate() {
        let wish = check::normalize((*spec).clone());
        let there = after.guests().find(|guest| guest.project == *project && guest.name == spec.name).cloned();
        let new = seen.planned(VmId(uuid::Uuid::from_u128(n as u128)), project.clone(), &wish);
        let guest = match there {
            Some(old) => {
                let mut need = new.need;
                (need.accel, need.home) = (old.need.accel, old.need.home);
                Guest { need, labels: new.labels, ..old }
            }
            None => new,
        };
        let id = guest.id;
        after.set_guest(guest);
        let homeless = after.owner(id).is_none();
        if let (true, Some(place::Choice::Node(node))) = (homeless, after.guest(id).map(|guest| place::choose(&after, guest))) {
            after.set_owner(id, Some(&node));
        }
    }
    // Mostly there is room enough, and how it was before need not be known.
    let left = may_fail(Arc::new(after)).await?;
    if left == capacity::FAILURES_MAX || may_fail(cache.fleet(store).await?).await? <= left {
        return Ok(None);
    }
    let may = if left == 0 { "no node may fail any more" } else { "only one node may fail, and no longer two," };
    Ok(Some(format!("with this, {may} with everything still fitting on the others (vmkeep cluster capacity)")))
}

async fn may_fail(fleet: Arc<Fleet>) -> Result<usize, Error> {
    let counted = tokio::task::spawn_blocking(move || capacity::may_fail_at_a_glance(Arc::unwrap_or_clone(fleet))).await;
    counted.map_err(|e| Error::internal(format!("the count failed: {e}")))
}
