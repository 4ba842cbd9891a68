//! New certificates for members that do not hold the authority's key: compute nodes and witnesses. Those that are old, and those
//! that an earlier version did not know.
//!
//! ```text
//!  member, two thirds through ── mutual TLS with its present certificate ──► agent's port of a control node: same name, same
//!                             ◄──────────── certificates over the same keys ── address, another term
//! ```
//! The present certificate is the proof, so one that ended is not renewed: its host joins anew. A node that was taken out gets none.
//! Keys stay, so key and certificate fit at every instant.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use vmkeep_server::app::cluster as members;
use vmkeep_store::Store;
use vmkeep_types::cluster::MemberRecord;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::pki::{self, Authority, Purpose};
use super::{ask, internal, refused};
use crate::listen::{Peer, refuse};
use crate::member::{Paths, write_whole};
use crate::mtls::Mtls;

pub const PATH: &str = "/n/cluster/renew";

/// A PEM request for each certificate.
type Wish = BTreeMap<Purpose, String>;

/// Each with its authority behind it.
type Renewed = BTreeMap<Purpose, String>;

#[derive(Clone)]
struct Office {
    store: Arc<dyn Store>,
    paths: Paths,
    life: Duration,
}

/// For the agent's listener of a host that may hold the authority's key.
pub fn router(store: Arc<dyn Store>, paths: Paths, life: Duration) -> Router {
    Router::new().route(PATH, post(serve)).with_state(Office { store, paths, life })
}

async fn serve(State(office): State<Office>, Extension(Peer(node)): Extension<Peer>, Json(wish): Json<Wish>) -> Response {
    match issue(&office, &node, &wish).await {
        Ok(renewed) => {
            tracing::info!(%node, "its certificates were made anew");
            Json(renewed).into_response()
        }
        Err(error) => {
            tracing::warn!(%node, %error, "its certificates were not made anew");
            refuse(error)
        }
    }
}

async fn issue(office: &Office, node: &Name, wish: &Wish) -> Result<Renewed, Error> {
    let all = members::members(office.store.as_ref()).await?;
    let none = || Error::new(Code::Forbidden, format!("'{node}' is no member of this cluster"));
    let record = all.iter().find(|record| record.node == *node).ok_or_else(none)?;
    let authority = Authority::open(&office.paths)
        .map_err(|e| Error::refused(format!("this member makes no certificates: {e:#}")))?
        .for_a_life_of(office.life);
    let mut renewed = Renewed::new();
    for (purpose, request) in wish {
        let issued = authority.issue_chain(request, *purpose, node, &record.address);
        renewed.insert(*purpose, issued.map_err(|e| Error::invalid(format!("{e:#}")))?);
    }
    Ok(renewed)
}

