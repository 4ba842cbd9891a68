//! The parts put together, their start and their end.
//!
//! Order of the start: store, hypervisor (which connects by itself, in its own time), routers, listeners, then the leader's
//! loop and the agent; READY is said when requests are answered. libvirt may come later or go away: the daemon waits for it.
//! A part that ends by itself ends the daemon with an error, so that systemd starts it anew.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use vmkeep_agent::host::check::CheckInput;
use vmkeep_agent::host::facts;
use vmkeep_agent::http::{NodeHttp, NodeHttpConfig};
use vmkeep_agent::hypervisor::Hypervisor;
use vmkeep_agent::hypervisor::fake::FakeHypervisor;
use vmkeep_agent::hypervisor::libvirt::LibvirtHypervisor;
use vmkeep_agent::image::Reach;
use vmkeep_agent::pool::{self, Pool};
use vmkeep_agent::runtime::clock::BootId;
use vmkeep_agent::runtime::{self, AgentConfig, Handle, Node};
use vmkeep_server::audit::Audit;
use vmkeep_server::context::Server;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_store::{Store, StoreError};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;
use vmkeep_types::pool::PoolDriver;
use vmkeep_types::record::{Caller, Role};

use crate::config::{Config, HypervisorKind};
use crate::gate::LocalGate;
use crate::listen::{self, CurrentTls, Serve};
use crate::log;
use crate::member::Member;
use crate::notify::Notify;
use crate::peer::Roles;
use crate::tls;

/// The work is waiting, not computing.
const WORKER_THREADS: usize = 2;
/// Files and small tools; libvirt's calls have threads of their own.
const BLOCKING_THREADS_MAX: usize = 32;
/// malloc arenas: each keeps freed memory for itself.
const ARENAS_MAX: libc::c_int = 2;
/// Between two tries to reach etcd at the start.
const ETCD_REST: Duration = Duration::from_secs(1);
/// From the signal to the end: what runs then (a console, a stream) is cut.
const STOP_PATIENCE: Duration = Duration::from_millis(1500);

