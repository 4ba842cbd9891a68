//! Where VMs may run, and what people say of nodes: labels, selectors, taints, rules between VMs.

use std::collections::BTreeMap;

use super::{Found, description, devices};
use crate::node::NodeSpec;
use crate::placement::{PlacementWish, VmRule};
use crate::vm::VmSpec;

pub(super) const LABELS_MAX: usize = 64;
const RULES_MAX: usize = 32;
const TAINTS_MAX: usize = 32;
/// Bytes of a label's key or value, a taint's, and a failure domain.
const WORD_BYTES_MAX: usize = 63;

/// The label that every node has without being told: its name.
pub const NODE_LABEL: &str = "node";

fn is_word(text: &str, extra: &[u8]) -> bool {
    text.len() <= WORD_BYTES_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

fn key(field: &str, key: &str, found: &mut Found) {
    if key.is_empty() || !is_word(key, b"._/-") {
        found.add(field, "a label's key has 1 to 63 letters, digits, '.', '_', '/' or '-'");
    }
}

fn value(field: &str, value: &str, found: &mut Found) {
    if !is_word(value, b"._/:@+-") {
        found.add(field, "a label's value has up to 63 letters, digits, '.', '_', '/', ':', '@', '+' or '-'");
    }
}

pub(super) fn labels(field: &str, labels: &BTreeMap<String, String>, found: &mut Found) {
    found.at_most(field, labels.len(), LABELS_MAX);
    for (k, v) in labels.iter().take(LABELS_MAX) {
        let field = format!("{field}.{}", devices::shown(k));
        key(&field, k, found);
        value(&field, v, found);
    }
}

pub(super) fn look(spec: &VmSpec, found: &mut Found) {
    let wish: &PlacementWish = &spec.placement;
    labels("node_selector", &wish.node_selector, found);
    found.at_most("tolerations", wish.tolerations.len(), TAINTS_MAX);
    for (n, toleration) in wish.tolerations.iter().take(TAINTS_MAX).enumerate() {
        key(&format!("tolerations[{n}].key"), &toleration.key, found);
        value(&format!("tolerations[{n}].value"), toleration.value.as_deref().unwrap_or_default(), found);
    }
    for (list, rules) in [("affinity", &wish.affinity), ("anti_affinity", &wish.anti_affinity)] {
        found.at_most(list, rules.len(), RULES_MAX);
        for (n, rule) in rules.iter().take(RULES_MAX).enumerate() {
            found.under(format!("placement.{list}[{n}]"), |f| self::rule(rule, spec, f));
        }
    }
}

fn rule(rule: &VmRule, spec: &VmSpec, found: &mut Found) {
    match (&rule.vm, rule.labels.is_empty()) {
        (None, true) => found.add("", "it names no VMs; write `vm: NAME`, or `labels: {…}`"),
        (Some(_), false) => found.add("", "either `vm` or `labels`, not both; write two rules"),
        (Some(vm), true) if *vm == spec.name => found.add("vm", "a VM is always with itself; name another one"),
        (Some(_), true) => {}
        (None, false) => labels("labels", &rule.labels, found),
    }
}

pub(super) fn node(spec: &NodeSpec, found: &mut Found) {
    description(&spec.description, found);
    labels("labels", &spec.labels, found);
    if spec.labels.get(NODE_LABEL).is_some_and(|name| name != spec.name.as_str()) {
        found.add("labels.node", "every node has its own name as the label 'node'; choose another key");
    }
    found.at_most("taints", spec.taints.len(), TAINTS_MAX);
    for (n, taint) in spec.taints.iter().take(TAINTS_MAX).enumerate() {
        key(&format!("taints[{n}].key"), &taint.key, found);
        value(&format!("taints[{n}].value"), taint.value.as_deref().unwrap_or_default(), found);
    }
    if let Some(domain) = &spec.failure_domain
        && (domain.is_empty() || !is_word(domain, b"._/:@+-"))
    {
        found.add("failure_domain", "a failure domain has 1 to 63 letters, digits, '.', '_', '/', ':', '@', '+' or '-'");
    }
}
