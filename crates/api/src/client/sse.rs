//! Server-Sent Events: the parser, and the stream of a `?watch`.
//!
//! The parser takes bytes as they come and gives whole events; it keeps at most [`EVENT_BYTES_MAX`] of an event that has not
//! ended. Comments (the server's keep-alive) are dropped. Failure: a stream that ends is `Ok(None)`; the caller connects again
//! with [`Events::last_id`].

use std::collections::VecDeque;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use vmkeep_types::error::{Code, Error};

use super::{Call, Client};

/// One event: the JSON of one object. A VM's view is some 10 KiB.
pub const EVENT_BYTES_MAX: usize = 8 << 20;

/// The server sends a comment more often than this; silence means that the connection is dead.
pub const SILENCE_MAX: Duration = Duration::from_secs(90);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// Empty means `message`.
    pub event: String,
    pub data: String,
}

#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    current: SseEvent,
    /// `data:` was seen: an event without it is not given out.
    has_data: bool,
    after_cr: bool,
    /// Counts when its event has ended: half an event must come again.
    next_id: Option<String>,
    last_id: Option<String>,
    ready: VecDeque<SseEvent>,
}

impl Parser {
    /// Takes the next bytes; events come out of [`Parser::pop`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for &b in bytes {
            if b == b'\n' && std::mem::take(&mut self.after_cr) {
                continue;
            }
            self.after_cr = b == b'\r';
            if b != b'\n' && b != b'\r' {
                self.line.push(b);
                if self.line.len() + self.current.data.len() > EVENT_BYTES_MAX {
                    return Err(Error::new(Code::TooLarge, format!("the server sent an event of over {EVENT_BYTES_MAX} bytes")));
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            self.take_line(&String::from_utf8_lossy(&line));
        }
        Ok(())
    }

    /// Of the newest event that has come whole.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    pub fn pop(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.current);
            self.last_id = self.next_id.take().or_else(|| self.last_id.take());
            if std::mem::take(&mut self.has_data) {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.current.event = value.to_owned(),
            "id" => self.next_id = Some(value.to_owned()),
            "data" => {
                if self.has_data {
                    self.current.data.push('\n');
                }
                self.current.data.push_str(value);
                self.has_data = true;
            }
            // "retry", and comments (an empty field name): nothing for us.
            _ => {}
        }
    }
}

/// An open event stream.
pub struct Events<'a> {
    client: &'a Client,
    body: Incoming,
    parser: Parser,
}

impl Events<'_> {
    /// The next event; None when the server ended the stream.
    pub async fn next(&mut self) -> Result<Option<SseEvent>, Error> {
        loop {
            if let Some(event) = self.parser.pop() {
                return Ok(Some(event));
            }
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await.map_err(|_| {
                Error::new(Code::Unavailable, format!("{} has been silent for {} s", self.client.target(), SILENCE_MAX.as_secs()))
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(self.client.broken(&e)),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.parser.push(bytes)?;
                    }
                }
            }
        }
    }

    /// The watch token of the newest event: goes into `Last-Event-ID`.
    pub fn last_id(&self) -> Option<&str> {
        self.parser.last_id()
    }
}

impl<'a> Call<'a> {
    /// Opens a `?watch`, after the event with this id when one is given.
    pub async fn watch(self, last_id: Option<&str>) -> Result<Events<'a>, Error> {
        let client = self.client;
        let mut call = self.query("watch", true).header("accept", "text/event-stream");
        if let Some(id) = last_id {
            call = call.header("last-event-id", id);
        }
        let (response, _sender) = call.respond().await?;
        Ok(Events { client, body: response.into_body(), parser: Parser::default() })
    }
}
