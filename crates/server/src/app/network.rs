//! Networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use vmkeep_api::body::NetworkView;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::error::{Error, Problem};
use vmkeep_types::ids::{NetworkId, OperationId, Revision};
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::network::{NetworkMode, NetworkRecord, NetworkSpec};
use vmkeep_types::operation::{Operation, ResourceRef, Wanted};
use vmkeep_types::order::{NodeTask, Work};
use vmkeep_types::record::VmRecord;

use super::{Ask, commit, done, get, nodes, open_deletion, operation, put_op, uid_of};
use crate::reconcile::deletion;

pub async fn find(store: &dyn Store, project: &Name, name: &Name) -> Result<NetworkRecord, Error> {
    Ok(stored(store, project, name).await?.value)
}

pub async fn stored(store: &dyn Store, project: &Name, name: &Name) -> Result<Stored<NetworkRecord>, Error> {
    let id: NetworkId = uid_of(store, "network", project, name).await?;
    get(store, &keys::network(project, id)).await?.ok_or_else(|| Error::not_found("network", name))
}

/// Names of the VMs with a NIC on it.
async fn users(store: &dyn Store, project: &Name, network: &Name) -> Result<Vec<Name>, Error> {
    let vms = super::list::<VmRecord>(store, &keys::vms(project)).await?;
    Ok(vms.into_iter().filter(|vm| vm.value.spec.nics.iter().any(|n| n.network == *network)).map(|vm| vm.value.spec.name).collect())
}

pub async fn view(store: &dyn Store, record: NetworkRecord) -> Result<NetworkView, Error> {
    let used_by = users(store, &record.project, &record.spec.name).await?;
    Ok(NetworkView {
        id: record.id,
        project: record.project,
        spec: record.spec,
        used_by,
        created_at: record.created_at,
        found: BTreeMap::new(),
    })
}

pub async fn list(store: &dyn Store, project: &Name) -> Result<Vec<NetworkView>, Error> {
    let prefix = format!("network/{project}/");
    let all = store.list_many(&[&prefix, &keys::vms(project)]).await.map_err(super::store_error)?.items;
    let mut used: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
    let mut records = Vec::new();
    for kv in &all {
        if kv.key.starts_with(&prefix) {
            records.extend(typed::readable(typed::decode::<NetworkRecord>(kv)));
        } else if let Some(vm) = typed::readable(typed::decode::<VmRecord>(kv)) {
            let networks = vm.spec.nics.iter().map(|nic| nic.network.clone()).collect::<BTreeSet<_>>();
            networks.into_iter().for_each(|network| used.entry(network).or_default().push(vm.spec.name.clone()));
        }
    }
    let view = |NetworkRecord { id, project, spec, created_at, .. }| {
        let used_by = used.remove(&spec.name).unwrap_or_default();
        NetworkView { id, project, spec, used_by, created_at, found: BTreeMap::new() }
    };
    let mut views: Vec<NetworkView> = records.into_iter().map(view).collect();
    views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok(views)
}

/// Creates or changes.
pub async fn put(store: &dyn Store, ask: &Ask, spec: NetworkSpec) -> Result<(NetworkView, Revision), Error> {
    let name_key = keys::name("network", &ask.project, &spec.name);
    let problems = vmkeep_types::check::network(&spec);
    if !problems.is_empty() {
        return Err(manifest::refused(&format!("network {}", spec.name), problems));
    }
    let old = match stored(store, &ask.project, &spec.name).await {
        Ok(old) => Some(old),
        Err(e) if e.code == vmkeep_types::error::Code::NotFound && ask.if_match.is_none() => None,
        Err(e) => return Err(e),
    };
    if let Some(old) = &old {
        ask.expect(&spec.name, old)?;
    }
    if old.as_ref().is_some_and(|old| old.value.leaving.is_some()) {
        return Err(Error::conflict(format!("network '{}' is being deleted", spec.name)));
    }
    refuse_overlap(store, ask, &spec).await?;
    let guard = match &old {
        Some(old) => Compare::ModifiedAt(old.key.clone(), old.modified),
        None => Compare::Absent(name_key.clone()),
    };
    let record = match old {
        Some(old) => NetworkRecord { spec, ..old.value },
        None => NetworkRecord {
            id: NetworkId(uuid::Uuid::new_v4()),
            project: ask.project.clone(),
            spec,
            leaving: None,
            nodes: BTreeSet::new(),
            created_at: jiff::Timestamp::now(),
        },
    };
    ask.admit("network.put", &resource(ask, &record))?;
    let key = keys::network(&ask.project, record.id);
    let txn = Txn::default().when(guard).then(typed::put(name_key, &record.id)).then(typed::put(key, &record));
    let changed = || Error::conflict("somebody changed the network at the same time; try again");
    let revision = commit(store, txn).await?.ok_or_else(changed)?;
    Ok((view(store, record).await?, revision))
}

