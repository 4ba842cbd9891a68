//! Manifests: YAML or JSON text to typed wishes, with all problems of all documents at once, and back.
//!
//! ```text
//! text ── split ──► documents ── tree ──► keys, values, places ── decode ──► spec ── check ──► problems at their lines
//! ```
//!
//! [`parse`] reads files for people: its error names file, line, column, field, and shows the line. [`from_json`] reads what
//! came over the wire: its error names the field. Both refuse unknown fields and say which known one is nearest.

mod decode;
mod shape;
mod show;
mod split;
mod tree;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::check;
use crate::error::{Code, Error, Problem};
use crate::image::ImageSpec;
use crate::name::Name;
use crate::network::NetworkSpec;
use crate::node::NodeSpec;
use crate::pool::PoolSpec;
use crate::vm::VmSpec;
use decode::Finding;
use tree::Node;

pub use decode::PROBLEMS_MAX;
pub use tree::{ALIAS_EVENTS_MAX, DEPTH_MAX, NODES_MAX, Place};
pub use write::{to_yaml_full, to_yaml_minimal, vm_minimal_value, vm_to_yaml_full, vm_to_yaml_minimal};

/// The largest manifest text; a VM's is rarely over 10 KiB.
pub const TEXT_BYTES_MAX: usize = 4 << 20;

/// Documents in one file: a rack of VMs. More is a mistake of a generator.
pub const DOCUMENTS_MAX: usize = 1000;

/// Problems shown of one call; a generator that is wrong is wrong everywhere.
pub const SHOWN_MAX: usize = 200;

/// Values in all documents of one call, so that a large file cannot take all memory.
const VALUES_MAX: usize = 500_000;

/// What a manifest's `api` field may say.
pub const API: &str = "vmkeep/v1";

/// The kinds of manifests.
pub const KINDS: [&str; 4] = ["vm", "network", "image", "pool"];

/// One typed manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a list of manifests is short and read once")]
pub enum Manifest {
    Vm(VmSpec),
    Network(NetworkSpec),
    Image(ImageSpec),
    Pool(PoolSpec),
}

impl Manifest {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vm(_) => "vm",
            Self::Network(_) => "network",
            Self::Image(_) => "image",
            Self::Pool(_) => "pool",
        }
    }

    pub fn name(&self) -> &Name {
        match self {
            Self::Vm(s) => &s.name,
            Self::Network(s) => &s.name,
            Self::Image(s) => &s.name,
            Self::Pool(s) => &s.name,
        }
    }

    /// Everything that is wrong with it and needs no look at the host or the store.
    pub fn problems(&self) -> Vec<Problem> {
        match self {
            Self::Vm(s) => check::vm(s),
            Self::Network(s) => check::network(s),
            Self::Image(s) => check::image(s),
            Self::Pool(s) => check::pool(s),
        }
    }

    /// With its short forms written out, as it is stored.
    #[must_use]
    pub fn normalized(self) -> Self {
        match self {
            Self::Vm(s) => Self::Vm(check::normalize(s)),
            other @ (Self::Network(_) | Self::Image(_) | Self::Pool(_)) => other,
        }
    }

    /// Every field, with `kind`: what `POST /v1/apply` takes.
    pub fn to_json(&self) -> Value {
        let spec = match self {
            Self::Vm(s) => serde_json::to_value(s),
            Self::Network(s) => serde_json::to_value(s),
            Self::Image(s) => serde_json::to_value(s),
            Self::Pool(s) => serde_json::to_value(s),
        };
        let mut value = spec.expect("specs have only text keys");
        value.as_object_mut().expect("specs are structs").insert("kind".into(), self.kind().into());
        value
    }
}

/// A manifest, and where it was written.
#[derive(Clone, Debug)]
pub struct Document {
    pub manifest: Manifest,
    pub file: Arc<str>,
    text: Arc<str>,
    tree: Arc<Node>,
    /// `vm web1`, as it was written.
    what: String,
}

