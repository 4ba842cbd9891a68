//! Pools and the volumes in them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{ImageId, OperationId, PoolId, PoolMark, VmId, VolumeId};
use crate::name::Name;
use crate::units::ByteCount;
use crate::vm::DiskFormat;

/// Where volumes and images lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolSpec {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    /// Refuses unknown fields for both: serde cannot on a struct with a flattened field.
    #[serde(flatten)]
    pub driver: PoolDriver,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "driver", rename_all = "lowercase", deny_unknown_fields)]
pub enum PoolDriver {
    /// qcow2 and raw files in a directory of the host (admin only).
    Dir {
        /// Folder of the host; made when it is first used. It is vmkeep's alone.
        path: String,
        /// Every node has the same files there (NFS, CephFS): volumes are bound to no node, and migrations copy none.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        shared: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolRecord {
    pub id: PoolId,
    pub spec: PoolSpec,
    /// It is about to go, or to lie elsewhere: nothing new is made in it. Whoever changes or deletes it next goes on from here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Of a shared pool: the mark in its folder, once two nodes have found the same one. Where another lies, or none, the pool is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<PoolMark>,
    pub created_at: jiff::Timestamp,
}

/// The stored volume: the wish for a disk's data. It outlives the VM when the VM is deleted with `--keep-disks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeRecord {
    pub id: VolumeId,
    pub project: Name,
    /// Unique in its project; `VM-DISK` for those made with a VM.
    pub name: Name,
    pub pool: Name,
    /// The node whose pool holds it. None: nobody does yet; the node that gets its VM makes it there.
    #[serde(default)]
    pub node: Option<Name>,
    /// None: the image's size.
    pub size: Option<ByteCount>,
    /// Of the data that is there: of a file that vmkeep did not make, what libvirt said when it was taken over.
    pub format: DiskFormat,
    /// Cloned from this image, copy-on-write; an image in use cannot be deleted.
    pub image: Option<ImageId>,
    /// A file that was there before us (an adopted VM's disk): never created, never deleted by vmkeep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_path: Option<String>,
    /// The operation that is writing its first data: until that ends nobody else makes it, opens it or attaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filling: Option<OperationId>,
    /// A node said that its data is there. From then on a file that is missing is an error wherever the volume is opened: a
    /// pool that is not mounted must not give a VM an empty disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// The VM it is attached to, and as which disk.
    pub attached: Option<Attachment>,
    pub created_at: jiff::Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attachment {
    pub vm: VmId,
    pub disk: Name,
}

impl VolumeRecord {
    /// `qcow2` or `raw`, for QEMU.
    ///
    /// # Errors
    /// A file that vmkeep did not make, taken over before its format was noted: a guess could show a guest the host's files.
    pub fn data_format(&self) -> Result<&'static str, Error> {
        match (self.format, &self.foreign_path) {
            (DiskFormat::Raw, _) => Ok("raw"),
            (DiskFormat::Qcow2, _) | (DiskFormat::Auto, None) => Ok("qcow2"),
            (DiskFormat::Auto, Some(path)) => Err(Error::conflict(format!("nobody noted whether {path} is qcow2 or raw"))
                .hint("`vmkeep vm adopt NAME --disks` takes what the domain says")),
        }
    }
}
