//! Bodies about the keys under which secrets lie sealed. No secret and no private key is in any of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmkeep_types::name::Name;

/// How secrets lie sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretsView {
    /// Ids of the control plane's keys, oldest first: the last one seals, the others open what they sealed.
    pub keys: Vec<String>,
    /// Who can open them.
    pub hosts: Vec<SecretsHost>,
    /// There while hosts renew their keys.
    pub rotation: Option<SecretsRotation>,
}

/// A host of the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretsHost {
    pub node: Name,
    /// Id of its key, which lies in `seal.key` on its disk.
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretsRotation {
    pub by: String,
    pub at: jiff::Timestamp,
    /// Hosts that have yet to renew theirs.
    pub waits_for: Vec<Name>,
}
