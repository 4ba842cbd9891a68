//! Pools.
//!
//! ```text
//!  create, edit ──► `pools` compared: two that come at once see each other's names and folders
//!  delete, move ──► marked `leaving` ─► looked at for users once more ─► written
//! ```
//! Whoever makes something new in a pool compares its record as it read it: either they see the mark, or they are seen. What a
//! crash leaves marked takes nothing new, and the next change or deletion goes on from there. Files are nobody's business here:
//! a pool's folder and all in it stay where they are.

use std::collections::BTreeMap;
use std::path::Path;

use vmkeep_api::body::PoolView;
use vmkeep_core::place::Fleet;
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Op, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::error::{Error, Problem};
use vmkeep_types::ids::{PoolId, Revision};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::operation::ResourceRef;
use vmkeep_types::pool::{PoolDriver, PoolRecord, PoolSpec, VolumeRecord};

use super::{Ask, TRIES_MAX, commit, some_of, store_error};

/// The pool that everything lies in which names no other.
const DEFAULT: &str = "default";

pub async fn list(store: &dyn Store) -> Result<Vec<PoolView>, Error> {
    let all = super::list_readable::<PoolRecord>(store, keys::ALL_POOLS).await?;
    let mut views: Vec<PoolView> = all.into_iter().map(|p| view(p.value)).collect();
    views.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    Ok(views)
}

pub fn view(record: PoolRecord) -> PoolView {
    PoolView {
        id: record.id,
        spec: record.spec,
        created_at: record.created_at,
        mark: record.mark,
        not_on: Vec::new(),
        found: BTreeMap::new(),
    }
}

/// Nodes that have something else in the pool's place, or nothing.
pub fn not_on(fleet: &Fleet, pool: &PoolView) -> Vec<Name> {
    let Some(mark) = pool.mark else { return Vec::new() };
    fleet.seats().filter(|seat| !seat.facts.offers.may_have(pool.id, mark)).map(|seat| seat.name.clone()).collect()
}

/// A pool that is there: for what lies in it already.
pub async fn find(store: &dyn Store, name: &Name) -> Result<PoolRecord, Error> {
    Ok(stored(store, name).await?.value)
}

pub async fn stored(store: &dyn Store, name: &Name) -> Result<Stored<PoolRecord>, Error> {
    let all = super::list::<PoolRecord>(store, keys::ALL_POOLS).await?;
    all.into_iter().find(|p| p.value.spec.name == *name).ok_or_else(|| Error::not_found("pool", name).hint("see 'vmkeep pool list'"))
}

/// A pool that something new may be made in, and the compare that keeps it so.
///
/// # Errors
/// `NotFound`; `Conflict` when it is on its way out.
pub async fn open(store: &dyn Store, name: &Name) -> Result<(PoolSpec, Compare), Error> {
    let found = stored(store, name).await?;
    if found.value.leaving {
        return Err(leaves(name));
    }
    Ok((found.value.spec, Compare::ModifiedAt(found.key, found.modified)))
}

fn leaves(name: &Name) -> Error {
    Error::conflict(format!("pool '{name}' is being deleted or moved")).hint("'vmkeep pool delete' or 'pool edit' ends what was begun")
}

/// What would be refused of a new pool, or of a change, before anything is written.
///
/// # Errors
/// `Invalid` with all problems; `Conflict` when it should lie elsewhere and is in use.
pub async fn check_only(store: &dyn Store, spec: &PoolSpec) -> Result<Option<PoolRecord>, Error> {
    let all = super::list::<PoolRecord>(store, keys::ALL_POOLS).await?;
    let mut problems = check::pool(spec);
    let others = all.iter().filter(|other| other.value.spec.name != spec.name);
    problems.extend(others.filter_map(|other| overlap(spec, &other.value.spec)));
    if !problems.is_empty() {
        return Err(manifest::refused(&format!("pool {}", spec.name), problems));
    }
    let old = all.into_iter().find(|other| other.value.spec.name == spec.name).map(|old| old.value);
    if let Some(old) = old.as_ref().filter(|old| old.spec.driver != spec.driver) {
        refuse_users(store, old).await.map_err(|used| stays(old, used))?;
    }
    Ok(old)
}

/// Files of the one would lie among those of the other.
fn overlap(spec: &PoolSpec, other: &PoolSpec) -> Option<Problem> {
    let (PoolDriver::Dir { path: own, .. }, PoolDriver::Dir { path: theirs, .. }) = (&spec.driver, &other.driver);
    let message = match (Path::new(own).starts_with(theirs), Path::new(theirs).starts_with(own)) {
        (false, false) => return None,
        (true, true) => format!("'{own}' is the folder of pool '{}' already", other.name),
        (true, false) => format!("'{own}' lies in pool '{}' ({theirs})", other.name),
        (false, true) => format!("pool '{}' lies in '{own}' ({theirs})", other.name),
    };
    Some(Problem { field: "path".into(), message })
}

fn stays(old: &PoolRecord, used: Error) -> Error {
    let PoolDriver::Dir { path, .. } = &old.spec.driver;
    let message = format!("{}; what lies in {path} is not moved, nor told to be elsewhere", used.message);
    Error { message, ..used }.hint("make another pool, and let new disks lie there")
}

