//! The CPU that a VM's guest sees, and whether a node can run it.
//!
//! ```text
//!  spec.cpu (a named model) ─┐                                     NodeOffers: usable models, models without a few
//!  choices.cpu_xml (kept) ───┴─► GuestCpu {model, with, without} ──► features, all features of guests ──► CpuLack
//! ```
//! A model is no ladder: hosts have newer models without features that firmware or kernel took away, and libvirt then gives a
//! guest that model with these features disabled. So a node can run a CPU when it has the model whole or lacks of it only what
//! the guest does without, and has each feature that the guest has beyond the model. What a node does not tell refuses nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use vmkeep_types::host::{KvmState, NodeFacts};
use vmkeep_types::name::Name;
use vmkeep_types::record::VmChoices;
use vmkeep_types::vm::{Switch, VmSpec};

use super::fleet::{Fleet, Seat};
use super::need::Guest;
use super::rules::Neighbours;

/// Models that are no names of CPUs.
const MODES: [&str; 4] = ["auto", "host", "cluster", "max"];
/// Those whose CPU is chosen once and kept.
const KEPT: [&str; 2] = ["auto", "cluster"];
/// Missing features that a sentence names; the others are counted.
const FEATURES_TOLD_MAX: usize = 8;
/// Nodes that a sentence names; the others are counted, and `vm explain` tells them all.
const NODES_TOLD_MAX: usize = 4;
/// Different CPUs that are remembered: as many as there are kinds of hosts, times what people switch off.
const REMEMBERED_MAX: usize = 1_000;

/// A guest's CPU, as far as it can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCpu {
    pub model: String,
    /// Features beyond the model.
    pub with: BTreeSet<String>,
    /// Features of the model that it does without.
    pub without: BTreeSet<String>,
    /// A kept one is for hardware virtualisation: where a node emulates, another is chosen.
    pub origin: CpuOrigin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuOrigin {
    /// The wish names it.
    Named,
    /// It was chosen at the first start, and is kept.
    Kept,
    /// All nodes could run it when the VM got its first one, and it is kept.
    Cluster,
}

/// Why a node cannot run a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuLack {
    Model { model: String, origin: CpuOrigin },
    Features { model: String, missing: BTreeSet<String>, origin: CpuOrigin },
}

impl fmt::Display for CpuLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = |origin: &CpuOrigin| match origin {
            CpuOrigin::Named => "",
            CpuOrigin::Kept => ", which was chosen for the VM and is kept,",
            CpuOrigin::Cluster => ", which all nodes could run when the VM got it,",
        };
        match self {
            Self::Model { model, origin: by } => write!(f, "guests cannot have the CPU {model}{} here", origin(by)),
            Self::Features { model, missing, origin: by } => {
                let told: Vec<&str> = missing.iter().take(FEATURES_TOLD_MAX).map(String::as_str).collect();
                write!(f, "of the CPU {model}{} guests cannot have here: {}", origin(by), told.join(", "))?;
                match missing.len().saturating_sub(FEATURES_TOLD_MAX) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
        }
    }
}

/// What nodes tell of their CPUs; equal for most of them, and then compared once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuKind {
    emulates: bool,
    models: BTreeSet<String>,
    own: String,
    features: BTreeSet<String>,
    without: BTreeMap<String, BTreeSet<String>>,
}

impl CpuKind {
    pub fn of(facts: &NodeFacts) -> Self {
        let offers = &facts.offers;
        Self {
            emulates: facts.kvm != KvmState::Usable,
            models: offers.cpu_models.clone(),
            own: offers.cpu_model.clone(),
            features: offers.cpu_guest_features.clone(),
            without: offers.cpu_models_without.clone(),
        }
    }

    /// The same without a copy.
    pub fn is_of(&self, facts: &NodeFacts) -> bool {
        let offers = &facts.offers;
        self.emulates == (facts.kvm != KvmState::Usable)
            && self.own == offers.cpu_model
            && self.models == offers.cpu_models
            && self.features == offers.cpu_guest_features
            && self.without == offers.cpu_models_without
    }

