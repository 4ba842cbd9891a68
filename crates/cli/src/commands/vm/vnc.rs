//! `vm vnc`: a door for one VNC viewer, which leads through a WebSocket to the host.
//!
//! A display has no password of its own, so whoever comes through the door controls the VM. The door is therefore a unix socket
//! that nobody else can open; a TCP port is there for viewers that know no other way, and says who may come in. It is closed
//! as soon as one viewer is in, and the command ends with that viewer.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use vmkeep_api::client::websocket::{Message, Socket};
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::{Failure, INTERRUPTED};

/// Bytes read from a viewer at once; viewers send keys and mouse moves.
const PIECE_BYTES: usize = 16 << 10;

#[derive(Debug, Args)]
pub struct VncArgs {
    /// VM
    name: Name,
    /// Listen on TCP, for viewers without unix sockets; port 0 = a free one. Every user of that computer can connect
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where to make the unix socket; default: in a new private directory
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    unix: Option<PathBuf>,
}

pub async fn run(ctx: &Ctx, args: VncArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("open the display of vm '{}'", args.name)) {
        return Ok(());
    }
    // Before anything is printed: the VM may be off or have no display.
    let socket = ctx.call("vm.vnc")?.field("name", &args.name).websocket().await?;
    let served = async {
        match args.listen {
            Some(listen) => serve_tcp(ctx, listen, socket).await,
            None => serve_unix(ctx, &args, socket).await,
        }
    };
    tokio::select! {
        served = served => served,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn serve_tcp(ctx: &Ctx, listen: SocketAddr, socket: Socket) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| Failure::io(format!("cannot listen on {listen}"), &e);
    let listener = TcpListener::bind(listen).await.map_err(cannot)?;
    let at = listener.local_addr().map_err(cannot)?;
    let who = if listen.ip().is_loopback() { "every user of this computer" } else { "everybody who reaches this address" };
    ctx.printer.warn(&format!("until your viewer is connected, {who} can see and control the VM"));
    ctx.printer.out(&format!("vnc://{at}"));
    ctx.printer.hint(&format!("open it with 'vncviewer {}::{}' or 'remote-viewer vnc://{at}'; Ctrl-C ends", at.ip(), at.port()));
    let (stream, peer) = listener.accept().await.map_err(cannot)?;
    drop(listener);
    let _ = stream.set_nodelay(true);
    ctx.printer.say(&format!("a viewer has come from {peer}; nobody else gets in"));
    pump(socket, stream).await;
    Ok(())
}

async fn serve_unix(ctx: &Ctx, args: &VncArgs, socket: Socket) -> Result<(), Failure> {
    let private = tempfile::Builder::new().prefix("vmkeep-vnc-").permissions(Permissions::from_mode(0o700)).tempdir();
    let private = private.map_err(|e| Failure::io("cannot make a private directory", &e))?;
    let path = args.unix.clone().unwrap_or_else(|| private.path().join(args.name.as_str()));
    let cannot = |e: std::io::Error| Failure::io(format!("cannot listen on {}", path.display()), &e);
    let door = Door::open(&path).map_err(cannot)?;
    ctx.printer.out(&path.display().to_string());
    let path = path.display();
    ctx.printer.hint(&format!("open it with 'vncviewer {path}' (TigerVNC); other viewers need '--listen 127.0.0.1:0'; Ctrl-C ends"));
    let serve = async {
        let (stream, _) = door.listener.accept().await.map_err(cannot)?;
        drop(door);
        pump(socket, stream).await;
        Ok(())
    };
    tokio::select! { served = serve => served, ended = told_to_end() => ended }
}

/// Ctrl-C, or a SIGTERM: nothing of ours may stay behind.
async fn told_to_end() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| Failure::io("cannot wait for signals", &e))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Err(Failure::Code(INTERRUPTED))
}

/// A socket that only its owner can open; gone with this value.
struct Door<'a> {
    listener: UnixListener,
    path: &'a Path,
}

impl<'a> Door<'a> {
    fn open(path: &'a Path) -> std::io::Result<Self> {
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        Ok(Self { listener: listener?, path })
    }
}

impl Drop for Door<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path);
    }
}

async fn pump<S: AsyncRead + AsyncWrite + Unpin>(socket: Socket, stream: S) {
    let (mut to_host, mut from_host) = socket.split();
    let (mut from_viewer, mut to_viewer) = tokio::io::split(stream);
    let up = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from_viewer.read(&mut buffer).await {
            if to_host.send(Message::binary(buffer[..n].to_vec())).await.is_err() {
                break;
            }
        }
        let _ = to_host.close().await;
    };
    let down = async {
        while let Some(Ok(message)) = from_host.next().await {
            if let Message::Binary(bytes) = message
                && to_viewer.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
    };
    tokio::select! { () = up => {}, () = down => {} }
}
