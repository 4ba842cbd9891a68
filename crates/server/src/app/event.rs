//! Events: rings per object.

use std::collections::BTreeMap;

use serde::Serialize;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, StoreError, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::event::Event;
use vmkeep_types::name::Name;

use super::{op, store_error};

/// Events kept of one object.
const KEEP_PER_OBJECT: usize = 200;
/// An object that is gone keeps its events so long after the last of them: people ask what became of it.
const KEEP_GONE_DAYS: i64 = 7;
/// The rings of all objects.
const ALL_EVENTS: &str = "event/";

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
    let stored = typed::list_readable::<Event>(store, prefix).await.map_err(store_error)?;
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

pub(super) async fn trim(store: &dyn Store, only_if: Option<&Compare>) -> Result<(), StoreError> {
    let mut rings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kv in store.list(ALL_EVENTS).await?.items {
        let ring = kv.key.rsplit_once('/').map_or("", |(ring, _)| ring).to_owned();
        rings.entry(ring).or_default().push(kv.key);
    }
    let oldest = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * KEEP_GONE_DAYS);
    let mut gone = Vec::new();
    for (ring, mut keys) in rings {
        let quiet = keys.last().and_then(|newest| written_at(newest)).is_some_and(|at| at < oldest.as_nanosecond());
        if !(quiet && is_gone(store, &ring).await?) {
            keys.truncate(keys.len().saturating_sub(KEEP_PER_OBJECT));
        }
        gone.extend(keys);
    }
    op::delete_all(store, gone, only_if).await
}

/// The time in an event's key: nanoseconds, before its sequence number.
fn written_at(key: &str) -> Option<i128> {
    key.rsplit('/').next()?.split('-').next()?.parse().ok()
}

/// Whether the object of a ring `event/PROJECT/KIND/UID` is no more; objects of other kinds (a host) stay.
async fn is_gone(store: &dyn Store, ring: &str) -> Result<bool, StoreError> {
    let parts: Vec<&str> = ring.split('/').collect();
    match parts[..] {
        [_, project, kind @ ("vm" | "image" | "volume" | "network"), uid] => {
            Ok(store.get(&format!("{kind}/{project}/{uid}")).await?.is_none())
        }
        _ => Ok(false),
    }
}
