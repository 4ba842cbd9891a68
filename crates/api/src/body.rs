//! Bodies of requests and answers that are not stored records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmkeep_types::error::{Error, Problem};
use vmkeep_types::event::Event;
use vmkeep_types::host::{CheckRow, NodeFacts, NodeState};
use vmkeep_types::ids::{Generation, ImageId, NetworkId, OperationId, PoolId, PoolMark, Revision, VmId, VolumeId};
use vmkeep_types::image::{ImageFacts, ImageSpec};
use vmkeep_types::migration::MigrateOptions;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkSpec;
use vmkeep_types::node::{Cordon, NodeLoad, NodeSpec};
use vmkeep_types::observed::{FieldChange, RestartCount};
use vmkeep_types::operation::Operation;
use vmkeep_types::pool::{Attachment, PoolSpec};
use vmkeep_types::record::{Role, VmChoices, VmOrigin};
use vmkeep_types::units::{ByteCount, Seconds};
use vmkeep_types::vm::{DiskFormat, VmSpec};

/// The largest JSON body that is read; a manifest is rarely over 10 KiB.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// Rows of one page at most, and when nothing is asked.
pub const PAGE_MAX: usize = 1000;

/// One page. `next` goes into `?after=`; None = the end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<String>,
    /// Revision the page was read at: `?watch` may start there.
    pub revision: Revision,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListQuery {
    /// `key=value` pairs, comma separated; all must match.
    pub label: Option<String>,
    pub limit: Option<usize>,
    pub after: Option<String>,
    /// Stream changes as SSE instead of answering a page.
    pub watch: bool,
}

/// A VM as it is shown: wish, choices, and a status computed from the agent's word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmView {
    pub id: VmId,
    pub project: Name,
    pub spec: VmSpec,
    /// Also the ETag.
    pub spec_revision: Revision,
    pub origin: VmOrigin,
    pub created_at: jiff::Timestamp,
    pub choices: VmChoices,
    /// First boots that were asked for since: cloud-init makes new host keys in each.
    #[serde(default)]
    pub instance: u32,
    pub status: VmStatus,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmStatus {
    pub phase: VmPhase,
    /// The phase in words: `stopped (held by alice)`, `restart in 8 s (3 of 5): QEMU was killed`.
    pub text: String,
    pub node: Option<Name>,
    pub generation: Option<Generation>,
    pub since: Option<jiff::Timestamp>,
    /// Addresses that the host's DHCP keeps for its NICs, by NIC.
    #[serde(default)]
    pub addresses: BTreeMap<Name, IpAddr>,
    /// Carried out at the next cold start.
    pub pending: Vec<FieldChange>,
    /// Changed behind our back.
    pub drift: Vec<FieldChange>,
    /// Disk chains that changed behind our back.
    pub conflicts: Vec<FieldChange>,
    pub error: Option<Error>,
    pub restarts: RestartCount,
    /// `kvm` or `qemu` (TCG).
    pub accel: Option<String>,
    pub qemu_outdated: bool,
    pub warnings: Vec<String>,
}

/// What is true of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmPhase {
    /// Written, no node has it yet.
    Pending,
    /// Volumes and devices are being made.
    Preparing,
    Starting,
    Running,
    Paused,
    Stopping,
    /// On its way to another node.
    Migrating,
    /// Off, as wished.
    Stopped,
    /// Off after a failure; a restart is planned.
    Backoff,
    /// Off, and nothing more will be tried without a person.
    Failed,
    Deleting,
    /// The node's word is missing.
    Unknown,
}