impl Document {
    /// Where a field, or the nearest thing around it, was written.
    pub fn locate(&self, field: &str) -> Place {
        self.tree.locate(field)
    }

    /// Turns problems that were found later (by the server) into an error with lines and snippets, like [`parse`]'s own.
    pub fn error(&self, problems: &[Problem]) -> Error {
        let mut found: Vec<Finding> = problems.iter().map(|p| self.found(p)).collect();
        found.sort_by_key(|f| f.at);
        show::error(&self.file, found.iter().map(|f| self.show(f)).collect(), 1)
    }

    fn found(&self, p: &Problem) -> Finding {
        Finding { field: p.field.clone(), at: self.locate(&p.field), message: p.message.clone() }
    }

    fn show(&self, finding: &Finding) -> Problem {
        show::problem(&self.file, &self.text, &self.what, finding)
    }
}

/// Reads all documents of one file (`file` is only shown) and checks them.
///
/// The specs are as they were written; [`Manifest::normalized`] writes short forms out.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Error> {
    parse_all(&[(file, text)])
}

/// Reads several files, with all problems of all of them in one error.
pub fn parse_all(files: &[(&str, &str)]) -> Result<Vec<Document>, Error> {
    let mut read = Reading::default();
    for (file, text) in files {
        read.file(file, text)?;
    }
    read.twice();
    if read.problems.is_empty() {
        return Ok(read.documents);
    }
    if read.problems.len() >= SHOWN_MAX {
        read.problems.truncate(SHOWN_MAX);
        read.problems.push(Problem { field: "…".into(), message: "and more; mend these first".into() });
    }
    let names: Vec<&str> = files.iter().map(|(f, _)| *f).collect();
    Err(show::error(&names.join(", "), read.problems, read.seen))
}

/// Reads one YAML document that is no manifest, with the same care: all problems at once, each with line and column. `check`
/// finds those that types cannot; it is asked only when everything could be read.
///
/// # Errors
/// [`Code::Invalid`] with the problems.
pub fn parse_other<T: DeserializeOwned>(file: &str, text: &str, check: impl FnOnce(&T) -> Vec<Problem>) -> Result<T, Error> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::new(Code::TooLarge, format!("{file}: {} bytes; the limit is {} MiB", text.len(), TEXT_BYTES_MAX >> 20)));
    }
    let bad = |found: &[Finding]| {
        let problems: Vec<Problem> = found.iter().map(|f| show::problem(file, text, "", f)).collect();
        let count = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
        Error { code: Code::Invalid, message: format!("{file}: {count}"), hint: None, problems }
    };
    let mut tree = tree::read(text).map_err(|e| {
        let at = e.at.unwrap_or(Place { line: 1, column: 1, chars: 1 });
        bad(&[Finding { field: String::new(), at, message: e.message }])
    })?;
    let written = tree.clone();
    let mut found = Vec::new();
    let value: Option<T> = decode::all(&mut tree, &mut found);
    match value {
        Some(value) if found.is_empty() => {
            found =
                check(&value).into_iter().map(|p| Finding { at: written.locate(&p.field), field: p.field, message: p.message }).collect();
            if found.is_empty() { Ok(value) } else { Err(bad(&found)) }
        }
        Some(_) | None => Err(bad(&found)),
    }
}

impl From<Finding> for Problem {
    fn from(f: Finding) -> Self {
        Self { field: check::harmless(f.field), message: check::harmless(f.message) }
    }
}

#[derive(Default)]
struct Reading {
    documents: Vec<Document>,
    problems: Vec<Problem>,
    /// Documents looked at, good and bad.
    seen: usize,
    nodes: usize,
}

