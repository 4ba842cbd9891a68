//! The leader's part in a deletion that many nodes take part in: an image or a network goes from every node that has it.
//!
//! ```text
//!  record `leaving: OP` ─► a task for each node that has it ─► results: those nodes leave the record ─► none is left: the record
//!  goes, OP is done
//! ```
//! The server writes the mark, OP and the tasks of the first nodes in one transaction; all others are told here, [`NODES_PER_TXN`]
//! at a time, and as many results are taken in with one write. Which nodes are still to be told follows from the record and the
//! tasks that are there, so a crash in between loses nothing: the next look goes on. Each write compares the record and OP.
//!
//! How it ends otherwise: one node that fails ends OP and the mark, and what the others did is noted all the same. OP cancelled:
//! tasks that nobody has answered are taken back. A node that was removed from the cluster has nothing to delete any more.

use std::collections::BTreeSet;

use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{ImageId, NetworkId, OperationId};
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::order::{TaskState, Work};

use super::task::{drop_image, drop_network, rewrite};
use super::view::{ClusterView, Kept};
use super::vm::{ended, op_key};
use crate::app::network::task;

/// Nodes in one transaction: two keys of each, and as many again for compares, records and the leader's own. etcd takes 128.
pub const NODES_PER_TXN: usize = 60;

pub const IMAGE: &str = "image.delete";
pub const NETWORK: &str = "network.delete";

/// Is it an operation that is carried out here?
pub fn is_one(op: &Operation) -> bool {
    op.kind == IMAGE || op.kind == NETWORK
}

