//! etcd's majority is lost for good: this member begins again alone, from a backup or from its own database.
//!
//! ```text
//!  recovering.toml:  restore ─────────► swap ───────────────► life ─────────────────────────► gone
//!                    etcd ended;         etcd.restored ─► etcd  etcd on loopback only: nobody     etcd on its address,
//!                    etcdctl snapshot    (the old one stays as  else uses the store before its    member.toml names it
//!                    restore             etcd.before-…)         new incarnation is written        alone
//! ```
//! The restored etcd has another cluster id: members that come back cannot talk to it, and their hosts are told that they are no
//! members any more. What the store says of VMs may be old, so nothing starts before every node has said what it runs
//! (`vmkeep_server::app::recovery`).
//!
//! How it fails: a file that cannot be restored leaves everything as it was; after that each step is repeated until it succeeds.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use vmkeep_server::app::recovery;
use vmkeep_store::crash::point;
use vmkeep_store::etcd::EtcdStore;
use vmkeep_types::cluster::{ClusterRecover, ClusterRecovering};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use super::etcd::{Begin, Etcd, Listen, client_url, peer_url};
use super::form::failure_file;
use super::status::MEMBER_PATIENCE;
use super::{Cluster, Restart, refused, until_etcd};
use crate::config::Config;
use crate::member::{ETCD_CLIENT_PORT, Member, MemberEtcd, Paths, read_toml, write_toml, write_whole};

/// Restores snapshots; the first one that is there. Debian's package etcd-client has them.
const TOOLS: [&str; 2] = ["etcdutl", "etcdctl"];
/// 2026-01-01, in seconds since 1970: incarnations are numbered by the time they begin at.
const EPOCH_2026: i64 = 1_767_225_600;

/// What is under way, at `cluster/recovering.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recovering {
    incarnation: u64,
    /// None: this member's own database.
    #[serde(default)]
    from: Option<PathBuf>,
    lost: BTreeSet<Name>,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Restore,
    Swap,
    Life,
}

impl Recovering {
    fn file(paths: &Paths) -> PathBuf {
        paths.dir.join("recovering.toml")
    }

    fn load(paths: &Paths) -> anyhow::Result<Option<Self>> {
        read_toml(&Self::file(paths))
    }

    fn save(&mut self, paths: &Paths, step: Step) -> anyhow::Result<()> {
        self.step = step;
        write_toml(&Self::file(paths), self)
    }
}

/// Notes the intent and lets the daemon begin anew with it. Whether the majority is lost was asked before.
///
/// # Errors
/// This host has no etcd, a tool or the backup is missing; the disk's.
pub(super) fn begin(member: &Member, wish: &ClusterRecover, restart: &Restart) -> Result<ClusterRecovering, Error> {
    if member.etcd.external {
        return Err(Error::refused("recovery is for an etcd that vmkeep runs; this cluster's is yours")
            .hint("its keeper restores it; read docs/guide/cluster.md before"));
    }
    if !member.roles.iter().any(|role| role.has_etcd()) || !member.paths().ca_key().exists() {
        return Err(Error::conflict(format!("'{}' is no control node", member.node)).hint("recover on one that is left"));
    }
    if wish.lost.contains(&member.node) {
        return Err(Error::invalid(format!("'{}' is this host: it is not lost", member.node)));
    }
    let tool = tool()?;
    let from = wish.from.as_ref().map(PathBuf::from);
    if let Some(file) = &from {
        if !file.is_absolute() {
            return Err(Error::invalid(format!("'{}' must be a whole path on this host", file.display())));
        }
        let wrong = |why: String| Error::refused(format!("{} is no backup of etcd: {why}", file.display()));
        fs::File::open(file).map_err(|e| wrong(e.to_string()))?;
        run(tool, ["snapshot".as_ref(), "status".as_ref(), file.as_os_str()]).map_err(|e| wrong(format!("{e:#}")))?;
    }
    let incarnation = u64::try_from(jiff::Timestamp::now().as_second() - EPOCH_2026).unwrap_or(0).max(1);
    let paths = member.paths();
    let _ = fs::remove_file(failure_file(&paths));
    let mut recovering = Recovering { incarnation, from, lost: wish.lost.clone(), step: Step::Restore };
    recovering.save(&paths, Step::Restore).map_err(refused)?;
    point("recover: begun");
    restart.ask();
    Ok(ClusterRecovering { cluster: member.cluster, node: member.node.clone(), incarnation })
}

impl Cluster {
    pub(super) async fn recover_it(&self, wish: &ClusterRecover) -> Result<ClusterRecovering, Error> {
        let member = self.member()?;
        let asked = tokio::time::timeout(MEMBER_PATIENCE, self.store.revision()).await;
        if matches!(asked, Ok(Ok(_))) {
            return Err(Error::conflict("etcd has a majority: nothing is lost")
                .hint("a single member that is gone: vmkeep cluster remove NODE, and join another host"));
        }
        begin(member, wish, &self.restart)
    }
}

fn tool() -> Result<&'static str, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &&&str| std::env::split_paths(&path).chain(["/usr/bin".into()]).any(|dir| dir.join(tool).is_file());
    let none = || Error::refused("etcdctl is not installed").hint("apt-get install etcd-client");
    TOOLS.iter().find(has).copied().ok_or_else(none)
}

