//! High availability as people ask for it: how it stands, what would happen, what happened, switching it off, and a person's word
//! that a node is dead.
//!
//! ```text
//!  confirm-dead NODE ─► silent, by the leader's word ─► one Txn: heartbeat unchanged ─► fence/N/E and confirmed/N/E
//! ```
//! What is shown is computed from the same view that the leader decides from.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmkeep_api::ha::{
    ConfirmDead, HaBrake, HaChange, HaCheck, HaDisarm, HaForecast, HaHistory, HaIncident, HaNode, HaNodeState, HaStatus, HaTimers,
    HaWaiting,
};
use vmkeep_core::ha::brake::{self, Brake};
use vmkeep_core::ha::record;
use vmkeep_core::ha::timers::{Profile, Timers};
use vmkeep_core::place::Fleet;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ha::{Armed, Confirmed, Disarm, DisarmMode, Fence, HaSettings, Incident, Parting, Proof, Rescue, WatchdogKind};
use vmkeep_types::host::{EpochRecord, NodeHealth, NodeState};
use vmkeep_types::ids::{Epoch, Revision};
use vmkeep_types::name::Name;
use vmkeep_types::record::VmRecord;

use super::cluster::members;
use super::{Ask, TRIES_MAX, commit, get, ha_profile, node, store_error, uid_of, upgrade};
use crate::cache::Cache;
use crate::metrics::HaNumbers;
use crate::reconcile::ha::rescue;
use crate::reconcile::view::{ClusterView, NodeKeys};

/// Of a host in no cluster, the only one that its store knows.
const ALONE: &str = "this host is alone: its watchdog is left to others, and no host is there that would start its VMs again. A VM with `ha` runs \
                     like any other here; `vmkeep cluster init`, and hosts that join, make it highly available";

/// From the proof to the first start elsewhere, ms: the leader looks each second.
const PLACED_MS: u64 = 2_000;

pub async fn status(store: &dyn Store, cache: &Cache) -> Result<HaStatus, Error> {
    let view = cache.view(store).await?;
    let leader = store.get(keys::LEADER).await.map_err(store_error)?.and_then(|kv| typed::decode::<String>(&kv).ok());
    let lost = rescue::queue(&view);
    let fleet = rescue::homeless(&view, &lost);
    let waiting = |lost: &rescue::Lost<'_>| HaWaiting {
        project: lost.vm.value.project.clone(),
        vm: lost.vm.value.spec.name.clone(),
        from: lost.owner.value.node.clone(),
        priority: lost.priority(),
        why: waits_for(&view, &fleet, lost),
    };
    let mut nodes: Vec<HaNode> = view.nodes.iter().map(|(name, keys)| shown(&view, name, keys)).collect();
    let alone = (nodes.len() == 1 && members(store).await?.is_empty()).then(|| ALONE.to_owned());
    if alone.is_some() {
        nodes.iter_mut().for_each(|node| node.proof = "its VMs wait until it is back, and start then as their `run` says".into());
    }
    Ok(HaStatus {
        leader,
        disarmed: view.disarmed.as_ref().map(|kept| kept.value.clone()),
        alone,
        settings: view.ha_settings.clone(),
        timers: timers(&Timers::of(view.ha_settings.profile)),
        brake: brake(&nodes),
        problems: problems(&view),
        nodes,
        queue: lost.iter().map(waiting).collect(),
    })
}

fn waits_for(view: &ClusterView, fleet: &Fleet, lost: &rescue::Lost<'_>) -> String {
    if view.disarmed.is_some() {
        return "high availability is disarmed".into();
    }
    match rescue::elsewhere(view, fleet, &lost.vm.value, &lost.owner.value.node) {
        Ok(node) => format!("its turn comes; it goes to {node}"),
        Err(why) => why,
    }
}

/// By the same rule as the leader, and the states that it has told.
fn brake(nodes: &[HaNode]) -> HaBrake {
    let lives = |node: &&HaNode| !matches!(node.state, HaNodeState::Away | HaNodeState::Dead);
    let silent = nodes.iter().filter(|node| matches!(node.state, HaNodeState::Silent | HaNodeState::Sealed)).count();
    let live = nodes.iter().filter(lives).count();
    HaBrake { silent, live, limit: brake::limit(live), why: Brake::of(silent, live).words(silent, live) }
}

