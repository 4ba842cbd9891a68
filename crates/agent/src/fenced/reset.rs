//! Why the host was reset, from the file that the guard wrote before it.

use std::path::Path;

use serde::Deserialize;

/// Where the guard writes it.
pub const FILE: &str = "/var/lib/vmkeep/fenced/reason.json";

/// The guard's last words.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LastReset {
    /// Of the boot in which they were written.
    pub boot_id: String,
    pub at_unix_s: i64,
    #[serde(flatten)]
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "reason", rename_all = "lowercase")]
pub enum Why {
    /// No renewal reached the store for so many ms.
    Silent { silent_ms: u64 },
    /// Other nodes were told that this one is dead.
    Sealed,
}

impl std::fmt::Display for LastReset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.why {
            Why::Silent { silent_ms } => {
                write!(f, "it could not renew itself in the store for {}.{} s", silent_ms / 1000, silent_ms % 1000 / 100)
            }
            Why::Sealed => write!(f, "the other nodes had been told that it is dead"),
        }
    }
}

/// What the guard wrote in the boot before this one. None: nothing, or only in this boot (VMs were killed, and the renewals came
/// back before the reset), or it cannot be read.
pub fn last_reset(file: &Path, boot_id: &str) -> Option<LastReset> {
    let text = std::fs::read_to_string(file).ok()?;
    let last: LastReset = serde_json::from_str(text.lines().next()?).ok()?;
    (last.boot_id != boot_id).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Option<&str>) {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("reason.json");
        std::fs::write(&file, text).expect("written");
        assert_eq!(last_reset(&file, "now").map(|last| last.to_string()).as_deref(), want, "{text}");
    }

    #[test]
    fn only_an_earlier_boot_tells() {
        let silent = "{\"boot_id\":\"before\",\"at_unix_s\":1700000000,\"reason\":\"silent\",\"silent_ms\":15234}\nrest of an older text";
        check(silent, Some("it could not renew itself in the store for 15.2 s"));
        check(&silent.replace("before", "now"), None);
        check(
            "{\"boot_id\":\"before\",\"at_unix_s\":1,\"reason\":\"sealed\",\"silent_ms\":0}\n",
            Some("the other nodes had been told that it is dead"),
        );
        check("", None);
        check("{\"boot_id\":\"befo", None);
    }
}
