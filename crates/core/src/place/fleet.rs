//! All nodes and all VMs as placement sees them, with sums and indexes that are kept change by change.
//!
//! ```text
//!  set_node, drop_node ──► seats (facts, record, what is taken)        choose ──► reads seats once
//!  set_guest, set_owner ─► guests ──► taken of one seat, index of labels and rules
//!  set_heir ─► the same of a second seat, while a VM is on its way there
//! ```
//! Invariant: a seat's `taken` is the sum over the guests that it owns or that come to it, and each index entry names a guest
//! that is there.
//! [`Fleet::check`] tells when it is broken; tests call it after each change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vmkeep_types::host::{NodeFacts, NodeHealth};
use vmkeep_types::ids::{ImageId, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::node::{NodeRecord, Ratio};

use super::cpu::CpuKind;
use super::need::{Counts, Guest};
use super::rules::RuleIndex;

/// vCPUs per CPU where nobody said otherwise, and of one VM in any case: more only makes guests wait.
pub const CPU_OVERCOMMIT: u32 = 8;

/// What VMs take of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes.
    pub memory: u64,
    pub vcpus: u64,
    /// Bytes in huge pages; part of `memory` no more.
    pub hugepages: u64,
    pub vms: u32,
}

impl Taken {
    /// What one VM takes: nothing while it is kept off.
    pub fn by(guest: &Guest) -> Self {
        if guest.counts == Counts::No {
            return Self::default();
        }
        let bytes = guest.need.memory.bytes();
        let (memory, hugepages) = if guest.need.hugepages { (0, bytes) } else { (bytes, 0) };
        Self { memory, hugepages, vcpus: u64::from(guest.need.vcpus), vms: 1 }
    }

    fn plus(self, more: Self) -> Self {
        Self {
            memory: self.memory + more.memory,
            vcpus: self.vcpus + more.vcpus,
            hugepages: self.hugepages + more.hugepages,
            vms: self.vms + more.vms,
        }
    }

    /// Without what is part of it.
    fn less(self, part: Self) -> Self {
        Self {
            memory: self.memory - part.memory,
            vcpus: self.vcpus - part.vcpus,
            hugepages: self.hugepages - part.hugepages,
            vms: self.vms - part.vms,
        }
    }
}

/// How much of a node may be promised; None = as much as is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    pub vcpus: Option<u64>,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Seat {
    pub name: Name,
    pub facts: NodeFacts,
    /// Shared with the nodes of the same CPU.
    pub(super) cpu: Arc<CpuKind>,
    pub health: NodeHealth,
    pub record: NodeRecord,
    /// Why nobody could prove that it is dead; None: somebody could, or it was not asked.
    pub unprovable: Option<String>,
    pub taken: Taken,
    /// VMs that it owns, those too that take no room now.
    pub owned: BTreeSet<VmId>,
    /// VMs on their way here: their room is kept.
    pub coming: BTreeSet<VmId>,
    /// Host devices that its VMs have.
    pub pci_taken: BTreeMap<String, VmId>,
}

impl Seat {
    /// What fails with it: its failure domain, or itself alone.
    pub fn domain(&self) -> &str {
        self.record.spec.failure_domain.as_deref().unwrap_or(self.name.as_str())
    }

    /// A label of the node; `node` is its name.
    pub fn label(&self, key: &str) -> Option<&str> {
        if key == vmkeep_types::check::NODE_LABEL {
            return Some(self.name.as_str());
        }
        self.record.spec.labels.get(key).map(String::as_str)
    }

    /// Bytes for VMs, before overcommitting; reserved huge pages are apart.
    pub fn memory_for_vms(&self) -> u64 {
        let kept = self.record.spec.reserve.memory.bytes().saturating_add(self.facts.offers.hugepages.bytes());
        self.facts.memory.bytes().saturating_sub(kept)
    }

    pub fn cpus_for_vms(&self) -> u64 {
        u64::from(self.facts.cpus.saturating_sub(self.record.spec.reserve.cpus))
    }

