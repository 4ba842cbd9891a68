//! Nodes: what people say of them, and whether they take new VMs.

use std::collections::{BTreeMap, BTreeSet};

use vmkeep_api::body::NodeView;
use vmkeep_api::place::NodeActionRequest;
use vmkeep_store::{Compare, KeyValue, Op, Store, Txn, keys, typed};
use vmkeep_types::check;
use vmkeep_types::drain::Drain;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::event::Event;
use vmkeep_types::host::{EpochRecord, NodeFacts, NodeHealth, NodeState};
use vmkeep_types::ids::{Epoch, Revision, node_uid};
use vmkeep_types::manifest;
use vmkeep_types::migration::Stop;
use vmkeep_types::name::Name;
use vmkeep_types::node::{Closure, Cordon, NodeLoad, NodeRecord, NodeSpec};
use vmkeep_types::units::ByteCount;

use super::ask::IfMatch;
use super::{Ask, TRIES_MAX, commit, drain, get, store_error};

/// Names asked about in one transaction.
const NAMES_PER_TXN: usize = 100;
/// The code of the event that tells of a reset by the watchdog.
const WAS_RESET: &str = "node.was-reset";
/// Longest reason of a cordon.
const WHY_CHARS_MAX: usize = 200;

/// All nodes that have joined, in order of name.
pub async fn names(store: &dyn Store) -> Result<Vec<Name>, Error> {
    let joined = store.list(keys::ALL_JOINED).await.map_err(store_error)?.items;
    Ok(joined.iter().filter_map(|kv| kv.key[keys::ALL_JOINED.len()..].parse().ok()).collect())
}

/// Those that have joined and are not known to be away.
pub async fn heard_of(store: &dyn Store) -> Result<Vec<Name>, Error> {
    let (mut joined, mut away) = (Vec::new(), BTreeSet::new());
    for kv in store.list_many(&[keys::ALL_JOINED, keys::ALL_STATES]).await.map_err(store_error)?.items {
        match kv.key.strip_prefix(keys::ALL_STATES) {
            Some(node) if typed::readable(typed::decode::<NodeState>(&kv)).is_some_and(|is| is.state == NodeHealth::Offline) => {
                away.insert(node.to_owned());
            }
            Some(_) => {}
            None => joined.extend(kv.key[keys::ALL_JOINED.len()..].parse::<Name>()),
        }
    }
    Ok(joined.into_iter().filter(|node| !away.contains(node.as_str())).collect())
}

/// The first of them, `count` at most: a request about one VM costs the same however many nodes there are.
pub async fn first_names(store: &dyn Store, count: usize) -> Result<Vec<Name>, Error> {
    let joined = store.first(keys::ALL_JOINED, count).await.map_err(store_error)?;
    Ok(joined.iter().filter_map(|kv| kv.key[keys::ALL_JOINED.len()..].parse().ok()).collect())
}

pub async fn has_joined(store: &dyn Store, node: &Name) -> Result<bool, Error> {
    Ok(store.get(&keys::joined(node)).await.map_err(store_error)?.is_some())
}

/// The node of a host alone; None where there are more, or none yet.
pub async fn alone(store: &dyn Store) -> Result<Option<Name>, Error> {
    let mut first = first_names(store, 2).await?;
    Ok(first.pop().filter(|_| first.is_empty()))
}

/// One key of each name, in their order; None where there is none.
pub async fn key_of_each(store: &dyn Store, names: &[Name], key: impl Fn(&Name) -> String) -> Result<Vec<Option<KeyValue>>, Error> {
    let mut found = Vec::with_capacity(names.len());
    for names in names.chunks(NAMES_PER_TXN) {
        let ask = Txn { then: names.iter().map(|name| Op::Get(key(name))).collect(), ..Txn::default() };
        found.extend(store.txn(ask).await.map_err(store_error)?.gets);
    }
    Ok(found)
}

/// The life that a node lives or lived last, and how it would end, as they are stored.
pub struct StoredLife {
    pub epoch: KeyValue,
    pub armed: Option<KeyValue>,
}

/// Of each node that has one that can be read, in their order.
pub async fn lives(store: &dyn Store, nodes: &[Name]) -> Result<Vec<StoredLife>, Error> {
    let epochs = key_of_each(store, nodes, keys::epoch).await?;
    let read = |(node, kv): (&Name, Option<KeyValue>)| {
        let kv = kv?;
        let epoch = typed::readable(typed::decode::<EpochRecord>(&kv))?.epoch;
        Some((node.clone(), (epoch, kv)))
    };
    let (names, lives): (Vec<Name>, Vec<(Epoch, KeyValue)>) = nodes.iter().zip(epochs).filter_map(read).unzip();
    let of: BTreeMap<&Name, Epoch> = names.iter().zip(lives.iter().map(|(epoch, _)| *epoch)).collect();
    let armed = key_of_each(store, &names, |node| keys::armed(node, of[node])).await?;
    Ok(lives.into_iter().zip(armed).map(|((_, epoch), armed)| StoredLife { epoch, armed }).collect())
}

