//! What there is while libvirt answers: one connection for events, some for calls; and the thread that brings it back.
//!
//! ```text
//!   connecting ──open, subscribe──► session ──any connection closes──► lost ──► connecting …
//!                  (Connected)                     (Disconnected)
//! ```
//! A lost session is never mended: libvirt's handles are dead for good, so all is opened and registered anew. Guests go on.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, RwLock, Weak};
use std::time::{Duration, Instant};

use super::conn::Conn;
use super::events::{Sink, Subscribed};
use crate::hypervisor::{HvError, HvEvent};

/// libvirtd serves at most five calls of one client at once, so a few calls that hang would stop all others of the same
/// connection. Four connections use all of its 20 workers.
const CALL_CONNECTIONS: usize = 4;
const RECONNECT_EVERY: Duration = Duration::from_millis(500);
/// During an outage the log gets a line this often.
const STILL_GONE_EVERY: Duration = Duration::from_secs(60);

pub struct Session {
    calls: Vec<Line>,
    lost: Arc<AtomicBool>,
    _events: Subscribed,
}

struct Line {
    conn: Arc<Conn>,
    running: AtomicUsize,
}

impl Session {
    fn open(uri: &CString, sink: &Sink, lost_sender: &Sender<&'static str>) -> Result<Self, HvError> {
        let lost = Arc::new(AtomicBool::new(false));
        let open = || {
            let (flag, sender) = (lost.clone(), lost_sender.clone());
            let on_close = move |why| {
                // The first of the connections tells; the receiver may be gone when we are closing down.
                if !flag.swap(true, Ordering::AcqRel) {
                    let _ = sender.send(why);
                }
            };
            Conn::open(uri, Box::new(on_close)).map(Arc::new)
        };
        let events = Subscribed::new(open()?, sink)?;
        let calls = (0..CALL_CONNECTIONS).map(|_| Ok(Line { conn: open()?, running: AtomicUsize::new(0) }));
        Ok(Self { calls: calls.collect::<Result<_, HvError>>()?, lost, _events: events })
    }

    /// Runs a call on the connection with the fewest running.
    pub fn with<T>(&self, call: impl FnOnce(&Arc<Conn>) -> Result<T, HvError>) -> Result<T, HvError> {
        struct Running<'a>(&'a AtomicUsize);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let line = self.calls.iter().min_by_key(|line| line.running.load(Ordering::Relaxed)).expect("CALL_CONNECTIONS is not zero");
        line.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&line.running);
        call(&line.conn)
    }
}

/// The session of the moment, kept by a thread of its own until the link is dropped.
pub struct Link {
    shared: Arc<Shared>,
    wake: Sender<&'static str>,
}

struct Shared {
    uri: CString,
    sink: Sink,
    now: RwLock<Result<Arc<Session>, HvError>>,
    stop: AtomicBool,
}

impl Link {
    pub fn start(uri: CString, sink: Sink) -> Result<Self, HvError> {
        let (wake, woken) = std::sync::mpsc::channel();
        let now = RwLock::new(Err(HvError::Disconnected("not connected yet".to_owned())));
        let shared = Arc::new(Shared { uri, sink, now, stop: AtomicBool::new(false) });
        let (weak, sender) = (Arc::downgrade(&shared), wake.clone());
        std::thread::Builder::new()
            .name("libvirt-link".to_owned())
            .spawn(move || keep(&weak, &sender, &woken))
            .map_err(|e| HvError::Disconnected(format!("cannot start a thread: {e}")))?;
        Ok(Self { shared, wake })
    }

    pub fn session(&self) -> Result<Arc<Session>, HvError> {
        let now = self.shared.now.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()?;
        if now.lost.load(Ordering::Acquire) {
            return Err(HvError::Disconnected("the connection was just lost".to_owned()));
        }
        Ok(now)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Its thread may be waiting, or gone already.
        let _ = self.wake.send("the link is dropped");
    }
}

fn keep(shared: &Weak<Shared>, sender: &Sender<&'static str>, woken: &Receiver<&'static str>) {
    let mut said: Option<Instant> = None;
    loop {
        let Some(shared) = shared.upgrade().filter(|s| !s.stop.load(Ordering::Acquire)) else { return };
        match Session::open(&shared.uri, &shared.sink, sender) {
            Ok(session) => {
                if said.take().is_some() {
                    tracing::info!("libvirt answers again");
                }
                let lost = session.lost.clone();
                shared.set(Ok(Arc::new(session)), HvEvent::Connected);
                let why = wait_until_lost(&shared, woken, &lost);
                shared.set(Err(HvError::Disconnected(why.to_owned())), HvEvent::Disconnected);
                tracing::warn!("libvirt is gone ({why}); guests go on, reconnecting");
                said = Some(Instant::now());
            }
            Err(e) => {
                if said.is_none_or(|at| at.elapsed() >= STILL_GONE_EVERY) {
                    tracing::warn!("cannot connect to libvirt: {e}; trying again");
                    said = Some(Instant::now());
                }
                *shared.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Err(e);
            }
        }
        match woken.recv_timeout(RECONNECT_EVERY) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A message may be about an earlier session, so the flag decides.
fn wait_until_lost(shared: &Shared, woken: &Receiver<&'static str>, lost: &AtomicBool) -> &'static str {
    loop {
        let why = woken.recv().unwrap_or("closing down");
        if lost.load(Ordering::Acquire) || shared.stop.load(Ordering::Acquire) {
            return why;
        }
    }
}

impl Shared {
    fn set(&self, now: Result<Arc<Session>, HvError>, event: HvEvent) {
        *self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner) = now;
        // Nobody listens: then nobody misses it.
        let _ = self.sink.send(event);
    }
}