/// Two NAT networks with the same addresses: a host routes to one of them only. Those that are chosen by the hosts are chosen apart.
pub async fn refuse_overlap(store: &dyn Store, ask: &Ask, spec: &NetworkSpec) -> Result<(), Error> {
    let Some(wanted) = range(spec) else { return Ok(()) };
    for other in super::list::<NetworkRecord>(store, "network/").await?.into_iter().map(|other| other.value) {
        if (&other.project, &other.spec.name) == (&ask.project, &spec.name) {
            continue;
        }
        if let Some(there) = range(&other.spec).filter(|there| there.0 & wanted.1 & there.1 == wanted.0 & wanted.1 & there.1) {
            let of = if other.project == ask.project { String::new() } else { format!(" of project '{}'", other.project) };
            let cidr = format!("{}/{}", Ipv4Addr::from(there.0), there.1.count_ones());
            let message = format!("it overlaps network '{}'{of} ({cidr}): a host can route to one of them only", other.spec.name);
            let problem = Problem { field: "ipv4".into(), message };
            return Err(manifest::refused(&format!("network {}", spec.name), vec![problem]));
        }
    }
    Ok(())
}

/// Gateway and mask of a NAT network that has them of its own.
fn range(spec: &NetworkSpec) -> Option<(u32, u32)> {
    let (gateway, prefix) = spec.ipv4.as_deref().filter(|_| spec.mode == NetworkMode::Nat)?.split_once('/')?;
    let gateway: Ipv4Addr = gateway.parse().ok()?;
    Some((gateway.into(), u32::MAX.checked_shl(32u32.checked_sub(prefix.parse().ok()?)?).unwrap_or(0)))
}

fn resource(ask: &Ask, record: &NetworkRecord) -> ResourceRef {
    ResourceRef { kind: "network".into(), project: ask.project.clone(), name: record.spec.name.clone(), uid: record.id.0 }
}

/// Marked first, then looked at for users once more: a VM that is written at the same time either sees the mark or is seen.
pub async fn delete(store: &dyn Store, ask: &Ask, name: &Name) -> Result<Operation, Error> {
    let found = stored(store, &ask.project, name).await?;
    ask.expect(name, &found)?;
    if let Some(op) = open_deletion(store, &ask.project, found.value.leaving).await? {
        return Ok(op);
    }
    refuse_users(store, &found.value).await?;
    let record = found.value;
    let nodes = defined_on(store, &record).await?;
    let op = operation(ask, deletion::NETWORK, resource(ask, &record), Wanted::Task);
    ask.admit(&op.kind, &op.resource)?;
    let changed = || Error::conflict(format!("network '{name}' was changed at the same time; try again"));
    // Each node says that it is done, and is taken out here then.
    let going = NetworkRecord { leaving: Some(op.id), nodes: nodes.clone(), ..record.clone() };
    let mark = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).then(typed::put(found.key.clone(), &going));
    let marked = commit(store, mark).await?.ok_or_else(changed)?;
    let still = Compare::ModifiedAt(found.key.clone(), marked);
    if let Err(used) = refuse_users(store, &record).await {
        commit(store, Txn::default().when(still).then(typed::put(found.key.clone(), &NetworkRecord { leaving: None, ..record }))).await?;
        return Err(used);
    }
    if nodes.is_empty() {
        let op = done(op);
        let names = [found.key, keys::name("network", &ask.project, name)];
        let gone = names.into_iter().fold(Txn::default().when(still), |txn, key| txn.then(Op::Delete(key)));
        return commit(store, gone.then(put_op(&op))).await?.map(|_| op).ok_or_else(changed);
    }
    // The leader tells all others, however many: a transaction holds no more, and leaders of older versions tell nobody.
    let first = nodes.iter().take(deletion::NODES_PER_TXN);
    let tasks = first.map(|node| task(node, &ask.project, op.id, Work::DeleteNetwork { network: record.spec.clone() }));
    let txn = tasks.fold(Txn::default().when(still).then(put_op(&op)), Txn::then);
    commit(store, txn).await?.map(|_| op).ok_or_else(changed)
}

/// Where it must be taken away. One host alone may have it from a time when nobody noted that.
async fn defined_on(store: &dyn Store, record: &NetworkRecord) -> Result<BTreeSet<Name>, Error> {
    let all = nodes(store).await?;
    let alone = if let [only] = &all[..] { Some(only.name.clone()) } else { None };
    Ok(record.nodes.iter().cloned().chain(alone).collect())
}

async fn refuse_users(store: &dyn Store, network: &NetworkRecord) -> Result<(), Error> {
    match super::some_of(&users(store, &network.project, &network.spec.name).await?) {
        Some(users) => Err(Error::conflict(format!("network '{}' is in use by {users}", network.spec.name))),
        None => Ok(()),
    }
}

/// A task for a node, as the key it is written to.
pub fn task(node: &Name, project: &Name, op: OperationId, work: Work) -> vmkeep_store::Op {
    typed::put(keys::task(node, op), &NodeTask { op, project: project.clone(), work })
}
