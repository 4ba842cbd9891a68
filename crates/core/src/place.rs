//! Which node owns a VM.
//!
//! Hard filters first, each with its reason in words; then a score whose field order is the policy and whose last field is
//! the name, so that it is total and repeatable. One host and a cluster run the same code: a single host is a choice of one.

use std::cmp::Reverse;
use std::fmt;

use vmkeep_types::host::NodeFacts;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;
use vmkeep_types::vm::VmSpec;

/// vCPUs per CPU of a host that one VM may have: more only makes it slower.
pub const VCPUS_PER_CPU_MAX: u32 = 8;

/// A node as the planner sees it.
#[derive(Clone, Debug)]
pub struct NodeLoad<'a> {
    pub facts: &'a NodeFacts,
    /// Memory wished by the VMs it owns.
    pub memory_owned: ByteCount,
    pub vms_owned: u32,
    /// It holds volumes of this VM that only it can reach.
    pub holds_volumes: HoldsVolumes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldsVolumes {
    /// None of the VM's volumes is bound to another node.
    Free,
    /// They are here.
    Here,
    /// They are on another node.
    Elsewhere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Node(Name),
    /// Nowhere, and why, node by node.
    Blocked(Vec<(Name, Refusal)>),
}

/// Why a node cannot have the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoHypervisor,
    Memory { needs: ByteCount, has: ByteCount },
    Cpus { needs: u32, has: u32 },
    VolumesElsewhere,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHypervisor => f.write_str("libvirt does not answer"),
            Self::Memory { needs, has } => write!(f, "needs {} of memory, the host has {}", needs.human(), has.human()),
            Self::Cpus { needs, has } => write!(f, "needs {needs} vCPUs, the host has {has} CPUs ({VCPUS_PER_CPU_MAX} vCPUs each at most)"),
            Self::VolumesElsewhere => f.write_str("its volumes are on another node"),
        }
    }
}

/// Smaller is better; the order of the fields is the policy.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    volumes: Reverse<HoldsVolumes>,
    /// Share of memory owned after placement, in 1/1000.
    memory_permille: u64,
    vms: u32,
    name: &'a Name,
}

/// Picks the node for one VM.
pub fn choose(spec: &VmSpec, nodes: &[NodeLoad<'_>]) -> Choice {
    let mut refusals = Vec::new();
    let mut best: Option<Score<'_>> = None;
    for node in nodes {
        match refuse(spec, node) {
            Some(refusal) => refusals.push((node.facts.name.clone(), refusal)),
            None => {
                let score = score(spec, node);
                if best.as_ref().is_none_or(|b| score < *b) {
                    best = Some(score);
                }
            }
        }
    }
    best.map_or(Choice::Blocked(refusals), |score| Choice::Node(score.name.clone()))
}

fn refuse(spec: &VmSpec, node: &NodeLoad<'_>) -> Option<Refusal> {
    let facts = node.facts;
    if !facts.hypervisor_up {
        return Some(Refusal::NoHypervisor);
    }
    if node.holds_volumes == HoldsVolumes::Elsewhere {
        return Some(Refusal::VolumesElsewhere);
    }
    if spec.memory.size > facts.memory {
        return Some(Refusal::Memory { needs: spec.memory.size, has: facts.memory });
    }
    if spec.cpus.count > facts.cpus.saturating_mul(VCPUS_PER_CPU_MAX) {
        return Some(Refusal::Cpus { needs: spec.cpus.count, has: facts.cpus });
    }
    None
}

fn score<'a>(spec: &VmSpec, node: &NodeLoad<'a>) -> Score<'a> {
    let after = node.memory_owned.bytes().saturating_add(spec.memory.size.bytes());
    let memory_permille = after.saturating_mul(1000) / node.facts.memory.bytes().max(1);
    let volumes = if node.holds_volumes == HoldsVolumes::Here { HoldsVolumes::Here } else { HoldsVolumes::Free };
    Score { volumes: Reverse(volumes), memory_permille, vms: node.vms_owned, name: &node.facts.name }
}

/// The refusals in one sentence, as operations and `vm show` print it.
pub fn words(refusals: &[(Name, Refusal)]) -> String {
    if refusals.is_empty() {
        return "no node has joined yet".into();
    }
    let parts: Vec<String> = refusals.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    format!("no node can take it ({})", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmkeep_types::host::KvmState;
    use vmkeep_types::ids::Epoch;

    fn facts(name: &'static str, gib: u64) -> NodeFacts {
        NodeFacts {
            name: Name::known(name),
            epoch: Epoch(1),
            boot_id: "b".into(),
            cpus: 2,
            memory: ByteCount::from_gib(gib),
            kvm: KvmState::Usable,
            libvirt_version: None,
            qemu_version: None,
            vmkeep_version: "0".into(),
            hypervisor_up: true,
            address: None,
        }
    }

    fn load(facts: &NodeFacts, owned_gib: u64) -> NodeLoad<'_> {
        NodeLoad { facts, memory_owned: ByteCount::from_gib(owned_gib), vms_owned: 0, holds_volumes: HoldsVolumes::Free }
    }

    #[test]
    fn the_emptier_node_wins_and_ties_go_by_name() {
        let (a, b) = (facts("a", 8), facts("b", 8));
        let spec = VmSpec::named(Name::known("web1"));
        assert_eq!(choose(&spec, &[load(&a, 4), load(&b, 2)]), Choice::Node(Name::known("b")));
        assert_eq!(choose(&spec, &[load(&b, 2), load(&a, 2)]), Choice::Node(Name::known("a")));
        let here = NodeLoad { holds_volumes: HoldsVolumes::Here, ..load(&a, 7) };
        assert_eq!(choose(&spec, &[here, load(&b, 0)]), Choice::Node(Name::known("a")), "volumes stay where they are");
    }

    #[test]
    fn a_refusal_says_why_for_each_node() {
        let (small, mut dead) = (facts("a", 1), facts("b", 64));
        dead.hypervisor_up = false;
        let mut spec = VmSpec::named(Name::known("web1"));
        spec.memory.size = ByteCount::from_gib(4);
        let Choice::Blocked(why) = choose(&spec, &[load(&small, 0), load(&dead, 0)]) else { panic!("it fits nowhere") };
        assert_eq!(words(&why), "no node can take it (a: needs 4G of memory, the host has 1G; b: libvirt does not answer)");
    }
}
