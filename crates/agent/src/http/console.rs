//! Serial consoles: one stream per VM, shared by all its viewers.
//!
//! ```text
//!              ┌► viewer 1 (queue) ─► WebSocket
//!  guest ─► hub┼► viewer 2 (queue) ─► WebSocket       a new viewer first gets the last 64 KiB
//!    ▲         └► replay buffer
//!    └───────────── input of all viewers
//! ```
//! The hub opens with the first viewer and closes with the last. A viewer that does not keep up is dropped, so that it slows
//! neither the guest nor the others; the guest's end closes all. Buffers are bounded everywhere.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::VmId;

use super::NodeHttp;
use super::answer::{Answer, Failure};
use crate::hypervisor::Hypervisor;

/// What a new viewer sees of the past: some screens full.
const REPLAY_BYTES: usize = 64 << 10;
/// Pieces that wait for one viewer; a piece is one read of the console.
const VIEWER_PIECES_MAX: usize = 512;
/// Viewers of one console.
const VIEWERS_MAX: usize = 16;
/// A viewer that takes nothing for so long is gone.
const SEND_PATIENCE: Duration = Duration::from_secs(10);
/// Keeps middle boxes from forgetting the connection, and finds viewers that are gone.
const PING_EVERY: Duration = Duration::from_secs(30);
/// One message of a viewer: a large paste.
const INPUT_BYTES_MAX: usize = 1 << 20;

pub struct Consoles {
    hypervisor: Arc<dyn Hypervisor>,
    hubs: Mutex<HashMap<VmId, Slot>>,
}

/// Held while a console is opened, so that two first viewers open one.
type Slot = Arc<tokio::sync::Mutex<Weak<Hub>>>;

struct Hub {
    to_guest: mpsc::Sender<Vec<u8>>,
    shared: Mutex<Shared>,
    /// Ends the pump with the last viewer.
    _end: DropGuard,
}

#[derive(Default)]
struct Shared {
    replay: VecDeque<u8>,
    viewers: Vec<mpsc::Sender<Bytes>>,
    closed: bool,
}

/// One viewer's end of a hub.
struct Viewer {
    hub: Arc<Hub>,
    past: Bytes,
    pieces: mpsc::Receiver<Bytes>,
}

impl Consoles {
    pub fn new(hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self { hypervisor, hubs: Mutex::new(HashMap::new()) }
    }

    async fn join(&self, vm: VmId) -> Answer<Viewer> {
        let slot = self.slot(vm);
        let mut open = slot.lock().await;
        if let Some(hub) = open.upgrade()
            && let Some(viewer) = Hub::join(&hub)?
        {
            return Ok(viewer);
        }
        let stream = self.hypervisor.console(vm).await?;
        let end = CancellationToken::new();
        let hub = Arc::new(Hub { to_guest: stream.to_guest, shared: Mutex::new(Shared::default()), _end: end.clone().drop_guard() });
        // Joined before the pump begins: nothing is lost, not even the end.
        let viewer = Hub::join(&hub)?.expect("a new hub is open");
        tokio::spawn(pump(Arc::downgrade(&hub), stream.from_guest, end));
        *open = Arc::downgrade(&hub);
        Ok(viewer)
    }

    fn slot(&self, vm: VmId) -> Slot {
        let mut hubs = self.hubs.lock().expect("no panic holds this lock");
        // Slots of consoles that are closed and that nobody is opening.
        hubs.retain(|id, slot| *id == vm || Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|hub| hub.strong_count() > 0));
        hubs.entry(vm).or_default().clone()
    }
}

impl Hub {
    /// None when the guest's end is closed.
    fn join(hub: &Arc<Self>) -> Answer<Option<Viewer>> {
        let mut shared = hub.shared.lock().expect("no panic holds this lock");
        if shared.closed {
            return Ok(None);
        }
        shared.viewers.retain(|viewer| !viewer.is_closed());
        if shared.viewers.len() >= VIEWERS_MAX {
            return Err(Error::conflict(format!("the console has {VIEWERS_MAX} viewers already")).into());
        }
        let (sender, pieces) = mpsc::channel(VIEWER_PIECES_MAX);
        shared.viewers.push(sender);
        let past = shared.replay.iter().copied().collect::<Vec<_>>().into();
        Ok(Some(Viewer { hub: hub.clone(), past, pieces }))
    }

    /// Hands a piece to all; who has no room is dropped.
    fn tell(&self, piece: Bytes) {
        let mut shared = self.shared.lock().expect("no panic holds this lock");
        shared.replay.extend(&piece);
        let over = shared.replay.len().saturating_sub(REPLAY_BYTES);
        shared.replay.drain(..over);
        shared.viewers.retain(|viewer| viewer.try_send(piece.clone()).is_ok());
    }

    fn close(&self) {
        let mut shared = self.shared.lock().expect("no panic holds this lock");
        shared.closed = true;
        shared.viewers.clear();
    }

    fn is_closed(&self) -> bool {
        self.shared.lock().expect("no panic holds this lock").closed
    }
}

/// Guest to viewers, until either end is gone. Holds no reference that would keep the hub open.
async fn pump(hub: Weak<Hub>, mut from_guest: mpsc::Receiver<Vec<u8>>, end: CancellationToken) {
    loop {
        let piece = tokio::select! {
            () = end.cancelled() => return,
            piece = from_guest.recv() => piece,
        };
        let Some(hub) = hub.upgrade() else { return };
        match piece {
            Some(piece) => hub.tell(piece.into()),
            None => return hub.close(),
        }
    }
}

