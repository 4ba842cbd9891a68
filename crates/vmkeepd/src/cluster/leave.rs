//! A member takes itself out and is a single host again, which can join anew.
//!
//! ```text
//!  leaving.toml:  ask ───────────────────► out ───────────────────► gone
//!                 daemon anew, serves       out of etcd's members,    etcd ended, certificates, keys
//!                 nobody; forgotten by      until it succeeds         and this file removed
//!                 the store in one txn
//! ```
//! A host that is no control node asks one to forget it: [`super::farewell`]. The agent does not run meanwhile, so nothing writes
//! the node's keys again. Until the store has forgotten the node a refusal leaves everything as it was; after that it goes on to
//! the end, over crashes too.
//!
//! `forget` begins at the end: for a host that was taken out by others, or whose cluster is no more. Domains that run are
//! libvirt's and run on in every case.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use vmkeep_server::app::{self, leaving};
use vmkeep_store::crash::point;
use vmkeep_store::etcd::admin;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_types::cluster::{ClusterLeave, ClusterLeft, MemberRole};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::etcd::{Etcd, client_url, peer_url};
use super::farewell::{self, Farewell};
use super::form::failure_file;
use super::libvirt::Libvirt;
use super::status::MEMBER_PATIENCE;
use super::{Cluster, ETCD_PATIENCE, LOOK_AGAIN, Restart, erase, refused, rights, vip};
use crate::config::Config;
use crate::member::{Member, Paths, read_toml, write_toml, write_whole};

/// What is under way, at `cluster/leaving.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Leaving {
    node: Name,
    address: String,
    endpoints: Vec<String>,
    /// It may write the cluster's records itself.
    #[serde(default)]
    control: bool,
    /// etcd is not the cluster's own.
    #[serde(default)]
    external: bool,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Ask,
    Out,
    Erase,
}

impl Leaving {
    fn file(paths: &Paths) -> PathBuf {
        paths.dir.join("leaving.toml")
    }

    fn load(paths: &Paths) -> anyhow::Result<Option<Self>> {
        read_toml(&Self::file(paths))
    }

    fn save(&mut self, paths: &Paths, step: Step) -> anyhow::Result<()> {
        self.step = step;
        write_toml(&Self::file(paths), self)
    }

    /// The members of etcd that stay.
    fn others(&self, paths: &Paths) -> EtcdConfig {
        let own = client_url(&self.address);
        paths.etcd_client(self.endpoints.iter().filter(|url| **url != own).cloned().collect())
    }
}

/// Notes the intent and lets the daemon begin anew with it.
///
/// # Errors
/// The disk's.
pub(super) fn begin(member: &Member, wish: &ClusterLeave, restart: &Restart) -> Result<ClusterLeft, Error> {
    let paths = member.paths();
    let step = if wish.forget { Step::Erase } else { Step::Ask };
    let mut leaving = Leaving {
        node: member.node.clone(),
        address: member.address.clone(),
        endpoints: member.etcd.endpoints.clone(),
        control: member.has(MemberRole::Control),
        external: member.etcd.external,
        step,
    };
    let _ = fs::remove_file(failure_file(&paths));
    leaving.save(&paths, step).map_err(refused)?;
    point("leave: begun");
    restart.ask();
    Ok(ClusterLeft { cluster: member.cluster, node: member.node.clone() })
}

impl Cluster {
    pub(super) async fn leave_it(&self, wish: &ClusterLeave) -> Result<ClusterLeft, Error> {
        let member = self.member()?;
        if wish.forget {
            return Err(Error::conflict(format!("'{}' is a member and its cluster answers", self.node)).hint("leave without --forget"));
        }
        // Others read only what is their own.
        if member.has(MemberRole::Control) || !rights::in_force(self.store.as_ref()).await? {
            leaving::may_leave(self.store.as_ref(), &self.node).await?;
        } else {
            farewell::say(self.store.as_ref(), &member.paths(), &self.node, Farewell::MayI).await?;
        }
        if member.has_etcd() {
            self.etcd_goes_on_without(&peer_url(&member.address)).await?;
        }
        begin(member, wish, &self.restart)
    }