    /// It is here, or comes: a VM is not in its own way.
    pub fn has(&self, id: VmId) -> bool {
        self.owned.contains(&id) || self.coming.contains(&id)
    }

    fn expect(&mut self, guest: &Guest) {
        self.coming.insert(guest.id);
        self.taken = self.taken.plus(Taken::by(guest));
    }

    fn expect_no_more(&mut self, guest: &Guest) {
        if self.coming.remove(&guest.id) {
            self.taken = self.taken.less(Taken::by(guest));
        }
    }

    fn add(&mut self, guest: &Guest) {
        self.owned.insert(guest.id);
        for address in &guest.need.pci {
            self.pci_taken.entry(address.clone()).or_insert(guest.id);
        }
        self.taken = self.taken.plus(Taken::by(guest));
    }

    fn remove(&mut self, guest: &Guest) {
        assert!(self.owned.remove(&guest.id), "only what was added is taken away");
        self.pci_taken.retain(|_, by| *by != guest.id);
        self.taken = self.taken.less(Taken::by(guest));
    }
}

#[derive(Clone, Debug, Default)]
pub struct Fleet {
    seats: BTreeMap<Name, Seat>,
    guests: BTreeMap<VmId, Guest>,
    /// VM to the node that owns it; the node need not have a seat (yet).
    owners: BTreeMap<VmId, Name>,
    /// VM to the node that it is on its way to.
    heirs: BTreeMap<VmId, Name>,
    /// VMs that no node owns.
    homeless: BTreeSet<VmId>,
    /// VMs of nodes that have no seat.
    waiting: BTreeMap<Name, BTreeSet<VmId>>,
    rules: RuleIndex,
    /// What a node had of a VM that another one owns by now, and has not taken away yet.
    leftovers: BTreeSet<(VmId, Name)>,
    /// Nodes that have a copy of an image.
    images: BTreeMap<ImageId, BTreeSet<Name>>,
    /// Nodes that a trial took away.
    hidden: usize,
    /// The CPUs that nodes have, each once.
    cpus: Vec<Arc<CpuKind>>,
}

impl Fleet {
    pub fn seats(&self) -> impl ExactSizeIterator<Item = &Seat> {
        self.seats.values()
    }

    pub fn seat(&self, node: &Name) -> Option<&Seat> {
        self.seats.get(node)
    }