/// Where the cluster's profile does not fit any more.
fn problems(view: &ClusterView) -> Vec<String> {
    let profile = view.ha_settings.profile;
    let facts = view.nodes.values().filter_map(|keys| keys.facts.as_ref());
    let slow = facts.filter_map(|facts| ha_profile::too_slow(profile, &facts.value)).map(|why| format!("{why}; it stays with standard"));
    let crowd = ha_profile::crowd(profile, view.nodes.values().filter(|keys| keys.facts.is_some()).count());
    crowd.map(|why| format!("{why}: vmkeep ha set --profile standard")).into_iter().chain(slow).collect()
}

fn timers(timers: &Timers) -> HaTimers {
    HaTimers {
        renew_ms: timers.renew_ms,
        seal_ms: timers.seal_ms,
        kill_ms: timers.kill_ms,
        pet_ms: timers.pet_ms,
        watchdog_ms: timers.watchdog_ms,
        safe_ms: timers.safe_ms,
        inequality: timers.inequality(),
    }
}

fn shown(view: &ClusterView, name: &Name, keys: &NodeKeys) -> HaNode {
    let life = keys.life.as_ref().map(|life| &life.value);
    let of = life.map(|life| (name.clone(), life.epoch));
    let confirmed = of.as_ref().and_then(|of| view.confirmed.get(of)).map(|kept| kept.value.clone());
    let health = view.states.get(name).map(|kept| kept.value.clone());
    let silent = health.as_ref().is_some_and(|health| health.state != NodeHealth::Online);
    let state = match life {
        None => HaNodeState::Away,
        Some(life) if life.closed => HaNodeState::Away,
        Some(_) if keys.waiting => HaNodeState::Waiting,
        Some(_) if confirmed.is_some() => HaNodeState::Dead,
        Some(_) if of.is_some_and(|of| view.fences.contains_key(&of)) => HaNodeState::Sealed,
        Some(_) if silent => HaNodeState::Silent,
        Some(_) if view.departure(name).is_some() => HaNodeState::Leaving,
        Some(_) => HaNodeState::Online,
    };
    let owned = view.fleet().seat(name).into_iter().flat_map(|seat| &seat.owned);
    let vms = owned.filter(|id| view.vms.get(id).is_some_and(|vm| vm.value.spec.ha.is_some())).count();
    let proof = parted(view, name).unwrap_or_else(|| provable(view, keys, name).1);
    HaNode { node: name.clone(), epoch: life.map(|life| life.epoch), state, health, proof, vms, confirmed }
}

/// Of a host that goes down in order, or has: what becomes of its VMs.
fn parted(view: &ClusterView, name: &Name) -> Option<String> {
    let closed = view.nodes.get(name)?.life.as_ref()?.value.closed;
    let departure = view.departure(name).map(|kept| &kept.value);
    let then = departure.and_then(|departure| departure.then).map(Parting::words);
    Some(match (departure, closed) {
        (None, false) => return None,
        (None, true) => "it was shut down in order; its VMs wait for it".into(),
        (Some(departure), true) => {
            format!("it was shut down in order ({}); {}", departure.farewell.as_str(), then.unwrap_or("its VMs wait for it"))
        }
        (Some(departure), false) => {
            format!("it goes down ({}); {}", departure.farewell.as_str(), then.unwrap_or("what becomes of its VMs is about to be said"))
        }
    })
}

/// Silence after which this node would be called dead, ms, and how, in words.
fn provable(view: &ClusterView, keys: &NodeKeys, name: &Name) -> (Option<u64>, String) {
    let (after_ms, words) = by_watchdog(keys, name, view.ha_settings.profile);
    let cut_s = Timers::of(view.ha_settings.profile).seal_ms / 1000;
    let by_power = if view.fenceable.contains_key(name) { format!("its power is cut after {cut_s} s; else ") } else { String::new() };
    (after_ms, format!("{by_power}{words}"))
}

