//! From a tree to a typed value, with every problem and not only the first.
//!
//! serde stops at its first error. [`all`] notes it, hides the part that caused it, and starts again until nothing is wrong
//! or nothing more can be said.

mod fault;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess, Unexpected, Visitor};

use super::tree::{Body, Key, Node, Place};
use crate::nearest;
use fault::{Fault, FaultBody, Kind, clip};

/// Problems shown of one document; nobody mends more at a time.
pub const PROBLEMS_MAX: usize = 50;

/// The name of an object whose own is missing, while the rest of it is looked at.
pub const STAND_IN: &str = "unnamed";

/// One problem with its field path and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub field: String,
    pub at: Place,
    pub message: String,
}

/// Decodes `root`, adding every problem to `found`. None: not even a damaged value could be made.
pub fn all<T: DeserializeOwned>(root: &mut Node, found: &mut Vec<Finding>) -> Option<T> {
    for _ in 0..=PROBLEMS_MAX {
        let fault = match T::deserialize(De(root)) {
            Ok(value) => return Some(value),
            Err(fault) => *fault.0,
        };
        let trail: Vec<usize> = fault.trail.iter().rev().copied().collect();
        if let Some(finding) = describe(root, &trail, &fault) {
            found.push(finding);
        }
        if !mend(root, trail, &fault) {
            return None;
        }
    }
    None
}

/// Unknown fields passed over in one value: more is no newer version, but something else.
const UNKNOWN_MAX: usize = 200;

/// Decodes `root` as far as `T` knows it. None: something is wrong beside fields that it does not know.
pub fn known<T: DeserializeOwned>(root: &mut Node) -> Option<T> {
    for _ in 0..UNKNOWN_MAX {
        let fault = match T::deserialize(De(root)) {
            Ok(value) => return Some(value),
            Err(fault) => *fault.0,
        };
        let trail: Vec<usize> = fault.trail.iter().rev().copied().collect();
        if !matches!(fault.kind, Kind::UnknownField { .. }) || !mend(root, trail, &fault) {
            return None;
        }
    }
    None
}

/// The problem in words; None when it only follows from one that was told already.
fn describe(root: &Node, trail: &[usize], fault: &FaultBody) -> Option<Finding> {
    let (mut node, mut at, mut field) = (root, root.at, String::new());
    for (depth, position) in trail.iter().enumerate() {
        let last = depth + 1 == trail.len();
        match &node.body {
            Body::Map(fields) => {
                let (key, child) = fields.get(*position)?;
                push_key(&mut field, &key.text);
                at = if last && fault.keyed || child.at.line == 0 { key.at } else { child.at };
                node = child;
            }
            Body::List(items) => {
                let child = items.get(*position)?;
                push_item(&mut field, child, *position);
                (node, at) = (child, child.at);
            }
            _ => return None,
        }
    }
    let message = match &fault.kind {
        Kind::UnknownField { name, known } => {
            if !fault.keyed
                && let Some((key, _)) = buffered_key(node, name)
            {
                push_key(&mut field, name);
                at = key.at;
            }
            format!("there is no field '{name}'{}", nearest::hint(name, known))
        }
        Kind::UnknownVariant { name, known } => {
            if let Some((key, child)) = buffered_value(node, name) {
                push_key(&mut field, &key.text);
                at = child.at;
            }
            format!("'{name}' is not one of {}{}", nearest::list(known), near(name, known))
        }
        Kind::Missing(name) if is_hidden(node, name) => return None,
        Kind::Missing(name) => {
            push_key(&mut field, name);
            "it is missing".into()
        }
        Kind::Other(message) => boolean_advice(node, message),
    };
    Some(Finding { field, at, message })
}

fn near(word: &str, known: &[&str]) -> String {
    nearest::nearest(word, known.iter().copied()).map(|n| format!("; did you mean '{n}'?")).unwrap_or_default()
}

/// Internally tagged enums are buffered by serde, which loses the way; the key is searched by its name.
fn buffered_key<'a>(node: &'a Node, name: &str) -> Option<&'a (Key, Node)> {
    match &node.body {
        Body::Map(fields) => fields.iter().find(|(k, _)| k.text == name),
        _ => None,
    }
}

fn buffered_value<'a>(node: &'a Node, text: &str) -> Option<&'a (Key, Node)> {
    match &node.body {
        Body::Map(fields) => fields.iter().find(|(_, n)| n.text() == Some(text)),
        _ => None,
    }
}

fn is_hidden(node: &Node, name: &str) -> bool {
    matches!(&node.body, Body::Map(fields) if fields.iter().any(|(k, n)| k.text == name && n.hidden))
}

fn boolean_advice(node: &Node, message: &str) -> String {
    let ambiguous = node.text().is_some_and(|t| matches!(t.to_ascii_lowercase().as_str(), "yes" | "no" | "on" | "off" | "y" | "n"));
    if ambiguous && message.starts_with("expected true or false") {
        format!("{message}; write true or false in full")
    } else {
        message.into()
    }
}

pub fn push_key(path: &mut String, key: &str) {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (plain, path.is_empty()) {
        (true, true) => path.push_str(key),
        (true, false) => {
            path.push('.');
            path.push_str(key);
        }
        (false, _) => {
            path.push('[');
            path.push_str(&clip(key));
            path.push(']');
        }
    }
}

