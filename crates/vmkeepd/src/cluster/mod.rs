//! Forming a cluster and keeping it whole: certificates, etcd, members.
//!
//! ```text
//!  vmkeep cluster init ─► form: authority, etcd started ─► daemon anew ─► moving: embedded store → etcd ─► member.toml
//!  vmkeep cluster join ─► join ══ pinned TLS ══► admit (a control node): token, member, certificates, learner of etcd
//!                          └► etcd started, promoted ─► member.toml ─► daemon anew
//!  vmkeep cluster leave ─► daemon anew ─► leave: forgotten, out of etcd, files erased; a single host again
//!                                          └══ mutual TLS ══► farewell (a control node): where only it may forget
//!  vmkeep cluster promote, demote ─► the member's record ─► its host: roles ─► member.toml ─► daemon anew
//!  vmkeep cluster recover ─► daemon anew ─► recover: etcd from a backup, alone; a new incarnation
//!  20 s after 20 s     ─► tend: who has etcd and who has no business there (strangers), certificates that age (renew, libvirt),
//!                         rights in etcd, copies of it
//! ```
//! `member.toml` comes last: before it this host is alone and goes on from its own store, whatever was prepared.

pub mod admit;
pub mod apart;
mod ask;
mod backup;
mod defrag;
pub mod desk;
pub mod endpoints;
pub mod etcd;
mod external;
pub mod farewell;
mod form;
mod join;
mod leave;
pub mod libvirt;
mod moving;
pub mod pki;
mod recover;
pub mod renew;
mod rights;
pub mod roles;
mod status;
mod strangers;
pub mod tend;
pub mod vip;
mod wire;

use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vmkeep_agent::hypervisor::Hypervisor;
use vmkeep_server::app;
use vmkeep_server::cluster::HostCluster;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_store::{Store, StoreError};
use vmkeep_types::cluster::{
    ClusterBackup, ClusterFormed, ClusterInit, ClusterJoin, ClusterLeave, ClusterLeft, ClusterRecover, ClusterRecovering, ClusterView,
    JoinTokenCreate, JoinTokenCreated, MemberRole,
};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use crate::config::{Config, NodeRole};
use crate::daemon::Ended;
use crate::member::{AGENT_PORT, API_PORT, ETCD_CLIENT_PORT, ETCD_PEER_PORT, Member, Paths};
use crate::notify::Notify;
use apart::Turn;
use etcd::Etcd;

/// Before anything is served: goes on with what a crash or the daemon's planned restart left. None when it is told to stop before
/// it is this process's turn; it is its turn as long as it keeps what is returned.
///
/// # Errors
/// The disk's.
pub async fn resume(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<Option<Turn>> {
    let Some(turn) = apart::take(config, shutdown).await? else { return Ok(None) };
    leave::resume(config, shutdown).await?;
    recover::resume(config, shutdown).await?;
    form::resume(config, shutdown).await?;
    // The agent's process goes on from here, beside the control plane.
    Ok(Some(if config.only == Some(NodeRole::Control) { Turn::default() } else { turn }))
}

/// For etcd's first start or a learner's catching up; well within the API's time for an answer.
const ETCD_PATIENCE: Duration = Duration::from_secs(40);
/// From the order to start it until its process must be there.
const ETCD_BEGINS: Duration = Duration::from_secs(3);
/// etcd's word when its members have not all been connected for 5 s: after a member was added, or one came back.
const UNSETTLED: &str = "unhealthy cluster";
/// Well within the joiner's patience.
const SETTLE_PATIENCE: Duration = Duration::from_secs(15);
const SETTLE_REST: Duration = Duration::from_millis(500);
/// A process that has just begun has no name yet.
const MISSED_MAX: u32 = 2;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How the daemon is told to end and begin anew, in the same process.
#[derive(Clone)]
pub struct Restart {
    wanted: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

impl Restart {
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { wanted: Arc::default(), shutdown }
    }

    /// Answers under way are finished.
    pub fn ask(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.shutdown.cancel();
    }

    /// How the daemon ends when it does.
    pub fn ended(&self) -> Ended {
        if self.wanted.load(Ordering::SeqCst) { Ended::Restart } else { Ended::Stopped }
    }

    /// To systemd, at the end of what was served.
    pub fn tell(&self, notify: &Notify) {
        match self.ended() {
            Ended::Restart => notify.anew(),
            Ended::Stopped => notify.stopping(),
        }
    }

    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }
}

