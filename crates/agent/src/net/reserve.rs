//! The address and the name that a NAT network's DHCP keeps for a NIC: `<host mac name ip/>` of the libvirt network.
//!
//! libvirt stores them, nobody else: an address that was given once stays with its MAC. dnsmasq answers `NAME.DOMAIN` with it as
//! soon as the guest has asked for it, whatever the guest calls itself. A NIC with a fixed address never asks: DNS is told its name, too
//! (`<dns><host ip>`), for which libvirt sends dnsmasq a signal and loads no firewall.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use vmkeep_types::error::Error;
use vmkeep_types::hash::fnv32;
use vmkeep_types::vm::Nic;

use crate::domain::tree::{self, Element, el};
use crate::hypervisor::{HostChange, Lease};

/// What a network is to know of one NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub mac: String,
    /// None for a VM's second NIC on one network: a name has one address.
    pub name: Option<String>,
    /// The wish's own addresses.
    pub fixed: Vec<Ipv4Addr>,
    /// It asks for one.
    pub dhcp: bool,
}

/// What is done so that it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    pub address: Ipv4Addr,
    /// In this order.
    pub changes: Vec<HostChange>,
}

impl Wanted {
    /// None: neither asks for an address nor has one of its own.
    pub fn of(nic: &Nic, mac: &str, name: Option<&str>) -> Option<Self> {
        let fixed: Vec<Ipv4Addr> = nic.addresses.iter().filter_map(|cidr| cidr.split('/').next()?.parse().ok()).collect();
        let dhcp = nic.addresses.iter().any(|address| address == "dhcp");
        (dhcp || !fixed.is_empty()).then(|| Self { mac: mac.into(), name: name.map(str::to_owned), fixed, dhcp })
    }
}

/// The NIC's address in the network that libvirt describes so, and what is missing for it. Its old address stays; else it is the
/// one it has leased; else the next free one behind a place that its MAC tells. None: every address is taken, or
/// it has one of its own that is not of this network.
///
/// # Errors
/// The description is none.
pub fn reserve(network: &str, wanted: &Wanted, leases: &[Lease]) -> Result<Option<Reserved>, Error> {
    let network = tree::parse(network)?;
    let Some((gateway, mask)) = subnet(&network) else { return Ok(None) };
    let inside = |ip: Ipv4Addr| {
        let (ip, first) = (u32::from(ip), u32::from(gateway) & mask);
        ip & mask == first && ip != first && ip != first | !mask && ip != u32::from(gateway)
    };
    let hosts: Vec<&Element> = hosts(&network).collect();
    let is_mine = |host: &&Element| host.get("mac").is_some_and(|mac| mac.eq_ignore_ascii_case(&wanted.mac));
    let mut taken: BTreeSet<Ipv4Addr> = hosts.iter().filter(|host| !is_mine(host)).filter_map(|host| ip_of(host)).collect();
    let fixed = wanted.fixed.iter().copied().find(|ip| inside(*ip) && !taken.contains(ip));
    if fixed.is_none() && !wanted.dhcp {
        return Ok(None);
    }
    let leased = |lease: &&Lease| lease.mac.eq_ignore_ascii_case(&wanted.mac);
    taken.extend(leases.iter().filter(|lease| !leased(lease)).map(|lease| lease.address));
    let mine = hosts.iter().find(|host| is_mine(host));
    let kept = || mine.and_then(|host| ip_of(host)).filter(|ip| inside(*ip));
    let lease = || leases.iter().find(leased).map(|lease| lease.address).filter(|ip| inside(*ip) && !taken.contains(ip));
    let Some(address) = fixed.or_else(kept).or_else(lease).or_else(|| free(&wanted.mac, gateway, mask, &taken)) else { return Ok(None) };
    let entry = el("host").attr("mac", &wanted.mac).attr_if("name", wanted.name.as_ref()).attr("ip", address);
    let (mut changes, named) = name_changes(&network, wanted, address, mine.and_then(|host| ip_of(host)));
    if mine.is_some_and(|host| same(host, &entry)) {
        changes.extend(named);
        return Ok(Some(Reserved { address, changes }));
    }
    // libvirt takes no second one with the same MAC, name or address: one that a VM left behind gives way.
    let stands = |host: &&&Element| {
        let name = wanted.name.is_some() && host.get("name") == wanted.name.as_deref();
        is_mine(host) || name || ip_of(host) == Some(address)
    };
    changes.extend(hosts.iter().filter(stands).map(|host| HostChange::Remove(host.write())));
    changes.push(HostChange::Add(entry.write()));
    changes.extend(named);
    Ok(Some(Reserved { address, changes }))
}

