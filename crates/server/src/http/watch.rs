//! Server-sent events (WHATWG HTML, 9.2): changes of a list or one operation, resumable.
//!
//! An event's `id` is the watch token `STORE:REVISION`. A reader that comes back with `Last-Event-ID` gets what it missed,
//! or 410 when the history is compacted or the store is another one. A bookmark every 15 s moves the token on and shows that
//! the line lives.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;
use vmkeep_api::body::WatchEvent;
use vmkeep_store::{Change, Store, StoreError, Watch, WatchBatch, keys};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::Operation;

use super::call::Call;
use super::respond;
use crate::app::{self, op, vm};

const BOOKMARK_EVERY: Duration = Duration::from_secs(15);
/// Events that wait for a slow reader; then the line is closed and the reader resumes.
const LINE_MAX: usize = 256;

type Line = mpsc::Sender<Result<Bytes, std::convert::Infallible>>;

/// Where a reader wants to go on; `Ok(None)` = from now.
fn token(call: &Call) -> Result<Option<Revision>, Box<Response>> {
    let Some(text) = call.header("last-event-id").or_else(|| call.query("since")) else { return Ok(None) };
    let gone = || {
        let mut answer = respond::problem(Error::new(Code::Stale, "the watch token is of another store or too old").hint("list again and watch from there"));
        *answer.status_mut() = StatusCode::GONE;
        Box::new(answer)
    };
    let (store, revision) = text.rsplit_once(':').ok_or_else(gone)?;
    if store != call.store().id().0 {
        return Err(gone());
    }
    revision.parse().map(|n| Some(Revision(n))).map_err(|_| gone())
}

async fn begin(call: &Call, prefix: &str) -> Result<(Watch, Revision), Box<Response>> {
    let refused = |e: StoreError| {
        let compacted = matches!(e, StoreError::Compacted { .. });
        let mut answer = respond::problem(app::store_error(e));
        if compacted {
            *answer.status_mut() = StatusCode::GONE;
        }
        Box::new(answer)
    };
    let from = match token(call)? {
        Some(seen) => seen,
        None => call.store().revision().await.map_err(refused)?,
    };
    let watch = call.store().watch(prefix, from.next()).await.map_err(refused)?;
    Ok((watch, from))
}

fn event(store: &dyn Store, revision: Revision, event: &WatchEvent) -> Bytes {
    let kind = match event {
        WatchEvent::Put { .. } => "put",
        WatchEvent::Deleted { .. } => "deleted",
        WatchEvent::Bookmark => "bookmark",
    };
    let data = serde_json::to_string(event).expect("events are plain data");
    Bytes::from(format!("id: {}:{revision}\nevent: {kind}\ndata: {data}\n\n", store.id().0))
}

