//! Events: rings per object.

use std::collections::BTreeMap;

use serde::Serialize;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Store, StoreError, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::event::Event;
use vmkeep_types::name::Name;

use super::{op, store_error};

/// Events kept of one object.
const KEEP_PER_OBJECT: usize = 200;

/// An event and its place in a page: its time stamp, then its object, so that two of one moment are told apart.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Row {
    pub event: Event,
    #[serde(skip)]
    pub place: String,
}

/// Events under a prefix, oldest first.
pub async fn list(store: &dyn Store, prefix: &str) -> Result<Vec<Row>, Error> {
    let stored = typed::list_json::<Event>(store, prefix).await.map_err(store_error)?;
    let row = |s: Stored<Event>| Row {
        place: format!("{}/{}", s.key.rsplit('/').next().unwrap_or_default(), s.value.resource.uid),
        event: s.value,
    };
    let mut rows: Vec<Row> = stored.into_iter().map(row).collect();
    rows.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(rows)
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
