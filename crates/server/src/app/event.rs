//! Events: rings per object.

use std::collections::BTreeMap;

use uuid::Uuid;
use vmkeep_api::body::EventView;
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

/// Events under a prefix, oldest first.
pub async fn list(store: &dyn Store, prefix: &str) -> Result<Vec<EventView>, Error> {
    let stored = typed::list_readable::<Event>(store, prefix).await.map_err(store_error)?;
    let mut rows: Vec<EventView> = stored.into_iter().map(view).collect();
    rows.sort_by_key(place);
    Ok(rows)
}

/// As it is shown: `TIME-UID-SEQ` of its key, behind the kind and uid of its object, tells it from all others.
pub fn view(stored: Stored<Event>) -> EventView {
    let stamp = stored.key.rsplit('/').next().unwrap_or_default();
    let about = &stored.value.resource;
    EventView { id: format!("{}.{}.{stamp}", about.kind, about.uid.simple()), event: stored.value }
}

/// Its place in a page: its time stamp, then its object, so that two of one moment are told apart.
pub fn place(view: &EventView) -> String {
    format!("{}/{}", view.id.rsplit('.').next().unwrap_or_default(), view.event.resource.uid)
}

/// One event by its id.
///
/// # Errors
/// `Invalid` for what is no event's id; `NotFound`, also when the ring of its object has let go of it.
pub async fn find(store: &dyn Store, project: &Name, id: &str) -> Result<EventView, Error> {
    let parts: Vec<&str> = id.split('.').collect();
    let ([kind, uid, stamp], false) = (&parts[..], id.contains('/')) else { return Err(no_id(id)) };
    let uid: Uuid = uid.parse().map_err(|_| no_id(id))?;
    let found = super::get::<Event>(store, &keys::event(project, kind, uid, stamp)).await?;
    let gone = || Error::not_found("event", id).hint(format!("the newest {KEEP_PER_OBJECT} of each object are kept: vmkeep event list"));
    found.map(view).ok_or_else(gone)
}

fn no_id(id: &str) -> Error {
    Error::invalid(format!("'{}' is not an event's id", id.escape_debug())).hint("'vmkeep event list -o wide' shows them")
}

pub fn all(project: &Name) -> String {
    keys::events(project)
}

pub(super) async fn trim(store: &dyn Store, only_if: Option<&Compare>) -> Result<(), StoreError> {
    let mut rings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kv in store.list(keys::ALL_EVENTS).await?.items {
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
