//! The view as placement sees it, kept change by change; and whom a change concerns.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use vmkeep_core::migrate::check::is_shared;
use vmkeep_core::place::baseline::{Baseline, baseline};
use vmkeep_core::place::cpu::GuestCpu;
use vmkeep_core::place::need::{Accel, Counts, Home, SharedPool};
use vmkeep_core::place::{Fleet, Guest, Need};
use vmkeep_store::KeyValue;
use vmkeep_types::ha::Departure;
use vmkeep_types::host::{NodeHealth, NodeState};
use vmkeep_types::ids::{ImageId, NetworkId, PoolId, VmId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::migration::PartKind;
use vmkeep_types::name::Name;
use vmkeep_types::network::{NetworkMode, NetworkRecord};
use vmkeep_types::node::NodeRecord;
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Owner, PowerWish, VmRecord};
use vmkeep_types::stonith::{FenceFound, FenceRecord, FenceTested};
use vmkeep_types::vm::{RunPolicy, VmSpec};

use super::touched::Stage;
use super::{ClusterView, FenceIs, Kept, Touched, decode, keep, touch_vm};
use crate::app::image::COPIES_NAMED_MAX;
use crate::reconcile::ha::arm;

impl ClusterView {
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// As it is now, for somebody who asks longer: what changes meanwhile changes a copy.
    pub fn snapshot(&self) -> Arc<Fleet> {
        self.fleet.clone()
    }

    /// The CPU that all nodes can run; else why there is none.
    pub fn baseline(&self) -> &Result<Baseline, String> {
        self.baseline.get_or_init(|| baseline(self.fleet.seats().map(|seat| &seat.facts)))
    }

    /// A node was chosen for a VM, and the write is on its way.
    pub fn take_seat(&mut self, owner: &Owner) {
        Arc::make_mut(&mut self.fleet).set_owner(owner.vm, Some(&owner.node));
        Arc::make_mut(&mut self.fleet).set_heir(owner.vm, owner.to.as_ref().map(|heir| &heir.node));
    }

    /// A node was asked to get ready for a VM without one: the next VM of the same look asks another, or a thousand of them would get
    /// ready one after the other.
    pub fn expect(&mut self, id: VmId, node: &Name) {
        if !self.owners.contains_key(&id) {
            Arc::make_mut(&mut self.fleet).set_owner(id, Some(node));
        }
    }

    /// That write came to nothing: the owner is who it was.
    pub fn give_back(&mut self, id: VmId) {
        let owner = self.owners.get(&id).map(|owner| &owner.value);
        Arc::make_mut(&mut self.fleet).set_owner(id, owner.map(|owner| &owner.node));
        Arc::make_mut(&mut self.fleet).set_heir(id, owner.and_then(|owner| owner.to.as_ref()).map(|heir| &heir.node));
    }

    /// Something that its VM's placement may hang on changed.
    pub(super) fn touch_guest(&mut self, id: VmId, touched: &mut Touched) {
        touch_vm(touched, id);
        if self.stage == Stage::Listing {
            return;
        }
        let guest = self.vms.get(&id).map(|record| self.guest(&record.value));
        match guest {
            Some(guest) => Arc::make_mut(&mut self.fleet).set_guest(guest),
            None => Arc::make_mut(&mut self.fleet).drop_guest(id),
        }
        // A VM's key may come after its owner's.
        self.give_back(id);
    }

    pub(super) fn touch_owner(&mut self, id: VmId, touched: &mut Touched) {
        touch_vm(touched, id);
        if self.stage == Stage::Following {
            self.give_back(id);
        }
    }

    /// All that were listed, with their owners.
    pub(super) fn seat_all(&mut self) {
        let guests: Vec<Guest> = self.vms.values().map(|record| self.guest(&record.value)).collect();
        let fleet = Arc::make_mut(&mut self.fleet);
        guests.into_iter().for_each(|guest| fleet.set_guest(guest));
        let owned: Vec<VmId> = self.owners.keys().copied().collect();
        owned.into_iter().for_each(|id| self.give_back(id));
    }

    /// A node was told to do something with a VM on its way, or has it behind it.
    pub(super) fn touch_move(&mut self, node: &Name, id: VmId, touched: &mut Touched) {
        let order = self.nodes.get(node).and_then(|keys| keys.moves.get(&id));
        match order.map(|order| order.value.part.kind()) {
            Some(PartKind::Forget) => Arc::make_mut(&mut self.fleet).leave_behind(id, node),
            _ => Arc::make_mut(&mut self.fleet).tidy_up(id, node),
        }
        touch_vm(touched, id);
    }

