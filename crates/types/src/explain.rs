//! Help on fields (`vmkeep explain vm.disks.cache`) and the published JSON schema, both from the types' own comments.

use std::fmt::Write as _;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::image::ImageSpec;
use crate::manifest::{API, KINDS};
use crate::nearest;
use crate::network::NetworkSpec;
use crate::pool::PoolSpec;
use crate::vm::VmSpec;

/// Path of a definition within the published schema.
const DEFS: &str = "#/$defs/";

/// The JSON schema (draft 2020-12) of all kinds of manifests, told apart by `kind`. Editors complete manifests with it.
pub fn schema() -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let specs = [
        ("vm", generator.subschema_for::<VmSpec>()),
        ("network", generator.subschema_for::<NetworkSpec>()),
        ("image", generator.subschema_for::<ImageSpec>()),
        ("pool", generator.subschema_for::<PoolSpec>()),
    ];
    let mut defs = generator.take_definitions(true);
    for (kind, reference) in &specs {
        let name = reference.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFS)).expect("a spec is a definition");
        let mut spec = defs.remove(name).expect("the generator defined it");
        with_header(kind, spec.as_object_mut().expect("a struct's schema is an object"));
        defs.insert((*kind).to_owned(), spec);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vmkeep manifest",
        "description": "One document of a manifest file; its kind decides.",
        "oneOf": KINDS.map(|kind| json!({"$ref": format!("{DEFS}{kind}")})),
        "$defs": defs,
    })
}

/// Adds the fields that only a manifest has.
fn with_header(kind: &str, spec: &mut Map<String, Value>) {
    let properties = spec.get_mut("properties").and_then(Value::as_object_mut).expect("a struct has fields");
    properties.insert("api".into(), json!({"const": API, "description": "Version of the manifest; may be left out."}));
    properties.insert("kind".into(), json!({"const": kind, "description": "What the document describes."}));
    let required = spec.entry("required").or_insert_with(|| json!([])).as_array_mut().expect("required is a list");
    required.insert(0, "kind".into());
}

/// Help on a kind or a field: `vm`, `vm.disks`, `vm.disks.cache`. Positions and names (`disks[root]`) may be written.
pub fn explain(path: &str) -> Result<String, Error> {
    let schema = schema();
    let mut steps = path.split('.').map(|s| s.split('[').next().unwrap_or(s)).filter(|s| !s.is_empty());
    let Some(kind) = steps.next() else {
        return Err(Error::invalid(format!("explain what? one of {}", nearest::list(&KINDS))).hint("vmkeep explain vm.disks"));
    };
    if !KINDS.contains(&kind) {
        let message = format!("there is no kind '{}'{}", shown(kind), nearest::hint(kind, &KINDS));
        return Err(Error::invalid(message).hint("vmkeep explain vm"));
    }
    let look = Look { defs: &schema["$defs"] };
    let mut walked = kind.to_owned();
    let mut here = json!({"$ref": format!("{DEFS}{kind}")});
    let mut required = true;
    for step in steps {
        let fields = look.fields(&here);
        if look.is_free_map(&here) && fields.is_empty() {
            return Err(Error::invalid(format!("{walked} takes keys of your own choice")).hint(format!("vmkeep explain {walked}")));
        }
        let Some(field) = fields.iter().find(|f| f.name == step) else {
            let names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
            let message = match names.as_slice() {
                [] => format!("{walked} has no fields of its own"),
                names => format!("{walked} has no field '{}'{}", shown(step), nearest::hint(step, names)),
            };
            return Err(Error::invalid(message).hint(format!("vmkeep explain {walked}")));
        };
        walked = format!("{walked}.{step}");
        required = field.required;
        here = field.schema.clone();
    }
    Ok(look.page(&walked, &here, required))
}

fn shown(text: &str) -> String {
    text.chars().take(60).filter(|c| !c.is_control()).collect()
}

struct Field {
    name: String,
    required: bool,
    schema: Value,
}

