//! Why a node cannot have a VM: the hard filters, in the order in which they are told.

use std::fmt;

use vmkeep_types::host::{KvmState, NodeHealth};
use vmkeep_types::name::Name;
use vmkeep_types::node::{Taint, TaintEffect};
use vmkeep_types::units::ByteCount;

use super::cpu::CpuLack;
use super::fleet::{CPU_OVERCOMMIT, Fleet, Seat, Taken};
use super::need::{Accel, Guest, HoldsVolumes, Need};
use super::rules::Neighbours;

/// What vmkeep's machines (q35, pc) are.
const ARCH: &str = "x86_64";

/// Nodes that are told one by one when a VM fits nowhere; the others are counted.
const NODES_TOLD_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its heartbeat does not come.
    Silent,
    NoHypervisor,
    Cordoned {
        by: String,
        why: String,
    },
    Tainted {
        taint: String,
    },
    Selector {
        key: String,
        wants: String,
        has: Option<String>,
    },
    Arch {
        has: String,
    },
    Machine {
        wants: String,
    },
    Cpu(CpuLack),
    NoKvm {
        why: String,
    },
    VolumesElsewhere,
    VolumesScattered,
    /// What it had of the VM is still to go: what comes now would go with it.
    Leftovers,
    NoBridge {
        network: Name,
        bridge: String,
    },
    /// What it has in the pool's place is not the pool.
    NoPool {
        pool: Name,
    },
    NoDevice {
        address: String,
    },
    DeviceTaken {
        address: String,
        by: Option<Name>,
    },
    /// More than the host has.
    Memory {
        needs: ByteCount,
        has: ByteCount,
    },
    Cpus {
        needs: u32,
        has: u32,
    },
    /// More than others left.
    MemoryFree {
        needs: ByteCount,
        free: ByteCount,
        of: ByteCount,
    },
    HugepagesFree {
        needs: ByteCount,
        free: ByteCount,
    },
    CpusFree {
        needs: u32,
        free: u64,
        of: u64,
    },
    /// A strict rule: whom it must be apart from.
    Apart {
        from: String,
        domain: Option<String>,
    },
    /// A strict rule: whom it must be with.
    NotWith {
        whom: String,
    },
    /// A VM that must go along cannot be there.
    Follower {
        vm: Name,
        why: Box<Refusal>,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("it does not answer"),
            Self::NoHypervisor => f.write_str("libvirt does not answer"),
            Self::Cordoned { by, why } if why.is_empty() => write!(f, "it is cordoned (by {by})"),
            Self::Cordoned { by, why } => write!(f, "it is cordoned (by {by}: {why})"),
            Self::Tainted { taint } => write!(f, "it has the taint {taint}, which the VM does not tolerate"),
            Self::Selector { key, wants, has: Some(has) } => write!(f, "node_selector wants {key}={wants}, and it has {key}={has}"),
            Self::Selector { key, wants, has: None } => write!(f, "node_selector wants {key}={wants}, and it has no label {key}"),
            Self::Arch { has } => write!(f, "its CPUs are {has}, the machine is {ARCH}"),
            Self::Cpu(lack) => lack.fmt(f),
            Self::Machine { wants } => write!(f, "its QEMU has no machine type {wants}"),
            Self::NoKvm { why } => write!(f, "the VM runs with hardware virtualisation, and it has none ({why})"),
            Self::VolumesElsewhere => f.write_str("its volumes are on another node"),
            Self::VolumesScattered => f.write_str("its volumes are on several nodes"),
            Self::Leftovers => f.write_str("it still takes away what it had of the VM"),
            Self::NoBridge { network, bridge } => write!(f, "network '{network}' is not reachable: there is no bridge {bridge}"),
            Self::NoPool { pool } => write!(f, "pool '{pool}' is not reachable: what is at its path is not the pool (not mounted?)"),
            Self::NoDevice { address } => write!(f, "it has no PCI device {address}"),
            Self::DeviceTaken { address, by: Some(by) } => write!(f, "PCI device {address} is VM '{by}''s"),
            Self::DeviceTaken { address, by: None } => write!(f, "PCI device {address} is another VM's"),
            Self::Memory { needs, has } => write!(f, "needs {} of memory, the host has {}", needs.human(), has.human()),
            Self::Cpus { needs, has } => write!(f, "needs {needs} vCPUs, the host has {has} CPUs ({CPU_OVERCOMMIT} vCPUs each at most)"),
            Self::MemoryFree { needs, free, of } => {
                write!(f, "needs {} of memory, {} of {} are free", needs.human(), free.human(), of.human())
            }
            Self::HugepagesFree { needs, free } => write!(f, "needs {} of huge pages, {} are free", needs.human(), free.human()),
            Self::CpusFree { needs, free, of } => write!(f, "needs {needs} vCPUs, {free} of {of} are free"),
            Self::Apart { from, domain: None } => write!(f, "{from} is there, and a strict rule keeps them apart"),
            Self::Apart { from, domain: Some(domain) } => {
                write!(f, "{from} is in its failure domain {domain}, and a strict rule keeps them apart")
            }
            Self::Follower { vm, why } => write!(f, "VM '{vm}' must go along, and: {why}"),
            Self::NotWith { whom } => write!(f, "{whom} is elsewhere, and a strict rule keeps them together"),
        }
    }
}