    pub(super) fn put_record(&mut self, node: &str, record: Option<Kept<NodeRecord>>, touched: &mut Touched) {
        let Ok(name) = node.parse::<Name>() else { return };
        self.nodes.entry(name.clone()).or_default().record = record;
        self.set_node(&name);
        touched.homeless = true;
    }

    /// Its VMs follow its epoch; those without a node may have one now.
    pub(super) fn touch_node(&mut self, name: &Name, touched: &mut Touched) {
        self.set_node(name);
        touched.vms.extend(self.fleet.seat(name).into_iter().flat_map(|seat| &seat.owned));
        touched.homeless = true;
    }

    pub(super) fn touch_owned(&self, node: &str, touched: &mut Touched) {
        let seat = node.parse::<Name>().ok().and_then(|name| self.fleet.seat(&name));
        touched.vms.extend(seat.into_iter().flat_map(|seat| &seat.owned));
    }

    pub(super) fn put_state(&mut self, node: &str, state: Option<Kept<NodeState>>, touched: &mut Touched) {
        let Ok(name) = node.parse::<Name>() else { return };
        match state {
            Some(state) => self.states.insert(name.clone(), state),
            None => self.states.remove(&name),
        };
        self.set_node(&name);
        touched.homeless = true;
    }

    pub(super) fn put_fence(&mut self, node: &str, record: Option<&KeyValue>) {
        let Ok(name) = node.parse::<Name>() else { return };
        match record {
            Some(kv) => {
                let tested = decode::<FenceRecord>(kv).and_then(|kept| kept.value.tested);
                let failed = |tested: &FenceTested| matches!(tested.found, FenceFound::Unknown { .. });
                let is = if tested.is_some_and(|tested| !failed(&tested)) { FenceIs::Tested } else { FenceIs::Set };
                self.fenceable.insert(name.clone(), is);
            }
            None => drop(self.fenceable.remove(&name)),
        }
        self.set_node(&name);
    }

    /// A node goes down in order, or stays after all.
    pub(super) fn put_departure(&mut self, name: &Name, departure: Option<Kept<Departure>>, touched: &mut Touched) {
        self.nodes.entry(name.clone()).or_default().leaving = departure;
        self.set_node(name);
        self.touch_waiting(touched);
    }

    /// What it has said, if it goes down in this life.
    pub fn departure(&self, node: &Name) -> Option<&Kept<Departure>> {
        let keys = self.nodes.get(node)?;
        let epoch = keys.life.as_ref()?.value.epoch;
        keys.leaving.as_ref().filter(|departure| departure.value.epoch == epoch)
    }

    /// Does any node renew its life? A host alone does not.
    pub fn renews(&self) -> bool {
        self.nodes.values().any(|keys| keys.beat.is_some())
    }

    /// It has said how it would die, or has begun another life.
    pub(super) fn answered(&mut self, name: &Name, touched: &mut Touched) {
        self.asked_in_vain.remove(name);
        self.set_node(name);
        self.touch_waiting(touched);
        touched.vms.extend(self.fleet.seat(name).into_iter().flat_map(|seat| &seat.owned));
    }

    /// A node that was asked to arm its watchdog says nothing.
    pub fn ask_in_vain(&mut self, name: &Name, touched: &mut Touched) {
        if self.asked_in_vain.insert(name.clone()) {
            self.set_node(name);
            self.touch_waiting(touched);
            touched.vms.extend(self.fleet.seat(name).into_iter().flat_map(|seat| &seat.owned));
        }
    }

    /// A highly available VM is on its way there.
    pub fn expects_protected(&self, node: &Name) -> bool {
        let protected = |id: &VmId| self.vms.get(id).is_some_and(|vm| vm.value.spec.ha.is_some());
        self.fleet.seat(node).is_some_and(|seat| seat.coming.iter().any(protected))
    }

    /// VMs that may wait for a node's watchdog.
    pub(super) fn touch_waiting(&self, touched: &mut Touched) {
        touched.homeless = true;
        touched.vms.extend(self.moves.keys());
    }

    fn set_node(&mut self, name: &Name) {
        self.baseline = OnceLock::new();
        let Some(keys) = self.nodes.get(name) else { return };
        match &keys.facts {
            Some(facts) => {
                let record = keys.record.as_ref().map_or_else(|| NodeRecord::named(name.clone()), |kept| kept.value.clone());
                Arc::make_mut(&mut self.fleet).set_node(facts.value.clone(), record);
                let state = self.states.get(name).map_or(NodeHealth::Online, |kept| kept.value.state);
                // Nothing new comes to a host that goes down.
                let takes = self.departure(name).map_or(state, |_| state.max(NodeHealth::Suspect));
                Arc::make_mut(&mut self.fleet).set_health(name, takes);
                let unprovable = arm::unprovable(self, name);
                Arc::make_mut(&mut self.fleet).set_unprovable(name, unprovable);
            }
            None => Arc::make_mut(&mut self.fleet).drop_node(name),
        }
    }

