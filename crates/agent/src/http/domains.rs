//! libvirt's domains as they are: all of them, one's XML, its addresses, and what adopting one would mean.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use vmkeep_api::body::{AddressView, AdoptionProposal, DomainView, XmlAnswer};
use vmkeep_types::error::Error;

use super::NodeHttp;
use super::answer::Answer;
use super::xml as parts;
use crate::domain;
use crate::hypervisor::{AddressSource, DomainBrief, GuestAddress, XmlKind};
use crate::seed;

/// The kernel's neighbour table is read at once; a tool that hangs is left.
const TOOL_PATIENCE: Duration = Duration::from_secs(2);

fn current(brief: &DomainBrief) -> XmlKind {
    if brief.state.is_live() { XmlKind::Live } else { XmlKind::Inactive }
}

pub async fn xml(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>) -> Answer<Json<XmlAnswer>> {
    let brief = node.our_domain(&uid).await?;
    Ok(Json(XmlAnswer { xml: node.hv().xml(brief.uuid, current(&brief)).await? }))
}

/// Which domains.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Which {
    /// Names with commas between; all when it is not there.
    named: Option<String>,
}

/// More are found faster by listing all.
const NAMED_ONE_BY_ONE_MAX: usize = 16;

pub async fn list(State(node): State<Arc<NodeHttp>>, Query(which): Query<Which>) -> Answer<Json<Vec<DomainView>>> {
    let names: Option<BTreeSet<&str>> = which.named.as_deref().map(|names| names.split(',').collect());
    let mut domains = match &names {
        Some(names) if names.len() <= NAMED_ONE_BY_ONE_MAX => {
            let mut found = Vec::new();
            for name in names {
                found.extend(node.hv().named(name).await?);
            }
            found
        }
        Some(names) => node.hv().list().await?.into_iter().filter(|domain| names.contains(domain.name.as_str())).collect(),
        None => node.hv().list().await?,
    };
    domains.sort_by(|a, b| a.name.cmp(&b.name));
    let view = |d: DomainBrief| DomainView { uuid: d.uuid, name: d.name, state: d.state, ours: d.metadata.is_some(), lost: false };
    Ok(Json(domains.into_iter().map(view).collect()))
}

pub async fn adoption(State(node): State<Arc<NodeHttp>>, Path(wanted): Path<String>) -> Answer<Json<AdoptionProposal>> {
    let domains = node.hv().list().await?;
    let is_it = |d: &&DomainBrief| d.name == wanted || d.uuid.to_string() == wanted.to_ascii_lowercase();
    let Some(brief) = domains.iter().find(is_it) else {
        return Err(Error::not_found("libvirt domain", &wanted).hint("`vmkeep vm list -A` shows all domains").into());
    };
    if !brief.persistent {
        let words = format!("the domain '{}' is transient: libvirt forgets it when it stops", brief.name);
        return Err(Error::refused(words)
            .hint(format!("make it persistent first: virsh dumpxml {0} > {0}.xml; virsh define {0}.xml", brief.name))
            .into());
    }
    let xml = node.hv().xml(brief.uuid, current(brief)).await?;
    let stored = node.hv().xml(brief.uuid, XmlKind::Inactive).await?;
    let seed = match domain::seed_of(&xml) {
        Some(path) => tokio::task::spawn_blocking(move || seed::read(&path)).await.ok().flatten(),
        None => None,
    };
    Ok(Json(AdoptionProposal { ours: brief.metadata.is_some(), ..domain::adopt(&xml, &stored, seed.as_deref())? }))
}

