//! This host's member of etcd: its settings, its start, whether it runs.
//!
//! ```text
//!  cluster/etcd.env ──► vmkeep-etcd.service      where systemd started us
//!                  └──► `etcd`, detached         elsewhere: it outlives us, and the next vmkeepd finds it by its --data-dir
//! ```
//! Debian's own `etcd.service` stays what it was: ours has its own folder, addresses and certificates.
//!
//! How it fails: an etcd that ends at once is told with the last lines of its log; one that ends later is started again by
//! [`Etcd::keep`].

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vmkeep_types::name::Name;

use super::pki::in_url;
use crate::member::{ETCD_CLIENT_PORT, ETCD_PEER_PORT, Paths, write_whole};

const PROGRAM: &str = "etcd";
const UNIT: &str = "vmkeep-etcd.service";
/// Of the database. 20 000 VMs need less than 200 MiB; etcd's own default.
const QUOTA_BYTES: u64 = 2 << 30;
/// History that watchers may still ask for; whoever comes later lists anew. As much again is there until the next compaction; of five
/// minutes a thousand nodes had 100 MiB in use.
const COMPACTION: &str = "1m";
/// Between two looks at a member that runs.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Of its log, in an error.
const LOG_LINES_TOLD: usize = 5;

/// How the cluster of etcd's members looks to one that starts for the first time; later starts read it from the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The first member.
    New,
    /// One more: `NAME=PEER_URL,…` of all, itself included.
    Existing(String),
}

/// Who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// All members.
    Host,
    /// This host alone, while its store is being recovered.
    Loopback,
}

pub struct Etcd {
    paths: Paths,
}

impl Etcd {
    pub fn new(paths: Paths) -> Self {
        Self { paths }
    }

    pub fn data(&self) -> PathBuf {
        self.paths.dir.join("etcd")
    }

    fn env_file(&self) -> PathBuf {
        self.paths.dir.join("etcd.env")
    }

    fn log_file(&self) -> PathBuf {
        self.paths.dir.join("etcd.log")
    }

