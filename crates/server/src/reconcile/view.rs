//! The whole cluster in memory, at one revision: what the planner reads.
//!
//! Built from one listing, then kept current by the watch. Each change says what it touched, so that the planner looks only
//! at that. A value that does not parse is kept out and reported; it never stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use vmkeep_core::place::Fleet;
use vmkeep_core::place::baseline::Baseline;
use vmkeep_core::place::cpu::KeptCpus;
use vmkeep_store::{Change, KeyValue, keys, typed};
use vmkeep_types::cluster::{Incarnation, Recovery};
use vmkeep_types::drain::Drain;
use vmkeep_types::ha::{Confirmed, Disarm, Fence, HaMemory, HaSettings, Incident, Rescue};
use vmkeep_types::host::NodeState;
use vmkeep_types::ids::{Epoch, ImageId, NetworkId, OperationId, PoolId, Revision, VmId, VolumeId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::migration::Migration;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::observed::Seen;
use vmkeep_types::operation::Operation;
use vmkeep_types::pool::{PoolRecord, VolumeRecord};
use vmkeep_types::record::{Owner, Power, Released, VmChoices, VmRecord};

mod names;
mod node_keys;
mod orders;
mod seats;
#[cfg(test)]
mod tests;
mod touched;

use super::deletion;
use names::Names;
pub use node_keys::NodeKeys;
use touched::Stage;
pub use touched::Touched;

/// A value and where it stands in the store's history.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    pub value: T,
    pub created: Revision,
    pub modified: Revision,
}

/// How a node's power can be cut, as far as somebody has tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceIs {
    Set,
    /// The last test did not fail.
    Tested,
}

#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    pub revision: Revision,
    pub vms: BTreeMap<VmId, Kept<VmRecord>>,
    pub choices: BTreeMap<VmId, Kept<VmChoices>>,
    pub power: BTreeMap<VmId, Kept<Power>>,
    pub owners: BTreeMap<VmId, Kept<Owner>>,
    /// VMs whose dead node was removed.
    pub released: BTreeMap<VmId, Kept<Released>>,
    pub moves: BTreeMap<VmId, Kept<Migration>>,
    /// Nodes that are being emptied. All are looked at whenever anything was touched: they are few.
    pub drains: BTreeMap<Name, Kept<Drain>>,
    pub volumes: BTreeMap<VolumeId, Kept<VolumeRecord>>,
    pub images: BTreeMap<ImageId, Kept<ImageRecord>>,
    pub networks: BTreeMap<NetworkId, Kept<NetworkRecord>>,
    pub pools: BTreeMap<PoolId, Kept<PoolRecord>>,
    pub ops: BTreeMap<OperationId, Kept<Operation>>,
    /// VM to its operations that are not over.
    open_ops: BTreeMap<VmId, BTreeSet<OperationId>>,
    /// VM to the volumes that are attached to it, those too that its wish let go of.
    attached: BTreeMap<VmId, BTreeSet<VolumeId>>,
    pub nodes: BTreeMap<Name, NodeKeys>,
    /// What the leader said last of their health.
    pub states: BTreeMap<Name, Kept<NodeState>>,
    /// Epochs that renew no more.
    pub fences: BTreeMap<(Name, Epoch), Kept<Fence>>,
    /// Epochs that are dead.
    pub confirmed: BTreeMap<(Name, Epoch), Kept<Confirmed>>,
    /// High availability is switched off.
    pub disarmed: Option<Kept<Disarm>>,
    pub ha_settings: HaSettings,
    /// Nodes whose power can be cut.
    pub fenceable: BTreeMap<Name, FenceIs>,
    /// Nodes that were asked to arm their watchdog in this epoch and say nothing.
    pub asked_in_vain: BTreeSet<Name>,
    /// Deaths of nodes, and VMs that had to go elsewhere then, by key; for the history.
    pub incidents: BTreeMap<String, Kept<Incident>>,
    pub rescues: BTreeMap<String, Kept<Rescue>>,
    /// Highly available VMs that something must be remembered of.
    pub memories: BTreeMap<VmId, Kept<HaMemory>>,
    /// There while it is not known what runs where.
    pub recovery: Option<Kept<Recovery>>,
    /// Which life of the cluster it is.
    pub incarnation: u64,
    /// What all members understand; None: it was not said, and a store begins with the newest.
    pub level: Option<u64>,
    /// The index of nodes.
    pub joined: BTreeSet<Name>,
    /// Tasks that have a result which is not folded in yet.
    results: BTreeSet<(Name, OperationId)>,
    names: Names,
    /// The same as placement sees it: VMs, owners and nodes, with their sums.
    fleet: Arc<Fleet>,
    stage: Stage,
    /// The CPU that all nodes can run, worked out when it is first asked for.
    baseline: OnceLock<Result<Baseline, String>>,
    kept_cpus: KeptCpus,
    /// A write for them failed, and who wrote first is not known here yet.
    forestalled: BTreeSet<VmId>,
}

