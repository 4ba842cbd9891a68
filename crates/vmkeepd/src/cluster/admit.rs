//! The control node's side of a join: one route on the TLS listener that takes no bearer but the join token in its body.
//!
//! ```text
//!  examine (nothing changed) ─► learner of etcd ─► txn: token used, member joining ─► certificates ─► answer
//! ```
//! A crash in between leaves a learner without a vote and without a member: the next attempt of the same host uses it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use vmkeep_server::app::{self, cluster as members};
use vmkeep_store::crash::point;
use vmkeep_store::etcd::EtcdStore;
use vmkeep_store::etcd::admin::EtcdMember;
use vmkeep_types::cluster::{Admission, Admitted, MemberRecord, MemberRole};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::etcd::peer_url;
use super::pki::{Authority, Purpose};
use super::{Cluster, LOOK_AGAIN, external, internal, when_settled};
use crate::listen::refuse;

pub const PATH: &str = "/join/v1";
/// For a learner to catch up: somewhat longer than its host waits for it.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(60);

/// For the TLS listener.
pub fn router(cluster: Arc<Cluster>) -> Router {
    Router::new().route(PATH, post(serve)).with_state(cluster)
}

async fn serve(State(cluster): State<Arc<Cluster>>, Json(body): Json<serde_json::Value>) -> Response {
    let wish = match members::read_admission(cluster.store.as_ref(), body).await {
        Ok(wish) => wish,
        Err(error) => {
            tracing::warn!(%error, "a host was not let in");
            return refuse(error);
        }
    };
    // To its end, although the joiner hang up.
    let work = tokio::spawn(async move {
        let admitted = cluster.admit(&wish).await;
        match &admitted {
            Ok(admitted) => tracing::info!(node = %wish.node, address = wish.address, roles = ?admitted.roles, "a host was let in"),
            Err(error) => tracing::warn!(node = %wish.node, address = wish.address, %error, "a host was not let in"),
        }
        admitted
    });
    match work.await {
        Ok(Ok(admitted)) => Json(admitted).into_response(),
        Ok(Err(error)) => refuse(error),
        Err(_) => refuse(Error::internal("the admission failed inside vmkeepd").hint("journalctl -u vmkeepd shows where")),
    }
}

impl Cluster {
    async fn admit(&self, wish: &Admission) -> Result<Admitted, Error> {
        let _turn = self.turn.lock().await;
        let authority = self.authority()?;
        let roles = members::examine(self.store.as_ref(), wish, jiff::Timestamp::now()).await?;
        // Before anything is changed: a request that is none.
        let certificates = certificates(&authority, (&wish.node, &wish.address), &wish.node_request, &wish.etcd_request)?;
        let peer = peer_url(&wish.address);
        if self.is_external() && wish.witness {
            return Err(Error::refused("this cluster is in an etcd of yours: a witness adds no vote to it"));
        }
        let etcd = if self.gives_etcd(&roles) {
            if let Some(why) = &wish.no_etcd {
                return Err(Error::refused(why.clone()).hint("the port must be free: ss -ltnp"));
            }
            Some(self.learner(&peer).await?)
        } else {
            None
        };
        point("admit: a learner");
        let record = match members::admit(self.store.as_ref(), wish, jiff::Timestamp::now()).await {
            Ok(record) => record,
            Err(error) => {
                take_back(self.etcd_store()?.as_ref(), &peer, etcd.as_ref()).await;
                return Err(error);
            }
        };
        point("admit: a member");
        self.keep_rights().await?;
        self.papers(&record, certificates).await
    }

    /// A host with these roles runs a member of etcd.
    pub(super) fn gives_etcd(&self, roles: &[MemberRole]) -> bool {
        !self.is_external() && roles.iter().any(|role| role.has_etcd())
    }

    pub(super) fn authority(&self) -> Result<Authority, Error> {
        let no_authority = |e: anyhow::Error| Error::refused(format!("this member lets nobody in: {e:#}")).hint("ask a control node");
        let authority = Authority::open(&self.paths()).map_err(no_authority)?;
        Ok(authority.for_a_life_of(self.config.certificate_life()))
    }

