//! A small element tree: what libvirt writes, read into something that can be searched, changed and written again.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use vmkeep_types::error::Error;

use super::odd;

/// A domain with hundreds of disks stays below this.
const XML_BYTES_MAX: usize = 4 << 20;
/// libvirt's own nesting is below 12.
const DEPTH_MAX: usize = 64;

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
            out.push_str(&format!(" {key}='{}'", quick_xml::escape::escape(value.as_str())));
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
            return;
        }
        out.push('>');
        out.push_str(&quick_xml::escape::escape(self.text.as_str()));
        if !self.children.is_empty() {
            out.push('\n');
            self.children.iter().for_each(|c| c.write_into(out, depth + 1));
            out.push_str(&indent);
        }
        out.push_str(&format!("</{}>\n", self.name));
    }
}

/// Reads one document.
pub fn parse(xml: &str) -> Result<Element, Error> {
    if xml.len() > XML_BYTES_MAX {
        return Err(odd(format!("{} bytes, the limit is {XML_BYTES_MAX}", xml.len())));
    }
    let mut reader = Reader::from_str(xml);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    loop {
        match reader.read_event().map_err(odd)? {
            Event::Start(e) => {
                if open.len() >= DEPTH_MAX {
                    return Err(odd(format!("deeper than {DEPTH_MAX} elements")));
                }
                open.push(begin(&e)?);
            }
            Event::Empty(e) => close(begin(&e)?, &mut open, &mut root)?,
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
    if element.text.trim().is_empty() {
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
        let tree = el("a").attr("k", "it's <&> \"x\"").child(el("b").text("1 < 2 & 3")).child(el("c"));
        assert_eq!(parse(&tree.write()).expect("well-formed"), tree);
    }

    #[test]
    fn garbage_is_an_error() {
        for bad in ["", "<a>", "</a>", "<a/><b/>", "<a k=1/>", "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>", "<a>&nope;</a>", &"<a>".repeat(1000)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
