//! `console`: the serial line of a VM, on this terminal.
//!
//! ```text
//! keys ─ thread ─► [Ctrl-] ends] ─► WebSocket ─► QEMU's pty
//! screen ◄──────────────────────── WebSocket ◄─ QEMU's pty   (several viewers see the same)
//! ```
//! A serial line knows no window size: the guest believes in 80x24 until it is told. `--resize` types `stty rows … cols …` into
//! the guest, which works at a shell prompt only; that is why it is not the default, and why a window that is changed later is
//! told only when the user says so, with Ctrl-] r.

use std::time::Duration;

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use vmkeep_api::client::websocket::{Message, Socket};
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::terminal::{RawMode, read_stdin, size};

/// Ctrl-]
const DETACH: u8 = 0x1d;

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// VM
    name: Name,
    /// Type 'stty rows R cols C' into the guest first, and again at Ctrl-] r: only at a shell prompt
    #[arg(long)]
    resize: bool,
}

pub async fn run(ctx: &Ctx, args: ConsoleArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("open the console of vm '{}'", args.name)) {
        return Ok(());
    }
    attach(ctx, &args.name, if args.resize { Window::Told } else { Window::Untold }).await
}

/// Whether the guest is told the size of the window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Window {
    Told,
    Untold,
}

/// How a session ended.
enum End {
    Detached,
    Closed(Option<String>),
    Signal,
}

/// Connects this terminal to the VM's serial console until it is detached.
pub async fn attach(ctx: &Ctx, name: &Name, window: Window) -> Result<(), Failure> {
    let mut socket = ctx.call("vm.console")?.field("name", name).websocket().await?;
    let raw = RawMode::enter().map_err(|e| Failure::io("cannot switch the terminal to raw mode", &e))?;
    if raw.is_some() {
        // Raw mode: a new line needs its carriage return.
        let resize = if window == Window::Told { ", Ctrl-] r tells the guest the window's size again" } else { "" };
        eprint!("connected to {name}; detach with Ctrl-]{resize}, Enter wakes the guest's prompt\r\n");
    }
    if window == Window::Told {
        tell_size(ctx, &mut socket).await?;
    }
    let keys = if raw.is_some() { Keys::OfTerminal { window, escaped: None } } else { Keys::OfScript };
    let end = session(ctx, &mut socket, keys).await;
    drop(raw);
    let _ = socket.close(None).await;
    match end? {
        End::Detached => ctx.printer.say(&format!("\ndetached from {name}; it runs on")),
        End::Closed(None) => ctx.printer.say("\nthe console was closed: the VM is off, or somebody else took it"),
        End::Closed(Some(why)) => ctx.printer.say(&format!("\nthe console was closed: {why}")),
        End::Signal => return Err(Failure::Code(crate::failure::INTERRUPTED)),
    }
    Ok(())
}

async fn tell_size(ctx: &Ctx, socket: &mut Socket) -> Result<(), Failure> {
    let Some((columns, rows)) = size() else { return Ok(()) };
    let line = format!("stty rows {rows} cols {columns}\r");
    socket.send(Message::binary(line.into_bytes())).await.map_err(|e| broken(ctx, &e))
}

/// After Ctrl-] with `--resize`: another key within this time may be `r`, else it was meant to detach.
const SECOND_KEY: Duration = Duration::from_secs(1);

/// Where the keys come from, and what Ctrl-] means there.
enum Keys {
    /// Bytes are bytes.
    OfScript,
    OfTerminal {
        window: Window,
        /// Ctrl-] was typed and may become Ctrl-] r until then.
        escaped: Option<Instant>,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Send(Vec<u8>),
    TellSize,
    Detach,
}

impl Keys {
    fn take(&mut self, bytes: &[u8], now: Instant) -> Vec<Typed> {
        let Self::OfTerminal { window, escaped } = self else { return vec![Typed::Send(bytes.to_vec())] };
        let (mut out, mut plain) = (Vec::new(), Vec::new());
        for &byte in bytes {
            match (escaped.take(), byte) {
                (Some(_), b'r') => {
                    out.extend((!plain.is_empty()).then(|| Typed::Send(std::mem::take(&mut plain))));
                    out.push(Typed::TellSize);
                }
                (None, DETACH) if *window == Window::Told => *escaped = Some(now + SECOND_KEY),
                (Some(_), _) | (None, DETACH) => {
                    out.extend((!plain.is_empty()).then_some(Typed::Send(plain)));
                    out.push(Typed::Detach);
                    return out;
                }
                (None, byte) => plain.push(byte),
            }
        }
        out.extend((!plain.is_empty()).then_some(Typed::Send(plain)));
        out
    }

