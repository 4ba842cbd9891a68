//! `console`: the serial line of a VM, on this terminal.
//!
//! ```text
//! keys ─ thread ─► [Ctrl-] ends] ─► WebSocket ─► QEMU's pty
//! screen ◄──────────────────────── WebSocket ◄─ QEMU's pty   (several viewers see the same)
//! ```
//! A serial line knows no window size: the guest believes in 80x24 until it is told. `--resize` types `stty rows … cols …` into
//! the guest once, which works at a shell prompt only; that is why it is not the default.

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
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
    /// Type 'stty rows R cols C' into the guest first: only at a shell prompt
    #[arg(long)]
    resize: bool,
}

pub async fn run(ctx: &Ctx, args: ConsoleArgs) -> Result<(), Failure> {
    attach(ctx, &args.name, if args.resize { size() } else { None }).await
}

/// How a session ended.
enum End {
    Detached,
    Closed(Option<String>),
    Signal,
}

/// Connects this terminal to the VM's serial console until it is detached.
pub async fn attach(ctx: &Ctx, name: &Name, stty: Option<(u16, u16)>) -> Result<(), Failure> {
    let mut socket = ctx.call("vm.console")?.field("name", name).websocket().await?;
    let raw = RawMode::enter().map_err(|e| Failure::io("cannot switch the terminal to raw mode", &e))?;
    if raw.is_some() {
        // Raw mode: a new line needs its carriage return.
        eprint!("connected to {name}; detach with Ctrl-], Enter wakes the guest's prompt\r\n");
    }
    if let Some((columns, rows)) = stty {
        let line = format!("stty rows {rows} cols {columns}\r");
        socket.send(Message::binary(line.into_bytes())).await.map_err(|e| broken(ctx, &e))?;
    }
    let end = session(ctx, &mut socket, raw.is_some()).await;
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

async fn session(ctx: &Ctx, socket: &mut Socket, interactive: bool) -> Result<End, Failure> {
    let mut keys = read_stdin();
    let mut keys_open = true;
    let cannot_wait = |e: std::io::Error| Failure::io("cannot wait for signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_wait)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_wait)?;
    loop {
        tokio::select! {
            typed = keys.recv(), if keys_open => match typed {
                Some(bytes) => {
                    let detach = bytes.iter().position(|b| *b == DETACH).filter(|_| interactive);
                    let send = bytes[..detach.unwrap_or(bytes.len())].to_vec();
                    if !send.is_empty() {
                        socket.send(Message::binary(send)).await.map_err(|e| broken(ctx, &e))?;
                    }
                    if detach.is_some() {
                        return Ok(End::Detached);
                    }
                }
                // A script's input has ended: what the guest says to it is still of interest.
                None => keys_open = false,
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
