//! `libvirt_xml` patches: what the manifest cannot say.
//!
//! A path is element names with `/`, each with an optional `[@attribute=value]` or `[@alias=…]`, relative to `<domain>`; a
//! last step `@name` is an attribute.

use vmkeep_types::error::Error;
use vmkeep_types::vm::{XmlOp, XmlPatch};

use super::tree::{self, Element};

pub fn apply(domain: &mut Element, patches: &[XmlPatch]) -> Result<(), Error> {
    for (n, patch) in patches.iter().enumerate() {
        one(domain, patch).map_err(|why| Error::invalid(format!("libvirt_xml[{n}] ({}): {why}", patch.path)))?;
    }
    Ok(())
}

fn one(domain: &mut Element, patch: &XmlPatch) -> Result<(), String> {
    let (path, attribute) = match patch.path.rsplit_once("/@") {
        Some((path, attribute)) => (path, Some(attribute)),
        None => match patch.path.strip_prefix('@') {
            Some(attribute) => ("", Some(attribute)),
            None => (patch.path.as_str(), None),
        },
    };
    if let Some(attribute) = attribute {
        let target = find(domain, path)?;
        return match (patch.op, &patch.value) {
            (XmlOp::Remove, _) => {
                target.attributes.retain(|(key, _)| key != attribute);
                Ok(())
            }
            (_, Some(value)) => {
                target.set(attribute, value);
                Ok(())
            }
            (_, None) => Err("a value is missing".into()),
        };
    }
    match patch.op {
        XmlOp::Add => {
            let new = value(patch)?;
            find(domain, path)?.children.push(new);
            Ok(())
        }
        XmlOp::Replace => {
            let new = value(patch)?;
            *find(domain, path)? = new;
            Ok(())
        }
        XmlOp::Remove => remove(domain, path),
    }
}

fn value(patch: &XmlPatch) -> Result<Element, String> {
    tree::parse(patch.value.as_deref().ok_or("a value is missing")?).map_err(|e| e.message)
}

/// `disk[@alias=ua-disk-root]`
fn matches(element: &Element, step: &str) -> bool {
    let (name, condition) = step.split_once('[').map_or((step, None), |(name, rest)| (name, rest.strip_suffix(']')));
    if element.name != name {
        return false;
    }
    let Some((key, wanted)) = condition.and_then(|c| c.strip_prefix('@')).and_then(|c| c.split_once('=')) else { return condition.is_none() };
    let found = if key == "alias" { element.alias() } else { element.get(key) };
    found == Some(wanted.trim_matches(['\'', '"']))
}

fn find<'a>(domain: &'a mut Element, path: &str) -> Result<&'a mut Element, String> {
    path.split('/').filter(|s| !s.is_empty()).try_fold(domain, |element, step| {
        element.children.iter_mut().find(|c| matches(c, step)).ok_or_else(|| format!("nothing matches '{step}'"))
    })
}

fn remove(domain: &mut Element, path: &str) -> Result<(), String> {
    let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = find(domain, parent)?;
    let before = parent.children.len();
    parent.children.retain(|c| !matches(c, last));
    if parent.children.len() == before { Err(format!("nothing matches '{last}'")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(op: XmlOp, path: &str, value: Option<&str>, expected: Expect) {
        let mut domain = tree::parse("<domain><devices><disk k='1'><alias name='ua-a'/><driver cache='none'/></disk><disk k='2'/></devices></domain>").expect("XML");
        let patch = XmlPatch { op, path: path.into(), value: value.map(str::to_owned) };
        let told = apply(&mut domain, &[patch]).map_or_else(|e| e.message, |()| domain.write());
        expected.assert_eq(&told);
    }

    #[test]
    fn patches_find_their_place_or_say_what_is_missing() {
        check(XmlOp::Replace, "devices/disk[@alias=ua-a]/driver/@cache", Some("writeback"), expect![[r#"
            <domain>
              <devices>
                <disk k='1'>
                  <alias name='ua-a'/>
                  <driver cache='writeback'/>
                </disk>
                <disk k='2'/>
              </devices>
            </domain>
        "#]]);
        check(XmlOp::Remove, "devices/disk[@k=1]", None, expect![[r#"
            <domain>
              <devices>
                <disk k='2'/>
              </devices>
            </domain>
        "#]]);
        check(XmlOp::Add, "devices/sound", Some("<x/>"), expect!["libvirt_xml[0] (devices/sound): nothing matches 'sound'"]);
        check(XmlOp::Add, "devices", None, expect!["libvirt_xml[0] (devices): a value is missing"]);
    }
}