/// Asks one control node after the other.
///
/// # Errors
/// None of them gave new ones.
pub async fn fetch(paths: &Paths, node: &Name, records: &[MemberRecord], purposes: &[Purpose]) -> Result<(), Error> {
    let mtls = Mtls::open(paths.clone()).map_err(refused)?;
    let mut last = ask::no_control();
    for control in ask::controls(records, node) {
        match renew(&mtls, control, paths, purposes).await {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn renew(mtls: &Mtls, (control, address): (&Name, String), paths: &Paths, purposes: &[Purpose]) -> Result<(), Error> {
    let request = |purpose: &Purpose| Ok((*purpose, pki::request(&purpose.key(paths)).map_err(internal)?));
    let wish: Wish = purposes.iter().map(request).collect::<Result<_, Error>>()?;
    let renewed: Renewed = ask::post(mtls, control, &address, PATH, &wish).await?;
    for purpose in purposes {
        let issued = renewed.get(purpose);
        let issued = issued.ok_or_else(|| Error::new(Code::Unavailable, format!("'{control}' answers without a certificate")))?;
        write_whole(&purpose.cert(paths), 0o644, issued.as_bytes()).map_err(refused)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;
    use uuid::Uuid;
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_store::{Op, Txn, keys, typed};
    use vmkeep_types::cluster::{MemberRole, MemberState};

    use super::*;
    use crate::listen::{self, Controls, Serve};

    const BOTH: [Purpose; 2] = [Purpose::Node, Purpose::Etcd];

    struct Bed {
        _dir: tempfile::TempDir,
        store: Arc<EmbeddedStore>,
        compute: Paths,
        address: String,
        stop: CancellationToken,
    }

    fn name(text: &'static str) -> Name {
        Name::known(text)
    }

    /// A control node `a` that listens, and a compute node `b` with certificates of so much life.
    async fn bed(life: Duration) -> Bed {
        let dir = tempfile::tempdir().expect("a folder");
        let (control, compute) = (Paths::new(&dir.path().join("a")), Paths::new(&dir.path().join("b")));
        let authority = Authority::open_or_make(&control, Uuid::from_u128(1)).expect("made");
        pki::issue_own(&authority, &control, &name("a"), "127.0.0.1", &BOTH).expect("issued");
        compute.make().expect("a folder");
        std::fs::copy(control.ca(), compute.ca()).expect("copied");
        pki::issue_own(&authority.for_a_life_of(life), &compute, &name("b"), "127.0.0.2", &BOTH).expect("issued");
        let store = Arc::new(EmbeddedStore::in_memory().expect("memory"));
        for (node, role) in [("a", MemberRole::Control), ("b", MemberRole::Compute)] {
            let record = MemberRecord {
                node: name(node),
                address: "127.0.0.1".into(),
                machine_id: node.into(),
                roles: vec![role],
                version: "1".into(),
                level: 2,
                state: MemberState::Member,
                since: jiff::Timestamp::UNIX_EPOCH,
                certificate_until: None,
                problems: Vec::new(),
            };
            store.txn(Txn::default().then(typed::put(keys::member(&record.node), &record))).await.expect("written");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let router = router(store.clone(), control.clone(), Duration::from_secs(1 << 20)).route("/n/other", get(async || "secret"));
        let stop = CancellationToken::new();
        let serve = Serve { router, shutdown: stop.clone(), connections: TaskTracker::new() };
        let controls = Arc::new(Controls::new(store.clone()));
        tokio::spawn(listen::agent(serve, listener, Mtls::open(control.clone()).expect("a pair"), controls));
        Bed { _dir: dir, store, compute, address, stop }
    }

    fn until(paths: &Paths) -> i64 {
        pki::validity(&paths.node_cert()).expect("a certificate").1.as_second()
    }

    #[tokio::test]
    async fn a_member_renews_by_its_present_certificate() {
        let bed = bed(Duration::from_secs(600)).await;
        let mtls = Mtls::open(bed.compute.clone()).expect("a pair");
        let (before, key) = (until(&bed.compute), std::fs::read(bed.compute.node_key()).expect("a key"));
        renew(&mtls, (&name("a"), bed.address.clone()), &bed.compute, &BOTH).await.expect("renewed");
        assert!(until(&bed.compute) > before + 86_400, "another term");
        assert_eq!(std::fs::read(bed.compute.node_key()).expect("a key"), key, "over the same key");
        // One that it did not have before, too.
        renew(&mtls, (&name("a"), bed.address.clone()), &bed.compute, &[Purpose::Qemu]).await.expect("made");
        assert!(Purpose::Qemu.cert(&bed.compute).exists());
        // With the new one, and nothing else than that is open to it.
        renew(&mtls, (&name("a"), bed.address.clone()), &bed.compute, &BOTH).await.expect("once more");
        let other = http::Request::get("/n/other").body(axum::body::Body::empty()).expect("a request");
        let answer = mtls.send(&name("a"), &bed.address, other).await.expect("an answer");
        assert_eq!(answer.status(), http::StatusCode::FORBIDDEN);
        // Taken out: none any more.
        bed.store.txn(Txn::default().then(Op::Delete(keys::member(&name("b"))))).await.expect("written");
        let error = renew(&mtls, (&name("a"), bed.address.clone()), &bed.compute, &BOTH).await.expect_err("refused");
        assert_eq!(error.message, "'b' is no member of this cluster");
        bed.stop.cancel();
    }

    #[tokio::test]
    async fn a_certificate_that_ended_is_no_proof() {
        let bed = bed(Duration::ZERO).await;
        // Certificates count whole seconds, the last one included.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mtls = Mtls::open(bed.compute.clone()).expect("a pair");
        let before = until(&bed.compute);
        renew(&mtls, (&name("a"), bed.address.clone()), &bed.compute, &BOTH).await.expect_err("refused");
        assert_eq!(until(&bed.compute), before);
        bed.stop.cancel();
    }
}
