//! How a node's power is cut from outside: one of Debian's fence agents, and what it is told.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::Name;

/// Options of an agent that everybody may see. All others are secret: agents have many names for passwords.
const OPEN: [&str; 20] = [
    "auth",
    "cipher",
    "ip",
    "ipaddr",
    "ipport",
    "lanplus",
    "login",
    "login_timeout",
    "plug",
    "port",
    "power_timeout",
    "power_wait",
    "privlvl",
    "shell_timeout",
    "ssl",
    "ssl_insecure",
    "ssl_secure",
    "systems_uri",
    "username",
    "uuid",
];

/// What stands for a value that is not shown.
pub const HIDDEN: &str = "***";

/// Is the value of this option kept from those who look?
pub fn is_secret(option: &str) -> bool {
    !OPEN.contains(&option)
}

/// Body of `PUT /v1/nodes/{name}/fence`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FenceSpec {
    /// Without `fence_`: `ipmilan`, `redfish`, `virsh`.
    pub agent: String,
    /// As the agent's manual page calls them: `ip`, `username`, `password`, `plug`. `***` keeps a value as it is.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// Its values are not for logs.
impl std::fmt::Debug for FenceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FenceSpec").field("agent", &self.agent).field("options", &self.options.keys()).finish()
    }
}

/// What is stored at `stonith/NODE`; the options lie sealed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FenceRecord {
    pub agent: String,
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The last time that somebody tried, or the night's test did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tested: Option<FenceTested>,
}

impl std::fmt::Debug for FenceRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FenceRecord").field("agent", &self.agent).field("options", &self.options.keys()).finish_non_exhaustive()
    }
}

/// What a test found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FenceTested {
    pub at: jiff::Timestamp,
    #[serde(flatten)]
    pub found: FenceFound,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "power", rename_all = "lowercase")]
pub enum FenceFound {
    On,
    Off,
    /// The agent failed: the node's power cannot be cut.
    Unknown {
        why: String,
    },
}

/// Answer of the fence routes; values of secret options are `***`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FenceView {
    pub node: Name,
    pub agent: String,
    pub options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tested: Option<FenceTested>,
}

/// Body of `POST /v1/nodes/{name}/fence/test`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FenceTest {
    /// Cuts the power, looks whether it is off, and switches it on again. Only of a node that owns no VM.
    pub really: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_secret() {
        for option in ["password", "passwd", "snmp_priv_passwd", "identity_file", "token", ""] {
            assert!(is_secret(option), "{option}");
        }
        assert!(!is_secret("ip"));
        let spec = FenceSpec { agent: "ipmilan".into(), options: BTreeMap::from([("password".into(), "hunter2".into())]) };
        assert!(!format!("{spec:?}").contains("hunter2"));
    }
}
