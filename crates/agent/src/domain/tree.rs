//! A small element tree: what libvirt writes, read into something that can be searched, changed and written again.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use vmkeep_types::error::Error;

use super::odd;

/// A domain with hundreds of disks stays below this.
const XML_BYTES_MAX: usize = 4 << 20;
/// libvirt's own nesting is below 12.
const DEPTH_MAX: usize = 64;
/// Elements of one document: an element takes more memory than its four bytes `<a/>`.
const ELEMENTS_MAX: usize = 50_000;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    pub children: Vec<Element>,
    pub text: String,
}

/// A new element.
pub fn el(name: &str) -> Element {
    Element { name: name.into(), ..Element::default() }
}

impl Element {
    #[must_use]
    pub fn attr(mut self, key: &str, value: impl ToString) -> Self {
        self.set(key, value);
        self
    }

    #[must_use]
    pub fn attr_if(self, key: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.attr(key, value),
            None => self,
        }
    }

    #[must_use]
    pub fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    #[must_use]
    pub fn text(mut self, text: impl ToString) -> Self {
        self.text = text.to_string();
        self
    }

    pub fn set(&mut self, key: &str, value: impl ToString) {
        match self.attributes.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value.to_string(),
            None => self.attributes.push((key.into(), value.to_string())),
        }
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first child of that name.
    pub fn find(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }

    /// The first child of that name, made when there is none.
    pub fn child_mut(&mut self, name: &str) -> &mut Element {
        let at = self.children.iter().position(|c| c.name == name).unwrap_or_else(|| {
            self.children.push(el(name));
            self.children.len() - 1
        });
        &mut self.children[at]
    }

    /// What stands in `<devices>`.
    pub fn devices(&self) -> impl Iterator<Item = &Element> {
        self.find("devices").into_iter().flat_map(|d| &d.children)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.name == name)
    }

    /// Descends by names: `os/type`.
    pub fn at(&self, path: &str) -> Option<&Element> {
        path.split('/').try_fold(self, |e, name| e.find(name))
    }

    /// Text of a descendant, trimmed.
    pub fn text_at(&self, path: &str) -> Option<&str> {
        self.at(path).map(|e| e.text.trim())
    }

    /// Attribute of a descendant.
    pub fn attr_at(&self, path: &str, key: &str) -> Option<&str> {
        self.at(path).and_then(|e| e.get(key))
    }

    /// The device's user alias, `ua-disk-root`.
    pub fn alias(&self) -> Option<&str> {
        self.attr_at("alias", "name")
    }

    pub fn write(&self) -> String {
        let mut out = String::new();
        self.write_into(&mut out, 0);
        out
    }

    fn write_into(&self, out: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        out.push_str(&indent);
        out.push('<');
        out.push_str(&self.name);
        for (key, value) in &self.attributes {
            out.push_str(&format!(" {key}='{}'", escaped(value, Place::Attribute)));
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
            return;
        }
        out.push('>');
        out.push_str(&escaped(&self.text, Place::Text));
        if !self.children.is_empty() {
            out.push('\n');
            self.children.iter().for_each(|c| c.write_into(out, depth + 1));
            out.push_str(&indent);
        }
        out.push_str(&format!("</{}>\n", self.name));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Attribute,
    Text,
}

/// Markup and what a reader would normalise becomes references; what XML cannot hold at all becomes U+FFFD.
fn escaped(value: &str, place: Place) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\'' if place == Place::Attribute => out.push_str("&apos;"),
            '"' if place == Place::Attribute => out.push_str("&quot;"),
            '\n' | '\t' if place == Place::Text => out.push(c),
            '\n' | '\t' | '\r' => out.push_str(&format!("&#{};", u32::from(c))),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Reads one document.
///
/// # Errors
/// XML that is not well-formed, too large, too deep, or brings a document type.
pub fn parse(xml: &str) -> Result<Element, Error> {
    if xml.len() > XML_BYTES_MAX {
        return Err(odd(format!("{} bytes, the limit is {XML_BYTES_MAX}", xml.len())));
    }
    let mut reader = Reader::from_str(xml);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut count = 0;
    loop {
        match reader.read_event().map_err(odd)? {
            Event::Start(e) => {
                if open.len() >= DEPTH_MAX {
                    return Err(odd(format!("deeper than {DEPTH_MAX} elements")));
                }
                count += 1;
                open.push(begin(&e)?);
            }
            Event::Empty(e) => {
                count += 1;
                close(begin(&e)?, &mut open, &mut root)?;
            }
            Event::End(_) => {
                let done = open.pop().ok_or_else(|| odd("an end without a beginning"))?;
                close(done, &mut open, &mut root)?;
            }
            Event::Text(text) => add_text(&mut open, &quick_xml::escape::unescape(&text).map_err(odd)?),
            Event::GeneralRef(name) => add_text(&mut open, &quick_xml::escape::unescape(&format!("&{};", &*name)).map_err(odd)?),
            Event::CData(text) => add_text(&mut open, &text),
            Event::Eof => break,
            Event::DocType(_) => return Err(odd("a document type is not accepted")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
        if count > ELEMENTS_MAX {
            return Err(odd(format!("more than {ELEMENTS_MAX} elements")));
        }
    }
    if !open.is_empty() {
        return Err(odd("it ends in the middle"));
    }
    root.ok_or_else(|| odd("it is empty"))
}

fn begin(start: &BytesStart<'_>) -> Result<Element, Error> {
    let mut element = el(start.name().as_ref());
    for attribute in start.attributes() {
        let attribute = attribute.map_err(odd)?;
        let value = quick_xml::escape::unescape(&attribute.value).map_err(odd)?.into_owned();
        element.attributes.push((attribute.key.as_ref().to_owned(), value));
    }
    Ok(element)
}

fn add_text(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn close(mut element: Element, open: &mut [Element], root: &mut Option<Element>) -> Result<(), Error> {
    // Between elements text is layout; in an element of its own it is data, blanks too.
    if element.text.trim().is_empty() || !element.children.is_empty() {
        element.text.clear();
    }
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None if root.is_none() => *root = Some(element),
        None => return Err(odd("more than one root")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let tree = el("a")
            .attr("k", "it's <&> \"x\"\n\t\r")
            .child(el("b").text("1 < 2 & 3\n\tnext \"line\""))
            .child(el("c").child(el("d").attr("empty", "")));
        assert_eq!(parse(&tree.write()).expect("well-formed"), tree);
    }

    #[test]
    fn characters_that_xml_cannot_hold_do_not_break_it() {
        let tree = parse(&el("a").attr("k", "\0\u{b}").text("\u{1}x").write()).expect("well-formed");
        assert_eq!((tree.get("k"), tree.text.as_str()), (Some("\u{fffd}\u{fffd}"), "\u{fffd}x"));
    }

    #[test]
    fn garbage_is_an_error() {
        let bomb = format!("<a>{}</a>", "<b/>".repeat(ELEMENTS_MAX));
        let entities = "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>";
        for bad in ["", "<a>", "</a>", "<a/><b/>", "<a k=1/>", "<a k='1' k='2'/>", entities, "<a>&nope;</a>", &"<a>".repeat(1000), &bomb] {
            assert!(parse(bad).is_err(), "{}", &bad[..bad.len().min(80)]);
        }
    }
}