fn by_watchdog(keys: &NodeKeys, name: &Name, profile: Profile) -> (Option<u64>, String) {
    let armed = keys.life.as_ref().and_then(|life| keys.armed.get(&life.value.epoch)).map(|armed| &armed.value);
    let person = format!("only a person can say that it is dead: vmkeep ha confirm-dead {name}");
    match armed {
        Some(Armed::Watchdog { kind: WatchdogKind::Software, .. }) => {
            (None, format!("its watchdog is a software one, which proves nothing while the whole host stands still; {person}"))
        }
        Some(&Armed::Watchdog { pet_ms, watchdog_ms, kind }) => {
            let safe_ms = record::Armed { pet_ms, watchdog_ms, kind }.safe_ms();
            let later = if pet_ms > Timers::of(profile).pet_ms { ", as it was armed with longer timers than the cluster's" } else { "" };
            (safe_ms, format!("its watchdog resets it; dead {} s after its last sign of life{later}", safe_ms.unwrap_or_default() / 1000))
        }
        Some(Armed::Unusable { why }) => (None, format!("its watchdog cannot be armed ({why}); {person}")),
        Some(Armed::None) | None => (None, format!("no watchdog is armed; {person}")),
    }
}

/// What would become of a VM if its node died now.
fn forecast(view: &ClusterView, fleet: &Fleet, vm: &VmRecord) -> HaForecast {
    let node = view.owners.get(&vm.id).map(|owner| owner.value.node.clone());
    let told = |to: Option<Name>, after_ms: Option<u64>, text: String| HaForecast {
        project: vm.project.clone(),
        vm: vm.spec.name.clone(),
        node: node.clone(),
        protected: vm.spec.ha.is_some(),
        to,
        after_ms,
        text,
    };
    let Some(from) = &node else { return told(None, None, "it has no node".into()) };
    if vm.spec.ha.is_none() {
        return told(None, None, format!("it waits for {from}: its manifest has no `ha`"));
    }
    let Some(keys) = view.nodes.get(from) else { return told(None, None, format!("nothing is known of {from}")) };
    let (after_ms, proof) = provable(view, keys, from);
    match rescue::elsewhere(view, fleet, vm, from) {
        Err(why) => told(None, None, format!("it waits for {from}: {why}")),
        Ok(to) => {
            let after_ms = after_ms.map(|ms| ms + PLACED_MS);
            let when = after_ms.map_or_else(|| "as soon as that is known".into(), |ms| format!("after at most {} s", ms / 1000));
            let there = fleet.seat(&to).and_then(|seat| seat.unprovable.as_ref());
            let there = there.map_or_else(String::new, |why| format!("; if {to} died then, only a person could say so: {why}"));
            let text = format!("runs again on {to}, {when} ({from}: {proof}){there}");
            told(Some(to), after_ms, text)
        }
    }
}

/// Of each highly available VM.
pub async fn check(store: &dyn Store, cache: &Cache) -> Result<HaCheck, Error> {
    let view = cache.view(store).await?;
    // Each VM against each node: not on a thread that serves others.
    let told = tokio::task::spawn_blocking(move || HaCheck { vms: forecasts(&view) }).await;
    told.map_err(|e| Error::internal(format!("the check failed: {e}")))
}

/// One fleet serves all nodes, one after the other: a copy for each of a thousand would not fit into memory.
fn forecasts(view: &ClusterView) -> Vec<HaForecast> {
    let mut by_node: BTreeMap<Option<&Name>, Vec<&VmRecord>> = BTreeMap::new();
    for vm in view.vms.values().map(|vm| &vm.value).filter(|vm| vm.spec.ha.is_some()) {
        by_node.entry(view.owners.get(&vm.id).map(|owner| &owner.value.node)).or_default().push(vm);
    }
    let mut fleet = view.fleet().clone();
    let mut told = Vec::new();
    for (node, vms) in by_node {
        let gone = node.map(|node| rescue::protected_on(view, node)).unwrap_or_default();
        gone.iter().for_each(|id| fleet.set_owner(*id, None));
        told.extend(vms.into_iter().map(|vm| forecast(view, &fleet, vm)));
        for owner in gone.iter().filter_map(|id| view.owners.get(id)).map(|owner| &owner.value) {
            fleet.set_owner(owner.vm, Some(&owner.node));
            fleet.set_heir(owner.vm, owner.to.as_ref().map(|heir| &heir.node));
        }
    }
    told.sort_by(|a, b| (&a.project, &a.vm).cmp(&(&b.project, &b.vm)));
    told
}

