//! Following an operation to its end.
//!
//! The stream is `GET /v1/operations/{id}?watch`. When it breaks (the daemon restarts, the link drops) the operation itself goes
//! on: the follower asks for it again until it answers, and gives up only after [`PATIENCE`] without a word from the server.
//! A server that does not stream is asked every [`POLL`].

use std::time::{Duration, Instant};

use vmkeep_types::error::Error;
use vmkeep_types::ids::OperationId;
use vmkeep_types::operation::Operation;

use crate::body::WatchEvent;
use crate::client::Client;

/// How long the server may be away in the middle: longer than a restart of the daemon, or the election of another leader.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks while there is no stream.
const POLL: Duration = Duration::from_millis(250);

/// Calls `on_change` with every new state and gives the last one, whose state is over. Dropping it ends the waiting, not the work.
pub async fn follow(client: &Client, id: OperationId, on_change: &mut (dyn FnMut(&Operation) + Send)) -> Result<Operation, Error> {
    let mut follower = Follower { client, id, last: None, on_change };
    let mut heard = Instant::now();
    loop {
        match follower.stream().await {
            Ok(Heard::End(operation)) => return Ok(*operation),
            Ok(Heard::Something) => heard = Instant::now(),
            Ok(Heard::Nothing) => {}
            Err(e) if e.code.retryable() && heard.elapsed() < PATIENCE => {}
            Err(e) => return Err(e),
        }
        tokio::time::sleep(POLL).await;
        match client.call("op.get").field("id", id).answer::<Operation>().await {
            Ok(operation) => {
                heard = Instant::now();
                if let Heard::End(operation) = follower.take(operation) {
                    return Ok(*operation);
                }
            }
            Err(e) if e.code.retryable() && heard.elapsed() < PATIENCE => {}
            Err(e) => return Err(e),
        }
    }
}

enum Heard {
    End(Box<Operation>),
    Something,
    Nothing,
}

struct Follower<'a> {
    client: &'a Client,
    id: OperationId,
    last: Option<Operation>,
    on_change: &'a mut (dyn FnMut(&Operation) + Send),
}

impl Follower<'_> {
    /// Reads one stream until it ends.
    async fn stream(&mut self) -> Result<Heard, Error> {
        let client = self.client;
        let mut events = client.call("op.get").field("id", self.id).watch(None).await?;
        let mut heard = Heard::Nothing;
        while let Some(event) = events.next().await? {
            // A bookmark, or an event of a newer server that we do not know: there is more to come.
            let Ok(WatchEvent::Put { object }) = serde_json::from_str(&event.data) else { continue };
            let Ok(operation) = serde_json::from_value::<Operation>(object) else { continue };
            heard = self.take(operation);
            if matches!(heard, Heard::End(_)) {
                break;
            }
        }
        Ok(heard)
    }

    fn take(&mut self, operation: Operation) -> Heard {
        if self.last.as_ref() != Some(&operation) {
            (self.on_change)(&operation);
            self.last = Some(operation.clone());
        }
        if operation.state.is_over() { Heard::End(Box::new(operation)) } else { Heard::Something }
    }
}