    /// What a member begins with, which has its record and, where it is to have etcd, its learner: that one gets its vote as soon as it
    /// has what the others have.
    pub(super) async fn papers(&self, record: &MemberRecord, certificates: Certificates) -> Result<Admitted, Error> {
        let (member, store, peer) = (self.member()?, self.etcd_store()?, peer_url(&record.address));
        let has_etcd = self.gives_etcd(&record.roles);
        if has_etcd {
            tokio::spawn(promote(store.clone(), peer.clone()));
        }
        let all = if self.is_external() { Vec::new() } else { store.members().await.map_err(app::store_error)? };
        let own = all.iter().filter(|m| !m.learner).flat_map(|m| m.client_urls.clone()).collect();
        let external = if self.is_external() { Some(external::taken_up(&member.paths(), self.endpoints_now()?)) } else { None };
        let external = external.transpose().map_err(internal)?;
        let control = record.roles.contains(&MemberRole::Control);
        let key = || std::fs::read_to_string(member.paths().ca_key()).map_err(|e| internal(e.into()));
        Ok(Admitted {
            cluster: member.cluster,
            roles: record.roles.clone(),
            ca: certificates.ca,
            ca_key: control.then(key).transpose()?,
            node_cert: certificates.node,
            etcd_cert: certificates.etcd,
            endpoints: external.as_ref().map_or(own, |access| access.endpoints.clone()),
            initial_cluster: has_etcd.then(|| initial_cluster(&all, &record.node, &peer)),
            etcd: external,
        })
    }

    /// A member of etcd without a vote, for the host at `peer`; there may be one already.
    pub(super) async fn learner(&self, peer: &str) -> Result<Learner, Error> {
        let store = self.etcd_store()?;
        let all = store.members().await.map_err(app::store_error)?;
        if all.iter().any(|m| m.peer_urls.iter().any(|url| url == peer)) {
            return Ok(Learner::Found);
        }
        if let Some(other) = all.iter().find(|m| m.learner) {
            return Err(Error::new(Code::Unavailable, format!("another host joins at this moment ({})", other.peer_urls.join(" ")))
                .hint("try again when it is through; if it never will be: vmkeep cluster remove NODE"));
        }
        when_settled(|| store.add_learner(peer)).await.map(|()| Learner::Made).map_err(app::store_error)
    }
}

/// Of one host, PEM.
pub(super) struct Certificates {
    ca: String,
    node: String,
    etcd: String,
}

/// Over the keys of these requests.
///
/// # Errors
/// A request that is none.
pub(super) fn certificates(
    authority: &Authority,
    (node, address): (&Name, &str),
    for_node: &str,
    for_etcd: &str,
) -> Result<Certificates, Error> {
    let issue = |request: &str, purpose| authority.issue(request, purpose, node, address).map_err(invalid);
    Ok(Certificates { ca: authority.pem().to_owned(), node: issue(for_node, Purpose::Node)?, etcd: issue(for_etcd, Purpose::Etcd)? })
}

fn invalid(error: anyhow::Error) -> Error {
    Error::invalid(format!("{error:#}"))
}

/// Whether this very call made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learner {
    Made,
    Found,
}

/// Gives a learner its vote when it has what the others have: a witness may not do it itself. A crash in between leaves it to the
/// next attempt of the same host, which is told that it has no vote.
async fn promote(store: Arc<EtcdStore>, peer: String) {
    let begin = Instant::now();
    while begin.elapsed() < PROMOTE_PATIENCE {
        tokio::time::sleep(LOOK_AGAIN).await;
        let Ok(all) = store.members().await else { continue };
        match all.iter().find(|m| m.peer_urls.contains(&peer)) {
            // It is named when it has started.
            Some(own) if own.learner && !own.name.is_empty() => drop(store.promote(own.id).await),
            Some(own) if own.learner => {}
            _ => return,
        }
    }
}

async fn take_back(store: &EtcdStore, peer: &str, learner: Option<&Learner>) {
    if learner != Some(&Learner::Made) {
        return;
    }
    let found = store.members().await.map(|all| all.into_iter().find(|m| m.peer_urls.iter().any(|url| url == peer)));
    if let Ok(Some(member)) = found
        && let Err(error) = store.remove_member(member.id).await
    {
        tracing::warn!(%error, peer, "a learner stays behind");
    }
}

