//! The CPU that every node can run: what a VM with `cpu: {model: cluster}` gets, so that it can live anywhere.
//!
//! A model counts when libvirt says on each node that guests can have it; the newest such one is taken, and on top of it the
//! features that every node has beyond its own model. A node without hardware virtualisation is left out: it emulates.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use vmkeep_types::host::{KvmState, NodeFacts};

/// QEMU's models, oldest first within each maker. A newer one has all that the older ones of its maker have.
const MODELS: [&str; 36] = [
    "qemu64",
    "kvm64",
    "Opteron_G1",
    "Opteron_G2",
    "Opteron_G3",
    "Opteron_G4",
    "Opteron_G5",
    "Conroe",
    "Penryn",
    "Nehalem",
    "Nehalem-IBRS",
    "Westmere",
    "Westmere-IBRS",
    "SandyBridge",
    "SandyBridge-IBRS",
    "IvyBridge",
    "IvyBridge-IBRS",
    "Haswell-noTSX",
    "Haswell-noTSX-IBRS",
    "Broadwell-noTSX",
    "Broadwell-noTSX-IBRS",
    "Skylake-Client-noTSX-IBRS",
    "Skylake-Server-noTSX-IBRS",
    "Cascadelake-Server-noTSX",
    "Cooperlake",
    "Icelake-Server-noTSX",
    "SapphireRapids",
    "GraniteRapids",
    "Dhyana",
    "EPYC",
    "EPYC-IBPB",
    "EPYC-v3",
    "EPYC-Rome",
    "EPYC-Milan",
    "EPYC-Genoa",
    "EPYC-Turin",
];

/// Characters of a CPU feature's name; anything else does not come into XML.
fn is_feature(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    pub model: String,
    pub features: BTreeSet<String>,
}

impl Baseline {
    /// libvirt's `<cpu>` element.
    pub fn cpu_xml(&self) -> String {
        let mut xml = format!("<cpu mode=\"custom\" match=\"exact\" check=\"partial\"><model fallback=\"forbid\">{}</model>", self.model);
        for feature in &self.features {
            write!(xml, "<feature policy=\"require\" name=\"{feature}\"/>").expect("a string takes all");
        }
        xml + "</cpu>"
    }
}

/// The baseline of some nodes.
///
/// # Errors
/// In words: no node has KVM, one does not tell its models, or they have none in common.
pub fn baseline<'a>(nodes: impl IntoIterator<Item = &'a NodeFacts>) -> Result<Baseline, String> {
    let mut common: Option<(BTreeSet<&str>, BTreeSet<&str>)> = None;
    for node in nodes.into_iter().filter(|node| node.kvm == KvmState::Usable) {
        let offers = &node.offers;
        if offers.cpu_models.is_empty() {
            return Err(format!("node {} does not tell its CPU models", node.name));
        }
        let models = offers.cpu_models.iter().map(String::as_str);
        let features = offers.cpu_features.iter().map(String::as_str).filter(|name| is_feature(name));
        common = Some(match common {
            None => (models.collect(), features.collect()),
            Some((m, f)) => (models.filter(|name| m.contains(name)).collect(), features.filter(|name| f.contains(name)).collect()),
        });
    }
    let (models, features) = common.ok_or("no node has hardware virtualisation")?;
    let model = MODELS.iter().rev().find(|model| models.contains(*model)).ok_or("the nodes have no CPU model in common")?;
    Ok(Baseline { model: (*model).to_owned(), features: features.into_iter().map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_types::host::NodeFacts;

    use super::*;
    use crate::place::testkit::facts;

    fn node(name: &str, models: &str, features: &str) -> NodeFacts {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let mut facts = facts(name, 4, 8);
        facts.offers.cpu_models = words(models);
        facts.offers.cpu_features = words(features);
        facts
    }

    fn check(nodes: &[NodeFacts], wanted: Expect) {
        let told = |nodes: &mut dyn Iterator<Item = &NodeFacts>| baseline(nodes).map_or_else(|why| why, |b| b.cpu_xml());
        let forwards = told(&mut nodes.iter());
        assert_eq!(forwards, told(&mut nodes.iter().rev()), "the order of nodes does not matter");
        wanted.assert_eq(&forwards);
    }

    #[test]
    fn the_newest_model_that_all_have_and_the_features_they_share() {
        let new = node("a", "qemu64 Nehalem Haswell-noTSX EPYC", "pdpe1gb invtsc ssbd");
        let old = node("b", "qemu64 Nehalem SandyBridge Haswell-noTSX", "ssbd pdpe1gb x<y");
        check(
            &[new.clone(), old.clone()],
            expect![[
                r#"<cpu mode="custom" match="exact" check="partial"><model fallback="forbid">Haswell-noTSX</model><feature policy="require" name="pdpe1gb"/><feature policy="require" name="ssbd"/></cpu>"#
            ]],
        );
        let mut emulated = node("c", "", "");
        emulated.kvm = KvmState::Unusable { why: "no vmx".into() };
        check(&[emulated.clone()], expect!["no node has hardware virtualisation"]);
        assert_eq!(baseline([&new, &old, &emulated]), baseline([&new, &old]));
        check(&[new.clone(), node("d", "", "")], expect!["node d does not tell its CPU models"]);
        check(&[new, node("e", "POWER9", "")], expect!["the nodes have no CPU model in common"]);
    }
}
