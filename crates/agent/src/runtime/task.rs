//! Imperative requests: each runs at least once and its outcome is written beside it.
//!
//! A crash in the middle leaves the task without outcome, and the next start runs it again; image and volume work is made
//! for that, and a second reset or reboot within a crash is what an operator would expect. Deleting the task cancels it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use vmkeep_store::{Compare, Txn, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{VmId, VolumeId};
use vmkeep_types::image::ImageFacts;
use vmkeep_types::order::{NodeTask, Progress, TaskResult, TaskState, Work};

use super::node::Node;
use crate::hypervisor::{HvError, XmlKind};
use crate::{domain, image, net};

/// Progress is stored at most this often.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Steps kept of one task; builders can be talkative.
const STEPS_MAX: usize = 200;

/// Progress as the working code reports it, until it is stored.
#[derive(Default)]
struct Told {
    progress: Option<Progress>,
    steps: Vec<String>,
    news: bool,
}

pub async fn run(node: Arc<Node>, task: NodeTask, cancel: CancellationToken) {
    let told = Arc::new(Mutex::new(Told::default()));
    let work = carry_out(&node, &task, told.clone());
    tokio::pin!(work);
    let mut tick = tokio::time::interval(TELL_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let outcome = loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            outcome = &mut work => break outcome,
            _ = tick.tick() => {
                if std::mem::take(&mut told.lock().expect("no panic holds this lock").news) {
                    tell(&node, &task, &told, TaskState::Running, None).await;
                }
            }
        }
    };
    let (state, facts) = match outcome {
        Ok(facts) => (TaskState::Done, facts),
        Err(error) => {
            tracing::warn!(op = %task.op, error = %error.message, "a task failed");
            (TaskState::Failed { error }, None)
        }
    };
    while !tell(&node, &task, &told, state.clone(), facts.clone()).await {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
    }
}

/// Writes the result as long as the task is wanted; false when the store did not answer.
async fn tell(node: &Node, task: &NodeTask, told: &Mutex<Told>, state: TaskState, facts: Option<ImageFacts>) -> bool {
    let (progress, steps) = {
        let told = told.lock().expect("no panic holds this lock");
        (told.progress, told.steps.clone())
    };
    let result = TaskResult { op: task.op, state, progress, steps, facts };
    let txn =
        Txn::default().when(Compare::Present(keys::task(&node.name, task.op))).then(typed::put(keys::result(&node.name, task.op), &result));
    node.store.txn(txn).await.is_ok()
}

async fn carry_out(node: &Node, task: &NodeTask, told: Arc<Mutex<Told>>) -> Result<Option<ImageFacts>, Error> {
    let sink = move |progress: Option<Progress>, step: &str| {
        let mut told = told.lock().expect("no panic holds this lock");
        told.progress = progress;
        if !step.is_empty() && told.steps.last().is_none_or(|last| last != step) && told.steps.len() < STEPS_MAX {
            told.steps.push(step.to_owned());
        }
        told.news = true;
    };
    match &task.work {
        Work::Reboot { vm } => domain_call(*vm, node.hv.reboot(*vm).await, "reboot"),
        Work::Reset { vm } => domain_call(*vm, node.hv.reset(*vm).await, "reset"),
        Work::Pause { vm } => domain_call(*vm, node.hv.suspend(*vm).await, "pause"),
        Work::Resume { vm } => domain_call(*vm, node.hv.resume(*vm).await, "resume"),
        Work::CreateVolume { volume, pool, image: from } => {
            let pool = node.pool(pool)?;
            pool.ensure().await?;
            if let (Some(id), Some(brief)) = (volume.image, from)
                && !pool.image_path(id).exists()
                && !brief.holders.is_empty()
            {
                image::bring(node, pool.as_ref(), id, brief, &sink).await?;
            }
            pool.create_volume(volume).await.map(|_| None)
        }
        Work::CopyVolume { from, from_pool, to, to_pool } => {
            let source = node.pool(from_pool)?.data_path(from);
            node.pool(to_pool)?.copy_volume(&source, from.data_format()?, to, &sink).await.map(|()| None)
        }
        Work::DeleteVolume { volume, pool } => {
            refuse_open(node, *volume).await?;
            node.pool(pool)?.delete_volume(*volume).await.map(|()| None)
        }
        Work::DeleteImage { image, pool } => node.pool(pool)?.delete_image(*image).await.map(|()| None),
        Work::DeleteNetwork { network } => net::remove(node.hv.as_ref(), &task.project, network).await.map(|()| None),
        Work::Fetch { .. } | Work::ImportUpload { .. } | Work::Build { .. } | Work::ImageFromVolume { .. } => {
            image_work(node, &task.work, &sink).await.map(Some)
        }
    }
}

