//! The API's one address, that moves to a control node which answers: keepalived's work, with settings of ours.
//!
//! ```text
//!  cluster/vip ──► cluster/keepalived.conf ──keepalived -t──► vmkeep-vip.service      where systemd started us
//!                                                        └──► `keepalived`, detached  elsewhere, as etcd is
//!  each second: vmkeepd check-api (0.6 s) ─ fails twice, or the host is gone ─► the address is another control node's
//! ```
//! Each control node listens on the address whether it has it or not, and its certificate names it. No decision about VMs reads it.
//!
//! How it fails: settings that keepalived does not take are told and not used; what ran goes on.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use uuid::Uuid;
use vmkeep_server::app::vip;
use vmkeep_types::cluster::Vip;
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::etcd::{by_systemd, detached, systemctl};
use super::{Cluster, refused};
use crate::member::{API_PORT, Member, Paths, write_whole};

const PROGRAM: &str = "keepalived";
const UNIT: &str = "vmkeep-vip.service";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// keepalived on this control node.
pub struct Keepalived {
    paths: Paths,
}

impl Keepalived {
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    fn file(&self) -> PathBuf {
        self.paths.dir.join("keepalived.conf")
    }

    /// Runs with these settings, or not at all.
    ///
    /// # Errors
    /// keepalived is not installed or does not take them.
    pub fn set(&self, wanted: Option<&str>) -> anyhow::Result<()> {
        let Some(text) = wanted else { return self.stop() };
        if fs::read_to_string(self.file()).is_ok_and(|old| old == text) && self.is_running() {
            return Ok(());
        }
        let tried = self.file().with_extension("conf.tried");
        write_whole(&tried, 0o600, text.as_bytes())?;
        check(&tried)?;
        // The file is what runs: killed in between, the next look finds the old one, or nothing that runs.
        self.end()?;
        fs::rename(&tried, self.file()).with_context(|| format!("cannot rename {}", tried.display()))?;
        self.start()
    }

    fn start(&self) -> anyhow::Result<()> {
        if by_systemd() {
            return systemctl(&["enable", "--now", UNIT]);
        }
        let log = self.paths.dir.join("keepalived.log");
        let log = fs::File::options().create(true).append(true).open(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(PROGRAM);
        command.args(["--vrrp", "--dont-fork", "--log-console", "--pid", "/run/vmkeep/vip.pid", "--vrrp_pid", "/run/vmkeep/vip-vrrp.pid"]);
        command.arg("--use-file").arg(self.file()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().context("cannot start keepalived: install it")?;
        tracing::info!(pid = child.id(), "keepalived started");
        Ok(())
    }

    /// The process that holds the address.
    fn is_running(&self) -> bool {
        if by_systemd() {
            systemctl(&["is-active", "--quiet", UNIT]).is_ok()
        } else {
            !detached(|args| is_ours(args, &self.file())).is_empty()
        }
    }

    fn end(&self) -> anyhow::Result<()> {
        if by_systemd() {
            return systemctl(&["stop", UNIT]);
        }
        // Told to end it gives the address up.
        for pid in detached(|args| is_ours(args, &self.file())) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        let begin = std::time::Instant::now();
        while self.is_running() && begin.elapsed() < super::etcd::STOP_PATIENCE {
            std::thread::sleep(super::LOOK_AGAIN);
        }
        Ok(())
    }

    fn stop(&self) -> anyhow::Result<()> {
        if !self.file().exists() {
            return Ok(());
        }
        if by_systemd() { systemctl(&["disable", "--now", UNIT]) } else { self.end() }?;
        fs::remove_file(self.file()).context("cannot remove keepalived.conf")
    }
}

fn is_ours(args: &[&str], file: &Path) -> bool {
    args.first().is_some_and(|program| Path::new(program).ends_with(PROGRAM)) && args.iter().any(|arg| Path::new(arg) == file)
}

fn check(file: &Path) -> anyhow::Result<()> {
    let out = Command::new(PROGRAM).arg("-t").arg("--use-file").arg(file).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).output();
    let out = match out {
        Ok(out) => out,
        Err(e) if e.kind() == ErrorKind::NotFound => bail!("keepalived is not installed: apt-get install keepalived"),
        Err(e) => return Err(e).context("cannot run keepalived"),
    };
    if !out.status.success() {
        bail!("keepalived does not take the settings: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// What this node is to run; None: there is no such address.
///
/// # Errors
/// No interface of this host is in its network.
pub fn settings(member: &Member, vip: &Vip, check_api: &str) -> anyhow::Result<String> {
    let interface = match &vip.interface {
        Some(interface) => interface.clone(),
        None => interface_of(&member.address)?,
    };
    Ok(text(&member.node, member.cluster, vip, &interface, check_api))
}

fn text(node: &Name, cluster: Uuid, vip: &Vip, interface: &str, check_api: &str) -> String {
    // Another cluster in the same network has, most likely, another number.
    let number = cluster.as_bytes()[15] % 255 + 1;
    format!(
        "global_defs {{
    router_id {node}
    vrrp_version 3
    enable_script_security
    script_user root
}}
vrrp_script api {{
    script \"{check_api}\"
    interval 1
    timeout 1
    fall 2
    rise 1
}}
vrrp_instance vmkeep {{
    state BACKUP
    interface {interface}
    virtual_router_id {number}
    priority 100
    advert_int 0.3
    virtual_ipaddress {{
        {address} dev {interface}
    }}
    track_script {{
        api
    }}
}}
",
        address = vip.address
    )
}

fn interface_of(address: &str) -> anyhow::Result<String> {
    let wanted: IpAddr = address.parse().context("the member's address")?;
    let has = |found: &nix::ifaddrs::InterfaceAddress| {
        let ip = found.address.as_ref().and_then(|address| address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())));
        ip == Some(wanted)
    };
    let found = nix::ifaddrs::getifaddrs()?.find(has).map(|found| found.interface_name);
    found.with_context(|| format!("no interface of this host has the address {address}"))
}