/// What goes.
enum Subject<'v> {
    Image(&'v Kept<ImageRecord>),
    Network(&'v Kept<NetworkRecord>),
}

impl<'v> Subject<'v> {
    /// By its uid: another one of that name is not the one that was to go.
    fn of(view: &'v ClusterView, op: &Operation) -> Option<Self> {
        match op.resource.kind.as_str() {
            "image" => view.images.get(&ImageId(op.resource.uid)).map(Self::Image),
            "network" => view.networks.get(&NetworkId(op.resource.uid)).map(Self::Network),
            _ => None,
        }
    }

    fn leaving(&self) -> Option<OperationId> {
        match self {
            Self::Image(kept) => kept.value.leaving,
            Self::Network(kept) => kept.value.leaving,
        }
    }

    /// Nodes that have it.
    fn nodes(&self) -> BTreeSet<&'v Name> {
        match self {
            Self::Image(kept) => kept.value.holders().collect(),
            Self::Network(kept) => kept.value.nodes.iter().collect(),
        }
    }

    fn same(&self) -> Compare {
        match self {
            Self::Image(kept) => Compare::ModifiedAt(keys::image(&kept.value.project, kept.value.id), kept.modified),
            Self::Network(kept) => Compare::ModifiedAt(keys::network(&kept.value.project, kept.value.id), kept.modified),
        }
    }

    /// What each node is told; None: its pool is gone, which a pool with an image never is.
    fn work(&self, view: &ClusterView) -> Option<Work> {
        match self {
            Self::Image(kept) => {
                let pool = view.pool_by_name(&kept.value.spec.pool)?.value.spec.clone();
                Some(Work::DeleteImage { image: kept.value.id, pool })
            }
            Self::Network(kept) => Some(Work::DeleteNetwork { network: kept.value.spec.clone() }),
        }
    }

    /// The record without `gone`, and without its mark when `mark` says so.
    fn shrink(&self, gone: &BTreeSet<&Name>, mark: Mark, txn: Txn) -> Txn {
        match self {
            Self::Image(kept) => {
                let mut left = kept.value.holders().filter(|node| !gone.contains(node)).cloned();
                let node = left.next().expect("somebody has it yet");
                let mut value = ImageRecord { node, copies: left.collect(), ..kept.value.clone() };
                value.leaving = value.leaving.filter(|_| mark == Mark::Stays);
                rewrite(keys::image(&value.project, value.id), kept, &value, txn)
            }
            Self::Network(kept) => {
                let mut value = kept.value.clone();
                value.nodes.retain(|node| !gone.contains(node));
                value.leaving = value.leaving.filter(|_| mark == Mark::Stays);
                rewrite(keys::network(&value.project, value.id), kept, &value, txn)
            }
        }
    }

    fn drop(&self, view: &ClusterView, txn: Txn) -> Txn {
        match self {
            Self::Image(kept) => drop_image(view, kept, txn),
            Self::Network(kept) => drop_network(kept, txn),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Stays,
    Goes,
}

/// The next writes for one deletion; none while nodes are at work.
pub fn next(view: &ClusterView, id: OperationId, now: jiff::Timestamp) -> Vec<Txn> {
    let Some(op) = view.ops.get(&id) else { return Vec::new() };
    let answered = view.nodes.iter().filter_map(|(node, keys)| match &keys.results.get(&id)?.value.state {
        TaskState::Running => None,
        TaskState::Done => Some((node, None)),
        TaskState::Failed { error } => Some((node, Some(error))),
    });
    let answered: Vec<(&Name, Option<&Error>)> = answered.take(NODES_PER_TXN).collect();
    if !answered.is_empty() {
        return vec![take_in(view, op, &answered, now)];
    }
    match (op.value.state, Subject::of(view, &op.value)) {
        (OpState::Cancelled, _) => take_back(view, op),
        (state, Some(subject)) if !state.is_over() && subject.leaving() == Some(id) => go_on(view, op, &subject, now),
        _ => Vec::new(),
    }
}

/// Nodes that have answered: their tasks and results go in the transaction that notes what came of them.
fn take_in(view: &ClusterView, op: &Kept<Operation>, answered: &[(&Name, Option<&Error>)], now: jiff::Timestamp) -> Txn {
    let id = op.value.id;
    let keys = answered.iter().flat_map(|(node, _)| [keys::task(node, id), keys::result(node, id)]);
    let txn = keys.fold(same(op), |txn, key| txn.then(Op::Delete(key)));
    let gone: BTreeSet<&Name> = answered.iter().filter(|(_, error)| error.is_none()).map(|(node, _)| *node).collect();
    let error = answered.iter().find_map(|(_, error)| *error);
    note(view, op, &gone, error, txn, now)
}

/// What came of it so far: `gone` have it no more, or the first `error`.
fn note(view: &ClusterView, op: &Kept<Operation>, gone: &BTreeSet<&Name>, error: Option<&Error>, txn: Txn, now: jiff::Timestamp) -> Txn {
    let Some(subject) = Subject::of(view, &op.value) else { return end(op, error, txn, now) };
    let marked = subject.leaving() == Some(op.value.id);
    let nobody = subject.nodes().iter().all(|node| gone.contains(node));
    let is_image = matches!(subject, Subject::Image(_));
    match error {
        // A network that is kept after all is made anew where it is wanted; the last file of an image is gone for good.
        None if nobody && (is_image || subject.leaving().is_some()) => end(op, None, subject.drop(view, txn), now),
        Some(_) if nobody && is_image => end(op, None, subject.drop(view, txn), now),
        Some(_) => end(op, error, subject.shrink(gone, if marked { Mark::Goes } else { Mark::Stays }, txn), now),
        None => subject.shrink(gone, Mark::Stays, txn),
    }
}

fn end(op: &Kept<Operation>, error: Option<&Error>, txn: Txn, now: jiff::Timestamp) -> Txn {
    if op.value.state.is_over() {
        return txn;
    }
    let over = match error {
        Some(error) => Operation { error: Some(error.clone()), ..ended(&op.value, OpState::Failed, now) },
        None => ended(&op.value, OpState::Done, now),
    };
    txn.then(typed::put(op_key(&op.value), &over))
}

fn same(op: &Kept<Operation>) -> Txn {
    Txn::default().when(Compare::ModifiedAt(op_key(&op.value), op.modified))
}

/// Tells those that have not been told; leaves out those that are no nodes of the cluster any more.
fn go_on(view: &ClusterView, op: &Kept<Operation>, subject: &Subject<'_>, now: jiff::Timestamp) -> Vec<Txn> {
    let id = op.value.id;
    let nodes = subject.nodes();
    let removed = |node: &&Name| !view.joined.contains(*node) && view.nodes.get(*node).is_none_or(|keys| keys.facts.is_none());
    let gone: BTreeSet<&Name> = nodes.iter().copied().filter(removed).take(NODES_PER_TXN).collect();
    if !gone.is_empty() || nodes.is_empty() {
        let txn = gone.iter().fold(same(op), |txn, node| txn.then(Op::Delete(keys::task(node, id))));
        return vec![note(view, op, &gone, None, txn, now)];
    }
    let told = |node: &&Name| view.nodes.get(*node).is_some_and(|keys| keys.tasks.contains_key(&id));
    let untold: Vec<&Name> = nodes.into_iter().filter(|node| !told(node)).collect();
    let Some(work) = subject.work(view).filter(|_| !untold.is_empty()) else { return Vec::new() };
    let tell = |part: &[&Name]| {
        let tasks = part.iter().map(|node| task(node, &op.value.project, id, work.clone()));
        tasks.fold(same(op).when(subject.same()), Txn::then)
    };
    untold.chunks(NODES_PER_TXN).map(tell).collect()
}

/// Nobody wants it any more of those that have not answered.
fn take_back(view: &ClusterView, op: &Kept<Operation>) -> Vec<Txn> {
    let id = op.value.id;
    let told: Vec<&Name> = view.nodes.iter().filter(|(_, keys)| keys.tasks.contains_key(&id)).map(|(node, _)| node).collect();
    let part = |part: &[&Name]| {
        let keys = part.iter().flat_map(|node| [keys::task(node, id), keys::result(node, id)]);
        keys.fold(same(op), |txn, key| txn.then(Op::Delete(key)))
    };
    told.chunks(NODES_PER_TXN).map(part).collect()
}
