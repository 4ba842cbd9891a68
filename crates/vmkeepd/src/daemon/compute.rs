//! The node agent: what runs VMs, and its own HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use tokio_util::sync::CancellationToken;
use vmkeep_agent::fenced;
use vmkeep_agent::host::check::CheckInput;
use vmkeep_agent::host::facts;
use vmkeep_agent::http::{NodeHttp, NodeHttpConfig};
use vmkeep_agent::hypervisor::Hypervisor;
use vmkeep_agent::hypervisor::fake::FakeHypervisor;
use vmkeep_agent::hypervisor::libvirt::LibvirtHypervisor;
use vmkeep_agent::image::{Peers, Reach};
use vmkeep_agent::runtime::clock::BootId;
use vmkeep_agent::runtime::guard::{Guard, NoGuard};
use vmkeep_agent::runtime::{self, AgentConfig, Handle, Node};
use vmkeep_store::StoreError;
use vmkeep_store::etcd::EtcdConfig;
use vmkeep_types::migration::MigrationAddress;
use vmkeep_types::pool::PoolDriver;

use super::{Part, control, make_folder};
use crate::cluster::endpoints::Endpoints;
use crate::cluster::libvirt::TLS_PORT;
use crate::cluster::{Cluster, farewell, pki, renew, roles};
use crate::config::{Config, HypervisorKind};
use crate::listen::{self, Controls};
use crate::member::AGENT_PORT;
use crate::peer::Roles;

/// Whether the control plane is in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    Yes,
    No,
}

pub struct Compute {
    node: Arc<Node>,
    pub router: Router,
}

/// As configured; a member of a cluster is reached at its address, encrypted.
fn migration(part: &Part) -> Option<MigrationAddress> {
    let at = |address: &str| {
        let address = pki::in_url(address);
        MigrationAddress { connect: format!("qemu+tls://{address}/system"), data: format!("tcp://{address}") }
    };
    part.config.migration.clone().or_else(|| part.member.as_ref().map(|member| at(&member.address)))
}

/// A host alone has nobody who would start its VMs elsewhere: no watchdog resets it when vmkeepd is stopped.
fn guard(part: &Part) -> Arc<dyn Guard> {
    match part.member {
        Some(_) => Arc::new(fenced::Line::of_this_host()),
        None => Arc::new(NoGuard),
    }
}

impl Compute {
    /// Joins the store; libvirt is connected in its own time.
    pub async fn assemble(part: &Part, cluster: &Cluster) -> anyhow::Result<Self> {
        let config = &part.config;
        let hypervisor: Arc<dyn Hypervisor> = match config.hypervisor {
            HypervisorKind::Libvirt => {
                LibvirtHypervisor::connect(&config.libvirt_uri).with_context(|| format!("libvirt_uri = \"{}\"", config.libvirt_uri))?
            }
            HypervisorKind::Fake => Arc::new(FakeHypervisor::new()),
        };
        cluster.asks(hypervisor.clone());
        make_folder(&config.serial_log_dir, 0o750)?;
        make_folder(&config.run_dir, 0o755)?;
        let machine = facts::machine();
        let node = Node::new(AgentConfig {
            name: part.name.clone(),
            store: part.store.clone(),
            hypervisor: hypervisor.clone(),
            boot_id: BootId(config.boot_id_file.clone()),
            seed_dir: config.pool.join("seeds"),
            log_dir: config.serial_log_dir.clone(),
            run_dir: config.run_dir.clone(),
            cpus: machine.cpus,
            memory: machine.memory,
            kvm: machine.kvm,
            address: part.member.as_ref().map(|member| format!("{}:{AGENT_PORT}", pki::in_url(&member.address))),
            migration: migration(part),
            peers: part.mtls.clone().map(|mtls| mtls as Arc<dyn Peers>),
            reach: if config.fetch_local { Reach::Everywhere } else { Reach::Others },
            guard: guard(part),
        })?;
        let (resets, stop) = (node.clone(), part.shutdown.clone());
        tokio::spawn(async move { fenced::tell(&resets, Path::new(fenced::FILE), stop).await });
        make_folder(&config.pool, 0o711)?;
        make_folder(&config.pool.join("seeds"), 0o711)?;
        warn_of_moved_pool(config, part).await?;
        let router = vmkeep_agent::http::router(NodeHttp::new(NodeHttpConfig {
            node: part.name.clone(),
            hypervisor,
            pools: Arc::new(Handle(node.clone())),
            log_dir: config.serial_log_dir.clone(),
            qemu_log_dir: config.qemu_log_dir.clone(),
            check: CheckInput {
                pool: config.pool.clone(),
                store: config.store.clone(),
                tls_listen: config.tls.as_ref().map(|tls| tls.listen),
                migration_port: part.member.as_ref().filter(|_| config.migration.is_none()).map(|_| TLS_PORT),
            },
            guests: Arc::new(Handle(node.clone())),
            wishes: Arc::new(Handle(node.clone())),
            moves: Arc::new(Handle(node.clone())),
        }));
        if let Err(error) = node.join().await {
            // Its life before must be proved dead first, or the store is full and takes nothing; the agent goes on trying.
            let full = matches!(error, StoreError::Full(_));
            if !full && !node.awaits_proof().await.unwrap_or(false) {
                return Err(error).context("the node cannot join its store");
            }
            tracing::warn!(%error, "the node joins later");
        }
        Ok(Self { node, router })
    }

