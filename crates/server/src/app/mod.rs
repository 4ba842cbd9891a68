//! What the control plane can do, noun by noun. Each change is one transaction: the intent and the operation that tells of it.

pub mod apply;
pub mod ask;
pub mod cluster;
pub mod drain;
pub mod event;
pub mod ha;
pub mod ha_profile;
pub mod image;
mod index;
pub mod leaving;
pub mod network;
pub mod node;
pub mod op;
pub mod placement;
pub mod pool;
pub mod recovery;
pub mod releasing;
pub mod roles;
pub mod secret;
mod strays;
pub mod upgrade;
pub mod upload;
pub mod vip;
pub mod vm;
pub mod vm_adopt;
pub mod vm_copy;
pub mod vm_migrate;
pub mod vm_parts;
pub mod vm_renew;
pub(crate) mod vm_resolve;
pub mod vm_write;
pub mod volume;

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::de::DeserializeOwned;
use vmkeep_api::body::NodeView;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Held, Op, Store, StoreError, Txn, keys, layout, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::host::{NodeFacts, NodeHealth};
use vmkeep_types::ids::{NetworkId, OperationId, PoolId};
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::operation::{OpState, Operation, ResourceRef, Wanted};
use vmkeep_types::pool::{PoolDriver, PoolRecord, PoolSpec};

pub use ask::Ask;
use ask::begin;

/// Tries of a change that somebody else's write overtook.
pub const TRIES_MAX: u32 = 5;

/// Nodes whose facts are read to check one wish.
const NODES_READ_MAX: usize = 16;

/// A store's error at the border.
pub fn store_error(error: StoreError) -> Error {
    match error {
        StoreError::TooLarge(_) => Error::new(Code::TooLarge, error.to_string()),
        StoreError::Newer(_) | StoreError::Full(_) => Error::refused(error.to_string()),
        StoreError::Corrupt(_) | StoreError::Invalid(_) => Error::internal(error.to_string()),
        StoreError::Compacted { .. } | StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::Denied(_) => {
            Error::new(Code::Unavailable, error.to_string())
        }
    }
}

/// The uid behind a name.
pub async fn uid_of<T: DeserializeOwned>(store: &dyn Store, kind: &'static str, project: &Name, name: &Name) -> Result<T, Error> {
    let stored = typed::get_json::<T>(store, &keys::name(kind, project, name)).await.map_err(store_error)?;
    let absent = || match kind {
        "vm" => Error::not_found(kind, name).hint("`vmkeep vm list -A` shows VMs, and libvirt's domains that `vmkeep vm adopt` takes over"),
        _ => Error::not_found(kind, name).hint(format!("`vmkeep {kind} list` shows what there is")),
    };
    stored.map(|s| s.value).ok_or_else(absent)
}

pub async fn get<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<Stored<T>>, Error> {
    typed::get_json(store, key).await.map_err(store_error)
}

pub async fn list<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Stored<T>>, Error> {
    typed::list_json(store, prefix).await.map_err(store_error)
}

/// For showing: one record that does not parse must not hide the others.
pub async fn list_readable<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<Vec<Stored<T>>, Error> {
    typed::list_readable(store, prefix).await.map_err(store_error)
}

/// Runs a transaction; `None` = a compare did not hold.
pub async fn commit(store: &dyn Store, txn: Txn) -> Result<Option<vmkeep_types::ids::Revision>, Error> {
    let outcome = store.txn(txn).await.map_err(store_error)?;
    Ok((outcome.held == Held::Yes).then_some(outcome.revision))
}

/// A new operation, to be written with its intent.
pub fn operation(ask: &Ask, kind: &str, resource: ResourceRef, wanted: Wanted) -> Operation {
    Operation {
        id: OperationId(uuid::Uuid::now_v7()),
        project: ask.project.clone(),
        kind: kind.into(),
        resource,
        state: OpState::Pending,
        steps: Vec::new(),
        progress: None,
        copying: None,
        blocked: None,
        error: None,
        wanted,
        by: ask.caller.name.clone(),
        created_at: jiff::Timestamp::now(),
        ended_at: None,
    }
}

pub fn put_op(op: &Operation) -> Op {
    typed::put(keys::op(&op.project, op.id), op)
}

/// "'a', 'b' and 3 more"; None when there is nobody.
pub fn some_of<T: Display>(users: &[T]) -> Option<String> {
    let told = match users {
        [] => return None,
        [one] => format!("'{one}'"),
        [one, two] => format!("'{one}' and '{two}'"),
        [one, two, more @ ..] => format!("'{one}', '{two}' and {} more", more.len()),
    };
    Some(told)
}

/// The deletion that a mark on a record names, while it goes on; a request repeated gets the same answer.
async fn open_deletion(store: &dyn Store, project: &Name, mark: Option<OperationId>) -> Result<Option<Operation>, Error> {
    let Some(id) = mark else { return Ok(None) };
    let found = get::<Operation>(store, &keys::op(project, id)).await?;
    Ok(found.map(|op| op.value).filter(|op| !op.state.is_over()))
}

