//! What the leader writes when a node's task moves on: the operation tells it, and its end settles the records.
//!
//! A failed import or creation leaves no record behind; a finished deletion removes it. The task and its result go in the
//! same transaction, so that the outcome is folded in exactly once.

use vmkeep_store::{Compare, Op, Txn, keys, typed};
use vmkeep_types::error::Error;
use vmkeep_types::ids::{ImageId, OperationId, VolumeId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::order::{NodeTask, TaskResult, TaskState, Work};

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
        txn.then.extend(settle(view, task, &result.value));
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

/// What the end of a task does to records.
fn settle(view: &ClusterView, task: &NodeTask, result: &TaskResult) -> Vec<Op> {
    let failed = matches!(result.state, TaskState::Failed { .. });
    match &task.work {
        Work::Fetch { image, .. } | Work::ImportUpload { image, .. } | Work::Build { image, .. } | Work::ImageFromVolume { image, .. } => {
            if failed {
                drop_image(view, *image)
            } else {
                finish_image(view, *image, result)
            }
        }
        Work::DeleteImage { image, .. } if !failed => drop_image(view, *image),
        Work::CreateVolume { volume, .. } if failed => drop_volume(view, volume.id),
        Work::DeleteVolume { volume, .. } if !failed => drop_volume(view, *volume),
        Work::DeleteNetwork { network } if !failed => drop_network(view, &task.project, &network.name),
        _ => Vec::new(),
    }
}

fn finish_image(view: &ClusterView, id: ImageId, result: &TaskResult) -> Vec<Op> {
    let Some(kept) = view.images.get(&id) else { return Vec::new() };
    let mut image = kept.value.clone();
    image.facts.clone_from(&result.facts);
    vec![typed::put(keys::image(&image.project, id), &image)]
}

fn drop_image(view: &ClusterView, id: ImageId) -> Vec<Op> {
    let Some(image) = view.images.get(&id).map(|kept| &kept.value) else { return Vec::new() };
    vec![Op::Delete(keys::image(&image.project, id)), Op::Delete(keys::name("image", &image.project, &image.spec.name))]
}

fn drop_volume(view: &ClusterView, id: VolumeId) -> Vec<Op> {
    let Some(volume) = view.volumes.get(&id).map(|kept| &kept.value) else { return Vec::new() };
    vec![Op::Delete(keys::volume(&volume.project, id)), Op::Delete(keys::name("volume", &volume.project, &volume.name))]
}

fn drop_network(view: &ClusterView, project: &Name, name: &Name) -> Vec<Op> {
    let Some(network) = view.network_by_name(project, name).map(|kept| &kept.value) else { return Vec::new() };
    vec![Op::Delete(keys::network(project, network.id)), Op::Delete(keys::name("network", project, name))]
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
