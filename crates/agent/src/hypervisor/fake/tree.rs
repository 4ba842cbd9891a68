//! XML as a tree, as much as the fake needs to complete and change a description like libvirt does.

use quick_xml::Reader;
use quick_xml::escape::{escape, unescape};
use quick_xml::events::{BytesStart, Event};

use crate::hypervisor::HvError;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub attributes: Vec<(String, String)>,
    pub children: Vec<Node>,
    /// Text between the tags of an element without children.
    pub text: String,
}

impl Node {
    pub fn new(name: &str, attributes: &[(&str, &str)]) -> Self {
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Self { name: name.to_owned(), attributes, ..Self::default() }
    }

    pub fn leaf(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), text: text.to_owned(), ..Self::default() }
    }

    pub fn parse(xml: &str) -> Result<Self, HvError> {
        let bad = |e: &dyn std::fmt::Display| HvError::Refused(format!("XML error: {e}"));
        let mut reader = Reader::from_str(xml);
        // Elements that are open, outermost first; the first is a stand-in that ends up holding the root.
        let mut open = vec![Self::default()];
        loop {
            match reader.read_event().map_err(|e| bad(&e))? {
                Event::Eof => break,
                Event::Start(e) => open.push(started(&e)?),
                Event::Empty(e) => top(&mut open)?.children.push(started(&e)?),
                Event::End(_) => {
                    let mut done = open.pop().ok_or_else(|| bad(&"an end tag too many"))?;
                    done.text = if done.children.is_empty() { done.text.trim().to_owned() } else { String::new() };
                    top(&mut open)?.children.push(done);
                }
                Event::Text(e) => top(&mut open)?.text.push_str(&e),
                Event::CData(e) => top(&mut open)?.text.push_str(&e),
                Event::GeneralRef(e) => {
                    let entity = format!("&{};", &*e);
                    top(&mut open)?.text.push_str(&unescape(&entity).map_err(|e| bad(&e))?);
                }
                _ => {}
            }
        }
        match open.pop().map(|mut outside| outside.children.pop()) {
            Some(Some(root)) if open.is_empty() => Ok(root),
            _ => Err(bad(&"no root element, or one that is not closed")),
        }
    }

    pub fn get(&self, attribute: &str) -> Option<&str> {
        self.attributes.iter().find(|(k, _)| k == attribute).map(|(_, v)| v.as_str())
    }

    pub fn set(&mut self, attribute: &str, value: &str) {
        match self.attributes.iter_mut().find(|(k, _)| k == attribute) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((attribute.to_owned(), value.to_owned())),
        }
    }

    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|c| c.name == name)
    }

    pub fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.children.iter_mut().find(|c| c.name == name)
    }

    /// The child of that name, made when it is not there.
    pub fn ensure(&mut self, name: &str) -> &mut Self {
        let at = self.children.iter().position(|c| c.name == name).unwrap_or_else(|| {
            self.children.push(Self::new(name, &[]));
            self.children.len() - 1
        });
        &mut self.children[at]
    }

    /// `attribute` of the child `name`.
    pub fn child_get(&self, name: &str, attribute: &str) -> Option<&str> {
        self.child(name)?.get(attribute)
    }

    pub fn render(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0);
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        out.push_str(&format!("{indent}<{}", self.name));
        for (key, value) in &self.attributes {
            out.push_str(&format!(" {key}='{}'", escape(value.as_str())));
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
        } else if self.children.is_empty() {
            out.push_str(&format!(">{}</{}>\n", escape(self.text.as_str()), self.name));
        } else {
            out.push_str(">\n");
            for child in &self.children {
                child.write(out, depth + 1);
            }
            out.push_str(&format!("{indent}</{}>\n", self.name));
        }
    }
}

fn top(open: &mut [Node]) -> Result<&mut Node, HvError> {
    open.last_mut().ok_or_else(|| HvError::Refused("XML error: an end tag too many".to_owned()))
}

fn started(e: &BytesStart<'_>) -> Result<Node, HvError> {
    let bad = |e: &dyn std::fmt::Display| HvError::Refused(format!("XML error: {e}"));
    let mut node = Node::new(e.name().as_ref(), &[]);
    for attribute in e.attributes() {
        let attribute = attribute.map_err(|e| bad(&e))?;
        let value = unescape(&attribute.value).map_err(|e| bad(&e))?.into_owned();
        node.attributes.push((attribute.key.as_ref().to_owned(), value));
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written() {
        let node = Node::parse("<a x='1&amp;2'><!-- c --><b>t &lt; u</b><c y=\"'\"/></a>").expect("well-formed");
        assert_eq!(node.child("b").expect("it has one").text, "t < u");
        assert_eq!(Node::parse(&node.render()).expect("well-formed"), node);
        for bad in ["", "<a>", "<a></b>", "text"] {
            assert!(Node::parse(bad).is_err(), "{bad}");
        }
    }
}
