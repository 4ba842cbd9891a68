//! Three hosts that are one cluster: etcd, a control process, a compute process and the guard of a watchdog on each, certificates
//! of one authority.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::host::{Host, bin, text};
use crate::net::Switch;
use crate::own_load::OwnLoad;
use crate::wait::until;

/// etcd, two daemons and libvirt on each of three hosts, on two cores beside other tests.
const UP: Duration = Duration::from_secs(120);

/// As systemd's TimeoutStopSec= for them, and some.
const ENDS: Duration = Duration::from_secs(30);

/// Does something reset a host that loses the cluster?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watchdogs {
    /// `vmkeep-fenced`, and a watchdog outside of the host.
    #[default]
    There,
    /// Only a person, or who cuts its power, knows of its death.
    None,
}

/// What runs on a host and can be stopped alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Agent,
    Guard,
    Etcd,
    Libvirt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Stop,
    Continue,
    Kill,
}

impl Signal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
            Self::Kill => "-KILL",
        }
    }
}

/// Whose load a host reads from its /proc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Load {
    /// Of the machine that all hosts are on.
    #[default]
    Machine,
    Own,
}

/// How the hosts are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan<'a> {
    pub watchdogs: Watchdogs,
    pub load: Load,
    /// Added to each vmkeepd.toml.
    pub more: &'a str,
    /// Folders that all hosts see.
    pub shared: &'a [&'a Path],
}

/// What runs on one host.
pub struct Member {
    pub host: Host,
    number: usize,
    watchdogs: Watchdogs,
    /// Kept up for it.
    load: Option<OwnLoad>,
    etcd: Option<Child>,
    guard: Option<Child>,
    control: Option<Child>,
    compute: Option<Child>,
}

pub struct Cluster {
    pub members: Vec<Member>,
    pub switch: Switch,
}

/// An authority for the test's members, or of strangers.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "vmkeep test");
        let pem = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).expect("an authority");
        Self { pem, issuer }
    }

    /// A new pair, `FILE.pem` and `FILE.key`.
    pub fn issue(&self, dir: &Path, file: &str, common_name: &str, names: &[&str]) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(dir.join(format!("{file}.pem")), format!("{}\n{}", cert.pem(), self.pem)).expect("written");
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).expect("written");
    }
}

fn address(n: usize) -> String {
    format!("10.77.0.{n}")
}

impl Cluster {
    /// All members up, and every node online, by the word of each; `more` is added to each vmkeepd.toml.
    pub fn new(name: &str, more: &str) -> Self {
        Self::planned(name, Plan { more, ..Plan::default() })
    }

    /// As [`Cluster::new`].
    pub fn planned(name: &str, plan: Plan<'_>) -> Self {
        let switch = Switch::new(name);
        let ca = Ca::new();
        let members = (1..=3).map(|n| Member::new(name, n, &switch, &ca, plan)).collect();
        let mut cluster = Self { members, switch };
        cluster.members.iter_mut().for_each(Member::start_etcd);
        for member in &mut cluster.members {
            member.start_guard();
            member.start_control();
            member.start_compute();
        }
        // Each of them is asked: a test may ask any.
        (0..3).for_each(|n| cluster.until_nodes(n, "online online online"));
        cluster
    }

    pub fn host(&self, n: usize) -> &Host {
        &self.members[n].host
    }

    /// Waits until host `asked`'s API says this of the nodes, in order.
    pub fn until_nodes(&self, asked: usize, states: &str) {
        until(&format!("the nodes are {states}"), UP, || {
            let out = self.host(asked).vmkeep(["node", "list", "-o", "json"]);
            let nodes: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
            let told: Vec<&str> = nodes.as_array().into_iter().flatten().filter_map(|n| n["state"]["state"].as_str()).collect();
            if told.join(" ") == states { Ok(()) } else { Err(format!("{told:?} {}\n{}", text(&out.stderr), self.logs())) }
        });
    }

