//! NICs of a domain: hardware into the wish; what they are plugged into stays by patch, because it is not vmkeep's.

use vmkeep_types::name::Name;
use vmkeep_types::vm::{AutoU32, Link, Nic, NicModel};

use super::keep::plain;
use super::{Taken, given_name};
use crate::domain::tree::Element;

/// What the wish says of a NIC, or what only libvirt itself puts there.
const HANDLED: [&str; 9] = ["mac", "source", "model", "driver", "mtu", "link", "boot", "alias", "address"];

pub fn take(domain: &Element, taken: &mut Taken) {
    for (n, nic) in domain.devices().filter(|d| d.name == "interface").enumerate() {
        if interface(nic, n, taken).is_none() {
            let mac = nic.attr_at("mac", "address").unwrap_or("?");
            taken.warn(format!("NIC {mac} is kept as it is by libvirt_xml: the manifest has no such NIC"));
            taken.keep(nic);
        }
    }
}

/// None: the manifest cannot say it.
fn interface(nic: &Element, n: usize, taken: &mut Taken) -> Option<()> {
    let name: Name = given_name(nic, "ua-nic-").or_else(|| format!("nic{n}").parse().ok())?;
    let mac = nic.attr_at("mac", "address")?;
    let alias = format!("ua-nic-{name}");
    let mut wish = Nic::named(name.clone());
    wish.model = Some(match nic.attr_at("model", "type")? {
        "virtio" => NicModel::Virtio,
        "e1000e" => NicModel::E1000e,
        "rtl8139" => NicModel::Rtl8139,
        _ => return None,
    });
    let number = |path, key| nic.attr_at(path, key).and_then(|n| n.parse().ok()).map(AutoU32::Is);
    wish.queues = number("driver", "queues").unwrap_or(AutoU32::Is(1));
    wish.mtu = number("mtu", "size").unwrap_or_default();
    if nic.attr_at("link", "state") == Some("down") {
        wish.link = Link::Down;
    }
    taken.choices.macs.insert(name, mac.to_owned());
    taken.stays(nic, &alias);
    let nic = plain(nic);
    let at = format!("devices/interface[@alias={alias}]");
    match our_network(&nic) {
        Some(network) => wish.network = network,
        None => stay_plugged(&nic, &at, &wish, taken),
    }
    for extra in nic.children.iter().filter(|c| !HANDLED.contains(&c.name.as_str())) {
        taken.add(&at, extra);
    }
    taken.spec.nics.push(wish);
    Some(())
}

/// Of a domain that vmkeep made and released.
fn our_network(nic: &Element) -> Option<Name> {
    let source = nic.find("source").filter(|s| s.attributes.len() == 1)?;
    source.get("network")?.strip_prefix("vmkeep-")?.parse().ok()
}

fn stay_plugged(nic: &Element, at: &str, wish: &Nic, taken: &mut Taken) {
    taken.set(&format!("{at}/@type"), nic.get("type").unwrap_or("network"));
    match nic.find("source") {
        Some(source) => taken.replace(&format!("{at}/source"), source),
        None => taken.remove(&format!("{at}/source")),
    }
    let where_to = nic.find("source").and_then(|s| ["network", "bridge", "dev"].iter().find_map(|k| s.get(k))).unwrap_or("where it is");
    taken.warn(format!("NIC {} stays on {where_to} by libvirt_xml; take that patch out to plug it into a network of vmkeep", wish.name));
}
