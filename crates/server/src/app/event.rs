//! Events: rings per object.

use std::collections::BTreeMap;

use vmkeep_store::{Store, StoreError, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::event::Event;
use vmkeep_types::name::Name;

use super::{op, store_error};

/// Events kept of one object.
const KEEP_PER_OBJECT: usize = 200;

/// Events under a prefix, oldest first.
pub async fn list(store: &dyn Store, prefix: &str) -> Result<Vec<Event>, Error> {
    let mut events: Vec<Event> = typed::list_json::<Event>(store, prefix).await.map_err(store_error)?.into_iter().map(|s| s.value).collect();
    events.sort_by_key(|e| e.at);
    Ok(events)
}

pub fn all(project: &Name) -> String {
    keys::events(project)
}

pub(super) async fn trim(store: &dyn Store) -> Result<(), StoreError> {
    let mut rings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kv in store.list("event/").await?.items {
        let ring = kv.key.rsplit_once('/').map_or("", |(ring, _)| ring).to_owned();
        rings.entry(ring).or_default().push(kv.key);
    }
    let gone = rings.into_values().flat_map(|mut ring| {
        let extra = ring.len().saturating_sub(KEEP_PER_OBJECT);
        ring.truncate(extra);
        ring
    });
    op::delete_all(store, gone.collect()).await
}
