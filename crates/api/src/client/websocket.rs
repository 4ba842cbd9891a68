//! WebSockets over the same connections: the serial console and VNC.
//!
//! The upgrade is done with hyper, not with tungstenite's own HTTP: a refusal is then read like every other answer, with the
//! server's whole problem+json.

use base64::Engine;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use vmkeep_types::error::{Code, Error};

use super::Call;

pub use tokio_tungstenite::tungstenite::Message;

/// One frame of console or VNC bytes; the server sends far smaller ones.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

impl Call<'_> {
    /// Opens a WebSocket; data goes in binary frames.
    pub async fn websocket(self) -> Result<Socket, Error> {
        let client = self.client;
        let key = base64::engine::general_purpose::STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
        let accept = derive_accept_key(key.as_bytes());
        let call = self
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", key);
        let (response, _sender) = call.respond().await?;
        let told = response.headers().get("sec-websocket-accept").and_then(|v| v.to_str().ok());
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS || told != Some(accept.as_str()) {
            let what = format!("{} answered {} instead of opening a WebSocket", client.target(), response.status());
            return Err(Error::new(Code::Internal, what));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| client.broken(&e))?;
        let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
    }
}
