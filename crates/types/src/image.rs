//! Images: what VM disks are made from.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{ImageId, OperationId};
use crate::name::Name;
use crate::units::ByteCount;
use crate::vm::{Firmware, OsFamily};

/// Where an image comes from: the body of `POST /v1/images`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "lowercase", deny_unknown_fields)]
pub enum ImageSource {
    /// http(s) URL fetched by the node, resumed after a break.
    Url { url: String, sha256: Option<String> },
    /// A file uploaded before to `PUT /v1/uploads/{id}`.
    Upload { upload: uuid::Uuid, sha256: Option<String> },
    /// Built on the node from its own apt sources.
    Build { recipe: BuildRecipe },
    /// A copy of a VM's stopped root disk, or of a volume.
    Volume { volume: Name },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BuildRecipe {
    #[serde(rename = "tiny")]
    Tiny,
    #[serde(rename = "debian-12")]
    Debian12,
    #[serde(rename = "debian-13")]
    Debian13,
}

impl BuildRecipe {
    pub const ALL: [Self; 3] = [Self::Tiny, Self::Debian12, Self::Debian13];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Debian12 => "debian-12",
            Self::Debian13 => "debian-13",
        }
    }
}

/// An image that disks are made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default = "default_pool")]
    pub pool: Name,
    pub source: ImageSource,
}

fn default_pool() -> Name {
    Name::known("default")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    Disk,
    Iso,
}

/// What import found inside the image: a VM's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageFacts {
    pub kind: ImageKind,
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// What it takes in the pool.
    pub stored_size: ByteCount,
    /// Of the source as it came, hex.
    pub sha256: Option<String>,
    pub firmware: Firmware,
    pub os: OsFamily,
    /// Text such as "Debian GNU/Linux 12 (bookworm)", where it was found.
    pub os_name: Option<String>,
    pub cloud_init: Found,
    pub guest_agent: Found,
    pub virtio: Found,
    /// Shown at import and by `image show`.
    pub warnings: Vec<String>,
}

/// What a look into an image may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    Yes,
    No,
    Unknown,
}

/// The stored image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageRecord {
    pub id: ImageId,
    pub project: Name,
    pub spec: ImageSpec,
    /// None until the import ended.
    pub facts: Option<ImageFacts>,
    /// The operation that deletes it; nothing new is made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<OperationId>,
    /// The node that imported it.
    pub node: Name,
    /// Other nodes that have a copy, or are about to fetch one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub copies: BTreeSet<Name>,
    pub created_at: jiff::Timestamp,
}

impl ImageRecord {
    /// Nodes that have it, the one that imported it first.
    pub fn holders(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.node).chain(self.copies.iter().filter(|copy| **copy != self.node))
    }

    /// The image as it is when `node` has it no more; None: nobody has.
    pub fn without(&self, node: &Name) -> Option<Self> {
        let mut left = self.holders().filter(|holder| *holder != node).cloned();
        let first = left.next()?;
        Some(Self { node: first, copies: left.collect(), ..self.clone() })
    }
}
