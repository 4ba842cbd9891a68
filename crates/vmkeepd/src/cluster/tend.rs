//! What a member does for its cluster as long as it runs: its record says that it is there, `member.toml` knows who has etcd,
//! certificates are made anew before they end, and etcd is copied to a file.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmkeep_server::app::{cluster as members, recovery, store_error, vip};
use vmkeep_store::{StoreError, keys};
use vmkeep_types::cluster::{MemberRole, MemberWord};
use vmkeep_types::error::Error;

use super::etcd::client_url;
use super::libvirt::Libvirt;
use super::pki::{self, Authority, Freshness, Purpose};
use super::status::problem;
use super::{Cluster, refused, renew, strangers};
use crate::member::Member;

const EVERY: Duration = Duration::from_secs(20);
/// Between two looks of a control node at what makes it begin anew.
const OFTEN: Duration = Duration::from_secs(3);
/// Looks at which etcd refuses this host, before that counts.
const DENIED_MAX: u32 = 2;

/// Goes on until `shutdown`.
pub fn begin(cluster: &Arc<Cluster>, member: &Member, shutdown: &CancellationToken) {
    if member.has_etcd() {
        let (etcd, stop) = (cluster.etcd(), shutdown.clone());
        tokio::spawn(async move { etcd.keep(&stop).await });
    }
    tokio::spawn(run(cluster.clone(), member.clone(), shutdown.clone()));
}

async fn run(cluster: Arc<Cluster>, mut known: Member, shutdown: CancellationToken) {
    let libvirt = Arc::new(Libvirt::default());
    let mut seen = strangers::Seen::new();
    loop {
        if let Err(error) = cluster.follow_roles(&mut known).await {
            tracing::warn!(%error, "this host takes up its roles later");
        }
        if let Err(error) = cluster.tend(&mut known, &libvirt).await {
            tracing::debug!(%error, "the cluster is looked after later");
        }
        if known.has(MemberRole::Control)
            && !known.etcd.external
            && let Err(error) = cluster.let_strangers_out(&mut seen).await
        {
            tracing::debug!(%error, "etcd's members are looked after later");
        }
        if known.has(MemberRole::Control)
            && !known.etcd.external
            && let Err(error) = cluster.defragment_when_due().await
        {
            tracing::warn!(%error, "etcd is defragmented later");
        }
        if shutdown.run_until_cancelled(cluster.until_due(&known)).await.is_none() {
            return;
        }
    }
}

/// Begins the process anew when the store is another incarnation than the one it began with (what it remembers is of a history
/// that is no more) or does not know this host, or when this host's certificate was made anew (connections to etcd keep the one they were opened with). Goes
/// on until `shutdown`.
pub async fn same_life(cluster: Arc<Cluster>, shutdown: CancellationToken) {
    let file = cluster.paths().node_cert();
    // Control nodes are few, and people wait for the API's address.
    let every = if cluster.member().is_ok_and(|member| member.has(MemberRole::Control)) { OFTEN } else { EVERY };
    let written = || file.metadata().and_then(|meta| meta.modified()).ok();
    let (mut began, mut address, certificate, mut denied) = (None, None, written(), 0);
    loop {
        if written() != certificate {
            tracing::info!("this host's certificate was made anew; beginning anew with it");
            return cluster.restart.ask();
        }
        // The API listens on it from the start on.
        if let Ok(vip) = vip::show(cluster.store.as_ref()).await
            && *address.get_or_insert_with(|| vip.clone()) != vip
        {
            tracing::info!(?vip, "the API has another address; beginning anew with it");
            return cluster.restart.ask();
        }
        match recovery::incarnation(cluster.store.as_ref()).await {
            Ok(now) if *began.get_or_insert(now) != now => {
                tracing::warn!(incarnation = now, "the store was recovered; beginning anew");
                return cluster.restart.ask();
            }
            Ok(_) => denied = 0,
            Err(error) => {
                tracing::debug!(%error, "the incarnation is asked later");
                // Rights change while others ask; who is refused again and again is not known there.
                denied = match cluster.store.revision().await {
                    Err(StoreError::Denied(_)) => denied + 1,
                    // One that is silent says nothing of it.
                    Err(_) => denied,
                    Ok(_) => 0,
                };
                if denied > DENIED_MAX {
                    tracing::error!("etcd does not know this host any more; beginning anew without it");
                    return cluster.restart.ask();
                }
            }
        }
        let rest = if denied > 0 { OFTEN } else { every };
        if shutdown.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            return;
        }
    }
}

