//! Every night each node's fence agent is asked for the power's state: one that no longer answers is told before it is needed.
//! Nothing is switched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmkeep_store::{Op, Store, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::event::{Event, Level};
use vmkeep_types::ids::node_uid;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::stonith::{FenceFound, FenceRecord, FenceTest};

use crate::app::list_readable;

/// Between two looks whether a test is due.
const LOOK_EVERY: Duration = Duration::from_secs(900);
/// A test is due when the last one is so old: a little less than a day, so that it does not wander through the day.
const OLD: jiff::SignedDuration = jiff::SignedDuration::from_hours(23);

/// Goes on until `stop`; tests while this control node leads.
pub async fn run(store: Arc<dyn Store>, here: Name, folder: PathBuf, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if let Err(error) = look(store.as_ref(), &here, &folder).await {
            tracing::warn!(%error, "fence agents are tested later");
        }
    }
}

async fn look(store: &dyn Store, here: &Name, folder: &std::path::Path) -> Result<(), Error> {
    let leader = store.get(keys::LEADER).await.map_err(crate::app::store_error)?;
    if leader.is_none_or(|leader| leader.value != here.as_str().as_bytes()) {
        return Ok(());
    }
    for stored in list_readable::<FenceRecord>(store, keys::ALL_STONITH).await? {
        let due = stored.value.tested.is_none_or(|tested| jiff::Timestamp::now().duration_since(tested.at) > OLD);
        let Ok(name) = stored.key[keys::ALL_STONITH.len()..].parse::<Name>() else { continue };
        if due {
            super::test(store, folder, here, &name, &FenceTest::default()).await?;
        }
    }
    Ok(())
}

/// What is told of a node when a test finds something else than the one before.
pub(super) fn alarm(name: &Name, before: Option<&FenceFound>, found: &FenceFound, at: jiff::Timestamp) -> Option<Op> {
    let failed = |found: &FenceFound| matches!(found, FenceFound::Unknown { .. });
    let (level, code, message) = match found {
        FenceFound::Unknown { why } if before.is_none_or(|before| !failed(before)) => {
            (Level::Error, "node.fence-test-failed", format!("the power of {name} could not be cut now: {why}"))
        }
        FenceFound::On | FenceFound::Off if before.is_some_and(failed) => {
            (Level::Info, "node.fence-test-ok", format!("the power of {name} can be cut again"))
        }
        _ => return None,
    };
    let project = Name::known("default");
    let resource = ResourceRef { kind: "node".into(), project: project.clone(), name: name.clone(), uid: node_uid(name) };
    let event = Event { at, resource, level, code: code.into(), message, node: Some(name.clone()) };
    let stamp = format!("{:020}-stonith", at.as_nanosecond());
    Some(typed::put(keys::event(&project, "node", node_uid(name), stamp), &event))
}