/// The first reason that keeps `guest` from `seat`; None: it may come.
pub fn refuse(fleet: &Fleet, seat: &Seat, guest: &Guest, neighbours: &Neighbours) -> Option<Refusal> {
    node_itself(seat, guest, neighbours)
        .or_else(|| reach(fleet, seat, guest))
        .or_else(|| room(fleet, seat, guest))
        .or_else(|| by_rules(seat, neighbours))
}

fn node_itself(seat: &Seat, guest: &Guest, neighbours: &Neighbours) -> Option<Refusal> {
    let (facts, need) = (&seat.facts, &guest.need);
    if seat.health != NodeHealth::Online {
        return Some(Refusal::Silent);
    }
    if !facts.hypervisor_up {
        return Some(Refusal::NoHypervisor);
    }
    // Whoever is here already stays.
    if let Some(cordon) = seat.record.cordon.as_ref().filter(|_| !seat.has(guest.id)) {
        return Some(Refusal::Cordoned { by: cordon.by.clone(), why: cordon.why.clone() });
    }
    let taints = seat.record.spec.taints.iter();
    if let Some(taint) = taints.filter(|taint| taint.effect == TaintEffect::Refuse).find(|taint| !tolerates(need, taint)) {
        let value = taint.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
        return Some(Refusal::Tainted { taint: format!("{}{value}", taint.key) });
    }
    if let Some((key, wants)) = need.wish.node_selector.iter().find(|(key, wants)| seat.label(key) != Some(wants)) {
        return Some(Refusal::Selector { key: key.clone(), wants: wants.clone(), has: seat.label(key).map(str::to_owned) });
    }
    if !facts.offers.arch.is_empty() && facts.offers.arch != ARCH {
        return Some(Refusal::Arch { has: facts.offers.arch.clone() });
    }
    if let Some(lack) = neighbours.cpu_lack(seat) {
        return Some(Refusal::Cpu(lack.clone()));
    }
    let has_machine = |machine: &&String| facts.offers.machines.is_empty() || facts.offers.machines.contains(*machine);
    if let Some(machine) = need.machine.as_ref().filter(|machine| !has_machine(machine)) {
        return Some(Refusal::Machine { wants: machine.clone() });
    }
    match (&facts.kvm, need.accel) {
        (KvmState::Unusable { why }, Accel::Kvm) => Some(Refusal::NoKvm { why: why.clone() }),
        (KvmState::Unusable { .. }, Accel::Any) | (KvmState::Usable, _) => None,
    }
}

/// Does the VM bear a taint?
pub fn tolerates(need: &Need, taint: &Taint) -> bool {
    need.wish.tolerations.iter().any(|t| t.key == taint.key && (t.value.is_none() || t.value == taint.value))
}

