//! Forms of texts: addresses, paths, names of interfaces and hosts. Each says what is wrong and what is right.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::units::ByteCount;

type Form = Result<(), String>;

fn err(message: impl Into<String>) -> Form {
    Err(message.into())
}

/// An address with its prefix length.
pub fn cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let bad = || format!("'{text}' is not an address with a prefix length, like 10.0.0.5/24 or fd00::5/64");
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let digits = !prefix.is_empty() && prefix.len() <= 3 && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix: u8 = prefix.parse().ok().filter(|p| digits && *p <= max).ok_or_else(bad)?;
    Ok((address, prefix))
}

pub fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is not an IP address, like 10.0.0.1 or fd00::1"))
}

/// An address that one host can have.
pub fn host_address(address: IpAddr) -> Form {
    let bad = match address {
        IpAddr::V4(a) => a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.is_loopback(),
        IpAddr::V6(a) => a.is_unspecified() || a.is_multicast() || a.is_loopback(),
    };
    if bad { err(format!("{address} is not an address that a guest can have")) } else { Ok(()) }
}

/// Loopback too: a guest may run a resolver of its own.
pub fn dns_address(address: IpAddr) -> Form {
    if address.is_unspecified() || address.is_multicast() { err(format!("{address} answers no DNS query")) } else { Ok(()) }
}

fn v4_mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn v6_mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// Both lie in the subnet of the first.
pub fn same_subnet(of: IpAddr, prefix: u8, other: IpAddr) -> bool {
    match (of, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u32::from(a) & v4_mask(prefix) == u32::from(b) & v4_mask(prefix),
        (IpAddr::V6(a), IpAddr::V6(b)) => u128::from(a) & v6_mask(prefix) == u128::from(b) & v6_mask(prefix),
        _ => false,
    }
}

/// Host part all zero, or (v4) all one, where the prefix leaves one.
fn is_edge(address: IpAddr, prefix: u8) -> bool {
    match address {
        IpAddr::V4(a) if prefix < 31 => [0, !v4_mask(prefix)].contains(&(u32::from(a) & !v4_mask(prefix))),
        IpAddr::V6(a) if prefix < 127 => u128::from(a) & !v6_mask(prefix) == 0,
        IpAddr::V4(_) | IpAddr::V6(_) => false,
    }
}

/// An address of its own in its subnet, not the subnet's name.
pub fn host_cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, prefix) = cidr(text)?;
    host_address(address)?;
    if is_edge(address, prefix) {
        return Err(format!("{address} is the subnet's own or its broadcast address in a /{prefix}; write an address within it"));
    }
    Ok((address, prefix))
}

pub fn gateway_v4(text: &str) -> Form {
    let (address, prefix) = host_cidr(text)?;
    let IpAddr::V4(address) = address else { return err(format!("'{text}' is not IPv4")) };
    if !(8..=29).contains(&prefix) {
        return err(format!("a /{prefix} is no subnet for guests; use /8 to /29"));
    }
    if !(address.is_private() || is_shared(address)) {
        return err(format!("{address} is public; NAT needs a private subnet (10/8, 172.16/12, 192.168/16, 100.64/10)"));
    }
    Ok(())
}

/// 100.64/10, carrier-grade NAT.
fn is_shared(a: Ipv4Addr) -> bool {
    a.octets()[0] == 100 && (64..128).contains(&a.octets()[1])
}

pub fn gateway_v6(text: &str) -> Form {
    let (address, prefix) = host_cidr(text)?;
    let IpAddr::V6(address) = address else { return err(format!("'{text}' is not IPv6")) };
    if prefix != 64 {
        return err(format!("a /{prefix} breaks address autoconfiguration; use a /64"));
    }
    if !is_unique_local(address) {
        return err(format!("{address} is not unique local; use a /64 from fd00::/8"));
    }
    Ok(())
}

fn is_unique_local(a: Ipv6Addr) -> bool {
    a.segments()[0] & 0xfe00 == 0xfc00
}

pub fn mac(text: &str) -> Form {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() != 6 || !parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())) {
        return err(format!("'{text}' is not a MAC; write auto, or six pairs like 52:54:00:12:34:56"));
    }
    let first = u8::from_str_radix(parts[0], 16).map_err(|_| "not hexadecimal".to_owned())?;
    if first & 1 == 1 {
        return err(format!("'{text}' is a multicast MAC (its first byte is odd); a NIC needs a unicast one, like 52:54:00:12:34:56"));
    }
    if parts.iter().all(|p| *p == "00") {
        return err("a MAC of zeros belongs to nobody; write auto");
    }
    Ok(())
}

pub fn mtu(mtu: u32) -> Form {
    if (68..=65535).contains(&mtu) { Ok(()) } else { err(format!("{mtu} is no MTU; 68 to 65535, and 1500 on most networks")) }
}

/// Linux's interface names.
pub fn interface(text: &str) -> Form {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if text.is_empty() || text.len() > 15 {
        return err(format!("'{text}' is no interface name; 1 to 15 characters"));
    }
    if !text.bytes().all(allowed) || text.starts_with(['.', '-']) {
        return err(format!("'{text}' is no interface name; use letters, digits, '.', '_' and '-'"));
    }
    Ok(())
}

