//! The parts put together, their start and their end.
//!
//! Order of the start: store, hypervisor (which connects by itself, in its own time), routers, listeners, then the leader's
//! loop and the agent; READY is said when requests are answered. libvirt may come later or go away: the daemon waits for it.
//! [`control`] and [`compute`] are in one process on a host alone, and in one each in a cluster.
//! A part that ends by itself ends the daemon with an error, so that systemd starts it anew.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmkeep_server::context::Server;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_store::keep::{Keeping, Look};
use vmkeep_store::seal::Sealing;
use vmkeep_store::{Store, StoreError, keys, typed};
use vmkeep_types::cluster::MemberRole;
use vmkeep_types::name::Name;

use crate::cluster::desk::{Desk, Standing};
use crate::cluster::endpoints::Endpoints;
use crate::cluster::etcd::Etcd;
use crate::cluster::{self, Cluster, Opened, Restart, apart};
use crate::config::{Config, NodeRole};
use crate::listen::Serve;
use crate::log;
use crate::member::Member;
use crate::mtls::Mtls;
use crate::notify::Notify;
use crate::seal::Secrets;
use compute::{Apart, Compute};

mod compute;
mod control;

/// The work is waiting, not computing.
const WORKER_THREADS: usize = 2;
/// Files and small tools; libvirt's calls have threads of their own.
const BLOCKING_THREADS_MAX: usize = 32;
/// malloc arenas: each keeps freed memory for itself.
const ARENAS_MAX: libc::c_int = 2;
/// Between two tries to reach etcd at the start.
const ETCD_REST: Duration = Duration::from_secs(1);
/// How long etcd may take before this host answers in its place.
const DESK_AFTER: Duration = Duration::from_secs(3);
/// From the signal to the end: what runs then (a console, a stream) is cut.
const STOP_PATIENCE: Duration = Duration::from_millis(1500);

/// Why the daemon ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    /// It is to begin anew, as another kind of member.
    Restart,
}

