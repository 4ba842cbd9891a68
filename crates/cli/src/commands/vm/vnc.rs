//! `vm vnc`: a local port (or unix socket) for a VNC viewer; each connection to it becomes a WebSocket to the host.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use vmkeep_api::client::websocket::{Message, Socket};
use vmkeep_types::name::Name;

use crate::context::Ctx;
use crate::failure::Failure;

/// Bytes read from a viewer at once; viewers send keys and mouse moves.
const PIECE_BYTES: usize = 16 << 10;

#[derive(Debug, Args)]
pub struct VncArgs {
    /// VM
    name: Name,
    /// Address to listen on; port 0 = a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Listen on a unix socket instead
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    unix: Option<PathBuf>,
}

pub async fn run(ctx: &Ctx, args: VncArgs) -> Result<(), Failure> {
    // Before anything is printed: the VM may be off or have no display.
    let first = open(ctx, &args.name).await?;
    let done = async {
        match &args.unix {
            Some(path) => serve_unix(ctx, &args.name, path, first).await,
            None => serve_tcp(ctx, &args.name, args.listen, first).await,
        }
    };
    let ended = tokio::select! {
        ended = done => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    if let Some(path) = &args.unix {
        let _ = std::fs::remove_file(path);
    }
    ended
}

async fn open(ctx: &Ctx, name: &Name) -> Result<Socket, Failure> {
    Ok(ctx.call("vm.vnc")?.field("name", name).websocket().await?)
}

async fn serve_tcp(ctx: &Ctx, name: &Name, listen: SocketAddr, first: Socket) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| Failure::io(format!("cannot listen on {listen}"), &e);
    if !listen.ip().is_loopback() {
        ctx.printer.warn("everybody who reaches this address sees and controls the VM");
    }
    let listener = TcpListener::bind(listen).await.map_err(cannot)?;
    let at = listener.local_addr().map_err(cannot)?;
    ctx.printer.out(&format!("vnc://{at}"));
    ctx.printer.hint(&format!("open it with 'vncviewer {}::{}' or 'remote-viewer vnc://{at}'; Ctrl-C ends", at.ip(), at.port()));
    let mut first = Some(first);
    loop {
        let (stream, _) = listener.accept().await.map_err(cannot)?;
        let _ = stream.set_nodelay(true);
        one(ctx, name, &mut first, stream).await?;
    }
}

async fn serve_unix(ctx: &Ctx, name: &Name, path: &PathBuf, first: Socket) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| Failure::io(format!("cannot listen on {}", path.display()), &e);
    let listener = UnixListener::bind(path).map_err(cannot)?;
    ctx.printer.out(&path.display().to_string());
    let mut first = Some(first);
    loop {
        let (stream, _) = listener.accept().await.map_err(cannot)?;
        one(ctx, name, &mut first, stream).await?;
    }
}

/// Serves one viewer beside the others.
async fn one<S>(ctx: &Ctx, name: &Name, first: &mut Option<Socket>, stream: S) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let socket = match first.take() {
        Some(socket) => socket,
        None => match open(ctx, name).await {
            Ok(socket) => socket,
            Err(failure) => {
                // The next viewer may find the VM running again.
                failure.report(&ctx.printer);
                return Ok(());
            }
        },
    };
    tokio::spawn(pump(socket, stream));
    Ok(())
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
