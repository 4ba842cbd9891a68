//! A guest that was paused, or whose host slept, has missed the time: its agent is told (`guest-set-time`, QEMU guest agent protocol).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmkeep_types::ids::VmId;

use super::node::Node;

/// An agent that is there answers at once; the VM's worker waits meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sets the guest's clock to the host's. A guest without an agent keeps its own.
pub async fn set(node: &Node, vm: VmId) {
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return };
    if let Err(error) = node.hv.agent_command(vm, command(now), PATIENCE).await {
        tracing::debug!(%vm, %error, "the guest's clock is not set after its pause");
    }
}

fn command(now: Duration) -> String {
    serde_json::json!({"execute": "guest-set-time", "arguments": {"time": u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)}}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_since_1970() {
        let said: serde_json::Value = serde_json::from_str(&command(Duration::from_millis(1_700_000_000_250))).expect("JSON");
        assert_eq!(said["arguments"]["time"], 1_700_000_000_250_000_000_u64);
    }
}
