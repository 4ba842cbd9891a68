//! What a member does for its cluster as long as it runs: its record says that it is there, `member.toml` knows who has etcd,
//! certificates are made anew before they end, and etcd is copied to a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmkeep_server::app::{cluster as members, recovery, store_error};
use vmkeep_types::cluster::MemberRole;
use vmkeep_types::error::Error;

use super::etcd::client_url;
use super::pki::{self, Authority, Freshness};
use super::{Cluster, refused};
use crate::member::Member;
use crate::tls;

const EVERY: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Renewed {
    Yes,
    No,
}

/// Goes on until `shutdown`.
pub fn begin(cluster: &Arc<Cluster>, member: &Member, shutdown: &CancellationToken) {
    if member.has_etcd() {
        let (etcd, stop) = (cluster.etcd(), shutdown.clone());
        tokio::spawn(async move { etcd.keep(&stop).await });
    }
    tokio::spawn(run(cluster.clone(), member.clone(), shutdown.clone()));
}

async fn run(cluster: Arc<Cluster>, mut known: Member, shutdown: CancellationToken) {
    loop {
        if let Err(error) = cluster.tend(&mut known).await {
            tracing::debug!(%error, "the cluster is looked after later");
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// Begins the process anew when the store is another incarnation than the one it began with: what it remembers is of a history
/// that is no more. Goes on until `shutdown`.
pub async fn same_life(cluster: Arc<Cluster>, shutdown: CancellationToken) {
    let mut began = None;
    loop {
        match recovery::incarnation(cluster.store.as_ref()).await {
            Ok(now) if *began.get_or_insert(now) != now => {
                tracing::warn!(incarnation = now, "the store was recovered; beginning anew");
                return cluster.restart.ask();
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the incarnation is asked later"),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

impl Cluster {
    async fn tend(&self, known: &mut Member) -> Result<(), Error> {
        if let (Renewed::Yes, Some(shown)) = (self.renew(known)?, self.shown.get()) {
            let paths = known.paths();
            let pair = tls::load_pair(&paths.node_cert(), &paths.node_key()).map_err(refused)?;
            *shown.lock().expect("no panic holds this lock") = pair;
        }
        if members::is_removed(self.store.as_ref(), &self.node).await.map_err(store_error)? {
            tracing::error!(node = %self.node, "this host was taken out of the cluster");
            self.restart.ask();
        }
        members::arrived(self.store.as_ref(), &self.node, env!("CARGO_PKG_VERSION")).await?;
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
        if let Some(store) = &self.etcd_store {
            let news = |url: &&String| !known.etcd.endpoints.contains(url);
            for url in endpoints.iter().filter(news) {
                store.add_endpoint(url).await.map_err(store_error)?;
            }
            for url in known.etcd.endpoints.iter().filter(|url| !endpoints.contains(url)) {
                store.remove_endpoint(url).await.map_err(store_error)?;
            }
        }
        known.etcd.endpoints.clone_from(&endpoints);
        known.save(&self.config.store).map_err(refused)?;
        tracing::info!(endpoints = endpoints.join(" "), "other members have etcd now");
        Ok(())
    }

    /// Control nodes hold the authority's key. etcd reads its files again for each handshake.
    fn renew(&self, member: &Member) -> Result<Renewed, Error> {
        let paths = member.paths();
        let now = jiff::Timestamp::now();
        let old = |file: PathBuf| matches!(pki::freshness(&file, now), Ok(Freshness::Old) | Err(_));
        if !paths.ca_key().exists() || !(old(paths.node_cert()) || old(paths.etcd_cert())) {
            return Ok(Renewed::No);
        }
        let authority = Authority::open(&paths).map_err(refused)?;
        pki::issue_own(&authority, &paths, &self.node, &member.address).map_err(refused)?;
        tracing::info!("this member's certificates were made anew");
        Ok(Renewed::Yes)
    }
}
