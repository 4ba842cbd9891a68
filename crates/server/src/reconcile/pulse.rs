//! Heartbeats as the leader hears them, and what it says of a node when they stop.
//!
//! ```text
//!  n/NODE/hb ──watch──► view ──look, each second──► core::health::judge ──► state/NODE, when it changes
//! ```
//! Time is the leader's own, from when it first saw a heartbeat's revision: a new leader gives every node its time anew, and one
//! whose watch or lease breaks loses what it knew with its leadership. A node that was silent stays so until it is heard: else each new
//! leader would place VMs on hosts that are off. No decision about who may run a VM rests on it.

use std::collections::BTreeMap;

use tokio::time::Instant;
use vmkeep_core::ha::timers::Timers;
use vmkeep_core::health::judge;
use vmkeep_store::{Compare, Txn, keys, typed};
use vmkeep_types::host::NodeState;
use vmkeep_types::ids::Revision;
use vmkeep_types::name::Name;

use super::view::ClusterView;

#[derive(Default)]
pub struct Pulse(BTreeMap<Name, Last>);

/// A node's last heartbeat.
struct Last {
    beat: Revision,
    /// When it was first seen.
    at: Instant,
    /// This leader has seen another one before it; what a listing shows may be old.
    heard: bool,
}

impl Pulse {
    /// The states that are not what is stored. A node without heartbeats (a host alone) has no state.
    pub fn look(&mut self, view: &ClusterView, now: Instant, wall: jiff::Timestamp) -> Vec<Txn> {
        self.0.retain(|node, _| view.nodes.contains_key(node));
        let mut changed = Vec::new();
        for (node, keys_of) in &view.nodes {
            let Some((beat, profile)) = keys_of.beat else { continue };
            let timers = Timers::of(view.ha_settings.profile).or_longer(Timers::of(profile));
            let last = self.0.entry(node.clone()).or_insert(Last { beat, at: now, heard: false });
            if last.beat != beat {
                *last = Last { beat, at: now, heard: true };
            }
            let silent = now.saturating_duration_since(last.at);
            let judged = judge(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX), &timers);
            let stored = view.states.get(node);
            let state = stored.filter(|_| !last.heard).map_or(judged, |stored| stored.value.state.max(judged));
            if stored.is_some_and(|stored| stored.value.state == state) {
                continue;
            }
            let key = keys::state(node);
            let guard = stored.map_or_else(|| Compare::Absent(key.clone()), |s| Compare::ModifiedAt(key.clone(), s.modified));
            let ago = jiff::SignedDuration::try_from(silent).unwrap_or(jiff::SignedDuration::ZERO);
            let since = wall.checked_sub(ago).unwrap_or(wall);
            let since = jiff::Timestamp::from_second(since.as_second()).unwrap_or(since);
            // A node that was taken out meanwhile leaves no state behind.
            let lives = Compare::Present(keys::heartbeat(node));
            changed.push(Txn::default().when(guard).when(lives).then(typed::put(key, &NodeState { state, since })));
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};
    use vmkeep_store::embedded::EmbeddedStore;
    use vmkeep_store::{Op, Store};
    use vmkeep_types::ha::TimerProfile;
    use vmkeep_types::host::Heartbeat;
    use vmkeep_types::ids::Epoch;

    use super::super::view::{ClusterView, PREFIXES};
    use super::*;

    struct Bed {
        store: EmbeddedStore,
        pulse: Pulse,
        begin: Instant,
    }

    impl Bed {
        async fn beat(&self, seq: u64) {
            let beat =
                typed::put(keys::heartbeat(&Name::known("node1")), &Heartbeat { epoch: Epoch(1), seq, profile: TimerProfile::Standard });
            self.store.txn(Txn::default().then(beat)).await.expect("a write");
        }

        async fn check(&mut self, after_seconds: u64, expect: Expect) {
            let listing = self.store.list_many(&PREFIXES).await.expect("a listing");
            let (view, _) = ClusterView::new(listing.revision, &listing.items);
            let wall = jiff::Timestamp::from_second(1_700_000_000 + i64::try_from(after_seconds).expect("small")).expect("a time");
            let txns = self.pulse.look(&view, self.begin + Duration::from_secs(after_seconds), wall);
            let told = |txn: &Txn| match &txn.then[..] {
                [Op::Put(key, value)] => format!("{key} {}", String::from_utf8_lossy(value)),
                other => format!("{other:?}"),
            };
            expect.assert_eq(&txns.iter().map(told).collect::<Vec<_>>().join("\n"));
            for txn in txns {
                self.store.txn(txn).await.expect("a write");
            }
        }
    }

    #[tokio::test]
    async fn a_node_is_told_online_suspect_offline_and_back() {
        let mut bed = Bed { store: EmbeddedStore::in_memory().expect("memory"), pulse: Pulse::default(), begin: Instant::now() };
        bed.check(0, expect![""]).await;
        bed.beat(1).await;
        bed.check(1, expect![[r#"state/node1 {"state":"online","since":"2023-11-14T22:13:21Z"}"#]]).await;
        bed.check(7, expect![""]).await;
        bed.check(8, expect![[r#"state/node1 {"state":"suspect","since":"2023-11-14T22:13:21Z"}"#]]).await;
        bed.check(17, expect![[r#"state/node1 {"state":"offline","since":"2023-11-14T22:13:21Z"}"#]]).await;
        // A new leader has not heard it at all.
        bed.pulse = Pulse::default();
        bed.check(20, expect![""]).await;
        bed.check(36, expect![""]).await;
        bed.beat(2).await;
        bed.check(37, expect![[r#"state/node1 {"state":"online","since":"2023-11-14T22:13:57Z"}"#]]).await;
        // Nor silent: one that was heard by the leader before has as long as any.
        bed.pulse = Pulse::default();
        bed.check(50, expect![""]).await;
        bed.check(57, expect![[r#"state/node1 {"state":"suspect","since":"2023-11-14T22:14:10Z"}"#]]).await;
    }
}
