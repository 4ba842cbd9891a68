//! Serving connections of both kinds with one router: HTTP/1.1, upgrades, limits, and an end that does not wait for streams.
//!
//! ```text
//!  unix: accept ─┬─ peer credentials ─► Caller ─┐
//!  tls:  accept ─┼─ handshake ─ bearer token, or the user's certificate ┴► router
//!  agent: accept ┼─ handshake ─ member's certificate ► the node's router
//!                └─ a task each: nothing but accepting is done in the loop
//! ```
//! A connection that breaks, a bad handshake or a peer without a role harms nobody else.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use vmkeep_api::body::ProblemBody;
use vmkeep_api::problem;
use vmkeep_store::{Store, keys};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::record::{Caller, Via};

use crate::cluster;
use crate::lease::{Lease, Tokens};
use crate::mtls::Mtls;
use crate::peer::{Names, Roles};
use crate::users::{self, Users};

/// Connections of one listener at once: 20 clients, their event streams and consoles, and room; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
/// A client that does not finish its request's head is gone.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// After an error of accept (out of descriptors): others may close meanwhile.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// What all connections of the daemon share.
#[derive(Clone)]
pub struct Serve {
    pub router: Router,
    pub shutdown: CancellationToken,
    pub connections: TaskTracker,
}

impl Serve {
    /// Serves one connection until it ends or the daemon does; the request under way is finished.
    async fn connection<S>(&self, stream: S, who: Who)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let (router, who) = (router.clone(), who.clone());
            async move { Ok::<Response, std::convert::Infallible>(who.call(router, request.map(axum::body::Body::new)).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
        let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

/// The member at the other end of a request, by its certificate.
#[derive(Clone, Debug)]
pub struct Peer(pub Name);

/// How a connection's requests are told apart.
#[derive(Clone)]
enum Who {
    /// Known by the kernel.
    Peer(Option<Caller>),
    /// Each request brings its token; one without is of whom the certificate names.
    Remote(Arc<dyn Store>, Lease, Option<Result<Caller, Error>>),
    /// Another node, by its certificate.
    Member(Name, Arc<Controls>),
}

/// Which members are control nodes, whom an agent obeys; kept for when the store does not answer.
pub struct Controls {
    store: Arc<dyn Store>,
    kept: Mutex<BTreeSet<Name>>,
}

impl Controls {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, kept: Mutex::default() }
    }

    async fn has(&self, node: &Name) -> bool {
        let found = self.store.get(&keys::control(node)).await;
        let mut kept = self.kept.lock().expect("no panic holds this lock");
        match found {
            Ok(Some(_)) => drop(kept.insert(node.clone())),
            Ok(None) => drop(kept.remove(node)),
            Err(_) => {}
        }
        kept.contains(node)
    }
}

impl Who {
    async fn call(&self, router: Router, mut request: Request) -> Response {
        if let Self::Member(node, controls) = self {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            request.extensions_mut().insert(Peer(node.clone()));
            request.extensions_mut().insert(vmkeep_agent::http::Member(node.clone()));
            return match may_ask(node, controls, &method, &path).await {
                Ok(()) => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
                Err(error) => refuse(error),
            };
        }
        // A host that wants to join has no bearer: its token is in the body, and that route looks at nothing else.
        if matches!(self, Self::Remote(..)) && request.uri().path() == cluster::admit::PATH {
            return router.oneshot(request).await.unwrap_or_else(|never| match never {});
        }
        let authorization = request.headers().get(http::header::AUTHORIZATION).cloned();
        match self.caller(authorization).await {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                router.oneshot(request).await.unwrap_or_else(|never| match never {})
            }
            Err(error) => refuse(error),
        }
    }

    async fn caller(&self, authorization: Option<http::HeaderValue>) -> Result<Caller, Error> {
        match self {
            Self::Peer(Some(caller)) => Ok(caller.clone()),
            Self::Peer(None) => {
                Err(Error::new(Code::Forbidden, "you have no role here")
                    .hint("root, the socket's group and socket_users in vmkeepd.toml have"))
            }
            Self::Remote(_, _, Some(of_certificate)) if authorization.is_none() => of_certificate.clone(),
            Self::Remote(store, lease, _) => {
                let bearer = authorization
                    .as_ref()
                    .and_then(|v| v.to_str().ok())
                    .and_then(|v| v.split_once(' '))
                    .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
                let missing = || {
                    Error::new(Code::Unauthenticated, "a token is needed")
                        .hint("make one on the host: vmkeep token create NAME --role operator")
                };
                let (_, token) = bearer.ok_or_else(missing)?;
                let caller = vmkeep_server::auth::authenticate_token(store.as_ref(), token.trim()).await?;
                if let Via::Token(id) = &caller.via {
                    lease.stands_on(id);
                }
                Ok(caller)
            }
            Self::Member(node, _) => Err(Error::internal(format!("node '{node}' is no caller"))),
        }
    }
}