fn answer(line: mpsc::Receiver<Result<Bytes, std::convert::Infallible>>) -> Response {
    let body = stream::unfold(line, |mut line| async move { line.recv().await.map(|bytes| (bytes, line)) });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What came of waiting for the next batch.
enum Next {
    Batch(WatchBatch),
    Quiet,
    Over,
}

async fn next(watch: &mut Watch, line: &Line) -> Next {
    tokio::select! {
        () = line.closed() => Next::Over,
        batch = watch.recv() => batch.and_then(Result::ok).map_or(Next::Over, Next::Batch),
        () = tokio::time::sleep(BOOKMARK_EVERY) => Next::Quiet,
    }
}

/// Stored objects under a prefix, as they are.
pub async fn list(call: Call, prefix: &str) -> Result<Response, Error> {
    let (mut watch, mut at) = match begin(&call, prefix).await {
        Ok(begun) => begun,
        Err(answer) => return Ok(*answer),
    };
    let (line, lines) = mpsc::channel(LINE_MAX);
    let project = call.ask.project.clone();
    tokio::spawn(async move {
        loop {
            let events = match next(&mut watch, &line).await {
                Next::Over => return,
                Next::Quiet => vec![WatchEvent::Bookmark],
                Next::Batch(batch) => {
                    at = batch.revision;
                    batch.changes.into_iter().filter(|c| in_project(c, &project)).filter_map(told).collect()
                }
            };
            for told in events {
                if line.try_send(Ok(event(call.store(), at, &told))).is_err() {
                    return;
                }
            }
        }
    });
    Ok(answer(lines))
}

fn in_project(change: &Change, project: &Name) -> bool {
    let key = match change {
        Change::Put(kv) => &kv.key,
        Change::Deleted { key, .. } => key,
    };
    key.split('/').nth(1) == Some(project.as_str())
}

/// A stored change as it is sent; an object that is gone has only its id.
fn told(change: Change) -> Option<WatchEvent> {
    match change {
        Change::Put(kv) => serde_json::from_slice::<Value>(&kv.value).ok().map(|object| WatchEvent::Put { object }),
        Change::Deleted { key, .. } => {
            let id = key.rsplit('/').next()?.parse().ok()?;
            Some(WatchEvent::Deleted { name: Name::known("unknown"), id })
        }
    }
}

/// VMs as `GET /v1/vms` shows them, whenever any of their keys changes.
pub async fn vms(call: Call) -> Result<Response, Error> {
    let (mut watch, mut at) = match begin(&call, "").await {
        Ok(begun) => begun,
        Err(answer) => return Ok(*answer),
    };
    let (line, lines) = mpsc::channel(LINE_MAX);
    tokio::spawn(async move {
        loop {
            let mut events = Vec::new();
            match next(&mut watch, &line).await {
                Next::Over => return,
                Next::Quiet => events.push(WatchEvent::Bookmark),
                Next::Batch(batch) => {
                    at = batch.revision;
                    for id in touched(&batch) {
                        events.extend(vm_event(&call, id, &batch).await);
                    }
                }
            }
            for told in events {
                if line.try_send(Ok(event(call.store(), at, &told))).is_err() {
                    return;
                }
            }
        }
    });
    Ok(answer(lines))
}

/// VMs that a batch is about.
fn touched(batch: &WatchBatch) -> std::collections::BTreeSet<VmId> {
    let keys = batch.changes.iter().map(|c| match c {
        Change::Put(kv) => kv.key.as_str(),
        Change::Deleted { key, .. } => key.as_str(),
    });
    let of = |key: &str| {
        let parts: Vec<&str> = key.split('/').collect();
        match parts[..] {
            ["vm", _, id] | ["power" | "owner" | "choices", id] | ["n", _, "seen", id] => id.parse().ok(),
            _ => None,
        }
    };
    keys.filter_map(of).collect()
}

async fn vm_event(call: &Call, id: VmId, batch: &WatchBatch) -> Option<WatchEvent> {
    match vm::show_by_id(call.store(), &call.ask.project, id).await {
        Ok(Some(view)) => Some(WatchEvent::Put { object: serde_json::to_value(view).ok()? }),
        Ok(None) => {
            let key = keys::vm(&call.ask.project, id);
            let gone = batch.changes.iter().any(|c| matches!(c, Change::Deleted { key: k, .. } if *k == key));
            gone.then(|| WatchEvent::Deleted { name: Name::known("unknown"), id: id.0 })
        }
        Err(_) => None,
    }
}

/// One operation: its state now, then each change, until it is over.
pub async fn operation(call: Call) -> Result<Response, Error> {
    let first = op::find(call.store(), &call.ask.project, call.field("id")).await?;
    let key = keys::op(&call.ask.project, first.id);
    let from = call.store().revision().await.map_err(app::store_error)?;
    let mut watch = call.store().watch(&key, from.next()).await.map_err(app::store_error)?;
    // Read again: what changed between the two reads must not be lost.
    let now = op::find(call.store(), &call.ask.project, call.field("id")).await?;
    let (line, lines) = mpsc::channel(LINE_MAX);
    tokio::spawn(async move {
        let (mut at, mut current) = (from, now);
        loop {
            let object = serde_json::to_value(&current).expect("operations are plain data");
            if line.try_send(Ok(event(call.store(), at, &WatchEvent::Put { object }))).is_err() || current.state.is_over() {
                return;
            }
            current = loop {
                match next(&mut watch, &line).await {
                    Next::Over => return,
                    Next::Quiet => {
                        if line.try_send(Ok(event(call.store(), at, &WatchEvent::Bookmark))).is_err() {
                            return;
                        }
                    }
                    Next::Batch(batch) => {
                        at = batch.revision;
                        if let Some(op) = newest(batch) {
                            break op;
                        }
                    }
                }
            };
        }
    });
    Ok(answer(lines))
}

fn newest(batch: WatchBatch) -> Option<Operation> {
    batch.changes.into_iter().rev().find_map(|change| match change {
        Change::Put(kv) => serde_json::from_slice(&kv.value).ok(),
        Change::Deleted { .. } => None,
    })
}
