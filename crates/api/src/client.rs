//! The typed client of `/v1`, over a unix socket or HTTPS.
//!
//! ```text
//! Client::call("vm.get").field("name", n).answer::<VmView>()     one JSON answer
//!               │        .accepted()                             202 and its operation
//!               │        .watch() -> sse::Events                 Server-Sent Events
//!               │        .download() / upload()                  bytes ([`transfer`])
//!               └──────  .websocket()                            console, VNC ([`websocket`])
//! ```
//!
//! Routes come from [`crate::routes::ROUTES`], so that the client cannot ask for what the contract does not have. One idle
//! connection is kept and used again. TLS is built only for HTTPS: the unix socket is the way of every local command, and
//! its start must cost nothing.
//!
//! Failure: every error is a [`vmkeep_types::error::Error`]. Where the server spoke, it is the server's problem+json, word
//! for word; where it could not be reached, the code is `unavailable` and the message names the socket or URL. A request is
//! sent again only when hyper says that nothing of it was sent (an idle connection that had died).

mod connect;
pub mod sse;
mod transfer;
pub mod websocket;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::name::Name;

use crate::body::{Accepted, ProblemBody};
use crate::routes::{ROUTES, Route, Scope};
pub use connect::Identity;
use connect::Target;

/// The largest JSON answer that is read: a page of 1000 VMs with all their choices stays well below.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long the server may think before it answers with headers. Long work answers 202 at once; only guest commands take longer.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A client for one server and one project.
pub struct Client {
    target: Target,
    token: Option<String>,
    project: Option<Name>,
    idle: Mutex<Option<SendRequest<Body>>>,
}

impl Client {
    /// The local daemon's socket, `/run/vmkeep/vmkeepd.sock`.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::new(Target::Unix(path.as_ref().to_owned()), None)
    }

    /// `https://host:port`; certificates are checked against `ca_file`, or against the host's own roots.
    pub fn https(url: &str, token: Option<String>, ca_file: Option<&Path>) -> Result<Self, Error> {
        Ok(Self::new(Target::https(url, ca_file, None)?, token))
    }

    /// As [`Client::https`], for a user with a certificate; a token, if there is one, says who asks.
    ///
    /// # Errors
    /// `Invalid` for what is no URL, or files that cannot be used.
    pub fn https_as(url: &str, identity: Identity<'_>, token: Option<String>, ca_file: Option<&Path>) -> Result<Self, Error> {
        Ok(Self::new(Target::https(url, ca_file, Some(identity))?, token))
    }

    fn new(target: Target, token: Option<String>) -> Self {
        Self { target, token, project: None, idle: Mutex::new(None) }
    }

    /// Project-scoped routes go to this project instead of `default`.
    #[must_use]
    pub fn project(mut self, project: Name) -> Self {
        self.project = (project != Name::known("default")).then_some(project);
        self
    }

    /// The socket or URL, for people.
    pub fn target(&self) -> String {
        self.target.to_string()
    }

    pub fn is_local(&self) -> bool {
        matches!(self.target, Target::Unix(_))
    }

    /// Begins a request to the route with this id; panics on an id that the table does not have.
    pub fn call(&self, route_id: &str) -> Call<'_> {
        let route = ROUTES.iter().find(|r| r.id == route_id).unwrap_or_else(|| panic!("no route '{route_id}' in the table"));
        Call {
            client: self,
            route,
            fields: Vec::new(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Ok(Bytes::new()),
            patience: ANSWER_PATIENCE,
        }
    }

    /// Sends over the idle connection, or a new one.
    async fn send(&self, mut request: http::Request<Body>) -> Result<(http::Response<Incoming>, SendRequest<Body>), Error> {
        let idle = self.idle.lock().expect("nothing panics while it holds the idle connection").take();
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(self.broken(&failed.into_error())),
                },
            }
        }
        let mut sender = self.open().await?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(&e))?;
        Ok((response, sender))
    }

    async fn open(&self) -> Result<SendRequest<Body>, Error> {
        let stream = self.target.open().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(&e))?;
        tokio::spawn(async move {
            // Its error reaches the request that was on it.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    fn keep(&self, sender: SendRequest<Body>) {
        if !sender.is_closed() {
            *self.idle.lock().expect("nothing panics while it holds the idle connection") = Some(sender);
        }
    }

    pub(crate) fn broken(&self, error: &dyn std::error::Error) -> Error {
        let mut why = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let text = inner.to_string();
            if !why.contains(&text) {
                why = format!("{why}: {text}");
            }
            source = inner.source();
        }
        Error::new(Code::Unavailable, format!("the connection to {} broke: {why}", self.target))
            .hint("the daemon may be restarting; the work goes on without this client: see 'vmkeep op list'")
    }
}

