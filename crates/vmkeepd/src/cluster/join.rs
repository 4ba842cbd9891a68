//! A host joins another's cluster.
//!
//! ```text
//!  keys, requests ─► admission at a control node ─► certificates ─► etcd as a learner ─► its vote ─► member.toml ─► anew
//! ```
//! A refusal changes nothing on either side. After the admission every step can be repeated with the same token, until the
//! daemon has started as a member.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;
use vmkeep_agent::hypervisor::{DomainBrief, HvError, Hypervisor};
use vmkeep_server::app::cluster::TokenText;
use vmkeep_store::crash::point;
use vmkeep_store::etcd::EtcdStore;
use vmkeep_store::keys;
use vmkeep_types::cluster::{Admission, Admitted, ClusterFormed, ClusterJoin, GuestThere};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::record::VmRecord;

use super::etcd::{Begin, Listen, client_url, peer_url};
use super::{Cluster, ETCD_PORTS, OUR_PORTS, admit, external, internal, pki, refused, until_etcd, usable, wire};
use crate::member::{API_PORT, Member, MemberEtcd, Paths, write_whole};

/// VMs named in a refusal.
const NAMES_TOLD: usize = 5;
/// A daemon that has just begun has its connection to libvirt a moment later.
const LIBVIRT_PATIENCE: Duration = Duration::from_secs(5);
const LIBVIRT_LOOK_EVERY: Duration = Duration::from_millis(100);

impl Cluster {
    pub(super) async fn join_other(&self, wish: ClusterJoin) -> Result<ClusterFormed, Error> {
        self.without_vms().await?;
        let There { guests, warnings } = if wish.witness { There::default() } else { self.there().await? };
        let token = TokenText::parse(&wish.token)?;
        let (host, port) = host_and_port(&wish.address)?;
        let stream = wire::dial(&host, port).await?;
        let from_here = || stream.local_addr().map(|at| at.ip().to_string()).map_err(|e| Error::internal(e.to_string()));
        let address = wish.own_address.clone().map_or_else(from_here, Ok)?;
        let paths = self.paths();
        let address = usable(&address, &OUR_PORTS)?.to_string();
        // An etcd that runs here is of an attempt that broke off.
        let free = if self.etcd().is_running() { Ok(()) } else { usable(&address, &ETCD_PORTS).map(drop) };
        let fresh = !paths.dir.exists();
        paths.make().map_err(refused)?;
        let asked = async {
            let no_etcd = free.err().map(|error| error.message);
            let admission = Admission { no_etcd, ..self.admission(&wish, address.clone(), &paths, guests)? };
            wire::post::<Admitted>(stream, &host, &token.ca, admit::PATH, &admission).await
        };
        let admitted = match asked.await {
            Ok(admitted) => admitted,
            Err(error) => {
                // Lost on the way it can come again; refused, nothing of it stays.
                if fresh && error.code != Code::Unavailable {
                    let _ = fs::remove_dir_all(&paths.dir);
                }
                return Err(error);
            }
        };
        point("join: admitted");
        self.take_up(&admitted, &address, &paths).map_err(refused)?;
        point("join: certificates");
        if admitted.initial_cluster.is_some() {
            self.begin_etcd(&admitted, &address, &paths).await?;
        }
        let mut endpoints = admitted.endpoints.clone();
        if admitted.initial_cluster.is_some() && !endpoints.contains(&client_url(&address)) {
            endpoints.push(client_url(&address));
        }
        let member = Member {
            cluster: admitted.cluster,
            node: self.node.clone(),
            roles: admitted.roles.clone(),
            address: address.clone(),
            etcd: MemberEtcd { endpoints, external: admitted.etcd.is_some() },
            dir: paths.dir,
        };
        member.save(&self.config.store).map_err(refused)?;
        point("join: a member");
        self.restart.ask();
        Ok(ClusterFormed { cluster: member.cluster, node: member.node, address, roles: member.roles, warnings })
    }

    /// VMs of its own are known to its own store alone: in the cluster's they would be foreign.
    async fn without_vms(&self) -> Result<(), Error> {
        let vms = vmkeep_server::app::list::<VmRecord>(self.store.as_ref(), keys::ALL_VMS).await?;
        if vms.is_empty() {
            return Ok(());
        }
        let names = told(vms.iter().map(|vm| vm.value.spec.name.to_string()));
        Err(Error::conflict(format!("this host has {} VMs of its own: {names}", vms.len()))
            .hint("let them go with 'vmkeep vm release NAME' (they run on) and adopt them again after joining, or form the cluster from this host"))
    }

    async fn there(&self) -> Result<There, Error> {
        let Some(hypervisor) = self.hypervisor.get() else { return Ok(There::default()) };
        let domains = domains(hypervisor.as_ref()).await.map_err(|e| {
            Error::refused(format!("cannot tell what runs on this host: {e}"))
                .hint("vmkeep host check; a machine without libvirt joins as a witness: --witness")
        })?;
        let (ours, others): (Vec<_>, Vec<_>) = domains.into_iter().filter(|domain| domain.state.is_live()).partition(DomainBrief::is_ours);
        let guests = ours.into_iter().map(|domain| GuestThere { vm: domain.uuid, name: domain.name }).collect();
        let warnings = (!others.is_empty()).then(|| not_counted(others)).into_iter().collect();
        Ok(There { guests, warnings })
    }