/// The same operation as it is told when there was nothing to do.
pub fn done(mut op: Operation) -> Operation {
    op.state = OpState::Done;
    op.ended_at = Some(op.created_at);
    op
}

/// All nodes that have joined, in order of name.
pub async fn nodes(store: &dyn Store) -> Result<Vec<NodeFacts>, Error> {
    facts_of(store, &node::names(store).await?).await
}

/// How many nodes there are, and all of them where they are few: where there are many, placement says what does not fit, and to read
/// them all for each wish would cost more than the wish. Of many only one more is counted than is read.
async fn few_nodes(store: &dyn Store) -> Result<(usize, Vec<NodeFacts>), Error> {
    let names = node::first_names(store, NODES_READ_MAX + 1).await?;
    let nodes = if names.len() <= NODES_READ_MAX { facts_of(store, &names).await? } else { Vec::new() };
    Ok((names.len(), nodes))
}

async fn facts_of(store: &dyn Store, names: &[Name]) -> Result<Vec<NodeFacts>, Error> {
    let found = node::key_of_each(store, names, keys::facts).await?;
    Ok(found.iter().flatten().filter_map(|kv| typed::readable(typed::decode(kv))).collect())
}

/// A node for work that any can do: the one that is near, else the first that is online and whose libvirt answers.
pub async fn any_node(store: &dyn Store, near: Option<&Name>) -> Result<Name, Error> {
    let fit = |node: &&NodeView| node.facts.hypervisor_up && node.state.as_ref().is_none_or(|state| state.state == NodeHealth::Online);
    if let Some(near) = near
        && let Some((node, _)) = node::find(store, near).await?
        && fit(&&node)
    {
        return Ok(node.facts.name);
    }
    let nodes = node::list(store).await?;
    nodes.iter().find(fit).or(nodes.first()).map(|node| node.facts.name.clone()).ok_or_else(|| Error::conflict("no node has joined yet"))
}

/// Enters a node into the index of nodes, where the leader has not yet.
pub async fn note_joined(store: &dyn Store, node: &Name) -> Result<(), Error> {
    let key = keys::joined(node);
    if store.get(&key).await.map_err(store_error)?.is_some() {
        return Ok(());
    }
    commit(store, Txn::default().when(Compare::Absent(key.clone())).then(Op::Put(key, Vec::new()))).await.map(drop)
}

/// What every store begins with: the directory pool, the NAT network, the format level. Once; later calls change nothing.
pub async fn bootstrap(store: &dyn Store, pool_path: &str, shared: bool) -> Result<(), Error> {
    // Read first: a full store that has all of it is served, and is refused each transaction that could write.
    if store.get(keys::LEVEL).await.map_err(store_error)?.is_none() {
        fill(store, pool_path, shared).await?;
    }
    typed::agree_on_level(store).await.map_err(store_error)?;
    layout::upgrade(store).await.map_err(store_error)?;
    index::complete(store).await.map_err(store_error)
}

async fn fill(store: &dyn Store, pool_path: &str, shared: bool) -> Result<(), Error> {
    let project = Name::known("default");
    let default = Name::known("default");
    let created_at = jiff::Timestamp::now();
    let pool = PoolRecord {
        id: PoolId(uuid::Uuid::new_v4()),
        spec: PoolSpec { name: default.clone(), description: String::new(), driver: PoolDriver::Dir { path: pool_path.into(), shared } },
        leaving: false,
        mark: None,
        created_at,
    };
    let spec = serde_json::from_value(serde_json::json!({"name": default})).expect("a name is a whole network");
    let network = NetworkRecord {
        id: NetworkId(uuid::Uuid::new_v4()),
        project: project.clone(),
        spec,
        leaving: None,
        nodes: BTreeSet::new(),
        created_at,
    };
    let txn = Txn::default()
        .when(Compare::Absent(keys::LEVEL.into()))
        .then(typed::put(keys::LEVEL, &keys::LEVEL_NOW))
        .then(typed::put(keys::pool(pool.id), &pool))
        .then(typed::put(keys::name("network", &project, &default), &network.id))
        .then(typed::put(keys::network(&project, network.id), &network));
    commit(store, txn).await.map(drop)
}

/// Removes what is older than its retention: operations after 7 days, the events of each object beyond the newest 200, all
/// events of an object that is gone for 7 days, where uploads lay that rest no more, and tokens a day after they expired. Under the leader's compare, where there is a leader.
///
/// # Errors
/// The store's.
pub async fn housekeeping(store: &dyn Store, only_if: Option<&Compare>) -> Result<(), StoreError> {
    op::expire(store, only_if).await?;
    event::trim(store, only_if).await?;
    upload::expire(store, only_if, jiff::Timestamp::now()).await?;
    crate::auth::expire(store, only_if).await
}
