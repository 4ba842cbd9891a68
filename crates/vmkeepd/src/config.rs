//! `/etc/vmkeep/vmkeepd.toml`: every key has a default, unknown keys are refused with the nearest known one, and all impossible
//! values are told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use vmkeep_store::etcd::{EtcdConfig, EtcdTls};
use vmkeep_types::migration::MigrationAddress;
use vmkeep_types::name::Name;
use vmkeep_types::nearest;
use vmkeep_types::record::Role;

pub const DEFAULT_FILE: &str = "/etc/vmkeep/vmkeepd.toml";

/// A configuration is a page of text; more is a mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it was read from, for messages.
    #[serde(skip)]
    pub source: PathBuf,
    /// The one role of this process (`--role`); None: all that the host has.
    #[serde(skip)]
    pub only: Option<NodeRole>,
    pub node: Option<Name>,
    pub roles: Vec<NodeRole>,
    pub store: PathBuf,
    pub socket: PathBuf,
    pub socket_group: String,
    pub socket_role: Role,
    pub socket_users: BTreeMap<String, Role>,
    pub hypervisor: HypervisorKind,
    pub libvirt_uri: String,
    pub pool: PathBuf,
    /// Every node has the same files in the pool (NFS, CephFS).
    pub pool_shared: bool,
    pub fetch_local: bool,
    pub serial_log_dir: PathBuf,
    pub qemu_log_dir: PathBuf,
    pub run_dir: PathBuf,
    pub boot_id_file: PathBuf,
    pub machine_id_file: PathBuf,
    /// Debian's fence agents.
    pub fence_agent_dir: PathBuf,
    pub audit: Option<PathBuf>,
    pub log: LogFormat,
    pub log_filter: String,
    pub tls: Option<Tls>,
    /// How other hosts reach this one's libvirt, for migrations to it.
    pub migration: Option<MigrationAddress>,
    /// The store in etcd instead of a file.
    pub etcd: Option<Etcd>,
    /// How long certificates of members last that this control node makes; renewed when a third is left.
    pub certificate_days: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// API and planner.
    Control,
    /// VMs.
    Compute,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    Libvirt,
    /// A simulation without QEMU, for benches and for trying the API.
    Fake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// journald when systemd started us, else text.
    Auto,
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub listen: SocketAddr,
    #[serde(default = "default_cert")]
    pub cert: PathBuf,
    #[serde(default = "default_key")]
    pub key: PathBuf,
    /// Makes both when neither is there.
    #[serde(default)]
    pub self_signed: bool,
    /// Names and addresses in a certificate that we make; the host's name and localhost are always in it.
    #[serde(default)]
    pub names: Vec<String>,
    /// Authorities of users' certificates. None: users have tokens only.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Certificates that were revoked.
    #[serde(default)]
    pub client_crl: Option<PathBuf>,
    /// Common name to role.
    #[serde(default)]
    pub users: BTreeMap<String, Role>,
    /// Common name to the only projects that it opens; who is not here opens all.
    #[serde(default)]
    pub user_projects: BTreeMap<String, BTreeSet<Name>>,
}

