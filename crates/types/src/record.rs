//! What the control plane stores about VMs: the wish, what was chosen once, the power intent and the owner.
//!
//! Each is a key of its own, so that a transaction can compare it whole and the ETag of a VM (the revision of its wish)
//! does not move when status or choices do. The key layout is in `vmkeep-store::keys`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;
use crate::ids::{Epoch, Generation, VmId, VolumeId};
use crate::name::Name;
use crate::units::Seconds;
use crate::vm::VmSpec;

/// The wish. Its key's revision is the VM's `spec_revision` and ETag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmRecord {
    pub id: VmId,
    pub project: Name,
    pub spec: VmSpec,
    /// Disk name to the volume that holds its data.
    pub volumes: BTreeMap<Name, VolumeId>,
    pub created_at: jiff::Timestamp,
    pub origin: VmOrigin,
    /// Set once; the VM is going away and nothing else about it is obeyed.
    pub leaving: Option<Leaving>,
    /// How often the guest was told to take itself for a new one; its cloud-init then runs a first boot again.
    #[serde(default)]
    pub instance: u32,
    /// The instance that has booted without a change which only a first boot reads; another one since then has read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reinit_due: Option<u32>,
}

impl VmRecord {
    /// A VM that vmkeep is asked to make, without disks yet.
    pub fn created(id: VmId, project: Name, spec: VmSpec, created_at: jiff::Timestamp) -> Self {
        Self {
            id,
            project,
            spec,
            volumes: BTreeMap::new(),
            created_at,
            origin: VmOrigin::Created,
            leaving: None,
            instance: 0,
            reinit_due: None,
        }
    }

    /// The guest has not read all of its cloud-init, and will not before a `reinit`.
    pub fn needs_reinit(&self) -> bool {
        self.reinit_due == Some(self.instance)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmOrigin {
    /// vmkeep made the domain.
    Created,
    /// An existing libvirt domain was taken over, with its UUID and disks.
    Adopted,
}

/// How a VM goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Leaving {
    /// Killed, undefined, volumes, NVRAM and TPM state deleted.
    Delete,
    /// Killed and undefined; volumes stay as unused volumes.
    DeleteKeepDisks,
    /// Our metadata is removed; the domain stays and keeps running; volumes become nobody's.
    Release,
}

/// Chosen once and kept, so that guests never see their hardware move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmChoices {
    /// NIC name to MAC.
    pub macs: BTreeMap<Name, String>,
    /// Disk name to serial.
    pub serials: BTreeMap<Name, String>,
    /// Device alias (`ua-disk-root`) to the `<address …/>` element libvirt gave it.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub addresses: Addresses,
    /// Versioned machine type, `pc-q35-10.0`.
    #[serde(default)]
    pub machine: Option<String>,
    /// Expanded `<cpu>` element.
    #[serde(default)]
    pub cpu_xml: Option<String>,
    #[serde(default)]
    pub firmware: Option<FirmwareChoice>,
    /// `kvm` or `qemu` (TCG).
    #[serde(default)]
    pub domain_type: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum FirmwareChoice {
    Bios,
    Uefi { loader: String, loader_format: String, template: String, secure_boot: bool },
}

/// What people want of a VM's power, apart from the run policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Power {
    pub want: PowerWish,
    /// + 1 with every start, stop, kill or restart by a person; what an operation waits for.
    pub cycle: u64,
    /// Who stopped it on purpose; kept over boots and daemon restarts, ended by `start`, not by `apply`.
    pub held: Option<Hold>,
    /// For this stop, instead of the wish's `stop_timeout`.
    #[serde(default)]
    pub stop_timeout: Option<Seconds>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerWish {
    On,
    /// Graceful, then killed after `stop_timeout`.
    Off,
    /// Pulled at once.
    Killed,
    /// Off and on again (cold), at `cycle`.
    Restart,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hold {
    pub by: String,
    pub at: jiff::Timestamp,
}

/// The one truth of who may run a VM (ha-protocol: the owner record is the placement).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    pub vm: VmId,
    pub project: Name,
    pub node: Name,
    pub epoch: Epoch,
    pub generation: Generation,
    /// The node that it is on its way to. While it is set nobody claims the VM, and its end needs both to be cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Heir>,
}

/// What is left of the right to run a VM that a dead node had, when that node was removed; until another node has the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    /// The next right to run is above it.
    pub generation: Generation,
    pub from: Name,
    /// Disks whose data only that node had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Name>,
    pub at: jiff::Timestamp,
}

impl Released {
    /// For whoever asks where the VM is.
    pub fn words(&self) -> String {
        match self.lost.as_slice() {
            [] => format!("waits for a node: its own, {}, was dead and is removed", self.from),
            lost => {
                let disks: Vec<&str> = lost.iter().map(Name::as_str).collect();
                format!("lost: the data of its disks ({}) was only on {}, which was dead and is removed", disks.join(", "), self.from)
            }
        }
    }
}

/// The destination of a migration under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heir {
    pub node: Name,
    pub epoch: Epoch,
}

/// The agent's claim before every start; see ../docs/concepts/ownership.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    pub generation: Generation,
    pub epoch: Epoch,
    /// The claim's own number: a new one for each start.
    pub start: uuid::Uuid,
}

/// Who asked, for hold, audit and events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Caller {
    pub name: String,
    pub role: Role,
    /// How we know: a token may have the name of a user of the host.
    pub via: Via,
    /// The only projects it may work in; None = all.
    pub projects: Option<BTreeSet<Name>>,
}

/// How a caller was known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The kernel said so.
    Uid(u32),
    /// Id of a bearer token.
    Token(String),
    /// Common name of a certificate that was shown.
    Certificate(String),
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Token(id) => write!(f, "token {id}"),
            Self::Certificate(name) => write!(f, "certificate {name}"),
        }
    }
}

impl Caller {
    /// May it work in this project?
    pub fn may_enter(&self, project: &Name) -> bool {
        self.projects.as_ref().is_none_or(|only| only.contains(project))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Changes VMs, images, volumes.
    Operator,
    /// Also host paths, raw XML, devices, networks, pools, tokens.
    Admin,
}
