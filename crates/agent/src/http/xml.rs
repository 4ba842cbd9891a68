//! The few facts that the routes need out of a domain's XML.

use std::collections::BTreeMap;
use std::path::PathBuf;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use vmkeep_types::name::Name;

/// How our NICs are called: `ua-nic-lan`.
const NIC_ALIAS: &str = "ua-nic-";

#[derive(Debug, Default, PartialEq, Eq)]
pub struct DomainFacts {
    /// MAC (lower case) to NIC name.
    pub nics: BTreeMap<String, Name>,
    /// Where the serial console is logged.
    pub serial_log: Option<PathBuf>,
}

/// Reads as far as the XML is well-formed.
pub fn facts(xml: &str) -> DomainFacts {
    let mut facts = DomainFacts::default();
    let mut reader = Reader::from_str(xml);
    let mut path: Vec<String> = Vec::new();
    let (mut mac, mut alias) = (None, None);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e)) => {
                path.push(name(&e));
                if path.last().is_some_and(|n| n == "interface") {
                    (mac, alias) = (None, None);
                }
            }
            Ok(Event::Empty(e)) => match (path.last().map(String::as_str), name(&e).as_str()) {
                (Some("interface"), "mac") => mac = attribute(&e, "address"),
                (Some("interface"), "alias") => alias = attribute(&e, "name"),
                (Some("serial" | "console"), "log") if facts.serial_log.is_none() => {
                    facts.serial_log = attribute(&e, "file").map(PathBuf::from)
                }
                _ => {}
            },
            Ok(Event::End(_)) => {
                if path.pop().is_some_and(|n| n == "interface")
                    && let (Some(mac), Some(alias)) = (mac.take(), alias.take())
                    && let Some(nic) = alias.strip_prefix(NIC_ALIAS).and_then(|n| n.parse().ok())
                {
                    facts.nics.insert(mac.to_ascii_lowercase(), nic);
                }
            }
            Ok(Event::Eof) | Err(_) => return facts,
            Ok(_) => {}
        }
    }
}

fn name(e: &BytesStart<'_>) -> String {
    e.name().as_ref().to_owned()
}

fn attribute(e: &BytesStart<'_>, key: &str) -> Option<String> {
    let found = e.attributes().flatten().find(|a| a.key.as_ref() == key)?;
    quick_xml::escape::unescape(found.value.as_ref()).ok().map(|value| value.into_owned())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn nics_and_the_log() {
        let xml = "<domain><devices><interface type='network'><mac address='52:54:00:AA:bb:01'/><source network='n'/><alias name='ua-nic-lan'/></interface>
            <interface type='bridge'><mac address='52:54:00:00:00:02'/><alias name='net1'/></interface>
            <serial type='pty'><log file='/var/log/a&amp;b.log' append='on'/><target port='0'/></serial></devices></domain>";
        expect![[r#"
            DomainFacts {
                nics: {
                    "52:54:00:aa:bb:01": Name(
                        "lan",
                    ),
                },
                serial_log: Some(
                    "/var/log/a&b.log",
                ),
            }
        "#]]
        .assert_debug_eq(&facts(xml));
        assert_eq!(facts("<domain><"), DomainFacts::default());
    }
}