pub async fn console(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, upgrade: Upgrade) -> Answer<Response> {
    let domain = node.our_domain(&uid).await?;
    if !domain.state.is_live() {
        return Err(Error::conflict(format!("the VM '{}' is off", domain.name)).hint(format!("`vmkeep vm start {}`", domain.name)).into());
    }
    let viewer = node.consoles.join(domain.uuid).await?;
    Ok(upgrade.0.max_message_size(INPUT_BYTES_MAX).on_upgrade(move |socket| view(socket, viewer)))
}

/// A WebSocket upgrade, refused in our own form.
pub struct Upgrade(pub WebSocketUpgrade);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Failure> {
        let asked = WebSocketUpgrade::from_request_parts(parts, state).await;
        asked.map(Self).map_err(|e| Error::new(Code::Invalid, format!("this is a WebSocket: {}", e.body_text())).into())
    }
}

async fn view(socket: WebSocket, viewer: Viewer) {
    let (sink, stream) = socket.split();
    let Viewer { hub, past, pieces } = viewer;
    tokio::select! {
        () = show(sink, &hub, past, pieces) => {}
        () = type_in(stream, &hub) => {}
    }
}

async fn show(mut sink: SplitSink<WebSocket, Message>, hub: &Hub, past: Bytes, mut pieces: mpsc::Receiver<Bytes>) {
    if !past.is_empty() && !send(&mut sink, Message::Binary(past)).await {
        return;
    }
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.tick().await;
    loop {
        let message = tokio::select! {
            piece = pieces.recv() => match piece {
                Some(piece) => Message::Binary(piece),
                None => break,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if !send(&mut sink, message).await {
            return;
        }
    }
    let (code, reason) = match hub.is_closed() {
        true => (close_code::NORMAL, "the guest's end was closed: the VM stopped, or another tool took the console"),
        false => (close_code::POLICY, "this viewer was too slow for what the guest writes"),
    };
    send(&mut sink, Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
}

/// False when the viewer is gone or takes nothing.
async fn send(sink: &mut SplitSink<WebSocket, Message>, message: Message) -> bool {
    matches!(tokio::time::timeout(SEND_PATIENCE, sink.send(message)).await, Ok(Ok(())))
}

async fn type_in(mut stream: SplitStream<WebSocket>, hub: &Hub) {
    while let Some(Ok(message)) = stream.next().await {
        let typed = match message {
            Message::Binary(bytes) => bytes.to_vec(),
            Message::Text(text) => text.as_bytes().to_vec(),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        if hub.to_guest.send(typed).await.is_err() {
            // The guest's end is closed; `show` says so to the viewer.
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> (Arc<Hub>, mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>) {
        let (guest, from_guest) = mpsc::channel(8);
        let (to_guest, typed) = mpsc::channel(8);
        let end = CancellationToken::new();
        let hub = Arc::new(Hub { to_guest, shared: Mutex::new(Shared::default()), _end: end.clone().drop_guard() });
        tokio::spawn(pump(Arc::downgrade(&hub), from_guest, end));
        (hub, guest, typed)
    }

    #[tokio::test]
    async fn all_viewers_see_the_same_and_a_late_one_sees_the_past() {
        let (hub, guest, _typed) = hub();
        let mut first = Hub::join(&hub).expect("room").expect("open");
        guest.send(b"boot ".to_vec()).await.expect("the pump runs");
        assert_eq!(first.pieces.recv().await.expect("a piece"), "boot ");
        let mut late = Hub::join(&hub).expect("room").expect("open");
        assert_eq!(late.past, "boot ");
        guest.send(b"login:".to_vec()).await.expect("the pump runs");
        assert_eq!(first.pieces.recv().await.expect("a piece"), "login:");
        assert_eq!(late.pieces.recv().await.expect("a piece"), "login:");
    }

    #[tokio::test]
    async fn the_past_is_bounded_and_a_slow_viewer_is_dropped_alone() {
        let (hub, _guest, _typed) = hub();
        let mut slow = Hub::join(&hub).expect("room").expect("open");
        let mut quick = Hub::join(&hub).expect("room").expect("open");
        let piece = Bytes::from(vec![b'x'; 1024]);
        for n in 0..=VIEWER_PIECES_MAX {
            hub.tell(piece.clone());
            assert!(quick.pieces.recv().await.is_some(), "the quick one gets piece {n}");
        }
        let late = Hub::join(&hub).expect("room").expect("open");
        assert_eq!(late.past.len(), REPLAY_BYTES);
        let mut got = 0;
        while slow.pieces.recv().await.is_some() {
            got += 1;
        }
        assert_eq!(got, VIEWER_PIECES_MAX, "what waited is still delivered, then its queue is closed");
        assert!(!hub.is_closed());
    }

    #[tokio::test]
    async fn viewers_are_limited_and_the_guests_end_closes_all() {
        let (hub, guest, _typed) = hub();
        let mut viewers: Vec<Viewer> = (0..VIEWERS_MAX).map(|_| Hub::join(&hub).expect("room").expect("open")).collect();
        assert!(Hub::join(&hub).is_err(), "one too many");
        viewers.pop();
        viewers.push(Hub::join(&hub).expect("room again").expect("open"));
        drop(guest);
        for viewer in &mut viewers {
            assert!(viewer.pieces.recv().await.is_none());
        }
        assert!(Hub::join(&hub).expect("no limit is met").is_none(), "a closed hub takes nobody");
    }

    #[tokio::test]
    async fn the_last_viewer_closes_the_guests_stream() {
        let (hub, guest, mut typed) = hub();
        let viewer = Hub::join(&hub).expect("room").expect("open");
        drop(hub);
        viewer.hub.to_guest.send(b"ls\r".to_vec()).await.expect("open");
        assert_eq!(typed.recv().await.expect("what was typed"), b"ls\r");
        drop(viewer);
        guest.closed().await;
        assert!(typed.recv().await.is_none());
    }
}