pub async fn list(store: &dyn Store) -> Result<Vec<NodeView>, Error> {
    let names = names(store).await?;
    let facts = key_of_each(store, &names, keys::facts).await?;
    let records = key_of_each(store, &names, keys::node).await?;
    let loads = key_of_each(store, &names, keys::load).await?;
    let states = key_of_each(store, &names, keys::state).await?;
    let rows = names.iter().zip(facts).zip(records).zip(loads).zip(states);
    let view = |((((name, facts), record), load), state): ((((_, _), Option<_>), Option<_>), Option<_>)| {
        view(name, facts, [record.as_ref(), load.as_ref(), state.as_ref()])
    };
    Ok(rows.filter_map(view).collect())
}

/// `others`: what people say of it, what it measured, what the cluster hears of it.
fn view(name: &Name, facts: Option<KeyValue>, others: [Option<&KeyValue>; 3]) -> Option<NodeView> {
    let [record, load, state] = others;
    let facts: NodeFacts = typed::readable(typed::decode(&facts?))?;
    let record: Option<NodeRecord> = record.and_then(|kv| typed::readable(typed::decode(kv)));
    let load: Option<NodeLoad> = load.and_then(|kv| typed::readable(typed::decode(kv)));
    let NodeRecord { spec, cordon } = record.unwrap_or_else(|| NodeRecord::named(name.clone()));
    let state: Option<NodeState> = state.and_then(|kv| typed::readable(typed::decode(kv)));
    Some(NodeView { facts, state, spec: Some(spec), cordon, load, last_reset: None })
}

/// What each node has free now, as it measured last: for a warning, not for placement, which counts what is promised.
pub async fn free_memory(store: &dyn Store, nodes: &[NodeFacts]) -> Result<Vec<(Name, Option<ByteCount>)>, Error> {
    let names: Vec<Name> = nodes.iter().map(|node| node.name.clone()).collect();
    let loads = key_of_each(store, &names, keys::load).await?;
    let free = |(node, load): (&NodeFacts, Option<KeyValue>)| {
        let load: Option<NodeLoad> = load.and_then(|kv| typed::readable(typed::decode(&kv)));
        let free = load.map(|load| ByteCount::from_bytes(node.memory.bytes().saturating_sub(load.memory_used.bytes())));
        (node.name.clone(), free)
    };
    Ok(nodes.iter().zip(loads).map(free).collect())
}

/// A node and the revision of what people say of it.
pub async fn show(store: &dyn Store, name: &Name) -> Result<(NodeView, Revision), Error> {
    let (node, revision) = find(store, name).await?.ok_or_else(|| Error::not_found("node", name).hint("see 'vmkeep node list'"))?;
    Ok((NodeView { last_reset: last_reset(store, name).await?, ..node }, revision))
}

/// Among its newest events.
async fn last_reset(store: &dyn Store, name: &Name) -> Result<Option<Event>, Error> {
    let ring = keys::events_of(&Name::known("default"), "node", node_uid(name));
    let events = super::list_readable::<Event>(store, &ring).await?;
    Ok(events.into_iter().map(|stored| stored.value).rfind(|event| event.code == WAS_RESET))
}

pub(super) async fn find(store: &dyn Store, name: &Name) -> Result<Option<(NodeView, Revision)>, Error> {
    let ask = [keys::facts(name), keys::node(name), keys::load(name), keys::state(name)].map(Op::Get);
    let gets = store.txn(Txn { then: ask.into(), ..Txn::default() }).await.map_err(store_error)?.gets;
    let [facts, record, load, state]: [Option<KeyValue>; 4] = gets.try_into().map_err(|_| Error::internal("four keys were asked for"))?;
    let revision = record.as_ref().map_or(Revision(0), |kv| kv.modified);
    Ok(view(name, facts, [record.as_ref(), load.as_ref(), state.as_ref()]).map(|view| (view, revision)))
}

/// Replaces what people say of a node; whether it is cordoned stays.
pub async fn put(store: &dyn Store, ask: &Ask, spec: NodeSpec) -> Result<(NodeView, Revision), Error> {
    let problems = check::node(&spec);
    if !problems.is_empty() {
        return Err(manifest::refused(&format!("node {}", spec.name), problems));
    }
    let name = spec.name.clone();
    change(store, ask, &name, move |record| record.spec = spec.clone()).await
}

