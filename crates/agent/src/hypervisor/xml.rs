//! The few things that calls need from libvirt's XML, and our metadata element with and without its prefix.

use quick_xml::events::{BytesEnd, BytesStart, Event};
use quick_xml::{Reader, Writer};

use crate::hypervisor::{HvError, METADATA_KEY, METADATA_URI};

/// libvirt hands out our metadata element without prefix and namespace; everybody else sees `<vmkeep:vm xmlns:vmkeep="…">`.
pub fn with_prefix(bare: &str) -> Result<String, HvError> {
    rename(bare, |name, depth, attributes| {
        let namespace = if depth == 0 { format!(" xmlns:{METADATA_KEY}=\"{METADATA_URI}\"") } else { String::new() };
        let prefixed = if name.contains(':') { name.to_owned() } else { format!("{METADATA_KEY}:{name}") };
        (prefixed, format!("{namespace}{attributes}"))
    })
}

pub fn without_prefix(element: &str) -> Result<String, HvError> {
    let prefix = format!("{METADATA_KEY}:");
    rename(element, |name, _, attributes| {
        let attributes = attributes.replace(&format!(" xmlns:{METADATA_KEY}=\"{METADATA_URI}\""), "");
        (name.strip_prefix(&prefix).unwrap_or(name).to_owned(), attributes)
    })
}

/// Rewrites each tag: (name, depth, attributes as ` key="value"…`) to (name, attributes).
fn rename(xml: &str, tag: impl Fn(&str, usize, &str) -> (String, String)) -> Result<String, HvError> {
    let bad = |e: &dyn std::fmt::Display| HvError::Refused(format!("metadata is not well-formed XML: {e}"));
    let mut reader = Reader::from_str(xml);
    let mut writer = Writer::new(Vec::new());
    let mut depth = 0;
    loop {
        let event = reader.read_event().map_err(|e| bad(&e))?;
        let event = match event {
            Event::Eof => break,
            Event::Start(e) => {
                let e = renamed(&e, depth, &tag);
                depth += 1;
                Event::Start(e)
            }
            Event::Empty(e) => Event::Empty(renamed(&e, depth, &tag)),
            Event::End(e) => {
                depth -= 1;
                let name = e.name().as_ref().to_owned();
                Event::End(BytesEnd::new(tag(&name, depth, "").0))
            }
            other => other.into_owned(),
        };
        writer.write_event(event).map_err(|e| bad(&e))?;
    }
    String::from_utf8(writer.into_inner()).map_err(|e| bad(&e))
}

fn renamed(e: &BytesStart<'_>, depth: usize, tag: &impl Fn(&str, usize, &str) -> (String, String)) -> BytesStart<'static> {
    let name = e.name().as_ref().to_owned();
    // In one manner of writing, whichever quotes they came in.
    let attributes: String =
        e.attributes().flatten().map(|a| format!(" {}=\"{}\"", a.key.as_ref(), a.value.replace('"', "&quot;"))).collect();
    let (name, attributes) = tag(&name, depth, &attributes);
    let length = name.len();
    BytesStart::from_content(name + &attributes, length)
}

/// The guest agent's channel is connected.
pub fn agent_connected(live: &str) -> bool {
    let target = elements(live, "target");
    target.iter().any(|t| get(t, "name") == Some("org.qemu.guest_agent.0") && get(t, "state") == Some("connected"))
}

/// Path of the VNC display's unix socket.
pub fn vnc_socket(live: &str) -> Option<String> {
    let graphics = elements(live, "graphics").into_iter().find(|g| get(g, "type") == Some("vnc"))?;
    let by_listen = || elements(live, "listen").into_iter().find_map(|l| get(&l, "socket").map(str::to_owned));
    get(&graphics, "socket").map(str::to_owned).or_else(by_listen)
}

/// A network's description with the uuid and the bridge's MAC of the one that is there, where it has none of its own: without
/// the first libvirt takes it for another network, without the second it rolls a new address at each define.
pub fn network_with_identity(xml: &str, present: &str) -> String {
    let Some(end) = xml.find("<network").and_then(|at| xml[at..].find('>').map(|end| at + end + 1)) else {
        return xml.to_owned();
    };
    let mut identity = String::new();
    if let (false, Some(uuid)) = (xml.contains("<uuid>"), between(present, "<uuid>", "</uuid>")) {
        identity += &format!("<uuid>{uuid}</uuid>");
    }
    let mac = elements(present, "mac").first().and_then(|m| get(m, "address").map(str::to_owned));
    if let (true, Some(mac)) = (elements(xml, "mac").is_empty(), mac) {
        identity += &format!("<mac address='{mac}'/>");
    }
    format!("{}{identity}{}", &xml[..end], &xml[end..])
}

/// A running network's description without what only the running one has: the number of its users.
pub fn network_settings(live: &str) -> String {
    match between(live, "<network connections='", "'>") {
        Some(n) => live.replacen(&format!("<network connections='{n}'>"), "<network>", 1),
        None => live.to_owned(),
    }
}

fn between<'a>(xml: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let start = xml.find(from)? + from.len();
    Some(&xml[start..start + xml[start..].find(to)?])
}