impl Tls {
    fn problems(&self, problems: &mut Vec<String>) {
        let for_users = self.client_crl.is_some() || !self.users.is_empty() || !self.user_projects.is_empty();
        if self.client_ca.is_none() && for_users {
            problems.push("tls.client_ca: name the authority that signs users' certificates; without it nobody shows one".into());
        }
        if self.client_ca.is_some() && self.users.is_empty() {
            problems.push("tls.users: give a role to each user, like { alice = \"operator\" }; a certificate alone opens nothing".into());
        }
        for name in self.user_projects.keys().filter(|name| !self.users.contains_key(*name)) {
            problems.push(format!("tls.user_projects: \"{name}\" has no role in tls.users"));
        }
        for (name, _) in self.user_projects.iter().filter(|(_, only)| only.is_empty()) {
            problems.push(format!("tls.user_projects: \"{name}\" for no project opens nothing; leave the user out for all of them"));
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    pub endpoints: Vec<String>,
    #[serde(default)]
    pub ca: Option<PathBuf>,
    #[serde(default)]
    pub cert: Option<PathBuf>,
    #[serde(default)]
    pub key: Option<PathBuf>,
}

impl Etcd {
    /// How the store connects.
    pub fn client(&self) -> EtcdConfig {
        let tls = match (&self.ca, &self.cert, &self.key) {
            (Some(ca), Some(cert), Some(key)) => Some(EtcdTls { ca: ca.clone(), cert: cert.clone(), key: key.clone() }),
            _ => None,
        };
        EtcdConfig { endpoints: self.endpoints.clone(), tls }
    }

    fn problems(&self, problems: &mut Vec<String>) {
        if self.endpoints.is_empty() {
            problems.push("etcd.endpoints: name at least one, like \"https://192.0.2.11:2379\"".into());
        }
        let secured = [&self.ca, &self.cert, &self.key].into_iter().flatten().count();
        for endpoint in &self.endpoints {
            let uri = endpoint.parse::<http::Uri>().ok().filter(|uri| uri.port().is_some());
            let loopback = uri.as_ref().and_then(http::Uri::host).is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"));
            match uri.as_ref().and_then(http::Uri::scheme_str).unwrap_or_default() {
                "http" if !loopback => problems.push(format!("etcd.endpoints: \"{endpoint}\": without TLS only on this host; use https")),
                "https" if secured < 3 => problems.push(format!("etcd.endpoints: \"{endpoint}\": https needs ca, cert and key")),
                "http" if secured > 0 => problems.push(format!("etcd.endpoints: \"{endpoint}\": ca, cert and key go with https")),
                "http" | "https" => {}
                _ => problems.push(format!("etcd.endpoints: \"{endpoint}\": write it like \"https://192.0.2.11:2379\"")),
            }
        }
    }
}

fn default_cert() -> PathBuf {
    "/etc/vmkeep/tls.crt".into()
}

fn default_key() -> PathBuf {
    "/etc/vmkeep/tls.key".into()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            source: DEFAULT_FILE.into(),
            only: None,
            node: None,
            roles: vec![NodeRole::Control, NodeRole::Compute],
            store: "/var/lib/vmkeep".into(),
            socket: "/run/vmkeep/vmkeepd.sock".into(),
            socket_group: "vmkeep".into(),
            socket_role: Role::Admin,
            socket_users: BTreeMap::new(),
            hypervisor: HypervisorKind::Libvirt,
            libvirt_uri: "qemu:///system".into(),
            pool: "/var/lib/libvirt/images/vmkeep".into(),
            pool_shared: false,
            certificate_days: 365,
            fetch_local: false,
            serial_log_dir: "/var/log/libvirt/vmkeep".into(),
            qemu_log_dir: "/var/log/libvirt/qemu".into(),
            run_dir: "/run/vmkeep".into(),
            boot_id_file: "/proc/sys/kernel/random/boot_id".into(),
            machine_id_file: "/etc/machine-id".into(),
            fence_agent_dir: vmkeep_server::stonith::agent::FOLDER.into(),
            audit: None,
            log: LogFormat::Auto,
            log_filter: "info".into(),
            tls: None,
            migration: None,
            etcd: None,
        }
    }
}