/// What goes from DNS before the address is kept, and what comes after it: the name of a NIC that never asks for its address. Entries of
/// the same name or address that say otherwise give way, also those of before the NIC came to ask.
fn name_changes(network: &Element, wanted: &Wanted, address: Ipv4Addr, before: Option<Ipv4Addr>) -> (Vec<HostChange>, Option<HostChange>) {
    let entry = wanted.name.as_ref().filter(|_| !wanted.dhcp).map(|name| name_entry(address, name));
    let same = |host: &&Element| entry.as_ref().is_some_and(|entry| ip_of(host) == ip_of(entry) && names_of(host).eq(names_of(entry)));
    let about_it = |host: &&Element| {
        let at = ip_of(host);
        let named = wanted.name.as_deref().is_some_and(|name| names_of(host).any(|other| other == name));
        named || at == Some(address) || (before.is_some() && at == before)
    };
    let gone = names(network).filter(|host| about_it(host) && !same(host)).map(|host| HostChange::RemoveName(host.write())).collect();
    let there = names(network).any(|host| same(&host));
    (gone, entry.filter(|_| !there).map(|entry| HostChange::AddName(entry.write())))
}

fn name_entry(address: Ipv4Addr, name: &str) -> Element {
    el("host").attr("ip", address).child(el("hostname").text(name))
}

/// The entries of DNS.
fn names(network: &Element) -> impl Iterator<Item = &Element> {
    network.all("dns").flat_map(|dns| dns.all("host"))
}

fn names_of(host: &Element) -> impl Iterator<Item = String> {
    host.all("hostname").map(|name| name.text.trim().to_owned())
}

/// The entries of NICs that are no more.
///
/// # Errors
/// The description is none.
pub fn release(network: &str, macs: &BTreeSet<String>) -> Result<Vec<HostChange>, Error> {
    let network = tree::parse(network)?;
    let gone = |host: &&Element| host.get("mac").is_some_and(|mac| macs.contains(&mac.to_ascii_lowercase()));
    let addresses: BTreeSet<Ipv4Addr> = hosts(&network).filter(gone).filter_map(ip_of).collect();
    let names = names(&network).filter(|host| ip_of(host).is_some_and(|ip| addresses.contains(&ip)));
    let names = names.map(|host| HostChange::RemoveName(host.write()));
    Ok(names.chain(hosts(&network).filter(gone).map(|host| HostChange::Remove(host.write()))).collect())
}

/// Entries that a network keeps when it is described anew with this range of addresses.
pub(super) fn kept(present: Option<&Element>, gateway: Ipv4Addr, prefix: u8) -> Vec<Element> {
    present.into_iter().flat_map(hosts).filter(|host| is_inside(host, gateway, prefix)).cloned().collect()
}

/// The same of DNS, in the element that they lie in.
pub(super) fn names_kept(present: Option<&Element>, gateway: Ipv4Addr, prefix: u8) -> Option<Element> {
    let kept: Vec<Element> = present.into_iter().flat_map(names).filter(|host| is_inside(host, gateway, prefix)).cloned().collect();
    (!kept.is_empty()).then(|| el("dns").children(kept))
}

fn is_inside(host: &Element, gateway: Ipv4Addr, prefix: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    ip_of(host).is_some_and(|ip| ip != gateway && u32::from(ip) & mask == u32::from(gateway) & mask)
}

/// A network's description without its entries: two that differ only in them are the same network.
pub(super) fn without(xml: &str) -> String {
    let begins = ["<host mac=", "<dns>", "<host ip=", "<hostname>", "</host>", "</dns>"];
    xml.lines().filter(|line| !begins.iter().any(|begin| line.trim_start().starts_with(begin))).collect::<Vec<_>>().join("\n")
}

fn hosts(network: &Element) -> impl Iterator<Item = &Element> {
    network.all("ip").filter_map(|ip| ip.find("dhcp")).flat_map(|dhcp| dhcp.all("host"))
}

fn ip_of(host: &Element) -> Option<Ipv4Addr> {
    host.get("ip")?.parse().ok()
}

fn same(one: &Element, other: &Element) -> bool {
    ["name", "ip"].into_iter().all(|key| one.get(key) == other.get(key))
}

/// The gateway of the IPv4 network that has DHCP, and its mask.
fn subnet(network: &Element) -> Option<(Ipv4Addr, u32)> {
    let ip = network.all("ip").find(|ip| ip.find("dhcp").is_some())?;
    let gateway: Ipv4Addr = ip.get("address")?.parse().ok()?;
    let by_prefix = || u32::MAX.checked_shl(32u32.checked_sub(ip.get("prefix")?.parse().ok()?)?);
    let mask = ip.get("netmask").and_then(|mask| mask.parse::<Ipv4Addr>().ok()).map(u32::from).or_else(by_prefix)?;
    Some((gateway, mask))
}

