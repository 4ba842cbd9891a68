//! The keys under which secrets lie sealed, as they are renewed.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `seal/rotation`: hosts of the control plane make themselves new keys; there until all have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rotation {
    /// Ids of the keys that they had when it began: whoever still shows one has yet to renew it.
    pub retire: BTreeSet<String>,
    /// Who asked for it.
    pub by: String,
    pub at: jiff::Timestamp,
}