/// The prefixes a view is made of; events and tokens are not needed to decide.
pub const PREFIXES: [&str; 23] = [
    keys::LEVEL,
    keys::ALL_STONITH,
    keys::ALL_HA,
    keys::ALL_FENCES,
    keys::ALL_CONFIRMED,
    keys::CLUSTER_INCARNATION,
    keys::CLUSTER_RECOVERY,
    keys::ALL_VMS,
    keys::ALL_CHOICES,
    keys::ALL_POWER,
    keys::ALL_OWNERS,
    keys::ALL_RELEASED,
    keys::ALL_MIGRATIONS,
    keys::ALL_DRAINS,
    keys::ALL_VOLUMES,
    keys::ALL_IMAGES,
    keys::ALL_NETWORKS,
    keys::ALL_POOLS,
    keys::ALL_OPS,
    keys::ALL_NODES,
    keys::ALL_JOINED,
    keys::ALL_NODE_RECORDS,
    keys::ALL_STATES,
];

impl ClusterView {
    /// From one listing of [`PREFIXES`]; everything counts as touched.
    pub fn new(revision: Revision, items: &[KeyValue]) -> (Self, Touched) {
        let (mut view, mut touched) = (Self::default(), Touched::default());
        view.begin(items, &mut touched);
        view.begun(revision, &mut touched);
        (view, touched)
    }

    /// Takes a part of a listing in, whose revision is not known yet.
    pub fn begin(&mut self, part: &[KeyValue], touched: &mut Touched) {
        self.stage = Stage::Listing;
        part.iter().for_each(|item| self.put(item, touched));
    }