pub fn run(config: Config) -> anyhow::Result<()> {
    // SAFETY: a setting of malloc, made before other threads are.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
    log::begin(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("vmkeepd")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let ended = runtime.block_on(until_signal(config));
    // A blocking call under way is left behind.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

async fn until_signal(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let serving = serve(config, Notify::from_env(), hangup, shutdown.clone());
    tokio::pin!(serving);
    let name = tokio::select! {
        ended = &mut serving => return ended,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "stopping; VMs go on");
    shutdown.cancel();
    serving.await
}

/// Serves until `shutdown`.
pub async fn serve(config: Config, notify: Notify, hangup: Signal, shutdown: CancellationToken) -> anyhow::Result<()> {
    let member = Member::load(&config.store)?;
    let node_name = member.as_ref().map_or_else(|| config.node_name(), |member| Ok(member.node.clone()))?;
    let Some(store) = open_store(&config, member.as_ref(), &shutdown).await? else { return Ok(()) };
    let parts = Parts::assemble(&config, &node_name, store.clone()).await?;
    // Before the first request: a wish on an empty store must find the node that is to have it.
    parts.node.join().await.context("the node cannot join its store")?;
    let connections = TaskTracker::new();
    let mut tasks: JoinSet<&'static str> = JoinSet::new();

    let roles = Roles::new(&config);
    let socket = listen::bind_unix(&config.socket, &roles)?;
    let serve = |router: Router| Serve { router, shutdown: shutdown.clone(), connections: connections.clone() };
    let local = serve(parts.api.clone().merge(guest_routes(parts.node_router, parts.server.clone())));
    tasks.spawn(async move {
        listen::unix(local, socket, roles).await;
        "the unix socket"
    });
    if let Some(wanted) = &config.tls {
        let current: CurrentTls = Arc::new(Mutex::new(tls::load(wanted)?));
        let listener = listen::bind_tls(wanted.listen).await?;
        let (remote, store) = (serve(parts.api), store.clone());
        let pair = Some((current.clone(), wanted.clone()));
        tokio::spawn(reload_on_hangup(hangup, parts.server.clone(), pair, shutdown.clone()));
        tasks.spawn(async move {
            listen::tls(remote, listener, current, store).await;
            "the TLS listener"
        });
    } else {
        tokio::spawn(reload_on_hangup(hangup, parts.server.clone(), None, shutdown.clone()));
    }
    let (leading, name, stop) = (store, node_name.clone(), shutdown.clone());
    tasks.spawn(async move {
        vmkeep_server::reconcile::run(leading, name, stop).await;
        "the leader's loop"
    });
    let (node, stop) = (parts.node, shutdown.clone());
    tasks.spawn(async move {
        runtime::run(node, stop).await;
        "the agent"
    });

    tracing::info!(node = %node_name, socket = %config.socket.display(), "ready");
    notify.ready(&format!("node {node_name}"));
    let ended = tokio::select! {
        () = notify.keep_alive(&shutdown) => None,
        () = shutdown.cancelled() => None,
        ended = tasks.join_next() => ended,
    };
    let broken = ended.filter(|_| !shutdown.is_cancelled());
    notify.stopping();
    shutdown.cancel();
    connections.close();
    parts.server.changes.close();
    let orderly = async {
        while let Some(ended) = tasks.join_next().await {
            tracing::debug!(part = ended.unwrap_or("a part that panicked"), "ended");
        }
        connections.wait().await;
        parts.server.changes.wait().await;
    };
    if tokio::time::timeout(STOP_PATIENCE, orderly).await.is_err() {
        tracing::debug!("some work was cut off; it goes on after the next start");
    }
    let _ = std::fs::remove_file(&config.socket);
    match broken {
        None => Ok(()),
        Some(Ok(part)) => bail!("{part} ended by itself"),
        Some(Err(error)) => bail!("a part of the daemon failed: {error}"),
    }
}

/// None when the daemon is told to stop before etcd answers.
async fn open_store(config: &Config, member: Option<&Member>, shutdown: &CancellationToken) -> anyhow::Result<Option<Arc<dyn Store>>> {
    // A member's etcd wins: what [etcd] names is for one host with a store elsewhere.
    let etcd = member.map(Member::etcd_client).or_else(|| config.etcd.as_ref().map(crate::config::Etcd::client));
    let store: Arc<dyn Store> = match etcd {
        Some(etcd) => match shutdown.run_until_cancelled(connect_etcd(&etcd)).await {
            Some(store) => Arc::new(store?),
            None => return Ok(None),
        },
        None => {
            let file = config.store.join("vmkeep.db");
            Arc::new(EmbeddedStore::open(&file).with_context(|| format!("cannot open the store {}", file.display()))?)
        }
    };
    vmkeep_server::app::bootstrap(store.as_ref(), &config.pool.to_string_lossy()).await.context("cannot prepare the store")?;
    Ok(Some(store))
}

/// Waits for etcd: after a power cut its members may need longer than this host.
async fn connect_etcd(wanted: &EtcdConfig) -> anyhow::Result<EtcdStore> {
    loop {
        match EtcdStore::connect(wanted).await {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Invalid(_)) => return Err(error).context("etcd cannot be used"),
            Err(error) => tracing::warn!(%error, endpoints = wanted.endpoints.join(" "), "waiting for etcd; VMs go on"),
        }
        tokio::time::sleep(ETCD_REST).await;
    }
}

struct Parts {
    node: Arc<Node>,
    node_router: Router,
    api: Router,
    server: Arc<Server>,
}

impl Parts {
    async fn assemble(config: &Config, name: &Name, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let hypervisor: Arc<dyn Hypervisor> = match config.hypervisor {
            HypervisorKind::Libvirt => {
                LibvirtHypervisor::connect(&config.libvirt_uri).with_context(|| format!("libvirt_uri = \"{}\"", config.libvirt_uri))?
            }
            HypervisorKind::Fake => Arc::new(FakeHypervisor::new()),
        };
        make_folder(&config.serial_log_dir, 0o750)?;
        make_folder(&config.run_dir, 0o755)?;
        let machine = facts::machine();
        let node = Node::new(AgentConfig {
            name: name.clone(),
            store: store.clone(),
            hypervisor: hypervisor.clone(),
            boot_id: BootId(config.boot_id_file.clone()),
            seed_dir: config.pool.join("seeds"),
            log_dir: config.serial_log_dir.clone(),
            run_dir: config.run_dir.clone(),
            cpus: machine.cpus,
            memory: machine.memory,
            kvm: machine.kvm,
            reach: if config.fetch_local { Reach::Everywhere } else { Reach::Others },
        })?;
        make_folder(&config.pool, 0o711)?;
        make_folder(&config.pool.join("seeds"), 0o711)?;
        let node_router = vmkeep_agent::http::router(NodeHttp::new(NodeHttpConfig {
            node: name.clone(),
            hypervisor,
            pools: pools(config, store.as_ref()).await?,
            log_dir: config.serial_log_dir.clone(),
            qemu_log_dir: config.qemu_log_dir.clone(),
            check: CheckInput {
                pool: config.pool.clone(),
                store: config.store.clone(),
                tls_listen: config.tls.as_ref().map(|tls| tls.listen),
            },
            guests: Arc::new(Handle(node.clone())),
        }));
        let gate = Arc::new(LocalGate::new(name.clone(), node_router.clone()));
        let audit_file = config.audit_file();
        let audit = Audit::open(&audit_file).with_context(|| format!("cannot write the audit log {}", audit_file.display()))?;
        let server = Server::new(store, gate, name.clone(), audit);
        let api = vmkeep_server::router(server.clone());
        Ok(Self { node, node_router, api, server })
    }
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("cannot make {}", path.display()))
}

/// The drivers of the pools that the store knows.
async fn pools(config: &Config, store: &dyn Store) -> anyhow::Result<BTreeMap<Name, Arc<dyn Pool>>> {
    let mut pools = BTreeMap::new();
    for view in vmkeep_server::app::pool::list(store).await? {
        let PoolDriver::Dir { path } = &view.spec.driver;
        if view.spec.name.as_str() == "default" && Path::new(path) != config.pool {
            tracing::warn!(kept = %path, configured = %config.pool.display(), "pool 'default' was made elsewhere and stays there");
        }
        pools.insert(view.spec.name.clone(), pool::open(&view.spec)?);
    }
    Ok(pools)
}

/// Host shutdown, on the unix socket only.
fn guest_routes(node: Router, server: Arc<Server>) -> Router {
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

async fn admin_only(node: Router, request: Request) -> Response {
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

#[cfg(test)]
mod tests;
