//! The keys under which secrets lie sealed: what is shown of them, and the wish to renew them. Each host of the control plane
//! carries the wish out for itself, as [`rotation`] tells.

use vmkeep_api::secret::{SecretsHost, SecretsRotation, SecretsView};
use vmkeep_store::Store;
use vmkeep_store::seal::{ring, rotation};
use vmkeep_types::error::Error;

use super::{Ask, store_error};

/// # Errors
/// The store's.
pub async fn show(store: &dyn Store) -> Result<SecretsView, Error> {
    let hosts = rotation::control_nodes(store).await.map_err(store_error)?;
    let rotation = match rotation::under_way(store).await.map_err(store_error)? {
        None => None,
        Some(now) => {
            let waits_for = rotation::waits_for(store, &now.value).await.map_err(store_error)?;
            Some(SecretsRotation { by: now.value.by, at: now.value.at, waits_for: waits_for.into_iter().collect() })
        }
    };
    let host = |shown: rotation::Shown| SecretsHost { key: shown.key.id(), node: shown.node };
    Ok(SecretsView { keys: ring::ids(store).await.map_err(store_error)?, hosts: hosts.into_iter().map(host).collect(), rotation })
}

/// # Errors
/// The store's.
pub async fn rotate(store: &dyn Store, ask: &Ask) -> Result<SecretsView, Error> {
    rotation::begin(store, &ask.caller.name, jiff::Timestamp::now()).await.map_err(store_error)?;
    show(store).await
}
