//! `libvirt_xml` patches: what the manifest cannot say.
//!
//! A path goes down from `<domain>` by element names with `/`, each with at most one condition: `[@attribute=value]`,
//! `[@alias=ua-disk-root]` (its `<alias>` element) or `[n]` (from 1). A last step `@name` is an attribute; `.` is the domain
//! itself. The first element that matches is meant. A patch that finds no place fails the whole build with its number and
//! path: half-patched hardware is worse than none.

use vmkeep_types::error::Error;
use vmkeep_types::vm::{XmlOp, XmlPatch};

use super::tree::{self, Element};

/// # Errors
/// The first patch that does not apply.
pub fn apply(domain: &mut Element, patches: &[XmlPatch]) -> Result<(), Error> {
    for (n, patch) in patches.iter().enumerate() {
        one(domain, patch).map_err(|why| {
            Error::invalid(format!("libvirt_xml[{n}] ({}): {why}", patch.path)).hint("`vmkeep vm xml` shows what can be patched")
        })?;
    }
    Ok(())
}

fn one(domain: &mut Element, patch: &XmlPatch) -> Result<(), String> {
    let mut steps = steps(&patch.path);
    if let Some(attribute) = steps.last().and_then(|s| s.strip_prefix('@')) {
        steps.pop();
        return in_attributes(find(domain, &steps)?, attribute, patch);
    }
    match patch.op {
        XmlOp::Add => find(domain, &steps)?.children.push(value(patch)?),
        XmlOp::Replace if steps.is_empty() => return Err("the domain itself is not replaced".into()),
        XmlOp::Replace => *find(domain, &steps)? = value(patch)?,
        XmlOp::Remove => {
            let last = steps.pop().ok_or("the domain itself is not removed")?;
            let parent = find(domain, &steps)?;
            let at = position(parent, last).ok_or_else(|| nothing(last))?;
            parent.children.remove(at);
        }
    }
    Ok(())
}

fn in_attributes(element: &mut Element, attribute: &str, patch: &XmlPatch) -> Result<(), String> {
    match patch.op {
        XmlOp::Add | XmlOp::Replace => element.set(attribute, patch.value.as_deref().ok_or("a value is missing")?),
        XmlOp::Remove => {
            let before = element.attributes.len();
            element.attributes.retain(|(key, _)| key != attribute);
            if element.attributes.len() == before {
                return Err(nothing(&format!("@{attribute}")));
            }
        }
    }
    Ok(())
}

fn value(patch: &XmlPatch) -> Result<Element, String> {
    tree::parse(patch.value.as_deref().ok_or("a value is missing")?).map_err(|e| e.message)
}

/// At each `/` outside of brackets.
fn steps(path: &str) -> Vec<&str> {
    let mut inside = false;
    let ends = |c| {
        inside = match c {
            '[' => true,
            ']' => false,
            _ => inside,
        };
        c == '/' && !inside
    };
    path.split(ends).filter(|s| !s.is_empty() && *s != ".").collect()
}

fn nothing(step: &str) -> String {
    format!("nothing matches '{step}'")
}

/// The first child that matches `disk[@alias=ua-disk-root]`.
fn position(parent: &Element, step: &str) -> Option<usize> {
    let (name, condition) = match step.split_once('[') {
        Some((name, rest)) => (name, Some(rest.strip_suffix(']')?)),
        None => (step, None),
    };
    let mut named = parent.children.iter().enumerate().filter(|(_, c)| c.name == name);
    match condition {
        None => named.next().map(|(at, _)| at),
        Some(condition) => match condition.strip_prefix('@') {
            Some(test) => named.find(|(_, c)| meets(c, test)).map(|(at, _)| at),
            None => named.nth(condition.parse::<usize>().ok()?.checked_sub(1)?).map(|(at, _)| at),
        },
    }
}

fn meets(element: &Element, test: &str) -> bool {
    let Some((key, wanted)) = test.split_once('=') else { return false };
    let found = if key == "alias" { element.alias() } else { element.get(key) };
    found == Some(wanted.trim_matches(['\'', '"']))
}

