//! Hosts that go down in order: what becomes of their highly available VMs, by the cluster's policy.
//!
//! ```text
//!  n/N/leaving, no word yet ──policy──► freeze    its VMs wait for it
//!                                   ├─► migrate   drain/N of those VMs; when that is over ──► failover
//!                                   └─► failover ──N closes its epoch──► confirmed/N/E (goodbye) ──► rescue
//! ```
//! A closed epoch claims nothing any more, and its agent closed it when nothing ran: that is the proof, so nobody is fenced and nothing is
//! waited for. A host that does not come to its goodbye is taken for dead like any other. Each write compares what it was decided from;
//! a leader that was killed in between changes nothing. While members are there that read no goodbye ([`keys::LEVEL_GOODBYES`]), every VM
//! waits for its host, as it does with them.

use vmkeep_core::ha::life::parting;
use vmkeep_store::{Compare, Txn, keys, typed};
use vmkeep_types::drain::{Drain, Whom};
use vmkeep_types::ha::{Confirmed, Departure, Parting, Proof};
use vmkeep_types::host::EpochRecord;
use vmkeep_types::ids::{OperationId, node_uid};
use vmkeep_types::migration::{MoveManner, Stop};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{OpState, Operation, ResourceRef, Wanted};

use crate::reconcile::view::{ClusterView, Kept};
use crate::reconcile::vm::op_key;

/// Who empties a host that goes down.
const BY: &str = "host shutdown";
/// Migrations at once.
const AT_ONCE: u32 = 2;

/// One host that goes down.
struct Case<'v> {
    view: &'v ClusterView,
    node: &'v Name,
    life: &'v Kept<EpochRecord>,
    departure: &'v Kept<Departure>,
    now: jiff::Timestamp,
}

/// The next write for each host that goes down, and for those that stay after all.
pub fn look(view: &ClusterView, now: jiff::Timestamp) -> Vec<Txn> {
    let going = view.nodes.iter().filter_map(|(node, keys)| {
        let case = Case { view, node, life: keys.life.as_ref()?, departure: view.departure(node)?, now };
        case.next()
    });
    going.chain(view.drains.values().filter_map(|drain| called_off(view, drain))).collect()
}

/// It stays, and so do the VMs that were not told yet.
fn called_off(view: &ClusterView, kept: &Kept<Drain>) -> Option<Txn> {
    let drain = &kept.value;
    if drain.whom == Whom::All || drain.stop.is_some() || view.departure(&drain.node).is_some() {
        return None;
    }
    let stop = Some(Stop::Against { why: "the host was not shut down after all".into() });
    let key = keys::drain(&drain.node);
    Some(Txn::default().when(Compare::ModifiedAt(key.clone(), kept.modified)).then(typed::put(key, &Drain { stop, ..drain.clone() })))
}

impl Case<'_> {
    fn next(&self) -> Option<Txn> {
        match self.departure.value.then {
            None => Some(self.answer()),
            Some(Parting::Migrate) => (!self.view.drains.contains_key(self.node)).then(|| self.say(Parting::Failover)),
            Some(Parting::Failover) => self.let_go(),
            Some(Parting::Freeze) => None,
        }
    }

    fn txn(&self) -> Txn {
        Txn::default()
            .when(Compare::ModifiedAt(keys::epoch(self.node), self.life.modified))
            .when(Compare::ModifiedAt(keys::leaving(self.node), self.departure.modified))
    }

    fn say(&self, then: Parting) -> Txn {
        let word = Departure { then: Some(then), ..self.departure.value.clone() };
        self.txn().then(typed::put(keys::leaving(self.node), &word))
    }

    fn answer(&self) -> Txn {
        let view = self.view;
        let idle = view.disarmed.is_some() || view.recovery.is_some() || !self.is_understood() || !view.owns_protected(self.node);
        let then = if idle { Parting::Freeze } else { parting(view.ha_settings.shutdown_policy, self.departure.value.farewell) };
        match then {
            // Its guests are off already.
            Parting::Migrate if self.life.value.closed => self.say(Parting::Failover),
            // Somebody empties it: that is waited for.
            Parting::Migrate if view.drains.contains_key(self.node) => self.say(then),
            Parting::Migrate => self.empty(self.say(then)),
            Parting::Freeze | Parting::Failover => self.say(then),
        }
    }

    /// May one of them lead that reads no goodbye?
    fn is_understood(&self) -> bool {
        self.view.level() >= keys::LEVEL_GOODBYES
    }

    fn empty(&self, txn: Txn) -> Txn {
        let project = Name::known("default");
        let op = Operation {
            id: OperationId(uuid::Uuid::now_v7()),
            project: project.clone(),
            kind: "node.drain".into(),
            resource: ResourceRef { kind: "node".into(), project, name: self.node.clone(), uid: node_uid(self.node) },
            state: OpState::Pending,
            steps: vec![format!("the host goes down: {}", self.departure.value.farewell.as_str())],
            progress: None,
            copying: None,
            blocked: None,
            error: None,
            wanted: Wanted::Drained,
            by: BY.into(),
            created_at: self.now,
            ended_at: None,
        };
        let drain = Drain {
            node: self.node.clone(),
            op: op.id,
            at_once: AT_ONCE,
            manner: MoveManner::Live,
            whom: Whom::Protected,
            deadline: None,
            stop: None,
            by: BY.into(),
            told: Default::default(),
        };
        let key = keys::drain(self.node);
        txn.when(Compare::Absent(key.clone())).then(typed::put(key, &drain)).then(typed::put(op_key(&op), &op))
    }

    /// Its VMs may have another owner: the epoch is closed, and nothing of it ran when it was.
    fn let_go(&self) -> Option<Txn> {
        let (view, epoch) = (self.view, self.life.value.epoch);
        let of = (self.node.clone(), epoch);
        let due = self.life.value.closed && view.disarmed.is_none() && view.recovery.is_none() && view.owns_protected(self.node);
        if !due || view.confirmed.contains_key(&of) {
            return None;
        }
        let key = keys::confirmed(self.node, epoch);
        let proof = Confirmed { proof: Proof::Goodbye, by: self.node.to_string(), at: self.now };
        let txn = self.txn().when(Compare::Absent(keys::HA_DISARM.into())).when(Compare::Absent(key.clone()));
        Some(txn.then(typed::put(key, &proof)))
    }
}
