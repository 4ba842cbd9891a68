//! A watch that outlives the member it began at.
//!
//! ```text
//!  open ─► is `from` compacted? ─ yes ─► Compacted
//!            │ no
//!          pump: stream ──► batches of one revision ──► queue ──► reader
//!            ▲      │ broke, hung, no leader
//!            └ rest ┘ from the last revision + 1
//! ```
//! The reader sees one watch. It ends with `Compacted` when the reader is too slow or what was missed is gone, and with another
//! error when etcd refuses it for good.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use vmkeep_types::ids::Revision;

use super::error::{Purpose, told};
use super::members::Members;
use super::{ANSWER_BYTES_MAX, CALL_DEADLINE, etcd_revision, get, key_value, range_end, range_start, revision};
use crate::{Change, StoreError, WATCH_QUEUE_MAX, Watch, WatchBatch};

/// Before a broken stream is opened again.
const REST: Duration = Duration::from_millis(200);

type Queue = mpsc::Sender<Result<WatchBatch, StoreError>>;

pub async fn open(members: &Arc<Members>, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
    let newest = refuse_compacted(members, from).await?;
    // One place more, for the reason why it ends.
    let (queue, watch) = mpsc::channel(WATCH_QUEUE_MAX + 1);
    // Revision 0 would mean "from now on" to etcd; nothing was ever written at it.
    let next = etcd_revision(from).max(1);
    let pump = Pump { members: members.clone(), prefix: prefix.to_owned(), next, past: newest, queue };
    tokio::spawn(pump.run());
    Ok(watch)
}

/// The newest revision, when history from `from` on is there. etcd tells of compaction only some time after a watch began.
async fn refuse_compacted(members: &Arc<Members>, from: Revision) -> Result<i64, StoreError> {
    let now = get(members, Purpose::Read, "\0", Some(GetOptions::new().with_count_only())).await?;
    let newest = now.header().map_or(0, etcd_client::ResponseHeader::revision);
    if etcd_revision(from) > newest {
        return Ok(newest);
    }
    let then = GetOptions::new().with_count_only().with_revision(etcd_revision(from).max(1));
    match get(members, Purpose::Read, "\0", Some(then)).await {
        Err(StoreError::Compacted { .. }) => Err(StoreError::Compacted { asked: from, oldest: oldest(members, from).await }),
        Err(error) => Err(error),
        Ok(_) => Ok(newest),
    }
}

/// The oldest revision that is kept: only a watch from before it is told.
async fn oldest(members: &Arc<Members>, from: Revision) -> Revision {
    let asked = WatchOptions::new().with_start_revision(etcd_revision(from).max(1));
    let open = |client: Client| {
        let (mut watches, asked) = (client.watch_client(), asked.clone());
        async move { watches.watch("\0", Some(asked)).await }
    };
    let look = async {
        let mut stream = members.pick().ask(Purpose::Read, open).await.ok()?;
        while let Ok(Some(message)) = stream.message().await {
            if message.canceled() {
                return Some(revision(message.compact_revision()));
            }
        }
        None
    };
    timeout(CALL_DEADLINE, look).await.ok().flatten().unwrap_or(from.next())
}

struct Pump {
    members: Arc<Members>,
    prefix: String,
    /// The first revision that was not delivered yet.
    next: i64,
    /// Up to here it is replay, for which the reader may take its time.
    past: i64,
    queue: Queue,
}

/// Why a stream ended.
enum End {
    /// Nobody reads any more, or the reader was told the last word.
    Over,
    Broken,
}

impl Pump {
    async fn run(mut self) {
        loop {
            if matches!(self.stream().await, End::Over) || self.queue.is_closed() {
                return;
            }
            sleep(REST).await;
        }
    }

    async fn stream(&mut self) -> End {
        let options = WatchOptions::new().with_range(range_end(&self.prefix)).with_start_revision(self.next);
        let open = |client: Client| {
            let (mut watches, options) = (client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX), options.clone());
            let from = range_start(&self.prefix);
            async move { watches.watch(from, Some(options)).await }
        };
        let member = self.members.pick();
        let mut stream = match timeout(CALL_DEADLINE, member.ask(Purpose::Read, open)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.refused(&error).await,
            Err(_) => return End::Broken,
        };
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = self.queue.closed() => return End::Over,
            };
            match message {
                Ok(Some(message)) => {
                    if let Some(end) = self.take(&message).await {
                        leave(stream).await;
                        return end;
                    }
                }
                Ok(None) => return End::Broken,
                Err(error) => {
                    member.broke_off(&error);
                    return self.refused(&error).await;
                }
            }
        }
    }

    /// A refusal is the last word; silence and breaks are not.
    async fn refused(&self, error: &etcd_client::Error) -> End {
        match told(Purpose::Read, error) {
            StoreError::Unavailable(why) | StoreError::Denied(why) => {
                tracing::debug!(%why, prefix = self.prefix, "a watch of etcd broke; it goes on");
                End::Broken
            }
            error => self.last_word(error).await,
        }
    }

    async fn last_word(&self, error: StoreError) -> End {
        let _ = self.queue.send(Err(error)).await;
        End::Over
    }

    async fn take(&mut self, message: &WatchResponse) -> Option<End> {
        if message.compact_revision() > 0 {
            let gone = StoreError::Compacted { asked: revision(self.next), oldest: revision(message.compact_revision()) };
            return Some(self.last_word(gone).await);
        }
        if message.canceled() {
            tracing::debug!(why = message.cancel_reason(), "etcd ended a watch; it goes on");
            return Some(End::Broken);
        }
        match batches(message) {
            Ok(batches) => {
                for batch in batches {
                    if let Some(end) = self.deliver(batch).await {
                        return Some(end);
                    }
                }
                None
            }
            Err(error) => Some(self.last_word(error).await),
        }
    }

    async fn deliver(&mut self, batch: WatchBatch) -> Option<End> {
        let at = etcd_revision(batch.revision);
        if at < self.next {
            return None;
        }
        // Live, a reader that holds a whole queue back is told to list again instead of eating memory.
        if at > self.past && self.queue.capacity() <= 1 {
            let too_slow = StoreError::Compacted { asked: batch.revision, oldest: batch.revision };
            return Some(self.last_word(too_slow).await);
        }
        self.next = at + 1;
        self.queue.send(Ok(batch)).await.err().map(|_| End::Over)
    }
}

/// Ends a stream in order, so that etcd frees it at once.
async fn leave(mut stream: WatchStream) {
    let _ = timeout(CALL_DEADLINE, stream.cancel(0)).await;
}

/// etcd never splits a revision over two messages, but puts many into one.
fn batches(message: &WatchResponse) -> Result<Vec<WatchBatch>, StoreError> {
    let mut batches: Vec<WatchBatch> = Vec::new();
    for event in message.events() {
        let Some(kv) = event.kv() else { continue };
        let at = revision(kv.mod_revision());
        let kv = key_value(kv.clone())?;
        let change = match event.event_type() {
            EventType::Put => Change::Put(kv),
            EventType::Delete => Change::Deleted { key: kv.key, at },
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == at => batch.changes.push(change),
            _ => batches.push(WatchBatch { revision: at, changes: vec![change] }),
        }
    }
    Ok(batches)
}
