//! `cluster/member.toml` in the state directory: this host is a member of a cluster, and which one it is.
//!
//! ```text
//!  /var/lib/vmkeep/vmkeep.db             the store of a single host; a member ignores it
//!  /var/lib/vmkeep/cluster/member.toml   there = member; read at start, replaced whole
//!                          ca.pem        whom the members trust
//!                          ca.key        0600, control nodes only: issues certificates
//!                          node.pem/.key client and server: agent, control plane, user of etcd
//!                          etcd.pem/.key etcd's own, for clients and peers
//!                          etcd-client.* for an etcd that is not the cluster's own
//! ```
//! How it fails: a file that does not parse stops the daemon with the file's name and the reason; it never falls back to the
//! single host's store, which is older.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmkeep_store::etcd::{EtcdConfig, EtcdTls};
use vmkeep_types::cluster::MemberRole;
use vmkeep_types::name::Name;

/// The API of control nodes, with the cluster's certificates.
pub const API_PORT: u16 = 7443;
/// The agent's HTTP, mutual TLS.
pub const AGENT_PORT: u16 = 7444;
pub const ETCD_CLIENT_PORT: u16 = 2379;
pub const ETCD_PEER_PORT: u16 = 2380;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Id of the cluster.
    pub cluster: Uuid,
    /// This host's node name.
    pub node: Name,
    pub roles: Vec<MemberRole>,
    /// By which the other members reach this host: an IP address or a name that all of them resolve.
    pub address: String,
    pub etcd: MemberEtcd,
    /// Where it was read from.
    #[serde(skip)]
    pub dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEtcd {
    /// `https://ADDRESS:2379` of each member of etcd.
    pub endpoints: Vec<String>,
    /// It is not the cluster's own: vmkeep uses it, and runs none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
}

/// The files of one state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub dir: PathBuf,
}

impl Paths {
    /// `state` is the directory of the embedded store.
    pub fn new(state: &Path) -> Self {
        Self { dir: state.join("cluster") }
    }

    pub fn member(&self) -> PathBuf {
        self.dir.join("member.toml")
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("ca.key")
    }

    pub fn node_cert(&self) -> PathBuf {
        self.dir.join("node.pem")
    }

    pub fn node_key(&self) -> PathBuf {
        self.dir.join("node.key")
    }

    pub fn etcd_cert(&self) -> PathBuf {
        self.dir.join("etcd.pem")
    }

    pub fn etcd_key(&self) -> PathBuf {
        self.dir.join("etcd.key")
    }

    /// With which an etcd is used that is not the cluster's own.
    pub fn etcd_access(&self) -> EtcdTls {
        let at = |name: &str| self.dir.join(format!("etcd-client.{name}"));
        EtcdTls { ca: at("ca.pem"), cert: at("pem"), key: at("key") }
    }

    /// How the node of this host connects to etcd.
    pub fn etcd_client(&self, endpoints: Vec<String>) -> EtcdConfig {
        let own = EtcdTls { ca: self.ca(), cert: self.node_cert(), key: self.node_key() };
        let access = self.etcd_access();
        EtcdConfig { endpoints, tls: Some(if access.key.exists() { access } else { own }) }
    }

    /// # Errors
    /// The directory cannot be made.
    pub fn make(&self) -> anyhow::Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.with_context(|| format!("cannot make {}", self.dir.display()))
    }
}

impl Member {
    /// None on a host that is alone.
    ///
    /// # Errors
    /// The file is there and cannot be read or means nothing.
    pub fn load(state: &Path) -> anyhow::Result<Option<Self>> {
        let paths = Paths::new(state);
        let file = paths.member();
        let Some(mut member) = read_toml::<Self>(&file)? else { return Ok(None) };
        member.dir = paths.dir;
        member.check().with_context(|| format!("{} is not valid", file.display()))?;
        Ok(Some(member))
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.roles.is_empty() {
            bail!("roles is empty: \"control\", \"compute\" or \"witness\"");
        }
        if self.roles.contains(&MemberRole::Witness) && self.roles.len() > 1 {
            bail!("a witness has no other role");
        }
        if self.etcd.endpoints.is_empty() {
            bail!("etcd.endpoints is empty");
        }
        Ok(())
    }