    /// Begins to serve the members of the cluster, and to run VMs.
    pub async fn begin(self, part: &mut Part, apart: Apart, cluster: &Arc<Cluster>) -> anyhow::Result<()> {
        if let (Some(member), Some(mtls)) = (&part.member, part.mtls.clone()) {
            // A host's name is not resolved here: what it leads to from elsewhere need not be an address of this host.
            let ip = member.address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
            let listener = listen::bind_tls(SocketAddr::new(ip, AGENT_PORT)).await?;
            let controls = Arc::new(Controls::new(part.store.clone()));
            let renewals = renew::router(part.store.clone(), member.paths(), part.config.certificate_life());
            let of_members = renewals.merge(farewell::router(cluster.clone())).merge(roles::router(cluster.clone()));
            let serve = part.serve(self.router.clone().merge(of_members));
            part.tasks.spawn(async move {
                listen::agent(serve, listener, mtls, controls).await;
                "the agent's listener"
            });
        }
        if apart == Apart::Yes {
            let roles = Roles::new(&part.config);
            let socket = listen::bind_unix(&part.config.node_socket(), &roles)?;
            let serve = part.serve(host_routes(&self.router));
            part.tasks.spawn(async move {
                listen::unix(serve, socket, roles).await;
                "the agent's unix socket"
            });
        }
        if let Some(etcd) = super::etcd_of(&part.config, part.member.as_ref()) {
            heartbeat(etcd, part.endpoints.clone(), self.node.clone(), part.shutdown.clone())?;
        }
        let (node, stop) = (self.node, part.shutdown.clone());
        part.tasks.spawn(async move {
            runtime::run(node, stop).await;
            "the agent"
        });
        Ok(())
    }
}

/// On a thread and a connection of its own: nothing that the agent does may delay it.
fn heartbeat(etcd: EtcdConfig, endpoints: Option<Endpoints>, node: Arc<Node>, stop: CancellationToken) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the heartbeat")?;
    let beating = move || {
        runtime.block_on(async move {
            match stop.run_until_cancelled(super::connect_etcd(&etcd, &AtomicBool::default())).await {
                Some(Ok(store)) => {
                    let store = Arc::new(store);
                    if let Some(endpoints) = endpoints {
                        tokio::spawn(endpoints.keep(store.clone(), etcd.endpoints.clone()));
                    }
                    runtime::heartbeat::run(store, node, stop).await;
                }
                Some(Err(error)) => tracing::error!(error = format!("{error:#}"), "no heartbeat"),
                None => {}
            }
        });
    };
    std::thread::Builder::new().name("heartbeat".into()).spawn(beating).map(drop).context("cannot start the heartbeat")
}

/// Host shutdown, where there is no control plane to note who asked: the log does.
fn host_routes(node: &Router) -> Router {
    let node = node.clone();
    let pass = move |request: Request| {
        let node = node.clone();
        async move {
            tracing::info!(path = request.uri().path(), "asked on the host's own socket");
            control::admin_only(node, request).await
        }
    };
    Router::new().route("/n/guests/shutdown", post(pass.clone())).route("/n/guests/resume", post(pass))
}

async fn warn_of_moved_pool(config: &Config, part: &Part) -> anyhow::Result<()> {
    for view in vmkeep_server::app::pool::list(part.store.as_ref()).await? {
        let PoolDriver::Dir { path, .. } = &view.spec.driver;
        if view.spec.name.as_str() == "default" && Path::new(path) != config.pool {
            tracing::warn!(kept = %path, configured = %config.pool.display(), "pool 'default' was made elsewhere and stays there");
        }
    }
    Ok(())
}
