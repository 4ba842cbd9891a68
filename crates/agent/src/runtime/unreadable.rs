//! Orders and tasks that do not parse: written by a newer control plane, or damaged. They are told and not carried out.

use std::sync::Arc;

use jiff::Timestamp;
use vmkeep_store::{Compare, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::OperationId;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::order::{TaskResult, TaskState};

use super::kind_of;
use super::node::Node;

/// In the log, in an event, and as the end of a task's operation.
pub async fn tell(node: Arc<Node>, key: String, why: String) {
    tracing::error!(%key, %why, "it does not parse and is not carried out");
    let Some((kind, id)) = kind_of(&key) else { return };
    let Ok(uid) = id.parse::<uuid::Uuid>() else { return };
    let error = Error::internal(format!("node {} cannot read this {kind}: {why}", node.name))
        .hint("are vmkeepd of node and control plane of one version?");
    let (known_as, code) = if kind == "task" { ("operation", "op.unreadable") } else { ("vm", "vm.unreadable") };
    let event = Event {
        at: Timestamp::now(),
        resource: ResourceRef { kind: known_as.into(), project: Name::known("default"), name: Name::known("unknown"), uid },
        level: Level::Error,
        code: code.into(),
        message: error.message.clone(),
        node: Some(node.name.clone()),
    };
    let stamp = format!("{:020}-{}-000000", event.at.as_nanosecond(), &uid.to_string()[..8]);
    let mut txn = Txn::default().when(Compare::Present(key.clone())).then(typed::put(keys::node_event(&node.name, stamp), &event));
    if kind == "task" {
        let op = OperationId(uid);
        let failed = TaskResult { op, state: TaskState::Failed { error }, progress: None, steps: Vec::new(), facts: None };
        txn = txn.then(typed::put(keys::result(&node.name, op), &failed));
    }
    if let Err(error) = node.store.txn(txn).await {
        tracing::warn!(%error, "the store took no event of it");
    }
}

#[cfg(test)]
mod tests;
