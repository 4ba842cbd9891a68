//! The first member: from a running single host to a cluster of one.
//!
//! ```text
//!  forming.toml:  prepare ───────────► move ──────────────────────────► gone
//!                 CA, certs, etcd up    daemon anew; store moved;        vmkeep.db set aside
//!                 │                     member.toml                      │
//!                 └─ fails or crashes ─► undo: etcd ended, folder gone ◄─┘ fails before member.toml
//! ```
//! VMs are not touched: they are libvirt's, and the daemon's own restart is like any other.
//! How it fails: until `member.toml` is there the embedded store is the truth, unchanged; why an attempt failed is told by
//! `cluster status`.

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vmkeep_store::crash::point;
use vmkeep_store::embedded::EmbeddedStore;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_store::keys;
use vmkeep_types::cluster::{ClusterFormed, ClusterInit, EtcdAccess, MemberRecord, MemberRole, MemberState};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::etcd::{Begin, Etcd, Listen, client_url};
use super::pki::{self, Authority, Purpose};
use super::{Cluster, ETCD_BEGINS, ETCD_PATIENCE, ETCD_PORTS, OUR_PORTS, erase, external, internal, moving, refused, until_etcd, usable};
use crate::config::Config;
use crate::member::{Member, MemberEtcd, Paths, read_toml, write_toml, write_whole};

const ROLES: [MemberRole; 2] = [MemberRole::Control, MemberRole::Compute];
/// The embedded store's files; a member does not read them any more.
const OLD_STORE: [&str; 3] = ["vmkeep.db-wal", "vmkeep.db-shm", "vmkeep.db"];
/// Documentation's network: nothing is sent there, the kernel only says which address it would use.
const SOMEWHERE: &str = "192.0.2.1:9";

/// What is under way, at `cluster/forming.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Forming {
    cluster: Uuid,
    node: Name,
    address: String,
    machine_id: String,
    /// Endpoints of an etcd that is not the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    external: Option<Vec<String>>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Prepare,
    Move,
    Undo,
}

impl Forming {
    fn file(paths: &Paths) -> PathBuf {
        paths.dir.join("forming.toml")
    }

    fn load(paths: &Paths) -> anyhow::Result<Option<Self>> {
        read_toml(&Self::file(paths))
    }

    fn save(&self, paths: &Paths, step: Step) -> anyhow::Result<()> {
        paths.make()?;
        write_toml(&Self::file(paths), &Self { step, ..self.clone() })
    }

    /// As the node of the first member connects.
    fn etcd_client(&self, paths: &Paths) -> EtcdConfig {
        paths.etcd_client(self.external.clone().unwrap_or_else(|| vec![client_url(&self.address)]))
    }
}

/// Why the last attempt to form a cluster failed.
pub(super) fn failure_file(paths: &Paths) -> PathBuf {
    paths.dir.with_file_name("cluster-failed")
}

impl Cluster {
    pub(super) async fn form(&self, wish: ClusterInit) -> Result<ClusterFormed, Error> {
        match &wish.etcd {
            Some(access) => external::check(access)?,
            None if Etcd::is_installed() => {}
            None => return Err(Error::refused("etcd is not installed").hint("apt-get install etcd-server")),
        }
        let address = match wish.address {
            Some(address) => address,
            None => own_address()?,
        };
        let address = usable(&address, &OUR_PORTS)?.to_string();
        if wish.etcd.is_none() {
            usable(&address, &ETCD_PORTS)?;
        }
        let paths = self.paths();
        let forming = Forming {
            cluster: Uuid::new_v4(),
            node: self.node.clone(),
            address,
            machine_id: self.machine_id()?,
            external: wish.etcd.as_ref().map(|access| access.endpoints.clone()),
            step: Step::Prepare,
        };
        forming.save(&paths, Step::Prepare).map_err(refused)?;
        point("form: begun");
        if let Err(error) = prepare(&forming, wish.etcd.as_ref(), &paths, &self.config).await {
            undo(&forming, &paths).await.map_err(internal)?;
            return Err(error);
        }
        let _ = fs::remove_file(failure_file(&paths));
        forming.save(&paths, Step::Move).map_err(refused)?;
        point("form: prepared");
        self.restart.ask();
        Ok(ClusterFormed {
            cluster: forming.cluster,
            node: forming.node,
            address: forming.address,
            roles: ROLES.to_vec(),
            warnings: forming.external.iter().map(|_| external::WARNING.to_owned()).collect(),
        })
    }
}

/// The address this host would use to reach others.
fn own_address() -> Result<String, Error> {
    let ask = || -> std::io::Result<String> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(SOMEWHERE)?;
        Ok(socket.local_addr()?.ip().to_string())
    };
    ask().map_err(|e| {
        Error::invalid(format!("this host has no default route to take its address from: {e}")).hint("say it: --address 10.0.0.1")
    })
}

