//! What the leader writes when a node's task moves on: the operation tells it, and its end settles the records.
//!
//! A failed import or creation leaves no record behind, a failed copy no clone; a finished deletion removes it. The task and its result go in the
//! same transaction, so that the outcome is folded in exactly once. Deletions that several nodes take part in: [`super::deletion`].

use serde::Serialize;
use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::OperationId;
use vmkeep_types::image::ImageRecord;
use vmkeep_types::name::Name;
use vmkeep_types::network::NetworkRecord;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::order::{NodeTask, TaskResult, TaskState, Work};
use vmkeep_types::pool::VolumeRecord;
use vmkeep_types::record::{Leaving, VmRecord};

use super::view::{ClusterView, Kept};
use super::vm::{ended, op_key};

pub fn next(view: &ClusterView, node: &Name, id: OperationId, now: jiff::Timestamp) -> Option<Txn> {
    let keys_of = view.nodes.get(node)?;
    let result = keys_of.results.get(&id)?;
    let op = view.ops.get(&id);
    let task = keys_of.tasks.get(&id).map(|task| &task.value);
    let Some(op) = op else { return Some(tidy(node, id)) };
    if result.value.state == TaskState::Running {
        let told = running(&op.value, &result.value);
        return (told != op.value && !op.value.state.is_over()).then(|| write(op, &told));
    }
    let mut txn = tidy(node, id).when(Compare::ModifiedAt(op_key(&op.value), op.modified));
    if !op.value.state.is_over() {
        txn = txn.then(typed::put(op_key(&op.value), &over(&op.value, &result.value, now)));
    }
    if let Some(task) = task {
        txn = settle(view, &op.value, task, &result.value, now, txn);
    }
    Some(txn)
}

fn write(op: &Kept<Operation>, told: &Operation) -> Txn {
    super::vm::replace_op(op, told)
}

fn tidy(node: &Name, id: OperationId) -> Txn {
    Txn::default().then(Op::Delete(keys::task(node, id))).then(Op::Delete(keys::result(node, id)))
}

fn running(op: &Operation, result: &TaskResult) -> Operation {
    Operation { state: OpState::Running, steps: result.steps.clone(), progress: result.progress, ..op.clone() }
}

fn over(op: &Operation, result: &TaskResult, now: jiff::Timestamp) -> Operation {
    let told = Operation { steps: result.steps.clone(), progress: None, ..op.clone() };
    match &result.state {
        TaskState::Failed { error } => Operation { error: Some(Error::clone(error)), ..ended(&told, OpState::Failed, now) },
        TaskState::Done | TaskState::Running => ended(&told, OpState::Done, now),
    }
}

/// What the end of a task does to records. Each is compared with what was seen of it: somebody may have taken it meanwhile.
fn settle(view: &ClusterView, op: &Operation, task: &NodeTask, result: &TaskResult, now: jiff::Timestamp, txn: Txn) -> Txn {
    let error = match &result.state {
        TaskState::Failed { error } => Some(error),
        TaskState::Done | TaskState::Running => None,
    };
    let failed = error.is_some();
    match &task.work {
        Work::Fetch { image, .. } | Work::ImportUpload { image, .. } | Work::Build { image, .. } | Work::ImageFromVolume { image, .. } => {
            match view.images.get(image) {
                Some(kept) if failed => drop_image(view, kept, txn),
                Some(kept) => {
                    let value = ImageRecord { facts: result.facts.clone(), ..kept.value.clone() };
                    rewrite(keys::image(&value.project, value.id), kept, &value, txn)
                }
                None => txn,
            }
        }
        Work::CreateVolume { volume, .. } | Work::CopyVolume { to: volume, .. } => {
            let Some(kept) = view.volumes.get(&volume.id).filter(|kept| kept.value.filling == Some(op.id)) else { return txn };
            match (error, &task.work) {
                (Some(error), Work::CopyVolume { .. }) => drop_clone(view, kept, error, now, txn),
                (Some(_), _) => drop_volume(kept, txn),
                (None, _) => {
                    let value = VolumeRecord { filling: None, made: true, ..kept.value.clone() };
                    rewrite(keys::volume(&value.project, value.id), kept, &value, txn)
                }
            }
        }
        Work::DeleteVolume { volume, .. } if !failed => match view.volumes.get(volume) {
            Some(kept) => drop_volume(kept, txn),
            None => txn,
        },
        _ => txn,
    }
}