/// The daemon's store, and what it is when it is etcd.
#[derive(Clone)]
pub struct Opened {
    pub store: Arc<dyn Store>,
    pub etcd: Option<Arc<EtcdStore>>,
}

pub struct Cluster {
    config: Config,
    node: Name,
    member: Option<Member>,
    store: Arc<dyn Store>,
    /// The same store, on a member.
    etcd_store: Option<Arc<EtcdStore>>,
    restart: Restart,
    /// Set before anything is served, where this process has an agent.
    hypervisor: OnceLock<Arc<dyn Hypervisor>>,
    /// One change of the cluster at a time on this host.
    turn: tokio::sync::Mutex<()>,
    rights: tokio::sync::Mutex<rights::Kept>,
}

impl Cluster {
    pub fn new(config: Config, node: Name, member: Option<Member>, store: Opened, restart: Restart) -> Arc<Self> {
        let Opened { store, etcd } = store;
        Arc::new(Self {
            config,
            node,
            member,
            store,
            etcd_store: etcd,
            restart,
            hypervisor: OnceLock::new(),
            turn: tokio::sync::Mutex::default(),
            rights: tokio::sync::Mutex::default(),
        })
    }

    /// Whom to ask what runs here.
    pub fn asks(&self, hypervisor: Arc<dyn Hypervisor>) {
        let _ = self.hypervisor.set(hypervisor);
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.config.store)
    }

    fn etcd(&self) -> Etcd {
        Etcd::new(self.paths())
    }

    fn member(&self) -> Result<&Member, Error> {
        let alone = || Error::refused("this host is in no cluster").hint("vmkeep cluster init begins one, vmkeep cluster join joins one");
        self.member.as_ref().ok_or_else(alone)
    }

    fn alone(&self) -> Result<(), Error> {
        if let Some(member) = &self.member {
            return Err(Error::conflict(format!("this host is '{}' of the cluster {} already", member.node, member.cluster)));
        }
        if self.config.etcd.is_some() {
            let told = Error::conflict("this host's store is in an etcd of yours ([etcd] in vmkeepd.toml)");
            return Err(told.hint("a host forms or joins a cluster with the embedded store; see docs/guide/cluster.md"));
        }
        Ok(())
    }

    /// etcd's own affairs, at whichever member answers.
    fn etcd_store(&self) -> Result<Arc<EtcdStore>, Error> {
        self.member()?;
        self.etcd_store.clone().ok_or_else(|| Error::internal("a member's store is not in etcd"))
    }

    /// One member of etcd alone.
    fn only(&self, endpoint: String) -> Result<EtcdConfig, Error> {
        Ok(EtcdConfig { endpoints: vec![endpoint], ..self.member()?.etcd_client() })
    }

    fn machine_id(&self) -> Result<String, Error> {
        let file = &self.config.machine_id_file;
        let read = std::fs::read_to_string(file).map_err(|e| Error::refused(format!("cannot read {}: {e}", file.display())))?;
        Ok(read.trim().to_owned())
    }
}

#[async_trait]
impl HostCluster for Cluster {
    async fn init(&self, wish: ClusterInit) -> Result<ClusterFormed, Error> {
        let _turn = self.turn.lock().await;
        self.alone()?;
        self.form(wish).await
    }

    async fn join(&self, wish: ClusterJoin) -> Result<ClusterFormed, Error> {
        let _turn = self.turn.lock().await;
        self.alone()?;
        self.join_other(wish).await
    }

    async fn leave(&self, wish: ClusterLeave) -> Result<ClusterLeft, Error> {
        let _turn = self.turn.lock().await;
        self.leave_it(&wish).await
    }

    async fn recover(&self, wish: ClusterRecover) -> Result<ClusterRecovering, Error> {
        let _turn = self.turn.lock().await;
        self.recover_it(&wish).await
    }