/// The joiner is not named in etcd before it has started.
fn initial_cluster(all: &[EtcdMember], node: &Name, peer: &str) -> String {
    let of = |m: &EtcdMember| {
        let name = if m.peer_urls.iter().any(|url| url == peer) { node.to_string() } else { m.name.clone() };
        m.peer_urls.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",")
    };
    all.iter().map(of).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;
    use tower::ServiceExt;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_store::{Store, keys};

    use super::super::{Opened, Restart, pki};
    use super::*;
    use crate::config::Config;
    use crate::member::Paths;

    /// A control node, and a token to join it.
    struct Bed {
        router: Router,
        store: Arc<EmbeddedStore>,
        token: String,
        _dir: tempfile::TempDir,
    }

    impl Bed {
        async fn new() -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let paths = Paths::new(dir.path());
            let authority = Authority::open_or_make(&paths, uuid::Uuid::from_u128(1)).expect("an authority");
            let ca = pki::pem_fingerprint(authority.pem()).expect("PEM");
            let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
            let (token, _) = members::create_token(store.as_ref(), &ca, None, jiff::Timestamp::now()).await.expect("made");
            let config = Config { store: dir.path().to_owned(), ..Config::default() };
            let opened = Opened { store: store.clone(), etcd: None };
            let cluster = Cluster::new(config, Name::known("node1"), None, opened, Restart::new(CancellationToken::new()));
            Self { router: router(cluster), store, token, _dir: dir }
        }

        /// What a host of this version says of itself.
        fn wish(&self) -> Value {
            json!({
                "token": self.token, "node": "node2", "address": "10.0.0.2", "machine_id": "m2", "version": env!("CARGO_PKG_VERSION"),
                "level": keys::LEVEL_NOW, "now": jiff::Timestamp::now(), "witness": false, "node_request": "", "etcd_request": "",
            })
        }

        async fn check(&self, wish: Value, expect: Expect) {
            let before = self.store.revision().await.expect("a revision");
            let request = http::Request::post(PATH).header("content-type", "application/json").body(Body::from(wish.to_string()));
            let answer = self.router.clone().oneshot(request.expect("a request")).await.unwrap_or_else(|never| match never {});
            let status = answer.status().as_u16();
            let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
            let problem: Value = serde_json::from_slice(&bytes).expect("a problem as the joiner reads it");
            let told = |field: &str| problem[field].as_str().unwrap_or_default().to_owned();
            expect.assert_eq(&format!("{}\n", format!("{status} {}\n{}", told("detail"), told("hint")).trim_end()));
            assert_eq!(self.store.revision().await.expect("a revision"), before, "nothing was changed");
        }
    }

    fn with(mut wish: Value, field: &str, value: Value) -> Value {
        wish[field] = value;
        wish
    }

    fn without(mut wish: Value, field: &str) -> Value {
        wish.as_object_mut().expect("a map").remove(field).expect("it was there");
        wish
    }

    #[tokio::test]
    async fn a_host_of_another_version_is_told_which_they_are_whatever_it_says() {
        let bed = Bed::new().await;
        let newer = with(with(bed.wish(), "version", json!("9.0.0")), "level", json!(99));
        bed.check(
            with(newer.clone(), "later", json!({"by": "9.0"})),
            expect![[r#"
            409 'node2' runs vmkeep 9.0.0 (level 99), the cluster 0.1.0 (level 8)
            install the same version on both
        "#]],
        )
        .await;
        bed.check(
            without(newer.clone(), "witness"),
            expect![[r#"
            409 'node2' runs vmkeep 9.0.0 (level 99), the cluster 0.1.0 (level 8)
            install the same version on both
        "#]],
        )
        .await;
        bed.check(
            with(newer, "now", json!(["another", "spelling"])),
            expect![[r#"
            409 'node2' runs vmkeep 9.0.0 (level 99), the cluster 0.1.0 (level 8)
            install the same version on both
        "#]],
        )
        .await;
        let older = with(bed.wish(), "version", json!("0.0.1"));
        bed.check(
            without(without(older, "level"), "etcd_request"),
            expect![[r#"
            409 'node2' runs vmkeep 0.0.1 (level 0), the cluster 0.1.0 (level 8)
            install the same version on both
        "#]],
        )
        .await;
        bed.check(
            without(bed.wish(), "version"),
            expect![[r#"
            409 'node2' runs vmkeep ? (level 8), the cluster 0.1.0 (level 8)
            install the same version on both
        "#]],
        )
        .await;
    }

    #[tokio::test]
    async fn a_host_of_this_version_comes_past_it_and_versions_are_told_to_nobody_without_a_token() {
        let bed = Bed::new().await;
        let both = with(with(bed.wish(), "witness", json!(true)), "control", json!(true));
        bed.check(
            with(both, "later", json!(true)),
            expect![[r#"
            422 a witness has etcd only: it is no control node
        "#]],
        )
        .await;
        bed.check(
            without(bed.wish(), "address"),
            expect![[r#"
            422 this is no request to join: missing field `address`
        "#]],
        )
        .await;
        let wrong = bed.token.replacen(|c: char| c.is_ascii_digit(), "a", 4);
        bed.check(
            without(with(bed.wish(), "token", json!(wrong)), "version"),
            expect![[r#"
            401 the join token is wrong
            make a new one on a member: vmkeep cluster token
        "#]],
        )
        .await;
        bed.check(
            json!({}),
            expect![[r#"
            422 this is no join token
            make one on a member: vmkeep cluster token
        "#]],
        )
        .await;
    }
}
