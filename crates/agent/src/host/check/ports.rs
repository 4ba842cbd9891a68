//! Ports that we or our networks want, and who has them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use vmkeep_types::host::CheckRow;

use super::row::{fail, ok, warn};

const DNS: u16 = 53;
/// Sockets looked at; a host with more has other problems.
const SOCKETS_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub at: SocketAddr,
    /// `tcp` or `udp`
    pub protocol: &'static str,
    /// Program that has it open; None = not found.
    pub program: Option<String>,
    /// This daemon itself.
    pub ours: bool,
}

#[derive(Clone, Debug)]
pub struct PortFacts {
    pub listeners: Vec<Listener>,
    pub tls_listen: Option<SocketAddr>,
    /// Where libvirt must listen for guests of other hosts.
    pub migration_port: Option<u16>,
}

pub fn gather(tls_listen: Option<SocketAddr>, migration_port: Option<u16>) -> PortFacts {
    let mut found = Vec::new();
    for (file, protocol) in [("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp")] {
        let text = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        found.extend(listeners(&text, protocol).into_iter().take(SOCKETS_MAX));
    }
    let wanted = |port: u16| port == DNS || migration_port == Some(port) || tls_listen.is_some_and(|at| at.port() == port);
    found.retain(|(at, _, _)| wanted(at.port()));
    let owners = if found.is_empty() { BTreeMap::new() } else { owners() };
    let listener = |(at, protocol, inode): (SocketAddr, &'static str, u64)| {
        let pid = owners.get(&inode).copied();
        let comm = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        Listener { at, protocol, program: comm.map(|c| c.trim().to_owned()), ours: pid == Some(std::process::id()) }
    };
    PortFacts { listeners: found.into_iter().map(listener).collect(), tls_listen, migration_port }
}

/// Whether somebody listens there over TCP, as the kernel tells: libvirtd puts an error into the journal for each connection that is
/// opened only to see.
pub fn is_listened_on(at: SocketAddr) -> bool {
    let of = |file: &str| listeners(&fs::read_to_string(file).unwrap_or_default(), "tcp");
    let mut all = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().flat_map(of);
    all.any(|(there, _, _)| there.port() == at.port() && overlap(there.ip(), at.ip()))
}

