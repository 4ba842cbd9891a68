//! What the host's own network says about a new one: its routes, and whether forwarding IPv6 would harm it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use uuid::Uuid;

use super::subnet::{self, Route};

/// Flags of /proc/net/ipv6_route: a route learned from a router advertisement.
const RTF_ADDRCONF: u32 = 0x0004_0000;
/// `ip` and `resolvectl` answer at once, or something hangs that is not ours.
const TOOL_PATIENCE: Duration = Duration::from_secs(3);

/// What a NAT network is made with, gathered before.
#[derive(Clone, Debug)]
pub struct NatHost {
    pub routes: Vec<Route>,
    pub forward6: Forward6,
    /// Identity of a network that is not there yet.
    pub fresh: Uuid,
}

/// Whether IPv6 may be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward6 {
    Safe,
    /// The kernel would drop the default route that the host learned.
    Waits,
}

impl Forward6 {
    pub fn of_host() -> Self {
        let waits = !Path::new("/proc/sys/net/ipv6/conf/all").exists() || !ra_uplinks().is_empty();
        if waits { Self::Waits } else { Self::Safe }
    }
}

impl NatHost {
    pub async fn gather() -> Self {
        let main = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        let every_table = run("ip", &["-4", "-o", "route", "show", "table", "all"]).await.unwrap_or_default();
        let routes = subnet::routes(&main).into_iter().chain(subnet::routes_of_ip(&every_table)).collect();
        Self { routes, forward6: Forward6::of_host(), fresh: Uuid::new_v4() }
    }
}

/// The tool's stdout, if it is there and succeeds.
async fn run(program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TOOL_PATIENCE, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where systemd-resolved is when it runs.
const RESOLVED: &str = "/run/systemd/resolve/stub-resolv.conf";

/// systemd-resolved runs, and can be told whom to ask for a network's names.
pub fn has_resolved() -> bool {
    Path::new(RESOLVED).exists()
}

/// The host's own programs find `NAME.DOMAIN` too. systemd-resolved forgets it with the bridge; without systemd-resolved it is
/// left as it is, and `host check` says so.
pub async fn resolve_names(bridge: &str, gateway: &str, domain: &str) {
    if !has_resolved() || !Path::new("/sys/class/net").join(bridge).exists() {
        return;
    }
    let told = [["dns", bridge, gateway], ["domain", bridge, &format!("~{domain}")]];
    for args in told {
        if run("resolvectl", &args).await.is_none() {
            tracing::warn!(bridge, "systemd-resolved did not take the bridge's DNS server: VMs' names do not resolve on this host");
            return;
        }
    }
}

/// Interfaces that have their IPv6 default route from an advertisement and would lose it with forwarding.
pub fn ra_uplinks() -> Vec<String> {
    let routes = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let accepts = |interface: &String| {
        let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra"));
        setting.is_ok_and(|text| text.trim() == "1")
    };
    advertised(&routes).into_iter().filter(accepts).collect()
}

/// Interfaces with a default route from an advertisement.
fn advertised(routes: &str) -> Vec<String> {
    let uplink = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_default = fields.first()?.bytes().all(|b| b == b'0') && *fields.get(1)? == "00";
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        (is_default && flags & RTF_ADDRCONF != 0).then_some((*fields.last()?).to_owned())
    };
    let mut uplinks: Vec<String> = routes.lines().filter_map(uplink).collect();
    uplinks.dedup();
    uplinks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_from_advertisements() {
        let zero = "0".repeat(32);
        let route =
            |flags: &str, to: &str| format!("{zero} {to} {zero} 00 fe80{} 00000400 00000002 00000000 {flags}     eth0\n", "0".repeat(28));
        assert_eq!(advertised(&route("00450003", "00")), ["eth0"]);
        assert!(advertised(&route("00000003", "00")).is_empty(), "set by hand");
        assert!(advertised(&route("00450003", "40")).is_empty(), "no default route");
    }
}
