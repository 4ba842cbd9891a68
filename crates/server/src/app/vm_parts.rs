//! A VM's keys, read together; what all verbs say of it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use vmkeep_api::body::VmView;
use vmkeep_store::typed::Stored;
use vmkeep_store::{KeyValue, Store, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::VmId;
use vmkeep_types::name::Name;
use vmkeep_types::observed::Seen;
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::record::{Owner, VmRecord};

use super::{get, store_error, uid_of};
use crate::view::{self, VmParts};

/// The wish by name.
pub async fn record(store: &dyn Store, project: &Name, name: &Name) -> Result<Stored<VmRecord>, Error> {
    let id: VmId = uid_of(store, "vm", project, name).await?;
    get(store, &keys::vm(project, id)).await?.ok_or_else(|| Error::not_found("vm", name))
}

/// Everything a view of one VM is made from; None when it is gone.
pub async fn parts(store: &dyn Store, project: &Name, id: VmId) -> Result<Option<VmParts>, Error> {
    let Some(record) = get::<VmRecord>(store, &keys::vm(project, id)).await? else { return Ok(None) };
    let owner = get::<Owner>(store, &keys::owner(id)).await?.map(|s| s.value);
    let seen = match &owner {
        Some(owner) => get::<Seen>(store, &keys::seen(&owner.node, id)).await?.map(|s| s.value),
        None => None,
    };
    let released = match &owner {
        Some(_) => None,
        None => get(store, &keys::released(id)).await?.map(|s| s.value),
    };
    let choices = get(store, &keys::choices(id)).await?.map(|s| s.value).unwrap_or_default();
    let power = get(store, &keys::power(id)).await?.map(|s| s.value);
    let node = match &owner {
        Some(owner) => get(store, &keys::state(&owner.node)).await?.map(|s| s.value),
        None => None,
    };
    Ok(Some(VmParts { record: record.value, spec_revision: record.modified, choices, power, owner, released, seen, node }))
}

/// All VMs of a project at one revision, as far as they can be read.
pub async fn all(store: &dyn Store, project: &Name) -> Result<(vmkeep_types::ids::Revision, Vec<VmParts>), Error> {
    let own = keys::vms(project);
    let listing = store
        .list_many(&[&own, keys::ALL_CHOICES, keys::ALL_POWER, keys::ALL_OWNERS, keys::ALL_RELEASED, keys::ALL_STATES, keys::ALL_NODES])
        .await;
    let listing = listing.map_err(store_error)?;
    let by_key: BTreeMap<&str, &KeyValue> = listing.items.iter().map(|kv| (kv.key.as_str(), kv)).collect();
    let mut vms = Vec::new();
    for kv in listing.items.iter().filter(|kv| kv.key.starts_with(&own)) {
        let Some(record) = typed::readable(typed::decode::<VmRecord>(kv)) else { continue };
        let id = record.id;
        let owner: Option<Owner> = find(&by_key, &keys::owner(id));
        let seen = owner.as_ref().and_then(|owner| find(&by_key, &keys::seen(&owner.node, id)));
        let released = find(&by_key, &keys::released(id)).filter(|_| owner.is_none());
        let choices = find(&by_key, &keys::choices(id)).unwrap_or_default();
        let power = find(&by_key, &keys::power(id));
        let node = owner.as_ref().and_then(|owner| find(&by_key, &keys::state(&owner.node)));
        vms.push(VmParts { record, spec_revision: kv.modified, choices, power, owner, released, seen, node });
    }
    Ok((listing.revision, vms))
}

fn find<T: DeserializeOwned>(by_key: &BTreeMap<&str, &KeyValue>, key: &str) -> Option<T> {
    by_key.get(key).and_then(|kv| typed::readable(typed::decode(kv)))
}

pub async fn show(store: &dyn Store, project: &Name, name: &Name) -> Result<VmView, Error> {
    let id = super::uid_of(store, "vm", project, name).await?;
    parts(store, project, id).await?.map(view::vm).ok_or_else(|| Error::not_found("vm", name))
}

pub async fn show_by_id(store: &dyn Store, project: &Name, id: VmId) -> Result<Option<VmView>, Error> {
    Ok(parts(store, project, id).await?.map(view::vm))
}

pub fn resource(record: &VmRecord) -> ResourceRef {
    ResourceRef { kind: "vm".into(), project: record.project.clone(), name: record.spec.name.clone(), uid: record.id.0 }
}

pub fn busy(name: &Name) -> Error {
    Error::new(Code::Unavailable, format!("'{name}' is changed by others all the time; try again"))
}