/// Creates or changes.
///
/// # Errors
/// As [`check_only`]; `Stale` when the caller read an older one.
pub async fn put(store: &dyn Store, ask: &Ask, spec: PoolSpec) -> Result<(PoolView, Revision), Error> {
    for _ in 0..TRIES_MAX {
        // Read before the pools: whoever changes them after this is seen by the compare.
        let guard = set_as_it_is(store).await?;
        let known = check_only(store, &spec).await?;
        let old = match known {
            None if ask.if_match.is_some() => return Err(Error::not_found("pool", &spec.name)),
            None => None,
            Some(_) => Some(stored(store, &spec.name).await?),
        };
        let (record, txn) = match old {
            None => {
                let (id, created_at) = (PoolId(uuid::Uuid::new_v4()), jiff::Timestamp::now());
                let record = PoolRecord { id, spec: spec.clone(), leaving: false, mark: None, created_at };
                ask.admit("pool.put", &resource(ask, &record))?;
                let txn = Txn::default().then(typed::put(keys::pool(record.id), &record));
                (record, txn)
            }
            Some(old) => {
                ask.expect(&spec.name, &old)?;
                ask.admit("pool.put", &resource(ask, &old.value))?;
                let still = if old.value.spec.driver == spec.driver {
                    Compare::ModifiedAt(old.key.clone(), old.modified)
                } else {
                    let set_aside = set_aside(store, &old).await;
                    set_aside.map_err(|error| stays(&old.value, error))?
                };
                let mark = old.value.mark.filter(|_| old.value.spec.driver == spec.driver);
                let record = PoolRecord { spec: spec.clone(), leaving: false, mark, ..old.value };
                let txn = Txn::default().when(still).then(typed::put(old.key, &record));
                (record, txn)
            }
        };
        let txn = txn.when(guard).then(Op::Put(keys::POOLS.into(), Vec::new()));
        if let Some(revision) = commit(store, txn).await? {
            return Ok((view(record), revision));
        }
    }
    Err(busy(&spec.name))
}

fn busy(name: &Name) -> Error {
    Error::conflict(format!("somebody changed the pools while '{name}' was; try again"))
}

async fn set_as_it_is(store: &dyn Store) -> Result<Compare, Error> {
    let there = store.get(keys::POOLS).await.map_err(store_error)?;
    Ok(there.map_or_else(|| Compare::Absent(keys::POOLS.into()), |there| Compare::ModifiedAt(keys::POOLS.into(), there.modified)))
}

fn resource(ask: &Ask, record: &PoolRecord) -> ResourceRef {
    ResourceRef { kind: "pool".into(), project: ask.project.clone(), name: record.spec.name.clone(), uid: record.id.0 }
}

/// Takes the record of a pool that nothing lies in away.
///
/// # Errors
/// `Conflict` for `default` and for one that is in use, with who uses it.
pub async fn delete(store: &dyn Store, ask: &Ask, name: &Name) -> Result<(), Error> {
    let found = stored(store, name).await?;
    ask.expect(name, &found)?;
    if name.as_str() == DEFAULT {
        return Err(Error::conflict("pool 'default' is where everything lies that names no other pool; it cannot be deleted"));
    }
    refuse_users(store, &found.value).await?;
    ask.admit("pool.delete", &resource(ask, &found.value))?;
    let still = set_aside(store, &found).await?;
    let gone = Txn::default().when(still).then(Op::Delete(found.key)).then(Op::Put(keys::POOLS.into(), Vec::new()));
    commit(store, gone).await?.map(drop).ok_or_else(|| busy(name))
}

/// Marks a pool, so that nothing new is made in it, when nothing lies in it; the compare that holds as long as it is so.
async fn set_aside(store: &dyn Store, found: &Stored<PoolRecord>) -> Result<Compare, Error> {
    let going = PoolRecord { leaving: true, ..found.value.clone() };
    let mark = Txn::default().when(Compare::ModifiedAt(found.key.clone(), found.modified)).then(typed::put(found.key.clone(), &going));
    let marked = commit(store, mark).await?.ok_or_else(|| busy(&found.value.spec.name))?;
    vmkeep_store::crash::point("pool marked");
    let still = Compare::ModifiedAt(found.key.clone(), marked);
    if let Err(used) = refuse_users(store, &found.value).await {
        let stays = PoolRecord { leaving: false, ..found.value.clone() };
        commit(store, Txn::default().when(still).then(typed::put(found.key.clone(), &stays))).await?;
        return Err(used);
    }
    Ok(still)
}

/// Volumes and images of all projects.
async fn refuse_users(store: &dyn Store, pool: &PoolRecord) -> Result<(), Error> {
    let name = &pool.spec.name;
    let told =
        |project: &Name, object: &Name| if project.as_str() == "default" { object.to_string() } else { format!("{project}/{object}") };
    let volumes = super::list::<VolumeRecord>(store, keys::ALL_VOLUMES).await?.into_iter().map(|v| v.value);
    let volumes: Vec<String> = volumes.filter(|v| v.pool == *name).map(|v| told(&v.project, &v.name)).collect();
    let images = super::list::<ImageRecord>(store, keys::ALL_IMAGES).await?.into_iter().map(|i| i.value);
    let images: Vec<String> = images.filter(|i| i.spec.pool == *name).map(|i| told(&i.project, &i.spec.name)).collect();
    let users: Vec<String> = [("volume", volumes), ("image", images)]
        .into_iter()
        .filter_map(|(kind, mut names)| {
            names.sort();
            Some(format!("{kind}{} {}", if names.len() == 1 { "" } else { "s" }, some_of(&names)?))
        })
        .collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(Error::conflict(format!("pool '{name}' is in use by {}", users.join(" and "))))
}
