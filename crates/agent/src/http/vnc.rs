//! VNC: bytes between a WebSocket and QEMU's unix socket. What they mean is between the viewer and QEMU.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use axum::extract::{Path, State};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmkeep_types::error::Error;

use super::NodeHttp;
use super::answer::Answer;
use super::console::Upgrade;

/// Bytes read from QEMU at once; a full screen update is many of them.
const PIECE_BYTES: usize = 64 << 10;
/// One message of a viewer: keys, mouse moves, a pasted text.
const INPUT_BYTES_MAX: usize = 4 << 20;
/// A viewer that takes nothing for so long is gone.
const SEND_PATIENCE: Duration = Duration::from_secs(30);

pub async fn vnc(State(node): State<Arc<NodeHttp>>, Path(uid): Path<String>, upgrade: Upgrade) -> Answer<Response> {
    let domain = node.our_domain(&uid).await?;
    if !domain.state.is_live() {
        return Err(Error::conflict(format!("the VM '{}' is off", domain.name)).hint(format!("`vmkeep vm start {}`", domain.name)).into());
    }
    let path = node.hv().vnc_socket(domain.uuid).await?;
    let cannot = |e: std::io::Error| Error::refused(format!("QEMU's display at {} takes no connection: {e}", path.display()));
    let qemu = UnixStream::connect(&path).await.map_err(cannot)?;
    // noVNC asks for `binary`; others for nothing.
    let upgrade = upgrade.0.protocols(["binary"]).max_message_size(INPUT_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| carry(socket, qemu)))
}

async fn carry(socket: WebSocket, qemu: UnixStream) {
    let (mut to_viewer, mut from_viewer) = socket.split();
    let (mut from_qemu, mut to_qemu) = qemu.into_split();
    let down = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from_qemu.read(&mut buffer).await {
            let piece = Message::Binary(buffer[..n].to_vec().into());
            if !matches!(tokio::time::timeout(SEND_PATIENCE, to_viewer.send(piece)).await, Ok(Ok(()))) {
                return;
            }
        }
        let _ = tokio::time::timeout(SEND_PATIENCE, to_viewer.close()).await;
    };
    let up = async {
        while let Some(Ok(message)) = from_viewer.next().await {
            match message {
                Message::Binary(bytes) if to_qemu.write_all(&bytes).await.is_ok() => {}
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Text(_) | Message::Close(_) => return,
            }
        }
    };
    tokio::select! { () = down => {}, () = up => {} }
}