    pub fn guest(&self, id: VmId) -> Option<&Guest> {
        self.guests.get(&id)
    }

    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
    }

    pub fn owner(&self, id: VmId) -> Option<&Name> {
        self.owners.get(&id)
    }

    /// The node that a VM is on its way to.
    pub fn heir(&self, id: VmId) -> Option<&Name> {
        self.heirs.get(&id)
    }

    /// VMs on their way from or to a node.
    pub fn on_the_way(&self, node: &Name) -> usize {
        self.heirs.iter().filter(|(id, heir)| *heir == node || self.owners.get(id) == Some(node)).count()
    }

    pub fn owned(&self) -> impl Iterator<Item = (&Guest, &Name)> {
        self.owners.iter().filter_map(|(id, node)| Some((self.guests.get(id)?, node)))
    }

    /// VMs that no node owns.
    pub fn homeless(&self) -> impl Iterator<Item = &Guest> {
        self.homeless.iter().filter_map(|id| self.guests.get(id))
    }

    pub(super) fn rules(&self) -> &RuleIndex {
        &self.rules
    }

    /// How much of a node may be promised. One host alone has no limits of its own: there is no better place for a VM.
    pub fn limits(&self, seat: &Seat) -> Limits {
        let alone = self.seats.len() + self.hidden <= 1;
        let overcommit = &seat.record.spec.overcommit;
        let cpu = overcommit.cpu.or((!alone).then_some(Ratio::from_hundredths(CPU_OVERCOMMIT * 100)));
        let memory = overcommit.memory.or((!alone).then_some(Ratio::ONE));
        Limits { memory: memory.map(|ratio| ratio.of(seat.memory_for_vms())), vcpus: cpu.map(|ratio| ratio.of(seat.cpus_for_vms())) }
    }

    /// A node as it describes itself and as people want it.
    pub fn set_node(&mut self, facts: NodeFacts, record: NodeRecord) {
        let cpu = self.cpu_kind(&facts);
        if let Some(seat) = self.seats.get_mut(&facts.name) {
            (seat.facts, seat.record, seat.cpu) = (facts, record, cpu);
            return;
        }
        let name = facts.name.clone();
        let (taken, owned, coming, pci_taken) = Default::default();
        let (health, unprovable) = (NodeHealth::Online, None);
        let mut seat = Seat { name: name.clone(), facts, cpu, health, record, unprovable, taken, owned, coming, pci_taken };
        for id in self.waiting.remove(&name).unwrap_or_default() {
            self.guests.get(&id).into_iter().for_each(|guest| seat.add(guest));
        }
        let coming = self.heirs.iter().filter(|(_, heir)| **heir == name).filter_map(|(id, _)| self.guests.get(id));
        coming.for_each(|guest| seat.expect(guest));
        self.seats.insert(name, seat);
    }

    fn cpu_kind(&mut self, facts: &NodeFacts) -> Arc<CpuKind> {
        if let Some(kind) = self.cpus.iter().find(|kind| kind.is_of(facts)) {
            return kind.clone();
        }
        self.cpus.retain(|kind| Arc::strong_count(kind) > 1);
        let kind = Arc::new(CpuKind::of(facts));
        self.cpus.push(kind.clone());
        kind
    }

    pub(super) fn cpu_kinds(&self) -> &[Arc<CpuKind>] {
        &self.cpus
    }

    /// The nodes that have a copy of an image.
    pub fn set_image(&mut self, id: ImageId, holders: BTreeSet<Name>) {
        self.images.insert(id, holders);
    }

    pub fn drop_image(&mut self, id: ImageId) {
        self.images.remove(&id);
    }

    pub(super) fn has_image(&self, id: ImageId, node: &Name) -> bool {
        self.images.get(&id).is_some_and(|holders| holders.contains(node))
    }

    /// What is heard of a node.
    pub fn set_health(&mut self, node: &Name, health: NodeHealth) {
        if let Some(seat) = self.seats.get_mut(node) {
            seat.health = health;
        }
    }

    /// Why its death could not be proved, if that is so: highly available VMs go elsewhere if they can.
    pub fn set_unprovable(&mut self, node: &Name, why: Option<String>) {
        if let Some(seat) = self.seats.get_mut(node) {
            seat.unprovable = why;
        }
    }

    pub fn drop_node(&mut self, node: &Name) {
        if let Some(seat) = self.seats.remove(node) {
            self.waiting.insert(node.clone(), seat.owned);
        }
    }

    /// A node is gone for a while, in a trial; limits stay those of the whole cluster.
    pub(super) fn hide_node(&mut self, node: &Name) {
        self.hidden += usize::from(self.seats.remove(node).is_some());
    }

    /// Puts back what [`Self::hide_node`] took, without VMs.
    pub(super) fn show_node(&mut self, seat: Seat) {
        self.hidden -= 1;
        self.set_node(seat.facts, seat.record);
        self.set_health(&seat.name, seat.health);
        self.set_unprovable(&seat.name, seat.unprovable);
    }

    /// A new VM, or what an old one asks for now.
    pub fn set_guest(&mut self, guest: Guest) {
        if self.guests.get(&guest.id) == Some(&guest) {
            return;
        }
        let (node, heir) = (self.owners.get(&guest.id).cloned(), self.heirs.get(&guest.id).cloned());
        self.drop_guest(guest.id);
        let id = guest.id;
        self.guests.insert(id, guest);
        self.homeless.insert(id);
        self.set_owner(id, node.as_ref());
        self.set_heir(id, heir.as_ref());
    }

    pub fn drop_guest(&mut self, id: VmId) {
        self.set_heir(id, None);
        self.set_owner(id, None);
        self.guests.remove(&id);
        self.homeless.remove(&id);
    }

    /// The node that owns a VM, or none.
    pub fn set_owner(&mut self, id: VmId, node: Option<&Name>) {
        if self.owners.get(&id) == node {
            return;
        }
        if node.is_some() && self.heirs.get(&id) == node {
            self.set_heir(id, None);
        }
        if let Some(old) = self.owners.remove(&id) {
            self.leave(id, &old);
            if self.guests.contains_key(&id) {
                self.homeless.insert(id);
            }
        }
        if let Some(node) = node {
            self.enter(id, node);
            self.homeless.remove(&id);
            self.owners.insert(id, node.clone());
        }
    }

    /// The node that a VM is on its way to keeps room for it, and rules count it there too, until it has come or stays away.
    pub fn set_heir(&mut self, id: VmId, node: Option<&Name>) {
        let node = node.filter(|node| self.owners.get(&id) != Some(*node));
        if self.heirs.get(&id) == node {
            return;
        }
        let guest = self.guests.get(&id);
        if let (Some(old), Some(guest)) = (self.heirs.remove(&id), guest) {
            self.seats.get_mut(&old).into_iter().for_each(|seat| seat.expect_no_more(guest));
            self.rules.remove(guest, &old);
        }
        if let (Some(node), Some(guest)) = (node, guest) {
            self.seats.get_mut(node).into_iter().for_each(|seat| seat.expect(guest));
            self.rules.add(guest, node);
            self.heirs.insert(id, node.clone());
        }
    }

    /// `node` is to take away what it had of a VM.
    pub fn leave_behind(&mut self, id: VmId, node: &Name) {
        self.leftovers.insert((id, node.clone()));
    }

    /// It has.
    pub fn tidy_up(&mut self, id: VmId, node: &Name) {
        self.leftovers.remove(&(id, node.clone()));
    }

    pub fn has_leftovers(&self, id: VmId, node: &Name) -> bool {
        self.leftovers.contains(&(id, node.clone()))
    }

    /// Nodes that are to take away what they had of it.
    pub fn leftovers_of(&self, id: VmId) -> impl Iterator<Item = &Name> {
        let least = (id, Name::known("0"));
        self.leftovers.range(least..).take_while(move |(of, _)| *of == id).map(|(_, node)| node)
    }

    fn leave(&mut self, id: VmId, node: &Name) {
        let guest = self.guests.get(&id);
        match self.seats.get_mut(node) {
            Some(seat) => guest.into_iter().for_each(|guest| seat.remove(guest)),
            None => {
                self.waiting.get_mut(node).into_iter().for_each(|vms| vms.retain(|waits| *waits != id));
            }
        }
        guest.into_iter().for_each(|guest| self.rules.remove(guest, node));
    }

    fn enter(&mut self, id: VmId, node: &Name) {
        let guest = self.guests.get(&id);
        match self.seats.get_mut(node) {
            Some(seat) => guest.into_iter().for_each(|guest| seat.add(guest)),
            None => {
                self.waiting.entry(node.clone()).or_default().insert(id);
            }
        }
        guest.into_iter().for_each(|guest| self.rules.add(guest, node));
    }

    /// Whether sums and indexes are those of the guests; what is wrong otherwise.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn check(&self) -> Result<(), String> {
        let mut fresh = Self::default();
        for seat in self.seats.values() {
            fresh.set_node(seat.facts.clone(), seat.record.clone());
        }
        for guest in self.guests.values() {
            fresh.set_guest(guest.clone());
            fresh.set_owner(guest.id, self.owners.get(&guest.id));
            fresh.set_heir(guest.id, self.heirs.get(&guest.id));
        }
        for (kept, summed) in self.seats.values().zip(fresh.seats.values()) {
            if (kept.taken, &kept.owned, &kept.coming) != (summed.taken, &summed.owned, &summed.coming) {
                return Err(format!("{}: {:?} is kept, {:?} is the sum", kept.name, kept.taken, summed.taken));
            }
        }
        if self.homeless != fresh.homeless {
            return Err("the list of VMs without a node is not true".into());
        }
        if self.rules == fresh.rules { Ok(()) } else { Err("the index of rules is not that of the guests".into()) }
    }
}
