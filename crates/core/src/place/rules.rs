//! Affinity and anti-affinity between VMs.
//!
//! ```text
//!  members:  project + label, project + name ─► node ─► VMs              whom does my rule mean, and where are they?
//!  holders:  the same keys ─► rule ─► node ─► VMs                       whose rules mean me, and where are they?
//! ```
//! A rule looks at VMs that have a node. One that means nobody holds: the first VM of a group goes anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::placement::{VmRule, Within};

use super::cpu::{CpuKind, CpuLack};
use super::fleet::{Fleet, Seat};
use super::need::Guest;

/// Under what a VM can be found by others' rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Name(Name, Name),
    Label(Name, String, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Together,
    Apart,
}

type Places = BTreeMap<Name, BTreeSet<VmId>>;
type Held = BTreeMap<(Side, VmRule), Places>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RuleIndex {
    members: BTreeMap<Mark, Places>,
    holders: BTreeMap<Mark, Held>,
}

fn marks(guest: &Guest) -> impl Iterator<Item = Mark> {
    let labels = guest.labels.iter().map(|(k, v)| Mark::Label(guest.project.clone(), k.clone(), v.clone()));
    std::iter::once(Mark::Name(guest.project.clone(), guest.name.clone())).chain(labels)
}

/// One mark that everybody whom the rule means has; None: it means nobody.
fn mark_of(project: &Name, rule: &VmRule) -> Option<Mark> {
    match (&rule.vm, rule.labels.first_key_value()) {
        (Some(vm), _) => Some(Mark::Name(project.clone(), vm.clone())),
        (None, Some((k, v))) => Some(Mark::Label(project.clone(), k.clone(), v.clone())),
        (None, None) => None,
    }
}

fn rules_of(guest: &Guest) -> impl Iterator<Item = (Side, &VmRule)> {
    let wish = &guest.need.wish;
    let apart = wish.anti_affinity.iter().map(|rule| (Side::Apart, rule));
    wish.affinity.iter().map(|rule| (Side::Together, rule)).chain(apart)
}

/// Does a strict rule of one keep the two together?
pub(super) fn inseparable(one: &Guest, other: &Guest) -> bool {
    let holds = |holder: &Guest, meant: &Guest| {
        let strict = holder.need.wish.affinity.iter().filter(|rule| rule.strict);
        holder.project == meant.project && strict.into_iter().any(|rule| means(rule, meant))
    };
    holds(one, other) || holds(other, one)
}

/// Does the rule of a VM of the same project mean this one?
fn means(rule: &VmRule, guest: &Guest) -> bool {
    match &rule.vm {
        Some(vm) => *vm == guest.name,
        None => !rule.labels.is_empty() && rule.labels.iter().all(|(k, v)| guest.labels.get(k) == Some(v)),
    }
}

impl RuleIndex {
    pub fn add(&mut self, guest: &Guest, node: &Name) {
        for mark in marks(guest) {
            self.members.entry(mark).or_default().entry(node.clone()).or_default().insert(guest.id);
        }
        for (side, rule) in rules_of(guest) {
            let Some(mark) = mark_of(&guest.project, rule) else { continue };
            let held = self.holders.entry(mark).or_default().entry((side, rule.clone())).or_default();
            held.entry(node.clone()).or_default().insert(guest.id);
        }
    }

    pub fn remove(&mut self, guest: &Guest, node: &Name) {
        for mark in marks(guest) {
            let Some(nodes) = self.members.get_mut(&mark) else { continue };
            if let Some(vms) = nodes.get_mut(node) {
                vms.remove(&guest.id);
            }
            nodes.retain(|_, vms| !vms.is_empty());
            if nodes.is_empty() {
                self.members.remove(&mark);
            }
        }
        for (side, rule) in rules_of(guest) {
            let Some(mark) = mark_of(&guest.project, rule) else { continue };
            let Some(held) = self.holders.get_mut(&mark) else { continue };
            if let Some(nodes) = held.get_mut(&(side, rule.clone())) {
                nodes.entry(node.clone()).and_modify(|vms| {
                    vms.remove(&guest.id);
                });
                nodes.retain(|_, vms| !vms.is_empty());
            }
            held.retain(|_, nodes| !nodes.is_empty());
            if held.is_empty() {
                self.holders.remove(&mark);
            }
        }
    }

    /// Where the VMs are that a rule means, `but` one.
    fn meant(&self, fleet: &Fleet, project: &Name, rule: &VmRule, but: VmId) -> Places {
        let Some(nodes) = mark_of(project, rule).and_then(|mark| self.members.get(&mark)) else { return Places::new() };
        let all_are = rule.vm.is_some() || rule.labels.len() == 1;
        let counted = |id: &VmId| *id != but && (all_are || fleet.guest(*id).is_some_and(|guest| means(rule, guest)));
        kept(nodes, counted)
    }
}

fn kept(nodes: &Places, counted: impl Fn(&VmId) -> bool) -> Places {
    let vms = |vms: &BTreeSet<VmId>| vms.iter().copied().filter(&counted).collect::<BTreeSet<VmId>>();
    nodes.iter().map(|(node, all)| (node.clone(), vms(all))).filter(|(_, vms)| !vms.is_empty()).collect()
}

/// How many VMs, by place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spots {
    pub rule: String,
    within: Within,
    nodes: BTreeMap<Name, u32>,
    domains: BTreeMap<String, u32>,
}

