//! A member follows its own record: a compute node becomes a control node, and the other way round.
//!
//! ```text
//!  promoted: risen.toml ─► ask ══ mutual TLS ══► a control node: learner of etcd, rights, the authority's key
//!            ◄─ etcd started, votes ─ member.toml ─► anew as a control node
//!  demoted:  taken out of etcd by another ─► etcd ended, its data and the authority's key erased ─► member.toml ─► anew as a compute node
//! ```
//! `member.toml` comes last, so whatever breaks off is begun again 20 s later. VMs are not touched.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use vmkeep_server::app::{roles, store_error};
use vmkeep_store::crash::point;
use vmkeep_store::{keys, typed};
use vmkeep_types::cluster::{Admitted, MemberRecord, MemberRole};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::etcd::{client_url, peer_url};
use super::{Cluster, admit, ask, internal, pki, refused, vip};
use crate::listen::{Peer, refuse};
use crate::member::{Member, Paths, write_whole};

pub const PATH: &str = "/n/cluster/rise";

/// What a host that shall be a control node asks for: PEM requests over its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rise {
    node_request: String,
    etcd_request: String,
}

/// For the agent's listener of a host that may be a control node.
pub fn router(cluster: Arc<Cluster>) -> Router {
    Router::new().route(PATH, post(serve)).with_state(cluster)
}

async fn serve(State(cluster): State<Arc<Cluster>>, Extension(Peer(node)): Extension<Peer>, Json(wish): Json<Rise>) -> Response {
    // To its end, although the asker hang up.
    let work = tokio::spawn(async move {
        let raised = cluster.raise(&node, &wish).await;
        match &raised {
            Ok(_) => tracing::info!(%node, "a member becomes a control node"),
            Err(error) => tracing::warn!(%node, %error, "a member does not become a control node yet"),
        }
        raised
    });
    match work.await {
        Ok(Ok(admitted)) => Json(admitted).into_response(),
        Ok(Err(error)) => refuse(error),
        Err(_) => refuse(Error::internal("it failed inside vmkeepd").hint("journalctl -u vmkeepd shows where")),
    }
}

/// Laid down before etcd is set up here: what lies there without it is of an earlier time.
fn risen_file(paths: &Paths) -> PathBuf {
    paths.dir.join("risen")
}

fn is_same(a: &[MemberRole], b: &[MemberRole]) -> bool {
    a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
}

impl Cluster {
    pub(super) async fn promote_it(&self, node: &Name) -> Result<(), Error> {
        self.member()?;
        roles::promote(self.store.as_ref(), node).await?;
        point("promote: recorded");
        self.keep_rights().await
    }

    /// Its record first: what breaks off after that is the leader's to end, as for any member of etcd whose host has no business there.
    pub(super) async fn demote_it(&self, node: &Name) -> Result<(), Error> {
        let member = self.member()?;
        if *node == member.node {
            return Err(
                Error::conflict(format!("'{node}' is this host")).hint("ask another control node: vmkeep --server https://ADDRESS:7443")
            );
        }
        let record = self.record_of(node).await?.ok_or_else(|| Error::not_found("member", node))?;
        let peer = peer_url(&record.address);
        self.etcd_goes_on_without(&peer).await?;
        roles::demote(self.store.as_ref(), node).await?;
        point("demote: recorded");
        self.take_etcd_out(&peer).await?;
        self.keep_rights().await
    }

    async fn record_of(&self, node: &Name) -> Result<Option<MemberRecord>, Error> {
        let kept = typed::get_json::<MemberRecord>(self.store.as_ref(), &keys::member(node)).await.map_err(store_error)?;
        Ok(kept.map(|kept| kept.value))
    }