pub fn run(config: Config) -> anyhow::Result<Ended> {
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

async fn until_signal(config: Config) -> anyhow::Result<Ended> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let notify = Arc::new(Notify::from_env());
    let (living, until) = (notify.clone(), shutdown.clone());
    tokio::spawn(async move { living.keep_alive(&until).await });
    let serving = serve(config, notify, hangup, shutdown.clone());
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
pub async fn serve(config: Config, notify: Arc<Notify>, hangup: Signal, shutdown: CancellationToken) -> anyhow::Result<Ended> {
    let notify = notify.as_ref();
    let turn = cluster::resume(&config, &shutdown).await.context("what this host is a member of")?;
    let Some(_turn) = turn else { return Ok(Ended::Stopped) };
    let member = Member::load(&config.store)?;
    apart::run_as_it_belongs(&config, member.as_ref(), notify, &shutdown).await;
    if shutdown.is_cancelled() {
        return Ok(Ended::Stopped);
    }
    let restart = Restart::new(shutdown.clone());
    if config.only == Some(NodeRole::Compute) {
        tokio::spawn(apart::watch(config.clone(), restart.clone()));
    }
    let Some(opened) = open_store(&config, member.as_ref(), notify, &restart).await? else { return Ok(restart.ended()) };
    let endpoints = member.as_ref().map(|member| Endpoints::of(&config, member, shutdown.clone()));
    if let (Some(endpoints), Some(store), Some(member)) = (&endpoints, &opened.etcd, &member) {
        tokio::spawn(endpoints.clone().keep(store.clone(), member.etcd.endpoints.clone()));
    }
    if let Some(member) = member.as_ref().filter(|member| member.has(MemberRole::Witness)) {
        return witness(config, member, opened, notify, &restart).await;
    }
    let roles = roles_of(&config, member.as_ref())?;
    let name = member.as_ref().map_or_else(|| config.node_name(), |member| Ok(member.node.clone()))?;
    // A newer version may have written to it, and may again: what it wrote beside ours stays.
    let look = if opened.etcd.is_some() { Look::Away } else { Look::Here };
    let secrets = Secrets::of_host(&config.store, name.clone())?;
    let sealing = Sealing::over(opened.store.clone(), vmkeep_server::records::secrets, secrets.keys());
    let store: Arc<dyn Store> = Keeping::over(sealing, vmkeep_server::records::types, look);
    let Some(()) = prepare(store.as_ref(), &config, &roles, &shutdown).await? else { return Ok(Ended::Stopped) };
    let Some(()) = secrets.begin(&opened, &roles, &shutdown).await? else { return Ok(Ended::Stopped) };
    let mtls = member.as_ref().map(|member| Mtls::open(member.paths())).transpose()?;
    let (connections, tasks) = (TaskTracker::new(), JoinSet::new());
    let mut part = Part { config, member, endpoints, name, store, mtls, shutdown, connections, tasks };
    let cluster = Cluster::new(part.config.clone(), part.name.clone(), part.member.clone(), opened, restart.clone());

    let compute = if roles.contains(&NodeRole::Compute) { Some(Compute::assemble(&part, &cluster).await?) } else { None };
    let server =
        if roles.contains(&NodeRole::Control) { Some(control::begin(&mut part, compute.as_ref(), &cluster, hangup).await?) } else { None };
    if let Some(compute) = compute {
        let apart = if server.is_some() { Apart::No } else { Apart::Yes };
        compute.begin(&mut part, apart, &cluster).await?;
    }
    if let Some(member) = part.member.as_ref().filter(|member| !member.has(MemberRole::Control)) {
        part.tasks
            .spawn(at_the_desk(Desk::new(&part.config, member, Standing::Member(cluster.clone()), restart.clone()), part.shutdown.clone()));
    }
    if part.member.is_some() {
        tokio::spawn(cluster::tend::same_life(cluster.clone(), part.shutdown.clone()));
    }
    // One process of a host looks after it: the one with the control plane, where there is one.
    if let Some(member) = part.member.as_ref().filter(|member| server.is_some() || !member.has(MemberRole::Control)) {
        cluster::tend::begin(&cluster, member, &part.shutdown);
    }
    tracing::info!(node = %part.name, ?roles, "ready");
    notify.ready(&format!("node {}", part.name));
    part.until_the_end(notify, server, &restart).await?;
    Ok(restart.ended())
}

/// etcd and nothing else: the third vote for two hosts.
async fn witness(config: Config, member: &Member, opened: Opened, notify: &Notify, restart: &Restart) -> anyhow::Result<Ended> {
    let shutdown = restart.shutdown();
    let cluster = Cluster::new(config.clone(), member.node.clone(), Some(member.clone()), opened, restart.clone());
    cluster::tend::begin(&cluster, member, shutdown);
    let desk = at_the_desk(Desk::new(&config, member, Standing::Member(cluster), restart.clone()), shutdown.clone());
    let desk = tokio::spawn(desk);
    tracing::info!(node = %member.node, "ready: a witness");
    notify.ready("witness");
    shutdown.cancelled().await;
    restart.tell(notify);
    let _ = tokio::time::timeout(STOP_PATIENCE, desk).await;
    Ok(restart.ended())
}

async fn at_the_desk(desk: Desk, stop: CancellationToken) -> &'static str {
    if let Err(error) = desk.serve(stop).await {
        tracing::error!(error = format!("{error:#}"), "this host does not answer on its socket");
    }
    "the socket of a host without an API"
}

/// What all parts of the process work with, and what they have begun.
struct Part {
    config: Config,
    member: Option<Member>,
    /// Of a member.
    endpoints: Option<Endpoints>,
    name: Name,
    store: Arc<dyn Store>,
    mtls: Option<Arc<Mtls>>,
    shutdown: CancellationToken,
    connections: TaskTracker,
    tasks: JoinSet<&'static str>,
}

