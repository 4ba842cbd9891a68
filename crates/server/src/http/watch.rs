//! Server-sent events (WHATWG HTML, 9.2): changes of a list or one operation, resumable.
//!
//! An event's `id` is the watch token `STORE:REVISION`. A reader that comes back with `Last-Event-ID` gets what it missed,
//! or 410 when the history is compacted or the store is another one. A bookmark every 15 s moves the token on and shows that
//! the line lives. Objects are sent as the list shows them.
//!
//! How it fails: a reader that takes nothing for [`LINE_PATIENCE`], or a watch that fell behind, ends the stream; the reader
//! comes back with its token.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use uuid::Uuid;
use vmkeep_api::body::WatchEvent;
use vmkeep_store::{Change, KeyValue, Store, StoreError, Watch, WatchBatch, keys, typed};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::{Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::operation::Operation;

use super::call::Call;
use super::respond;
use crate::app::{self, image, network, op, vm_parts, volume};
use crate::cache::{has_labels, vm_of};

/// Events that wait for a slow reader.
const LINE_MAX: usize = 256;
/// A reader that takes nothing for so long is gone.
const LINE_PATIENCE: Duration = Duration::from_secs(30);

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Vms,
    Images,
    Volumes,
    Networks,
    /// Stored objects under a prefix, sent as they lie there: operations, events.
    Stored(String),
}

impl What {
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Vms => Some("vm"),
            Self::Images => Some("image"),
            Self::Volumes => Some("volume"),
            Self::Networks => Some("network"),
            Self::Stored(_) => None,
        }
    }

    /// The keys by which it changes. A VM has several; the others' names are needed when they are gone.
    fn prefix(&self) -> &str {
        match self {
            Self::Stored(prefix) => prefix,
            Self::Vms | Self::Images | Self::Volumes | Self::Networks => "",
        }
    }
}

fn gone(why: impl Into<String>) -> Response {
    respond::problem_as(StatusCode::GONE, Error::new(Code::Stale, why).hint("list again and watch from there"))
}

/// Where a reader wants to go on; `Ok(None)` = from now.
fn token(call: &Call) -> Result<Option<Revision>, Box<Response>> {
    let Some(text) = call.header("last-event-id").or_else(|| call.query("since")) else { return Ok(None) };
    let other = || Box::new(gone("the watch token is of another store"));
    let (store, revision) = text.rsplit_once(':').ok_or_else(other)?;
    if store != call.store().id().0 {
        return Err(other());
    }
    revision.parse().map(|n| Some(Revision(n))).map_err(|_| other())
}

async fn begin(call: &Call, prefix: &str) -> Result<(Watch, Revision), Box<Response>> {
    let refused = |e: StoreError| match e {
        StoreError::Compacted { .. } => Box::new(gone(format!("the watch token is too old: {e}"))),
        other => Box::new(respond::problem(app::store_error(other))),
    };
    let newest = call.store().revision().await.map_err(refused)?;
    let from = match token(call)? {
        Some(seen) if seen > newest => return Err(Box::new(gone("the watch token is from the future of this store"))),
        Some(seen) => seen,
        None => newest,
    };
    let watch = call.store().watch(prefix, from.next()).await.map_err(refused)?;
    Ok((watch, from))
}

fn frame(store: &dyn Store, revision: Revision, event: &WatchEvent) -> Bytes {
    let kind = match event {
        WatchEvent::Put { .. } => "put",
        WatchEvent::Deleted { .. } => "deleted",
        WatchEvent::Bookmark => "bookmark",
    };
    let data = serde_json::to_string(event).expect("events are plain data");
    Bytes::from(format!("id: {}:{revision}\nevent: {kind}\ndata: {data}\n\n", store.id().0))
}

/// The way to one reader.
struct Line {
    queue: mpsc::Sender<Result<Bytes, Infallible>>,
    bookmarks: Interval,
}

/// The reader is gone.
struct Hung;

/// What came first.
enum Next {
    Batch(WatchBatch),
    Bookmark,
}