impl Config {
    /// Reads the file that was named, or the default one if it is there.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && file.is_none() => String::new(),
            Ok(meta) if meta.len() > FILE_BYTES_MAX => bail!("{} is larger than {FILE_BYTES_MAX} bytes", path.display()),
            _ => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut config = Self::parse(&text).with_context(|| format!("{} is not valid", path.display()))?;
        config.source = path.to_owned();
        Ok(config)
    }

    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", with_nearest(&e)))?;
        let problems = config.problems();
        if !problems.is_empty() {
            bail!("{}", problems.join("\n"));
        }
        Ok(config)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let paths = [
            ("store", &self.store),
            ("socket", &self.socket),
            ("pool", &self.pool),
            ("serial_log_dir", &self.serial_log_dir),
            ("qemu_log_dir", &self.qemu_log_dir),
            ("run_dir", &self.run_dir),
            ("boot_id_file", &self.boot_id_file),
            ("machine_id_file", &self.machine_id_file),
            ("fence_agent_dir", &self.fence_agent_dir),
        ];
        let tls_paths = self.tls.iter().flat_map(|tls| {
            let users = [("tls.client_ca", &tls.client_ca), ("tls.client_crl", &tls.client_crl)];
            let own = [("tls.cert", &tls.cert), ("tls.key", &tls.key)];
            own.into_iter().chain(users.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))))
        });
        let etcd_paths = self.etcd.iter().flat_map(|etcd| {
            let named = [("etcd.ca", &etcd.ca), ("etcd.cert", &etcd.cert), ("etcd.key", &etcd.key)];
            named.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?)))
        });
        let more = tls_paths.chain(etcd_paths).chain(self.audit.iter().map(|path| ("audit", path)));
        for (key, path) in paths.into_iter().chain(more) {
            if !path.is_absolute() {
                problems.push(format!("{key} = \"{}\": write the whole path, beginning with /", path.display()));
            }
        }
        if self.store.starts_with(&self.pool) || self.pool.starts_with(&self.store) {
            problems.push("store and pool: one lies in the other; QEMU may read the pool, but must not get at the store".into());
        }
        if self.socket.as_os_str().len() > SOCKET_BYTES_MAX {
            problems.push(format!("socket: a socket's path has at most {SOCKET_BYTES_MAX} bytes"));
        }
        let alone = self.etcd.is_none();
        if alone && [NodeRole::Control, NodeRole::Compute].iter().any(|role| !self.roles.contains(role)) {
            problems.push("roles: a single host needs both \"control\" and \"compute\"".into());
        }
        if self.roles.is_empty() && !alone {
            problems.push("roles: name \"control\", \"compute\" or both".into());
        }
        if let Some(etcd) = &self.etcd {
            etcd.problems(&mut problems);
        }
        if let Some(tls) = &self.tls {
            tls.problems(&mut problems);
        }
        if self.log_filter.parse::<tracing_subscriber::EnvFilter>().is_err() {
            problems.push(format!("log_filter = \"{}\": write it like \"info\" or \"info,vmkeep_agent=debug\"", self.log_filter));
        }
        problems
    }

    /// The node's name: as configured, or the host's name up to the first dot.
    pub fn node_name(&self) -> anyhow::Result<Name> {
        if let Some(name) = &self.node {
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().context("cannot read the host's name")?;
        let host = host.to_string_lossy().to_ascii_lowercase();
        let first = host.split('.').next().unwrap_or_default();
        first.parse().with_context(|| format!("the host's name cannot be the node's: set node = \"NAME\" in {}", self.source.display()))
    }

    /// The socket of an agent that has a process of its own; only for the host's shutdown.
    pub fn node_socket(&self) -> PathBuf {
        self.run_dir.join("vmkeepd-compute.sock")
    }

    pub fn certificate_life(&self) -> Duration {
        Duration::from_secs(u64::from(self.certificate_days.max(1)) * 24 * 3600)
    }

    pub fn audit_file(&self) -> PathBuf {
        self.audit.clone().unwrap_or_else(|| self.store.join("audit.log"))
    }
}

/// What sockaddr_un holds.
const SOCKET_BYTES_MAX: usize = 107;