fn push_item(path: &mut String, item: &Node, position: usize) {
    use std::fmt::Write as _;
    let written = match item.field("name").and_then(Node::text) {
        Some(name) => write!(path, "[{}]", clip(name)),
        None => write!(path, "[{position}]"),
    };
    written.expect("writing to a String cannot fail");
}

/// Hides what was wrong; false when there is nothing left to hide.
fn mend(root: &mut Node, mut trail: Vec<usize>, fault: &FaultBody) -> bool {
    match &fault.kind {
        Kind::Missing("name") if trail.is_empty() => {
            let Body::Map(fields) = &mut root.body else { return false };
            // Stands in until the rest has been looked at; the manifest is refused anyway.
            fields.push((Key { text: "name".into(), at: root.at }, Node::new(Body::Text(STAND_IN.into()))));
            return true;
        }
        Kind::UnknownField { name, .. } if !fault.keyed => {
            if let Some(position) = walk(root, &trail).and_then(|n| position_of(n, name)) {
                trail.push(position);
            }
        }
        Kind::UnknownField { .. } | Kind::UnknownVariant { .. } | Kind::Missing(_) | Kind::Other(_) => {}
    }
    if trail.is_empty() {
        return false;
    }
    match walk(root, &trail) {
        Some(node) if !node.hidden => {
            node.hidden = true;
            true
        }
        _ => false,
    }
}

fn position_of(node: &Node, name: &str) -> Option<usize> {
    match &node.body {
        Body::Map(fields) => fields.iter().position(|(k, n)| k.text == name && !n.hidden),
        _ => None,
    }
}

fn walk<'a>(root: &'a mut Node, trail: &[usize]) -> Option<&'a mut Node> {
    trail.iter().try_fold(root, |node, position| match &mut node.body {
        Body::Map(fields) => fields.get_mut(*position).map(|(_, n)| n),
        Body::List(items) => items.get_mut(*position),
        _ => None,
    })
}

/// serde's view of a node.
struct De<'a>(&'a Node);

impl<'de> De<'de> {
    fn wrong<T>(self, wanted: &dyn Expected) -> Result<T, Fault> {
        let found = match &self.0.body {
            Body::Null => Unexpected::Unit,
            Body::Bool(b, _) => Unexpected::Bool(*b),
            Body::Number(n, _) => number_seen(n),
            Body::Text(t) => Unexpected::Str(t),
            Body::List(_) => Unexpected::Seq,
            Body::Map(_) => Unexpected::Map,
        };
        Err(de::Error::invalid_type(found, wanted))
    }

    fn text<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.text() {
            Some(text) => visitor.visit_borrowed_str(text),
            None => self.wrong(&visitor),
        }
    }

    fn map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Map(fields) => visitor.visit_map(Fields { fields, next: 0 }),
            _ => self.wrong(&visitor),
        }
    }

    fn list<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            _ => self.wrong(&visitor),
        }
    }

    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Number(n, _) => visit_number(n, visitor),
            _ => self.wrong(&visitor),
        }
    }
}

fn number_seen(n: &serde_json::Number) -> Unexpected<'static> {
    match (n.as_u64(), n.as_i64(), n.as_f64()) {
        (Some(n), _, _) => Unexpected::Unsigned(n),
        (None, Some(n), _) => Unexpected::Signed(n),
        (None, None, Some(n)) => Unexpected::Float(n),
        (None, None, None) => Unexpected::Other("a number"),
    }
}

fn visit_number<'de, V: Visitor<'de>>(n: &serde_json::Number, visitor: V) -> Result<V::Value, Fault> {
    match number_seen(n) {
        Unexpected::Unsigned(n) => visitor.visit_u64(n),
        Unexpected::Signed(n) => visitor.visit_i64(n),
        Unexpected::Float(n) => visitor.visit_f64(n),
        other => Err(de::Error::invalid_type(other, &visitor)),
    }
}

macro_rules! as_number {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.number(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for De<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Null => visitor.visit_unit(),
            Body::Bool(b, _) => visitor.visit_bool(*b),
            Body::Number(n, _) => visit_number(n, visitor),
            Body::Text(t) => visitor.visit_borrowed_str(t),
            Body::List(_) => self.list(visitor),
            Body::Map(_) => self.map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Bool(b, _) => visitor.visit_bool(*b),
            _ => self.wrong(&visitor),
        }
    }

    as_number! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Null => visitor.visit_unit(),
            _ => self.wrong(&visitor),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        match &self.0.body {
            Body::Map(fields) => visitor.visit_enum(MapAccessDeserializer::new(Fields { fields, next: 0 })),
            _ => match self.0.text() {
                Some(text) => visitor.visit_enum(StrDeserializer::new(text)),
                None => self.wrong(&visitor),
            },
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.text(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        while let Some(node) = self.items.get(self.next) {
            let position = self.next;
            self.next += 1;
            if !node.hidden {
                return seed.deserialize(De(node)).map(Some).map_err(|e| e.below(position));
            }
        }
        Ok(None)
    }
}

struct Fields<'de> {
    fields: &'de [(Key, Node)],
    next: usize,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        while let Some((key, node)) = self.fields.get(self.next) {
            if !node.hidden {
                return seed.deserialize(StrDeserializer::new(&key.text)).map(Some).map_err(|e: Fault| e.at_key(self.next));
            }
            self.next += 1;
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let position = self.next;
        self.next += 1;
        let (_, node) = self.fields.get(position).expect("serde asks for a value after its key");
        seed.deserialize(De(node)).map_err(|e| e.below(position))
    }
}