/// Listening sockets in a file of /proc/net: address, protocol, inode.
fn listeners(text: &str, protocol: &'static str) -> Vec<(SocketAddr, &'static str, u64)> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // 0A = LISTEN; an unconnected UDP socket is in state 07.
        let state = if protocol == "tcp" { "0A" } else { "07" };
        (fields.get(3) == Some(&state)).then_some(())?;
        Some((address(fields.get(1)?)?, protocol, fields.get(9)?.parse().ok()?))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:0035`: each 32-bit word in the machine's (little-endian) order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |n: usize| u32::from_str_radix(ip.get(n * 8..n * 8 + 8)?, 16).ok().map(u32::to_le_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Socket inode to pid, for the processes that we may look into.
fn owners() -> BTreeMap<u64, u32> {
    let mut owners = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        for fd in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                owners.insert(inode, pid);
            }
        }
    }
    owners
}

pub fn judge(facts: &PortFacts) -> Vec<CheckRow> {
    let mut rows = vec![dns(facts)];
    rows.extend(facts.tls_listen.map(|at| tls(facts, at)));
    rows.extend(facts.migration_port.map(|port| migration(facts, port)));
    rows
}

/// A DNS server on all addresses keeps dnsmasq from the bridge's own one.
fn dns(facts: &PortFacts) -> CheckRow {
    let blocks = |l: &&Listener| l.at.port() == DNS && l.at.ip().is_unspecified();
    let Some(blocker) = facts.listeners.iter().find(blocks) else {
        return ok("port-53", "free for the networks' DNS");
    };
    let program = blocker.program.as_deref().unwrap_or("some program");
    let why = "it holds port 53 on all addresses: dnsmasq cannot bind on a NAT network's bridge, and the network does not start";
    let mend = match program {
        "named" => "set listen-on { 127.0.0.1; <your address>; }; in /etc/bind/named.conf.options; systemctl restart named".to_owned(),
        "dnsmasq" => "set bind-interfaces and except-interface=vmk* in /etc/dnsmasq.conf; systemctl restart dnsmasq".to_owned(),
        "unbound" => "set interface: 127.0.0.1 in /etc/unbound/unbound.conf; systemctl restart unbound".to_owned(),
        _ => format!("let {program} listen on single addresses only"),
    };
    fail("port-53", format!("{program} listens on {} ({})", blocker.at, blocker.protocol), why, Some(mend))
}

fn tls(facts: &PortFacts, at: SocketAddr) -> CheckRow {
    let id = "port-api";
    let same = |l: &&Listener| l.protocol == "tcp" && l.at.port() == at.port() && overlap(l.at.ip(), at.ip());
    match facts.listeners.iter().find(same) {
        Some(l) if l.ours => ok(id, format!("vmkeepd listens on {at}")),
        Some(l) => {
            let program = l.program.as_deref().unwrap_or("some program");
            let why = "the API cannot listen there; the unix socket works";
            fail(
                id,
                format!("{program} listens on {}", l.at),
                why,
                Some(format!("stop {program}, or set another tls.listen in /etc/vmkeep/vmkeepd.toml")),
            )
        }
        None => {
            warn(id, format!("nothing listens on {at}"), "the API is configured to, but does not", Some("journalctl -u vmkeepd".into()))
        }
    }
}

fn migration(facts: &PortFacts, port: u16) -> CheckRow {
    let id = "port-migration";
    if facts.listeners.iter().any(|l| l.protocol == "tcp" && l.at.port() == port) {
        return ok(id, format!("libvirt listens on port {port}"));
    }
    let why = "VMs cannot move to this host while they run";
    let mend = "vmkeep cluster status says what is missing and the command that mends it";
    warn(id, format!("nothing listens on port {port}"), why, Some(mend.into()))
}

fn overlap(a: IpAddr, b: IpAddr) -> bool {
    a == b || a.is_unspecified() || b.is_unspecified()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn listener(at: &str, protocol: &'static str, program: &str) -> Listener {
        Listener { at: at.parse().expect("an address"), protocol, program: Some(program.into()), ours: program == "vmkeepd" }
    }

    fn check(listeners: Vec<Listener>, tls_listen: Option<&str>, expect: Expect) {
        let tls_listen = tls_listen.map(|at| at.parse().expect("an address"));
        expect.assert_eq(&show(&judge(&PortFacts { listeners, tls_listen, migration_port: None })));
    }

    #[test]
    fn who_listens_is_seen_without_a_call() {
        let here = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        here.set_nonblocking(true).expect("a socket");
        let at = here.local_addr().expect("bound");
        assert!(is_listened_on(at));
        assert!(!is_listened_on(SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), at.port())), "another address");
        assert_eq!(here.accept().expect_err("nobody has called").kind(), std::io::ErrorKind::WouldBlock);
        drop(here);
        let everywhere = std::net::TcpListener::bind("[::]:0").expect("loopback");
        let port = everywhere.local_addr().expect("bound").port();
        assert!(is_listened_on(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)), "on all addresses");
        drop(everywhere);
        assert!(!is_listened_on(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)));
    }

    #[test]
    fn a_member_takes_guests_of_others() {
        let rows = |listeners| show(&judge(&PortFacts { listeners, tls_listen: None, migration_port: Some(16514) }));
        expect![[r#"
            ok port-53: free for the networks' DNS
            ok port-migration: libvirt listens on port 16514
        "#]]
        .assert_eq(&rows(vec![listener("[::]:16514", "tcp", "libvirtd")]));
        expect![[r#"
            ok port-53: free for the networks' DNS
            warn port-migration: nothing listens on port 16514
              VMs cannot move to this host while they run
              $ vmkeep cluster status says what is missing and the command that mends it
        "#]]
        .assert_eq(&rows(Vec::new()));
    }

    #[test]
    fn who_has_port_53() {
        check(
            vec![listener("127.0.0.53:53", "udp", "systemd-resolve"), listener("10.77.0.1:53", "udp", "dnsmasq")],
            None,
            expect![[r#"
                ok port-53: free for the networks' DNS
            "#]],
        );
        check(
            vec![listener("0.0.0.0:53", "udp", "named")],
            None,
            expect![[r#"
                fail port-53: named listens on 0.0.0.0:53 (udp)
                  it holds port 53 on all addresses: dnsmasq cannot bind on a NAT network's bridge, and the network does not start
                  $ set listen-on { 127.0.0.1; <your address>; }; in /etc/bind/named.conf.options; systemctl restart named
            "#]],
        );
        check(
            vec![listener("[::]:53", "tcp", "coredns")],
            None,
            expect![[r#"
                fail port-53: coredns listens on [::]:53 (tcp)
                  it holds port 53 on all addresses: dnsmasq cannot bind on a NAT network's bridge, and the network does not start
                  $ let coredns listen on single addresses only
            "#]],
        );
    }

    #[test]
    fn who_has_the_apis_port() {
        check(
            vec![listener("0.0.0.0:8443", "tcp", "vmkeepd")],
            Some("0.0.0.0:8443"),
            expect![[r#"
                ok port-53: free for the networks' DNS
                ok port-api: vmkeepd listens on 0.0.0.0:8443
            "#]],
        );
        check(
            vec![listener("[::]:8443", "tcp", "nginx")],
            Some("192.0.2.1:8443"),
            expect![[r#"
                ok port-53: free for the networks' DNS
                fail port-api: nginx listens on [::]:8443
                  the API cannot listen there; the unix socket works
                  $ stop nginx, or set another tls.listen in /etc/vmkeep/vmkeepd.toml
            "#]],
        );
        check(
            vec![listener("127.0.0.1:8443", "tcp", "nginx")],
            Some("192.0.2.1:8443"),
            expect![[r#"
                ok port-53: free for the networks' DNS
                warn port-api: nothing listens on 192.0.2.1:8443
                  the API is configured to, but does not
                  $ journalctl -u vmkeepd
            "#]],
        );
    }

    #[test]
    fn files_of_proc_net() {
        let tcp = "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1\n   1: 0100007F:0035 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 34 1\n";
        assert_eq!(listeners(tcp, "tcp"), [("127.0.0.1:53".parse().expect("an address"), "tcp", 33)]);
        assert_eq!(address("00000000000000000000000001000000:01BB"), Some("[::1]:443".parse().expect("an address")));
        assert_eq!(address("0100007F"), None);
        assert_eq!(address("é100007F:0035"), None);
    }

    #[test]
    fn our_own_listener_is_found_on_this_machine() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = socket.local_addr().expect("it is bound");
        let row = judge(&gather(Some(at), None)).pop().expect("a row for the API's port");
        assert_eq!(row.found, format!("vmkeepd listens on {at}"));
        drop(socket);
        let row = judge(&gather(Some(at), None)).pop().expect("a row for the API's port");
        assert_eq!(row.found, format!("nothing listens on {at}"));
    }
}
