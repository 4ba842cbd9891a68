//! Networks: what a NIC plugs into.
//!
//! `nat` is a libvirt network of ours (DHCP, DNS and masquerading by dnsmasq and nftables); `bridge` is an existing bridge of
//! the host. The subnet of a NAT network is chosen once against all routes of the host and then read back from libvirt, so
//! that it stays. IPv6 comes with it as soon as forwarding it does not cost the host its own default route.

pub(crate) mod host;
pub(crate) mod nat;
pub(crate) mod reserve;
mod subnet;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::network::{NetworkMode, NetworkSpec};

use crate::hypervisor::Hypervisor;
use host::{Forward6, NatHost};

pub use host::{has_resolved, ra_uplinks};
pub use nat::found;

/// libvirt did not take IPv6 that nobody asked for: not asked again before the next start of the daemon.
static V6_REFUSED: AtomicBool = AtomicBool::new(false);

/// What a NIC is plugged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetAttach {
    pub libvirt_network: Option<String>,
    pub bridge: Option<String>,
    /// Bytes.
    pub mtu: Option<u32>,
}

/// Our name of a network in libvirt, which knows no projects.
pub fn libvirt_name(project: &Name, network: &Name) -> String {
    if project.as_str() == "default" { format!("vmkeep-{network}") } else { format!("vmkeep-{project}.{network}") }
}

/// A network that was ensured, and what that was for.
#[derive(Clone)]
pub struct Ensured {
    spec: NetworkSpec,
    pub attach: NetAttach,
    /// What libvirt stored then, without the addresses that it keeps for NICs.
    stored: Option<String>,
    forward6: Forward6,
}

impl Ensured {
    pub fn is_for(&self, spec: &NetworkSpec) -> bool {
        self.spec == *spec
    }

    /// It runs, as it was made, and would be made the same again. One look instead of making it anew.
    pub async fn still_runs(&self, hv: &dyn Hypervisor) -> bool {
        let (Some(name), Some(stored)) = (&self.attach.libvirt_network, &self.stored) else { return false };
        self.forward6 == Forward6::of_host()
            && hv.active_network_xml(name).await.is_ok_and(|now| now.is_some_and(|now| reserve::without(&now) == *stored))
    }
}

/// [`ensure`], and what is needed to see later that nothing has changed.
pub async fn ensure_kept(hv: &dyn Hypervisor, project: &Name, spec: &NetworkSpec) -> Result<Ensured, Error> {
    let forward6 = Forward6::of_host();
    let attach = ensure(hv, project, spec).await?;
    let stored = match &attach.libvirt_network {
        // Not known: it is made anew the next time.
        Some(name) => hv.active_network_xml(name).await.unwrap_or_default().map(|xml| reserve::without(&xml)),
        None => None,
    };
    Ok(Ensured { spec: spec.clone(), attach, stored, forward6 })
}

/// The network is there and active.
///
/// # Errors
/// No free subnet, a bridge that is none, or libvirt's words.
pub async fn ensure(hv: &dyn Hypervisor, project: &Name, spec: &NetworkSpec) -> Result<NetAttach, Error> {
    match spec.mode {
        NetworkMode::Bridge => {
            let bridge = spec.bridge.as_deref().ok_or_else(|| Error::invalid(format!("network {} names no bridge", spec.name)))?;
            usable_bridge(bridge)?;
            Ok(NetAttach { libvirt_network: None, bridge: Some(bridge.into()), mtu: spec.mtu })
        }
        NetworkMode::Nat => {
            let name = libvirt_name(project, &spec.name);
            let unavailable = |e| Error::new(Code::Unavailable, format!("network {}: {e}", spec.name));
            let present = hv.network_xml(&name).await.map_err(unavailable)?;
            let mut host = NatHost::gather().await;
            if spec.ipv6.is_none() && V6_REFUSED.load(Ordering::Relaxed) {
                host.forward6 = Forward6::Waits;
            }
            let mut nat = nat::describe(project, spec, &name, present.as_deref(), &host)?;
            let mut made = hv.ensure_network(&name, &nat.xml).await;
            // IPv6 that nobody asked for must not keep IPv4 away: a kernel without its NAT, a firewall, libvirt's own caution.
            if let (Err(error), None, Forward6::Safe) = (&made, &spec.ipv6, host.forward6) {
                tracing::warn!(network = name, %error, "libvirt does not take it with IPv6; it is made without");
                V6_REFUSED.store(true, Ordering::Relaxed);
                host.forward6 = Forward6::Waits;
                nat = nat::describe(project, spec, &name, Some(&nat.xml), &host)?;
                made = hv.ensure_network(&name, &nat.xml).await;
            }
            made.map_err(|e| Error::refused(format!("network {}: {e}", spec.name)))?;
            host::resolve_names(&nat.bridge, &nat.gateway.to_string(), &spec.domain).await;
            Ok(NetAttach { libvirt_network: Some(name), bridge: None, mtu: spec.mtu })
        }
    }
}

/// Absent is fine.
pub async fn remove(hv: &dyn Hypervisor, project: &Name, spec: &NetworkSpec) -> Result<(), Error> {
    match spec.mode {
        NetworkMode::Bridge => Ok(()),
        NetworkMode::Nat => {
            let removed = hv.remove_network(&libvirt_name(project, &spec.name)).await;
            removed.map_err(|e| Error::refused(format!("network {}: {e}", spec.name)))
        }
    }
}

/// # Errors
/// Why no VM can be plugged into it.
pub fn usable_bridge(name: &str) -> Result<(), Error> {
    check_bridge(Path::new("/sys/class/net"), name)
}

fn check_bridge(sys: &Path, name: &str) -> Result<(), Error> {
    let device = sys.join(name);
    if name.contains('/') || !device.exists() {
        return Err(Error::not_found("bridge", name).hint("`ip link show type bridge` lists those of the host"));
    }
    if !device.join("bridge").exists() {
        let hint = "make a bridge over it first (ifupdown, networkd or NetworkManager) and name that";
        return Err(Error::invalid(format!("'{name}' is a network device, not a bridge")).hint(hint));
    }
    for port in std::fs::read_dir(device.join("brif")).into_iter().flatten().flatten() {
        let port = port.file_name().to_string_lossy().into_owned();
        if sys.join(&port).join("wireless").exists() || sys.join(&port).join("phy80211").exists() {
            let why = format!("bridge '{name}' goes out over Wi-Fi ({port}); access points drop frames of other MAC addresses");
            return Err(Error::invalid(why).hint("use a network with mode: nat"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirts_names_tell_projects_apart() {
        let name = |project, network| libvirt_name(&Name::known(project), &Name::known(network));
        assert_eq!(name("default", "blue"), "vmkeep-blue");
        assert_ne!(name("a", "b-c"), name("a-b", "c"));
        assert_ne!(name("a", "b"), name("default", "a-b"));
    }

    #[test]
    fn only_real_bridges_without_wifi_are_taken() {
        let sys = tempfile::tempdir().expect("a folder");
        let make = |path: &str| std::fs::create_dir_all(sys.path().join(path)).expect("a folder");
        ["eth0", "br0/bridge", "br0/brif/eth0", "br1/bridge", "br1/brif/wlan0", "wlan0/phy80211"].into_iter().for_each(make);
        assert!(check_bridge(sys.path(), "br0").is_ok());
        let told = |name| check_bridge(sys.path(), name).expect_err(name).message;
        assert!(told("br9").contains("there is no bridge"));
        assert!(told("eth0").contains("not a bridge"));
        assert!(told("br1").contains("Wi-Fi"));
        assert!(told("../x").contains("there is no bridge"));
    }
}