    async fn token(&self, wish: JoinTokenCreate) -> Result<JoinTokenCreated, Error> {
        let member = self.member()?;
        let ca = std::fs::read_to_string(member.paths().ca()).map_err(|e| Error::internal(format!("ca.pem: {e}")))?;
        let ca = pki::pem_fingerprint(&ca).map_err(internal)?;
        let (token, expires_at) = app::cluster::create_token(self.store.as_ref(), &ca, wish.expires_in, jiff::Timestamp::now()).await?;
        // A compute node cannot let anybody in: the token is for one that can.
        let members = app::cluster::members(self.store.as_ref()).await?;
        let own = members.iter().find(|m| m.node == self.node && m.roles.contains(&MemberRole::Control));
        let control = own.or_else(|| members.iter().find(|m| m.roles.contains(&MemberRole::Control)));
        let address = control.map_or(&member.address, |control| &control.address).clone();
        Ok(JoinTokenCreated { token, address, expires_at })
    }

    async fn status(&self) -> Result<ClusterView, Error> {
        self.look().await
    }

    async fn remove(&self, node: &Name) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.take_out(node).await?;
        self.keep_rights().await
    }

    async fn promote(&self, node: &Name) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.promote_it(node).await
    }

    async fn demote(&self, node: &Name) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.demote_it(node).await
    }

    async fn backup(&self) -> Result<ClusterBackup, Error> {
        let _turn = self.turn.lock().await;
        self.of_its_own_etcd("a backup")?;
        self.back_up().await
    }

    async fn defragment(&self) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.of_its_own_etcd("defragmentation")?;
        self.defragment_each().await
    }
}

/// Removes the cluster's folder; `last` is the file that a crash in between is told by.
fn erase(paths: &Paths, last: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(&paths.dir)?.flatten().filter(|entry| entry.path() != last) {
        let path = entry.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    std::fs::remove_dir_all(&paths.dir).with_context(|| format!("cannot remove {}", paths.dir.display()))
}

/// A change of etcd's members, tried again while those that are there have not found each other yet.
async fn when_settled<T, F: Future<Output = Result<T, StoreError>>>(mut change: impl FnMut() -> F) -> Result<T, StoreError> {
    let begin = Instant::now();
    loop {
        match change().await {
            Err(error) if error.to_string().contains(UNSETTLED) && begin.elapsed() < SETTLE_PATIENCE => {
                tokio::time::sleep(SETTLE_REST).await;
            }
            done => return done,
        }
    }
}

fn internal(error: anyhow::Error) -> Error {
    Error::internal(format!("{error:#}"))
}

fn refused(error: anyhow::Error) -> Error {
    Error::refused(format!("{error:#}"))
}

/// Of every member.
const OUR_PORTS: [(u16, &str); 2] = [(API_PORT, "the API"), (AGENT_PORT, "the agent")];
const ETCD_PORTS: [(u16, &str); 2] = [(ETCD_CLIENT_PORT, "etcd"), (ETCD_PEER_PORT, "etcd's peers")];

/// An address that other hosts can use and that is this host's, with these ports free on it.
fn usable(address: &str, ports: &[(u16, &str)]) -> Result<IpAddr, Error> {
    let ip: IpAddr = address.parse().map_err(|_| Error::invalid(format!("'{address}' is no IP address")))?;
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(
            Error::invalid(format!("{ip} leads other hosts nowhere")).hint("give the address of this host in the network of the others")
        );
    }
    for (port, what) in ports {
        TcpListener::bind((ip, *port)).map_err(|e| {
            Error::refused(format!("cannot listen on {ip} port {port} for {what}: {e}"))
                .hint("the address must be this host's, and the port free: ip address; ss -ltnp")
        })?;
    }
    Ok(ip)
}

/// Until `look` succeeds; its last word when it does not in time, or when etcd has ended.
async fn until_etcd<T, F>(etcd: &Etcd, what: &str, mut look: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, String>>,
{
    let (begin, mut missed) = (Instant::now(), 0);
    loop {
        let why = match look().await {
            Ok(done) => return Ok(done),
            Err(why) => why,
        };
        missed = if etcd.is_running() { 0 } else { missed + 1 };
        let gone = missed > MISSED_MAX;
        if gone || begin.elapsed() > ETCD_PATIENCE {
            let state = if gone { "etcd ended" } else { "etcd does not come up" };
            return Err(Error::new(Code::Refused, format!("{what}: {state}: {why}\n{}", etcd.last_words()).trim_end().to_owned())
                .hint("its log is etcd.log in the cluster's folder, or journalctl -u vmkeep-etcd"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