fn run<'a>(tool: &str, args: impl IntoIterator<Item = &'a std::ffi::OsStr>) -> anyhow::Result<()> {
    let mut command = Command::new(tool);
    command.args(args).env("ETCDCTL_API", "3").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let out = command.output().with_context(|| format!("cannot run {tool}"))?;
    if !out.status.success() {
        bail!("{tool}: {}", String::from_utf8_lossy(&out.stderr).trim().lines().last().unwrap_or("it failed"));
    }
    Ok(())
}

pub(super) fn is_begun(paths: &Paths) -> bool {
    Recovering::file(paths).exists()
}

/// Before anything is served: goes on with what was begun.
///
/// # Errors
/// A step that is tried again at the next start.
pub async fn resume(config: &Config, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let paths = Paths::new(&config.store);
    let Some(mut recovering) = Recovering::load(&paths)? else { return Ok(()) };
    let Some(member) = Member::load(&config.store)? else { bail!("{} without member.toml", Recovering::file(&paths).display()) };
    let etcd = Etcd::new(paths.clone());
    if recovering.step == Step::Restore {
        etcd.stop().await?;
        if let Err(error) = restore(&recovering, &member, &etcd) {
            tracing::error!(error = format!("{error:#}"), "nothing was recovered");
            write_whole(&failure_file(&paths), 0o600, format!("this host did not recover its cluster: {error:#}").as_bytes())?;
            return fs::remove_file(Recovering::file(&paths)).context("cannot remove recovering.toml");
        }
        recovering.save(&paths, Step::Swap)?;
        point("recover: restored");
    }
    if recovering.step == Step::Swap {
        swap(&etcd, recovering.incarnation)?;
        recovering.save(&paths, Step::Life)?;
        point("recover: swapped");
    }
    let Some(begun) = shutdown.run_until_cancelled(begin_life(&recovering, &member, &etcd)).await else { return Ok(()) };
    begun?;
    etcd.stop().await?;
    etcd.configure(member.cluster, &member.node, &member.address, &Begin::New, Listen::Host)?;
    let alone = Member { etcd: MemberEtcd { endpoints: vec![client_url(&member.address)], external: false }, ..member };
    alone.save(&config.store)?;
    point("recover: alone");
    tracing::warn!(
        incarnation = recovering.incarnation,
        "the store was recovered; no VM is started before all nodes have said what they run"
    );
    fs::remove_file(Recovering::file(&paths)).context("cannot remove recovering.toml")
}

fn restored(etcd: &Etcd) -> PathBuf {
    etcd.data().with_extension("restored")
}

fn restore(recovering: &Recovering, member: &Member, etcd: &Etcd) -> anyhow::Result<()> {
    let tool = tool().map_err(|e| anyhow::anyhow!("{e}"))?;
    let to = restored(etcd);
    match fs::remove_dir_all(&to) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| format!("cannot remove {}", to.display())),
        _ => {}
    }
    let own = etcd.data().join("member/snap/db");
    let from: &Path = recovering.from.as_deref().unwrap_or(&own);
    let (peer, node) = (peer_url(&member.address), member.node.to_string());
    let initial = format!("{node}={peer}");
    // Another life, another cluster of etcd: who belonged to the old one is not let in.
    let token = format!("{}-{}", member.cluster, recovering.incarnation);
    let mut args: Vec<&std::ffi::OsStr> = vec!["snapshot".as_ref(), "restore".as_ref(), from.as_os_str()];
    let settings = [
        ("--name", node.as_str()),
        ("--initial-cluster", &initial),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster-token", &token),
    ];
    args.extend(settings.iter().flat_map(|(key, value)| [key.as_ref(), value.as_ref()] as [&std::ffi::OsStr; 2]));
    args.extend(["--data-dir".as_ref(), to.as_os_str()]);
    if recovering.from.is_none() {
        // A database that was not copied out of etcd carries no checksum.
        args.push("--skip-hash-check=true".as_ref());
    }
    run(tool, args)
}

/// The restored database takes the old one's place, which is kept.
fn swap(etcd: &Etcd, incarnation: u64) -> anyhow::Result<()> {
    let (new, data) = (restored(etcd), etcd.data());
    if !new.exists() {
        return Ok(());
    }
    if data.exists() {
        let old = data.with_extension(format!("before-{incarnation}"));
        fs::rename(&data, &old).with_context(|| format!("cannot rename {}", data.display()))?;
    }
    fs::rename(&new, &data).with_context(|| format!("cannot rename {}", new.display()))
}

async fn begin_life(recovering: &Recovering, member: &Member, etcd: &Etcd) -> anyhow::Result<()> {
    let paths = member.paths();
    etcd.stop().await?;
    etcd.configure(member.cluster, &member.node, &member.address, &Begin::New, Listen::Loopback)?;
    etcd.start()?;
    let client = paths.etcd_client(vec![format!("https://127.0.0.1:{ETCD_CLIENT_PORT}")]);
    let connect = || async { EtcdStore::connect(&client).await.map_err(|e| e.to_string()) };
    let store = until_etcd(etcd, "cannot recover the store", connect).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    point("recover: etcd alone");
    let began = async || {
        let now = jiff::Timestamp::now();
        recovery::begin_life(&store, &member.node, recovering.incarnation, &recovering.lost, now).await
    };
    loop {
        match began().await {
            Ok(()) => break,
            Err(error) if error.code == Code::Unavailable => tracing::warn!(%error, "the new incarnation is written again"),
            Err(error) => bail!("the new incarnation cannot be written: {error}"),
        }
        tokio::time::sleep(super::LOOK_AGAIN).await;
    }
    point("recover: a new life");
    Ok(())
}
