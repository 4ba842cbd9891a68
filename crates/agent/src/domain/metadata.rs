//! Our mark inside a domain: which VM it is, of which project, by which right, and what vmkeep last wrote there itself.
//!
//! The disks' paths tell a source that somebody else changed (a conflict) from one that the wish changed.

use std::collections::BTreeMap;

use vmkeep_types::ids::{Epoch, Generation, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::order::Order;

use super::BuildInput;
use super::build::Cpu;
use super::tree::{self, Element, el};
use crate::hypervisor::{METADATA_KEY, METADATA_URI};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub vm: VmId,
    pub project: Name,
    pub generation: Generation,
    pub spec_revision: Revision,
    pub epoch: Epoch,
}

fn element(order: &Order) -> Element {
    el(&named("vm"))
        .attr(&format!("xmlns:{METADATA_KEY}"), METADATA_URI)
        .attr("id", order.vm)
        .attr("project", &order.project)
        .attr("generation", order.generation)
        .attr("revision", order.spec_revision)
        .attr("epoch", order.epoch)
}

fn named(tag: &str) -> String {
    format!("{METADATA_KEY}:{tag}")
}

/// The mark of a description that vmkeep wrote.
pub(super) fn written(input: &BuildInput<'_>, cpu: &Cpu) -> Element {
    let disks = input.disks.iter().map(|(name, source)| el(&named("disk")).attr("name", name).attr("source", source.path.display()));
    let features = cpu.overlaid.iter().map(|(name, before)| el(&named("feature")).attr("name", name).attr_if("was", before.as_ref()));
    let model = el(&named("cpu")).attr("model", &input.order.spec.cpu.model);
    element(input.order).children(disks).child(model).children(features)
}

/// `<vmkeep:vm …/>`
pub fn metadata(order: &Order) -> String {
    element(order).write().trim().to_owned()
}

/// Does a domain's metadata mark it as the domain of this VM?
pub fn marks(metadata: Option<&str>, vm: VmId) -> bool {
    metadata.and_then(parse_metadata).is_some_and(|meta| meta.vm == vm)
}

/// None for anything that is not our mark.
pub fn parse_metadata(text: &str) -> Option<Meta> {
    let tree = tree::parse(text).ok()?;
    if local(&tree.name) != "vm" {
        return None;
    }
    let number = |key: &str| tree.get(key).and_then(|n| n.parse().ok());
    Some(Meta {
        vm: tree.get("id")?.parse().ok()?,
        project: tree.get("project")?.parse().ok()?,
        generation: Generation(number("generation")?),
        spec_revision: Revision(number("revision").unwrap_or(0)),
        epoch: Epoch(number("epoch").unwrap_or(0)),
    })
}

fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

fn notes<'a>(domain: &'a Element, tag: &'a str) -> impl Iterator<Item = &'a Element> {
    let mark = domain.find("metadata").into_iter().flat_map(|m| &m.children).filter(|c| c.name == named("vm"));
    mark.flat_map(|m| &m.children).filter(move |c| local(&c.name) == tag)
}

/// Disk name to the path that vmkeep wrote last.
pub(super) fn written_disks(domain: &Element) -> BTreeMap<&str, &str> {
    notes(domain, "disk").filter_map(|n| Some((n.get("name")?, n.get("source")?))).collect()
}

/// The wish left the CPU to vmkeep, so that it is chosen once.
pub(super) fn cpu_is_chosen(domain: &Element) -> bool {
    notes(domain, "cpu").any(|n| matches!(n.get("model"), Some("auto" | "cluster")))
}

/// CPU features that the wish changed, and their policy in the chosen model.
pub(super) fn overlaid_features(domain: &Element) -> BTreeMap<&str, Option<&str>> {
    notes(domain, "feature").filter_map(|n| Some((n.get("name")?, n.get("was")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_mark_is_read() {
        let good =
            "<vmkeep:vm xmlns:vmkeep='https://vmkeep.dev/xmlns/1' id='6b0e0a52-1111-4222-8333-444455556666' project='p' generation='3'/>";
        let meta = parse_metadata(good).expect("ours");
        assert_eq!((meta.project.as_str(), meta.generation, meta.spec_revision, meta.epoch), ("p", Generation(3), Revision(0), Epoch(0)));
        for bad in
            ["", "<x/>", "<vmkeep:vm id='x' project='p' generation='1'/>", &good.replace("'3'", "'-1'"), &good.replace("'p'", "'../p'")]
        {
            assert_eq!(parse_metadata(bad), None, "{bad}");
        }
    }
}
