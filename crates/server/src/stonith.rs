//! Power, cut from outside: the surest proof that a node is dead, and the fastest.
//!
//! ```text
//!  stonith/NODE (options sealed) ──► agent: one run of fence_AGENT ──► off, and seen to be off ──► Confirmed
//! ```
//! | module | is |
//! |---|---|
//! | [`agent`] | one run of one agent |
//! | [`nightly`] | the test of every night: what fails it is an alarm, before it is needed |
//!
//! [`off`] cuts the power of a node whose epoch is sealed, and of no other: an order that comes late, or from a leader that leads
//! no more, hits nobody who lives. "Off" is believed when the agent says so of the power afterwards, not because it was told to.

pub mod agent;
pub mod nightly;

use std::collections::BTreeMap;
use std::path::Path;

use agent::{Action, AgentError, Orders, Power};
use vmkeep_store::typed::Stored;
use vmkeep_store::{Compare, Store, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{Epoch, Revision};
use vmkeep_types::name::Name;
use vmkeep_types::stonith::{FenceFound, FenceRecord, FenceSpec, FenceTest, FenceTested, FenceView, HIDDEN, is_secret};

use crate::app::{Ask, TRIES_MAX, commit, get, node, store_error};

/// Options of one agent.
const OPTIONS_MAX: usize = 32;
/// Of an option's value.
const VALUE_BYTES_MAX: usize = 1024;
/// Of an agent's and an option's name.
const NAME_BYTES_MAX: usize = 40;
/// What vmkeep itself tells an agent, and what would write secrets to a file.
const RESERVED: [&str; 6] = ["action", "agent", "debug", "debug_file", "verbose", "version"];

/// What became of an order to cut a node's power.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The power is off, and was seen to be.
    Confirmed,
    /// It is not known to be off, and why.
    Failed(String),
}

/// Nodes whose power can be cut.
///
/// # Errors
/// The store's.
pub async fn nodes(store: &dyn Store) -> Result<Vec<Name>, Error> {
    let found = store.list(keys::ALL_STONITH).await.map_err(store_error)?.items;
    Ok(found.iter().filter_map(|kv| kv.key[keys::ALL_STONITH.len()..].parse().ok()).collect())
}

/// Cuts the power of a node whose epoch is sealed. `folder`: where agents are.
pub async fn off(store: &dyn Store, folder: &Path, node: &Name, epoch: Epoch) -> Cut {
    let sealed = match store.get(&keys::fence(node, epoch)).await {
        Ok(found) => found.is_some(),
        Err(error) => return Cut::Failed(error.to_string()),
    };
    if !sealed {
        return Cut::Failed(format!("epoch {epoch} of {node} is not sealed: it may live"));
    }
    let orders = match orders(store, folder, node).await {
        Ok(orders) => orders,
        Err(error) => return Cut::Failed(error.message),
    };
    let told = agent::act(&orders, Action::Off).await;
    match (agent::status(&orders).await, told) {
        // Whoever switched it off: after the seal it was off.
        (Ok(Power::Off), _) => Cut::Confirmed,
        (Ok(Power::On), Err(error)) => Cut::Failed(error.to_string()),
        (Ok(Power::On), Ok(())) => Cut::Failed(format!("fence_{} says that it is done, and that the power is on", orders.agent)),
        (Err(error), told) => Cut::Failed(told.err().unwrap_or(error).to_string()),
    }
}

/// Switches a node on, after its death was confirmed.
///
/// # Errors
/// No agent; its words.
pub async fn on(store: &dyn Store, folder: &Path, node: &Name) -> Result<(), Error> {
    agent::act(&orders(store, folder, node).await?, Action::On).await.map_err(of_agent)
}

async fn orders(store: &dyn Store, folder: &Path, node: &Name) -> Result<Orders, Error> {
    let FenceRecord { agent, options, .. } = find(store, node).await?.value;
    Ok(Orders { agent, options, folder: folder.to_owned() })
}

async fn find(store: &dyn Store, node: &Name) -> Result<Stored<FenceRecord>, Error> {
    let found = get::<FenceRecord>(store, &keys::stonith(node)).await?;
    let hint = format!("vmkeep node set {node} --fence ipmilan ip=ADDRESS username=NAME password=@FILE lanplus=1");
    found.ok_or_else(|| Error::new(Code::NotFound, format!("no fence agent is set for node '{node}'")).hint(hint))
}

fn of_agent(error: AgentError) -> Error {
    let code = if matches!(error, AgentError::Missing { .. }) { Code::Refused } else { Code::Unavailable };
    Error::new(code, error.to_string())
}

fn view(node: &Name, record: FenceRecord) -> FenceView {
    let shown = |(key, value): (String, String)| if is_secret(&key) { (key, HIDDEN.to_owned()) } else { (key, value) };
    FenceView { node: node.clone(), agent: record.agent, options: record.options.into_iter().map(shown).collect(), tested: record.tested }
}

/// What is set for a node, without secrets.
///
/// # Errors
/// `NotFound`; the store's.
pub async fn show(store: &dyn Store, node: &Name) -> Result<FenceView, Error> {
    Ok(view(node, find(store, node).await?.value))
}