impl Line {
    fn open(bookmark_every: Duration) -> (Self, Response) {
        let (queue, lines) = mpsc::channel(LINE_MAX);
        let body = stream::unfold(lines, |mut lines: mpsc::Receiver<Result<Bytes, Infallible>>| async move {
            lines.recv().await.map(|bytes| (bytes, lines))
        });
        let mut response = Response::new(Body::from_stream(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let mut bookmarks = tokio::time::interval_at(Instant::now() + bookmark_every, bookmark_every);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (Self { queue, bookmarks }, response)
    }

    async fn send(&self, store: &dyn Store, revision: Revision, event: &WatchEvent) -> Result<(), Hung> {
        let sent = tokio::time::timeout(LINE_PATIENCE, self.queue.send(Ok(frame(store, revision, event)))).await;
        sent.map_err(|_| Hung)?.map_err(|_| Hung)
    }

    async fn next(&mut self, watch: &mut Watch) -> Result<Next, Hung> {
        tokio::select! {
            () = self.queue.closed() => Err(Hung),
            batch = watch.recv() => batch.and_then(Result::ok).map(Next::Batch).ok_or(Hung),
            _ = self.bookmarks.tick() => Ok(Next::Bookmark),
        }
    }
}

/// Changes of what `call` lists, from now or from its token.
pub async fn follow(call: Call, what: What) -> Result<Response, Error> {
    let (watch, at) = match begin(&call, what.prefix()).await {
        Ok(begun) => begun,
        Err(answer) => return Ok(*answer),
    };
    let names = match what.kind() {
        Some(kind) => names(call.store(), &call.ask.project, kind).await?,
        None => BTreeMap::new(),
    };
    let (line, response) = Line::open(call.server.bookmark_every);
    tokio::spawn(Feed { call, what, names, left: BTreeSet::new(), at }.run(watch, line));
    Ok(response)
}

/// Names by uid, for those that will be gone.
async fn names(store: &dyn Store, project: &Name, kind: &str) -> Result<BTreeMap<Uuid, Name>, Error> {
    let prefix = format!("name/{kind}/{project}/");
    let index = app::list::<Uuid>(store, &prefix).await?;
    Ok(index.into_iter().filter_map(|entry| Some((entry.value, entry.key[prefix.len()..].parse().ok()?))).collect())
}

struct Feed {
    call: Call,
    what: What,
    names: BTreeMap<Uuid, Name>,
    /// VMs whose labels are not the wanted ones.
    left: BTreeSet<VmId>,
    at: Revision,
}

impl Feed {
    async fn run(mut self, mut watch: Watch, mut line: Line) {
        while let Ok(next) = line.next(&mut watch).await {
            let told = match next {
                Next::Batch(batch) => self.tell(batch, &line).await,
                Next::Bookmark => self.bookmark(&mut watch, &line).await,
            };
            if told.is_err() {
                return;
            }
        }
    }

    async fn tell(&mut self, batch: WatchBatch, line: &Line) -> Result<(), Hung> {
        let mut events = self.events(&batch).await;
        let last = events.pop();
        // A reader that loses the line in the middle has the token of the batch before, and gets all of this one again.
        for event in events {
            line.send(self.call.store(), self.at, &event).await?;
        }
        self.at = batch.revision;
        match last {
            Some(event) => line.send(self.call.store(), self.at, &event).await,
            None => Ok(()),
        }
    }

    /// The token moves on although nothing of ours changed. What is published up to this revision is in the queue already.
    async fn bookmark(&mut self, watch: &mut Watch, line: &Line) -> Result<(), Hung> {
        let Ok(newest) = self.call.store().revision().await else { return Err(Hung) };
        while let Ok(batch) = watch.try_recv() {
            self.tell(batch.map_err(|_| Hung)?, line).await?;
        }
        self.at = self.at.max(newest);
        line.send(self.call.store(), self.at, &WatchEvent::Bookmark).await
    }

    async fn events(&mut self, batch: &WatchBatch) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        if self.what == What::Vms {
            for id in batch.changes.iter().filter_map(|c| vm_of(key_of(c))).collect::<BTreeSet<_>>() {
                events.extend(self.vm(id, batch).await);
            }
            return events;
        }
        for change in &batch.changes {
            events.extend(self.object(change, batch).await);
        }
        events
    }

    async fn vm(&mut self, id: VmId, batch: &WatchBatch) -> Option<WatchEvent> {
        let (store, project) = (self.call.store(), &self.call.ask.project);
        let Some(view) = vm_parts::show_by_id(store, project, id).await.ok()? else {
            let key = keys::vm(project, id);
            let deleted = batch.changes.iter().any(|c| matches!(c, Change::Deleted { key: k, .. } if *k == key));
            return deleted.then(|| self.deleted(id.0, batch));
        };
        self.names.insert(id.0, view.spec.name.clone());
        if has_labels(&view.spec.labels, &self.call.labels()) {
            self.left.remove(&id);
            return put(&view);
        }
        // For this reader it is not in the list; said once, because it may have been.
        self.left.insert(id).then_some(WatchEvent::Deleted { name: view.spec.name, id: id.0 })
    }

    async fn object(&mut self, change: &Change, batch: &WatchBatch) -> Option<WatchEvent> {
        let key = key_of(change);
        let mut parts = key.split('/');
        let ours = match (&self.what, self.what.kind()) {
            (What::Stored(prefix), _) => key.starts_with(prefix),
            (_, kind) => parts.next() == kind && parts.next() == Some(self.call.ask.project.as_str()),
        };
        match change {
            _ if !ours => None,
            Change::Put(kv) => self.put(kv).await,
            Change::Deleted { key, .. } => {
                let id = key.rsplit('/').next()?.parse().ok()?;
                Some(self.deleted(id, batch))
            }
        }
    }

    async fn put(&mut self, kv: &KeyValue) -> Option<WatchEvent> {
        let store = self.call.store();
        match &self.what {
            What::Images => {
                let view = image::view(store, typed::decode(kv).ok()?).await.ok()?;
                self.names.insert(view.id.0, view.spec.name.clone());
                put(&view)
            }
            What::Volumes => {
                let view = volume::view(store, typed::decode(kv).ok()?).await.ok()?;
                self.names.insert(view.id.0, view.name.clone());
                put(&view)
            }
            What::Networks => {
                let view = network::view(store, typed::decode(kv).ok()?).await.ok()?;
                self.names.insert(view.id.0, view.spec.name.clone());
                put(&view)
            }
            What::Vms | What::Stored(_) => Some(WatchEvent::Put { object: typed::decode::<Value>(kv).ok()? }),
        }
    }

    fn deleted(&mut self, id: Uuid, batch: &WatchBatch) -> WatchEvent {
        let name = self.names.remove(&id).or_else(|| self.only_name_deleted(batch));
        WatchEvent::Deleted { name: name.unwrap_or_else(|| Name::known("unknown")), id }
    }

    /// A replay tells of objects that were gone before it began; their names went in the same transaction.
    fn only_name_deleted(&self, batch: &WatchBatch) -> Option<Name> {
        let prefix = format!("name/{}/{}/", self.what.kind()?, self.call.ask.project);
        let mut deleted = batch.changes.iter().filter_map(|change| match change {
            Change::Deleted { key, .. } => key.strip_prefix(&prefix)?.parse().ok(),
            Change::Put(_) => None,
        });
        let first = deleted.next()?;
        deleted.next().is_none().then_some(first)
    }
}

fn put<T: Serialize>(view: &T) -> Option<WatchEvent> {
    Some(WatchEvent::Put { object: serde_json::to_value(view).ok()? })
}

fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(kv) => &kv.key,
        Change::Deleted { key, .. } => key,
    }
}

