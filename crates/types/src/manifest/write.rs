//! Specs back to text, in the order of their fields: minimal (what a person would have written) or full.
//!
//! What is written reads back to the same spec, short forms written out.

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};

use super::Manifest;
use super::tree::{self, Body, Key, Node};
use crate::check;
use crate::image::ImageSpec;
use crate::name::Name;
use crate::network::NetworkSpec;
use crate::vm::{Disk, Nic, VmSpec};

/// Fields that are written although they have their default, because the struct around them needs them.
const KEPT: [&str; 3] = ["name", "count", "size"];

/// Only what differs from the defaults.
pub fn to_yaml_minimal(manifest: &Manifest) -> String {
    match manifest {
        Manifest::Vm(spec) => vm_to_yaml_minimal(spec),
        Manifest::Network(spec) => {
            let plain = NetworkSpec { name: spec.name.clone(), ..smallest(serde_json::json!({"name": spec.name})) };
            text("network", prune(ordered(spec), Some(&ordered(&plain))))
        }
        Manifest::Image(spec) => {
            let plain: ImageSpec = smallest(serde_json::json!({"name": spec.name, "source": spec.source}));
            let mut node = prune(ordered(spec), Some(&ordered(&plain)));
            // The source has no default; pruning compared it with itself.
            if let (Body::Map(fields), Some(source)) = (&mut node.body, ordered(spec).field("source")) {
                fields.push((key("source"), source.clone()));
            }
            text("image", node)
        }
        Manifest::Pool(spec) => {
            let mut node = ordered(spec);
            if let Body::Map(fields) = &mut node.body {
                fields.retain(|(key, value)| key.text != "description" || value.text() != Some(""));
            }
            text("pool", node)
        }
    }
}

/// Every field, defaults too.
pub fn to_yaml_full(manifest: &Manifest) -> String {
    match manifest {
        Manifest::Vm(spec) => vm_to_yaml_full(spec),
        Manifest::Network(spec) => text("network", ordered(spec)),
        Manifest::Image(spec) => text("image", ordered(spec)),
        Manifest::Pool(spec) => text("pool", ordered(spec)),
    }
}

pub fn vm_to_yaml_full(spec: &VmSpec) -> String {
    text("vm", ordered(&check::normalize(spec.clone())))
}

pub fn vm_to_yaml_minimal(spec: &VmSpec) -> String {
    text("vm", vm_minimal(spec))
}

/// The minimal form as JSON (without `kind`), for `export -o json`.
pub fn vm_minimal_value(spec: &VmSpec) -> serde_json::Value {
    serde_json::to_value(Plain(&vm_minimal(spec))).expect("a tree has only text keys")
}

fn smallest<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("the required fields of a spec are a whole spec")
}

fn vm_minimal(spec: &VmSpec) -> Node {
    let spec = check::normalize(spec.clone());
    let plain = ordered(&VmSpec::named(spec.name.clone()));
    let mut node = prune(ordered(&spec), Some(&plain));
    let Body::Map(fields) = &mut node.body else { unreachable!("a spec is a struct") };
    for (key, value) in fields.iter_mut() {
        match key.text.as_str() {
            "disks" => prune_items(value, |name| ordered(&Disk::named(name))),
            "nics" => prune_items(value, |name| ordered(&Nic::named(name))),
            "cpus" => shorten(value, "count"),
            "memory" => shorten(value, "size"),
            _ => {}
        }
    }
    if let Some(position) = fields.iter().position(|(k, _)| k.text == "disks")
        && let Some(image) = only_image(&fields[position].1)
    {
        fields.remove(position);
        fields.insert(1, (key("image"), image));
    }
    node
}

/// `disks: [{name: root, image: X}]` is `image: X`.
fn only_image(disks: &Node) -> Option<Node> {
    let Body::List(items) = &disks.body else { return None };
    let [Node { body: Body::Map(fields), .. }] = items.as_slice() else { return None };
    let [(name, is), (image, node)] = fields.as_slice() else { return None };
    (name.text == "name" && is.text() == Some("root") && image.text == "image").then(|| node.clone())
}

/// `{count: 2}` is `2`.
fn shorten(node: &mut Node, only: &str) {
    let Body::Map(fields) = &mut node.body else { return };
    if fields.len() == 1 && fields[0].0.text == only {
        *node = fields.remove(0).1;
    }
}

fn prune_items(list: &mut Node, plain: impl Fn(Name) -> Node) {
    let Body::List(items) = &mut list.body else { return };
    for item in items {
        let Some(name) = item.field("name").and_then(Node::text).and_then(|t| t.parse().ok()) else { continue };
        let whole = std::mem::replace(item, Node::new(Body::Null));
        *item = prune(whole, Some(&plain(name)));
    }
}

/// Leaves out what equals the default, in maps within maps too.
fn prune(node: Node, plain: Option<&Node>) -> Node {
    let Body::Map(fields) = node.body else { return node };
    let Some(Node { body: Body::Map(plain_fields), .. }) = plain else { return Node::new(Body::Map(fields)) };
    let plain_of = |name: &str| plain_fields.iter().find(|(k, _)| k.text == name).map(|(_, n)| n);
    let kept = fields.into_iter().filter(|(k, n)| KEPT.contains(&k.text.as_str()) || !plain_of(&k.text).is_some_and(|p| same(n, p)));
    let pruned = kept.map(|(k, n)| {
        let n = prune(n, plain_of(&k.text));
        (k, n)
    });
    Node::new(Body::Map(pruned.collect()))
}

fn same(a: &Node, b: &Node) -> bool {
    match (&a.body, &b.body) {
        (Body::Null, Body::Null) => true,
        (Body::Bool(a, _), Body::Bool(b, _)) => a == b,
        (Body::Number(a, _), Body::Number(b, _)) => a == b,
        (Body::Text(a), Body::Text(b)) => a == b,
        (Body::List(a), Body::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Body::Map(a), Body::Map(b)) => a.len() == b.len() && a.iter().zip(b).all(|((k, a), (l, b))| k.text == l.text && same(a, b)),
        _ => false,
    }
}

/// A spec as a tree in the order of its fields (JSON maps are sorted by name). Through YAML, the one writer that keeps the order.
fn ordered(spec: &impl Serialize) -> Node {
    let yaml = serde_saphyr::to_string(spec).expect("specs have only text keys");
    tree::read(&yaml).expect("what the YAML writer wrote can be read")
}

fn key(text: &str) -> Key {
    Key { text: text.into(), at: tree::Place::default() }
}

fn text(kind: &str, mut node: Node) -> String {
    let Body::Map(fields) = &mut node.body else { unreachable!("a spec is a struct") };
    fields.insert(0, (key("kind"), Node::new(Body::Text(kind.into()))));
    serde_saphyr::to_string(&Plain(&node)).expect("a tree has only text keys")
}

struct Plain<'a>(&'a Node);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match &self.0.body {
            Body::Null => s.serialize_unit(),
            Body::Bool(b, _) => s.serialize_bool(*b),
            Body::Number(n, _) => n.serialize(s),
            Body::Text(t) => s.serialize_str(t),
            Body::List(items) => {
                let mut seq = s.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|n| seq.serialize_element(&Plain(n)))?;
                seq.end()
            }
            Body::Map(fields) => {
                let mut map = s.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(k, n)| map.serialize_entry(&k.text, &Plain(n)))?;
                map.end()
            }
        }
    }
}
