//! The libvirt network of a NAT network.

use std::net::{Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};
use uuid::Uuid;
use vmkeep_api::body::NetworkFound;
use vmkeep_types::error::Error;
use vmkeep_types::hash::fnv32;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkSpec;

use super::host::{Forward6, NatHost};
use super::{reserve, subnet};
use crate::domain::tree::{self, Element, el};

/// Interface names hold 15 characters.
const IFNAME_BYTES_MAX: usize = 15;

/// A network as libvirt is to have it.
#[derive(Debug)]
pub struct Nat {
    pub xml: String,
    pub bridge: String,
    pub gateway: Ipv4Addr,
}

/// Addresses, bridge and identity that are there already stay.
pub fn describe(project: &Name, spec: &NetworkSpec, name: &str, present: Option<&str>, host: &NatHost) -> Result<Nat, Error> {
    let present = present.map(tree::parse).transpose()?;
    let bridge = spec
        .bridge
        .clone()
        .or_else(|| present.as_ref()?.attr_at("bridge", "name").map(str::to_owned))
        .unwrap_or_else(|| bridge_name(project, &spec.name));
    let (gateway, prefix) = gateway(spec, present.as_ref(), host)?;
    let there = present.as_ref().and_then(|p| p.text_at("uuid")?.trim().parse().ok());
    let identity: Uuid = there.unwrap_or(host.fresh);
    let v6 = if host.forward6 == Forward6::Safe { Some(gateway_v6(spec, identity)?) } else { None };
    // libvirt's own default, written out: it shows in the running network only, and would look like a change.
    let ports = el("nat").attr_if("ipv6", v6.as_ref().map(|_| "yes")).child(el("port").attr("start", "1024").attr("end", "65535"));
    let mut network = el("network")
        .child(el("name").text(name))
        .child(el("uuid").text(identity))
        .child(el("forward").attr("mode", "nat").child(ports))
        .child(el("bridge").attr("name", &bridge).attr("stp", "on").attr("delay", "0"));
    if let Some(mtu) = spec.mtu {
        network = network.child(el("mtu").attr("size", mtu));
    }
    // localOnly: names of the VMs are never asked for outside.
    network = network
        .child(el("domain").attr("name", &spec.domain).attr("localOnly", "yes"))
        .children(reserve::names_kept(present.as_ref(), gateway, prefix))
        .child(ipv4(gateway, prefix, reserve::kept(present.as_ref(), gateway, prefix)));
    if let Some((address, prefix)) = v6 {
        network = network.child(el("ip").attr("family", "ipv6").attr("address", address).attr("prefix", prefix));
    }
    Ok(Nat { xml: network.write(), bridge, gateway })
}

/// A /64 of its own out of fd00::/8 (RFC 4193), from the network's identity: it comes back as it was after it had to wait.
fn gateway_v6(spec: &NetworkSpec, identity: Uuid) -> Result<(Ipv6Addr, u8), Error> {
    if let Some(cidr) = &spec.ipv6 {
        let parsed = cidr.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        return parsed.ok_or_else(|| Error::invalid(format!("ipv6 '{cidr}' is not like fd00:77::1/64")));
    }
    let random = Sha256::digest(identity.as_bytes());
    let mut address = [0; 16];
    address[0] = 0xfd;
    address[1..6].copy_from_slice(&random[..5]);
    address[15] = 1;
    Ok((address.into(), 64))
}

/// The network's name where it fits and is of the first project; else a number made from both names.
fn bridge_name(project: &Name, network: &Name) -> String {
    let first = project.as_str() == "default";
    let plain = format!("vmk-{network}");
    if first && network.as_str() == "default" {
        return "vmk0".into();
    }
    if first && plain.len() <= IFNAME_BYTES_MAX {
        return plain;
    }
    let number = fnv32(format!("{project}/{network}").bytes());
    format!("vmk-{number:08x}")
}

fn gateway(spec: &NetworkSpec, present: Option<&Element>, host: &NatHost) -> Result<(Ipv4Addr, u8), Error> {
    if let Some(cidr) = &spec.ipv4 {
        let parsed = cidr.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        return parsed.ok_or_else(|| Error::invalid(format!("ipv4 '{cidr}' is not like 10.77.3.1/24")));
    }
    let v4 = present.into_iter().flat_map(|p| p.all("ip")).find(|ip| ip.get("family").is_none_or(|f| f == "ipv4"));
    if let Some(address) = v4.and_then(|ip| ip.get("address")).and_then(|a| a.parse().ok()) {
        return Ok((address, 24));
    }
    let start = spec.name.as_str().bytes().fold(0u8, |sum, b| sum.wrapping_mul(31).wrapping_add(b));
    subnet::free(&host.routes, start).map(|address| (address, 24))
}

