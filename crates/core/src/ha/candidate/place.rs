//! Where a VM goes: rules about nodes first, then [`crate::place`] with its capacity, its rules between VMs and its score.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use vmkeep_types::host::{KvmState, NodeFacts, NodeHealth};
use vmkeep_types::ids::{Epoch, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::node::NodeRecord;
use vmkeep_types::placement::{PlacementWish, VmRule, Within};
use vmkeep_types::units::ByteCount;

use super::super::ready::Ready;
use super::super::record::{NodeNo, Rule, RunWish, Settings, Strictness, VmNo, Wish};
use super::super::vigil::NodeNow;
use super::Roster;
use super::view::View;
use crate::place::need::{Accel, Counts, Home};
use crate::place::score::Safety;
use crate::place::{Fleet, Guest, Need, Refusal, explain};

/// All nodes and VMs at one look; changed as VMs are given places.
pub struct Board {
    fleet: Fleet,
    settings: Arc<Settings>,
    roster: Arc<Roster>,
    nodes: Vec<NodeNow>,
}

/// The nodes on which a VM takes room and has neighbours: on its way it does at both ends, for it may still stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Whereabouts {
    pub here: Option<NodeNo>,
    pub heir: Option<NodeNo>,
}

/// One node for one VM.
struct Spot {
    node: NodeNo,
    /// By rules about nodes: the larger the better.
    preference: u32,
    /// If the node dies somebody can prove it.
    safety: Safety,
    /// Why it cannot be there.
    refused: Option<String>,
    /// A strict rule is what refuses.
    by_rule: bool,
}

pub(super) fn id_of(vm: VmNo) -> VmId {
    VmId(uuid::Uuid::from_u64_pair(1, vm.0.into()))
}

impl Board {
    /// `at`: the nodes that count as a VM's.
    pub(super) fn new(
        view: &View,
        settings: Arc<Settings>,
        roster: Arc<Roster>,
        nodes: Vec<NodeNow>,
        at: impl Fn(VmNo) -> Whereabouts,
    ) -> Self {
        let mut fleet = Fleet::default();
        for (n, is) in nodes.iter().enumerate() {
            let name = roster.nodes[n].clone();
            let (cpus, memory_mib) = settings.sizes[n];
            fleet.set_node(facts(&name, cpus, memory_mib), NodeRecord::named(name.clone()));
            if !is.takes_vms() {
                fleet.set_health(&name, NodeHealth::Offline);
            }
            fleet.set_unprovable(&name, (is.ready == Ready::Unprovable).then(|| "only a person can say that it is dead".to_owned()));
        }
        for (vm, wish) in view.vms().filter(|(_, wish)| wish.run != RunWish::Deleted) {
            fleet.set_guest(guest(vm, wish, &settings, &roster));
            let Whereabouts { here, heir } = at(vm);
            let name = |node: NodeNo| roster.nodes.get(usize::from(node.0));
            fleet.set_owner(id_of(vm), here.and_then(name));
            fleet.set_heir(id_of(vm), heir.and_then(name));
        }
        Self { fleet, settings, roster, nodes }
    }

    pub(super) fn set_owner(&mut self, vm: VmNo, node: NodeNo) {
        self.fleet.set_owner(id_of(vm), self.roster.nodes.get(usize::from(node.0)));
    }

    /// It sets out for another node, and is still where it was.
    pub(super) fn set_heir(&mut self, vm: VmNo, node: NodeNo) {
        self.fleet.set_heir(id_of(vm), self.roster.nodes.get(usize::from(node.0)));
    }

    /// The best node for a VM, or why there is none. `prefer` goes before every preference but no strict rule.
    pub(super) fn choose(&self, vm: VmNo, avoid: &[NodeNo], prefer: Option<NodeNo>) -> Result<NodeNo, String> {
        let spots = self.spots(vm);
        let open = spots.iter().filter(|spot| spot.refused.is_none() && !avoid.contains(&spot.node));
        // The first of equals: placement has put the better ones first.
        let best = open.min_by_key(|spot| (prefer != Some(spot.node), spot.safety, Reverse(spot.preference)));
        best.map(|spot| spot.node).ok_or_else(|| self.words(&spots, avoid))
    }