    /// Comes to an end when a Ctrl-] has stood alone.
    async fn alone(&self) {
        match self {
            Self::OfTerminal { escaped: Some(until), .. } => tokio::time::sleep_until(*until).await,
            Self::OfTerminal { escaped: None, .. } | Self::OfScript => std::future::pending().await,
        }
    }
}

async fn session(ctx: &Ctx, socket: &mut Socket, mut keys: Keys) -> Result<End, Failure> {
    let interactive = matches!(keys, Keys::OfTerminal { .. });
    let mut stdin = read_stdin();
    let mut keys_open = true;
    let cannot_wait = |e: std::io::Error| Failure::io("cannot wait for signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_wait)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_wait)?;
    loop {
        tokio::select! {
            typed = stdin.recv(), if keys_open => match typed {
                Some(bytes) => for typed in keys.take(&bytes, Instant::now()) {
                    match typed {
                        Typed::Send(bytes) => socket.send(Message::binary(bytes)).await.map_err(|e| broken(ctx, &e))?,
                        Typed::TellSize => tell_size(ctx, socket).await?,
                        Typed::Detach => return Ok(End::Detached),
                    }
                },
                // A script's input has ended: what the guest says to it is still of interest.
                None => {
                    keys_open = false;
                    ctx.printer.hint("no more input; this goes on until the VM is off. What it has said so far: vmkeep vm logs NAME");
                }
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => ctx.printer.out_bytes(&bytes),
                Some(Ok(Message::Text(text))) => ctx.printer.out_bytes(text.as_bytes()),
                Some(Ok(Message::Close(frame))) => {
                    return Ok(End::Closed(frame.map(|f| f.reason.to_string()).filter(|r| !r.is_empty())));
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(broken(ctx, &e)),
                None => return Ok(End::Closed(None)),
            },
            () = keys.alone() => return Ok(End::Detached),
            _ = terminate.recv() => return Ok(End::Signal),
            _ = hangup.recv() => return Ok(End::Signal),
            _ = tokio::signal::ctrl_c(), if !interactive => return Ok(End::Signal),
        }
    }
}

pub fn broken(ctx: &Ctx, error: &dyn std::fmt::Display) -> Failure {
    let target = ctx.client().map(|c| c.target()).unwrap_or_default();
    let error =
        vmkeep_types::error::Error::new(vmkeep_types::error::Code::Unavailable, format!("the connection to {target} broke: {error}"));
    error.hint("the VM runs on; connect again").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_detaches_may_begin_another() {
        let now = Instant::now();
        let of = |window, pieces: &[&str]| {
            let mut keys = Keys::OfTerminal { window, escaped: None };
            pieces.iter().flat_map(|p| keys.take(p.as_bytes(), now)).collect::<Vec<_>>()
        };
        let send = |text: &str| Typed::Send(text.into());
        assert_eq!(of(Window::Untold, &["a\x1dr"]), [send("a"), Typed::Detach]);
        assert_eq!(of(Window::Told, &["a\x1drb"]), [send("a"), Typed::TellSize, send("b")]);
        assert_eq!(of(Window::Told, &["a\x1d", "r"]), [send("a"), Typed::TellSize]);
        assert_eq!(of(Window::Told, &["\x1d", "\x1d", "b"]), [Typed::Detach, send("b")]);
        assert_eq!(Keys::OfScript.take(b"\x1dr", now), [send("\x1dr")]);
    }
}
