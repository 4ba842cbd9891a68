//! A free /24 for a NAT network: chosen against every route of the host, nested hosts included.

use std::net::Ipv4Addr;

use vmkeep_types::error::{Code, Error};

/// Candidates are 10.77.0.0/24 to 10.77.255.0/24, then 172.31.0.0/24 to 172.31.255.0/24.
const BLOCKS: [[u8; 2]; 2] = [[10, 77], [172, 31]];

/// A destination of a route: network and mask, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    network: u32,
    mask: u32,
}

/// Reads `/proc/net/route` (proc_net(5)): addresses are in the machine's byte order, hex.
pub fn routes(text: &str) -> Vec<Route> {
    let field = |s: &str| u32::from_str_radix(s, 16).ok().map(u32::from_le);
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        Some(Route { network: u32::from_be(field(columns.get(1)?)?), mask: u32::from_be(field(columns.get(7)?)?) })
    };
    text.lines().skip(1).filter_map(row).filter(|r| r.mask != 0).collect()
}

/// Reads `ip -4 -o route show table all`: other tables than the main one are in no file.
pub fn routes_of_ip(text: &str) -> Vec<Route> {
    const KINDS: [&str; 9] = ["unicast", "local", "broadcast", "multicast", "throw", "unreachable", "prohibit", "blackhole", "nat"];
    let row = |line: &str| {
        let to = line.split_whitespace().find(|word| !KINDS.contains(word))?;
        let (address, prefix) = to.split_once('/').unwrap_or((to, "32"));
        let (address, prefix): (Ipv4Addr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
        let mask = u32::MAX.checked_shl(32u32.checked_sub(prefix)?).unwrap_or(0);
        Some(Route { network: u32::from(address) & mask, mask })
    };
    text.lines().filter_map(row).filter(|r| r.mask != 0).collect()
}

/// The gateway address of the first /24 that no route touches. `start` spreads networks made at once.
pub fn free(routes: &[Route], start: u8) -> Result<Ipv4Addr, Error> {
    for [a, b] in BLOCKS {
        for n in 0..=255u8 {
            let gateway = Ipv4Addr::new(a, b, start.wrapping_add(n), 1);
            if !routes.iter().any(|r| overlaps(*r, gateway)) {
                return Ok(gateway);
            }
        }
    }
    Err(Error::new(Code::NoCapacity, "no free /24 for a NAT network in 10.77.0.0/16 and 172.31.0.0/16")
        .hint("set the network's `ipv4` yourself"))
}

fn overlaps(route: Route, gateway: Ipv4Addr) -> bool {
    let mask = route.mask & 0xffff_ff00;
    u32::from(gateway) & mask == route.network & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn routes_of_other_tables_count() {
        let text = "default via 192.168.2.1 dev eth0 \n10.77.0.0/24 dev wg0 table 51820 \nlocal 10.77.1.7 dev eth1 table local \n\
            unreachable 10.77.2.0/23 table 9 \nnonsense\n";
        assert_eq!(routes_of_ip(text).len(), 3);
        assert_eq!(free(&routes_of_ip(text), 0), Ok(Ipv4Addr::new(10, 77, 4, 1)));
    }

    #[test]
    fn a_subnet_that_is_routed_is_not_taken() {
        let known = routes(TABLE);
        assert_eq!(known.len(), 1, "the default route touches everything and means nothing");
        assert_eq!(free(&known, 0), Ok(Ipv4Addr::new(10, 77, 1, 1)));
        let all_of_ten = Route { network: 0x0a00_0000, mask: 0xff00_0000 };
        assert_eq!(free(&[all_of_ten], 0), Ok(Ipv4Addr::new(172, 31, 0, 1)));
        assert!(free(&[all_of_ten, Route { network: 0xac10_0000, mask: 0xfff0_0000 }], 0).is_err());
    }
}
