//! Where the secrets of a record lie.

use serde_json::Value;

/// A field by its names from the outside in; `*` is any element of a list or field of an object.
pub type Path = &'static [&'static str];

/// The secret fields of the record under a key.
pub type Fields = fn(&str) -> &'static [Path];

/// Every text under one of `paths`, with its path's name.
pub fn texts<'a>(value: &'a mut Value, paths: &[Path], each: &mut dyn FnMut(&str, &mut String)) {
    for path in paths {
        walk(value, path, &path.join("."), each);
    }
}

fn walk(value: &mut Value, path: &[&str], name: &str, each: &mut dyn FnMut(&str, &mut String)) {
    match (path.split_first(), value) {
        (None, Value::String(text)) => each(name, text),
        (Some((&"*", rest)), Value::Array(items)) => items.iter_mut().for_each(|item| walk(item, rest, name, each)),
        (Some((&"*", rest)), Value::Object(fields)) => fields.values_mut().for_each(|field| walk(field, rest, name, each)),
        (Some((field, rest)), Value::Object(fields)) => {
            if let Some(value) = fields.get_mut(*field) {
                walk(value, rest, name, each);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_found_wherever_a_path_leads() {
        let mut value = json!({
            "spec": {"password": "a", "users": [{"name": "x", "passwd": "b"}, {"passwd": 7}, "odd", {"passwd": "c"}]},
            "options": {"login": "d", "port": 1},
        });
        let mut found = String::new();
        let paths: [Path; 4] = [&["spec", "password"], &["spec", "users", "*", "passwd"], &["options", "*"], &["absent", "x"]];
        texts(&mut value, &paths, &mut |name, text| found += &format!("{name} = {text}\n"));
        expect![[r#"
            spec.password = a
            spec.users.*.passwd = b
            spec.users.*.passwd = c
            options.* = d
        "#]]
        .assert_eq(&found);
    }
}
