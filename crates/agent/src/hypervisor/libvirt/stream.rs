//! libvirt's byte streams: the serial console (both ways, as it comes) and the screenshot (read to its end).
//!
//! The console's callback runs on the event loop thread and only takes what is there. When its reader lags, output is dropped and
//! a note says how much: libvirt would otherwise keep it all in memory.

use std::os::raw::{c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::DropGuard;
use virt_sys as sys;
use vmkeep_types::ids::VmId;

use super::conn::Conn;
use super::domain::Domain;
use super::error::{check, last, take_text};
use super::pool::Pool;
use crate::hypervisor::{ConsoleStream, HvError, HvEvent, Lifecycle, Screenshot};

/// Bytes that are moved at once; what one of libvirt's packets may carry is more.
const CHUNK: usize = 16 * 1024;
/// Chunks of console output that wait for a slow reader.
const CONSOLE_CHUNKS_MAX: usize = 256;
/// Chunks of input that wait for libvirt.
const INPUT_CHUNKS_MAX: usize = 64;
/// A screenshot is a few MB even at 4K; more is not a picture.
const SCREENSHOT_BYTES_MAX: usize = 128 << 20;
/// When libvirt takes no input just now.
const INPUT_RETRY: Duration = Duration::from_millis(20);

/// How long output is taken in after the domain's stop.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Answers of virStreamRecv and virStreamSend on a non-blocking stream.
const WOULD_BLOCK: c_int = -2;

/// An open stream; freed, and ended if it still runs, on drop. That may block.
struct Stream {
    ptr: sys::virStreamPtr,
    _conn: Arc<Conn>,
    ended: bool,
    /// Of a registered callback.
    output: *mut Output,
}

// SAFETY: a stream is bound to its connection, whose calls may come from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    fn new(conn: Arc<Conn>, flags: u32) -> Result<Self, HvError> {
        // SAFETY: a live connection.
        let ptr = unsafe { sys::virStreamNew(conn.ptr(), flags) };
        if ptr.is_null() { Err(last(None)) } else { Ok(Self { ptr, _conn: conn, ended: false, output: std::ptr::null_mut() }) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: our handle. libvirt never calls the free function of a remote stream's callback (it tests the wrong pointer), so
        // the callback's half is ours to free: on the event loop thread, where no callback can be running.
        unsafe {
            if !self.output.is_null() {
                sys::virStreamEventRemoveCallback(self.ptr);
                if sys::virEventAddTimeout(0, Some(free_output), self.output.cast(), None) < 0 {
                    tracing::warn!("a console's buffer stays: {}", last(None));
                }
            }
            if !self.ended {
                sys::virStreamAbort(self.ptr);
            }
            sys::virStreamFree(self.ptr);
        }
    }
}

pub fn screenshot(conn: &Arc<Conn>, domain: &Domain<'_>) -> Result<Screenshot, HvError> {
    let mut stream = Stream::new(conn.clone(), 0)?;
    // SAFETY: handles of the same connection; the type's name is ours to free.
    let mime = unsafe { take_text(sys::virDomainScreenshot(domain.ptr(), stream.ptr, 0, 0), Some(domain.uuid())) }?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0u8; CHUNK];
    loop {
        // SAFETY: the length is the buffer's.
        let n = check(unsafe { sys::virStreamRecv(stream.ptr, chunk.as_mut_ptr().cast(), chunk.len()) }, None)?;
        if n == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..n as usize]);
        if bytes.len() > SCREENSHOT_BYTES_MAX {
            return Err(HvError::Refused(format!("the screenshot is larger than {} MiB", SCREENSHOT_BYTES_MAX >> 20)));
        }
    }
    // SAFETY: our handle, read to its end.
    check(unsafe { sys::virStreamFinish(stream.ptr) }, None)?;
    stream.ended = true;
    Ok(Screenshot { mime, bytes })
}

/// The callback's half of a console.
struct Output {
    to_reader: mpsc::WeakSender<Vec<u8>>,
    dropped: AtomicUsize,
    over: watch::Sender<bool>,
}

/// An open console whose callback is registered; [`Console::run`] serves it.
pub struct Console {
    about: VmId,
    stream: Stream,
    input: mpsc::Receiver<Vec<u8>>,
    over: watch::Receiver<bool>,
    reader_gone: mpsc::Sender<Vec<u8>>,
}

