//! The client: one HTTP/1.1 connection over a unix socket, one request at a time, as little as there can be between the
//! server and the clock. The same for vmkeep and for its peers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::report::Samples;

/// A server that says nothing for so long is broken, not slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Read at once: a large list should cost the server, not the client that measures it.
const READ_BYTES: usize = 1 << 20;

pub struct Connection {
    requests: SendRequest<Full<Bytes>>,
    socket: PathBuf,
}

impl Connection {
    pub async fn open(socket: &Path) -> anyhow::Result<Self> {
        Ok(Self { requests: handshake(socket).await?, socket: socket.to_owned() })
    }

    /// The answer's body as it comes; anything but 2xx is an error with the server's words.
    pub async fn stream(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder().method(method.clone()).uri(path).header("host", "localhost");
        let request = if body.is_some() { request.header("content-type", "application/json") } else { request };
        let request = request.body(Full::new(body.map_or_else(Bytes::new, |body| body.to_string().into())))?;
        let sent = async {
            let request = match self.requests.try_send_request(request).await {
                Ok(answer) => return anyhow::Ok(answer),
                // The server hangs up on whoever has asked nothing for a while.
                Err(mut failed) => failed.take_message().ok_or_else(|| failed.into_error())?,
            };
            self.requests = handshake(&self.socket).await?;
            Ok(self.requests.send_request(request).await?)
        };
        let answer = tokio::time::timeout(PATIENCE, sent).await.context("no answer")?;
        let answer = answer.with_context(|| format!("{method} {path} on {}", self.socket.display()))?;
        if !answer.status().is_success() {
            let status = answer.status();
            let told = answer.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            bail!("{method} {path} on {}: {status}: {}", self.socket.display(), String::from_utf8_lossy(&told));
        }
        Ok(answer)
    }

    pub async fn bytes(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Bytes> {
        let answer = self.stream(method, path, body).await?;
        let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await.context("the answer does not end")?;
        Ok(body?.to_bytes())
    }

    pub async fn json(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let bytes = self.bytes(method, path, body).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).with_context(|| format!("{path} answered no JSON"))
    }
}

async fn handshake(socket: &Path) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = UnixStream::connect(socket).await.with_context(|| format!("cannot connect to {}", socket.display()))?;
    let (requests, connection) = http1::Builder::new().read_buf_exact_size(Some(READ_BYTES)).handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(requests)
}

/// GETs `path` until `requests` answers are there, over `connections` connections at once.
pub async fn measure(socket: &Path, path: &str, requests: usize, connections: usize) -> anyhow::Result<Samples> {
    let mut open = Vec::new();
    for _ in 0..connections.max(1) {
        let mut connection = Connection::open(socket).await?;
        // The first request pays for the connection and for cold caches; it is not what is asked.
        connection.bytes(Method::GET, path, None).await?;
        open.push(connection);
    }
    let each = requests.div_ceil(open.len()).max(1);
    let begin = Instant::now();
    let tasks: Vec<_> = open.into_iter().map(|connection| tokio::spawn(many(connection, path.to_owned(), each))).collect();
    let mut latencies = Vec::with_capacity(each * tasks.len());
    for task in tasks {
        latencies.extend(task.await.context("the client failed")??);
    }
    Ok(Samples::new(latencies, begin.elapsed()))
}

async fn many(mut connection: Connection, path: String, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        connection.bytes(Method::GET, &path, None).await?;
        latencies.push(begin.elapsed());
    }
    Ok(latencies)
}
