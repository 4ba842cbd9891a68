//! Server-sent events (WHATWG HTML, 9.2): changes of a list or one operation, resumable.
//!
//! An event's `id` is the watch token `STORE:REVISION`. A reader that comes back with `Last-Event-ID` gets what it missed,
//! or 410 when the history is compacted or the store is another one. A bookmark every 15 s moves the token on and shows that
//! the line lives. Objects are sent as the list shows them.
//!
//! How it fails: a reader that takes nothing for [`LINE_PATIENCE`], a feed that fell behind or a store that does not answer
//! ends the stream; the reader comes back with its token. A value that does not parse is logged and left out.

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
use crate::app::{self, event, image, network, op, vm_parts, volume};
use crate::cache::{has_labels, vm_of};
use crate::feed::{Broke, Source};
use crate::streams::{STREAMS_PER_CALLER_MAX, Seat};
use crate::view::{self, Sight};

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

fn too_many() -> Response {
    let told = Error::new(Code::Unavailable, format!("you have {STREAMS_PER_CALLER_MAX} event streams already; no more at once"));
    respond::problem_as(StatusCode::TOO_MANY_REQUESTS, told.hint("end some; one stream of a list tells of all its objects"))
}

async fn begin(call: &Call, prefix: &str) -> Result<(Source, Revision), Box<Response>> {
    let refused = |e: StoreError| match e {
        StoreError::Compacted { .. } => Box::new(gone(format!("the watch token is too old: {e}"))),
        other => Box::new(respond::problem(app::store_error(other))),
    };
    call.labels().map_err(|error| Box::new(respond::problem(error)))?;
    let newest = call.store().revision().await.map_err(refused)?;
    let from = match token(call)? {
        Some(seen) if seen > newest => return Err(Box::new(gone("the watch token is from the future of this store"))),
        Some(seen) => seen,
        None => newest,
    };
    let source = Source::open(call.server.cache.feed(), call.store(), prefix, from).await.map_err(refused)?;
    Ok((source, from))
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

/// The reader is gone, or what it reads from.
struct Hung;

impl From<Broke> for Hung {
    fn from(_: Broke) -> Self {
        Self
    }
}

/// What came first.
enum Next<T> {
    Batch(T),
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

    async fn next<T>(&mut self, batch: impl Future<Output = Result<T, Hung>>) -> Result<Next<T>, Hung> {
        tokio::select! {
            () = self.queue.closed() => Err(Hung),
            batch = batch => batch.map(Next::Batch),
            _ = self.bookmarks.tick() => Ok(Next::Bookmark),
        }
    }
}

/// Changes of what `call` lists, from now or from its token.
pub async fn follow(call: Call, what: What) -> Result<Response, Error> {
    let Some(seat) = call.server.streams.take(&call.ask.caller.via) else { return Ok(too_many()) };
    let (source, at) = match begin(&call, what.prefix()).await {
        Ok(begun) => begun,
        Err(answer) => return Ok(*answer),
    };
    let names = match what.kind() {
        Some(kind) => names(call.store(), &call.ask.project, kind).await?,
        None => BTreeMap::new(),
    };
    let (line, response) = Line::open(call.server.bookmark_every);
    tokio::spawn(Telling { call, what, names, left: BTreeSet::new(), at, _seat: seat }.run(source, line));
    Ok(response)
}

/// Names by uid, for those that will be gone.
async fn names(store: &dyn Store, project: &Name, kind: &str) -> Result<BTreeMap<Uuid, Name>, Error> {
    let prefix = format!("name/{kind}/{project}/");
    let index = app::list::<Uuid>(store, &prefix).await?;
    Ok(index.into_iter().filter_map(|entry| Some((entry.value, entry.key[prefix.len()..].parse().ok()?))).collect())
}

struct Telling {
    call: Call,
    what: What,
    names: BTreeMap<Uuid, Name>,
    /// VMs whose labels are not the wanted ones.
    left: BTreeSet<VmId>,
    at: Revision,
    _seat: Seat,
}

impl Telling {
    async fn run(mut self, mut source: Source, mut line: Line) {
        while let Ok(next) = line.next(async { Ok(source.next().await?) }).await {
            let told = match next {
                Next::Batch(batch) => self.tell(&batch, &line).await,
                Next::Bookmark => self.bookmark(&mut source, &line).await,
            };
            if told.is_err() {
                return;
            }
        }
    }

    async fn tell(&mut self, batch: &WatchBatch, line: &Line) -> Result<(), Hung> {
        let mut events = self.events(batch).await?;
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

    /// The token moves on although nothing of ours changed.
    async fn bookmark(&mut self, source: &mut Source, line: &Line) -> Result<(), Hung> {
        let server = self.call.server.clone();
        let (batches, settled) = source.settle(server.cache.feed(), self.call.store()).await?;
        for batch in batches {
            self.tell(&batch, line).await?;
        }
        self.at = self.at.max(settled);
        line.send(self.call.store(), self.at, &WatchEvent::Bookmark).await
    }

    async fn events(&mut self, batch: &WatchBatch) -> Result<Vec<WatchEvent>, Hung> {
        let mut events = Vec::new();
        if self.what == What::Vms {
            for id in batch.changes.iter().filter_map(|c| vm_of(key_of(c))).collect::<BTreeSet<_>>() {
                events.extend(self.vm(id, batch).await?);
            }
            return Ok(events);
        }
        for change in &batch.changes {
            events.extend(self.object(change, batch).await?);
        }
        Ok(events)
    }

    async fn vm(&mut self, id: VmId, batch: &WatchBatch) -> Result<Option<WatchEvent>, Hung> {
        let (store, project) = (self.call.store(), &self.call.ask.project);
        let Some(shown) = readable(vm_parts::show_by_id(store, project, id).await)? else { return Ok(None) };
        let Some(view) = shown else {
            let key = keys::vm(project, id);
            let deleted = batch.changes.iter().any(|c| matches!(c, Change::Deleted { key: k, .. } if *k == key));
            return Ok(deleted.then(|| self.deleted(id.0, batch)));
        };
        self.names.insert(id.0, view.spec.name.clone());
        if has_labels(&view.spec.labels, &self.call.labels().unwrap_or_default()) {
            self.left.remove(&id);
            let veiled = (Sight::of(self.call.ask.caller.role) == Sight::Veiled).then(|| view::veiled(&view)).flatten();
            return Ok(Some(put(&veiled.unwrap_or(view))));
        }
        // For this reader it is not in the list; said once, because it may have been.
        Ok(self.left.insert(id).then_some(WatchEvent::Deleted { name: view.spec.name, id: id.0 }))
    }

    async fn object(&mut self, change: &Change, batch: &WatchBatch) -> Result<Option<WatchEvent>, Hung> {
        let key = key_of(change);
        let mut parts = key.split('/');
        let ours = match (&self.what, self.what.kind()) {
            (What::Stored(prefix), _) => key.starts_with(prefix),
            (_, kind) => parts.next() == kind && parts.next() == Some(self.call.ask.project.as_str()),
        };
        match change {
            _ if !ours => Ok(None),
            Change::Put(kv) => self.put(kv).await,
            Change::Deleted { key, .. } => {
                let id = key.rsplit('/').next().and_then(|id| id.parse().ok());
                Ok(id.map(|id| self.deleted(id, batch)))
            }
        }
    }

    async fn put(&mut self, kv: &KeyValue) -> Result<Option<WatchEvent>, Hung> {
        let store = self.call.store();
        let (id, name, event) = match &self.what {
            What::Images => {
                let Some(record) = typed::readable(typed::decode(kv)) else { return Ok(None) };
                let Some(view) = readable(image::view(store, record).await)? else { return Ok(None) };
                let (id, name) = (view.id.0, view.spec.name.clone());
                let listed = has_labels(&view.spec.labels, &self.call.labels().unwrap_or_default());
                (id, name.clone(), if listed { put(&view) } else { WatchEvent::Deleted { name, id } })
            }
            What::Volumes => {
                let Some(record) = typed::readable(typed::decode(kv)) else { return Ok(None) };
                let Some(view) = readable(volume::view(store, record).await)? else { return Ok(None) };
                (view.id.0, view.name.clone(), put(&view))
            }
            What::Networks => {
                let Some(record) = typed::readable(typed::decode(kv)) else { return Ok(None) };
                let Some(view) = readable(network::view(store, record).await)? else { return Ok(None) };
                (view.id.0, view.spec.name.clone(), put(&view))
            }
            What::Stored(_) if kv.key.starts_with(keys::ALL_EVENTS) => {
                return Ok(typed::readable(typed::stored(kv.clone())).map(|event| put(&event::view(event))));
            }
            What::Vms | What::Stored(_) => {
                return Ok(typed::readable(typed::decode::<Value>(kv)).map(|object| WatchEvent::Put { object }));
            }
        };
        self.names.insert(id, name);
        Ok(Some(event))
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

fn put<T: Serialize>(view: &T) -> WatchEvent {
    WatchEvent::Put { object: serde_json::to_value(view).expect("views are plain data") }
}

/// A record that does not parse is left out; any other error ends the stream, so that its token does not move over the change.
fn readable<T>(looked: Result<T, Error>) -> Result<Option<T>, Hung> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code == Code::Internal => {
            tracing::error!(%error, "a change is not told");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(%error, "an event stream ends");
            Err(Hung)
        }
    }
}

fn key_of(change: &Change) -> &str {
    match change {
        Change::Put(kv) => &kv.key,
        Change::Deleted { key, .. } => key,
    }
}

/// One operation: its state now, then each change, until it is over.
pub async fn operation(call: Call) -> Result<Response, Error> {
    let Some(seat) = call.server.streams.take(&call.ask.caller.via) else { return Ok(too_many()) };
    let first = op::find(call.store(), &call.ask.project, call.field("id")).await?.value;
    let key = keys::op(&call.ask.project, first.id);
    let from = call.store().revision().await.map_err(app::store_error)?;
    let watch = call.store().watch(&key, from.next()).await.map_err(app::store_error)?;
    // Read again: what changed between the two reads must not be lost.
    let now = op::find(call.store(), &call.ask.project, call.field("id")).await?.value;
    let (line, response) = Line::open(call.server.bookmark_every);
    tokio::spawn(async move {
        follow_operation(call, watch, line, from, now).await;
        drop(seat);
    });
    Ok(response)
}

async fn follow_operation(call: Call, mut watch: Watch, mut line: Line, mut at: Revision, mut current: Operation) {
    loop {
        if line.send(call.store(), at, &put(&current)).await.is_err() || current.state.is_over() {
            return;
        }
        current = loop {
            match line.next(async { watch.recv().await.and_then(Result::ok).ok_or(Hung) }).await {
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
        Change::Put(kv) => typed::readable(typed::decode(&kv)),
        Change::Deleted { .. } => None,
    })
}