pub fn console(conn: &Arc<Conn>, domain: &Domain<'_>) -> Result<(Console, ConsoleStream), HvError> {
    let mut stream = Stream::new(conn.clone(), sys::VIR_STREAM_NONBLOCK)?;
    // SAFETY: handles of the same connection; a null device is the first console. Without the force flag a console that somebody
    // else has open is refused, not taken away.
    check(unsafe { sys::virDomainOpenConsole(domain.ptr(), std::ptr::null(), stream.ptr, 0) }, Some(domain.uuid()))?;
    let (to_reader, from_guest) = mpsc::channel(CONSOLE_CHUNKS_MAX);
    let (to_guest, input) = mpsc::channel(INPUT_CHUNKS_MAX);
    let (over_sender, over) = watch::channel(false);
    let output = Output { to_reader: to_reader.downgrade(), dropped: AtomicUsize::new(0), over: over_sender };
    let output: *mut Output = Box::into_raw(Box::new(output));
    let events = sys::VIR_STREAM_EVENT_READABLE | sys::VIR_STREAM_EVENT_ERROR | sys::VIR_STREAM_EVENT_HANGUP;
    // SAFETY: the box is freed by the stream's drop, or here when the registration fails.
    unsafe {
        if sys::virStreamEventAddCallback(stream.ptr, events as c_int, Some(readable), output.cast(), None) < 0 {
            drop(Box::from_raw(output));
            return Err(last(Some(domain.uuid())));
        }
    }
    stream.output = output;
    Ok((Console { about: domain.uuid(), stream, input, over, reader_gone: to_reader }, ConsoleStream { from_guest, to_guest }))
}

unsafe extern "C" fn readable(stream: sys::virStreamPtr, _events: c_int, opaque: *mut c_void) {
    // SAFETY: the box of console(), alive until after this callback's removal.
    let output = unsafe { &*opaque.cast::<Output>() };
    let mut chunk = [0u8; CHUNK];
    loop {
        // SAFETY: the length is the buffer's.
        let n = unsafe { sys::virStreamRecv(stream, chunk.as_mut_ptr().cast::<c_char>(), chunk.len()) };
        match n {
            WOULD_BLOCK => return,
            1.. => output.take(&chunk[..n as usize]),
            _ => {
                // The end: no more events are wanted, or a broken stream would call again and again.
                // SAFETY: our stream, on the event loop thread.
                unsafe { sys::virStreamEventUpdateCallback(stream, 0) };
                output.over.send_replace(true);
                return;
            }
        }
    }
}

impl Output {
    fn take(&self, bytes: &[u8]) {
        let Some(to_reader) = self.to_reader.upgrade() else { return };
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            let note = format!("\r\n[vmkeep: {dropped} bytes of output were dropped]\r\n").into_bytes();
            if to_reader.try_send(note).is_ok() {
                self.dropped.store(0, Ordering::Relaxed);
            }
        }
        if to_reader.try_send(bytes.to_vec()).is_err() {
            self.dropped.fetch_add(bytes.len(), Ordering::Relaxed);
        }
    }
}

unsafe extern "C" fn free_output(timer: c_int, opaque: *mut c_void) {
    // SAFETY: the timer runs once, as it removes itself; the box of console() is nobody else's by now.
    unsafe {
        sys::virEventRemoveTimeout(timer);
        drop(Box::from_raw(opaque.cast::<Output>()));
    }
}

impl Console {
    /// Until a side is done: the domain, the connection, the reader or the writer. libvirt often does not end the stream with the
    /// domain, so its stop is taken from the events. `closed` falls when libvirt has taken the console back.
    pub async fn run(mut self, mut events: broadcast::Receiver<HvEvent>, pool: Arc<Pool>, closed: DropGuard) {
        loop {
            let bytes = tokio::select! {
                _ = self.over.changed() => break,
                event = events.recv() => match event {
                    Ok(event) if self.is_last(&event) => {
                        // The guest's last words may come after the news of its end.
                        let _ = tokio::time::timeout(LAST_WORDS, self.over.changed()).await;
                        break;
                    }
                    Ok(_) => continue,
                    // Its stop may be among what was missed; whoever still looks opens it again.
                    Err(_) => break,
                },
                () = self.reader_gone.closed() => break,
                bytes = self.input.recv() => bytes,
            };
            let Some(bytes) = bytes else { break };
            if self.write(&bytes).await.is_err() {
                break;
            }
        }
        // Ending and freeing the stream asks libvirt: not on this thread.
        pool.run_detached(move || {
            drop(self);
            drop(closed);
        });
    }

    pub fn to_reader(&self) -> mpsc::WeakSender<Vec<u8>> {
        self.reader_gone.downgrade()
    }

    fn is_last(&self, event: &HvEvent) -> bool {
        match event {
            HvEvent::Lifecycle { uuid, what: Lifecycle::Stopped(_), .. } => *uuid == self.about,
            HvEvent::Disconnected => true,
            _ => false,
        }
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), HvError> {
        while !bytes.is_empty() {
            // SAFETY: the length is the slice's.
            let n = unsafe { sys::virStreamSend(self.stream.ptr, bytes.as_ptr().cast(), bytes.len().min(CHUNK)) };
            if n == WOULD_BLOCK {
                tokio::select! {
                    _ = self.over.changed() => return Err(HvError::WrongState("the console ended".to_owned())),
                    () = self.reader_gone.closed() => return Err(HvError::WrongState("the console was closed".to_owned())),
                    () = tokio::time::sleep(INPUT_RETRY) => continue,
                }
            }
            bytes = &bytes[check(n, None)? as usize..];
        }
        Ok(())
    }
}
