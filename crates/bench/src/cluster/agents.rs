//! Agents with the fake hypervisor, all in this process; each has the two connections to etcd that one of a real host has. Their
//! heartbeats share a thread, as each host's has one: the work of a thousand agents on a few processors must not make hosts silent.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmkeep_agent::hypervisor::fake::FakeHypervisor;
use vmkeep_agent::image::Reach;
use vmkeep_agent::runtime::clock::BootId;
use vmkeep_agent::runtime::{self, AgentConfig, Node};
use vmkeep_store::etcd::{EtcdConfig, EtcdStore};
use vmkeep_types::host::KvmState;
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::plug::{Plug, Plugged, Promise};
use super::timed::Timed;

/// Hosts that start in the same moment; a room after a power cut does not send all at once either.
const JOIN_AT_ONCE: usize = 50;

/// Each host beats once more when it stops.
const LAST_BEATS: Duration = Duration::from_secs(10);

pub struct Agents {
    hosts: Vec<Host>,
    stop: CancellationToken,
    running: TaskTracker,
}

struct Host {
    node: Arc<Node>,
    hypervisor: Arc<FakeHypervisor>,
    beats: Arc<Timed>,
    plug: Plug,
}

impl Agents {
    pub async fn start(count: usize, dir: &Path, endpoints: &[String]) -> anyhow::Result<Self> {
        let boot_id = dir.join("boot_id");
        std::fs::write(&boot_id, "bench\n").context("cannot write a boot id")?;
        let etcd = EtcdConfig { endpoints: endpoints.to_vec(), tls: None };
        let stop = CancellationToken::new();
        let hearts = hearts(stop.clone())?;
        let mut agents = Self { hosts: Vec::new(), stop, running: TaskTracker::new() };
        for from in (0..count).step_by(JOIN_AT_ONCE) {
            let mut joining = JoinSet::new();
            for n in from..count.min(from + JOIN_AT_ONCE) {
                joining.spawn(Host::join(n, dir.to_owned(), etcd.clone(), hearts.clone()));
            }
            while let Some(host) = joining.join_next().await {
                agents.begin(host.context("a start failed")??, &hearts);
            }
        }
        Ok(agents)
    }

    fn begin(&mut self, host: Host, hearts: &Handle) {
        self.running.spawn(runtime::run(host.node.clone(), self.stop.clone()));
        self.running.spawn_on(runtime::heartbeat::run(host.beats.clone(), host.node.clone(), self.stop.clone()), hearts);
        self.hosts.push(host);
    }

    /// Guests of all nodes.
    pub fn running(&self) -> usize {
        self.hosts.iter().map(|host| host.hypervisor.running().len()).sum()
    }

    /// So many hosts lose their power; what ran there.
    pub fn lose(&self, count: usize) -> BTreeSet<VmId> {
        let lost = self.hosts.iter().take(count);
        lost.flat_map(|host| {
            host.plug.pull();
            host.hypervisor.running()
        })
        .collect()
    }

    /// Those of them that run on hosts with power.
    pub fn found(&self, wanted: &BTreeSet<VmId>) -> Vec<VmId> {
        let live = self.hosts.iter().filter(|host| host.plug.is_in());
        live.flat_map(|host| host.hypervisor.running()).filter(|id| wanted.contains(id)).collect()
    }

    /// How long each heartbeat took since the last call.
    pub fn take_renewals(&self) -> Vec<Duration> {
        self.hosts.iter().flat_map(|host| host.beats.take()).collect()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

/// The thread of all heartbeats; it ends soon after `stop`, when the last ones were sent.
fn hearts(stop: CancellationToken) -> anyhow::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the heartbeats")?;
    let handle = runtime.handle().clone();
    let beating = move || {
        runtime.block_on(async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_BEATS).await;
        });
    };
    std::thread::Builder::new().name("hearts".into()).spawn(beating).context("cannot start the heartbeats")?;
    Ok(handle)
}

impl Host {
    async fn join(n: usize, dir: std::path::PathBuf, etcd: EtcdConfig, hearts: Handle) -> anyhow::Result<Self> {
        let name: Name = format!("node{n:04}").parse()?;
        let (hypervisor, plug) = (Arc::new(FakeHypervisor::new()), Plug::default());
        let node = Node::new(AgentConfig {
            store: Arc::new(Plugged { inner: Arc::new(EtcdStore::connect(&etcd).await?), plug: plug.clone() }),
            hypervisor: hypervisor.clone(),
            boot_id: BootId(dir.join("boot_id")),
            seed_dir: dir.join("pool"),
            log_dir: dir.join("run"),
            run_dir: dir.join("run"),
            cpus: 32,
            memory: ByteCount::from_gib(128),
            kvm: KvmState::Unusable { why: "a fake".into() },
            address: None,
            migration: None,
            peers: None,
            reach: Reach::Others,
            guard: Arc::new(Promise),
            name,
        })?;
        node.join().await?;
        // What reads and writes the connection belongs to whoever opens it.
        let line = hearts.spawn(async move { EtcdStore::connect(&etcd).await }).await.context("no heartbeat")??;
        let line = Plugged { inner: Arc::new(line), plug: plug.clone() };
        Ok(Self { node, hypervisor, beats: Arc::new(Timed::new(Arc::new(line))), plug })
    }
}