    /// Why guests cannot have `cpu` here; None: they can, as far as the node tells.
    pub fn lacks(&self, cpu: &GuestCpu) -> Option<CpuLack> {
        if self.models.is_empty() || (self.emulates && cpu.origin != CpuOrigin::Named) {
            return None;
        }
        let (model, origin) = (cpu.model.clone(), cpu.origin);
        let mut missing = BTreeSet::new();
        if !self.models.contains(&cpu.model) {
            match self.without.get(&cpu.model) {
                Some(lacking) => missing.extend(lacking.difference(&cpu.without).cloned()),
                // An older agent, or a libvirt that does not tell, and the guest does without some of the model.
                None if self.own.is_empty() && !cpu.without.is_empty() => {}
                None => return Some(CpuLack::Model { model, origin }),
            }
        }
        if !self.features.is_empty() {
            missing.extend(cpu.with.difference(&self.features).cloned());
        }
        (!missing.is_empty()).then_some(CpuLack::Features { model, missing, origin })
    }
}

impl GuestCpu {
    /// The CPU of a VM: the named one, or the kept one; None: any will do, or none was chosen yet.
    pub fn of(spec: &VmSpec, choices: &VmChoices, kept: &KeptCpus) -> Option<Arc<Self>> {
        let model = spec.cpu.model.as_str();
        if KEPT.contains(&model) {
            // What was chosen for emulation is chosen anew where there is hardware virtualisation.
            let xml = choices.cpu_xml.as_ref().filter(|_| choices.domain_type.as_deref().is_none_or(|kind| kind == "kvm"))?;
            let cpu = kept.read(xml)?;
            if spec.cpu.features.is_empty() && model == "auto" {
                return Some(cpu);
            }
            let origin = if model == "auto" { CpuOrigin::Kept } else { CpuOrigin::Cluster };
            return Some(Arc::new(Self { origin, ..(*cpu).clone() }.overlaid(spec)));
        }
        let (with, without) = Default::default();
        let named = || Self { model: model.to_owned(), with, without, origin: CpuOrigin::Named }.overlaid(spec);
        (!MODES.contains(&model)).then(|| Arc::new(named()))
    }

    /// A kept `<cpu>` element; None: it names no model, as that of an emulated guest does not.
    pub fn parse(xml: &str) -> Option<Self> {
        let mut cpu = Self { model: String::new(), with: BTreeSet::new(), without: BTreeSet::new(), origin: CpuOrigin::Kept };
        let mut reader = Reader::from_str(xml);
        let mut in_model = false;
        loop {
            match reader.read_event().ok()? {
                Event::Start(tag) if tag.name().as_ref() == "model" => in_model = true,
                Event::End(_) => in_model = false,
                Event::Text(text) if in_model => cpu.model += text.as_ref().trim(),
                Event::Start(tag) | Event::Empty(tag) if tag.name().as_ref() == "feature" => cpu.put(&tag),
                Event::Eof => break,
                _ => {}
            }
        }
        (!cpu.model.is_empty()).then_some(cpu)
    }

    fn put(&mut self, feature: &BytesStart<'_>) {
        let attribute = |key: &str| {
            let found = feature.attributes().flatten().find(|a| a.key.as_ref() == key);
            found.map(|a| a.value.into_owned())
        };
        match (attribute("name"), attribute("policy").as_deref()) {
            (Some(name), Some("disable" | "forbid")) => self.without.insert(name),
            (Some(name), None | Some("require" | "force")) => self.with.insert(name),
            (Some(_), Some(_)) | (None, _) => false,
        };
    }

    /// With the features that the wish switches on and off.
    fn overlaid(mut self, spec: &VmSpec) -> Self {
        for (feature, switch) in &spec.cpu.features {
            let (to, from) = match switch {
                Switch::On => (&mut self.with, &mut self.without),
                Switch::Off => (&mut self.without, &mut self.with),
            };
            from.remove(feature);
            to.insert(feature.clone());
        }
        self
    }
}

/// The nodes that cannot run a VM's CPU, of all but the one that owns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    pub nodes: usize,
    pub cannot: Vec<(Name, CpuLack)>,
}

impl Elsewhere {
    /// What keeps the VM where it is: no other node can run its CPU.
    pub fn hinders(&self) -> Option<String> {
        (!self.cannot.is_empty() && self.cannot.len() == self.nodes).then(|| format!("cpu: no other node can run it ({})", self.words()))
    }

    /// Some can, some cannot.
    pub fn warns(&self) -> Option<String> {
        let (cannot, nodes) = (self.cannot.len(), self.nodes);
        (cannot > 0 && cannot < nodes).then(|| format!("cpu: {cannot} of {nodes} other nodes cannot run it ({})", self.words()))
    }

