//! Where the bytes of an upload lie: on the node that asked for it was nearest to, or as it is noted.

use vmkeep_store::{Compare, Store, StoreError, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;

use super::op::delete_all;
use super::{any_node, commit, get};

/// Twice as long as a node lets the bytes of an upload rest that nobody goes on with.
const KEPT_SECONDS: i64 = 14 * 86_400;

/// The node whose pool has an upload.
///
/// # Errors
/// No node has joined; the store's.
pub async fn node(store: &dyn Store, upload: uuid::Uuid, near: Option<&Name>) -> Result<Name, Error> {
    match get::<Name>(store, &keys::upload(upload)).await? {
        Some(noted) => Ok(noted.value),
        None => any_node(store, near).await,
    }
}

/// For every control node to find it there.
///
/// # Errors
/// The store's.
pub async fn note(store: &dyn Store, upload: uuid::Uuid, node: &Name) -> Result<(), Error> {
    commit(store, Txn::default().then(typed::put(keys::upload(upload), node))).await.map(drop)
}

/// Forgets those that began too long ago to rest anywhere still. An agent of the version before puts no time into them.
pub(super) async fn expire(store: &dyn Store, only_if: Option<&Compare>, now: jiff::Timestamp) -> Result<(), StoreError> {
    let began = |key: &str| {
        let id: uuid::Uuid = key[keys::ALL_UPLOADS.len()..].parse().ok()?;
        i64::try_from(id.get_timestamp()?.to_unix().0).ok()
    };
    let all = store.list(keys::ALL_UPLOADS).await?.items;
    let old = all.into_iter().map(|kv| kv.key).filter(|key| began(key).is_some_and(|at| at + KEPT_SECONDS < now.as_second()));
    delete_all(store, old.collect(), only_if).await
}

#[cfg(test)]
mod tests {
    use vmkeep_store::embedded::EmbeddedStore;

    use super::*;

    #[tokio::test]
    async fn an_upload_is_found_for_a_fortnight() {
        let store = EmbeddedStore::in_memory().expect("memory");
        let (upload, node_b, began) = (uuid::Uuid::now_v7(), Name::known("b"), jiff::Timestamp::now());
        note(&store, upload, &node_b).await.expect("noted");
        let after = |days: i64| began + jiff::SignedDuration::from_hours(24 * days);
        expire(&store, None, after(13)).await.expect("looked");
        assert_eq!(node(&store, upload, None).await.expect("found"), node_b);
        assert_eq!(store.list(keys::ALL_UPLOADS).await.expect("a list").items.len(), 1);
        expire(&store, None, after(15)).await.expect("looked");
        assert!(store.list(keys::ALL_UPLOADS).await.expect("a list").items.is_empty());
    }
}
