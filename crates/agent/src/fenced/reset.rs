//! Why the host was reset, from the file that the guard wrote before it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use vmkeep_store::StoreError;
use vmkeep_types::event::Level;

use crate::runtime::{Node, node_event};

/// Between two attempts to tell a store that does not answer.
const REST: Duration = Duration::from_secs(5);

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

/// Tells why this host was reset, as an event of the node, once for each reset: beside the file lies which one was told.
pub async fn tell(node: &Node, file: &Path, stop: CancellationToken) {
    let Some(last) = last_reset(file, &node.boot_id) else { return };
    let (mark, told) = (file.with_extension("told"), format!("{} {}", last.boot_id, last.at_unix_s));
    if std::fs::read_to_string(&mark).is_ok_and(|before| before == told) {
        return;
    }
    while let Err(error) = put(node, &last).await {
        tracing::warn!(%error, "why this host was reset is told later");
        if stop.run_until_cancelled(tokio::time::sleep(REST)).await.is_none() {
            return;
        }
    }
    if let Err(error) = std::fs::write(&mark, told) {
        tracing::warn!(%error, file = %mark.display(), "why this host was reset will be told again");
    }
}

/// The same event however often it is written.
async fn put(node: &Node, last: &LastReset) -> Result<(), StoreError> {
    let message = format!("vmkeep-fenced let the watchdog reset {}: {last}", node.name);
    tracing::warn!("{message}");
    let at = Timestamp::from_second(last.at_unix_s).unwrap_or_else(|_| Timestamp::now());
    let event = node_event::event(node, at, Level::Error, "node.was-reset", message);
    let stamp = format!("{:020}-reset", at.as_nanosecond());
    node_event::put(node, stamp, &event).await
}

#[cfg(test)]
mod tests {
    use vmkeep_store::{Op, Store, Txn, keys, typed};
    use vmkeep_types::event::Event;

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

    #[tokio::test]
    async fn a_reset_is_told_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = std::sync::Arc::new(vmkeep_store::embedded::EmbeddedStore::in_memory().expect("memory"));
        let node = crate::runtime::claim::tests::joined(&store, dir.path(), "now").await;
        let file = dir.path().join("reason.json");
        std::fs::write(&file, "{\"boot_id\":\"before\",\"at_unix_s\":1700000000,\"reason\":\"sealed\",\"silent_ms\":0}\n")
            .expect("written");
        for told in [1, 0] {
            tell(&node, &file, CancellationToken::new()).await;
            let events = typed::list_json::<Event>(store.as_ref(), &keys::node_events(&node.name)).await.expect("a listing");
            assert_eq!(events.len(), told);
            for event in events {
                assert!(event.value.message.ends_with("dead"), "{}", event.value.message);
                store.txn(Txn::default().then(Op::Delete(event.key))).await.expect("filed");
            }
        }
    }
}