impl Part {
    fn serve(&self, router: Router) -> Serve {
        Serve { router, shutdown: self.shutdown.clone(), connections: self.connections.clone() }
    }

    async fn until_the_end(mut self, notify: &Notify, server: Option<Arc<Server>>, restart: &Restart) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = self.shutdown.cancelled() => None,
            ended = self.tasks.join_next() => ended,
        };
        let broken = ended.filter(|_| !self.shutdown.is_cancelled());
        restart.tell(notify);
        self.shutdown.cancel();
        self.connections.close();
        let orderly = async {
            while let Some(ended) = self.tasks.join_next().await {
                tracing::debug!(part = ended.unwrap_or("a part that panicked"), "ended");
            }
            self.connections.wait().await;
            if let Some(server) = &server {
                server.changes.close();
                server.changes.wait().await;
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, orderly).await.is_err() {
            tracing::debug!("some work was cut off; it goes on after the next start");
        }
        let socket = if server.is_some() { self.config.socket } else { self.config.node_socket() };
        let _ = std::fs::remove_file(socket);
        match broken {
            None => Ok(()),
            Some(Ok(part)) => bail!("{part} ended by itself"),
            Some(Err(error)) => bail!("a part of the daemon failed: {error}"),
        }
    }
}

/// What this process does: all that its host does, or the one role that it was started for.
fn roles_of(config: &Config, member: Option<&Member>) -> anyhow::Result<Vec<NodeRole>> {
    let of_member = |member: &Member| {
        let named = [(MemberRole::Control, NodeRole::Control), (MemberRole::Compute, NodeRole::Compute)];
        named.into_iter().filter(|(role, _)| member.has(*role)).map(|(_, role)| role).collect()
    };
    let all: Vec<NodeRole> = member.map_or_else(|| config.roles.clone(), of_member);
    match config.only {
        None => Ok(all),
        Some(_) if member.is_none() && config.etcd.is_none() => bail!("--role is for members of a cluster; one host alone has one process"),
        Some(role) if !all.contains(&role) => bail!("this host has not the role {role:?}; it has {all:?}"),
        Some(role) => Ok(vec![role]),
    }
}

/// A member's etcd wins: what [etcd] names is for one host with a store elsewhere. None: the embedded store.
fn etcd_of(config: &Config, member: Option<&Member>) -> Option<EtcdConfig> {
    member.map(Member::etcd_client).or_else(|| config.etcd.as_ref().map(crate::config::Etcd::client))
}