    /// May it be on this node at all?
    pub(super) fn may(&self, vm: VmNo, node: NodeNo) -> Result<(), String> {
        let spot = self.spots(vm).into_iter().find(|spot| spot.node == node);
        match spot.and_then(|spot| spot.refused) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Is it a node whose death could not be proved, while another one would do?
    pub(super) fn is_last_resort(&self, vm: VmNo, node: NodeNo) -> bool {
        let spots = self.spots(vm);
        let better = |spot: &Spot| spot.refused.is_none() && spot.safety == Safety::Provable;
        spots.iter().any(|spot| spot.node == node && spot.safety == Safety::Unprovable) && spots.iter().any(better)
    }

    /// A strict rule that a VM breaks where it is, in words.
    pub(super) fn broken_at(&self, vm: VmNo, node: NodeNo) -> Option<String> {
        self.spots(vm).into_iter().find(|spot| spot.node == node && spot.by_rule)?.refused
    }

    pub(super) fn preference(&self, vm: VmNo, node: NodeNo) -> u32 {
        preference(&self.settings, vm, node).0
    }

    fn spots(&self, vm: VmNo) -> Vec<Spot> {
        let Some(guest) = self.fleet.guest(id_of(vm)) else { return Vec::new() };
        let mut spots: Vec<Spot> = Vec::new();
        for verdict in explain(&self.fleet, guest) {
            let n = self.roster.nodes.iter().position(|name| *name == verdict.node).expect("the fleet is made of these");
            let node = NodeNo(u16::try_from(n).expect("nodes are numbered so"));
            let (preference, strictly_out) = preference(&self.settings, vm, node);
            let is = &self.nodes[n];
            let by_rule = matches!(verdict.fits, Err(Refusal::Apart { .. } | Refusal::NotWith { .. })) || strictly_out.is_some();
            let refused = match (strictly_out, verdict.fits) {
                (Some(rule), _) => Some(rule.to_owned()),
                (None, _) if !is.takes_vms() => Some(is.why_not().to_owned()),
                (None, Err(Refusal::Apart { .. })) => Some(format!("{}, and a strict rule keeps them apart", self.who_is_at(vm, node))),
                (None, Err(Refusal::NotWith { .. })) => Some("the VMs that a strict rule keeps it with are elsewhere".to_owned()),
                (None, Err(refusal)) => Some(refusal.to_string()),
                (None, Ok(_)) => None,
            };
            let safety = if is.ready == Ready::Unprovable { Safety::Unprovable } else { Safety::Provable };
            spots.push(Spot { node, preference, safety, refused, by_rule });
        }
        spots.sort_by_key(|spot| Reverse(spot.preference));
        spots
    }

    /// `a is there`: whom a rule means.
    fn who_is_at(&self, vm: VmNo, node: NodeNo) -> String {
        let name = &self.roster.nodes[usize::from(node.0)];
        let apart = self.settings.rules.iter().filter(|rule| matches!(rule, Rule::Apart { .. }) && rule.vms().contains(&vm));
        let mut others = apart.flat_map(|rule| rule.vms()).filter(|other| **other != vm);
        let there = others.find(|other| self.fleet.owner(id_of(**other)) == Some(name));
        there.map_or_else(|| "another VM is there".to_owned(), |other| format!("{} is there", self.roster.vm(*other)))
    }

    fn words(&self, spots: &[Spot], avoid: &[NodeNo]) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut by_name: Vec<&Spot> = spots.iter().collect();
        by_name.sort_by_key(|spot| spot.node);
        for spot in by_name {
            let why = match &spot.refused {
                Some(why) => why.as_str(),
                None if avoid.contains(&spot.node) => "it has been tried",
                None => continue,
            };
            parts.push(format!("{}: {why}", self.roster.node(spot.node)));
        }
        format!("no node can take it ({})", parts.join("; "))
    }
}

/// What rules about nodes make of one node: its preference, and the words of a strict rule that excludes it.
fn preference(settings: &Settings, vm: VmNo, node: NodeNo) -> (u32, Option<&'static str>) {
    let mut sum = 0;
    for rule in &settings.rules {
        let Rule::Nodes { vms, nodes, how } = rule else { continue };
        if !vms.contains(&vm) {
            continue;
        }
        match nodes.iter().find(|(n, _)| *n == node) {
            // A node of the rule is better than one that is not.
            Some((_, weight)) => sum += weight.saturating_add(1),
            None if *how == Strictness::Strict => return (0, Some("a strict rule keeps it on other nodes")),
            None => {}
        }
    }
    (sum, None)
}

fn guest(vm: VmNo, wish: &Wish, settings: &Settings, roster: &Roster) -> Guest {
    let mut placement = PlacementWish::default();
    let mut labels = BTreeMap::new();
    for (n, rule) in settings.rules.iter().enumerate().filter(|(_, rule)| rule.vms().contains(&vm)) {
        let (list, how) = match rule {
            Rule::Nodes { .. } => continue,
            Rule::Together { how, .. } => (&mut placement.affinity, how),
            Rule::Apart { how, .. } => (&mut placement.anti_affinity, how),
        };
        // All VMs of a rule have one label: so a group that is scattered can come together one by one.
        let group = (format!("rule{n}"), String::new());
        list.push(VmRule { vm: None, labels: BTreeMap::from([group.clone()]), strict: *how == Strictness::Strict, within: Within::Node });
        labels.insert(group.0, group.1);
    }
    let need = Need {
        vcpus: wish.cpus,
        memory: ByteCount::from_mib(wish.memory_mib),
        hugepages: false,
        cpu: None,
        machine: None,
        accel: Accel::Any,
        bridges: Vec::new(),
        pools: Vec::new(),
        pci: Vec::new(),
        wish: placement,
        home: Home::Anywhere,
        images: Vec::new(),
        priority: wish.priority,
    };
    let counts = if wish.run == RunWish::Started { Counts::Yes } else { Counts::No };
    let name = roster.vms.get(&vm).cloned().unwrap_or_else(|| Name::known("unnamed"));
    Guest { id: id_of(vm), project: Name::known("default"), name, labels, need, counts }
}

fn facts(name: &Name, cpus: u32, memory_mib: u64) -> NodeFacts {
    NodeFacts {
        name: name.clone(),
        epoch: Epoch(1),
        boot_id: String::new(),
        cpus,
        memory: ByteCount::from_mib(memory_mib),
        kvm: KvmState::Usable,
        libvirt_version: None,
        qemu_version: None,
        vmkeep_version: String::new(),
        hypervisor_up: true,
        address: None,
        offers: Default::default(),
        migration: None,
    }
}
