//! Members of a cluster, as the store and the API tell of them.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{Epoch, VmId};
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
    /// The newest format level of the store that it can write; 0: it has not said.
    #[serde(default)]
    pub level: u64,
    pub state: MemberState,
    pub since: jiff::Timestamp,
    /// When its certificate ends, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_until: Option<jiff::Timestamp>,
    /// What is wrong with it, by its own word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ClusterProblem>,
}

impl MemberRecord {
    pub fn has_etcd(&self) -> bool {
        self.roles.iter().any(|role| role.has_etcd())
    }

    /// With what the member says of itself: it has started.
    #[must_use]
    pub fn saying(self, word: MemberWord) -> Self {
        let MemberWord { version, level, certificate_until, problems } = word;
        Self { version, level, certificate_until, problems, state: MemberState::Member, ..self }
    }
}

/// What a member says of itself, at `cluster/word/NODE`, which only it and control nodes write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberWord {
    pub version: String,
    /// The newest format level of the store that it can write.
    pub level: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_until: Option<jiff::Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ClusterProblem>,
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
    /// An etcd that is there already, instead of one that vmkeep runs.
    #[serde(default)]
    pub etcd: Option<EtcdAccess>,
}

/// How an etcd is used that is not the cluster's own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EtcdAccess {
    /// `https://ADDRESS:2379` of its members.
    pub endpoints: Vec<String>,
    /// PEM: who signs its servers' certificates, and the client's certificate and key that every host of the cluster shows.
    pub ca: String,
    pub cert: String,
    pub key: String,
}

impl std::fmt::Debug for EtcdAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdAccess").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
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
    /// A control node although there are three already; five at most.
    #[serde(default)]
    pub control: bool,
}

/// Which of its lives a cluster is in, at `cluster/incarnation`. A store that was restored begins the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "IncarnationStored")]
pub struct Incarnation {
    /// 0: the first. Minutes since 2026 of the moment it began, so that two restored from one backup are not the same.
    pub number: u64,
    pub id: Uuid,
}

/// As it was written: the first versions wrote an id and no number.
#[derive(Deserialize)]
#[serde(untagged)]
enum IncarnationStored {
    Numbered { number: u64, id: Uuid },
    First(Uuid),
}

impl From<IncarnationStored> for Incarnation {
    fn from(stored: IncarnationStored) -> Self {
        match stored {
            IncarnationStored::Numbered { number, id } => Self { number, id },
            IncarnationStored::First(id) => Self { number: 0, id },
        }
    }
}

/// A restored store of which it is not known yet what runs where, at `cluster/recovery`: nobody starts a VM while it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub incarnation: u64,
    pub since: jiff::Timestamp,
    /// Nodes that must say which domains they have.
    pub nodes: BTreeSet<Name>,
    /// Of them those that are gone for good, by an operator's word.
    pub lost: BTreeSet<Name>,
}

/// What a node has, told to a restored store, at `n/NODE/rejoined`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoined {
    pub incarnation: u64,
    pub epoch: Epoch,
    /// VMs whose domain is there, and whether it is live.
    pub domains: BTreeMap<VmId, bool>,
}

/// `POST /v1/cluster/recover`, on a member with etcd whose majority is lost for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterRecover {
    /// A file of 'cluster backup' on this host; without it, this member's own database.
    #[serde(default)]
    pub from: Option<String>,
    /// Nodes that are gone for good: nobody waits for their word.
    #[serde(default)]
    pub lost: BTreeSet<Name>,
}

/// The daemon starts anew and restores the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterRecovering {
    pub cluster: Uuid,
    pub node: Name,
    /// The incarnation that begins.
    pub incarnation: u64,
}

/// `POST /v1/cluster/leave`, on the host that leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterLeave {
    /// Without asking the cluster: for a host that was taken out of it already, or whose cluster does not exist any more.
    #[serde(default)]
    pub forget: bool,
}

/// The daemon starts anew and takes its host out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterLeft {
    pub cluster: Uuid,
    pub node: Name,
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
    /// A control node although there are three already.
    #[serde(default)]
    pub control: bool,
    /// Why it cannot run a member of etcd, if it should need to.
    #[serde(default)]
    pub no_etcd: Option<String>,
    /// PEM requests: one for the node's certificate, one for etcd's.
    pub node_request: String,
    pub etcd_request: String,
    /// What runs there with vmkeep's mark.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<GuestThere>,
}

/// A domain of vmkeep's that is live on a host, whichever cluster's it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestThere {
    pub vm: VmId,
    pub name: String,
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
    /// The cluster is in an etcd of its operator's.
    #[serde(default)]
    pub etcd: Option<EtcdAccess>,
}

/// A copy of etcd's database was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterBackup {
    /// On whose disk it is.
    pub node: Name,
    pub file: String,
    pub size: ByteCount,
}

/// The API's one address, at `cluster/vip` and of `PUT /v1/cluster/vip`: it is on a control node that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vip {
    /// IPv4 address and the length of its network: `10.0.0.100/24`.
    pub address: String,
    /// On which interface of every control node; without it, the one that has the member's address.
    #[serde(default)]
    pub interface: Option<String>,
}

/// `GET /v1/cluster/upgrade`: may a rolling upgrade go on, and with whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpgradeView {
    /// The store's format, which every member writes.
    pub level: u64,
    pub members: Vec<UpgradeMember>,
    /// What is in the way.
    pub problems: Vec<ClusterProblem>,
    pub next: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpgradeMember {
    pub node: Name,
    pub roles: Vec<MemberRole>,
    pub version: String,
    /// What its agent runs; none on a witness.
    pub agent: Option<String>,
    /// The newest format level that it can write.
    pub level: u64,
}

/// `GET /v1/cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterView {
    /// None: this host is alone.
    pub cluster: Option<Uuid>,
    pub members: Vec<ClusterMemberView>,
    /// The endpoints of an etcd that is not the cluster's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub etcd: Vec<EtcdEndpointView>,
    /// What is not as it should be, and what to do.
    pub problems: Vec<ClusterProblem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EtcdEndpointView {
    pub url: String,
    #[serde(flatten)]
    pub etcd: EtcdView,
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