fn reach(fleet: &Fleet, seat: &Seat, guest: &Guest) -> Option<Refusal> {
    let (offers, need) = (&seat.facts.offers, &guest.need);
    // Who told its architecture has looked: what it does not name is not there.
    let looked = !offers.arch.is_empty();
    if need.home.seen_from(&seat.name) == HoldsVolumes::Elsewhere {
        let scattered = need.home == super::need::Home::Scattered;
        return Some(if scattered { Refusal::VolumesScattered } else { Refusal::VolumesElsewhere });
    }
    if !seat.has(guest.id) && fleet.has_leftovers(guest.id, &seat.name) {
        return Some(Refusal::Leftovers);
    }
    if let Some((network, bridge)) = need.bridges.iter().find(|(_, bridge)| looked && !offers.bridges.contains(bridge)) {
        return Some(Refusal::NoBridge { network: network.clone(), bridge: bridge.clone() });
    }
    if let Some(pool) = need.pools.iter().find(|pool| !offers.may_have(pool.id, pool.mark)) {
        return Some(Refusal::NoPool { pool: pool.name.clone() });
    }
    for address in &need.pci {
        if looked && !offers.pci.contains(address) {
            return Some(Refusal::NoDevice { address: address.clone() });
        }
        if let Some(by) = seat.pci_taken.get(address).filter(|by| **by != guest.id) {
            return Some(Refusal::DeviceTaken { address: address.clone(), by: fleet.guest(*by).map(|g| g.name.clone()) });
        }
    }
    None
}

fn room(fleet: &Fleet, seat: &Seat, guest: &Guest) -> Option<Refusal> {
    let (facts, need) = (&seat.facts, &guest.need);
    if need.memory > facts.memory {
        return Some(Refusal::Memory { needs: need.memory, has: facts.memory });
    }
    if need.vcpus > facts.cpus.saturating_mul(CPU_OVERCOMMIT) {
        return Some(Refusal::Cpus { needs: need.vcpus, has: facts.cpus });
    }
    let taken = others(seat, guest);
    let limits = fleet.limits(seat);
    let bytes = need.memory.bytes();
    if need.hugepages {
        let free = facts.offers.hugepages.bytes().saturating_sub(taken.hugepages);
        if !facts.offers.arch.is_empty() && bytes > free {
            return Some(Refusal::HugepagesFree { needs: need.memory, free: ByteCount::from_bytes(free) });
        }
    } else if let Some(of) = limits.memory {
        let free = of.saturating_sub(taken.memory);
        if bytes > free {
            let (free, of) = (ByteCount::from_bytes(free), ByteCount::from_bytes(of));
            return Some(Refusal::MemoryFree { needs: need.memory, free, of });
        }
    }
    let of = limits.vcpus?;
    let free = of.saturating_sub(taken.vcpus);
    (u64::from(need.vcpus) > free).then_some(Refusal::CpusFree { needs: need.vcpus, free, of })
}

/// What the other VMs take: a VM is not in its own way.
pub fn others(seat: &Seat, guest: &Guest) -> Taken {
    let own = if seat.has(guest.id) { Taken::by(guest) } else { Taken::default() };
    Taken {
        memory: seat.taken.memory.saturating_sub(own.memory),
        vcpus: seat.taken.vcpus.saturating_sub(own.vcpus),
        hugepages: seat.taken.hugepages.saturating_sub(own.hugepages),
        vms: seat.taken.vms.saturating_sub(own.vms),
    }
}

fn by_rules(seat: &Seat, neighbours: &Neighbours) -> Option<Refusal> {
    if let Some(spots) = neighbours.never_with.iter().find(|spots| spots.at(seat) > 0) {
        let domain = seat.record.spec.failure_domain.clone().filter(|_| !spots.on(seat));
        return Some(Refusal::Apart { from: spots.rule.clone(), domain });
    }
    let away = neighbours.only_with.iter().find(|spots| spots.at(seat) == 0)?;
    Some(Refusal::NotWith { whom: away.rule.clone() })
}

/// The refusals in one sentence, as operations and `vm show` print it.
pub fn words(refusals: &[(Name, Refusal)]) -> String {
    if refusals.is_empty() {
        return "no node has joined yet".into();
    }
    let mut parts: Vec<String> = refusals.iter().take(NODES_TOLD_MAX).map(|(node, why)| format!("{node}: {why}")).collect();
    if refusals.len() > NODES_TOLD_MAX {
        parts.push(format!("and {} more nodes; `vmkeep vm explain` tells them all", refusals.len() - NODES_TOLD_MAX));
    }
    format!("no node can take it ({})", parts.join("; "))
}