fn find<'a>(domain: &'a mut Element, steps: &[&str]) -> Result<&'a mut Element, String> {
    steps.iter().try_fold(domain, |element, step| {
        let at = position(element, step).ok_or_else(|| nothing(step))?;
        Ok(&mut element.children[at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(op: XmlOp, path: &str, value: Option<&str>, expected: Expect) {
        let devices = "<disk k='1'><alias name='ua-a'/><driver cache='none'/></disk><disk k='a/b'/>";
        let mut domain = tree::parse(&format!("<domain><devices>{devices}</devices></domain>")).expect("XML");
        let patch = XmlPatch { op, path: path.into(), value: value.map(str::to_owned) };
        let flat = |d: Element| d.write().lines().map(str::trim).collect::<String>();
        expected.assert_eq(&apply(&mut domain, &[patch]).map_or_else(|e| e.message, |()| flat(domain)));
    }

    #[test]
    fn patches_find_their_place() {
        check(
            XmlOp::Replace,
            "devices/disk[@alias=ua-a]/driver/@cache",
            Some("writeback"),
            expect![
                "<domain><devices><disk k='1'><alias name='ua-a'/><driver cache='writeback'/></disk><disk k='a/b'/></devices></domain>"
            ],
        );
        check(
            XmlOp::Remove,
            "devices/disk[@k=a/b]",
            None,
            expect!["<domain><devices><disk k='1'><alias name='ua-a'/><driver cache='none'/></disk></devices></domain>"],
        );
        check(
            XmlOp::Remove,
            "devices/disk[2]",
            None,
            expect!["<domain><devices><disk k='1'><alias name='ua-a'/><driver cache='none'/></disk></devices></domain>"],
        );
        check(
            XmlOp::Remove,
            "devices/disk/driver/@cache",
            None,
            expect!["<domain><devices><disk k='1'><alias name='ua-a'/><driver/></disk><disk k='a/b'/></devices></domain>"],
        );
        check(XmlOp::Replace, "devices/disk", Some("<x/>"), expect!["<domain><devices><x/><disk k='a/b'/></devices></domain>"]);
        check(
            XmlOp::Add,
            ".",
            Some("<cputune><shares>9</shares></cputune>"),
            expect![
                "<domain><devices><disk k='1'><alias name='ua-a'/><driver cache='none'/></disk><disk k='a/b'/></devices><cputune><shares>9</shares></cputune></domain>"
            ],
        );
        check(
            XmlOp::Add,
            "@xmlns:qemu",
            Some("http://libvirt.org/schemas/domain/qemu/1.0"),
            expect![
                "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><devices><disk k='1'><alias name='ua-a'/><driver cache='none'/></disk><disk k='a/b'/></devices></domain>"
            ],
        );
    }

    #[test]
    fn or_say_what_is_missing() {
        check(XmlOp::Add, "devices/sound", Some("<x/>"), expect!["libvirt_xml[0] (devices/sound): nothing matches 'sound'"]);
        check(XmlOp::Add, "devices", None, expect!["libvirt_xml[0] (devices): a value is missing"]);
        check(
            XmlOp::Add,
            "devices",
            Some("<x>"),
            expect!["libvirt_xml[0] (devices): the domain XML does not make sense: it ends in the middle"],
        );
        check(XmlOp::Replace, ".", Some("<x/>"), expect!["libvirt_xml[0] (.): the domain itself is not replaced"]);
        check(XmlOp::Remove, ".", None, expect!["libvirt_xml[0] (.): the domain itself is not removed"]);
        check(XmlOp::Remove, "devices/disk/@nope", None, expect!["libvirt_xml[0] (devices/disk/@nope): nothing matches '@nope'"]);
        check(XmlOp::Remove, "devices/disk[3]", None, expect!["libvirt_xml[0] (devices/disk[3]): nothing matches 'disk[3]'"]);
        check(XmlOp::Remove, "devices/disk[0]", None, expect!["libvirt_xml[0] (devices/disk[0]): nothing matches 'disk[0]'"]);
        check(XmlOp::Remove, "devices/disk[@k", None, expect!["libvirt_xml[0] (devices/disk[@k): nothing matches 'disk[@k'"]);
    }
}
