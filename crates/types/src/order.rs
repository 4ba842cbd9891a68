//! What a node is told: one [`Order`] per VM it owns, mirrored by the leader to `n/NODE/order/VM`, and one [`NodeTask`] per
//! imperative request. An agent reads nothing else, so it never sees other nodes' secrets.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hash::fnv64;
use crate::ids::{Epoch, Generation, ImageId, OperationId, Revision, VmId, VolumeId};
use crate::image::{BuildRecipe, ImageFacts};
use crate::migration::{Handed, Moving};
use crate::name::Name;
use crate::network::NetworkSpec;
use crate::pool::{PoolSpec, VolumeRecord};
use crate::record::{Leaving, Power, VmChoices, VmOrigin};
use crate::vm::VmSpec;

/// Everything a node needs to run one VM. State, not a command: obeying it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    pub vm: VmId,
    pub project: Name,
    pub spec: VmSpec,
    /// Revision of the wish that this order carries.
    pub spec_revision: Revision,
    pub generation: Generation,
    pub epoch: Epoch,
    pub choices: VmChoices,
    pub power: Power,
    pub origin: VmOrigin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
    /// Of the store, as whoever wrote this knew it: in its form the node's words are read. 0: it was not said.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub level: u64,
    /// As in the record.
    #[serde(default)]
    pub instance: u32,
    /// Disk name to its volume.
    pub volumes: BTreeMap<Name, VolumeRecord>,
    /// Volumes detached from this VM that are to be deleted or kept are orders of their own (`NodeTask`).
    pub images: BTreeMap<ImageId, ImageBrief>,
    /// Network name to its spec, for the networks its NICs use.
    pub networks: BTreeMap<Name, NetworkSpec>,
    pub pools: BTreeMap<Name, PoolSpec>,
    /// It is on its way to another node, or has just come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// What the node before remembered, for a worker that has no memory of this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handed: Option<Handed>,
}

fn is_zero(level: &u64) -> bool {
    *level == 0
}

impl Order {
    /// A number that is another one when the order says something else: the leader only compares, and need not keep 20 000 orders.
    pub fn digest(&self) -> u64 {
        fnv64(serde_json::to_vec(self).expect("plain data"))
    }

    /// A number that is another one when its networks are described otherwise: what is written of NICs comes from there.
    pub fn networks_hash(&self) -> u64 {
        fnv64(serde_json::to_vec(&self.networks).expect("plain data"))
    }
}

/// What a node must know of an image to clone it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageBrief {
    pub name: Name,
    pub pool: Name,
    pub facts: Option<ImageFacts>,
    /// Other nodes that it can be fetched from, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
}

/// A node that has an image, and where its agent is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    pub node: Name,
    /// `ADDRESS:PORT`.
    pub address: String,
}

/// One imperative request to a node, at `n/NODE/task/OPERATION`. Done at least once; its outcome goes to
/// `n/NODE/result/OPERATION` as a [`TaskResult`], and the leader folds that into the operation and removes both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeTask {
    pub op: OperationId,
    pub project: Name,
    pub work: Work,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Work {
    /// Ask the guest to reboot (ACPI or agent).
    Reboot {
        vm: VmId,
    },
    /// Pull the reset line.
    Reset {
        vm: VmId,
    },
    Pause {
        vm: VmId,
    },
    Resume {
        vm: VmId,
    },
    Fetch {
        image: ImageId,
        pool: PoolSpec,
        url: String,
        sha256: Option<String>,
    },
    ImportUpload {
        image: ImageId,
        pool: PoolSpec,
        upload: uuid::Uuid,
        sha256: Option<String>,
    },
    Build {
        image: ImageId,
        pool: PoolSpec,
        recipe: BuildRecipe,
    },
    ImageFromVolume {
        image: ImageId,
        pool: PoolSpec,
        volume: VolumeRecord,
        volume_pool: PoolSpec,
    },
    DeleteImage {
        image: ImageId,
        pool: PoolSpec,
    },
    CreateVolume {
        volume: VolumeRecord,
        pool: PoolSpec,
        image: Option<ImageBrief>,
    },
    /// For `vm clone`; the source's VM must be off or its agent frozen.
    CopyVolume {
        from: VolumeRecord,
        from_pool: PoolSpec,
        to: VolumeRecord,
        to_pool: PoolSpec,
    },
    DeleteVolume {
        volume: VolumeId,
        pool: PoolSpec,
    },
    DeleteNetwork {
        network: NetworkSpec,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    pub op: OperationId,
    pub state: TaskState,
    /// Done so far and in all, bytes or steps; None where it is not known.
    pub progress: Option<Progress>,
    pub steps: Vec<String>,
    pub facts: Option<ImageFacts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum TaskState {
    Running,
    Done,
    Failed { error: crate::error::Error },
}
