//! Networks.

use vmkeep_api::body::NetworkView;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{NetworkId, OperationId};
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::network::{NetworkRecord, NetworkSpec};
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::{NodeTask, Work};
use vmkeep_types::record::VmRecord;

use super::{Ask, commit, get, nodes, operation, put_op, uid_of};

pub async fn find(store: &dyn Store, project: &Name, name: &Name) -> Result<NetworkRecord, Error> {
    let id: NetworkId = uid_of(store, "network", project, name).await?;
    get(store, &keys::network(project, id)).await?.map(|s| s.value).ok_or_else(|| Error::not_found("network", name))
}

/// Names of the VMs with a NIC on it.
async fn users(store: &dyn Store, project: &Name, network: &Name) -> Result<Vec<Name>, Error> {
    let vms = super::list::<VmRecord>(store, &keys::vms(project)).await?;
    Ok(vms.into_iter().filter(|vm| vm.value.spec.nics.iter().any(|n| n.network == *network)).map(|vm| vm.value.spec.name).collect())
}

pub async fn view(store: &dyn Store, record: NetworkRecord) -> Result<NetworkView, Error> {
    let used_by = users(store, &record.project, &record.spec.name).await?;
    Ok(NetworkView { id: record.id, project: record.project, spec: record.spec, used_by, created_at: record.created_at })
}

pub async fn list(store: &dyn Store, project: &Name) -> Result<Vec<NetworkView>, Error> {
    let mut views = Vec::new();
    for stored in super::list::<NetworkRecord>(store, &format!("network/{project}/")).await? {
        views.push(view(store, stored.value).await?);
    }
    views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok(views)
}

/// Creates or changes.
pub async fn put(store: &dyn Store, ask: &Ask, spec: NetworkSpec) -> Result<NetworkView, Error> {
    let name_key = keys::name("network", &ask.project, &spec.name);
    let problems = vmkeep_types::check::network(&spec);
    if !problems.is_empty() {
        return Err(manifest::refused(&format!("network {}", spec.name), problems));
    }
    let old = match find(store, &ask.project, &spec.name).await {
        Ok(old) => Some(old),
        Err(e) if e.code == vmkeep_types::error::Code::NotFound => None,
        Err(e) => return Err(e),
    };
    let record = match old {
        Some(old) => NetworkRecord { spec, ..old },
        None => {
            NetworkRecord { id: NetworkId(uuid::Uuid::new_v4()), project: ask.project.clone(), spec, created_at: jiff::Timestamp::now() }
        }
    };
    let key = keys::network(&ask.project, record.id);
    let guard = match get::<NetworkRecord>(store, &key).await? {
        Some(there) => Compare::ModifiedAt(key.clone(), there.modified),
        None => Compare::Absent(name_key.clone()),
    };
    let txn = Txn::default().when(guard).then(typed::put(name_key, &record.id)).then(typed::put(key, &record));
    commit(store, txn).await?.ok_or_else(|| Error::conflict("somebody changed the network at the same time; try again"))?;
    view(store, record).await
}

pub async fn delete(store: &dyn Store, ask: &Ask, name: &Name) -> Result<Operation, Error> {
    let record = find(store, &ask.project, name).await?;
    let users = users(store, &ask.project, name).await?;
    if let Some(users) = super::some_of(&users) {
        return Err(Error::conflict(format!("network '{name}' is in use by {users}")));
    }
    let node = nodes(store).await?.into_iter().next().ok_or_else(|| Error::conflict("no node has joined yet"))?.name;
    let resource = ResourceRef { kind: "network".into(), project: ask.project.clone(), name: name.clone(), uid: record.id.0 };
    let op = operation(ask, "network.delete", resource, Wanted::Task);
    commit(store, Txn::default().then(put_op(&op)).then(task(&node, &ask.project, op.id, Work::DeleteNetwork { network: record.spec })))
        .await?;
    Ok(op)
}

/// A task for a node, as the key it is written to.
pub fn task(node: &Name, project: &Name, op: OperationId, work: Work) -> vmkeep_store::Op {
    typed::put(keys::task(node, op), &NodeTask { op, project: project.clone(), work })
}
