//! One document as a tree that remembers where each key and value was written.
//!
//! Typed parsing stops at its first error; a tree lets [`super::decode`] go on after one, and lets problems found later (by
//! [`crate::check`], or by the server) be shown at their line.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use serde_saphyr::{Location, Spanned};

/// Nesting of a document; manifests need 6. Guards the stack.
pub const DEPTH_MAX: usize = 32;

/// Keys and values of one document, aliases expanded; a large VM has 300.
pub const NODES_MAX: usize = 50_000;

/// Values that aliases may repeat in one document: what an alias bomb is made of.
pub const ALIAS_EVENTS_MAX: usize = 20_000;

/// Line and column (both from 1, in characters) and length. Line 0 = not from a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: u32,
    pub column: u32,
    pub chars: u32,
}

impl Place {
    fn new(at: Location) -> Self {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: small(at.line()), column: small(at.column()), chars: small(at.span().len()) }
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    pub at: Place,
    /// Known to be bad: skipped, so that the rest can be looked at.
    pub hidden: bool,
}

#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub at: Place,
}

#[derive(Clone, Debug)]
pub enum Body {
    Null,
    /// With its text: `True` is a boolean where one is wanted, else text.
    Bool(bool, Option<String>),
    /// With its text, so that `0755` and `1e3` stay what they are where text is wanted.
    Number(Number, Option<String>),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A YAML document's syntax error.
#[derive(Debug)]
pub struct SyntaxError {
    pub message: String,
    pub at: Option<Place>,
}

/// Reads one YAML document. Lines count from the beginning of `text`.
pub fn read(text: &str) -> Result<Node, SyntaxError> {
    let mut node: Node = serde_saphyr::from_str_with_options::<Placed>(text, options()).map_err(|e| syntax_error(&e))?.0;
    keep_spelling(&mut node, &Lines::new(text));
    Ok(node)
}

fn options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS_MAX,
            max_replay_stack_depth: 16,
        },
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
    };
    options.emit_comments = false;
    options
}

fn syntax_error(e: &serde_saphyr::Error) -> SyntaxError {
    use serde_saphyr::Error as E;
    let at = e.location().filter(|l| l.line() > 0).map(Place::new);
    let message = match innermost(e) {
        E::DuplicateMappingKey { key: Some(key), .. } => format!("'{key}' is written twice"),
        E::DuplicateMappingKey { key: None, .. } => "a key is written twice".into(),
        E::UnknownAnchor { .. } => "no anchor (&name) of this name stands above".into(),
        E::AliasReplayLimitExceeded { .. } | E::AliasExpansionLimitExceeded { .. } | E::AliasReplayStackDepthExceeded { .. } => {
            format!("aliases repeat more than {ALIAS_EVENTS_MAX} values: refused as an alias bomb")
        }
        E::Budget { .. } => format!("larger than any manifest: more than {NODES_MAX} values, or nested deeper than {DEPTH_MAX}"),
        // The place is shown by us, once.
        other => {
            let text = other.to_string();
            text.split(" at line ").next().unwrap_or(&text).trim_start_matches("error: ").to_owned()
        }
    };
    SyntaxError { message, at }
}

fn innermost(e: &serde_saphyr::Error) -> &serde_saphyr::Error {
    match e.without_snippet() {
        serde_saphyr::Error::AliasError { error, .. } => innermost(error),
        other => other,
    }
}

/// A node together with its place; serde-saphyr hands places out through [`Spanned`].
struct Placed(Node);

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Inner>::deserialize(d)?;
        Ok(Self(Node { body: spanned.value.0, at: Place::new(spanned.referenced), hidden: false }))
    }
}

struct Inner(Body);

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(BodyVisitor).map(Self)
    }
}

