//! `FIELD=VALUE` of `vm set` and `vm create`: a path into a manifest and a YAML value.
//!
//! ```text
//! memory=4G                   short forms keep what else the struct says (max, balloon)
//! disks[root].size=40G        list elements by their name; disks.root.size means the same
//! labels.tier=db              the rest of the path is the label's key
//! labels.tier=null            null gives the default back, or takes the key away
//! nics[lan].dns=[10.0.0.1]    flow style for lists and maps
//! ```
//! Each assignment is checked by reading the whole manifest back, so that an error names the assignment that made it.

use serde::Serialize;
use serde_json::Value;
use vmkeep_types::error::Error;

use crate::failure::Failure;

/// Maps whose keys people choose: what follows is one key, dots and all.
const FREE_KEYS: [&str; 3] = ["labels", "features", "node_selector"];

/// Structs with a short form, and the field that it means.
const SHORT: [(&str, &str); 2] = [("cpus", "count"), ("memory", "size")];

/// Reads a manifest of one kind from JSON: `manifest::vm_from_json` and its like.
type Read<T> = fn(Value) -> Result<T, Error>;

/// Applies `FIELD=VALUE` texts in order.
pub fn assign_all<T: Serialize>(object: &T, assignments: &[String], read: Read<T>) -> Result<T, Failure> {
    let mut value = serde_json::to_value(object).map_err(|e| Error::internal(format!("the manifest cannot be written: {e}")))?;
    for text in assignments {
        let (path, wanted) = text
            .split_once('=')
            .filter(|(path, _)| !path.is_empty())
            .ok_or_else(|| Failure::usage(format!("'{text}' is not FIELD=VALUE"), "write it like memory=4G or disks[root].size=40G"))?;
        value = assign(&value, path, wanted, read)?;
    }
    Ok(read(value)?)
}

fn assign<T>(before: &Value, path: &str, wanted: &str, read: Read<T>) -> Result<Value, Failure> {
    let segments = segments(path)?;
    let mut first_error = None;
    for candidate in candidates(wanted) {
        let mut value = before.clone();
        place(&mut value, &segments, path, candidate)?;
        match read(value.clone()) {
            Ok(_) => return Ok(value),
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    let mut error = first_error.expect("a text has at least one meaning");
    error.message = format!("{path}={wanted} is refused");
    Err(error.into())
}

/// What a text may mean, the likelier first: `64` a number, or a description "64".
fn candidates(text: &str) -> Vec<Candidate> {
    let literal = Candidate::Set(Value::String(text.to_owned()));
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Null) => vec![Candidate::Set(Value::Null), Candidate::Remove],
        Ok(Value::String(s)) => vec![Candidate::Set(Value::String(s)), literal],
        Ok(value) => vec![Candidate::Set(value), literal],
        Err(_) => vec![literal],
    }
}

enum Candidate {
    Set(Value),
    Remove,
}

fn segments(path: &str) -> Result<Vec<String>, Failure> {
    let mut out = Vec::new();
    let mut rest = path.replace('[', ".").replace(']', "");
    while !rest.is_empty() {
        if out.last().is_some_and(|s: &String| FREE_KEYS.contains(&s.as_str())) {
            out.push(rest);
            break;
        }
        let (segment, tail) = rest.split_once('.').map_or((rest.clone(), String::new()), |(s, t)| (s.to_owned(), t.to_owned()));
        if segment.is_empty() {
            return Err(Failure::usage(format!("'{path}' is not a field"), "write it like disks[root].size"));
        }
        out.push(segment);
        rest = tail;
    }
    Ok(out)
}

fn place(root: &mut Value, segments: &[String], path: &str, candidate: Candidate) -> Result<(), Failure> {
    let (last, parents) = segments.split_last().expect("a path has a segment");
    let mut at = root;
    for segment in parents {
        at = step(at, segment, path)?;
    }
    if at.is_null() {
        *at = Value::Object(serde_json::Map::new());
    }
    if at.is_array() {
        let element = step(at, last, path)?;
        if let Candidate::Set(value) = candidate {
            *element = value;
        }
        return Ok(());
    }
    let Value::Object(map) = at else {
        return Err(Error::invalid(format!("{path}: there is nothing inside of a plain value")).into());
    };
    match candidate {
        Candidate::Remove => drop(map.remove(last)),
        Candidate::Set(value) => {
            let short = SHORT.iter().find(|(field, _)| parents.is_empty() && field == last && (value.is_string() || value.is_number()));
            match (short, map.get_mut(last)) {
                (Some((_, inner)), Some(Value::Object(whole))) => drop(whole.insert((*inner).to_owned(), value)),
                _ => drop(map.insert(last.clone(), value)),
            }
        }
    }
    Ok(())
}

