//! One request, read as its route says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::RequestPartsExt;
use axum::body::{Body, Bytes};
use axum::extract::{RawPathParams, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use vmkeep_api::body::BODY_BYTES_MAX;
use vmkeep_api::routes::{Route, Scope};
use vmkeep_store::Store;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::ids::Revision;
use vmkeep_types::manifest;
use vmkeep_types::name::Name;
use vmkeep_types::record::Caller;

use crate::app::Ask;
use crate::app::ask::{IfMatch, Repeat};
use crate::context::Server;

/// A client that sends its body so slowly is gone, or means harm.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

pub struct Call {
    pub server: Arc<Server>,
    pub route: &'static Route,
    pub ask: Ask,
    fields: BTreeMap<String, String>,
    query: BTreeMap<String, String>,
    parts: Parts,
    /// The body's share of the room for all bodies, as long as the request is worked on.
    room: Option<OwnedSemaphorePermit>,
    /// Behind a lock only because a body alone may not be shared between threads.
    body: Mutex<Body>,
    /// The body, once it was read.
    read: Option<Bytes>,
}

impl Call {
    pub async fn new(server: Arc<Server>, route: &'static Route, caller: Caller, request: Request) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        let params = parts.extract::<RawPathParams>().await.map_err(|e| Error::invalid(format!("the path does not read: {e}")))?;
        let fields: BTreeMap<String, String> = params.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let query = parse_query(parts.uri.query().unwrap_or_default());
        let project = fields.get("project").map_or("default", String::as_str);
        let project: Name = project.parse().map_err(|e| Error::invalid(format!("project: {e}")))?;
        if route.scope == Scope::Project && !caller.may_enter(&project) {
            return Err(Error::new(Code::Forbidden, format!("'{}' may not work in project {project}", caller.name)));
        }
        let if_match = if route.takes_if_match() { if_match(&parts.headers)? } else { None };
        let ask = Ask { project, caller, if_match, repeat: None, admission: server.admission.clone(), foreign: BTreeSet::new() };
        Ok(Self { server, route, ask, fields, query, parts, room: None, body: Mutex::new(body), read: None })
    }

    pub fn store(&self) -> &dyn Store {
        self.server.store.as_ref()
    }

    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// The `{name}` of the path.
    pub fn name(&self) -> Result<Name, Error> {
        self.field("name").parse().map_err(|e| Error::invalid(format!("{e}")))
    }

    pub fn query(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.query(key).is_some_and(|v| matches!(v, "" | "true" | "1"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// Reads the body and, under an `Idempotency-Key`, what makes this request the same as another.
    ///
    /// # Errors
    /// `Invalid` for a key that is none; the body's.
    pub async fn read_repeat(&mut self) -> Result<(), Error> {
        let Some(key) = self.parts.headers.get("idempotency-key") else { return Ok(()) };
        let key = key.to_str().unwrap_or_default().to_owned();
        let fine = (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !fine {
            return Err(Error::invalid("Idempotency-Key is at most 64 characters of A-Z, a-z, 0-9 and '-'"));
        }
        let body = self.body().await?;
        let mut hash = Sha256::new();
        // The project is in the key's place, and two forms of a path may name it.
        for (field, value) in self.fields.iter().filter(|(field, _)| *field != "project") {
            hash.update(format!("{field}={value}\n"));
        }
        hash.update(format!("{}\n", self.route.id));
        hash.update(&body);
        self.ask.repeat = Some(Repeat { key, request: URL_SAFE_NO_PAD.encode(hash.finalize()) });
        Ok(())
    }

    /// The labels of `?label=a=b,c=d`.
    ///
    /// # Errors
    /// One that is no pair.
    pub fn labels(&self) -> Result<Vec<(&str, &str)>, Error> {
        let pairs = self.query("label").unwrap_or_default().split(',').filter(|pair| !pair.is_empty());
        let pair = |pair: &'_ str| Error::invalid(format!("label '{}' is no KEY=VALUE", pair.escape_debug()));
        pairs.map(|text| text.split_once('=').ok_or_else(|| pair(text))).collect()
    }

    /// The query as it came, with its `?`.
    pub fn raw_query(&self) -> String {
        self.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default()
    }

    /// The request as it came, for a node: body, upgrade and all.
    pub fn into_request(mut self) -> Request {
        // Who asks was settled here; the secret is not the node's business.
        self.parts.headers.remove(axum::http::header::AUTHORIZATION);
        Request::from_parts(self.parts, self.body.into_inner().expect("no panic holds this lock"))
    }

    /// The body, at most [`BODY_BYTES_MAX`], within [`BODY_PATIENCE`], when there is room for it.
    pub async fn body(&mut self) -> Result<Bytes, Error> {
        if let Some(read) = &self.read {
            return Ok(read.clone());
        }
        let late = |_| Error::new(Code::Unavailable, format!("the body did not arrive within {} s", BODY_PATIENCE.as_secs()));
        let read = tokio::time::timeout(BODY_PATIENCE, self.read_body()).await.map_err(late)??;
        self.read = Some(read.clone());
        Ok(read)
    }

    async fn read_body(&mut self) -> Result<Bytes, Error> {
        let body = std::mem::take(self.body.get_mut().expect("no panic holds this lock"));
        let too_large = || Error::new(Code::TooLarge, format!("the body is larger than {BODY_BYTES_MAX} bytes"));
        let claimed = self.header("content-length").and_then(|v| v.parse::<usize>().ok());
        if claimed.is_some_and(|n| n > BODY_BYTES_MAX) {
            return Err(too_large());
        }
        let kib = claimed.unwrap_or(BODY_BYTES_MAX).div_ceil(1024);
        let room = self.server.bodies.clone().acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)).await;
        self.room = Some(room.expect("the room is never closed"));
        let collected = Limited::new(body, BODY_BYTES_MAX).collect().await;
        collected.map(|c| c.to_bytes()).map_err(|e| {
            if e.is::<http_body_util::LengthLimitError>() { too_large() } else { Error::invalid(format!("the body broke off: {e}")) }
        })
    }

    pub async fn value(&mut self) -> Result<Value, Error> {
        let bytes = self.body().await?;
        if bytes.is_empty() {
            return Ok(Value::Object(serde_json::Map::new()));
        }
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("the body is no JSON: {e}")))
    }

    /// A JSON body; unknown fields are told with the nearest name.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        manifest::body_from_json(self.value().await?)
    }
}

