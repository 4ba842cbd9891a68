//! What is looked at before a document has a type: its header, and names that lists of devices need.

use std::collections::BTreeSet;

use super::decode::{Finding, PROBLEMS_MAX};
use super::tree::{Body, Node};
use super::{API, KINDS};
use crate::nearest;

/// Lists whose elements are told apart by name.
const NAMED_LISTS: [&str; 2] = ["disks", "nics"];

/// Takes `api` and `kind` off; the kind, if it is a known one. `known`: what the caller knows it to be.
pub fn header(tree: &mut Node, known: Option<&str>, found: &mut Vec<Finding>) -> Option<&'static str> {
    let at = tree.at;
    let Body::Map(fields) = &mut tree.body else {
        let message = "a manifest is a map of fields, like {kind: vm, name: hello, image: debian-13}".into();
        found.push(Finding { field: String::new(), at, message });
        return None;
    };
    let mut take = |name: &str| fields.iter().position(|(k, _)| k.text == name).map(|i| fields.remove(i));
    let (api, kind) = (take("api"), take("kind"));
    if let Some((_, node)) = api
        && node.text() != Some(API)
    {
        let message = format!("this vmkeep reads '{API}'; leave the field out, or write that");
        found.push(Finding { field: "api".into(), at: node.at, message });
    }
    match (kind, known) {
        (None, Some(known)) => KINDS.into_iter().find(|k| *k == known),
        (None, None) => {
            let message = format!("it is missing; write one of {}", nearest::list(&KINDS));
            found.push(Finding { field: "kind".into(), at, message });
            None
        }
        (Some((_, node)), known) => {
            let written = node.text().unwrap_or_default();
            let kind = KINDS.into_iter().find(|k| *k == written);
            let message = match (kind, known) {
                (Some(kind), Some(known)) if kind != known => format!("a {known} is wanted here, not a {kind}"),
                (Some(kind), _) => return Some(kind),
                (None, _) if written.is_empty() => format!("write one of {}", nearest::list(&KINDS)),
                (None, _) => {
                    format!("there is no kind '{}'{}", written.chars().take(60).collect::<String>(), nearest::hint(written, &KINDS))
                }
            };
            found.push(Finding { field: "kind".into(), at: node.at, message });
            None
        }
    }
}

/// Two or more disks or NICs each need a written name: a default would make their identity depend on their order.
/// Names that are there twice are told here, where both places are known.
pub fn names_in_lists(tree: &Node, kind: &str, found: &mut Vec<Finding>) {
    if kind != "vm" {
        return;
    }
    for list in NAMED_LISTS {
        let Some(Body::List(items)) = tree.field(list).map(|n| &n.body) else { continue };
        let mut seen = BTreeSet::new();
        for (position, item) in items.iter().enumerate() {
            let is_map = matches!(&item.body, Body::Map(_));
            match item.field("name") {
                None if is_map && items.len() > 1 => {
                    let message = format!("with two or more {list} each needs a name of its own");
                    found.push(Finding { field: format!("{list}[{position}].name"), at: item.at, message });
                }
                Some(node) if node.text().is_some_and(|name| !seen.insert(name)) => {
                    let name: String = node.text().unwrap_or_default().chars().take(63).collect();
                    let message = format!("two {list} are called '{name}'; each device needs a name of its own");
                    found.push(Finding { field: format!("{list}[{name}].name"), at: node.at, message });
                }
                Some(_) | None => {}
            }
            if found.len() > PROBLEMS_MAX {
                return;
            }
        }
    }
}

/// `vm web1`, as far as it can be told.
pub fn what(tree: &Node) -> String {
    let text = |field| tree.field(field).and_then(Node::text).map(|t| t.chars().take(63).filter(|c| !c.is_control()).collect::<String>());
    match (text("kind"), text("name")) {
        (Some(kind), Some(name)) => format!("{kind} {name}"),
        (None, Some(name)) => name,
        (Some(kind), None) => kind,
        (None, None) => String::new(),
    }
}