/// A file that a running domain has open would go on growing without a name, and its data with it at the end.
async fn refuse_open(node: &Node, volume: VolumeId) -> Result<(), Error> {
    let unanswered = |error: HvError| Error::new(Code::Unavailable, format!("cannot tell whether a domain has the volume open: {error}"));
    let id = volume.to_string();
    let is_it = |file: &String| Path::new(file).file_name().is_some_and(|name| name.to_string_lossy().starts_with(&id));
    for domain in node.hv.list().await.map_err(unanswered)?.into_iter().filter(|d| d.state.is_live()) {
        let xml = match node.hv.xml(domain.uuid, XmlKind::Live).await {
            Err(HvError::NoDomain(_) | HvError::WrongState(_)) => continue,
            other => other.map_err(unanswered)?,
        };
        if let Some(file) = domain::disk_files(&xml)?.iter().find(|file| is_it(file)) {
            return Err(Error::conflict(format!("the running domain '{}' has {file} open", domain.name))
                .hint(format!("stop it (vmkeep vm stop {0}, or virsh shutdown {0}), then delete the volume again", domain.name)));
        }
    }
    Ok(())
}

fn domain_call(vm: VmId, result: Result<(), HvError>, what: &str) -> Result<Option<ImageFacts>, Error> {
    match result {
        Ok(()) => Ok(None),
        Err(HvError::WrongState(words)) => Err(Error::conflict(format!("cannot {what} it now: {words}"))),
        Err(HvError::NoDomain(_)) => Err(Error::new(Code::NotFound, format!("libvirt has no domain {vm}"))),
        Err(error) => Err(Error::refused(format!("cannot {what} it: {error}"))),
    }
}

async fn image_work(node: &Node, work: &Work, sink: &crate::pool::ProgressSink) -> Result<ImageFacts, Error> {
    let _slot = node.image_tasks.acquire().await.expect("the semaphore is never closed");
    match work {
        Work::Fetch { image, pool, url, sha256 } => {
            let pool = node.pool(pool)?;
            pool.ensure().await?;
            let remote = image::Remote { url, sha256: sha256.as_deref(), reach: node.config.reach };
            image::fetch(pool.as_ref(), *image, remote, sink).await
        }
        Work::ImportUpload { image, pool, upload, sha256 } => {
            let pool = node.pool(pool)?;
            let file = pool.staging().join(format!("upload-{upload}"));
            let imported = image::import_file(pool.as_ref(), *image, &file, sha256.as_deref(), sink).await;
            // What is wrong in itself stays wrong; for want of room or time the same upload may be tried again.
            if imported.as_ref().map_or_else(|e| matches!(e.code, Code::Invalid | Code::TooLarge), |_| true) {
                let _ = std::fs::remove_file(&file);
            }
            imported
        }
        Work::Build { image, pool, recipe } => {
            let pool = node.pool(pool)?;
            pool.ensure().await?;
            image::build(pool.as_ref(), *image, *recipe, sink).await
        }
        Work::ImageFromVolume { image, pool, volume, volume_pool } => {
            let kept_in = node.pool(volume_pool)?;
            let path = kept_in.data_path(volume);
            let base = volume.image.map(|image| kept_in.image_path(image));
            let source = image::VolumeSource { path: &path, format: volume.data_format()?, image: base.as_deref() };
            image::from_volume(node.pool(pool)?.as_ref(), *image, source, sink).await
        }
        _ => Err(Error::internal("not image work")),
    }
}