    /// Without the member of etcd at `peer` a majority of the others must be there.
    pub(super) async fn etcd_goes_on_without(&self, peer: &str) -> Result<(), Error> {
        if self.is_external() {
            return Ok(());
        }
        let all = self.etcd_store()?.members().await.map_err(app::store_error)?;
        let others: Vec<_> = all.iter().filter(|m| !m.learner && !m.peer_urls.iter().any(|url| url == peer)).collect();
        let asked = others.iter().map(|other| async {
            let url = other.client_urls.first()?.clone();
            tokio::time::timeout(MEMBER_PATIENCE, admin::status(&self.only(url).ok()?)).await.ok()?.ok()
        });
        let there = join_all(asked).await.into_iter().flatten().count();
        if there * 2 > others.len() {
            return Ok(());
        }
        Err(Error::conflict(format!("of etcd's {} other members {there} answer: without this one it would stand still", others.len()))
            .hint("mend or remove the silent ones first: vmkeep cluster status"))
    }
}

/// A control node leaves, which its process with the control plane carries out.
///
/// # Errors
/// The disk's.
pub(super) fn is_begun_by_control(paths: &Paths) -> anyhow::Result<bool> {
    Ok(Leaving::load(paths)?.is_some_and(|leaving| leaving.control))
}

/// Before anything is served: goes on with what was begun.
///
/// # Errors
/// The disk's.
pub async fn resume(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let paths = Paths::new(&config.store);
    let Some(mut leaving) = Leaving::load(&paths)? else { return Ok(()) };
    if leaving.step == Step::Ask {
        let Some(asked) = shutdown.run_until_cancelled(ask(&leaving, &paths)).await else { return Ok(()) };
        if let Err(error) = asked {
            tracing::error!(%error, "this host does not leave its cluster");
            write_whole(&failure_file(&paths), 0o600, format!("this host did not leave the cluster: {error}").as_bytes())?;
            return fs::remove_file(Leaving::file(&paths)).context("cannot remove leaving.toml");
        }
        leaving.save(&paths, Step::Out)?;
        point("leave: forgotten");
    }
    if leaving.step == Step::Out {
        let out = async {
            if !leaving.external {
                out_of_etcd(&leaving, &paths).await;
            }
        };
        let Some(()) = shutdown.run_until_cancelled(out).await else { return Ok(()) };
        leaving.save(&paths, Step::Erase)?;
        point("leave: out of etcd");
    }
    Libvirt::default().take_away(&paths)?;
    vip::Keepalived::new(paths.clone()).set(None)?;
    Etcd::new(paths.clone()).stop().await?;
    erase(&paths, &Leaving::file(&paths))?;
    tracing::info!("this host is in no cluster any more");
    Ok(())
}

/// The store forgets this node. Its own etcd is needed for that where it makes the majority.
async fn ask(leaving: &Leaving, paths: &Paths) -> Result<(), Error> {
    let etcd = Etcd::new(paths.clone());
    if !leaving.external && leaving.endpoints.contains(&client_url(&leaving.address)) {
        etcd.start().map_err(refused)?;
    }
    let client = paths.etcd_client(leaving.endpoints.clone());
    let begin = std::time::Instant::now();
    loop {
        let tried = match EtcdStore::connect(&client).await.map_err(app::store_error) {
            Ok(store) if app::cluster::is_removed(&store, &leaving.node).await.map_err(app::store_error)? => return Ok(()),
            Ok(store) if leaving.control || !rights::in_force(&store).await? => leaving::forget(&store, &leaving.node).await,
            Ok(store) => farewell::say(&store, paths, &leaving.node, Farewell::Forget).await,
            Err(error) => Err(error),
        };
        match tried {
            Err(error) if error.code == Code::Unavailable && begin.elapsed() < ETCD_PATIENCE => tokio::time::sleep(LOOK_AGAIN).await,
            done => return done,
        }
    }
}

/// Tried until it is so: this host is no member of the cluster already, and a member of etcd that never comes back costs the
/// others a vote.
async fn out_of_etcd(leaving: &Leaving, paths: &Paths) {
    let peer = peer_url(&leaving.address);
    let client = leaving.others(paths);
    loop {
        let removed = async {
            let store = EtcdStore::connect(&client).await?;
            let own = store.members().await?.into_iter().find(|member| member.peer_urls.contains(&peer));
            match own {
                Some(own) => store.remove_member(own.id).await,
                None => Ok(()),
            }
        };
        match removed.await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "this host's etcd is not let out yet"),
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