/// RFC 1123, one or more labels.
pub fn domain(text: &str) -> Form {
    if text.is_empty() || text.len() > 253 {
        return err(format!("'{text}' is no DNS name; 1 to 253 characters"));
    }
    let label = |l: &str| {
        let inner = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        !l.is_empty() && l.len() <= 63 && inner && !l.starts_with('-') && !l.ends_with('-')
    };
    if text.split('.').all(label) {
        Ok(())
    } else {
        err(format!("'{text}' is no DNS name; use letters, digits and '-', parts separated by '.'"))
    }
}

pub fn hostname(text: &str) -> Form {
    domain(text)?;
    if text.parse::<IpAddr>().is_ok() { err(format!("'{text}' is an address, not a host name")) } else { Ok(()) }
}

/// A path of the host, complete and without tricks.
pub fn host_path(text: &str) -> Form {
    if !text.starts_with('/') {
        return err(format!("'{text}' is not an absolute path"));
    }
    if text.len() > 1024 {
        return err("a path may have at most 1024 characters");
    }
    if text.split('/').any(|part| part == ".." || part == ".") {
        return err(format!("'{text}' contains '.' or '..'; write the path in full"));
    }
    if text.chars().any(char::is_control) {
        return err("a path may not contain control characters");
    }
    if text.trim_matches('/').is_empty() {
        return err("the root directory is not allowed here");
    }
    Ok(())
}

/// Folders of the system, and those that lose or show what lies in them: nothing of a pool belongs below.
const NO_POOL_BELOW: [&str; 25] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/lost+found",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/vmkeep",
    "/var/log",
    "/var/mail",
    "/var/run",
    "/var/spool",
    "/var/tmp",
];

/// Of libvirt's folders only this one is for disks.
const LIBVIRT: &str = "/var/lib/libvirt";
const LIBVIRT_IMAGES: &str = "/var/lib/libvirt/images";

/// Folders in which others' folders lie: a pool has one of its own in them.
const NO_POOL_AT: [&str; 7] = ["/home", "/media", "/mnt", "/opt", "/srv", "/var", "/var/lib"];

/// A folder of the host that disks may lie in.
pub fn pool_path(text: &str) -> Form {
    host_path(text)?;
    let path = Path::new(text);
    if let Some(system) = NO_POOL_BELOW.into_iter().find(|system| path.starts_with(system)) {
        return err(format!("'{text}' lies in {system}, which is the system's; use a folder like /srv/vmkeep"));
    }
    if path.starts_with(LIBVIRT) && !path.starts_with(LIBVIRT_IMAGES) {
        return err(format!("'{text}' lies among libvirt's own files; use a folder like {LIBVIRT_IMAGES}/fast"));
    }
    if NO_POOL_AT.into_iter().chain([LIBVIRT_IMAGES]).any(|shared| path == Path::new(shared)) {
        return err(format!(
            "others have their files in '{text}' too; use a folder of its own, like {}/vmkeep",
            text.trim_end_matches('/')
        ));
    }
    Ok(())
}

pub fn pci(text: &str) -> Form {
    let bad = || format!("'{text}' is no PCI address; write it like 0000:03:00.0, as `lspci -D` does");
    let (domain, rest) = text.split_once(':').ok_or_else(bad)?;
    let (bus, rest) = rest.split_once(':').ok_or_else(bad)?;
    let (slot, function) = rest.split_once('.').ok_or_else(bad)?;
    let hex = |t: &str, len: usize| {
        if t.len() == len { u32::from_str_radix(t, 16).ok().filter(|_| t.bytes().all(|b| b.is_ascii_hexdigit())) } else { None }
    };
    let good = hex(domain, 4).is_some()
        && hex(bus, 2).is_some()
        && hex(slot, 2).is_some_and(|n| n < 32)
        && hex(function, 1).is_some_and(|n| n < 8);
    if good { Ok(()) } else { Err(bad()) }
}

pub fn usb(text: &str) -> Form {
    let part = |t: &str| t.len() == 4 && t.bytes().all(|b| b.is_ascii_hexdigit());
    match text.split_once(':') {
        Some((vendor, product)) if part(vendor) && part(product) => Ok(()),
        _ => err(format!("'{text}' is no USB device; write vendor:product like 1d6b:0002, as `lsusb` does")),
    }
}

pub fn url(text: &str) -> Form {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else { return err(format!("'{}' is no http:// or https:// address", text.chars().take(80).collect::<String>())) };
    if rest.is_empty() || rest.starts_with(['/', ':', '?', '#']) {
        return err("the address has no host");
    }
    if text.len() > 2048 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return err("an address may have at most 2048 characters, and no spaces");
    }
    if rest.split(['/', '?', '#']).next().is_some_and(|host| host.contains('@')) {
        return err("no user or password in the address: it is shown to everybody who may see the image");
    }
    Ok(())
}

pub fn disk_size(size: ByteCount) -> Form {
    if size < super::DISK_MIN {
        return err(format!("{size} is too small for a disk; at least {}", super::DISK_MIN));
    }
    if size > super::DISK_MAX {
        return err(format!("{} is too large for a disk; at most {}", size.human(), super::DISK_MAX));
    }
    if !size.bytes().is_multiple_of(512) {
        return err(format!("{size} is not a multiple of 512 bytes, a disk's sector"));
    }
    Ok(())
}
