//! The control plane: API, leader's loop.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use vmkeep_server::app;
use vmkeep_server::audit::Audit;
use vmkeep_server::context::Server;
use vmkeep_server::reconcile::ha::power::FenceAgents;
use vmkeep_server::reconcile::ha::storage::NoStorageFence;
use vmkeep_server::reconcile::ha::{Desk, Levers, host_clock};
use vmkeep_server::stonith;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::record::{Caller, Role};

use super::Part;
use super::compute::Compute;
use crate::cluster::{Cluster, admit, vip};
use crate::gate::{Gate, Remote};
use crate::listen::{self, CurrentTls};
use crate::member::API_PORT;
use crate::peer::Roles;
use crate::tls;
use crate::users::Users;

/// Begins to serve the API, and to lead when it is its turn.
pub async fn begin(part: &mut Part, local: Option<&Compute>, cluster: &Arc<Cluster>, hangup: Signal) -> anyhow::Result<Arc<Server>> {
    let (config, store, name) = (&part.config, part.store.clone(), part.name.clone());
    if local.is_some() {
        // Before the first request: a list of nodes shows the one that has just joined.
        app::note_joined(store.as_ref(), &name).await.context("the node cannot be entered into the store")?;
    }
    let remote = part.mtls.clone().map(|mtls| Remote { store: store.clone(), mtls });
    let gate = Arc::new(Gate { node: name.clone(), local: local.map(|compute| compute.router.clone()), remote });
    let audit_file = config.audit_file();
    let audit = Audit::open(&audit_file).with_context(|| format!("cannot write the audit log {}", audit_file.display()))?;
    let server = Server::new(store.clone(), gate, name.clone(), audit);
    let _ = server.cluster.set(cluster.clone());
    let _ = server.fence_agents.set(config.fence_agent_dir.clone());
    let api = vmkeep_server::router(server.clone());
    let member = part.member.clone();
    let members_api = part.serve(api.clone().merge(admit::router(cluster.clone())));

    let roles = Roles::new(config);
    let socket = listen::bind_unix(&config.socket, &roles)?;
    let guests = local.map(|compute| guest_routes(compute.router.clone(), server.clone())).unwrap_or_default();
    let serve = part.serve(api.clone().merge(guests));
    let wanted = config.tls.clone();
    part.tasks.spawn(async move {
        listen::unix(serve, socket, roles).await;
        "the unix socket"
    });
    let mut pair = None;
    if let Some(wanted) = wanted {
        let current: CurrentTls = Arc::new(Mutex::new(tls::load(&wanted)?));
        let listener = listen::bind_tls(wanted.listen).await?;
        let (serve, store, users) = (part.serve(api), store.clone(), Users::new(&wanted));
        pair = Some((current.clone(), wanted));
        part.tasks.spawn(async move {
            listen::tls(serve, listener, current, store, users).await;
            "the TLS listener"
        });
    }
    if let Some(member) = member {
        let listener = listen::bind_tls(SocketAddr::new(member.address.parse().context("member.toml: address")?, API_PORT)).await?;
        let paths = member.paths();
        let pair = tls::load_pair(&paths.node_cert(), &paths.node_key())?;
        let (current, store): (CurrentTls, _) = (Arc::new(Mutex::new(pair)), store.clone());
        if let Some(vip) = app::vip::show(store.as_ref()).await? {
            match vip::listen(&vip) {
                Ok(listener) => {
                    drop(tokio::spawn(listen::tls(members_api.clone(), listener, current.clone(), store.clone(), Users::default())))
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "the API is not on its address here"),
            }
        }
        part.tasks.spawn(async move {
            listen::tls(members_api, listener, current, store, Users::default()).await;
            "the cluster's TLS listener"
        });
    }
    tokio::spawn(reload_on_hangup(hangup, server.clone(), pair, part.shutdown.clone()));
    let tests = stonith::nightly::run(store.clone(), name.clone(), config.fence_agent_dir.clone(), part.shutdown.clone());
    part.tasks.spawn(async move {
        tests.await;
        "the nightly test of fence agents"
    });
    let power = Arc::new(FenceAgents { store: store.clone(), folder: config.fence_agent_dir.clone() });
    let levers = Levers { power, storage: Arc::new(NoStorageFence) };
    let (desk, stop) = (Desk::new(&name, levers, host_clock()), part.shutdown.clone());
    part.tasks.spawn(async move {
        vmkeep_server::reconcile::run(store, name, desk, stop).await;
        "the leader's loop"
    });
    Ok(server)
}

/// Host shutdown, on the unix socket only.
pub fn guest_routes(node: Router, server: Arc<Server>) -> Router {
    let pass = move |request: Request| {
        let (node, server) = (node.clone(), server.clone());
        async move {
            let caller = request.extensions().get::<Caller>().cloned();
            let path = request.uri().path().to_owned();
            vmkeep_server::to_its_end(&server, caller, "guests", path, admin_only(node, request)).await
        }
    };
    Router::new().route("/n/guests/shutdown", post(pass.clone())).route("/n/guests/resume", post(pass))
}

pub async fn admin_only(node: Router, request: Request) -> Response {
    if request.extensions().get::<Caller>().is_none_or(|caller| caller.role < Role::Admin) {
        return listen::refuse(Error::new(Code::Forbidden, "only administrators shut all VMs down"));
    }
    node.oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// The audit log, which logrotate has moved away, and certificate and key, which may be new.
async fn reload_on_hangup(
    mut hangup: Signal,
    server: Arc<Server>,
    pair: Option<(CurrentTls, crate::config::Tls)>,
    shutdown: CancellationToken,
) {
    while tokio::select! { () = shutdown.cancelled() => false, got = hangup.recv() => got.is_some() } {
        match server.audit.reopen() {
            Ok(()) => tracing::info!("the audit log was opened again"),
            Err(error) => tracing::error!(%error, "the audit log cannot be opened again; the old file is kept"),
        }
        let Some((current, wanted)) = &pair else { continue };
        match tls::load(wanted) {
            Ok(new) => {
                *current.lock().expect("no panic holds this lock") = new;
                tracing::info!("certificate and key were read again");
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the old certificate stays"),
        }
    }
}
