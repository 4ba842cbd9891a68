//! Addresses that DHCP keeps for a VM's NICs, and its name in DNS. A VM starts without them where libvirt does not take them:
//! it then gets what DHCP has to give.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkMode;

use super::super::node::{Look, Node};
use super::super::report::State;
use crate::net::libvirt_name;
use crate::net::reserve::Wanted;

/// Every NIC on a NAT network has its address, and NICs that are gone have none.
async fn keep(node: &Node, state: &mut State) {
    let gone = std::mem::take(&mut state.gone_macs);
    release(node, state, gone).await;
    let mut kept = BTreeMap::new();
    for (nic, network, wanted) in wishes(state) {
        let Some(spec) = state.order.networks.get(&network) else { continue };
        let Ok(attach) = node.network(&state.order.project, spec, Look::Kept).await else { continue };
        let Some(libvirt_network) = &attach.libvirt_network else { continue };
        match node.reserve(libvirt_network, &wanted).await {
            Ok(Some(address)) => {
                kept.insert(nic, IpAddr::V4(address));
            }
            Ok(None) if !wanted.dhcp => {}
            Ok(None) => tracing::warn!(vm = %state.order.spec.name, %network, "no address of the network is free"),
            Err(error) => tracing::warn!(vm = %state.order.spec.name, %network, %error, "DHCP keeps no address for the VM"),
        }
    }
    state.addresses = kept;
}

/// [`keep`], where that is due or something is missing: a VM that came here running, or from a version that kept none.
pub async fn complete(node: &Node, state: &mut State) {
    let due = std::mem::take(&mut state.addresses_due);
    let missing = || wishes(state).iter().any(|(nic, _, wanted)| wanted.dhcp && !state.addresses.contains_key(nic));
    if due || (super::lives(state) && missing()) {
        keep(node, state).await;
    }
}

/// The VM leaves this host.
pub async fn forget(node: &Node, state: &mut State) {
    let macs = state.order.choices.macs.values().cloned().collect();
    release(node, state, macs).await;
    state.addresses.clear();
}

async fn release(node: &Node, state: &State, macs: BTreeSet<String>) {
    let of_order = state.order.networks.values().filter(|spec| spec.mode == NetworkMode::Nat);
    let names = of_order.map(|spec| libvirt_name(&state.order.project, &spec.name)).collect();
    node.release(names, macs).await;
}

/// NIC, network, and what DHCP is to know of it. A name has one address on a network: the first NIC's.
fn wishes(state: &State) -> Vec<(Name, Name, Wanted)> {
    let mut named = BTreeSet::new();
    let is_nat = |network: &Name| state.order.networks.get(network).is_some_and(|spec| spec.mode == NetworkMode::Nat);
    let wish = |nic: &vmkeep_types::vm::Nic| {
        let mac = state.choices.macs.get(&nic.name)?;
        let name = named.insert(nic.network.clone()).then_some(state.order.spec.name.as_str());
        Some((nic.name.clone(), nic.network.clone(), Wanted::of(nic, mac, name)?))
    };
    state.order.spec.nics.iter().filter(|nic| is_nat(&nic.network)).filter_map(wish).collect()
}