    pub(super) fn put_image(&mut self, id: &str, kv: &KeyValue, touched: &mut Touched) {
        let before = id.parse().ok().and_then(|id| self.images.get(&id)).map(|kept| kept.value.clone());
        let Some(id) = keep(&mut self.images, id, kv) else { return };
        let holders = self.images[&id].value.holders().cloned().collect();
        Arc::make_mut(&mut self.fleet).set_image(id, holders);
        if before.is_none_or(|before| !only_more_copies(&before, &self.images[&id].value)) {
            self.touch_image(id, touched);
        }
    }

    /// VMs that have a disk made from it, or it in a tray, or wait for it.
    pub(super) fn touch_image(&mut self, id: ImageId, touched: &mut Touched) {
        let Some(image) = self.images.get(&id).map(|kept| &kept.value) else {
            self.names.drop_image(id);
            Arc::make_mut(&mut self.fleet).drop_image(id);
            // What it was called is not known any more; those that miss it have no node yet.
            touched.homeless = true;
            return;
        };
        self.names.put_image(image);
        touched.deletions.extend(image.leaving);
        let in_tray =
            |vm: &VmRecord| vm.project == image.project && vm.spec.cdroms.iter().any(|cd| cd.image.as_ref() == Some(&image.spec.name));
        let of_disk = |vm: &VmRecord| vm.volumes.values().filter_map(|v| self.volumes.get(v)).any(|v| v.value.image == Some(id));
        touched.vms.extend(self.vms.values().filter(|vm| in_tray(&vm.value) || of_disk(&vm.value)).map(|vm| vm.value.id));
    }

    /// Who is to be asked may be another by now.
    pub(super) fn touch_deletions(&self, touched: &mut Touched) {
        touched.deletions.extend(self.images.values().filter_map(|image| image.value.leaving));
        touched.deletions.extend(self.networks.values().filter_map(|network| network.value.leaving));
    }

    pub(super) fn put_network(&mut self, id: &str, kv: &KeyValue, touched: &mut Touched) {
        let before = id.parse().ok().and_then(|id| self.networks.get(&id)).map(|kept| kept.value.clone());
        let Some(id) = keep(&mut self.networks, id, kv) else { return };
        let network = &self.networks[&id].value;
        if before.is_some_and(|before| NetworkRecord { nodes: network.nodes.clone(), ..before } == *network) {
            // On which nodes it is concerns its deletion alone.
            touched.deletions.extend(network.leaving);
        } else {
            self.touch_network(id, touched);
        }
    }

    fn touch_network(&mut self, id: NetworkId, touched: &mut Touched) {
        let network = &self.networks[&id].value;
        self.names.put_network(network);
        touched.deletions.extend(network.leaving);
        let on_it = |vm: &VmRecord| vm.project == network.project && vm.spec.nics.iter().any(|nic| nic.network == network.spec.name);
        let vms: Vec<VmId> = self.vms.values().filter(|vm| on_it(&vm.value)).map(|vm| vm.value.id).collect();
        vms.into_iter().for_each(|id| self.touch_guest(id, touched));
    }

    pub(super) fn touch_pool(&mut self, id: PoolId, touched: &mut Touched) {
        let pool = &self.pools[&id].value;
        self.names.put_pool(pool);
        let in_it = |vm: &VmRecord| vm.volumes.values().filter_map(|v| self.volumes.get(v)).any(|v| v.value.pool == pool.spec.name);
        let vms: Vec<VmId> = self.vms.values().filter(|vm| in_it(&vm.value)).map(|vm| vm.value.id).collect();
        vms.into_iter().for_each(|id| self.touch_guest(id, touched));
    }

    /// A VM that does not exist yet, or is to be otherwise: from its wish, and the networks as they are.
    pub fn planned(&self, id: VmId, project: Name, spec: &VmSpec) -> Guest {
        let mut guest = Guest::planned(id, project, spec);
        guest.need.bridges = self.bridges(&guest.project, spec);
        guest.need.pools = self.shared_pools(spec.disks.iter().map(|disk| &disk.pool));
        let of_disks = spec.disks.iter().filter_map(|disk| disk.image.as_ref());
        let of_disks = of_disks.filter_map(|name| self.image_by_name(&guest.project, name)).map(|image| image.value.id);
        guest.need.images = self.images_copied(&guest.project, spec, of_disks);
        guest
    }