/// A network's bridge and addresses, from libvirt's description of it.
///
/// # Errors
/// It is no XML.
pub fn found(xml: &str) -> Result<NetworkFound, Error> {
    let network = tree::parse(xml)?;
    let prefix = |ip: &Element| -> Option<u32> {
        let netmask = || Some(u32::from(ip.get("netmask")?.parse::<Ipv4Addr>().ok()?).count_ones());
        ip.get("prefix").and_then(|prefix| prefix.parse().ok()).or_else(netmask)
    };
    let addresses = network.all("ip").filter_map(|ip| Some(format!("{}/{}", ip.get("address")?, prefix(ip)?))).collect();
    Ok(NetworkFound { bridge: network.attr_at("bridge", "name").unwrap_or_default().to_owned(), addresses })
}

fn ipv4(gateway: Ipv4Addr, prefix: u8, hosts: Vec<Element>) -> Element {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let network = u32::from(gateway) & mask;
    let range = el("range").attr("start", Ipv4Addr::from(network + 2)).attr("end", Ipv4Addr::from((network | !mask) - 1));
    el("ip").attr("address", gateway).attr("netmask", Ipv4Addr::from(mask)).child(el("dhcp").child(range).children(hosts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn spec(json: serde_json::Value) -> NetworkSpec {
        serde_json::from_value(json).expect("a network")
    }

    fn host(forward6: Forward6) -> NatHost {
        NatHost { routes: Vec::new(), forward6, fresh: Uuid::from_u128(7) }
    }

    #[test]
    fn what_was_chosen_is_found_again() {
        let spec = spec(serde_json::json!({"name": "default", "ipv4": "10.77.3.1/24", "ipv6": "fd00:77::1/64"}));
        let nat = describe(&Name::known("default"), &spec, "vmkeep-default", None, &host(Forward6::Safe)).expect("a network");
        let found = found(&nat.xml).expect("XML");
        assert_eq!((found.bridge.as_str(), found.addresses), ("vmk0", vec!["10.77.3.1/24".to_owned(), "fd00:77::1/64".to_owned()]));
    }

    #[test]
    fn a_network_in_libvirts_words() {
        let spec = spec(serde_json::json!({"name": "default", "ipv4": "10.77.3.1/24", "ipv6": "fd00:77::1/64", "mtu": 9000}));
        expect![[r#"
            <network>
              <name>vmkeep-default</name>
              <uuid>00000000-0000-0000-0000-000000000007</uuid>
              <forward mode='nat'>
                <nat ipv6='yes'>
                  <port start='1024' end='65535'/>
                </nat>
              </forward>
              <bridge name='vmk0' stp='on' delay='0'/>
              <mtu size='9000'/>
              <domain name='vmk' localOnly='yes'/>
              <ip address='10.77.3.1' netmask='255.255.255.0'>
                <dhcp>
                  <range start='10.77.3.2' end='10.77.3.254'/>
                </dhcp>
              </ip>
              <ip family='ipv6' address='fd00:77::1' prefix='64'/>
            </network>
        "#]]
        .assert_eq(&describe(&Name::known("default"), &spec, "vmkeep-default", None, &host(Forward6::Safe)).expect("a network").xml);
    }

    #[test]
    fn what_is_there_stays() {
        let there = "<network><bridge name='vmk7'/><ip address='192.168.50.1' netmask='255.255.255.0'/></network>";
        let spec = spec(serde_json::json!({"name": "default"}));
        let made = describe(&Name::known("default"), &spec, "vmkeep-default", Some(there), &host(Forward6::Safe)).expect("a network").xml;
        assert!(made.contains("vmk7") && made.contains("192.168.50.1"), "{made}");
    }

    #[test]
    fn ipv6_waits_until_it_is_safe_and_is_the_same_then() {
        let spec = spec(serde_json::json!({"name": "default"}));
        let made = |there: Option<&str>, forward6| {
            describe(&Name::known("default"), &spec, "vmkeep-default", there, &host(forward6)).expect("a network").xml
        };
        let v6 = |xml: &str| xml.split("family='ipv6' address='").nth(1).map(|rest| rest.split('\'').next().expect("a part").to_owned());
        let first = made(None, Forward6::Safe);
        let address: Ipv6Addr = v6(&first).expect("an address").parse().expect("IPv6");
        assert!(address.segments()[0] >> 8 == 0xfd && address.segments()[3..] == [0, 0, 0, 0, 1], "{address}");
        let waiting = made(Some(&first), Forward6::Waits);
        assert!(!waiting.contains("ipv6"), "{waiting}");
        let other = NatHost { fresh: Uuid::from_u128(8), ..host(Forward6::Safe) };
        let again = describe(&Name::known("default"), &spec, "vmkeep-default", Some(&waiting), &other).expect("a network").xml;
        assert_eq!(again, first);
    }

    #[test]
    fn networks_of_two_projects_or_of_long_names_share_no_bridge() {
        let name = |project, network| bridge_name(&Name::known(project), &Name::known(network));
        assert_eq!((name("default", "default").as_str(), name("default", "blue").as_str()), ("vmk0", "vmk-blue"));
        assert_ne!(name("default", "production-one"), name("default", "production-two"));
        assert_ne!(name("a", "blue"), name("b", "blue"));
        assert_ne!(name("a", "default"), "vmk0");
        assert!(name("a", "production-one").len() <= IFNAME_BYTES_MAX);
    }
}
