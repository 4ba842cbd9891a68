//! The model of etcd: linearizable transactions, leases, and servers that lag behind.

use std::collections::BTreeMap;

use vmkeep_core::ha::record::{Compare, Entry, Key, NodeNo, Op, Outcome, Txn, Value, VmNo};
use vmkeep_types::ids::Revision;

pub type Map = BTreeMap<Key, (Value, Revision)>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Store {
    pub map: Map,
    pub revision: Revision,
    /// True time at which the leader's key goes; restarted at full length by every change of etcd's own leader.
    pub lease_until: Option<u64>,
    /// Until then nothing is answered: etcd elects.
    pub stalled_until: u64,
    /// No quorum by the script's wish.
    pub out: bool,
    /// What lagging servers still show.
    pub snapshot: Option<(Map, Revision)>,
    /// An old leader answers keep-alives with success, whatever the lease is.
    pub lies_about_leases: bool,
}

/// A committed change.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Key,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl Store {
    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Revision(key, revision) => self.map.get(key).is_some_and(|(_, r)| r == revision),
            Compare::Absent(key) => !self.map.contains_key(key),
            Compare::Present(key) => self.map.contains_key(key),
            Compare::OwnsNothing(node) => self.owned(*node).next().is_none(),
        }
    }

    pub fn owned(&self, node: NodeNo) -> impl Iterator<Item = VmNo> {
        self.map.range(Key::Own(node, VmNo(0))..=Key::Own(node, VmNo(u32::MAX))).filter_map(|(key, _)| match key {
            Key::Own(_, vm) => Some(*vm),
            _ => None,
        })
    }

    /// One transaction, in one moment.
    pub fn commit(&mut self, txn: &Txn) -> (Outcome, Vec<Change>) {
        if !txn.compare.iter().all(|compare| self.holds(compare)) {
            let found = txn.otherwise.iter().filter_map(|key| self.entry(*key)).collect();
            return (Outcome::Refused(found), Vec::new());
        }
        let changes = self.write(&txn.then);
        (Outcome::Done, changes)
    }

    pub fn write(&mut self, ops: &[Op]) -> Vec<Change> {
        let mut changes = Vec::new();
        let revision = self.revision.next();
        for op in ops {
            let (key, before, after) = match op {
                Op::Put(key, value) => (*key, self.map.insert(*key, (value.clone(), revision)), Some(value.clone())),
                Op::Delete(key) => (*key, self.map.remove(key), None),
            };
            let before = before.map(|(value, _)| value);
            if before.is_some() || after.is_some() {
                changes.push(Change { key, before, after });
            }
        }
        if !changes.is_empty() {
            self.revision = revision;
        }
        changes
    }

    pub fn get(&self, key: Key) -> Option<&Value> {
        self.map.get(&key).map(|(value, _)| value)
    }

    fn entry(&self, key: Key) -> Option<Entry> {
        self.map.get(&key).map(|(value, revision)| Entry { key, value: value.clone(), revision: *revision })
    }

    /// What a reader sees; one behind a lagging server sees what was.
    pub fn list(&self, wanted: impl Fn(Key) -> bool, lags: bool) -> (Revision, Vec<Entry>) {
        let (map, revision) = match &self.snapshot {
            Some((map, revision)) if lags => (map, *revision),
            Some(_) | None => (&self.map, self.revision),
        };
        let entries = map.iter().filter(|(key, _)| wanted(**key));
        (revision, entries.map(|(key, (value, revision))| Entry { key: *key, value: value.clone(), revision: *revision }).collect())
    }
}