/// toml's words with the nearest known key where a key is unknown.
fn with_nearest(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let quoted: Vec<&str> = error.message().split('`').skip(1).step_by(2).collect();
    let Some((wrong, known)) = quoted.split_first().filter(|_| error.message().starts_with("unknown")) else {
        return text.trim_end().into();
    };
    // The list of all keys is no help beside the nearest one.
    let place = text.split_once("unknown").map_or("", |(place, _)| place);
    format!("{place}there is no '{wrong}' here{}", nearest::hint(wrong, known))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expect: Expect) {
        expect.assert_eq(&Config::parse(text).map_or_else(|e| e.to_string(), |c| format!("{c:#?}")));
    }

    #[test]
    fn nothing_said_means_defaults() {
        let config = Config::parse("").expect("an empty file is fine");
        assert_eq!(config, Config::default());
        assert_eq!(config.audit_file(), Path::new("/var/lib/vmkeep/audit.log"));
        assert!(config.node_name().is_ok() || nix::unistd::gethostname().is_ok_and(|h| h.to_string_lossy().parse::<Name>().is_err()));
    }

    #[test]
    fn keys_that_are_not_known() {
        check(
            "node = \"a\"\nsocket_gruop = \"kvm\"\n",
            expect![[r#"
                TOML parse error at line 2, column 1
                  |
                2 | socket_gruop = "kvm"
                  | ^^^^^^^^^^^^
                there is no 'socket_gruop' here; did you mean 'socket_group'?"#]],
        );
        check(
            "[tls]\nlisten = \"0.0.0.0:8443\"\nselfsigned = true\n",
            expect![[r#"
                TOML parse error at line 3, column 1
                  |
                3 | selfsigned = true
                  | ^^^^^^^^^^
                there is no 'selfsigned' here; did you mean 'self_signed'?"#]],
        );
        check(
            "hypervisor = \"xen\"",
            expect![[r#"
                TOML parse error at line 1, column 14
                  |
                1 | hypervisor = "xen"
                  |              ^^^^^
                there is no 'xen' here; known are libvirt and fake"#]],
        );
    }

    #[test]
    fn values_that_cannot_be() {
        check(
            "node = \"Big.Host\"",
            expect![[r#"
                TOML parse error at line 1, column 8
                  |
                1 | node = "Big.Host"
                  |        ^^^^^^^^^^
                'Big.Host' is not a name: use lower case only"#]],
        );
        check(
            "store = \"data\"\nroles = [\"control\"]\nlog_filter = \"a=b=c\"\n[tls]\nlisten = \"127.0.0.1:1\"\nkey = \"k\"",
            expect![[r#"
                store = "data": write the whole path, beginning with /
                tls.key = "k": write the whole path, beginning with /
                roles: a single host needs both "control" and "compute"
                log_filter = "a=b=c": write it like "info" or "info,vmkeep_agent=debug""#]],
        );
        check(
            "pool = \"/data\"\nstore = \"/data/store\"",
            expect!["store and pool: one lies in the other; QEMU may read the pool, but must not get at the store"],
        );
        check(
            "[tls]\nlisten = \"127.0.0.1:1\"\nusers = { alice = \"operator\" }\nuser_projects = { bob = [\"shop\"] }",
            expect![[r#"
                tls.client_ca: name the authority that signs users' certificates; without it nobody shows one
                tls.user_projects: "bob" has no role in tls.users"#]],
        );
        check(
            "[tls]\nlisten = \"127.0.0.1:1\"\nclient_ca = \"/etc/ca.crt\"",
            expect![[r#"tls.users: give a role to each user, like { alice = "operator" }; a certificate alone opens nothing"#]],
        );
        check(
            "[tls]\nlisten = \"8443\"",
            expect![[r#"
                TOML parse error at line 2, column 10
                  |
                2 | listen = "8443"
                  |          ^^^^^^
                invalid socket address syntax"#]],
        );
    }

    #[test]
    fn an_etcd_that_cannot_be() {
        check(
            "[etcd]\nendpoints = [\"10.0.0.1:2379\", \"http://10.0.0.1:2379\", \"https://10.0.0.1:2379\", \"http://127.0.0.1:2379\"]\nca = \"ca\"",
            expect![[r#"
                etcd.ca = "ca": write the whole path, beginning with /
                etcd.endpoints: "10.0.0.1:2379": write it like "https://192.0.2.11:2379"
                etcd.endpoints: "http://10.0.0.1:2379": without TLS only on this host; use https
                etcd.endpoints: "https://10.0.0.1:2379": https needs ca, cert and key
                etcd.endpoints: "http://127.0.0.1:2379": ca, cert and key go with https"#]],
        );
        check("[etcd]\nendpoints = []", expect![[r#"etcd.endpoints: name at least one, like "https://192.0.2.11:2379""#]]);
    }

    #[test]
    fn the_packaged_file_is_valid_and_shows_the_defaults() {
        let text = include_str!("../../../packaging/vmkeepd.toml");
        assert_eq!(Config::parse(text).expect("it is valid"), Config::default());
        // Each setting that is shown commented out is a real key with its real default.
        let shown: String = text.lines().filter_map(|l| l.strip_prefix("#:")).map(|l| format!("{}\n", l.trim())).collect();
        let mut config = Config::parse(&shown).expect("what is shown is valid");
        let tls = config.tls.take().expect("[tls] is shown");
        assert_eq!((tls.cert, tls.key), (default_cert(), default_key()));
        let etcd = config.etcd.take().expect("[etcd] is shown");
        assert_eq!(etcd.client().endpoints.len(), 3);
        config.migration.take().expect("[migration] is shown");
        (config.node, config.audit) = (None, None);
        config.socket_users.clear();
        assert_eq!(config, Config::default());
    }
}