/// One request that is being put together.
pub struct Call<'a> {
    client: &'a Client,
    route: &'static Route,
    fields: Vec<(&'a str, String)>,
    query: Vec<(&'a str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Result<Bytes, Error>,
    patience: Duration,
}

impl<'a> Call<'a> {
    /// Fills `{field}` of the path.
    #[must_use]
    pub fn field(mut self, field: &'a str, value: impl ToString) -> Self {
        self.fields.push((field, value.to_string()));
        self
    }

    #[must_use]
    pub fn query(mut self, name: &'a str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    #[must_use]
    pub fn query_opt(self, name: &'a str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// The change is refused as stale when the object is no longer at this revision.
    #[must_use]
    pub fn if_match(self, revision: vmkeep_types::ids::Revision) -> Self {
        self.header("if-match", format!("\"{revision}\""))
    }

    #[must_use]
    pub fn json(mut self, body: &impl Serialize) -> Self {
        self.body =
            serde_json::to_vec(body).map(Bytes::from).map_err(|e| Error::internal(format!("a request body cannot be written: {e}")));
        self
    }

    /// Waits longer for the answer's first byte than [`ANSWER_PATIENCE`].
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Path and query as they are sent.
    fn target(&self) -> String {
        let long = match (&self.client.project, self.route.scope) {
            (Some(project), Scope::Project) => self.route.project_path().map(|p| p.replacen("{project}", project.as_str(), 1)),
            _ => None,
        };
        let mut path = long.unwrap_or_else(|| self.route.path.to_owned());
        for (field, value) in &self.fields {
            path = path.replacen(&format!("{{{field}}}"), &encode(value), 1);
        }
        debug_assert!(!path.contains('{'), "{path} has an open field");
        if !self.query.is_empty() {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(self.query.iter().map(|(k, v)| (k, v.as_str())));
            path = format!("{path}?{}", query.finish());
        }
        path
    }

    fn request(&self, body: Body, length: Option<u64>) -> Result<http::Request<Body>, Error> {
        let mut request = http::Request::builder()
            .method(self.route.method.as_str())
            .uri(self.target())
            .header("host", self.client.target.host())
            .header("user-agent", concat!("vmkeep/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.client.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(body).map_err(|e| Error::invalid(format!("the request for {} cannot be sent: {e}", self.target())))
    }

    /// Sends; anything but 1xx, 2xx is an error.
    async fn respond(mut self) -> Result<(http::Response<Incoming>, SendRequest<Body>), Error> {
        let bytes = std::mem::replace(&mut self.body, Ok(Bytes::new()))?;
        if !bytes.is_empty() {
            self.headers.push(("content-type", "application/json".into()));
        }
        let request = self.request(Full::new(bytes).map_err(|never| match never {}).boxed_unsync(), None)?;
        self.respond_to(request).await
    }

    async fn respond_to(self, request: http::Request<Body>) -> Result<(http::Response<Incoming>, SendRequest<Body>), Error> {
        let sent = tokio::time::timeout(self.patience, self.client.send(request)).await;
        let (response, sender) = sent.map_err(|_| {
            let waited = self.patience.as_secs();
            Error::new(Code::Unavailable, format!("{} did not answer within {waited} s ({})", self.client.target, self.route.summary))
                .hint("see 'journalctl -u vmkeepd' on the host")
        })??;
        if response.status().is_success() || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            return Ok((response, sender));
        }
        let status = response.status();
        let bytes = self.client.collect(response).await?;
        self.client.keep(sender);
        Err(error_of(status, &bytes))
    }

    /// A JSON answer.
    pub async fn answer<Ans: DeserializeOwned>(self) -> Result<Ans, Error> {
        let bytes = self.bytes().await?;
        parse(&bytes)
    }

    /// 202 and its operation.
    pub async fn accepted(self) -> Result<Accepted, Error> {
        self.answer().await
    }

    /// No more than that it was done.
    pub async fn done(self) -> Result<(), Error> {
        self.bytes().await.map(drop)
    }

    pub async fn text(self) -> Result<String, Error> {
        let bytes = self.bytes().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A small answer, at most [`ANSWER_BYTES_MAX`].
    pub async fn bytes(self) -> Result<Bytes, Error> {
        let client = self.client;
        let (response, sender) = self.respond().await?;
        let bytes = client.collect(response).await?;
        client.keep(sender);
        Ok(bytes)
    }

    /// The answer's bytes with its content type, for pictures.
    pub async fn typed_bytes(self) -> Result<(String, Bytes), Error> {
        let client = self.client;
        let (response, sender) = self.respond().await?;
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let bytes = client.collect(response).await?;
        client.keep(sender);
        Ok((kind, bytes))
    }
}

impl Client {
    async fn collect(&self, response: http::Response<Incoming>) -> Result<Bytes, Error> {
        match Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await {
            Ok(all) => Ok(all.to_bytes()),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => {
                Err(Error::new(Code::TooLarge, format!("{} answered more than {ANSWER_BYTES_MAX} bytes", self.target)))
            }
            Err(e) => Err(self.broken(e.as_ref())),
        }
    }
}

fn parse<Ans: DeserializeOwned>(bytes: &[u8]) -> Result<Ans, Error> {
    serde_json::from_slice(bytes).map_err(|e| {
        Error::new(Code::Internal, format!("the server's answer is not what this client knows: {e}"))
            .hint("client and daemon may be of different versions: see 'vmkeep version'")
    })
}

/// The server's own words, or as much as the status says.
fn error_of(status: http::StatusCode, bytes: &[u8]) -> Error {
    if let Ok(body) = serde_json::from_slice::<ProblemBody>(bytes) {
        return Error { code: body.code, message: body.detail, hint: body.hint, problems: body.problems };
    }
    let code = match status.as_u16() {
        401 => Code::Unauthenticated,
        403 => Code::Forbidden,
        404 | 410 => Code::NotFound,
        409 => Code::Conflict,
        412 => Code::Stale,
        413 => Code::TooLarge,
        502..=504 => Code::Unavailable,
        400..=499 => Code::Invalid,
        _ => Code::Internal,
    };
    let text: String = String::from_utf8_lossy(bytes).chars().take(300).collect();
    let text = text.trim();
    Error::new(
        code,
        if text.is_empty() { format!("the server answered {status}") } else { format!("the server answered {status}: {text}") },
    )
}

/// Percent-encodes all but unreserved characters: a path field is one segment, whatever it holds.
fn encode(value: &str) -> String {
    use std::fmt::Write;
    value.bytes().fold(String::with_capacity(value.len()), |mut out, b| {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b as char),
            _ => write!(out, "%{b:02X}").expect("a String takes everything"),
        }
        out
    })
}

#[cfg(test)]
mod tests;
