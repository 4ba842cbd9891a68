//! Members of a cluster, as the store and the API tell of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::name::Name;
use crate::units::{ByteCount, Seconds};

/// What a member does for its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// API, planner, etcd.
    Control,
    /// VMs.
    Compute,
    /// etcd only.
    Witness,
}

impl MemberRole {
    /// A member with this role runs a member of etcd.
    pub fn has_etcd(self) -> bool {
        match self {
            Self::Control | Self::Witness => true,
            Self::Compute => false,
        }
    }
}

/// A member, at `cluster/member/NODE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberRecord {
    pub node: Name,
    /// By which the others reach it.
    pub address: String,
    /// `/etc/machine-id`: cloned disks have the same.
    pub machine_id: String,
    pub roles: Vec<MemberRole>,
    pub version: String,
    pub state: MemberState,
    pub since: jiff::Timestamp,
}

impl MemberRecord {
    pub fn has_etcd(&self) -> bool {
        self.roles.iter().any(|role| role.has_etcd())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Admitted; it has its certificates, or is about to fetch them.
    Joining,
    /// It has started with the cluster's store.
    Member,
}

/// `POST /v1/cluster/init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterInit {
    /// By which other hosts will reach this one; without it, the address of the default route.
    #[serde(default)]
    pub address: Option<String>,
}

/// A cluster of one was begun, or a cluster was joined; the daemon starts anew into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterFormed {
    pub cluster: Uuid,
    pub node: Name,
    pub address: String,
    pub roles: Vec<MemberRole>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `POST /v1/cluster/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenCreate {
    /// One hour when it is not said; a day at most.
    #[serde(default)]
    pub expires_in: Option<Seconds>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenCreated {
    /// Shown once. For one host.
    pub token: String,
    /// Where it is to be used.
    pub address: String,
    pub expires_at: jiff::Timestamp,
}

/// `POST /v1/cluster/join`, on the host that wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterJoin {
    /// Of a control node: `10.0.0.1` or `10.0.0.1:7443`.
    pub address: String,
    pub token: String,
    /// By which the others will reach this host; without it, the address it reaches them from.
    #[serde(default)]
    pub own_address: Option<String>,
    /// etcd only: no VMs, no API.
    #[serde(default)]
    pub witness: bool,
}

/// What a host that wants to join says of itself to a control node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Admission {
    pub token: String,
    pub node: Name,
    pub address: String,
    pub machine_id: String,
    pub version: String,
    pub level: u64,
    pub now: jiff::Timestamp,
    pub witness: bool,
    /// PEM requests: one for the node's certificate, one for etcd's.
    pub node_request: String,
    pub etcd_request: String,
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Admitted {
    pub cluster: Uuid,
    pub roles: Vec<MemberRole>,
    pub ca: String,
    /// Control nodes only: they issue certificates too.
    #[serde(default)]
    pub ca_key: Option<String>,
    pub node_cert: String,
    pub etcd_cert: String,
    /// `https://ADDRESS:2379` of each voting member.
    pub endpoints: Vec<String>,
    /// `NAME=PEER_URL,…` for etcd's first start; none on a member without etcd.
    #[serde(default)]
    pub initial_cluster: Option<String>,
}

/// A copy of etcd's database was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterBackup {
    /// On whose disk it is.
    pub node: Name,
    pub file: String,
    pub size: ByteCount,
}

/// `GET /v1/cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterView {
    /// None: this host is alone.
    pub cluster: Option<Uuid>,
    pub members: Vec<ClusterMemberView>,
    /// What is not as it should be, and what to do.
    pub problems: Vec<ClusterProblem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterMemberView {
    #[serde(flatten)]
    pub record: MemberRecord,
    /// None: it runs no etcd.
    pub etcd: Option<EtcdView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EtcdView {
    pub health: EtcdHealth,
    pub version: Option<String>,
    /// Of its database on disk.
    pub size: Option<ByteCount>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EtcdHealth {
    Leader,
    Follower,
    /// It copies what the others have and has no vote yet.
    Learner,
    /// It does not answer.
    Silent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterProblem {
    pub message: String,
    pub mend: String,
}