async fn prepare(forming: &Forming, access: Option<&EtcdAccess>, paths: &Paths, config: &Config) -> Result<(), Error> {
    let etcd = Etcd::new(paths.clone());
    let certified = || -> anyhow::Result<()> {
        let authority = Authority::open_or_make(paths, forming.cluster)?.for_a_life_of(config.certificate_life());
        pki::issue_own(&authority, paths, &forming.node, &forming.address, &Purpose::of(&ROLES))
    };
    certified().map_err(refused)?;
    if let Some(access) = access {
        external::lay_down(paths, access).map_err(refused)?;
        return external::is_free(&forming.etcd_client(paths)).await;
    }
    let made = || -> anyhow::Result<()> {
        etcd.configure(forming.cluster, &forming.node, &forming.address, &Begin::New, Listen::Host)?;
        etcd.start()
    };
    made().map_err(refused)?;
    point("form: etcd started");
    let client = forming.etcd_client(paths);
    until_etcd(&etcd, "cannot form a cluster", || async { EtcdStore::connect(&client).await.map(drop).map_err(|e| e.to_string()) }).await
}

/// As it was before.
async fn undo(forming: &Forming, paths: &Paths) -> anyhow::Result<()> {
    forming.save(paths, Step::Undo)?;
    point("form: undoing");
    Etcd::new(paths.clone()).stop().await?;
    erase(paths, &Forming::file(paths))
}

/// Before anything is served: goes on with what a crash or the daemon's planned restart left.
///
/// # Errors
/// The disk's. An etcd that cannot be moved to is given up instead, and the host goes on alone.
pub async fn resume(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let paths = Paths::new(&config.store);
    let forming = Forming::load(&paths)?;
    if Member::load(&config.store)?.is_none() {
        let Some(forming) = forming else { return Ok(()) };
        if forming.step == Step::Move {
            let Some(moved) = shutdown.run_until_cancelled(move_over(config, &forming, &paths)).await else { return Ok(()) };
            if let Err(error) = moved {
                tracing::error!(error = format!("{error:#}"), "no cluster was formed; this host goes on alone");
                write_whole(&failure_file(&paths), 0o600, format!("{error:#}").as_bytes())?;
                return undo(&forming, &paths).await;
            }
        } else {
            return undo(&forming, &paths).await;
        }
    }
    set_aside(&config.store)?;
    point("form: old store set aside");
    match fs::remove_file(Forming::file(&paths)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("cannot remove forming.toml"),
        _ => Ok(()),
    }
}

async fn move_over(config: &Config, forming: &Forming, paths: &Paths) -> anyhow::Result<()> {
    let etcd = Etcd::new(paths.clone());
    let client = forming.etcd_client(paths);
    let to = if forming.external.is_some() {
        let connected = tokio::time::timeout(ETCD_PATIENCE, EtcdStore::connect(&client)).await;
        connected.context("etcd does not answer")?.context("cannot move the store")?
    } else {
        etcd.start()?;
        let connect = || async { EtcdStore::connect(&client).await.map_err(|e| e.to_string()) };
        until_etcd(&etcd, "cannot move the store", connect).await?
    };
    let file = config.store.join("vmkeep.db");
    let from = EmbeddedStore::open(&file).with_context(|| format!("cannot open the store {}", file.display()))?;
    let first = MemberRecord {
        node: forming.node.clone(),
        address: forming.address.clone(),
        machine_id: forming.machine_id.clone(),
        roles: ROLES.to_vec(),
        version: env!("CARGO_PKG_VERSION").into(),
        level: keys::LEVEL_NOW,
        state: MemberState::Member,
        since: jiff::Timestamp::now(),
        certificate_until: None,
        problems: Vec::new(),
    };
    let cluster = moving::Cluster { id: forming.cluster, first };
    let begin = std::time::Instant::now();
    loop {
        match moving::run(&from, &to, &cluster).await {
            Ok(Some(keys)) => tracing::info!(keys, "the store is in etcd now"),
            Ok(None) => {}
            // Each attempt begins anew or finds that it is done. systemd may take a moment to begin.
            Err(error)
                if begin.elapsed() < ETCD_BEGINS
                    || (begin.elapsed() < ETCD_PATIENCE && (forming.external.is_some() || etcd.is_running())) =>
            {
                tracing::warn!(%error, "the store is moved again from the start");
                tokio::time::sleep(super::LOOK_AGAIN).await;
                continue;
            }
            Err(error) => bail!("the store cannot be moved into etcd: {error}"),
        }
        break;
    }
    let member = Member {
        cluster: forming.cluster,
        node: forming.node.clone(),
        roles: ROLES.to_vec(),
        address: forming.address.clone(),
        etcd: MemberEtcd { endpoints: client.endpoints.clone(), external: forming.external.is_some() },
        dir: paths.dir.clone(),
    };
    member.save(&config.store)?;
    point("form: a member");
    Ok(())
}

/// The single host's store is kept under another name: it is older than etcd from now on.
fn set_aside(state: &Path) -> anyhow::Result<()> {
    for name in OLD_STORE {
        let (old, new) = (state.join(name), state.join(format!("{name}.before-cluster")));
        match fs::rename(&old, &new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| format!("cannot rename {}", old.display())),
            _ => {}
        }
    }
    Ok(())
}