    /// Written whole or not at all; on disk when it returns.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, state: &Path) -> anyhow::Result<()> {
        let paths = Paths::new(state);
        paths.make()?;
        write_toml(&paths.member(), self)
    }

    pub fn has(&self, role: MemberRole) -> bool {
        self.roles.contains(&role)
    }

    /// It runs a member of etcd.
    pub fn has_etcd(&self) -> bool {
        !self.etcd.external && self.roles.iter().any(|role| role.has_etcd())
    }

    pub fn paths(&self) -> Paths {
        Paths { dir: self.dir.clone() }
    }

    /// How this member's store connects.
    pub fn etcd_client(&self) -> EtcdConfig {
        self.paths().etcd_client(self.etcd.endpoints.clone())
    }
}

/// What a file of `cluster/` says; None when it is not there.
///
/// # Errors
/// It cannot be read or does not parse, with the file's name.
pub fn read_toml<T: DeserializeOwned>(file: &Path) -> anyhow::Result<Option<T>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(toml::from_str(&text).with_context(|| format!("{} does not parse", file.display()))?)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Written whole or not at all, for root only; on disk when it returns.
///
/// # Errors
/// The disk's, with the file's name.
pub fn write_toml<T: Serialize>(file: &Path, value: &T) -> anyhow::Result<()> {
    let text = toml::to_string(value).context("plain data")?;
    write_whole(file, 0o600, text.as_bytes())
}

/// Replaces a file: a crash leaves the old one or the new one, and the new one is on disk when this returns.
///
/// # Errors
/// The disk's, with the file's name.
pub fn write_whole(path: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let mut name = path.file_name().context("a file has a name")?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let dir = path.parent().context("a file lies in a folder")?;
    let write = || -> std::io::Result<()> {
        // Left over from a crash, perhaps with other rights.
        match fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use expect_test::expect;

    use super::*;

    fn member() -> Member {
        Member {
            cluster: Uuid::from_u128(7),
            node: Name::known("node1"),
            roles: vec![MemberRole::Control, MemberRole::Compute],
            address: "10.0.0.1".into(),
            etcd: MemberEtcd { endpoints: vec!["https://10.0.0.1:2379".into()], external: false },
            dir: PathBuf::new(),
        }
    }

    #[test]
    fn a_member_is_written_and_read_again() {
        let state = tempfile::tempdir().expect("a folder");
        assert_eq!(Member::load(state.path()).expect("no file is no error"), None);
        member().save(state.path()).expect("written");
        member().save(state.path()).expect("over the old one");
        let paths = Paths::new(state.path());
        expect![[r#"
            cluster = "00000000-0000-0000-0000-000000000007"
            node = "node1"
            roles = ["control", "compute"]
            address = "10.0.0.1"

            [etcd]
            endpoints = ["https://10.0.0.1:2379"]
        "#]]
        .assert_eq(&fs::read_to_string(paths.member()).expect("a file"));
        let read = Member::load(state.path()).expect("valid").expect("there");
        assert_eq!(read, Member { dir: paths.dir.clone(), ..member() });
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&paths.dir), mode(&paths.member())), (0o700, 0o600));
        assert!(read.etcd_client().tls.expect("a member uses TLS").key.ends_with("cluster/node.key"));
    }

    #[test]
    fn a_file_that_means_nothing_stops_the_daemon() {
        let state = tempfile::tempdir().expect("a folder");
        let both = Member { roles: vec![MemberRole::Witness, MemberRole::Compute], ..member() };
        both.save(state.path()).expect("written");
        assert!(format!("{:#}", Member::load(state.path()).expect_err("two roles")).contains("a witness has no other role"));
        fs::write(Paths::new(state.path()).member(), "cluster = 1").expect("written");
        assert!(format!("{:#}", Member::load(state.path()).expect_err("nonsense")).contains("member.toml does not parse"));
    }
}