    /// Is the program there? Debian's package etcd-server has it.
    pub fn is_installed() -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).chain(["/usr/bin".into()]).any(|dir| dir.join(PROGRAM).is_file())
    }

    /// Writes what it is started with.
    ///
    /// # Errors
    /// The disk's.
    pub fn configure(&self, cluster: Uuid, node: &Name, address: &str, begin: &Begin, listen: Listen) -> anyhow::Result<()> {
        let text = environment(&self.paths, cluster, node, address, begin, listen);
        write_whole(&self.env_file(), 0o600, text.as_bytes())
    }

    /// Starts it if it does not run. Does not wait until it answers: without a majority that may be never.
    ///
    /// # Errors
    /// The program is missing or systemd refuses.
    pub fn start(&self) -> anyhow::Result<()> {
        if by_systemd() {
            return systemctl(&["enable", UNIT]).and_then(|()| systemctl(&["start", "--no-block", UNIT]));
        }
        if self.pid().is_some() {
            return Ok(());
        }
        let env = fs::read_to_string(self.env_file()).with_context(|| format!("cannot read {}", self.env_file().display()))?;
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.with_context(|| format!("cannot write {}", self.log_file().display()))?;
        let mut command = Command::new(PROGRAM);
        command.arg("--data-dir").arg(self.data()).envs(env.lines().filter_map(|line| line.split_once('=')));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        // It outlives this process; found again by its arguments, reaped by `pid`.
        let child = command.spawn().context("cannot start etcd: install etcd-server")?;
        tracing::info!(pid = child.id(), "etcd started");
        Ok(())
    }

    /// Ends it; its data stay.
    ///
    /// # Errors
    /// systemd refuses.
    pub async fn stop(&self) -> anyhow::Result<()> {
        if by_systemd() {
            return systemctl(&["disable", "--now", UNIT]);
        }
        let Some(pid) = self.pid() else { return Ok(()) };
        let _ = kill(pid, Signal::SIGTERM);
        let begin = std::time::Instant::now();
        while self.pid() == Some(pid) {
            if begin.elapsed() > STOP_PATIENCE {
                let _ = kill(pid, Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Its settings, data and log are gone. It must not run.
    ///
    /// # Errors
    /// The disk's.
    pub fn erase(&self) -> anyhow::Result<()> {
        let (data, files) = (self.data(), [self.env_file(), self.log_file()]);
        let removed = [fs::remove_dir_all(data)].into_iter().chain(files.map(fs::remove_file));
        let failed = removed.filter_map(Result::err).find(|e| e.kind() != ErrorKind::NotFound);
        failed.map_or(Ok(()), |e| Err(e).with_context(|| format!("cannot erase etcd's files in {}", self.paths.dir.display())))
    }

    /// Its process is there, whether it answers or not.
    pub fn is_running(&self) -> bool {
        if !by_systemd() {
            return self.pid().is_some();
        }
        let state = run(Command::new("systemctl").args(["show", "--property=SubState", "--value", UNIT]));
        // `start`: until it has a majority. One that ends at once is `auto-restart`.
        state.is_ok_and(|state| matches!(state.trim(), "running" | "start" | "reload"))
    }

    /// The detached process that has our data directory, in our mount namespace.
    fn pid(&self) -> Option<Pid> {
        let data = self.data();
        detached(|args| is_etcd_of(args, &data)).first().copied()
    }

    /// Of this host's member, in bytes: an administrator may have set another one in its settings.
    pub fn quota(&self) -> u64 {
        let env = fs::read_to_string(self.env_file()).unwrap_or_default();
        let set = env.lines().find_map(|line| line.strip_prefix("ETCD_QUOTA_BACKEND_BYTES="));
        set.and_then(|bytes| bytes.trim().parse().ok()).filter(|bytes| *bytes > 0).unwrap_or(QUOTA_BYTES)
    }

    /// What it said last, for an error.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(LOG_LINES_TOLD).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Starts it again whenever it is gone, until `shutdown`; it goes on then.
    pub async fn keep(&self, shutdown: &CancellationToken) {
        loop {
            // systemd keeps its units itself.
            if !by_systemd() && self.pid().is_none() {
                match self.start() {
                    Ok(()) => tracing::warn!("etcd was gone"),
                    Err(error) => tracing::error!(error = format!("{error:#}"), "etcd does not start"),
                }
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }
}

/// Processes in our mount namespace whose arguments are such.
pub(super) fn detached(is_it: impl Fn(&[&str]) -> bool) -> Vec<Pid> {
    let Ok(ours) = fs::read_link("/proc/self/ns/mnt") else { return Vec::new() };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mine = pids.filter(|pid| {
        let dir = Path::new("/proc").join(pid.to_string());
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        is_it(&line.split('\0').collect::<Vec<_>>()) && fs::read_link(dir.join("ns/mnt")).is_ok_and(|ns| ns == ours)
    });
    let mine: Vec<Pid> = mine.map(Pid::from_raw).collect();
    // A child of ours that ended stays in /proc until it is reaped; its command line is empty by then.
    for pid in &mine {
        let _ = waitpid(*pid, Some(WaitPidFlag::WNOHANG));
    }
    mine
}

fn is_etcd_of(args: &[&str], data: &Path) -> bool {
    let [program, flag, dir, ..] = args else { return false };
    Path::new(program).ends_with(PROGRAM) && *flag == "--data-dir" && Path::new(dir) == data
}

/// systemd started this very process, so its units are there and ours to use. A machine with systemd on which we were
/// started by hand (a test, a container) is left alone.
pub(super) fn by_systemd() -> bool {
    std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string())
}

pub(super) fn systemctl(args: &[&str]) -> anyhow::Result<()> {
    run(Command::new("systemctl").args(args)).map(drop)
}

/// What it says.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let words = [command.get_program()].into_iter().chain(command.get_args()).map(std::ffi::OsStr::to_string_lossy);
    let told = words.collect::<Vec<_>>().join(" ");
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {told}"))?;
    if !out.status.success() {
        // Without a word where a signal ended it.
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        bail!("{told}: {}", if said.is_empty() { out.status.to_string() } else { said });
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// etcd's settings, as its environment variables: systemd reads the same file.
fn environment(paths: &Paths, cluster: Uuid, node: &Name, address: &str, begin: &Begin, listen: Listen) -> String {
    let host = match listen {
        Listen::Host => in_url(address),
        Listen::Loopback => "127.0.0.1".into(),
    };
    let (client, peer) = (client_url(address), peer_url(address));
    let (state, members) = match begin {
        Begin::New => ("new", format!("{node}={peer}")),
        Begin::Existing(members) => ("existing", members.clone()),
    };
    let (cert, key, ca) = (paths.etcd_cert(), paths.etcd_key(), paths.ca());
    let settings = [
        ("NAME", node.to_string()),
        ("LISTEN_CLIENT_URLS", format!("https://{host}:{ETCD_CLIENT_PORT}")),
        ("ADVERTISE_CLIENT_URLS", client),
        ("LISTEN_PEER_URLS", peer.clone()),
        ("INITIAL_ADVERTISE_PEER_URLS", peer),
        ("INITIAL_CLUSTER", members),
        ("INITIAL_CLUSTER_STATE", state.into()),
        ("INITIAL_CLUSTER_TOKEN", cluster.to_string()),
        ("CERT_FILE", cert.display().to_string()),
        ("KEY_FILE", key.display().to_string()),
        ("TRUSTED_CA_FILE", ca.display().to_string()),
        ("CLIENT_CERT_AUTH", "true".into()),
        ("PEER_CERT_FILE", cert.display().to_string()),
        ("PEER_KEY_FILE", key.display().to_string()),
        ("PEER_TRUSTED_CA_FILE", ca.display().to_string()),
        ("PEER_CLIENT_CERT_AUTH", "true".into()),
        ("QUOTA_BACKEND_BYTES", QUOTA_BYTES.to_string()),
        ("AUTO_COMPACTION_MODE", "periodic".into()),
        ("AUTO_COMPACTION_RETENTION", COMPACTION.into()),
        // The store pings each second while a call or a watch is open.
        ("GRPC_KEEPALIVE_MIN_TIME", "1s".into()),
        ("LOGGER", "zap".into()),
    ];
    settings.iter().fold(String::new(), |text, (key, value)| text + &format!("ETCD_{key}={value}\n"))
}

pub fn client_url(address: &str) -> String {
    format!("https://{}:{ETCD_CLIENT_PORT}", in_url(address))
}

pub fn peer_url(address: &str) -> String {
    format!("https://{}:{ETCD_PEER_PORT}", in_url(address))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn settings_of_a_first_member() {
        let paths = Paths { dir: "/s/cluster".into() };
        expect![[r#"
            ETCD_NAME=a
            ETCD_LISTEN_CLIENT_URLS=https://[fd00::1]:2379
            ETCD_ADVERTISE_CLIENT_URLS=https://[fd00::1]:2379
            ETCD_LISTEN_PEER_URLS=https://[fd00::1]:2380
            ETCD_INITIAL_ADVERTISE_PEER_URLS=https://[fd00::1]:2380
            ETCD_INITIAL_CLUSTER=a=https://[fd00::1]:2380
            ETCD_INITIAL_CLUSTER_STATE=new
            ETCD_INITIAL_CLUSTER_TOKEN=00000000-0000-0000-0000-000000000001
            ETCD_CERT_FILE=/s/cluster/etcd.pem
            ETCD_KEY_FILE=/s/cluster/etcd.key
            ETCD_TRUSTED_CA_FILE=/s/cluster/ca.pem
            ETCD_CLIENT_CERT_AUTH=true
            ETCD_PEER_CERT_FILE=/s/cluster/etcd.pem
            ETCD_PEER_KEY_FILE=/s/cluster/etcd.key
            ETCD_PEER_TRUSTED_CA_FILE=/s/cluster/ca.pem
            ETCD_PEER_CLIENT_CERT_AUTH=true
            ETCD_QUOTA_BACKEND_BYTES=2147483648
            ETCD_AUTO_COMPACTION_MODE=periodic
            ETCD_AUTO_COMPACTION_RETENTION=1m
            ETCD_GRPC_KEEPALIVE_MIN_TIME=1s
            ETCD_LOGGER=zap
        "#]]
        .assert_eq(&environment(&paths, Uuid::from_u128(1), &Name::known("a"), "fd00::1", &Begin::New, Listen::Host));
    }

    #[test]
    fn it_is_known_by_its_data_directory() {
        let data = Path::new("/s/cluster/etcd");
        let is = |cmdline: &str| is_etcd_of(&cmdline.split(' ').collect::<Vec<_>>(), data);
        assert!(is("etcd --data-dir /s/cluster/etcd ") && is("/usr/bin/etcd --data-dir /s/cluster/etcd "));
        assert!(!is("etcd --data-dir /other/cluster/etcd ") && !is("vi --data-dir /s/cluster/etcd ") && !is(""));
    }
}
