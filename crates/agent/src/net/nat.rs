//! The libvirt network of a NAT network.

use std::net::Ipv4Addr;

use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkSpec;

use super::subnet;
use crate::domain::tree::{self, Element, el};

/// Interface names hold 15 characters.
const IFNAME_BYTES_MAX: usize = 15;

/// The XML; addresses and bridge that are there already stay.
pub fn xml(project: &Name, spec: &NetworkSpec, name: &str, present: Option<&str>) -> Result<String, Error> {
    let present = present.map(tree::parse).transpose()?;
    let bridge = spec
        .bridge
        .clone()
        .or_else(|| present.as_ref()?.attr_at("bridge", "name").map(str::to_owned))
        .unwrap_or_else(|| bridge_name(project, &spec.name));
    let (gateway, prefix) = gateway(spec, present.as_ref())?;
    // libvirt's own default, written out: it shows in the running network only, and would look like a change.
    let ports = el("nat").child(el("port").attr("start", "1024").attr("end", "65535"));
    let mut network = el("network")
        .child(el("name").text(name))
        .child(el("forward").attr("mode", "nat").child(ports))
        .child(el("bridge").attr("name", &bridge).attr("stp", "on").attr("delay", "0"));
    if let Some(mtu) = spec.mtu {
        network = network.child(el("mtu").attr("size", mtu));
    }
    // localOnly: names of the VMs are never asked for outside.
    network = network.child(el("domain").attr("name", &spec.domain).attr("localOnly", "yes")).child(ipv4(gateway, prefix));
    if let Some(v6) = &spec.ipv6 {
        let (address, prefix) = v6.split_once('/').ok_or_else(|| Error::invalid(format!("ipv6 '{v6}' has no prefix length")))?;
        network = network.child(el("ip").attr("family", "ipv6").attr("address", address).attr("prefix", prefix));
    }
    Ok(network.write())
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
    // FNV-1a: the same each time.
    let number = format!("{project}/{network}").bytes().fold(0x811c_9dc5, |hash: u32, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("vmk-{number:08x}")
}

fn gateway(spec: &NetworkSpec, present: Option<&Element>) -> Result<(Ipv4Addr, u8), Error> {
    if let Some(cidr) = &spec.ipv4 {
        let parsed = cidr.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        return parsed.ok_or_else(|| Error::invalid(format!("ipv4 '{cidr}' is not like 10.77.3.1/24")));
    }
    let v4 = present.into_iter().flat_map(|p| p.all("ip")).find(|ip| ip.get("family").is_none_or(|f| f == "ipv4"));
    if let Some(address) = v4.and_then(|ip| ip.get("address")).and_then(|a| a.parse().ok()) {
        return Ok((address, 24));
    }
    let table = std::fs::read_to_string("/proc/net/route").map_err(|e| Error::refused(format!("cannot read the host's routes: {e}")))?;
    let start = spec.name.as_str().bytes().fold(0u8, |sum, b| sum.wrapping_mul(31).wrapping_add(b));
    subnet::free(&subnet::routes(&table), start).map(|address| (address, 24))
}

fn ipv4(gateway: Ipv4Addr, prefix: u8) -> Element {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let network = u32::from(gateway) & mask;
    let range = el("range").attr("start", Ipv4Addr::from(network + 2)).attr("end", Ipv4Addr::from((network | !mask) - 1));
    el("ip").attr("address", gateway).attr("netmask", Ipv4Addr::from(mask)).child(el("dhcp").child(range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn spec(json: serde_json::Value) -> NetworkSpec {
        serde_json::from_value(json).expect("a network")
    }

    #[test]
    fn a_network_in_libvirts_words() {
        let spec = spec(serde_json::json!({"name": "default", "ipv4": "10.77.3.1/24", "ipv6": "fd00:77::1/64", "mtu": 9000}));
        expect![[r#"
            <network>
              <name>vmkeep-default</name>
              <forward mode='nat'>
                <nat>
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
        .assert_eq(&xml(&Name::known("default"), &spec, "vmkeep-default", None).expect("a network"));
    }

    #[test]
    fn what_is_there_stays() {
        let there = "<network><bridge name='vmk7'/><ip address='192.168.50.1' netmask='255.255.255.0'/></network>";
        let made = spec(serde_json::json!({"name": "default"}));
        let made = xml(&Name::known("default"), &made, "vmkeep-default", Some(there)).expect("a network");
        assert!(made.contains("vmk7") && made.contains("192.168.50.1"), "{made}");
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