pub async fn addresses(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>) -> Answer<Json<Vec<AddressView>>> {
    let brief = node.our_domain(&uid).await?;
    if !brief.state.is_live() {
        return Ok(Json(Vec::new()));
    }
    let found = node.hv().addresses(brief.uuid).await?;
    let nics = parts::facts(&node.hv().xml(brief.uuid, XmlKind::Live).await?).nics;
    let stale = if found.iter().any(|a| a.source == AddressSource::Arp) { stale_neighbours().await } else { BTreeSet::new() };
    let view = |a: GuestAddress| AddressView {
        nic: nics.get(&a.mac.to_ascii_lowercase()).cloned(),
        source: source(&a, &stale).into(),
        // The neighbour table knows no prefix.
        address: if a.prefix == 0 { a.address.to_string() } else { format!("{}/{}", a.address, a.prefix) },
        mac: a.mac,
    };
    Ok(Json(best(found).into_iter().map(view).collect()))
}

fn source(address: &GuestAddress, stale: &BTreeSet<IpAddr>) -> &'static str {
    match address.source {
        AddressSource::Lease => "lease",
        AddressSource::Agent => "agent",
        AddressSource::Arp if stale.contains(&address.address) => "arp (stale)",
        AddressSource::Arp => "arp",
    }
}

/// Each address once, from its best source; loopback is nobody's, link-local comes last.
fn best(mut found: Vec<GuestAddress>) -> Vec<GuestAddress> {
    let rank = |source| match source {
        AddressSource::Agent => 0,
        AddressSource::Lease => 1,
        AddressSource::Arp => 2,
    };
    let local = |a: &GuestAddress| match a.address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    found.retain(|a| !a.address.is_loopback());
    // What the guest says of itself wins; an old lease may be there beside it.
    found.sort_by_key(|a| (local(a), rank(a.source), a.address));
    let mut seen = BTreeSet::new();
    found.retain(|a| seen.insert((a.mac.to_ascii_lowercase(), a.address)));
    found
}

/// Addresses whose ARP entry the kernel has not confirmed of late.
async fn stale_neighbours() -> BTreeSet<IpAddr> {
    let mut ip = tokio::process::Command::new("ip");
    ip.args(["-json", "neigh", "show"]).env("LC_ALL", "C.UTF-8").kill_on_drop(true);
    match tokio::time::timeout(TOOL_PATIENCE, ip.output()).await {
        Ok(Ok(output)) => stale_in(&output.stdout),
        _ => BTreeSet::new(),
    }
}

fn stale_in(json: &[u8]) -> BTreeSet<IpAddr> {
    let neighbours: Vec<serde_json::Value> = serde_json::from_slice(json).unwrap_or_default();
    let is_stale = |n: &&serde_json::Value| n["state"].as_array().is_some_and(|s| s.iter().any(|w| w == "STALE" || w == "FAILED"));
    neighbours.iter().filter(is_stale).filter_map(|n| n["dst"].as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(address: &str, source: AddressSource) -> GuestAddress {
        GuestAddress { mac: "52:54:00:00:00:01".into(), address: address.parse().expect("an address"), prefix: 24, source }
    }

    #[test]
    fn each_address_once_from_its_best_source() {
        let found = vec![
            address("fe80::1", AddressSource::Agent),
            address("10.0.0.9", AddressSource::Arp),
            address("10.0.0.5", AddressSource::Lease),
            address("10.0.0.5", AddressSource::Agent),
            address("127.0.0.1", AddressSource::Agent),
        ];
        let told: Vec<String> = best(found).iter().map(|a| format!("{} {:?}", a.address, a.source)).collect();
        assert_eq!(told, ["10.0.0.5 Agent", "10.0.0.9 Arp", "fe80::1 Agent"]);
    }

    #[test]
    fn stale_neighbours_are_marked() {
        let json =
            br#"[{"dst":"10.0.0.9","dev":"vmk0","lladdr":"52:54:00:00:00:01","state":["STALE"]},{"dst":"10.0.0.8","state":["REACHABLE"]}]"#;
        let stale = stale_in(json);
        assert_eq!(source(&address("10.0.0.9", AddressSource::Arp), &stale), "arp (stale)");
        assert_eq!(source(&address("10.0.0.8", AddressSource::Arp), &stale), "arp");
        assert!(stale_in(b"nonsense").is_empty());
    }
}
