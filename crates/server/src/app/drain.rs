//! Emptying nodes, asked for and called off. The leader carries it out: here only the wish is written, with its operation.

use jiff::{SignedDuration, Timestamp};
use vmkeep_api::place::DrainRequest;
use vmkeep_core::migrate::PER_NODE_MAX;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::drain::{Drain, Whom};
use vmkeep_types::error::Error;
use vmkeep_types::host::NodeHealth;
use vmkeep_types::ids::node_uid;
use vmkeep_types::migration::Stop;
use vmkeep_types::name::Name;
use vmkeep_types::node::Cordon;
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::units::Seconds;

use super::{Ask, TRIES_MAX, begin, commit, get, node, operation, upgrade};

/// Migrations at once unless somebody says otherwise: one copies while the next makes ready.
const AT_ONCE: u32 = 2;

/// Closes a node to new VMs and has those that are there told to go, in one transaction.
pub async fn drain(store: &dyn Store, ask: &Ask, name: &Name, wish: DrainRequest) -> Result<Operation, Error> {
    upgrade::needs(store, keys::LEVEL_DRAINS, "draining a node").await?;
    let why = node::reason(wish.why.as_deref())?;
    let at_once = wish.at_once.unwrap_or(AT_ONCE);
    if at_once == 0 || at_once as usize > PER_NODE_MAX {
        let told = format!("at_once is 1 to {PER_NODE_MAX}: more only share the node's network, and each takes longer");
        return Err(Error::invalid(told));
    }
    let resource = ResourceRef { kind: "node".into(), project: ask.project.clone(), name: name.clone(), uid: node_uid(name) };
    let key = keys::drain(name);
    for _ in 0..TRIES_MAX {
        let (view, _) = node::show(store, name).await?;
        if view.state.is_some_and(|state| state.state == NodeHealth::Offline) {
            return Err(Error::conflict(format!("'{name}' does not answer: nothing can be moved from it"))
                .hint("its VMs may still run there; they are found as they were when it is back"));
        }
        let op = operation(ask, "node.drain", resource.clone(), Wanted::Drained);
        let cordon = Cordon { by: op.by.clone(), at: op.created_at, why: why.clone(), closure: wish.closure };
        let (guard, write) = node::changed(store, ask, name, |record| node::close(record, &cordon)).await?;
        let drain = Drain {
            node: name.clone(),
            op: op.id,
            at_once,
            manner: wish.manner,
            whom: Whom::All,
            deadline: wish.timeout.map(|timeout| after(op.created_at, timeout)),
            stop: None,
            by: op.by.clone(),
            told: Default::default(),
        };
        let txn = Txn::default().when(guard).when(Compare::Absent(key.clone())).then(write).then(typed::put(key.clone(), &drain));
        if let Some(op) = begin(store, ask, txn, op).await? {
            return Ok(op);
        }
        if let Some(other) = get::<Drain>(store, &key).await? {
            let told = format!("'{name}' is being drained already: operation {}", other.value.op);
            return Err(Error::conflict(told).hint(format!("vmkeep op show {0}, vmkeep op cancel {0}", other.value.op)));
        }
    }
    Err(node::busy(name))
}

fn after(now: Timestamp, timeout: Seconds) -> Timestamp {
    let seconds = i64::try_from(timeout.get()).unwrap_or(i64::MAX);
    now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// Has the leader tell no more VMs to go; those that are on their way arrive, and then the operation ends.
pub async fn call_off(store: &dyn Store, ask: &Ask, op: &Stored<Operation>) -> Result<Operation, Error> {
    let moved_on = || Error::conflict("the operation moved on meanwhile; look again");
    for _ in 0..TRIES_MAX {
        let kept = get::<Drain>(store, &keys::drain(&op.value.resource.name)).await?;
        let kept = kept.filter(|kept| kept.value.op == op.value.id).ok_or_else(moved_on)?;
        let txn = stopped(&kept, Stop::Cancelled { by: ask.caller.name.clone() });
        if commit(store, txn).await?.is_some() {
            return Ok(op.value.clone());
        }
    }
    Err(moved_on())
}

/// A drain that is to end.
pub fn stopped(kept: &Stored<Drain>, why: Stop) -> Txn {
    let drain = Drain { stop: Some(kept.value.stop.clone().unwrap_or(why)), ..kept.value.clone() };
    Txn::default().when(Compare::ModifiedAt(kept.key.clone(), kept.modified)).then(typed::put(kept.key.clone(), &drain))
}