/// One operation: its state now, then each change, until it is over.
pub async fn operation(call: Call) -> Result<Response, Error> {
    let first = op::find(call.store(), &call.ask.project, call.field("id")).await?;
    let key = keys::op(&call.ask.project, first.id);
    let from = call.store().revision().await.map_err(app::store_error)?;
    let watch = call.store().watch(&key, from.next()).await.map_err(app::store_error)?;
    // Read again: what changed between the two reads must not be lost.
    let now = op::find(call.store(), &call.ask.project, call.field("id")).await?;
    let (line, response) = Line::open(call.server.bookmark_every);
    tokio::spawn(follow_operation(call, watch, line, from, now));
    Ok(response)
}

async fn follow_operation(call: Call, mut watch: Watch, mut line: Line, mut at: Revision, mut current: Operation) {
    while let Some(event) = put(&current) {
        if line.send(call.store(), at, &event).await.is_err() || current.state.is_over() {
            return;
        }
        current = loop {
            match line.next(&mut watch).await {
                Err(Hung) => return,
                Ok(Next::Bookmark) => {
                    if line.send(call.store(), at, &WatchEvent::Bookmark).await.is_err() {
                        return;
                    }
                }
                Ok(Next::Batch(batch)) => {
                    at = batch.revision;
                    if let Some(op) = newest(batch) {
                        break op;
                    }
                }
            }
        };
    }
}

fn newest(batch: WatchBatch) -> Option<Operation> {
    batch.changes.into_iter().rev().find_map(|change| match change {
        Change::Put(kv) => serde_json::from_slice(&kv.value).ok(),
        Change::Deleted { .. } => None,
    })
}