    /// The member whose control plane began to lead last.
    pub fn leader(&self) -> usize {
        until("somebody leads", UP, || {
            let began = |member: &Member| {
                let log = member.log("control");
                let line = log.lines().rev().find(|line| line.contains("leads"))?.to_owned();
                line.split_whitespace().next().map(str::to_owned)
            };
            let last = self.members.iter().enumerate().filter(|(_, m)| m.control.is_some());
            last.filter_map(|(n, m)| Some((began(m)?, n))).max().map(|(_, n)| n).ok_or_else(|| self.logs())
        })
    }

    /// A host whose API answers, and which is not this one.
    pub fn beside(&self, host: usize) -> usize {
        let answers = |n: &usize| *n != host && self.members[*n].control.is_some();
        (0..self.members.len()).find(answers).expect("another control plane runs")
    }

    /// The member whose etcd began to lead last.
    pub fn etcd_leader(&self) -> usize {
        let term = |member: &Member| {
            let log = member.log("etcd");
            let (_, after) = log.rsplit_once("became leader at term ")?;
            after.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
        };
        let terms = self.members.iter().enumerate().filter_map(|(n, member)| Some((term(member)?, n)));
        terms.max().expect("one has led, or no node were online").1
    }

    pub fn logs(&self) -> String {
        let of = |member: &Member| {
            let [control, compute, guard] = ["control", "compute", "fenced"].map(|what| crate::host::tail(&member.log(what)));
            format!("-- {}\n{control}\n{compute}\n{guard}\n", member.host.name)
        };
        self.members.iter().map(of).collect()
    }
}

impl Member {
    fn new(name: &str, n: usize, switch: &Switch, ca: &Ca, plan: Plan<'_>) -> Self {
        let mut host = Host::sharing(&format!("{name}{n}"), plan.shared);
        if plan.watchdogs == Watchdogs::There {
            host.give_watchdog();
        }
        host.link(switch, &format!("{}/24", address(n)));
        let load = (plan.load == Load::Own).then(|| OwnLoad::of(&host));
        let (node, at) = (format!("node{n}"), address(n));
        let state = host.path("state");
        let dir = state.join("cluster");
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::write(dir.join("ca.pem"), &ca.pem).expect("written");
        let names = [node.as_str(), &at, "localhost", "127.0.0.1"];
        ca.issue(&dir, "node", &format!("node:{node}"), &names);
        ca.issue(&dir, "etcd", &format!("etcd:{node}"), &names);
        let endpoints: Vec<String> = (1..=3).map(|n| format!("\"https://{}:2379\"", address(n))).collect();
        let member = format!(
            "cluster = \"00000000-0000-4000-8000-000000000001\"\nnode = \"{node}\"\nroles = [\"control\", \"compute\"]\n\
             address = \"{at}\"\n[etcd]\nendpoints = [{}]\n",
            endpoints.join(", ")
        );
        std::fs::write(dir.join("member.toml"), member).expect("written");
        let run = host.path("run/vmkeep");
        // The switch is nobody else's: libvirt listens without a password there.
        let migration = format!("[migration]\nconnect = \"qemu+tcp://{at}/system\"\ndata = \"tcp://{at}\"\n");
        let more = plan.more;
        host.configure_as(&node, &format!("store = \"{}\"\nrun_dir = \"{}\"\n{more}\n{migration}", state.display(), run.display()));
        Self { host, number: n, watchdogs: plan.watchdogs, load, etcd: None, guard: None, control: None, compute: None }
    }