/// Body of `POST /v1/apply`: documents as parsed JSON, each with its `kind`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    pub manifests: Vec<serde_json::Value>,
    /// Answer what would change and write nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Restart VMs (cold) where a change needs it.
    #[serde(default)]
    pub restart: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ApplyAnswer {
    pub results: Vec<ApplyResult>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ApplyResult {
    pub kind: String,
    pub name: Name,
    pub action: ApplyAction,
    pub changes: Vec<PlannedChange>,
    pub warnings: Vec<String>,
    /// None in a dry run and where nothing changed.
    pub operation: Option<Operation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApplyAction {
    Create,
    Update,
    /// The wish is the same, but the domain drifted and is mended.
    Mend,
    Unchanged,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedChange {
    #[serde(flatten)]
    pub change: FieldChange,
    pub when: ChangeWhen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeWhen {
    /// While it runs.
    Live,
    /// At the next cold start.
    Restart,
    /// The same, since an earlier change.
    Pending,
    /// In a first boot only: `vm reinit`, then a restart.
    Reinit,
    /// Changed behind our back; apply puts it back.
    Drift,
    /// Changed behind our back and never mended by apply; `vm adopt --disks`.
    Conflict,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeleteQuery {
    pub keep_disks: bool,
}

/// Body of `POST /v1/vms/{name}/{action}`; each action reads its own fields and refuses others' misuse.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActionRequest {
    /// stop: instead of the manifest's `stop_timeout`.
    pub timeout: Option<Seconds>,
    /// rename, clone: the new name.
    pub name: Option<Name>,
    /// rebuild: the image that the root disk is made from; default: the one it was made from.
    pub image: Option<Name>,
    /// migrate: where to, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migrate: Option<MigrateOptions>,
}

/// Whether a VM can move to another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MovableAnswer {
    /// While it runs.
    pub live: MoveBy,
    /// Shut down for it.
    pub cold: MoveBy,
    /// What is different afterwards.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveBy {
    /// Empty: it can, as far as it is known before a node is asked.
    pub why_not: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptRequest {
    /// libvirt domain name or UUID.
    pub domain: String,
    /// Name in vmkeep; default: the domain's.
    #[serde(default)]
    pub name: Option<Name>,
    /// The node that it is on; default: the one that answers the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Of a VM that we have: take the disk chains as they are now.
    #[serde(default)]
    pub disks: bool,
}

/// A libvirt domain as `vm list -A` shows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DomainView {
    pub uuid: VmId,
    pub name: String,
    pub state: vmkeep_types::observed::DomainState,
    /// vmkeep made or adopted it.
    pub ours: bool,
    /// It carries vmkeep's mark, but no VM of this store has its uuid: the store is older than it, or it is another vmkeep's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    pub id: ImageId,
    pub project: Name,
    pub spec: ImageSpec,
    pub facts: Option<ImageFacts>,
    pub state: ObjectState,
    /// Names of volumes cloned from it.
    pub used_by: Vec<Name>,
    pub created_at: jiff::Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectState {
    Pending,
    Ready,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeView {
    pub id: VolumeId,
    pub project: Name,
    pub name: Name,
    pub pool: Name,
    /// None: it is made where its VM comes to run.
    pub node: Option<Name>,
    pub format: DiskFormat,
    pub size: Option<ByteCount>,
    pub allocated: Option<ByteCount>,
    pub image: Option<Name>,
    pub attached: Option<Attachment>,
    pub vm: Option<Name>,
    /// A file that was there before vmkeep, or an overlay that another tool made: vmkeep does not delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_path: Option<String>,
    /// The operation that is still writing its first data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filling: Option<OperationId>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    pub name: Name,
    #[serde(default = "default_pool")]
    pub pool: Name,
    pub size: Option<ByteCount>,
    #[serde(default)]
    pub format: DiskFormat,
    pub image: Option<Name>,
    /// Where it is made. Default: the only node, or where the VM comes to run that takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
}

fn default_pool() -> Name {
    Name::known("default")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkView {
    pub id: NetworkId,
    pub project: Name,
    pub spec: NetworkSpec,
    pub used_by: Vec<Name>,
    pub created_at: jiff::Timestamp,
    /// What it is on each node that has it and answers; of at most 16 nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub found: BTreeMap<Name, NetworkFound>,
}

/// A NAT network on one node, as libvirt has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkFound {
    pub bridge: String,
    /// The host's own: 10.77.3.1/24, fd12:3456:789a::1/64
    pub addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolView {
    pub id: PoolId,
    pub spec: PoolSpec,
    pub created_at: jiff::Timestamp,
    /// What the file `.vmkeep-pool` says in the folder of a shared pool, on each node that has it; null: not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<PoolMark>,
    /// Nodes that have another folder there, or none: nothing that lies in the pool runs on them. Of one pool only, not in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_on: Vec<Name>,
    /// Its space on each node that has used it and answers; of at most 16 nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub found: BTreeMap<Name, PoolSpace>,
}

/// A wish that a node is asked about before it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WishCheck {
    pub project: Name,
    pub spec: VmSpec,
    /// What was chosen for the VM already.
    pub choices: VmChoices,
    /// Those of its networks that are there, by name.
    pub networks: BTreeMap<Name, NetworkSpec>,
}

/// A pool's file system on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolSpace {
    pub size: ByteCount,
    pub free: ByteCount,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeView {
    pub facts: NodeFacts,
    /// What the cluster hears of it; None: a host alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
    /// What people say of it; its revision is the ETag. None from an older server.
    #[serde(default)]
    pub spec: Option<NodeSpec>,
    /// It takes no new VMs.
    #[serde(default)]
    pub cordon: Option<Cordon>,
    /// What it measured last.
    #[serde(default)]
    pub load: Option<NodeLoad>,
    /// When its watchdog reset it last, and why; told of one node, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reset: Option<Event>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HostCheck {
    pub rows: Vec<CheckRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct XmlAnswer {
    pub xml: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendKeyRequest {
    /// Key names as in `virsh send-key` without KEY_ (`leftctrl`, `leftalt`, `delete`), pressed together.
    pub keys: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    #[serde(default)]
    pub stdin: Option<String>,
    #[serde(default)]
    pub timeout: Option<Seconds>,
}

/// Output of a guest command, each capped at 1 MiB.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExecAnswer {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressView {
    pub nic: Option<Name>,
    pub mac: String,
    /// With prefix length: 10.77.3.12/24
    pub address: String,
    /// `lease`, `agent`, `arp` or `manifest`
    pub source: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogQuery {
    /// serial (default) | qemu
    pub source: Option<String>,
    /// Last lines; default 200, at most 10000.
    pub lines: Option<usize>,
    /// The answer goes on with what is written, until the reader goes.
    pub follow: bool,
}

/// Counters since the VM's start; rates are the reader's subtraction.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VmStats {
    pub id: VmId,
    pub name: Name,
    pub at: jiff::Timestamp,
    pub cpu_time_ns: u64,
    pub vcpus: u32,
    pub memory_bytes: u64,
    pub rss_bytes: u64,
    pub disk_read_bytes: u64,
    pub disk_write_bytes: u64,
    pub disk_read_ops: u64,
    pub disk_write_ops: u64,
    pub net_rx_bytes: u64,
    pub net_tx_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    pub name: Name,
    pub role: Role,
    /// None = does not expire.
    #[serde(default)]
    pub expires_in: Option<Seconds>,
    /// The only projects it opens; None = all, and what belongs to none.
    #[serde(default)]
    pub projects: Option<BTreeSet<Name>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    pub id: String,
    pub name: Name,
    pub role: Role,
    pub created_at: jiff::Timestamp,
    pub expires_at: Option<jiff::Timestamp>,
    /// The only projects it opens; None = all.
    #[serde(default)]
    pub projects: Option<BTreeSet<Name>>,
}

/// The only time the secret is shown.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    pub token: TokenView,
    pub secret: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UploadCreated {
    pub upload: uuid::Uuid,
    /// Bytes that are there already: go on from here.
    pub have: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VersionAnswer {
    pub version: String,
    pub node: Name,
    pub store: String,
    pub level: u64,
}

/// An object and the operation that carries its change out; the body of 202.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    pub operation: Operation,
    /// Shown once: a generated console password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An event and what to call it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    /// Of `GET /v1/events/{id}`.
    #[serde(default)]
    pub id: String,
    #[serde(flatten)]
    pub event: Event,
}

/// One SSE event of a `?watch`: `event:` is `put`, `deleted`, `bookmark` or `gone`; `id:` is the watch token.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WatchEvent {
    Put {
        object: serde_json::Value,
    },
    Deleted {
        name: Name,
        id: uuid::Uuid,
    },
    /// Nothing happened; the token moved on.
    Bookmark,
}

/// RFC 9457, with our members.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ProblemBody {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    pub code: vmkeep_types::error::Code,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// On `stale`: what is there now.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// A disk's top image, as a domain names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundDisk {
    /// On the host.
    pub path: String,
    /// Never guessed from the file: a guest writes what it likes into a raw one.
    pub format: DiskFormat,
}

/// What a node says of a libvirt domain that may be taken over.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AdoptionProposal {
    pub uuid: VmId,
    pub name: String,
    /// The wish that describes what is there.
    pub spec: VmSpec,
    pub choices: VmChoices,
    /// Disk name to its top image.
    pub disks: BTreeMap<Name, FoundDisk>,
    pub running: bool,
    /// How often its guest was told to take itself for a new one, as its cloud-init seed says.
    #[serde(default)]
    pub instance: u32,
    /// It carries vmkeep's mark.
    #[serde(default)]
    pub ours: bool,
    /// What the manifest cannot say and vmkeep will leave alone.
    pub warnings: Vec<String>,
}
