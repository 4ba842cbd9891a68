//! What stands between VMs and the network: Docker's FORWARD policy, firewalld, forwarding, router advertisements.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vmkeep_types::host::CheckRow;

use super::row::{ok, warn};

/// iptables waits for a lock that others hold; we do not.
const TOOL_PATIENCE: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Default)]
pub struct Firewall {
    /// `ACCEPT` or `DROP`; None = no such table, or it cannot be read.
    pub forward_policy: Option<String>,
    /// libvirt's own rules stand in FORWARD, before the policy.
    pub libvirt_rules: bool,
    /// Docker's do.
    pub docker: bool,
}

impl Firewall {
    pub async fn gather() -> Self {
        if super::tools::find("iptables").is_none() {
            return Self::default();
        }
        let mut command = tokio::process::Command::new("iptables");
        command.args(["-w", "1", "-S", "FORWARD"]).env("LC_ALL", "C.UTF-8").kill_on_drop(true);
        match tokio::time::timeout(TOOL_PATIENCE, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Self::parse(&String::from_utf8_lossy(&output.stdout)),
            _ => Self::default(),
        }
    }

    fn parse(rules: &str) -> Self {
        Self {
            forward_policy: rules.lines().find_map(|l| l.strip_prefix("-P FORWARD ")).map(|p| p.trim().to_owned()),
            libvirt_rules: rules.contains("-j LIBVIRT_FW"),
            docker: rules.contains("-j DOCKER"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct NetworkFacts {
    pub firewall: Firewall,
    /// Bridged frames pass iptables too (br_netfilter).
    pub bridge_filtered: bool,
    pub firewalld: bool,
    /// firewalld knows libvirt's zone.
    pub firewalld_zone: bool,
    pub ip_forward: bool,
    pub ip6_forward: bool,
    /// Interfaces that have their IPv6 default route from an advertisement and would lose it with forwarding.
    pub ra_uplinks: Vec<String>,
    /// systemd-resolved runs.
    pub resolved: bool,
}

pub fn gather(firewall: Firewall) -> NetworkFacts {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    NetworkFacts {
        firewall,
        bridge_filtered: is("/proc/sys/net/bridge/bridge-nf-call-iptables", "1"),
        firewalld: is_running("firewalld"),
        firewalld_zone: Path::new("/usr/lib/firewalld/zones/libvirt.xml").exists(),
        ip_forward: is("/proc/sys/net/ipv4/ip_forward", "1"),
        ip6_forward: is("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
        ra_uplinks: crate::net::ra_uplinks(),
        resolved: crate::net::has_resolved(),
    }
}

fn is_running(name: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|e| fs::read_to_string(e.path().join("comm")).ok()).any(|comm| comm.trim() == name)
}

pub fn judge(facts: &NetworkFacts) -> Vec<CheckRow> {
    vec![forward_policy(facts), firewalld(facts), ip_forward(facts), ip6_forward(facts), names(facts)]
}

fn names(facts: &NetworkFacts) -> CheckRow {
    let id = "vm-names";
    if facts.resolved {
        return ok(id, "systemd-resolved asks NAT networks for NAME.vmk");
    }
    let why = "NAME.vmk resolves between VMs, not on this host; `vmkeep vm ip NAME` and `vmkeep vm ssh NAME` work all the same";
    warn(id, "systemd-resolved does not run", why, Some("apt-get install systemd-resolved".into()))
}

fn forward_policy(facts: &NetworkFacts) -> CheckRow {
    let id = "forward-policy";
    let Some(policy) = &facts.firewall.forward_policy else { return ok(id, "no iptables rules") };
    if policy != "DROP" {
        return ok(id, format!("iptables FORWARD: {policy}"));
    }
    let who = if facts.firewall.docker { "Docker's doing" } else { "not by vmkeep" };
    let found = format!("iptables FORWARD: DROP ({who})");
    let mend = if facts.firewall.docker {
        "iptables -I DOCKER-USER -i vmk+ -j ACCEPT; iptables -I DOCKER-USER -o vmk+ -j ACCEPT"
    } else {
        "iptables -I FORWARD -i vmk+ -j ACCEPT; iptables -I FORWARD -o vmk+ -j ACCEPT"
    };
    if facts.bridge_filtered {
        let why = "bridged frames pass iptables (bridge-nf-call-iptables) and are dropped: VMs on `mode: bridge` networks reach nothing";
        return warn(id, found, why, Some(format!("sysctl net.bridge.bridge-nf-call-iptables=0; {mend}")));
    }
    if facts.firewall.libvirt_rules {
        return ok(id, format!("{found}; libvirt's own rules come before it"));
    }
    warn(id, found, "packets of VMs on NAT networks are dropped, unless libvirt adds rules of its own to this table", Some(mend.into()))
}

fn firewalld(facts: &NetworkFacts) -> CheckRow {
    match (facts.firewalld, facts.firewalld_zone) {
        (false, _) => ok("firewalld", "not running"),
        (true, true) => ok("firewalld", "running; libvirt's bridges are in its zone `libvirt`"),
        (true, false) => {
            let why = "without its zone `libvirt` DHCP and DNS of NAT networks are blocked";
            warn(
                "firewalld",
                "running, without zone `libvirt`",
                why,
                Some("apt-get install --reinstall libvirt-daemon-system; firewall-cmd --reload".into()),
            )
        }
    }
}

fn ip_forward(facts: &NetworkFacts) -> CheckRow {
    if facts.ip_forward {
        return ok("ip-forward", "on");
    }
    // libvirt switches it on with the first NAT network; something that switches it off again would show up here.
    ok("ip-forward", "off; libvirt switches it on when a NAT network starts")
}

fn ip6_forward(facts: &NetworkFacts) -> CheckRow {
    let found = if facts.ip6_forward { "on" } else { "off" };
    let Some(uplink) = facts.ra_uplinks.first() else { return ok("ipv6-forward", found) };
    let mend = facts.ra_uplinks.iter().map(|i| format!("sysctl net.ipv6.conf.{i}.accept_ra=2")).collect::<Vec<_>>().join("; ");
    let why = format!(
        "the host learns its IPv6 default route on {uplink} with accept_ra=1, and the kernel drops such routes when it forwards; IPv6 of NAT networks waits for this"
    );
    warn("ipv6-forward", found, why, Some(mend))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(change: impl FnOnce(&mut NetworkFacts), expect: Expect) {
        let mut facts = NetworkFacts {
            firewall: Firewall { forward_policy: Some("ACCEPT".into()), libvirt_rules: false, docker: false },
            bridge_filtered: false,
            firewalld: false,
            firewalld_zone: false,
            ip_forward: true,
            ip6_forward: false,
            ra_uplinks: vec![],
            resolved: true,
        };
        change(&mut facts);
        let rows = judge(&facts);
        let bad: Vec<CheckRow> = rows.iter().filter(|r| r.level != vmkeep_types::host::CheckLevel::Ok).cloned().collect();
        expect.assert_eq(&show(if bad.is_empty() { &rows } else { &bad }));
    }

    #[test]
    fn nothing_in_the_way() {
        check(
            |_| {},
            expect![[r#"
                ok forward-policy: iptables FORWARD: ACCEPT
                ok firewalld: not running
                ok ip-forward: on
                ok ipv6-forward: off
                ok vm-names: systemd-resolved asks NAT networks for NAME.vmk
            "#]],
        );
        check(
            |f| {
                f.firewall = Firewall { forward_policy: Some("DROP".into()), libvirt_rules: true, docker: true };
                f.firewalld = true;
                f.firewalld_zone = true;
                f.ip_forward = false;
            },
            expect![[r#"
                ok forward-policy: iptables FORWARD: DROP (Docker's doing); libvirt's own rules come before it
                ok firewalld: running; libvirt's bridges are in its zone `libvirt`
                ok ip-forward: off; libvirt switches it on when a NAT network starts
                ok ipv6-forward: off
                ok vm-names: systemd-resolved asks NAT networks for NAME.vmk
            "#]],
        );
    }

    #[test]
    fn dockers_policy_drops_the_vms_packets() {
        check(
            |f| f.firewall = Firewall::parse("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"),
            expect![[r#"
                warn forward-policy: iptables FORWARD: DROP (Docker's doing)
                  packets of VMs on NAT networks are dropped, unless libvirt adds rules of its own to this table
                  $ iptables -I DOCKER-USER -i vmk+ -j ACCEPT; iptables -I DOCKER-USER -o vmk+ -j ACCEPT
            "#]],
        );
        check(
            |f| {
                f.firewall = Firewall::parse("-P FORWARD DROP\n-A FORWARD -j LIBVIRT_FWX\n");
                f.bridge_filtered = true;
            },
            expect![[r#"
                warn forward-policy: iptables FORWARD: DROP (not by vmkeep)
                  bridged frames pass iptables (bridge-nf-call-iptables) and are dropped: VMs on `mode: bridge` networks reach nothing
                  $ sysctl net.bridge.bridge-nf-call-iptables=0; iptables -I FORWARD -i vmk+ -j ACCEPT; iptables -I FORWARD -o vmk+ -j ACCEPT
            "#]],
        );
    }

    #[test]
    fn firewalld_without_the_zone_and_advertised_routes() {
        check(
            |f| {
                f.firewalld = true;
                f.ra_uplinks = vec!["eth0".into()];
                f.resolved = false;
            },
            expect![[r#"
                warn firewalld: running, without zone `libvirt`
                  without its zone `libvirt` DHCP and DNS of NAT networks are blocked
                  $ apt-get install --reinstall libvirt-daemon-system; firewall-cmd --reload
                warn ipv6-forward: off
                  the host learns its IPv6 default route on eth0 with accept_ra=1, and the kernel drops such routes when it forwards; IPv6 of NAT networks waits for this
                  $ sysctl net.ipv6.conf.eth0.accept_ra=2
                warn vm-names: systemd-resolved does not run
                  NAME.vmk resolves between VMs, not on this host; `vmkeep vm ip NAME` and `vmkeep vm ssh NAME` work all the same
                  $ apt-get install systemd-resolved
            "#]],
        );
    }
}