type Attributes = Vec<(String, String)>;

/// Attributes of every element of that name, in order; XML that is not well-formed ends the list.
fn elements(xml: &str, wanted: &str) -> Vec<Attributes> {
    let mut reader = Reader::from_str(xml);
    let mut found = Vec::new();
    while let Ok(event) = reader.read_event() {
        match event {
            Event::Eof => break,
            Event::Start(e) | Event::Empty(e) if e.name().as_ref() == wanted => {
                let attributes = e.attributes().flatten().map(|a| {
                    let value = quick_xml::escape::unescape(&a.value).map_or_else(|_| a.value.clone().into_owned(), |v| v.into_owned());
                    (a.key.as_ref().to_owned(), value)
                });
                found.push(attributes.collect());
            }
            _ => {}
        }
    }
    found
}

fn get<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a str> {
    attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn the_prefix_comes_and_goes() {
        fn check(element: &str, bare: Expect) {
            let without = without_prefix(element).expect("well-formed");
            bare.assert_eq(&without);
            assert_eq!(with_prefix(&without).expect("well-formed"), element);
        }
        check(
            r#"<vmkeep:vm xmlns:vmkeep="https://vmkeep.dev/xmlns/1" id="a&amp;b" generation="3"/>"#,
            expect![[r#"<vm id="a&amp;b" generation="3"/>"#]],
        );
        check(
            r#"<vmkeep:vm xmlns:vmkeep="https://vmkeep.dev/xmlns/1"><vmkeep:note x="1">a &lt; b</vmkeep:note></vmkeep:vm>"#,
            expect![[r#"<vm><note x="1">a &lt; b</note></vm>"#]],
        );
    }

    #[test]
    fn the_display_socket_is_found_in_both_places() {
        fn check(graphics: &str, path: Option<&str>) {
            assert_eq!(vnc_socket(&format!("<domain><devices>{graphics}</devices></domain>")).as_deref(), path);
        }
        check("<graphics type='vnc' socket='/run/a'><listen type='socket' socket='/run/a'/></graphics>", Some("/run/a"));
        check("<graphics type='vnc'><listen type='socket' socket='/run/b'/></graphics>", Some("/run/b"));
        check("<graphics type='vnc' port='5900' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>", None);
        check("<graphics type='spice' socket='/run/c'/>", None);
    }

    #[test]
    fn a_network_keeps_uuid_and_mac() {
        let present = "<network><name>n</name><uuid>u-1</uuid><mac address='52:54:00:00:00:01'/></network>";
        assert_eq!(
            network_with_identity("<network>\n<name>n</name></network>", present),
            "<network><uuid>u-1</uuid><mac address='52:54:00:00:00:01'/>\n<name>n</name></network>"
        );
        let own = "<network><uuid>u-2</uuid><mac address='m'/></network>";
        assert_eq!(network_with_identity(own, present), own);
    }
}