/// A condition that cannot be read is never taken for none: the change would be made without it.
fn if_match(headers: &HeaderMap) -> Result<Option<IfMatch>, Error> {
    let mut tags = headers.get_all("if-match").iter();
    let Some(tag) = tags.next() else { return Ok(None) };
    let unreadable = || {
        Error::invalid(format!("If-Match {} is no ETag of ours", String::from_utf8_lossy(tag.as_bytes()).escape_debug()))
            .hint("send one ETag as it came, or *")
    };
    let text = tag.to_str().map_err(|_| unreadable())?.trim();
    if tags.next().is_some() {
        return Err(unreadable());
    }
    match text.trim_matches('"').parse() {
        _ if text == "*" => Ok(Some(IfMatch::Exists)),
        Ok(number) => Ok(Some(IfMatch::At(Revision(number)))),
        Err(_) => Err(unreadable()),
    }
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|p| !p.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (unescape(k), unescape(v))).collect()
}

/// Percent-decoding (RFC 3986); what does not decode stays as it is.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten().and_then(|h| u8::from_str_radix(h, 16).ok());
        match (hex, bytes[at]) {
            (Some(byte), _) => {
                out.push(byte);
                at += 2;
            }
            (None, b'+') => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_decode() {
        let read = parse_query("a=1&b=x%2Fy+z&watch&c=%zz");
        let of = |k: &str| read.get(k).map(String::as_str);
        assert_eq!((of("a"), of("b"), of("watch"), of("c")), (Some("1"), Some("x/y z"), Some(""), Some("%zz")));
    }
}