    fn words(&self) -> String {
        let told: Vec<String> = self.cannot.iter().take(NODES_TOLD_MAX).map(|(node, lack)| format!("{node}: {lack}")).collect();
        match self.cannot.len().saturating_sub(NODES_TOLD_MAX) {
            0 => told.join("; "),
            more => format!("{}; and {more} more", told.join("; ")),
        }
    }
}

/// Where else a VM's CPU is none.
pub fn elsewhere(fleet: &Fleet, guest: &Guest) -> Elsewhere {
    let others = || fleet.seats().filter(|seat| fleet.owner(guest.id) != Some(&seat.name));
    let neighbours = Neighbours::of(fleet, guest);
    let lack = |seat: &Seat| Some((seat.name.clone(), neighbours.cpu_lack(seat)?.clone()));
    Elsewhere { nodes: others().count(), cannot: others().filter_map(lack).collect() }
}

/// A node that joined after VMs got the CPU of the cluster, and cannot run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    pub node: Name,
    /// VMs with `cpu: {model: cluster}` that cannot come to it.
    pub vms: usize,
    /// Of one of them.
    pub lack: CpuLack,
}

/// Nodes to which not all VMs with the CPU of the cluster can come.
pub fn strangers(fleet: &Fleet) -> Vec<Stranger> {
    // Thousands of VMs have the same few.
    let mut cpus: Vec<(&GuestCpu, usize)> = Vec::new();
    for cpu in fleet.guests().filter_map(|guest| guest.need.cpu.as_deref()).filter(|cpu| cpu.origin == CpuOrigin::Cluster) {
        match cpus.iter_mut().find(|(other, _)| *other == cpu) {
            Some((_, vms)) => *vms += 1,
            None => cpus.push((cpu, 1)),
        }
    }
    let stranger = |seat: &Seat| {
        let mut lacks = cpus.iter().filter_map(|(cpu, vms)| Some((seat.cpu.lacks(cpu)?, *vms))).peekable();
        let lack = lacks.peek()?.0.clone();
        Some(Stranger { node: seat.name.clone(), vms: lacks.map(|(_, vms)| vms).sum(), lack })
    };
    fleet.seats().filter_map(stranger).collect()
}

/// Kept CPUs by their text: thousands of VMs have the same few.
#[derive(Clone, Debug, Default)]
pub struct KeptCpus(Arc<Mutex<HashMap<String, Option<Arc<GuestCpu>>>>>);