/// A clone without one of its disks is none: it leaves with all its volumes, and its operation says why.
fn drop_clone(view: &ClusterView, copy: &Kept<VolumeRecord>, error: &Error, now: jiff::Timestamp, txn: Txn) -> Txn {
    let vm = copy.value.attached.as_ref().and_then(|attached| view.vms.get(&attached.vm));
    let Some(vm) = vm.filter(|vm| vm.value.leaving.is_none()) else { return txn };
    let going = VmRecord { leaving: Some(Leaving::Delete), ..vm.value.clone() };
    let mut txn = rewrite(keys::vm(&vm.value.project, vm.value.id), vm, &going, txn);
    for op in view.ops_of(vm.value.id).filter(|op| op.value.kind == "vm.clone") {
        let over = Operation { error: Some(error.clone()), ..ended(&op.value, OpState::Failed, now) };
        txn = rewrite(op_key(&op.value), op, &over, txn);
    }
    txn
}

pub(super) fn rewrite<T: Serialize>(key: String, kept: &Kept<T>, value: &T, txn: Txn) -> Txn {
    txn.when(Compare::ModifiedAt(key.clone(), kept.modified)).then(typed::put(key, value))
}

pub(super) fn drop_image(view: &ClusterView, kept: &Kept<ImageRecord>, txn: Txn) -> Txn {
    let image = &kept.value;
    let key = keys::image(&image.project, image.id);
    let txn = txn.when(Compare::ModifiedAt(key.clone(), kept.modified)).then(Op::Delete(key));
    // Older versions freed the name of an image while its file was being removed: it may be another's by now.
    let same = |other: &&Kept<ImageRecord>| other.value.project == image.project && other.value.spec.name == image.spec.name;
    if view.images.values().filter(same).count() > 1 {
        return txn;
    }
    txn.then(Op::Delete(keys::name("image", &image.project, &image.spec.name)))
}

fn drop_volume(kept: &Kept<VolumeRecord>, txn: Txn) -> Txn {
    let volume = &kept.value;
    let key = keys::volume(&volume.project, volume.id);
    txn.when(Compare::ModifiedAt(key.clone(), kept.modified)).then(Op::Delete(key)).then(Op::Delete(keys::name(
        "volume",
        &volume.project,
        &volume.name,
    )))
}

pub(super) fn drop_network(kept: &Kept<NetworkRecord>, txn: Txn) -> Txn {
    let network = &kept.value;
    let key = keys::network(&network.project, network.id);
    txn.when(Compare::ModifiedAt(key.clone(), kept.modified)).then(Op::Delete(key)).then(Op::Delete(keys::name(
        "network",
        &network.project,
        &network.spec.name,
    )))
}

/// A node that described itself for the first time is entered into the index of nodes.
pub fn enter(node: &Name) -> Txn {
    let key = keys::joined(node);
    Txn::default().when(Compare::Absent(key.clone())).then(Op::Put(key, Vec::new()))
}

/// A node's events move to the rings of the objects they are about; at most as many as one transaction may hold.
pub fn file_events(view: &ClusterView, node: &Name) -> Option<Txn> {
    const EVENTS_PER_TXN: usize = 50;
    let events = &view.nodes.get(node)?.events;
    if events.is_empty() {
        return None;
    }
    let mut txn = Txn::default();
    for (key, event) in events.iter().take(EVENTS_PER_TXN) {
        let resource = &event.value.resource;
        let stamp = key.rsplit('/').next().expect("a split has a last part");
        txn.then.push(Op::Delete(key.clone()));
        txn.then.push(typed::put(keys::event(&resource.project, &resource.kind, resource.uid, stamp), &event.value));
    }
    Some(txn)
}