/// Control nodes speak for people, who were asked who they are there; other nodes fetch images and what moves to them, renew their
/// certificates, leave, and become control nodes where their record says so.
async fn may_ask(node: &Name, controls: &Controls, method: &http::Method, path: &str) -> Result<(), Error> {
    if path.starts_with("/n/guests/") {
        return Err(Error::new(Code::Forbidden, "only the host itself shuts all its VMs down"));
    }
    let an_image = path.starts_with("/n/images/") && method == http::Method::GET;
    // The agent asks the owner's record whether it may.
    let to_its_heir = path.starts_with("/n/moves/") && method == http::Method::GET;
    let of_its_own = [cluster::renew::PATH, cluster::farewell::PATH, cluster::roles::PATH].contains(&path) && method == http::Method::POST;
    if an_image || to_its_heir || of_its_own || controls.has(node).await {
        return Ok(());
    }
    Err(Error::new(Code::Forbidden, format!("'{node}' is no control node")))
}

pub fn refuse(error: Error) -> Response {
    let status = http::StatusCode::from_u16(error.code.http_status()).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let unauthenticated = error.code == Code::Unauthenticated;
    let mut response = (status, axum::Json(ProblemBody::from(error))).into_response();
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(problem::CONTENT_TYPE));
    if unauthenticated {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    }
    response
}

/// Binds the socket with its rights; one that another daemon still serves is refused, a dead one is replaced.
pub fn bind_unix(path: &Path, roles: &Roles) -> anyhow::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another vmkeepd serves {}", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove the old {}", path.display()))?;
    }
    // Nobody but us may connect before the rights are set.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(old);
    let listener = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
    match roles.group() {
        Some(group) => {
            nix::unistd::chown(path, None, Some(group)).with_context(|| format!("cannot give {} to its group", path.display()))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        }
        None => tracing::warn!("the socket's group does not exist: only root may use {}", path.display()),
    }
    Ok(listener)
}

/// The next connection, as soon as there is room for it; None at shutdown.
async fn next<S, F: Future<Output = std::io::Result<S>>>(
    serve: &Serve,
    room: &Arc<Semaphore>,
    accept: impl Fn() -> F,
) -> Option<(OwnedSemaphorePermit, S)> {
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = serve.shutdown.run_until_cancelled(accept()).await?;
        match accepted {
            Ok(accepted) => return Some((permit, accepted)),
            Err(error) => tracing::warn!(%error, "cannot accept a connection"),
        }
        tokio::time::sleep(ACCEPT_REST).await;
    }
}

pub async fn unix(serve: Serve, listener: UnixListener, roles: Roles) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (roles, names) = (Arc::new(roles), Names::default());
    while let Some((permit, (stream, _))) = next(&serve, &room, || listener.accept()).await {
        let (one, roles, names) = (serve.clone(), roles.clone(), names.clone());
        serve.connections.spawn(async move {
            let peer = names.peer(stream.as_fd()).await.map_err(|error| tracing::warn!(%error, "a peer without credentials")).ok();
            one.connection(stream, Who::Peer(peer.and_then(|peer| roles.caller(&peer)))).await;
            drop(permit);
        });
    }
}

/// The TLS configuration that new connections get; exchanged on SIGHUP.
pub type CurrentTls = Arc<Mutex<Arc<ServerConfig>>>;

pub async fn bind_tls(at: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at} (tls.listen)"))
}

/// `users`: who may show certificates, where the configuration asks for them.
pub async fn tls(serve: Serve, listener: TcpListener, tls: CurrentTls, store: Arc<dyn Store>, users: Users) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tokens = Tokens::follow(store.clone(), serve.shutdown.clone());
    let users = Arc::new(users);
    while let Some((permit, (stream, from))) = next(&serve, &room, || listener.accept()).await {
        let _ = stream.set_nodelay(true);
        let acceptor = TlsAcceptor::from(tls.lock().expect("no panic holds this lock").clone());
        let (one, store, tokens, users) = (serve.clone(), store.clone(), tokens.clone(), users.clone());
        serve.connections.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let (caller, until) = by_certificate(stream.get_ref().1, &users);
                    let (lease, stream) = tokens.lease(stream, until);
                    one.connection(stream, Who::Remote(store, lease, caller)).await;
                }
                Ok(Err(error)) => tracing::debug!(%from, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}

/// Whom the certificate names, if one was shown, and until when.
fn by_certificate(connection: &rustls::ServerConnection, users: &Users) -> (Option<Result<Caller, Error>>, Option<jiff::Timestamp>) {
    let Some(first) = connection.peer_certificates().and_then(<[_]>::first) else { return (None, None) };
    match users::shown(first) {
        Ok(shown) => (Some(users.caller(&shown)), Some(shown.until)),
        Err(error) => (Some(Err(Error::new(Code::Forbidden, format!("{error:#}")))), None),
    }
}

/// The agent's own: members of the cluster only.
pub async fn agent(serve: Serve, listener: TcpListener, mtls: Arc<Mtls>, controls: Arc<Controls>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some((permit, (stream, from))) = next(&serve, &room, || listener.accept()).await {
        let _ = stream.set_nodelay(true);
        let (one, mtls, controls) = (serve.clone(), mtls.clone(), controls.clone());
        serve.connections.spawn(async move {
            match tokio::time::timeout(HANDSHAKE_PATIENCE, mtls.accept(stream)).await {
                Ok(Ok((stream, node))) => one.connection(stream, Who::Member(node, controls)).await,
                Ok(Err(error)) => tracing::debug!(%from, error = format!("{error:#}"), "not a member of this cluster"),
                Err(_) => tracing::debug!(%from, "a TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests;