/// Of one VM, highly available or not.
pub async fn check_vm(store: &dyn Store, cache: &Cache, project: &Name, name: &Name) -> Result<HaForecast, Error> {
    let id = uid_of(store, "vm", project, name).await?;
    let view = cache.view(store).await?;
    let vm = view.vms.get(&id).ok_or_else(|| Error::not_found("vm", name))?;
    let fleet = view.owners.get(&id).map_or_else(|| view.snapshot(), |owner| Arc::new(rescue::without(&view, &owner.value.node)));
    Ok(forecast(&view, &fleet, &vm.value))
}

/// For Prometheus: what is cheap to count.
///
/// # Errors
/// The store's.
pub async fn numbers(store: &dyn Store) -> Result<HaNumbers, Error> {
    let ha = store.list(keys::ALL_HA).await.map_err(store_error)?.items;
    let mut numbers = HaNumbers { disarmed: ha.iter().any(|kv| kv.key == keys::HA_DISARM), ..HaNumbers::default() };
    for kv in &ha {
        if let Some(rescue) = kv.key.starts_with(keys::ALL_RESCUES).then(|| typed::decode::<Rescue>(kv).ok()).flatten() {
            *(if rescue.running_at.is_some() { &mut numbers.running } else { &mut numbers.placed }) += 1;
        } else if let Some(of) = kv.key.strip_prefix(keys::ALL_INCIDENTS) {
            let proved = store.get(&format!("{}{of}", keys::ALL_CONFIRMED)).await.map_err(store_error)?.is_some();
            *(if proved { &mut numbers.proved } else { &mut numbers.open }) += 1;
        }
    }
    for armed in armed_of_each(store).await? {
        *(match armed {
            Armed::Watchdog { .. } => &mut numbers.armed,
            Armed::Unusable { .. } => &mut numbers.unusable,
            Armed::None => &mut numbers.idle,
        }) += 1;
    }
    Ok(numbers)
}

/// What the nodes say of their watchdogs in the lives that they live now.
async fn armed_of_each(store: &dyn Store) -> Result<Vec<Armed>, Error> {
    let nodes = node::names(store).await?;
    let open = |life: &node::StoredLife| typed::decode::<EpochRecord>(&life.epoch).is_ok_and(|life| !life.closed);
    let lives = node::lives(store, &nodes).await?.into_iter().filter(open);
    Ok(lives.filter_map(|life| typed::decode::<Armed>(&life.armed?).ok()).collect())
}

pub async fn history(store: &dyn Store) -> Result<HaHistory, Error> {
    let listing = store.list_many(&[keys::ALL_HA, keys::ALL_CONFIRMED]).await.map_err(store_error)?;
    let view = ClusterView::new(listing.revision, &listing.items).0;
    let mut vms: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (key, rescue) in &view.rescues {
        let death = key.rsplit_once('/').map_or("", |(death, _)| death).trim_start_matches(keys::ALL_RESCUES);
        vms.entry(death.to_owned()).or_default().push(rescue.value.clone());
    }
    let one = |incident: &Incident| HaIncident {
        confirmed: view.confirmed.get(&(incident.node.clone(), incident.epoch)).map(|kept| kept.value.clone()),
        vms: vms.get(&format!("{}/{}", incident.node, incident.epoch)).cloned().unwrap_or_default(),
        incident: incident.clone(),
    };
    let mut incidents: Vec<HaIncident> = view.incidents.values().map(|kept| one(&kept.value)).collect();
    incidents.sort_by_key(|death| std::cmp::Reverse(death.incident.sealed_at));
    Ok(HaHistory { incidents })
}

/// Nothing is sealed, proved or recovered from here on; agents disarm their watchdogs with their next heartbeat.
pub async fn disarm(store: &dyn Store, ask: &Ask, wish: HaDisarm) -> Result<(), Error> {
    let why = node::reason(wish.why.as_deref())?;
    let disarm = Disarm { mode: DisarmMode::Freeze, by: ask.caller.name.clone(), at: jiff::Timestamp::now(), why };
    commit(store, Txn::default().then(typed::put(keys::HA_DISARM, &disarm))).await.map(drop)
}

pub async fn arm(store: &dyn Store) -> Result<(), Error> {
    commit(store, Txn::default().then(Op::Delete(keys::HA_DISARM.into()))).await.map(drop)
}