    pub fn apply<'c>(&mut self, revision: Revision, changes: impl IntoIterator<Item = &'c Change>, touched: &mut Touched) {
        self.revision = revision;
        for change in changes {
            match change {
                Change::Put(kv) => self.put(kv, touched),
                Change::Deleted { key, .. } => self.delete(key, touched),
            }
        }
        touched.vms.extend(std::mem::take(&mut self.forestalled));
    }

    /// A write for it compared what is not so any more: it is touched by whatever comes next.
    pub fn look_again(&mut self, id: VmId) {
        self.forestalled.insert(id);
    }

    fn put(&mut self, kv: &KeyValue, touched: &mut Touched) {
        let parts: Vec<&str> = kv.key.split('/').collect();
        match parts[..] {
            ["vm", _, id] => {
                if let Some(id) = keep(&mut self.vms, id, kv) {
                    self.touch_guest(id, touched);
                    self.touch_copies(id, touched);
                }
            }
            ["choices", id] => {
                let Some(id) = keep(&mut self.choices, id, kv) else { return };
                self.forget_what_is_kept(id);
                self.touch_guest(id, touched);
            }
            ["power", id] => keep(&mut self.power, id, kv).into_iter().for_each(|id| self.touch_guest(id, touched)),
            ["owner", id] => keep(&mut self.owners, id, kv).into_iter().for_each(|id| self.touch_owner(id, touched)),
            ["released", id] => keep(&mut self.released, id, kv).into_iter().for_each(|id| touch_vm(touched, id)),
            ["migrate", id] => keep(&mut self.moves, id, kv).into_iter().for_each(|id| touch_vm(touched, id)),
            ["drain", node] => self.drains.extend(node.parse::<Name>().ok().zip(decode(kv))),
            ["volume", _, id] => {
                self.unindex_volume(id);
                keep(&mut self.volumes, id, kv).into_iter().for_each(|id| self.index_volume(id, touched));
                self.touch_results(touched);
            }
            ["image", _, id] => {
                self.put_image(id, kv, touched);
                self.touch_results(touched);
            }
            ["network", _, id] => {
                self.put_network(id, kv, touched);
                self.touch_results(touched);
            }
            ["pool", id] => keep(&mut self.pools, id, kv).into_iter().for_each(|id| self.touch_pool(id, touched)),
            ["node", name] => self.put_record(name, decode(kv), touched),
            ["op", _, id] => {
                let Some(id) = keep(&mut self.ops, id, kv) else { return };
                touched.deletions.extend(self.ops.get(&id).filter(|op| deletion::is_one(&op.value)).map(|_| id));
                if let Some(vm) = self.index_op(id) {
                    touch_vm(touched, vm);
                    self.touch_copies(vm, touched);
                }
            }
            ["n", node, ..] => self.put_node(node, &parts[2..], kv, touched),
            ["joined", node] => self.joined.extend(node.parse::<Name>()),
            ["state", node] => self.put_state(node, decode(kv), touched),
            ["fence", node, epoch] => self.fences.extend(life(node, epoch).zip(decode(kv))),
            ["confirmed", node, epoch] => {
                self.confirmed.extend(life(node, epoch).zip(decode(kv)));
                self.touch_owned(node, touched);
            }
            ["cluster", "ha", ..] => self.put_ha(&parts[2..], kv, touched),
            ["stonith", node] => self.put_fence(node, Some(kv)),
            ["cluster", "recovery"] => self.recovery = decode(kv),
            ["cluster", "level"] => self.level = decode(kv).map(|kept| kept.value),
            ["cluster", "incarnation"] => self.incarnation = decode(kv).map_or(0, |kept: Kept<Incarnation>| kept.value.number),
            _ => {}
        }
    }

    fn delete(&mut self, key: &str, touched: &mut Touched) {
        let parts: Vec<&str> = key.split('/').collect();
        match parts[..] {
            ["vm", _, id] => drop_key(&mut self.vms, id).into_iter().for_each(|id| self.touch_guest(id, touched)),
            ["choices", id] => drop(drop_key(&mut self.choices, id)),
            ["power", id] => drop(drop_key(&mut self.power, id)),
            ["owner", id] => drop_key(&mut self.owners, id).into_iter().for_each(|id| self.touch_owner(id, touched)),
            ["released", id] => drop(drop_key(&mut self.released, id)),
            ["migrate", id] => drop_key(&mut self.moves, id).into_iter().for_each(|id| touch_vm(touched, id)),
            ["drain", node] => drop(node.parse::<Name>().map(|node| self.drains.remove(&node))),
            ["volume", _, id] => {
                self.unindex_volume(id);
                drop_key(&mut self.volumes, id);
                self.touch_results(touched);
            }
            ["image", _, id] => {
                drop_key(&mut self.images, id).into_iter().for_each(|id| self.touch_image(id, touched));
                self.touch_results(touched);
            }
            ["network", _, id] => {
                drop_key(&mut self.networks, id).into_iter().for_each(|id| self.names.drop_network(id));
                self.touch_results(touched);
            }
            ["pool", id] => drop_key(&mut self.pools, id).into_iter().for_each(|id| self.names.drop_pool(id)),
            ["node", name] => self.put_record(name, None, touched),
            ["op", _, id] => drop(drop_key(&mut self.ops, id)), // over before it is ever removed, so no index holds it
            ["n", node, ..] => self.delete_node(node, &parts[2..], key, touched),
            ["joined", node] => {
                drop(node.parse::<Name>().map(|node| self.joined.remove(&node)));
                self.touch_deletions(touched);
            }
            ["state", node] => self.put_state(node, None, touched),
            ["fence", node, epoch] => drop(life(node, epoch).map(|of| self.fences.remove(&of))),
            ["confirmed", node, epoch] => drop(life(node, epoch).map(|of| self.confirmed.remove(&of))),
            ["cluster", "ha", "disarm"] => self.disarmed = None,
            ["cluster", "ha", "settings"] => self.ha_settings = HaSettings::default(),
            ["stonith", node] => self.put_fence(node, None),
            ["cluster", "ha", "memory", id] => drop(drop_key(&mut self.memories, id)),
            ["cluster", "ha", "incident", ..] => drop(self.incidents.remove(key)),
            ["cluster", "ha", "rescue", ..] => drop(self.rescues.remove(key)),
            ["cluster", "recovery"] => {
                self.recovery = None;
                self.touch_all(BTreeSet::new(), touched);
            }
            _ => {}
        }
    }

    fn put_ha(&mut self, rest: &[&str], kv: &KeyValue, touched: &mut Touched) {
        match rest {
            ["disarm"] => self.disarmed = decode(kv),
            ["settings"] => self.ha_settings = decode(kv).map(|kept| kept.value).unwrap_or_default(),
            ["memory", id] => keep(&mut self.memories, id, kv).into_iter().for_each(|id| touch_vm(touched, id)),
            ["incident", ..] => self.incidents.extend(decode(kv).map(|incident| (kv.key.clone(), incident))),
            ["rescue", ..] => self.rescues.extend(decode(kv).map(|rescue| (kv.key.clone(), rescue))),
            _ => {}
        }
    }

    /// Does it own a VM that runs again elsewhere when its node dies?
    pub fn owns_protected(&self, node: &Name) -> bool {
        let protected = |id: &VmId| self.vms.get(id).is_some_and(|vm| vm.value.spec.ha.is_some());
        self.fleet.seat(node).is_some_and(|seat| seat.owned.iter().chain(&seat.coming).any(protected))
    }

    /// A task's end compares the record it settles; a record that changed lets it be tried again.
    fn touch_results(&self, touched: &mut Touched) {
        touched.tasks.extend(self.results.iter().cloned());
    }

    /// The owner's word on a VM.
    pub fn seen(&self, id: VmId) -> Option<&Seen> {
        let node = &self.owners.get(&id)?.value.node;
        self.nodes.get(node)?.seen.get(&id).map(|kept| &kept.value)
    }

    /// Operations on a VM that are not over.
    pub fn ops_of(&self, vm: VmId) -> impl Iterator<Item = &Kept<Operation>> {
        self.open_ops.get(&vm).into_iter().flatten().filter_map(|id| self.ops.get(id))
    }

    /// Volumes that are attached to a VM.
    pub fn volumes_of(&self, vm: VmId) -> impl Iterator<Item = &Kept<VolumeRecord>> {
        self.attached.get(&vm).into_iter().flatten().filter_map(|id| self.volumes.get(id))
    }

    fn index_volume(&mut self, id: VolumeId, touched: &mut Touched) {
        let Some(vm) = self.volumes[&id].value.attached.as_ref().map(|a| a.vm) else { return };
        self.attached.entry(vm).or_default().insert(id);
        self.touch_guest(vm, touched);
        self.touch_copies(vm, touched);
    }

    /// The end of a copy writes the records of its volume, VM and operation: when somebody else wrote one first, it is told again.
    fn touch_copies(&self, vm: VmId, touched: &mut Touched) {
        let copy = |volume: &Kept<VolumeRecord>| volume.value.node.clone().zip(volume.value.filling);
        touched.tasks.extend(self.volumes_of(vm).filter_map(copy));
    }

    fn unindex_volume(&mut self, id: &str) {
        let Ok(id) = id.parse::<VolumeId>() else { return };
        let Some(vm) = self.volumes.get(&id).and_then(|v| v.value.attached.as_ref()).map(|a| a.vm) else { return };
        if let Some(volumes) = self.attached.get_mut(&vm) {
            volumes.remove(&id);
            if volumes.is_empty() {
                self.attached.remove(&vm);
            }
        }
    }

    /// Keeps `open_ops` true for one operation; the VM it is about.
    fn index_op(&mut self, id: OperationId) -> Option<VmId> {
        let op = &self.ops.get(&id)?.value;
        if op.resource.kind != "vm" {
            return None;
        }
        let vm = VmId(op.resource.uid);
        if op.state.is_over() {
            if let Some(open) = self.open_ops.get_mut(&vm) {
                open.remove(&id);
                if open.is_empty() {
                    self.open_ops.remove(&vm);
                }
            }
        } else {
            self.open_ops.entry(vm).or_default().insert(id);
        }
        Some(vm)
    }
}

fn life(node: &str, epoch: &str) -> Option<(Name, Epoch)> {
    Some((node.parse().ok()?, Epoch(epoch.parse().ok()?)))
}

fn touch_vm(touched: &mut Touched, id: VmId) {
    touched.vms.insert(id);
}

fn decode<T: DeserializeOwned>(kv: &KeyValue) -> Option<Kept<T>> {
    match typed::decode(kv) {
        Ok(value) => Some(Kept { value, created: kv.created, modified: kv.modified }),
        Err(error) => {
            tracing::error!(key = kv.key, %error, "a stored value does not parse; it is left alone");
            None
        }
    }
}

fn keep<K: std::str::FromStr + Ord + Copy, T: DeserializeOwned>(map: &mut BTreeMap<K, Kept<T>>, id: &str, kv: &KeyValue) -> Option<K> {
    let id = id.parse().ok()?;
    map.insert(id, decode(kv)?);
    Some(id)
}

fn drop_key<K: std::str::FromStr + Ord + Copy, V>(map: &mut BTreeMap<K, V>, id: &str) -> Option<K> {
    let id = id.parse().ok()?;
    map.remove(&id).map(|_| id)
}