impl Reading {
    fn file(&mut self, file: &str, text: &str) -> Result<(), Error> {
        if text.len() > TEXT_BYTES_MAX {
            let message = format!("{file}: {} bytes are too much for a manifest; the limit is {} MiB", text.len(), TEXT_BYTES_MAX >> 20);
            return Err(Error::new(Code::TooLarge, message).hint("split it into several files"));
        }
        let chunks = split::documents(text);
        if self.seen + chunks.len() > DOCUMENTS_MAX {
            let message = format!("{file}: more than {DOCUMENTS_MAX} documents in one call");
            return Err(Error::new(Code::TooLarge, message).hint("apply them in several calls"));
        }
        if chunks.is_empty() {
            let message = format!("{file}: no manifest in it");
            return Err(Error::invalid(message).hint("the smallest one is {kind: vm, name: hello, image: debian-13}"));
        }
        let (file, text): (Arc<str>, Arc<str>) = (file.into(), text.into());
        for chunk in chunks {
            self.seen += 1;
            if self.problems.len() >= SHOWN_MAX {
                continue;
            }
            self.document(&file, &text, &chunk)?;
        }
        Ok(())
    }

    fn document(&mut self, file: &Arc<str>, text: &Arc<str>, chunk: &split::Chunk<'_>) -> Result<(), Error> {
        let mut tree = match tree::read(chunk.text) {
            Ok(tree) => tree,
            Err(e) => {
                let mut at = e.at.unwrap_or(Place { line: 1, column: 1, chars: 1 });
                at.line += chunk.lines_before;
                let finding = Finding { field: String::new(), at, message: e.message };
                self.problems.push(show::problem(file, text, "", &finding));
                return Ok(());
            }
        };
        self.nodes += tree.count();
        if self.nodes > VALUES_MAX {
            return Err(Error::new(Code::TooLarge, format!("{file}: more values than any set of manifests needs")));
        }
        tree.shift(chunk.lines_before);
        let written = Arc::new(tree.clone());
        let what = shape::what(&written);
        let mut found = Vec::new();
        if let Some(manifest) = decode_manifest(&mut tree, None, &mut found) {
            let (file, text, what) = (file.clone(), text.clone(), what.clone());
            let document = Document { manifest, file, text, tree: written, what };
            let more = not_told(&found, document.manifest.problems());
            found.extend(more.iter().map(|p| document.found(p)));
            self.documents.push(document);
        }
        found.sort_by_key(|f| f.at);
        self.problems.extend(found.iter().map(|f| show::problem(file, text, &what, f)));
        Ok(())
    }

    /// Two documents about one object.
    fn twice(&mut self) {
        let mut first: BTreeMap<(&str, &Name), &Document> = BTreeMap::new();
        let mut problems = Vec::new();
        for document in &self.documents {
            let key = (document.manifest.kind(), document.manifest.name());
            let Some(other) = first.get(&key) else {
                first.insert(key, document);
                continue;
            };
            if key.1.as_str() == decode::STAND_IN {
                continue;
            }
            let message = format!("there is another {} '{}' at {}:{}", key.0, key.1, other.file, other.tree.at.line);
            problems.push(document.show(&document.found(&Problem { field: "name".into(), message })));
        }
        self.problems.extend(problems);
    }
}

/// Leaves out what says nothing new: a place whose text was bad already, names that were not there.
fn not_told(found: &[Finding], more: Vec<Problem>) -> Vec<Problem> {
    let inside = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let list_of = |field: &str| field.strip_suffix("].name").and_then(|f| f.split_once('[')).map(|(list, _)| list.to_owned());
    let told = |field: &str| {
        let near = |f: &str| !f.is_empty() && (inside(f, field) || inside(field, f));
        found.iter().any(|f| near(&f.field) || list_of(field).is_some_and(|list| list_of(&f.field) == Some(list)))
    };
    more.into_iter().filter(|p| !told(&p.field)).collect()
}