impl Field {
    /// A field of the same name in another form of its struct: of the tag, all words are told.
    fn or(&mut self, schema: &Value, required: bool) {
        self.required &= required;
        if let Some(word) = schema.get("const") {
            let mut words = self.schema["enum"].as_array().cloned().unwrap_or_else(|| vec![self.schema["const"].clone()]);
            if !words.contains(word) {
                words.push(word.clone());
            }
            self.schema = json!({"enum": words});
        }
    }
}

/// Reads schemas as schemars writes them.
struct Look<'a> {
    defs: &'a Value,
}

impl Look<'_> {
    /// The definition behind a reference.
    fn target<'v>(&'v self, schema: &'v Value) -> &'v Value {
        match schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFS)) {
            Some(name) => &self.defs[name],
            None => schema,
        }
    }

    /// Ways to write a value; nothing (null) left out.
    fn ways<'v>(&'v self, schema: &'v Value) -> Vec<&'v Value> {
        let target = self.target(schema);
        match target.get("anyOf").or_else(|| target.get("oneOf")).and_then(Value::as_array) {
            Some(several) => {
                // A struct with a flattened enum has fields of its own, whichever form it takes.
                let own = target.get("properties").map(|_| target);
                own.into_iter().chain(several.iter().filter(|w| w["type"] != "null").flat_map(|w| self.ways(w))).collect()
            }
            None => vec![target],
        }
    }

    fn fields(&self, schema: &Value) -> Vec<Field> {
        let mut fields: Vec<Field> = Vec::new();
        let ways = self.ways(schema);
        let shared = |way: &Value| way.get("oneOf").is_some();
        let forms: Vec<&Value> = ways.iter().filter(|w| !shared(w)).filter_map(|w| w.get("properties")).collect();
        for way in &ways {
            if way["type"] == "array" || way["type"][0] == "array" {
                fields.extend(self.fields(&way["items"]));
            }
            let required: Vec<&str> = way["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for (name, schema) in way["properties"].as_object().into_iter().flatten() {
                let always = shared(way) || forms.iter().all(|f| f.get(name).is_some());
                let required = required.contains(&name.as_str()) && always;
                match fields.iter_mut().find(|f| f.name == *name) {
                    Some(known) => known.or(schema, required),
                    None => fields.push(Field { name: name.clone(), required, schema: schema.clone() }),
                }
            }
        }
        fields
    }

    fn is_free_map(&self, schema: &Value) -> bool {
        self.ways(schema).iter().any(|w| w["type"] == "object" && w.get("properties").is_none())
    }

    /// `list of map`, `one of none | writeback`, `size like 20G or null`.
    fn type_words(&self, schema: &Value) -> String {
        let mut words: Vec<String> = Vec::new();
        for way in self.ways(schema) {
            let word = self.one_type(way);
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let target = self.target(schema);
        let several = target.get("anyOf").and_then(Value::as_array);
        let nothing = several.is_some_and(|ways| ways.iter().any(|w| w["type"] == "null")) || target["type"][1] == "null";
        if nothing {
            words.push("null".into());
        }
        words.join(" or ")
    }

    fn one_type(&self, way: &Value) -> String {
        if let Some(constant) = way.get("const") {
            return text(constant);
        }
        if let Some(values) = way.get("enum").and_then(Value::as_array) {
            return values.iter().map(text).collect::<Vec<_>>().join(" or ");
        }
        let name = way["type"].as_str().or_else(|| way["type"][0].as_str());
        match (name, way.get("pattern"), way["description"].as_str()) {
            (Some("string"), Some(_), Some(like)) if like.starts_with("a ") => like.trim_start_matches("a ").to_owned(),
            (Some("string"), Some(_), _) => "name".into(),
            (Some("string"), None, _) => "text".into(),
            (Some("integer"), ..) => "number".into(),
            (Some("boolean"), ..) => "true or false".into(),
            (Some("array"), ..) => format!("list of {}", self.type_words(&way["items"])),
            (Some("object"), ..) => "map".into(),
            (Some(other), ..) => other.into(),
            (None, ..) => "anything".into(),
        }
    }

    /// Allowed words with what each means.
    fn values(&self, schema: &Value) -> Vec<(String, String)> {
        let mut values = Vec::new();
        for way in self.ways(schema) {
            let meaning = way["description"].as_str().unwrap_or_default().to_owned();
            if let Some(constant) = way.get("const") {
                values.push((text(constant), meaning));
            } else if let Some(list) = way.get("enum").and_then(Value::as_array) {
                values.extend(list.iter().map(|v| (text(v), String::new())));
            }
        }
        values
    }

    /// The field's own comment, and its type's; of a list, its elements'.
    fn descriptions<'v>(&'v self, schema: &'v Value) -> Vec<&'v str> {
        let target = self.target(schema);
        let items = target.get("items").map(|items| self.target(items));
        let several = self.ways(schema);
        let only =
            if several.len() == 1 && !several[0].get("const").is_some_and(Value::is_string) { several.first().copied() } else { None };
        let mut found: Vec<&str> = Vec::new();
        for place in [Some(schema), Some(target), items, only].into_iter().flatten() {
            // A unit's description is its type's name.
            if let Some(text) = place["description"].as_str().filter(|d| !d.starts_with("a "))
                && !found.contains(&text)
            {
                found.push(text);
            }
        }
        found
    }

    fn page(&self, path: &str, schema: &Value, required: bool) -> String {
        let mut out = String::new();
        let line = |out: &mut String, word: &str, value: &str| writeln!(out, "{word:<9} {value}").expect("writing to a String cannot fail");
        line(&mut out, "FIELD", path);
        line(&mut out, "TYPE", &self.type_words(schema));
        match (schema.get("default"), required) {
            (Some(default), _) => line(&mut out, "DEFAULT", &text(default)),
            (None, true) if path.contains('.') => line(&mut out, "DEFAULT", "none; it must be written"),
            (None, _) => {}
        }
        for description in self.descriptions(schema) {
            write!(out, "\n{}\n", wrapped(description)).expect("writing to a String cannot fail");
        }
        let values = self.values(schema);
        if values.iter().any(|(_, meaning)| !meaning.is_empty()) {
            out.push_str("\nVALUES\n");
            rows(&mut out, values);
        }
        let fields = self.fields(schema);
        if !fields.is_empty() {
            out.push_str("\nFIELDS\n");
            let row = |f: &Field| {
                let kind = self.type_words(&f.schema);
                let default = match (f.schema.get("default"), f.required) {
                    (_, true) => " (must be written)".into(),
                    (Some(d), false) if text(d).len() <= SHORT => format!(" (default {})", text(d)),
                    (Some(_) | None, false) => String::new(),
                };
                (f.name.clone(), format!("{kind}{default}"))
            };
            rows(&mut out, fields.iter().map(row).collect());
        }
        out
    }
}

/// Defaults longer than this stand on the field's own page only.
const SHORT: usize = 24;

/// Width that fits a terminal.
const WIDTH: usize = 100;

fn rows(out: &mut String, rows: Vec<(String, String)>) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, words) in rows {
        writeln!(out, "  {}", format!("{name:<width$}  {words}").trim_end()).expect("writing to a String cannot fail");
    }
}

/// Comments' line breaks mean nothing; paragraphs do.
fn wrapped(text: &str) -> String {
    let paragraph = |p: &str| {
        let (mut lines, mut line) = (Vec::new(), String::new());
        for word in p.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
        lines.join("\n")
    };
    text.split("\n\n").map(paragraph).collect::<Vec<_>>().join("\n\n")
}

/// A JSON value as it would be written.
fn text(value: &Value) -> String {
    match value {
        Value::String(s) if s.is_empty() => "''".into(),
        Value::String(s) => s.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => format!("{{{}}}", map.iter().map(|(k, v)| format!("{k}: {}", text(v))).collect::<Vec<_>>().join(", ")),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests;