/// On the address although another host has it now.
///
/// # Errors
/// The kernel's.
pub fn listen(vip: &Vip) -> anyhow::Result<TcpListener> {
    let ip = vip::ip(vip).map_err(|e| anyhow::anyhow!("{e}"))?;
    let socket = TcpSocket::new_v4()?;
    setsockopt(&socket.as_fd(), sockopt::IpFreebind, &true).context("IP_FREEBIND")?;
    socket.set_reuseaddr(true)?;
    socket.bind((ip, API_PORT).into()).with_context(|| format!("cannot listen on {ip} port {API_PORT}"))?;
    Ok(socket.listen(BACKLOG)?)
}

impl Cluster {
    /// What `vmkeep cluster vip` asked for, on this control node.
    pub(super) async fn keep_vip(&self, member: &Member) -> Result<(), Error> {
        let vip = vip::show(self.store.as_ref()).await?;
        let own = std::env::current_exe().map_err(|e| Error::internal(e.to_string()))?;
        let check_api = format!("{} --config {} check-api", own.display(), self.config.source.display());
        let wanted = vip.as_ref().map(|vip| settings(member, vip, &check_api)).transpose().map_err(refused)?;
        let keepalived = Keepalived::new(member.paths());
        tokio::task::spawn_blocking(move || keepalived.set(wanted.as_deref()))
            .await
            .map_err(|e| Error::internal(e.to_string()))?
            .map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn settings_name_the_node_the_network_and_the_check() {
        let vip = Vip { address: "10.77.0.100/24".into(), interface: Some("lo".into()) };
        let made = text(&Name::known("node1"), Uuid::from_u128(7), &vip, "lo", "/bin/true");
        expect![[r#"
            global_defs {
                router_id node1
                vrrp_version 3
                enable_script_security
                script_user root
            }
            vrrp_script api {
                script "/bin/true"
                interval 1
                timeout 1
                fall 2
                rise 1
            }
            vrrp_instance vmkeep {
                state BACKUP
                interface lo
                virtual_router_id 8
                priority 100
                advert_int 0.3
                virtual_ipaddress {
                    10.77.0.100/24 dev lo
                }
                track_script {
                    api
                }
            }
        "#]]
        .assert_eq(&made);
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("keepalived.conf");
        fs::write(&file, made).expect("written");
        assert!(check(&file).is_err(), "loopback is no network: that is told, and not used");
    }
}