fn free(mac: &str, gateway: Ipv4Addr, mask: u32, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let first = u32::from(gateway) & mask;
    // Neither the network's own address nor its broadcast.
    let room = (!mask).checked_sub(1).filter(|room| *room > 0)?;
    let place = fnv32(mac.bytes().map(|b| b.to_ascii_lowercase()));
    // A network has a few thousand VMs at the most; a search through all of a /8 would only cost time.
    (0..room.min(1 << 16)).map(|n| Ipv4Addr::from(first + 1 + (place % room + n) % room)).find(|ip| *ip != gateway && !taken.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const MAC: &str = "52:54:00:00:00:01";

    fn network(hosts: &str) -> String {
        format!(
            "<network><name>n</name><ip address='10.77.3.1' netmask='255.255.255.0'><dhcp><range start='10.77.3.2' end='10.77.3.254'/>\
             {hosts}</dhcp></ip><ip family='ipv6' address='fd00::1' prefix='64'/></network>"
        )
    }

    fn wanted(name: Option<&str>, fixed: Option<&str>) -> Wanted {
        let fixed = fixed.into_iter().map(|ip| ip.parse().expect("an address")).collect();
        Wanted { mac: MAC.into(), name: name.map(str::to_owned), fixed, dhcp: true }
    }

    fn check(hosts: &str, wanted: &Wanted, leases: &[(&str, &str)], expected: Expect) {
        let lease = |(mac, ip): &(&str, &str)| Lease { mac: (*mac).into(), address: ip.parse().expect("an address") };
        let leases: Vec<Lease> = leases.iter().map(lease).collect();
        let told = match reserve(&network(hosts), wanted, &leases).expect("XML") {
            None => "none is free".to_owned(),
            Some(reserved) => {
                let change = |change: &HostChange| match change {
                    HostChange::Add(xml) => format!("\n+ {}", xml.trim()),
                    HostChange::Remove(xml) => format!("\n- {}", xml.trim()),
                    HostChange::AddName(xml) => format!("\n+ {}", flat(xml)),
                    HostChange::RemoveName(xml) => format!("\n- {}", flat(xml)),
                };
                reserved.address.to_string() + &reserved.changes.iter().map(change).collect::<String>()
            }
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn a_new_nic_gets_an_address_and_keeps_it() {
        let wanted = wanted(Some("web"), None);
        check(
            "",
            &wanted,
            &[],
            expect![[r#"
            10.77.3.115
            + <host mac='52:54:00:00:00:01' name='web' ip='10.77.3.115'/>"#]],
        );
        check("<host mac='52:54:00:00:00:01' name='web' ip='10.77.3.77'/>", &wanted, &[], expect!["10.77.3.77"]);
    }

    #[test]
    fn a_lease_is_taken_over_and_a_leased_address_left_alone() {
        check(
            "",
            &wanted(Some("web"), None),
            &[("52:54:00:00:00:01", "10.77.3.9")],
            expect![[r#"
            10.77.3.9
            + <host mac='52:54:00:00:00:01' name='web' ip='10.77.3.9'/>"#]],
        );
        let place = reserve(&network(""), &wanted(None, None), &[]).expect("XML").expect("room").address.to_string();
        check(
            "",
            &wanted(None, None),
            &[("52:54:00:00:00:02", &place)],
            expect![[r#"
            10.77.3.116
            + <host mac='52:54:00:00:00:01' ip='10.77.3.116'/>"#]],
        );
    }

    #[test]
    fn what_a_vm_left_behind_gives_way() {
        let left = "<host mac='52:54:00:00:00:07' name='web' ip='10.77.3.77'/><host mac='52:54:00:00:00:01' name='old' ip='10.77.3.8'/>";
        check(
            left,
            &wanted(Some("web"), None),
            &[],
            expect![[r#"
            10.77.3.8
            - <host mac='52:54:00:00:00:07' name='web' ip='10.77.3.77'/>
            - <host mac='52:54:00:00:00:01' name='old' ip='10.77.3.8'/>
            + <host mac='52:54:00:00:00:01' name='web' ip='10.77.3.8'/>"#]],
        );
    }

    #[test]
    fn the_wishs_own_address_is_kept_for_it_where_the_network_has_it() {
        check(
            "",
            &wanted(Some("web"), Some("10.77.3.20")),
            &[],
            expect![[r#"
            10.77.3.20
            + <host mac='52:54:00:00:00:01' name='web' ip='10.77.3.20'/>"#]],
        );
        let elsewhere = reserve(&network(""), &wanted(None, Some("192.168.9.9")), &[]).expect("XML").expect("room");
        assert!(elsewhere.address.to_string().starts_with("10.77.3."), "{elsewhere:?}");
        let only_its_own = Wanted { dhcp: false, ..wanted(None, Some("192.168.9.9")) };
        assert_eq!(reserve(&network(""), &only_its_own, &[]), Ok(None));
    }

    fn flat(xml: &str) -> String {
        xml.lines().map(str::trim).collect()
    }

    #[test]
    fn a_nic_that_never_asks_has_its_name_in_dns() {
        let never = Wanted { dhcp: false, ..wanted(Some("web"), Some("10.77.3.20")) };
        check(
            "",
            &never,
            &[],
            expect![[r#"
                10.77.3.20
                + <host mac='52:54:00:00:00:01' name='web' ip='10.77.3.20'/>
                + <host ip='10.77.3.20'><hostname>web</hostname></host>"#]],
        );
        let entry = "<host mac='52:54:00:00:00:01' name='web' ip='10.77.3.20'/>";
        let named = |names: &str| network(entry).replacen("<ip ", &format!("<dns>{names}</dns><ip "), 1);
        let told = |names: &str, wanted: &Wanted| {
            let reserved = reserve(&named(names), wanted, &[]).expect("XML").expect("room");
            reserved.changes.iter().map(|change| format!("{change:?}").replace("\\n", "").replace("  ", "")).collect::<Vec<_>>()
        };
        let mine = "<host ip='10.77.3.20'><hostname>web</hostname></host>";
        assert!(told(mine, &never).is_empty(), "it is there");
        let other = "<host ip='10.77.3.9'><hostname>web</hostname></host><host ip='10.77.3.8'><hostname>db</hostname></host>";
        assert_eq!(
            told(other, &never),
            [
                r#"RemoveName("<host ip='10.77.3.9'><hostname>web</hostname></host>")"#,
                r#"AddName("<host ip='10.77.3.20'><hostname>web</hostname></host>")"#
            ]
        );
        let asks = Wanted { dhcp: true, ..never.clone() };
        assert_eq!(told(mine, &asks), [r#"RemoveName("<host ip='10.77.3.20'><hostname>web</hostname></host>")"#], "DHCP says it then");
        let second = Wanted { name: None, ..never };
        assert!(told("", &second).iter().all(|change| !change.contains("Name(")), "a name has one address");
        let gone = release(&named(mine), &BTreeSet::from([MAC.to_owned()])).expect("XML");
        assert_eq!(gone.len(), 2, "both go: {gone:?}");
    }

    #[test]
    fn a_network_that_is_described_anew_keeps_its_names() {
        let there = tree::parse(&network("").replacen(
            "<ip ",
            "<dns><host ip='10.77.3.9'><hostname>web</hostname></host><host ip='10.9.9.9'><hostname>db</hostname></host></dns><ip ",
            1,
        ));
        let there = there.expect("XML");
        let kept = names_kept(Some(&there), Ipv4Addr::new(10, 77, 3, 1), 24).expect("one");
        assert_eq!(flat(&kept.write()), "<dns><host ip='10.77.3.9'><hostname>web</hostname></host></dns>");
        assert_eq!(names_kept(None, Ipv4Addr::new(10, 77, 3, 1), 24), None);
        let bare = "<network>\n  <domain name='vmk'/>\n</network>";
        assert_eq!(without(&bare.replacen("  <domain", &format!("  {}\n  <domain", kept.write().trim()), 1)), bare);
    }

    #[test]
    fn a_full_network_has_none() {
        let host = |n: u8| format!("<host mac='52:54:00:00:01:{n:02x}' ip='10.77.3.{n}'/>");
        check(&(2..=254).map(host).collect::<String>(), &wanted(Some("web"), None), &[], expect!["none is free"]);
        let but_one: String = (2..=253).map(host).collect();
        assert_eq!(reserve(&network(&but_one), &wanted(None, None), &[]).expect("XML").expect("room").address.to_string(), "10.77.3.254");
    }

    #[test]
    fn only_the_entries_of_nics_that_are_gone_go() {
        let there = network("<host mac='52:54:00:00:00:0A' name='a' ip='10.77.3.2'/><host mac='52:54:00:00:00:0b' ip='10.77.3.3'/>");
        let changes = release(&there, &BTreeSet::from(["52:54:00:00:00:0a".to_owned()])).expect("XML");
        assert_eq!(changes.len(), 1, "{changes:?}");
    }
}