impl Cluster {
    /// Sooner where a control node is not to be one any more: others have taken its etcd out.
    async fn until_due(&self, known: &Member) {
        let begin = tokio::time::Instant::now();
        while begin.elapsed() < EVERY {
            let rest = if known.has(MemberRole::Control) { OFTEN } else { EVERY };
            tokio::time::sleep(rest).await;
            if known.has(MemberRole::Control) && self.has_other_roles(known).await {
                return;
            }
        }
    }

    async fn tend(&self, known: &mut Member, libvirt: &Arc<Libvirt>) -> Result<(), Error> {
        let mut problems = Vec::new();
        if let Err(error) = self.renew(known).await {
            tracing::warn!(%error, "this member's certificates are made anew later");
            problems.push(problem(format!("its certificates cannot be made anew: {}", error.message), "journalctl -u vmkeepd"));
        }
        let (keeper, config, member) = (libvirt.clone(), self.config.clone(), known.clone());
        let kept = tokio::task::spawn_blocking(move || keeper.keep(&config, &member)).await;
        problems.extend(kept.map_err(|e| Error::internal(e.to_string()))?);
        if members::is_removed(self.store.as_ref(), &self.node).await.map_err(store_error)? {
            tracing::error!(node = %self.node, "this host was taken out of the cluster");
            self.restart.ask();
        }
        if known.has(MemberRole::Control)
            && let Err(error) = self.keep_vip(known).await
        {
            problems
                .push(problem(format!("the API's address is not kept here: {}", error.message), "mend that; see vmkeep cluster vip show"));
        }
        let certificate_until = pki::validity(&known.paths().node_cert()).ok().map(|(_, until)| until);
        let word = MemberWord { version: env!("CARGO_PKG_VERSION").into(), level: keys::LEVEL_NOW, certificate_until, problems };
        members::arrived(self.store.as_ref(), &self.node, word).await?;
        if known.has(MemberRole::Control) {
            self.keep_rights().await?;
        }
        // Who has it, and copies of it, are its keeper's.
        if known.etcd.external {
            return Ok(());
        }
        if known.has(MemberRole::Control) {
            self.back_up_when_due().await?;
        }
        let records = members::members(self.store.as_ref()).await?;
        let mut endpoints: Vec<String> = records.iter().filter(|m| m.has_etcd()).map(|m| client_url(&m.address)).collect();
        endpoints.sort();
        let mut old = known.etcd.endpoints.clone();
        old.sort();
        if endpoints.is_empty() || endpoints == old {
            return Ok(());
        }
        known.etcd.endpoints.clone_from(&endpoints);
        known.save(&self.config.store).map_err(refused)?;
        tracing::info!(endpoints = endpoints.join(" "), "other members have etcd now");
        Ok(())
    }

    /// Control nodes hold the authority's key, the others ask one. etcd reads its files again for each handshake; this host's
    /// processes see the new files and begin anew.
    async fn renew(&self, member: &Member) -> Result<(), Error> {
        let paths = member.paths();
        let now = jiff::Timestamp::now();
        let vip = vip::show(self.store.as_ref()).await?.filter(|_| member.has(MemberRole::Control));
        let vip = vip.map(|vip| vip::ip(&vip)).transpose()?;
        let nameless = vip.is_some_and(|ip| !pki::names(&paths.node_cert(), ip.into()).unwrap_or(false));
        let is_old = |purpose: &Purpose| {
            let aged = matches!(pki::freshness(&purpose.cert(&paths), now), Ok(Freshness::Old) | Err(_));
            aged || (nameless && *purpose == Purpose::Node)
        };
        let old: Vec<Purpose> = Purpose::of(&member.roles).into_iter().filter(is_old).collect();
        if old.is_empty() {
            return Ok(());
        }
        if paths.ca_key().exists() {
            let authority = Authority::open(&paths).map_err(refused)?.for_a_life_of(self.config.certificate_life());
            let authority = authority.naming(vip.map(|ip| ip.to_string()));
            pki::issue_own(&authority, &paths, &self.node, &member.address, &old).map_err(refused)?;
        } else {
            renew::fetch(&paths, &self.node, &members::members(self.store.as_ref()).await?, &old).await?;
        }
        tracing::info!(?old, "this member's certificates were made anew");
        Ok(())
    }
}
