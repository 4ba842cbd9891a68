//! How well a node would do for a VM.

use std::fmt;

use vmkeep_types::host::KvmState;
use vmkeep_types::name::Name;
use vmkeep_types::node::TaintEffect;

use super::fleet::{CPU_OVERCOMMIT, Fleet, Seat};
use super::need::{Guest, HoldsVolumes, Movement, Need};
use super::refuse::{others, tolerates};
use super::rules::Neighbours;

/// Smaller is better; the order of the fields is the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    pub safety: Safety,
    pub speed: Speed,
    /// Wishes that are not strict: VMs of a rule on the wrong side, taints to be avoided.
    pub preferred_broken: u32,
    /// VMs in its failure domain from which this one is to be apart.
    pub crowd_in_domain: u32,
    /// The scarcest resource after placement, in twentieths, so that a little more or less does not outweigh what follows.
    pub used_twentieths: u64,
    pub numa: NumaFit,
    /// The scarcest resource after placement, 1/1000.
    pub used_permille: u64,
    pub vms: u32,
    /// After the spreading: what has to be fetched once does not keep VMs together for good.
    pub movement: Movement,
    pub node: Name,
}

/// Of a highly available VM: can the node's death be proved? All others stay with their node anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Safety {
    Provable,
    /// It would wait for a person's word.
    Unprovable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Speed {
    Kvm,
    /// Everything in the guest is many times slower.
    Emulated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NumaFit {
    /// It can have all its memory near its CPUs, or the host has one node only.
    One,
    Spans,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} % used then", self.used_permille / 10, self.used_permille % 10)?;
        if self.safety == Safety::Unprovable {
            f.write_str(", its death could not be proved")?;
        }
        match self.preferred_broken {
            0 => {}
            1 => f.write_str(", against 1 preference")?,
            n => write!(f, ", against {n} preferences")?,
        }
        if self.crowd_in_domain > 0 {
            f.write_str(", beside VMs to be apart from in its failure domain")?;
        }
        if self.speed == Speed::Emulated {
            f.write_str(", without hardware virtualisation")?;
        }
        if self.numa == NumaFit::Spans {
            f.write_str(", over several NUMA nodes")?;
        }
        if self.movement.volumes == HoldsVolumes::Here {
            f.write_str(", its volumes are here")?;
        }
        match self.movement.images {
            0 => Ok(()),
            1 => f.write_str(", it fetches an image first"),
            n => write!(f, ", it fetches {n} images first"),
        }
    }
}

pub fn score(fleet: &Fleet, seat: &Seat, guest: &Guest, neighbours: &Neighbours) -> Score {
    let need = &guest.need;
    let used_permille = used_permille(fleet, seat, guest);
    let unprovable = need.is_highly_available() && seat.unprovable.is_some();
    Score {
        safety: if unprovable { Safety::Unprovable } else { Safety::Provable },
        speed: if seat.facts.kvm == KvmState::Usable { Speed::Kvm } else { Speed::Emulated },
        preferred_broken: preferred_broken(seat, need, neighbours),
        crowd_in_domain: neighbours.never_with.iter().chain(&neighbours.rather_without).map(|spots| spots.in_domain(seat)).sum(),
        used_twentieths: used_permille / 50,
        numa: numa_fit(seat, need),
        used_permille,
        vms: others(seat, guest).vms,
        movement: Movement {
            volumes: need.home.seen_from(&seat.name),
            images: need.images.iter().filter(|id| !fleet.has_image(**id, &seat.name)).count(),
        },
        node: seat.name.clone(),
    }
}

fn preferred_broken(seat: &Seat, need: &Need, neighbours: &Neighbours) -> u32 {
    let avoided = seat.record.spec.taints.iter().filter(|t| t.effect == TaintEffect::Avoid && !tolerates(need, t)).count();
    let without: u32 = neighbours.rather_without.iter().map(|spots| spots.at(seat)).sum();
    let with = neighbours.rather_with.iter().filter(|spots| spots.at(seat) == 0).count();
    without.saturating_add(u32::try_from(avoided + with).unwrap_or(u32::MAX))
}

/// Share of the scarcest resource that VMs have with `guest` on it, 1/1000. Where nothing is limited, of what is usual.
fn used_permille(fleet: &Fleet, seat: &Seat, guest: &Guest) -> u64 {
    let (taken, limits, need) = (others(seat, guest), fleet.limits(seat), &guest.need);
    let share = |used: u64, of: u64| used.saturating_mul(1000) / of.max(1);
    let (plain, huge) = if need.hugepages { (0, need.memory.bytes()) } else { (need.memory.bytes(), 0) };
    let memory = share(taken.memory.saturating_add(plain), limits.memory.unwrap_or_else(|| seat.memory_for_vms()));
    let usual = seat.cpus_for_vms().saturating_mul(u64::from(CPU_OVERCOMMIT));
    let vcpus = share(taken.vcpus.saturating_add(u64::from(need.vcpus)), limits.vcpus.unwrap_or(usual));
    let pages = seat.facts.offers.hugepages.bytes();
    let hugepages = if huge > 0 && pages > 0 { share(taken.hugepages.saturating_add(huge), pages) } else { 0 };
    memory.max(vcpus).max(hugepages)
}

fn numa_fit(seat: &Seat, need: &Need) -> NumaFit {
    let numa = &seat.facts.offers.numa;
    let fits = numa.len() < 2 || numa.iter().any(|node| need.vcpus <= node.cpus && need.memory <= node.memory);
    if fits { NumaFit::One } else { NumaFit::Spans }
}

#[cfg(test)]
mod tests;