    /// A control node's answer to one that shall be one.
    async fn raise(&self, node: &Name, wish: &Rise) -> Result<Admitted, Error> {
        let _turn = self.turn.lock().await;
        if !self.member()?.has(MemberRole::Control) {
            return Err(Error::new(Code::Unavailable, format!("'{}' is no control node", self.node)));
        }
        let record = self.record_of(node).await?.filter(|record| record.roles.contains(&MemberRole::Control));
        let record = record.ok_or_else(|| Error::new(Code::Forbidden, format!("'{node}' is not to be a control node")))?;
        let certificates = admit::certificates(&self.authority()?, (node, &record.address), &wish.node_request, &wish.etcd_request)?;
        if self.gives_etcd(&record.roles) {
            self.learner(&peer_url(&record.address)).await?;
        }
        point("raise: a learner");
        self.keep_rights().await?;
        self.papers(&record, certificates).await
    }

    /// Whether this host's record and `member.toml` say the same.
    pub(super) async fn has_other_roles(&self, known: &Member) -> bool {
        self.record_of(&self.node).await.is_ok_and(|record| record.is_some_and(|record| !is_same(&record.roles, &known.roles)))
    }

    /// Makes this host what its record says. Begins the process anew when that is another thing than before.
    ///
    /// # Errors
    /// It is tried again later: the store's, the disk's, or no control node helps.
    pub(super) async fn follow_roles(&self, known: &mut Member) -> Result<(), Error> {
        let Some(record) = self.record_of(&self.node).await? else { return Ok(()) };
        let (is, shall) = (known.has(MemberRole::Control), record.roles.contains(&MemberRole::Control));
        let endpoints = match (is, shall) {
            (false, true) => self.rise(known).await?,
            (true, false) => self.step_down(known).await?,
            _ => return Ok(()),
        };
        known.roles.clone_from(&record.roles);
        known.etcd.endpoints = endpoints;
        known.save(&self.config.store).map_err(refused)?;
        point("roles: member.toml");
        let _ = fs::remove_file(risen_file(&known.paths()));
        tracing::info!(roles = ?known.roles, "this host has other roles; beginning anew with them");
        self.restart.ask();
        Ok(())
    }

    /// Whom to ask for etcd from now on.
    async fn rise(&self, known: &Member) -> Result<Vec<String>, Error> {
        let (paths, etcd) = (known.paths(), self.etcd());
        let risen = risen_file(&paths);
        if !risen.exists() {
            etcd.stop().await.map_err(refused)?;
            etcd.erase().map_err(refused)?;
            write_whole(&risen, 0o600, b"").map_err(refused)?;
        }
        let request = |key: &Path| pki::request(key).map_err(internal);
        let wish = Rise { node_request: request(&paths.node_key())?, etcd_request: request(&paths.etcd_key())? };
        let admitted: Admitted = ask::any(self.store.as_ref(), &paths, &self.node, PATH, &wish).await?;
        point("rise: admitted");
        self.take_up(&admitted, &known.address, &paths).map_err(refused)?;
        if known.etcd.external {
            return Ok(known.etcd.endpoints.clone());
        }
        self.begin_etcd(&admitted, &known.address, &paths).await?;
        let own = client_url(&known.address);
        let others = admitted.endpoints.into_iter().filter(|url| *url != own);
        Ok(others.chain([own.clone()]).collect())
    }

    async fn step_down(&self, known: &Member) -> Result<Vec<String>, Error> {
        let paths = known.paths();
        if !known.etcd.external {
            let peer = peer_url(&known.address);
            let voters = self.etcd_store()?.members().await.map_err(store_error)?;
            if voters.iter().any(|voter| voter.peer_urls.contains(&peer)) {
                return Err(Error::new(Code::Unavailable, "another control node has not taken this host's etcd out yet"));
            }
            let etcd = self.etcd();
            etcd.stop().await.map_err(refused)?;
            etcd.erase().map_err(refused)?;
            point("step down: etcd erased");
        }
        vip::Keepalived::new(paths.clone()).set(None).map_err(refused)?;
        remove_file(&paths.ca_key()).map_err(refused)?;
        let is_ours = |url: &&String| !known.etcd.external && **url == client_url(&known.address);
        Ok(known.etcd.endpoints.iter().filter(|url| !is_ours(url)).cloned().collect())
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}