impl KeptCpus {
    fn read(&self, xml: &str) -> Option<Arc<GuestCpu>> {
        let mut read = self.0.lock().expect("no panic holds this lock");
        if let Some(cpu) = read.get(xml) {
            return cpu.clone();
        }
        if read.len() >= REMEMBERED_MAX {
            read.clear();
        }
        let cpu = GuestCpu::parse(xml).map(Arc::new);
        read.insert(xml.to_owned(), cpu.clone());
        cpu
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;
    use crate::place::testkit::facts;

    const SKYLAKE: &str = "<cpu mode='custom' match='exact' check='partial'><model fallback='forbid'>Skylake-Server</model><vendor>Intel</vendor>\
        <feature policy='require' name='ssbd'/><feature policy='require' name='md-clear'></feature><feature policy='disable' name='mpx'/></cpu>";

    struct Told {
        usable: &'static str,
        own: &'static str,
        features: &'static str,
        without: &'static [(&'static str, &'static str)],
    }

    fn words(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn kind(told: &Told) -> CpuKind {
        let mut facts = facts("a", 4, 8);
        facts.offers.cpu_models = words(told.usable);
        facts.offers.cpu_model = told.own.into();
        facts.offers.cpu_guest_features = words(told.features);
        facts.offers.cpu_models_without = told.without.iter().map(|(model, list)| ((*model).to_owned(), words(list))).collect();
        let kind = CpuKind::of(&facts);
        assert!(kind.is_of(&facts));
        kind
    }

    /// A host that can run it: a newer model, without mpx as all hosts of today.
    fn able() -> Told {
        let without = &[("Cascadelake-Server", "mpx"), ("Skylake-Server", "mpx")];
        Told { usable: "Nehalem Haswell", own: "Cascadelake-Server", features: "ssbd md-clear avx512f", without }
    }

    fn check(told: &Told, cpu: Value, kept: Option<&str>, wanted: Expect) {
        let spec: VmSpec = serde_json::from_value(json!({"name": "web", "cpu": cpu})).expect("a wish");
        let choices = VmChoices { cpu_xml: kept.map(str::to_owned), domain_type: Some("kvm".into()), ..VmChoices::default() };
        let lack = GuestCpu::of(&spec, &choices, &KeptCpus::default()).map(|cpu| kind(told).lacks(&cpu));
        wanted.assert_eq(&lack.map_or("any".into(), |lack| lack.map_or("can".into(), |lack| lack.to_string())));
    }

    #[test]
    fn a_kept_cpu_on_other_hosts() {
        let auto = || json!({"model": "auto"});
        check(&able(), auto(), None, expect!["any"]);
        check(&able(), auto(), Some("<cpu mode='maximum' check='none' migratable='on'/>"), expect!["any"]);
        check(&able(), auto(), Some("<cpu><model>"), expect!["any"]);
        check(&able(), auto(), Some(SKYLAKE), expect!["can"]);
        check(&able(), json!({"model": "cluster"}), Some(SKYLAKE), expect!["can"]);
        check(&able(), json!({"model": "host"}), Some(SKYLAKE), expect!["any"]);
        check(
            &Told { without: &[("Skylake-Server", "avx512cd avx512f mpx")], ..able() },
            auto(),
            Some(SKYLAKE),
            expect!["of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: avx512cd, avx512f"],
        );
        check(
            &Told { features: "ssbd", ..able() },
            auto(),
            Some(SKYLAKE),
            expect!["of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: md-clear"],
        );
        check(
            &Told { own: "Haswell", without: &[], ..able() },
            auto(),
            Some(SKYLAKE),
            expect!["guests cannot have the CPU Skylake-Server, which was chosen for the VM and is kept, here"],
        );
        check(&Told { usable: "Skylake-Server", without: &[], ..able() }, auto(), Some(SKYLAKE), expect!["can"]);
    }

    #[test]
    fn what_a_node_does_not_tell_refuses_nothing() {
        let auto = || json!({"model": "auto"});
        check(&Told { usable: "", own: "", features: "", without: &[] }, auto(), Some(SKYLAKE), expect!["can"]);
        // An older agent tells which models are whole, and nothing of those that are not.
        let older = Told { usable: "Nehalem", own: "", features: "", without: &[] };
        check(&older, auto(), Some(SKYLAKE), expect!["can"]);
        let whole = "<cpu><model>Haswell</model><feature name='ssbd'/></cpu>";
        check(&older, auto(), Some(whole), expect!["guests cannot have the CPU Haswell, which was chosen for the VM and is kept, here"]);
        let mut emulates = kind(&able());
        emulates.emulates = true;
        let cpu = GuestCpu::parse(whole).expect("a CPU");
        assert_eq!((emulates.lacks(&cpu), emulates.lacks(&GuestCpu { origin: CpuOrigin::Named, ..cpu })), (None, None));
    }

    #[test]
    fn a_named_model_and_what_the_wish_switches() {
        check(&able(), json!({"model": "Haswell"}), None, expect!["can"]);
        check(&able(), json!({"model": "EPYC"}), None, expect!["guests cannot have the CPU EPYC here"]);
        check(&able(), json!({"model": "Skylake-Server"}), None, expect!["of the CPU Skylake-Server guests cannot have here: mpx"]);
        check(&able(), json!({"model": "Skylake-Server", "features": {"mpx": "off"}}), None, expect!["can"]);
        let on = json!({"model": "Haswell", "features": {"avx512f": "on", "svm": "on"}});
        check(&able(), on, None, expect!["of the CPU Haswell guests cannot have here: svm"]);
        let off = json!({"model": "auto", "features": {"md-clear": "off", "mpx": "on"}});
        check(
            &Told { features: "ssbd mpx", ..able() },
            off,
            Some(SKYLAKE),
            expect!["of the CPU Skylake-Server, which was chosen for the VM and is kept, guests cannot have here: mpx"],
        );
        let many = Told { without: &[("EPYC", "a b c d e f g h i j")], ..able() };
        check(&many, json!({"model": "EPYC"}), None, expect!["of the CPU EPYC guests cannot have here: a, b, c, d, e, f, g, h and 2 more"]);
    }
}
