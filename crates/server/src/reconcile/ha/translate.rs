//! A vigil's transaction in the words of the store.

use vmkeep_core::ha::record::{self, Key, NodeNo, Value};
use vmkeep_core::ha::vigil::Ledger;
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::ha::{Confirmed, Fence, Incident};
use vmkeep_types::ids::Epoch;

use super::ledger::Known;

/// About `node`; a seal also begins the story of its death. `heard`: its last sign of life, where this control node heard one.
pub fn txn(known: &Known<'_>, node: NodeNo, txn: record::Txn, heard: Option<jiff::Timestamp>, wall: jiff::Timestamp) -> Txn {
    let mut told = Txn::default();
    told.compare.extend(txn.compare.iter().map(|compare| self::compare(known, *compare)));
    for op in txn.then {
        let record::Op::Put(key, value) = op else { continue };
        told.then.push(put(known, key, value, wall));
        if let Key::Fence(_, epoch) = key {
            told.then.push(story(known, node, epoch, heard, wall));
        }
    }
    told
}

fn key(known: &Known<'_>, key: Key) -> String {
    match key {
        Key::Disarm => keys::HA_DISARM.into(),
        Key::Epoch(node) => keys::epoch(known.node(node)),
        Key::Beat(node) => keys::heartbeat(known.node(node)),
        Key::Fence(node, epoch) => keys::fence(known.node(node), epoch),
        Key::Confirmed(node, epoch) => keys::confirmed(known.node(node), epoch),
        Key::Armed(node, epoch) => keys::armed(known.node(node), epoch),
        Key::Waiting(node) => keys::waiting(known.node(node)),
        other => unreachable!("a vigil writes about nodes only, not {other:?}"),
    }
}

fn compare(known: &Known<'_>, compare: record::Compare) -> Compare {
    match compare {
        record::Compare::Revision(of, at) => Compare::ModifiedAt(key(known, of), at),
        record::Compare::Absent(of @ Key::Armed(node, epoch)) => unarmed(known, of, node, epoch),
        record::Compare::Absent(of) => Compare::Absent(key(known, of)),
        record::Compare::Present(of) => Compare::Present(key(known, of)),
        record::Compare::OwnsNothing(node) => Compare::PrefixEmpty(keys::owned(known.node(node))),
    }
}

/// Here every epoch says how it would die, that of an unarmed node too.
fn unarmed(known: &Known<'_>, of: Key, node: NodeNo, epoch: Epoch) -> Compare {
    let said = known.view.nodes.get(known.node(node)).and_then(|keys| keys.armed.get(&epoch));
    match said.filter(|armed| !armed.value.is_watchdog()) {
        Some(none) => Compare::ModifiedAt(key(known, of), none.modified),
        None => Compare::Absent(key(known, of)),
    }
}

fn put(known: &Known<'_>, of: Key, value: Value, at: jiff::Timestamp) -> Op {
    let (to, me) = (key(known, of), known.node(NodeNo(0)).to_string());
    match value {
        Value::Fence(fence) => typed::put(to, &Fence { beat: fence.beat, by: me, at }),
        Value::Confirmed(proof) => typed::put(to, &Confirmed { proof, by: me, at }),
        other => unreachable!("a vigil writes seals and proofs only, not {other:?}"),
    }
}

fn story(known: &Known<'_>, node: NodeNo, epoch: Epoch, heard: Option<jiff::Timestamp>, at: jiff::Timestamp) -> Op {
    let name = known.node(node);
    // A leader that is new may not have told the node's state yet: that is then since when it was well.
    let since = heard.or_else(|| known.view.states.get(name).map(|state| state.value.since));
    let incident = Incident {
        node: name.clone(),
        epoch,
        silent_since: since.unwrap_or(at),
        sealed_at: at,
        sealed_by: known.name(NodeNo(0)).to_owned(),
    };
    typed::put(keys::incident(name, epoch), &incident)
}
