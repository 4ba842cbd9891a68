//! Pools.

use vmkeep_api::body::PoolView;
use vmkeep_store::{Store, keys};
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::pool::PoolRecord;

pub async fn list(store: &dyn Store) -> Result<Vec<PoolView>, Error> {
    let all = super::list_readable::<PoolRecord>(store, keys::ALL_POOLS).await?;
    Ok(all.into_iter().map(|p| PoolView { id: p.value.id, spec: p.value.spec, created_at: p.value.created_at }).collect())
}

pub async fn find(store: &dyn Store, name: &Name) -> Result<PoolRecord, Error> {
    let all = super::list::<PoolRecord>(store, keys::ALL_POOLS).await?;
    all.into_iter().map(|p| p.value).find(|p| p.spec.name == *name).ok_or_else(|| Error::not_found("pool", name))
}