    fn admission(&self, wish: &ClusterJoin, address: String, paths: &Paths, guests: Vec<GuestThere>) -> Result<Admission, Error> {
        Ok(Admission {
            token: wish.token.trim().to_owned(),
            node: self.node.clone(),
            address,
            machine_id: self.machine_id()?,
            version: env!("CARGO_PKG_VERSION").into(),
            level: keys::LEVEL_NOW,
            now: jiff::Timestamp::now(),
            witness: wish.witness,
            control: wish.control,
            no_etcd: None,
            node_request: pki::request(&paths.node_key()).map_err(internal)?,
            etcd_request: pki::request(&paths.etcd_key()).map_err(internal)?,
            guests,
        })
    }

    pub(super) fn take_up(&self, admitted: &Admitted, address: &str, paths: &Paths) -> anyhow::Result<()> {
        write_whole(&paths.ca(), 0o644, admitted.ca.as_bytes())?;
        if let Some(key) = &admitted.ca_key {
            write_whole(&paths.ca_key(), 0o600, key.as_bytes())?;
        }
        write_whole(&paths.node_cert(), 0o644, pki::chain(&admitted.node_cert, &admitted.ca).as_bytes())?;
        write_whole(&paths.etcd_cert(), 0o644, pki::chain(&admitted.etcd_cert, &admitted.ca).as_bytes())?;
        if let Some(access) = &admitted.etcd {
            external::lay_down(paths, access)?;
        }
        let Some(initial) = &admitted.initial_cluster else { return Ok(()) };
        self.etcd().configure(admitted.cluster, &self.node, address, &Begin::Existing(initial.clone()), Listen::Host)
    }

    /// etcd runs here, has what the others have, and votes.
    pub(super) async fn begin_etcd(&self, admitted: &Admitted, address: &str, paths: &Paths) -> Result<(), Error> {
        let etcd = self.etcd();
        etcd.start().map_err(refused)?;
        point("join: etcd started");
        let others = paths.etcd_client(admitted.endpoints.clone());
        let peer = peer_url(address);
        let votes = || async {
            let store = EtcdStore::connect(&others).await.map_err(|e| e.to_string())?;
            let members = store.members().await.map_err(|e| e.to_string())?;
            let own = members.iter().find(|m| m.peer_urls.contains(&peer)).ok_or("the cluster took this member out again")?;
            if !own.learner && !own.name.is_empty() {
                return Ok(());
            }
            store.promote(own.id).await.map_err(|e| e.to_string())
        };
        until_etcd(&etcd, "cannot join", votes).await
    }
}

/// What runs on a host that joins.
#[derive(Default)]
struct There {
    /// With vmkeep's mark, of whichever cluster: nothing may run twice.
    guests: Vec<GuestThere>,
    warnings: Vec<String>,
}

async fn domains(hypervisor: &dyn Hypervisor) -> Result<Vec<DomainBrief>, HvError> {
    let begun = Instant::now();
    loop {
        match hypervisor.list().await {
            Err(HvError::Disconnected(_)) if begun.elapsed() < LIBVIRT_PATIENCE => tokio::time::sleep(LIBVIRT_LOOK_EVERY).await,
            told => return told,
        }
    }
}

/// Placement knows what is vmkeep's.
fn not_counted(domains: Vec<DomainBrief>) -> String {
    let names = told(domains.into_iter().map(|domain| domain.name));
    format!(
        "domains run here that are not vmkeep's: {names}; they stay as they are, and what they need is not counted \
         ('vmkeep vm adopt NAME' takes one over)"
    )
}

/// The first of them.
fn told(mut names: impl Iterator<Item = String>) -> String {
    let first: Vec<String> = names.by_ref().take(NAMES_TOLD).collect();
    first.join(", ") + if names.next().is_some() { ", …" } else { "" }
}

/// `10.0.0.1`, `10.0.0.1:7443`, `[fd00::1]:7443`, `fd00::1`, `https://…`.
fn host_and_port(text: &str) -> Result<(String, u16), Error> {
    let bare = text.trim().trim_start_matches("https://").trim_end_matches('/');
    if let Ok(ip) = bare.parse::<std::net::IpAddr>() {
        return Ok((ip.to_string(), API_PORT));
    }
    let wrong = || Error::invalid(format!("'{text}' is no address of a control node")).hint("write it like 10.0.0.1 or 10.0.0.1:7443");
    let authority: http::uri::Authority = bare.parse().map_err(|_| wrong())?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host, authority.port_u16().unwrap_or(API_PORT)))
}

#[cfg(test)]
mod tests {
    use vmkeep_agent::hypervisor::fake::FakeHypervisor;

    use super::*;

    #[tokio::test]
    async fn who_has_no_connection_yet_waits_for_it() {
        let hypervisor = FakeHypervisor::new();
        hypervisor.disconnect();
        let comes = async {
            tokio::time::sleep(2 * LIBVIRT_LOOK_EVERY).await;
            hypervisor.reconnect();
        };
        let (told, ()) = tokio::join!(domains(&hypervisor), comes);
        assert_eq!(told.expect("it is there").len(), 0);
    }

    #[test]
    fn addresses_of_control_nodes() {
        let of = |text: &str| host_and_port(text).map(|(host, port)| format!("{host} {port}")).unwrap_or_default();
        assert_eq!(of("10.0.0.1"), "10.0.0.1 7443");
        assert_eq!(of("https://10.0.0.1:9/"), "10.0.0.1 9");
        assert_eq!(of("fd00::1"), "fd00::1 7443");
        assert_eq!(of("[fd00::1]:8"), "fd00::1 8");
        assert_eq!(of("node1.example"), "node1.example 7443");
        assert_eq!(of(""), "");
    }
}