struct BodyVisitor;

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Body, E> {
        Ok(Body::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Body, E> {
        Ok(Body::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Body, D::Error> {
        d.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Body, E> {
        Ok(Body::Bool(v, None))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Body, E> {
        Ok(Body::Number(v.into(), None))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Body, E> {
        Ok(Body::Number(v.into(), None))
    }

    fn visit_i128<E: de::Error>(self, v: i128) -> Result<Body, E> {
        Ok(Body::Text(v.to_string()))
    }

    fn visit_u128<E: de::Error>(self, v: u128) -> Result<Body, E> {
        Ok(Body::Text(v.to_string()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Body, E> {
        Number::from_f64(v).map(|n| Body::Number(n, None)).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Body, E> {
        Ok(Body::Text(v.to_owned()))
    }

    fn visit_string<E: de::Error>(self, v: String) -> Result<Body, E> {
        Ok(Body::Text(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body, A::Error> {
        let mut items = Vec::new();
        while let Some(Placed(node)) = seq.next_element()? {
            items.push(node);
        }
        Ok(Body::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, Placed(node))) = map.next_entry::<Spanned<String>, Placed>()? {
            fields.push((Key { text: key.value, at: Place::new(key.referenced) }, node));
        }
        Ok(Body::Map(fields))
    }
}

/// Byte offsets of lines, to cut out what was written.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { text, starts }
    }

    /// The `chars` characters at a place; None where the place is not in the text.
    fn cut(&self, at: Place) -> Option<&'a str> {
        let start = *self.starts.get((at.line as usize).checked_sub(1)?)?;
        let line = self.text.get(start..)?;
        let skip = line.char_indices().nth((at.column as usize).checked_sub(1)?)?.0;
        let rest = &line[skip..];
        let end = rest.char_indices().nth(at.chars as usize).map_or(rest.len(), |(i, _)| i);
        Some(&rest[..end])
    }
}

/// Numbers and booleans get the text they were written as. An aliased one has only the alias's text at its place: left out.
fn keep_spelling(node: &mut Node, lines: &Lines<'_>) {
    let at = node.at;
    match &mut node.body {
        // A checksum like 12e3456… reads as an endless number; it is what was written.
        Body::Text(text) if matches!(text.as_str(), ".inf" | "-.inf" | ".nan") => {
            if let Some(written) = lines.cut(at).filter(|t| !t.starts_with(['"', '\'', '*'])) {
                written.trim().clone_into(text);
            }
        }
        Body::Bool(_, spelled) | Body::Number(_, spelled) => {
            *spelled = lines.cut(at).map(str::trim).filter(|t| !t.is_empty() && !t.starts_with(['*', '!', '&'])).map(str::to_owned);
        }
        Body::List(items) => items.iter_mut().for_each(|n| keep_spelling(n, lines)),
        Body::Map(fields) => fields.iter_mut().for_each(|(_, n)| keep_spelling(n, lines)),
        Body::Null | Body::Text(_) => {}
    }
}

impl Node {
    pub fn new(body: Body) -> Self {
        Self { body, at: Place::default(), hidden: false }
    }

    pub fn field(&self, name: &str) -> Option<&Node> {
        match &self.body {
            Body::Map(fields) => fields.iter().find(|(k, n)| k.text == name && !n.hidden).map(|(_, n)| n),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match &self.body {
            Body::Text(t) => Some(t),
            Body::Number(_, t) | Body::Bool(_, t) => t.as_deref(),
            Body::Null | Body::List(_) | Body::Map(_) => None,
        }
    }

    /// Keys and values in it.
    pub fn count(&self) -> usize {
        1 + match &self.body {
            Body::List(items) => items.iter().map(Self::count).sum(),
            Body::Map(fields) => fields.iter().map(|(_, n)| 1 + n.count()).sum(),
            Body::Null | Body::Bool(..) | Body::Number(..) | Body::Text(_) => 0,
        }
    }

    /// Moves all places down: the document begins after so many lines of its file.
    pub fn shift(&mut self, lines: u32) {
        let down = |at: &mut Place| {
            if at.line > 0 {
                at.line += lines;
            }
        };
        down(&mut self.at);
        match &mut self.body {
            Body::List(items) => items.iter_mut().for_each(|n| n.shift(lines)),
            Body::Map(fields) => fields.iter_mut().for_each(|(k, n)| {
                down(&mut k.at);
                n.shift(lines);
            }),
            Body::Null | Body::Bool(..) | Body::Number(..) | Body::Text(_) => {}
        }
    }

    /// The place of `disks[root].size`, or of the nearest thing around it that was written.
    pub fn locate(&self, field: &str) -> Place {
        let steps: Vec<&str> = field.split(['.', '[', ']']).filter(|s| !s.is_empty()).collect();
        self.find(self.at, &steps).1
    }

    /// How many steps could be gone, and where they led. Of several elements with one name the one that has the field.
    fn find(&self, at: Place, steps: &[&str]) -> (usize, Place) {
        let Some((step, rest)) = steps.split_first() else { return (0, at) };
        let below = |(child, key_at, by_value): (&Node, Place, bool)| {
            let at = if by_value && child.at.line > 0 { child.at } else { key_at };
            let (depth, at) = child.find(at, rest);
            (depth + 1, at)
        };
        let found = match &self.body {
            Body::Map(fields) => fields.iter().find(|(k, _)| k.text == *step).map(|(k, n)| below((n, k.at, n.is_scalar()))),
            Body::List(items) => {
                let called = items.iter().enumerate().filter(|(i, n)| n.is_called(step, *i));
                called.map(|(_, n)| below((n, n.at, true))).reduce(|a, b| if b.0 > a.0 { b } else { a })
            }
            Body::Null | Body::Bool(..) | Body::Number(..) | Body::Text(_) => None,
        };
        found.unwrap_or((0, at))
    }

    fn is_scalar(&self) -> bool {
        !matches!(self.body, Body::List(_) | Body::Map(_))
    }

    /// A list's element is called by its `name`, else by its number.
    fn is_called(&self, step: &str, index: usize) -> bool {
        match self.field("name").and_then(Node::text) {
            Some(name) => name == step || step.parse() == Ok(index),
            None => step.parse() == Ok(index),
        }
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        Self::new(match value {
            Value::Null => Body::Null,
            Value::Bool(b) => Body::Bool(b, None),
            Value::Number(n) => Body::Number(n, None),
            Value::String(s) => Body::Text(s),
            Value::Array(items) => Body::List(items.into_iter().map(Self::from).collect()),
            Value::Object(map) => Body::Map(map.into_iter().map(|(k, v)| (Key { text: k, at: Place::default() }, v.into())).collect()),
        })
    }
}