fn step<'a>(at: &'a mut Value, segment: &str, path: &str) -> Result<&'a mut Value, Failure> {
    if at.is_null() {
        *at = Value::Object(serde_json::Map::new());
    }
    match at {
        Value::Object(map) => Ok(map.entry(segment).or_insert(Value::Null)),
        Value::Array(items) => {
            let names: Vec<_> = items.iter().filter_map(|i| Some(i.get("name")?.as_str()?.to_owned())).collect();
            let index = items.iter().position(|i| i.get("name").and_then(Value::as_str) == Some(segment)).or_else(|| segment.parse().ok());
            index.and_then(|i| items.get_mut(i)).ok_or_else(|| {
                let there = if names.is_empty() { "the list is empty".to_owned() } else { format!("there are: {}", names.join(", ")) };
                Error::invalid(format!("{path}: no element '{segment}'; {there}")).into()
            })
        }
        _ => Err(Error::invalid(format!("{path}: '{segment}' is not inside of a plain value")).into()),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_types::manifest::vm_from_json;
    use vmkeep_types::name::Name;
    use vmkeep_types::vm::VmSpec;

    use super::*;

    fn check(assignments: &[&str], fields: &[&str], expected: Expect) {
        let spec = VmSpec::named(Name::known("web"));
        let texts: Vec<String> = assignments.iter().map(|s| (*s).to_owned()).collect();
        let text = match assign_all(&spec, &texts, vm_from_json) {
            Ok(spec) => {
                let value = serde_json::to_value(&spec).expect("written");
                fields.iter().map(|f| format!("{f}: {}\n", value[*f])).collect()
            }
            Err(Failure::Error(e)) => format!("{e}\n"),
            Err(other) => format!("{other:?}\n"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn assignments_reach_every_depth() {
        check(
            &[
                "memory.max=8G",
                "memory=4G",
                "cpus=3",
                "labels.app.kubernetes.io/name=web",
                "nics[lan].dns=[10.0.0.1]",
                "nics.lan.mac=52:54:00:00:00:01",
            ],
            &["memory", "cpus", "labels", "nics"],
            expect![[r#"
                memory: {"balloon":true,"hugepages":false,"max":"8G","size":"4G"}
                cpus: {"count":3}
                labels: {"app.kubernetes.io/name":"web"}
                nics: [{"addresses":["dhcp"],"dns":["10.0.0.1"],"link":"up","mac":"52:54:00:00:00:01","mtu":"auto","name":"lan","network":"default","queues":"auto"}]
            "#]],
        );
    }

    #[test]
    fn texts_that_look_like_numbers_stay_texts_where_texts_belong() {
        check(
            &["description=64", "labels.on=yes", "labels.gone=null", "display=null"],
            &["description", "labels", "display"],
            expect![[r#"
            description: "64"
            labels: {"on":"yes"}
            display: null
        "#]],
        );
    }

    #[test]
    fn bad_assignments_are_named() {
        check(
            &["cpus=2", "memory=4096"],
            &[],
            expect![[r#"
            memory=4096 is refused
              memory.size: '4096' has no unit; write 4096M or 4096G
        "#]],
        );
        check(
            &["disks[data].size=4G"],
            &[],
            expect![[r#"
            disks[data].size: no element 'data'; the list is empty
        "#]],
        );
        check(
            &["memroy=4G"],
            &[],
            expect![[r#"
            memroy=4G is refused
              memroy: there is no field 'memroy'; did you mean 'memory'?
        "#]],
        );
        check(
            &["memory"],
            &[],
            expect![[r#"
            Usage { message: "'memory' is not FIELD=VALUE", hint: "write it like memory=4G or disks[root].size=40G" }
        "#]],
        );
    }
}
