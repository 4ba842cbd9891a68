//! Three members of etcd on loopback, with the settings that vmkeepd gives its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vmkeep_store::Store;
use vmkeep_store::etcd::loopback::free_ports;
use vmkeep_store::etcd::{EtcdConfig, EtcdStore, admin};

use crate::daemon::Pid;

const MEMBERS: usize = 3;
/// Of history, as vmkeep has each member keep it.
pub const RETENTION: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

/// Killed with this value.
pub struct Etcds {
    members: Vec<Member>,
}

struct Member {
    child: Child,
    url: String,
}

impl Etcds {
    /// Starts them below `dir` and waits until all of them answer.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        let ports: [u16; 2 * MEMBERS] = free_ports()?;
        let ports: Vec<[u16; 2]> = ports.chunks_exact(2).map(|of| [of[0], of[1]]).collect();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> = ports.iter().enumerate().map(|(n, [_, peer])| format!("m{n}={}", url(*peer))).collect();
        let mut etcds = Self { members: Vec::new() };
        for (n, [client, peer]) in ports.iter().enumerate() {
            let log = std::fs::File::create(dir.join(format!("etcd{n}.log")))?;
            let mut command = Command::new("etcd");
            command.arg("--data-dir").arg(dir.join(format!("etcd{n}"))).args(["--name", &format!("m{n}"), "--logger", "zap"]);
            command.args(["--listen-client-urls", &url(*client), "--advertise-client-urls", &url(*client)]);
            command.args(["--listen-peer-urls", &url(*peer), "--initial-advertise-peer-urls", &url(*peer)]);
            command.args(["--initial-cluster", &cluster.join(","), "--grpc-keepalive-min-time", "1s"]);
            let retention = format!("{}s", RETENTION.as_secs());
            command.args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", &retention]);
            command.args(["--quota-backend-bytes", &(2_u64 << 30).to_string()]);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            etcds.members.push(Member { child: command.spawn().context("cannot start etcd: install etcd-server")?, url: url(*client) });
        }
        let begin = Instant::now();
        for member in &etcds.members {
            let config = EtcdConfig { endpoints: vec![member.url.clone()], tls: None };
            while let Err(error) = EtcdStore::connect(&config).await {
                if begin.elapsed() > PATIENCE {
                    bail!("etcd at {} does not answer: {error}", member.url);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(etcds)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    pub fn pids(&self) -> Vec<Pid> {
        self.members.iter().map(|member| Pid::new(member.child.id())).collect()
    }

    pub async fn revision(&self) -> anyhow::Result<u64> {
        Ok(EtcdStore::connect(&EtcdConfig { endpoints: self.endpoints(), tls: None }).await?.revision().await?.0)
    }

    /// What periodic compaction and `vmkeep cluster defrag` do: history goes, its space is given back.
    pub async fn forget_history(&self) -> anyhow::Result<()> {
        let store = EtcdStore::connect(&EtcdConfig { endpoints: self.endpoints(), tls: None }).await?;
        store.compact().await?;
        for member in &self.members {
            admin::defragment(&EtcdConfig { endpoints: vec![member.url.clone()], tls: None }).await?;
        }
        Ok(())
    }

    /// The largest member's file, and the most that one has in use of it, in MiB.
    pub async fn database_mib(&self) -> anyhow::Result<(f64, f64)> {
        let (mut file, mut used) = (0, 0);
        for member in &self.members {
            let status = admin::status(&EtcdConfig { endpoints: vec![member.url.clone()], tls: None }).await?;
            (file, used) = (file.max(status.db_bytes), used.max(status.used_bytes));
        }
        Ok((file as f64 / f64::from(1 << 20), used as f64 / f64::from(1 << 20)))
    }
}

impl Drop for Etcds {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}
