//! Our mark inside a domain: which VM it is, of which project, by which right.

use vmkeep_types::ids::{Generation, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::order::Order;

use super::tree::{self, Element, el};
use crate::hypervisor::{METADATA_KEY, METADATA_URI};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub vm: VmId,
    pub project: Name,
    pub generation: Generation,
    pub spec_revision: Revision,
}

pub(super) fn element(order: &Order) -> Element {
    el(&format!("{METADATA_KEY}:vm"))
        .attr(&format!("xmlns:{METADATA_KEY}"), METADATA_URI)
        .attr("id", order.vm)
        .attr("project", &order.project)
        .attr("generation", order.generation)
        .attr("revision", order.spec_revision)
}

/// `<vmkeep:vm …/>`
pub fn metadata(order: &Order) -> String {
    element(order).write().trim().to_owned()
}

/// None for anything that is not our mark.
pub fn parse_metadata(text: &str) -> Option<Meta> {
    let tree = tree::parse(text).ok()?;
    if tree.name.rsplit(':').next() != Some("vm") {
        return None;
    }
    Some(Meta {
        vm: tree.get("id")?.parse().ok()?,
        project: tree.get("project")?.parse().ok()?,
        generation: Generation(tree.get("generation")?.parse().ok()?),
        spec_revision: Revision(tree.get("revision").and_then(|r| r.parse().ok()).unwrap_or(0)),
    })
}
