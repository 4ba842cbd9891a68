//! What happens to the host itself, as events of its node. One that the store does not take is only in the log: what it tells
//! of shows in the node's facts, too.

use std::sync::Arc;

use jiff::Timestamp;
use vmkeep_store::{StoreError, Txn, keys, typed};
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::node_uid;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;

use super::node::Node;

/// Now, with this message.
pub async fn tell(node: Arc<Node>, level: Level, code: &'static str, message: String) {
    match level {
        Level::Info => tracing::info!(code, "{message}"),
        Level::Warn | Level::Error => tracing::warn!(code, "{message}"),
    }
    let event = event(&node, Timestamp::now(), level, code, message);
    let stamp = format!("{:020}-node", event.at.as_nanosecond());
    if let Err(error) = put(&node, stamp, &event).await {
        tracing::warn!(%error, code, "the store took no event of it");
    }
}

/// An event that this node has to tell, of itself or of a VM; the leader files it. The same stamp again is the same event.
///
/// # Errors
/// The store's.
pub async fn put(node: &Node, stamp: String, event: &Event) -> Result<(), StoreError> {
    node.store.txn(Txn::default().then(typed::put(keys::node_event(&node.name, stamp), event))).await.map(drop)
}

/// An event of this node.
pub fn event(node: &Node, at: Timestamp, level: Level, code: &str, message: String) -> Event {
    let resource = ResourceRef { kind: "node".into(), project: Name::known("default"), name: node.name.clone(), uid: node_uid(&node.name) };
    Event { at, resource, level, code: code.into(), message, node: Some(node.name.clone()) }
}