/// One of the verbs of `POST …/actions/{action}`.
pub async fn action(
    store: &dyn Store,
    ask: &Ask,
    name: &Name,
    action: &str,
    wish: NodeActionRequest,
) -> Result<(NodeView, Revision), Error> {
    let why = reason(wish.why.as_deref())?;
    match action {
        "cordon" => {
            let cordon = Cordon { by: ask.caller.name.clone(), at: jiff::Timestamp::now(), why, closure: Closure::Cordon };
            change(store, ask, name, move |record| close(record, &cordon)).await
        }
        "uncordon" if why.is_empty() => open(store, ask, name).await,
        "uncordon" => Err(Error::invalid("'uncordon' takes no `why`")),
        other => Err(Error::not_found("action", other).hint("known are cordon, uncordon")),
    }
}

/// The reason for which a node is closed, as it is told.
///
/// # Errors
/// It is too long, or more than a line.
pub fn reason(why: Option<&str>) -> Result<String, Error> {
    let why = why.unwrap_or_default();
    if why.chars().count() > WHY_CHARS_MAX || why.chars().any(char::is_control) {
        return Err(Error::invalid(format!("the reason has up to {WHY_CHARS_MAX} characters on one line")));
    }
    Ok(why.to_owned())
}

/// Closes it. Who closed it first, and why, stays unless a new reason is given; maintenance stays in any case.
pub fn close(record: &mut NodeRecord, cordon: &Cordon) {
    let old = record.cordon.take();
    let closure = old.as_ref().map_or(cordon.closure, |old| old.closure.max(cordon.closure));
    let kept = old.filter(|_| cordon.why.is_empty()).unwrap_or_else(|| cordon.clone());
    record.cordon = Some(Cordon { closure, ..kept });
}

/// Opens it, and ends a drain: what would go could come back at once.
async fn open(store: &dyn Store, ask: &Ask, name: &Name) -> Result<(NodeView, Revision), Error> {
    show(store, name).await?;
    for _ in 0..TRIES_MAX {
        let (guard, write) = changed(store, ask, name, |record| record.cordon = None).await?;
        let txn = match get::<Drain>(store, &keys::drain(name)).await? {
            Some(kept) => drain::stopped(&kept, Stop::Against { why: format!("uncordoned by {}", ask.caller.name) }),
            None => Txn::default().when(Compare::Absent(keys::drain(name))),
        };
        if commit(store, txn.when(guard).then(write)).await?.is_some() {
            return show(store, name).await;
        }
    }
    Err(busy(name))
}

async fn change(store: &dyn Store, ask: &Ask, name: &Name, change: impl Fn(&mut NodeRecord)) -> Result<(NodeView, Revision), Error> {
    show(store, name).await?;
    for _ in 0..TRIES_MAX {
        let (guard, write) = changed(store, ask, name, &change).await?;
        if commit(store, Txn::default().when(guard).then(write)).await?.is_some() {
            return show(store, name).await;
        }
    }
    Err(busy(name))
}

pub fn busy(name: &Name) -> Error {
    Error::new(Code::Unavailable, format!("node '{name}' is changed by others all the time; try again"))
}

/// What is said of a node, changed, and the condition under which that may be written.
///
/// # Errors
/// `Stale` when the caller read something older; the store's.
pub async fn changed(store: &dyn Store, ask: &Ask, name: &Name, change: impl FnOnce(&mut NodeRecord)) -> Result<(Compare, Op), Error> {
    let key = keys::node(name);
    let old = store.get(&key).await.map_err(store_error)?;
    expect(ask, name, old.as_ref())?;
    match &old {
        Some(kv) => {
            let mut record: NodeRecord = typed::decode(kv).map_err(store_error)?;
            change(&mut record);
            Ok((Compare::ModifiedAt(key, kv.modified), typed::rewrite(kv, &record).map_err(store_error)?))
        }
        None => {
            let mut record = NodeRecord::named(name.clone());
            change(&mut record);
            Ok((Compare::Absent(key.clone()), typed::put(key, &record)))
        }
    }
}

fn expect(ask: &Ask, name: &Name, old: Option<&KeyValue>) -> Result<(), Error> {
    let now = old.map_or(Revision(0), |kv| kv.modified);
    match ask.if_match {
        Some(IfMatch::At(read)) if read != now => Err(super::ask::stale(name, now)),
        _ => Ok(()),
    }
}