/// Strips the header and decodes by kind. `kind`: what it must be where the caller knows it.
fn decode_manifest(tree: &mut Node, kind: Option<&str>, found: &mut Vec<Finding>) -> Option<Manifest> {
    let kind = shape::header(tree, kind, found)?;
    shape::names_in_lists(tree, kind, found);
    match kind {
        "vm" => decode::all(tree, found).map(Manifest::Vm),
        "network" => decode::all(tree, found).map(Manifest::Network),
        "image" => decode::all(tree, found).map(Manifest::Image),
        "pool" => decode::all(tree, found).map(Manifest::Pool),
        other => unreachable!("the header knows no kind '{other}'"),
    }
}

/// One manifest from the wire: checked, with its short forms written out. Its `kind` decides.
pub fn from_json(value: Value) -> Result<Manifest, Error> {
    manifest_from(value, None)
}

/// The body of a VM route; `kind: vm` may be there or not.
pub fn vm_from_json(value: Value) -> Result<VmSpec, Error> {
    match manifest_from(value, Some("vm"))? {
        Manifest::Vm(spec) => Ok(spec),
        other => unreachable!("asked for a vm, got {}", other.kind()),
    }
}

/// The body of a network route.
pub fn network_from_json(value: Value) -> Result<NetworkSpec, Error> {
    match manifest_from(value, Some("network"))? {
        Manifest::Network(spec) => Ok(spec),
        other => unreachable!("asked for a network, got {}", other.kind()),
    }
}

/// The body of an image route.
pub fn image_from_json(value: Value) -> Result<ImageSpec, Error> {
    match manifest_from(value, Some("image"))? {
        Manifest::Image(spec) => Ok(spec),
        other => unreachable!("asked for an image, got {}", other.kind()),
    }
}

/// The body of a pool route.
pub fn pool_from_json(value: Value) -> Result<PoolSpec, Error> {
    match manifest_from(value, Some("pool"))? {
        Manifest::Pool(spec) => Ok(spec),
        other => unreachable!("asked for a pool, got {}", other.kind()),
    }
}

fn manifest_from(value: Value, kind: Option<&str>) -> Result<Manifest, Error> {
    let mut tree = Node::from(value);
    let mut found = Vec::new();
    let manifest = decode_manifest(&mut tree, kind, &mut found);
    let more = manifest.as_ref().map_or_else(Vec::new, |m| not_told(&found, m.problems()));
    let mut problems: Vec<Problem> = found.into_iter().map(Problem::from).chain(more).collect();
    if let Some(Manifest::Vm(spec)) = &manifest {
        problems.extend(check::unread_files(spec));
    }
    match manifest {
        Some(manifest) if problems.is_empty() => Ok(manifest.normalized()),
        Some(_) | None => Err(refused("the manifest", problems)),
    }
}

/// The body of a node route.
pub fn node_from_json(value: Value) -> Result<NodeSpec, Error> {
    let spec: NodeSpec = body_from_json(value)?;
    let problems = check::node(&spec);
    if problems.is_empty() { Ok(spec) } else { Err(refused(&format!("node {}", spec.name), problems)) }
}

/// Any other JSON body of the API: field paths and nearest names, all problems at once.
pub fn body_from_json<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    let mut found = Vec::new();
    let body = decode::all(&mut Node::from(value), &mut found);
    match body {
        Some(body) if found.is_empty() => Ok(body),
        Some(_) | None => Err(refused("the request", found.into_iter().map(Problem::from).collect())),
    }
}

/// A stored value that a newer version may have written: fields that `T` does not know are passed over, where its own
/// deserialisation refuses them because people must not mistype. None: something else is wrong with it.
pub fn known_from_json<T: DeserializeOwned>(value: Value) -> Option<T> {
    decode::known(&mut Node::from(value))
}

/// One error for problems that were found by [`check`].
pub fn refused(what: &str, problems: Vec<Problem>) -> Error {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    Error { code: Code::Invalid, message: format!("{what} has {count}"), hint: None, problems }
}