/// None when the daemon is told to stop, or to begin anew, before it has a store of its own: while etcd does not answer, or because
/// the cluster does not know this member any more.
async fn open_store(config: &Config, member: Option<&Member>, notify: &Notify, restart: &Restart) -> anyhow::Result<Option<Opened>> {
    let Some(etcd) = etcd_of(config, member) else {
        let file = config.store.join("vmkeep.db");
        let store = EmbeddedStore::open(&file).with_context(|| format!("cannot open the store {}", file.display()))?;
        return Ok(Some(Opened { store: Arc::new(store), etcd: None }));
    };
    if let Some(member) = member.filter(|member| member.has_etcd()) {
        let started = Etcd::new(member.paths()).start();
        started.unwrap_or_else(|error| tracing::error!(error = format!("{error:#}"), "this member's etcd does not start"));
    }
    let waiting = restart.shutdown().child_token();
    // Where the roles run apart, the socket is the control plane's.
    let answers = |member: &&Member| config.only != Some(NodeRole::Compute) || !member.has(MemberRole::Control);
    let denied = Arc::new(AtomicBool::new(false));
    let standing = Standing::Waiting { denied: denied.clone() };
    let desk = member.filter(answers).map(|member| Desk::new(config, member, standing, restart.clone()));
    let serving = desk.map(|desk| tokio::spawn(at_a_late_desk(desk, waiting.clone())));
    let late = async {
        tokio::time::sleep(DESK_AFTER).await;
        // Else systemd takes a long wait for a start that hangs, and begins it again each minute.
        notify.ready("waits for etcd; VMs go on");
        std::future::pending().await
    };
    let store = async {
        tokio::select! { store = connect_etcd(&etcd, &denied) => store, never = late => never }
    };
    let store = restart.shutdown().run_until_cancelled(store).await;
    waiting.cancel();
    if let Some(serving) = serving {
        let _ = tokio::time::timeout(STOP_PATIENCE, serving).await;
    }
    let Some(store) = store else { return Ok(None) };
    let store = Arc::new(store?);
    let opened = Opened { store: store.clone(), etcd: Some(store) };
    let Some(member) = member else { return Ok(Some(opened)) };
    let known = async {
        loop {
            match vmkeep_server::app::cluster::is_removed(opened.store.as_ref(), &member.node).await {
                Ok(removed) => return !removed,
                Err(error) => tracing::warn!(%error, "cannot ask whether this host is still a member"),
            }
            tokio::time::sleep(ETCD_REST).await;
        }
    };
    match restart.shutdown().run_until_cancelled(known).await {
        None => Ok(None),
        Some(true) => Ok(Some(opened)),
        Some(false) => {
            tracing::error!(node = %member.node, "this host is no member of its cluster any more; VMs go on");
            notify.ready("no member any more");
            let desk = Desk::new(config, member, Standing::Removed, restart.clone());
            let desk = answers(&member).then(|| tokio::spawn(at_the_desk(desk, restart.shutdown().clone())));
            restart.shutdown().cancelled().await;
            restart.tell(notify);
            if let Some(desk) = desk {
                let _ = tokio::time::timeout(STOP_PATIENCE, desk).await;
            }
            Ok(None)
        }
    }
}

/// Most starts have their store at once, and no need of it.
async fn at_a_late_desk(desk: Desk, stop: CancellationToken) {
    if stop.run_until_cancelled(tokio::time::sleep(DESK_AFTER)).await.is_some() {
        at_the_desk(desk, stop).await;
    }
}

/// A control plane makes the store ready; an agent, who may write its own keys only, waits until one has. None when the daemon
/// is told to stop before that.
async fn prepare(store: &dyn Store, config: &Config, roles: &[NodeRole], shutdown: &CancellationToken) -> anyhow::Result<Option<()>> {
    if roles.contains(&NodeRole::Control) {
        let pool = config.pool.to_string_lossy();
        vmkeep_server::app::bootstrap(store, &pool, config.pool_shared).await.context("cannot prepare the store")?;
        return Ok(Some(()));
    }
    let ready = async {
        loop {
            match typed::get_json::<u64>(store, keys::LEVEL).await.context("cannot read the store's level")? {
                Some(level) if level.value > keys::LEVEL_NOW => bail!("the store is of level {}, newer than this vmkeep", level.value),
                Some(level) if level.value >= keys::LEVEL_OLDEST => return Ok(()),
                _ => tracing::warn!("waiting for a control node of this version; VMs go on"),
            }
            tokio::time::sleep(ETCD_REST).await;
        }
    };
    shutdown.run_until_cancelled(ready).await.transpose()
}

/// Waits for etcd: after a power cut its members may need longer than this host. `denied`: it answers, and does not know this host; a
/// silent member beside that changes nothing of it.
async fn connect_etcd(wanted: &EtcdConfig, denied: &AtomicBool) -> anyhow::Result<EtcdStore> {
    loop {
        let tried = EtcdStore::connect(wanted).await;
        denied.fetch_or(matches!(tried, Err(StoreError::Denied(_))), Ordering::SeqCst);
        match tried {
            Ok(store) => return Ok(store),
            Err(error @ StoreError::Invalid(_)) => return Err(error).context("etcd cannot be used"),
            Err(error) => tracing::warn!(%error, endpoints = wanted.endpoints.join(" "), "waiting for etcd; VMs go on"),
        }
        tokio::time::sleep(ETCD_REST).await;
    }
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| format!("cannot make {}", path.display()))
}

#[cfg(test)]
mod tests;