/// Changes what is said of it; the whole of the settings afterwards.
///
/// # Errors
/// A profile that does not fit, a policy that older members would misread; somebody else changes them at the same time, again and
/// again; the store's.
pub async fn set(store: &dyn Store, change: &HaChange) -> Result<HaSettings, Error> {
    if let Some(profile) = change.profile {
        ha_profile::fits(store, profile).await?;
    }
    if change.shutdown_policy.is_some() {
        upgrade::needs(store, keys::LEVEL_GOODBYES, "a shutdown policy").await?;
    }
    for _ in 0..TRIES_MAX {
        let kept = get::<HaSettings>(store, keys::HA_SETTINGS).await?;
        let key = keys::HA_SETTINGS.to_owned();
        let unchanged = kept.as_ref().map_or_else(|| Compare::Absent(key.clone()), |kept| Compare::ModifiedAt(key.clone(), kept.modified));
        let before = kept.map(|kept| kept.value).unwrap_or_default();
        let settings = HaSettings {
            shutdown_policy: change.shutdown_policy.unwrap_or(before.shutdown_policy),
            profile: change.profile.unwrap_or(before.profile),
        };
        if commit(store, Txn::default().when(unchanged).then(typed::put(key, &settings))).await?.is_some() {
            return Ok(settings);
        }
    }
    Err(Error::new(Code::Unavailable, "the settings are being changed by others at the same time; try again"))
}

/// A person says that a node is dead: its highly available VMs are started elsewhere. It must be silent, and stays sealed.
///
/// # Errors
/// It is not silent, the name was not typed, or it is dead already; the store's.
pub async fn confirm_dead(store: &dyn Store, ask: &Ask, name: &Name, wish: &ConfirmDead) -> Result<(), Error> {
    if wish.typed.trim() != name.as_str() {
        return Err(Error::invalid(format!("'{}' is not the name of the node", wish.typed.trim())).hint(format!("type its name: {name}")));
    }
    let life = get::<EpochRecord>(store, &keys::epoch(name)).await?.ok_or_else(|| Error::not_found("node", name))?;
    let epoch = life.value.epoch;
    if get::<Confirmed>(store, &keys::confirmed(name, epoch)).await?.is_some() {
        return Ok(());
    }
    let state = get::<NodeState>(store, &keys::state(name)).await?;
    let Some(state) = state.filter(|state| state.value.state == NodeHealth::Offline) else {
        return Err(Error::conflict(format!("'{name}' gave a sign of life less than 15 s ago, so it is not dead"))
            .hint("a node that must go is shut down, or its power is cut, first"));
    };
    let (now, by) = (jiff::Timestamp::now(), ask.caller.name.clone());
    let confirmed = Confirmed { proof: Proof::Operator, by: by.clone(), at: now };
    let key = keys::confirmed(name, epoch);
    let txn = Txn::default()
        .when(Compare::ModifiedAt(life.key.clone(), life.modified))
        .when(Compare::ModifiedAt(state.key.clone(), state.modified))
        .when(Compare::Absent(key.clone()))
        .then(typed::put(key, &confirmed));
    let txn = sealed(store, name, epoch, &by, state.value.since, txn).await?;
    match commit(store, txn).await? {
        Some(_) => Ok(()),
        None => Err(Error::new(Code::Unavailable, format!("'{name}' changed in this moment; look at it again")).hint("vmkeep ha status")),
    }
}

/// The seal comes before or with the word: from then on no renewal succeeds.
async fn sealed(store: &dyn Store, name: &Name, epoch: Epoch, by: &str, since: jiff::Timestamp, txn: Txn) -> Result<Txn, Error> {
    let fence = keys::fence(name, epoch);
    if store.get(&fence).await.map_err(store_error)?.is_some() {
        return Ok(txn.when(Compare::Present(fence)));
    }
    let (beat, now) = (keys::heartbeat(name), jiff::Timestamp::now());
    let last = store.get(&beat).await.map_err(store_error)?.map(|kv| kv.modified);
    let seal = Fence { beat: last.unwrap_or(Revision(0)), by: by.to_owned(), at: now };
    let incident = Incident { node: name.clone(), epoch, silent_since: since, sealed_at: now, sealed_by: by.to_owned() };
    Ok(txn
        .when(Compare::Absent(fence.clone()))
        .when(last.map_or_else(|| Compare::Absent(beat.clone()), |at| Compare::ModifiedAt(beat.clone(), at)))
        .then(typed::put(fence, &seal))
        .then(typed::put(keys::incident(name, epoch), &incident)))
}