/// Sets how the node's power is cut.
///
/// # Errors
/// `Invalid` with every problem; `NotFound` for a node that never joined; the store's.
pub async fn put(store: &dyn Store, ask: &Ask, name: &Name, spec: FenceSpec) -> Result<FenceView, Error> {
    node::show(store, name).await?;
    let agent = spec.agent.strip_prefix("fence_").unwrap_or(&spec.agent).to_owned();
    for _ in 0..TRIES_MAX {
        let key = keys::stonith(name);
        let old = get::<FenceRecord>(store, &key).await?;
        let kept = old.as_ref().filter(|old| old.value.agent == agent).map(|old| &old.value.options);
        let options = with_kept(&spec.options, kept)?;
        check(&agent, &options)?;
        let record = FenceRecord { agent: agent.clone(), options, tested: None };
        let guard = old.map_or_else(|| Compare::Absent(key.clone()), |old| Compare::ModifiedAt(key.clone(), old.modified));
        if commit(store, Txn::default().when(guard).then(typed::put(key, &record))).await?.is_some() {
            tracing::info!(node = %name, agent, by = %ask.caller.name, "a fence agent is set");
            return Ok(view(name, record));
        }
    }
    Err(node::busy(name))
}

/// A value that was shown as hidden is meant to stay as it is.
fn with_kept(wanted: &BTreeMap<String, String>, kept: Option<&BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, Error> {
    let value = |(key, value): (&String, &String)| {
        let real = if value == HIDDEN { kept.and_then(|kept| kept.get(key)) } else { Some(value) };
        let real = real.ok_or_else(|| Error::invalid(format!("options.{key}: there is no value yet that '{HIDDEN}' could keep")))?;
        Ok((key.clone(), real.clone()))
    };
    wanted.iter().map(value).collect()
}

fn check(agent: &str, options: &BTreeMap<String, String>) -> Result<(), Error> {
    let is_word = |word: &str| {
        (1..=NAME_BYTES_MAX).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
    };
    let mut problems = Vec::new();
    if !is_word(agent) {
        problems.push(format!("agent: '{agent}' is no fence agent; write it like ipmilan (for /usr/sbin/fence_ipmilan)"));
    }
    if options.len() > OPTIONS_MAX {
        problems.push(format!("options: at most {OPTIONS_MAX}"));
    }
    for (key, value) in options {
        if RESERVED.contains(&key.as_str()) {
            problems.push(format!("options.{key}: vmkeep decides that itself"));
        } else if !is_word(key) {
            problems.push(format!("options.{}: no option of a fence agent has such a name", key.escape_debug()));
        }
        if value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            problems.push(format!("options.{}: one line of at most {VALUE_BYTES_MAX} bytes", key.escape_debug()));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::invalid(problems.join("; "))) }
}

/// Its power can be cut no more.
///
/// # Errors
/// `NotFound`; the store's.
pub async fn delete(store: &dyn Store, name: &Name) -> Result<(), Error> {
    let old = find(store, name).await?;
    let guard = Compare::ModifiedAt(old.key.clone(), old.modified);
    let gone = Txn::default().when(guard).then(vmkeep_store::Op::Delete(old.key));
    commit(store, gone).await?.map(drop).ok_or_else(|| node::busy(name))
}

/// Asks the agent for the power's state, or really tries it; what was found is kept.
///
/// # Errors
/// `Refused` for a node that owns VMs or is this one; the store's. What the agent says is no error.
pub async fn test(store: &dyn Store, folder: &Path, here: &Name, name: &Name, wish: &FenceTest) -> Result<FenceView, Error> {
    let stored = find(store, name).await?;
    let FenceRecord { agent, options, .. } = stored.value.clone();
    let orders = Orders { agent, options, folder: folder.to_owned() };
    let found = if wish.really {
        may_be_cut(store, here, name).await?;
        really(&orders).await
    } else {
        found_by(agent::status(&orders).await)
    };
    Ok(view(name, keep(store, name, stored.value, stored.modified, found).await?))
}

async fn may_be_cut(store: &dyn Store, here: &Name, name: &Name) -> Result<(), Error> {
    if name == here {
        return Err(Error::refused(format!("{name} is the host that would cut its own power")).hint("ask another control node"));
    }
    if !store.list(&keys::owned(name)).await.map_err(store_error)?.items.is_empty() {
        return Err(Error::refused(format!("{name} owns VMs")).hint(format!("vmkeep node maintenance {name} on")));
    }
    Ok(())
}

/// Off, seen to be off, on, seen to be on.
async fn really(orders: &Orders) -> FenceFound {
    let turn = |action, want, is: &'static str| async move {
        agent::act(orders, action).await.map_err(|e| e.to_string())?;
        let seen = agent::status(orders).await.map_err(|e| e.to_string())?;
        if seen == want { Ok(()) } else { Err(format!("fence_{}: after '{}' the power is {is}", orders.agent, action.as_str())) }
    };
    let done = match turn(Action::Off, Power::Off, "on").await {
        // Whatever happened, it is not left off.
        Err(why) => agent::act(orders, Action::On).await.map_err(|e| format!("{why}; {e}")).and(Err(why)),
        Ok(()) => turn(Action::On, Power::On, "off").await,
    };
    done.map_or_else(|why| FenceFound::Unknown { why }, |()| FenceFound::On)
}

fn found_by(status: Result<Power, AgentError>) -> FenceFound {
    match status {
        Ok(Power::On) => FenceFound::On,
        Ok(Power::Off) => FenceFound::Off,
        Err(error) => FenceFound::Unknown { why: error.to_string() },
    }
}

/// Notes what was found, and tells of it when it changed.
async fn keep(store: &dyn Store, name: &Name, record: FenceRecord, at: Revision, found: FenceFound) -> Result<FenceRecord, Error> {
    let now = jiff::Timestamp::now();
    let told = nightly::alarm(name, record.tested.as_ref().map(|tested| &tested.found), &found, now);
    let key = keys::stonith(name);
    let record = FenceRecord { tested: Some(FenceTested { at: now, found }), ..record };
    let mut txn = Txn::default().when(Compare::ModifiedAt(key.clone(), at)).then(typed::put(key, &record));
    txn.then.extend(told);
    // Somebody set it anew meanwhile: what was found is not of that.
    commit(store, txn).await?;
    Ok(record)
}

#[cfg(test)]
mod tests;