impl Spots {
    fn new(fleet: &Fleet, rule: String, within: Within, places: &Places) -> Self {
        let count = |vms: &BTreeSet<VmId>| u32::try_from(vms.len()).unwrap_or(u32::MAX);
        let nodes: BTreeMap<Name, u32> = places.iter().map(|(node, vms)| (node.clone(), count(vms))).collect();
        let mut domains: BTreeMap<String, u32> = BTreeMap::new();
        for (node, count) in &nodes {
            let domain = fleet.seat(node).map_or(node.as_str(), Seat::domain);
            *domains.entry(domain.to_owned()).or_default() += count;
        }
        Self { rule, within, nodes, domains }
    }

    /// In the place that the seat is in.
    pub fn at(&self, seat: &Seat) -> u32 {
        match self.within {
            Within::Node => self.nodes.get(&seat.name).copied().unwrap_or_default(),
            Within::FailureDomain => self.in_domain(seat),
        }
    }

    /// As though nobody were on a node.
    fn leave_out(&mut self, fleet: &Fleet, node: &Name) {
        let Some(count) = self.nodes.remove(node) else { return };
        let domain = fleet.seat(node).map_or(node.as_str(), Seat::domain);
        if let Some(all) = self.domains.get_mut(domain) {
            *all -= count;
        }
    }

    /// On the seat itself.
    pub fn on(&self, seat: &Seat) -> bool {
        self.nodes.contains_key(&seat.name)
    }

    pub fn in_domain(&self, seat: &Seat) -> u32 {
        self.domains.get(seat.domain()).copied().unwrap_or_default()
    }
}

/// All that rules say of one VM, and each kind of CPU, looked up once for all nodes.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// Kinds of CPUs that cannot run it.
    cpus: Vec<(Arc<CpuKind>, CpuLack)>,
    pub(super) never_with: Vec<Spots>,
    pub(super) only_with: Vec<Spots>,
    pub(super) rather_without: Vec<Spots>,
    pub(super) rather_with: Vec<Spots>,
}

impl Neighbours {
    pub fn of(fleet: &Fleet, guest: &Guest) -> Self {
        let lack = |kind: &Arc<CpuKind>| Some((kind.clone(), kind.lacks(guest.need.cpu.as_ref()?)?));
        let mut found = Self { cpus: fleet.cpu_kinds().iter().filter_map(lack).collect(), ..Self::default() };
        for (side, rule) in rules_of(guest) {
            let nodes = fleet.rules().meant(fleet, &guest.project, rule, guest.id);
            found.put(side, rule, Spots::new(fleet, Words(rule).to_string(), rule.within, &nodes));
        }
        for ((side, rule), nodes) in marks(guest).filter_map(|mark| fleet.rules().holders.get(&mark)).flatten() {
            if !means(rule, guest) {
                continue;
            }
            let mut nodes = kept(nodes, |holder| *holder != guest.id);
            if *side == Side::Together {
                let meant = fleet.rules().meant(fleet, &guest.project, rule, guest.id);
                nodes.retain(|node, holders| lacks_company(fleet, rule, &meant, node, holders));
            }
            let words = || format!("a VM that wants {}", OfHolder(*side, rule));
            found.put(*side, rule, Spots::new(fleet, words(), rule.within, &nodes));
        }
        found
    }

    /// Why this node cannot run its CPU.
    pub(super) fn cpu_lack(&self, seat: &Seat) -> Option<&CpuLack> {
        self.cpus.iter().find(|(kind, _)| Arc::ptr_eq(kind, &seat.cpu)).map(|(_, lack)| lack)
    }

    /// Whom it wants to be with does not hold it on a node that all leave.
    pub(super) fn leaving(mut self, fleet: &Fleet, node: &Name) -> Self {
        for spots in [&mut self.only_with, &mut self.rather_with] {
            spots.iter_mut().for_each(|spots| spots.leave_out(fleet, node));
            spots.retain(|spots| !spots.nodes.is_empty());
        }
        self
    }

    fn put(&mut self, side: Side, rule: &VmRule, spots: Spots) {
        if spots.nodes.is_empty() {
            return;
        }
        match (side, rule.strict) {
            (Side::Together, true) => self.only_with.push(spots),
            (Side::Together, false) => self.rather_with.push(spots),
            (Side::Apart, true) => self.never_with.push(spots),
            (Side::Apart, false) => self.rather_without.push(spots),
        }
    }
}

/// Is one of the holders on a node without any that its rule means, itself left out? The others need no second one.
fn lacks_company(fleet: &Fleet, rule: &VmRule, meant: &Places, node: &Name, holders: &BTreeSet<VmId>) -> bool {
    let domain = |node: &Name| fleet.seat(node).map(Seat::domain);
    let near = |other: &Name| other == node || (rule.within == Within::FailureDomain && domain(other) == domain(node));
    let mut there = meant.iter().filter(|(other, _)| near(other)).flat_map(|(_, vms)| vms);
    match (there.next(), there.next()) {
        (None, _) => true,
        (Some(only), None) => holders.contains(only),
        (Some(_), Some(_)) => false,
    }
}

/// Whom a rule means.
struct Words<'a>(&'a VmRule);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vm) = &self.0.vm {
            return write!(f, "VM '{vm}'");
        }
        let labels: Vec<String> = self.0.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        write!(f, "a VM with {}", labels.join(", "))
    }
}

struct OfHolder<'a>(Side, &'a VmRule);

impl fmt::Display for OfHolder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(side, rule) = self;
        let side = match side {
            Side::Together => "to be with",
            Side::Apart => "to be apart from",
        };
        write!(f, "{side} {}", Words(rule))
    }
}