    fn start_etcd(&mut self) {
        let n = self.number;
        let (at, dir) = (address(n), self.host.path("state/cluster"));
        let file = |name: &str| dir.join(name).display().to_string();
        let all: Vec<String> = (1..=3).map(|n| format!("node{n}=https://{}:2380", address(n))).collect();
        let (client, peer) = (format!("https://{at}:2379"), format!("https://{at}:2380"));
        let data = self.host.path("etcd").display().to_string();
        let (name, all) = (format!("node{n}"), all.join(","));
        let (ca, cert, key) = (file("ca.pem"), file("etcd.pem"), file("etcd.key"));
        let args = [
            ["--name", &name],
            ["--data-dir", &data],
            ["--logger", "zap"],
            ["--grpc-keepalive-min-time", "1s"],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &all],
            ["--trusted-ca-file", &ca],
            ["--cert-file", &cert],
            ["--key-file", &key],
            ["--peer-trusted-ca-file", &ca],
            ["--peer-cert-file", &cert],
            ["--peer-key-file", &key],
        ];
        let mut command = vec!["etcd", "--client-cert-auth", "--peer-client-cert-auth"];
        command.extend(args.iter().flatten());
        self.etcd = Some(self.host.spawn("etcd.log", &command));
    }

    fn start_guard(&mut self) {
        if self.watchdogs == Watchdogs::None {
            return;
        }
        let (fenced, dog) = (bin("vmkeep-fenced").display().to_string(), format!("unix:{}", self.host.watchdog_socket().display()));
        let boot_id = self.host.path("boot_id").display().to_string();
        self.guard = Some(self.host.spawn("fenced.log", &[&fenced, "--watchdog", &dog, "--boot-id", &boot_id]));
    }

    fn role(&self, role: &str) -> Child {
        let (vmkeepd, config) = (bin("vmkeepd").display().to_string(), self.host.config_file().display().to_string());
        self.host.spawn(&format!("{role}.log"), &[&vmkeepd, "--config", &config, "--role", role])
    }

    pub fn start_control(&mut self) {
        self.control = Some(self.role("control"));
    }

    pub fn start_compute(&mut self) {
        self.compute = Some(self.role("compute"));
    }

    /// SIGSTOP or SIGCONT for one of its programs.
    pub fn signal(&self, what: Program, signal: Signal) {
        let pid = match what {
            Program::Agent => self.compute.as_ref().map(Child::id),
            Program::Guard => self.guard.as_ref().map(Child::id),
            Program::Etcd => self.etcd.as_ref().map(Child::id),
            Program::Libvirt => std::fs::read_to_string(self.host.lab_folder().join("run/libvirt/libvirtd.pid"))
                .ok()
                .and_then(|pid| pid.trim().parse().ok()),
        };
        let pid = pid.unwrap_or_else(|| panic!("{what:?} does not run")).to_string();
        assert!(Command::new("kill").args([signal.as_str(), &pid]).status().expect("kill runs").success(), "{what:?}");
    }

    /// As systemd would, after it was killed.
    pub fn restart_etcd(&mut self) {
        kill(&mut self.etcd);
        self.start_etcd();
    }

    /// SIGKILL, as a crash.
    pub fn kill_control(&mut self) {
        kill(&mut self.control);
    }

    /// As systemd on its way down: the guests first (`vmkeep-guests.service`), then each program on its own SIGTERM, then the power.
    ///
    /// # Panics
    /// A program does not end: an armed guard would not.
    pub fn shut_down(&mut self, why: &str) {
        let (vmkeepd, config) = (bin("vmkeepd").display().to_string(), self.host.config_file().display().to_string());
        let out = self.host.exec([vmkeepd.as_str(), "--config", &config, "guests-shutdown", "--why", why]);
        assert!(out.status.success(), "{}\n{}", text(&out.stderr), crate::host::tail(&self.log("compute")));
        for child in self.all() {
            let Some(mut child) = child.take() else { continue };
            assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill runs").success());
            until("it ends on SIGTERM", ENDS, || match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                still => Err(format!("{still:?}")),
            });
        }
        self.host.power_off();
    }

    /// After the host lost its power, or was reset: everything comes up in a new boot.
    pub fn power_on(&mut self) {
        self.all().into_iter().for_each(kill);
        // As all of /run.
        let _ = std::fs::remove_dir_all(self.host.path("run"));
        self.host.power_on();
        self.start_etcd();
        self.start_guard();
        self.start_control();
        self.start_compute();
    }

    fn all(&mut self) -> [&mut Option<Child>; 4] {
        [&mut self.control, &mut self.compute, &mut self.guard, &mut self.etcd]
    }

    pub fn log(&self, role: &str) -> String {
        std::fs::read_to_string(self.host.path(&format!("{role}.log"))).unwrap_or_default()
    }
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.all().into_iter().for_each(kill);
        self.load.take();
    }
}