    /// Of those that its disks are made from, and those in its trays: the ones that each node has a copy of its own of.
    fn images_copied(&self, project: &Name, spec: &VmSpec, of_disks: impl Iterator<Item = ImageId>) -> Vec<ImageId> {
        let trays = spec.cdroms.iter().filter_map(|cdrom| cdrom.image.as_ref());
        let in_trays = trays.filter_map(|name| self.image_by_name(project, name)).map(|image| image.value.id);
        let all: BTreeSet<ImageId> = of_disks.chain(in_trays).collect();
        let shared = |id: &ImageId| {
            let pool = self.images.get(id).and_then(|image| self.pool_by_name(&image.value.spec.pool));
            pool.is_some_and(|pool| is_shared(&pool.value.spec))
        };
        all.into_iter().filter(|id| !shared(id)).collect()
    }

    fn bridges(&self, project: &Name, spec: &VmSpec) -> Vec<(Name, String)> {
        let networks = spec.nics.iter().filter_map(|nic| self.network_by_name(project, &nic.network));
        let bridged = networks.map(|network| &network.value.spec).filter(|spec| spec.mode == NetworkMode::Bridge);
        bridged.filter_map(|spec| Some((spec.name.clone(), spec.bridge.clone()?))).collect()
    }

    /// Those of them that say which nodes have them.
    fn shared_pools<'n>(&self, names: impl Iterator<Item = &'n Name>) -> Vec<SharedPool> {
        let names: BTreeSet<&Name> = names.collect();
        let records = names.into_iter().filter_map(|name| self.pool_by_name(name)).map(|pool| &pool.value);
        let shared = records.filter(|pool| is_shared(&pool.spec));
        shared.filter_map(|pool| Some(SharedPool { name: pool.spec.name.clone(), id: pool.id, mark: pool.mark? })).collect()
    }

    /// A VM as placement sees it.
    fn guest(&self, vm: &VmRecord) -> Guest {
        let volumes = || vm.volumes.values().filter_map(|id| self.volumes.get(id));
        let home = Home::of(volumes().filter_map(|volume| self.bound_to(&volume.value)));
        let chosen = self.choices.get(&vm.id).map(|kept| &kept.value);
        let kvm = chosen.is_some_and(|chosen| chosen.domain_type.as_deref() == Some("kvm"));
        let need = Need::of(&vm.spec, if kvm { Accel::Kvm } else { Accel::Any }, self.bridges(&vm.project, &vm.spec), home);
        let cpu = chosen.map_or_else(|| need.cpu.clone(), |chosen| GuestCpu::of(&vm.spec, chosen, &self.kept_cpus));
        let off = self.power.get(&vm.id).is_some_and(|kept| matches!(kept.value.want, PowerWish::Off | PowerWish::Killed));
        Guest {
            id: vm.id,
            project: vm.project.clone(),
            name: vm.spec.name.clone(),
            labels: vm.spec.labels.clone(),
            need: Need {
                cpu,
                pools: self.shared_pools(volumes().map(|volume| &volume.value.pool)),
                // A disk that was made once needs no image any more to start.
                images: self.images_copied(
                    &vm.project,
                    &vm.spec,
                    volumes().filter(|volume| !volume.value.made).filter_map(|volume| volume.value.image),
                ),
                machine: chosen.and_then(|chosen| chosen.machine.clone()),
                ..need
            },
            counts: if off || vm.spec.run == RunPolicy::Halted { Counts::No } else { Counts::Yes },
        }
    }

    /// The only node that reaches a volume's data; None: it has none yet, or every node reaches it.
    fn bound_to<'v>(&self, volume: &'v VolumeRecord) -> Option<&'v Name> {
        let shared = self.pool_by_name(&volume.pool).is_some_and(|pool| is_shared(&pool.value.spec));
        volume.node.as_ref().filter(|_| !shared)
    }
}

/// A copy more of an image, where orders name enough nodes that have it already: else a thousand nodes that fetch it have twenty
/// thousand VMs looked at each.
fn only_more_copies(before: &ImageRecord, now: &ImageRecord) -> bool {
    let rest = ImageRecord { copies: before.copies.clone(), ..now.clone() };
    rest == *before && before.copies.len() >= COPIES_NAMED_MAX && now.copies.is_superset(&before.copies)
}
