//! Typed uids and counters. A uid never changes and is never used again; a name is only an index to it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::name::Name;

macro_rules! uid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

uid!(/** A VM; also its libvirt domain's UUID and its SMBIOS UUID. */ VmId);
uid!(/** A disk's data in a pool. */ VolumeId);
uid!(ImageId);
uid!(NetworkId);
uid!(PoolId);
uid!(/** Lies in a shared pool's folder: hosts that read the same one have the same files there. */ PoolMark);
uid!(/** Time-ordered (UUIDv7), so that a key listing is in order of creation. */ OperationId);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(/** The right to run a VM: + 1 with every change of owner, unchanged by edits of the wish. */ Generation);
counter!(/** One life of a node: it ends in a reboot or an orderly goodbye. */ Epoch);
/// Lives of one node, and changes of owner of one VM, in one incarnation of a cluster: far more than a machine boots.
const PER_INCARNATION: u64 = 1 << 20;

impl Epoch {
    /// The first of a node in a cluster's incarnation: greater than every one of the incarnations before.
    #[must_use]
    pub fn first_of(incarnation: u64) -> Self {
        Self(incarnation * PER_INCARNATION + 1)
    }
}

impl Generation {
    /// The first of a VM in a cluster's incarnation: greater than every one of the incarnations before, those too that a restored
    /// backup does not know.
    #[must_use]
    pub fn first_of(incarnation: u64) -> Self {
        Self(incarnation * PER_INCARNATION + 1)
    }
}

counter!(/** Revision of the store at which something was written. */ Revision);

/// A node has no uid of its own: what is written of it, events for one, goes under one made from its name.
pub fn node_uid(name: &Name) -> Uuid {
    let digest = Sha256::digest(format!("node/{name}"));
    Uuid::from_slice(&digest[..16]).expect("sixteen bytes")
}
