//! `-w`: a list that goes on as lines.
//!
//! ```text
//! list ──► rows, token of the moment they were read ──► watch from there ──► changes
//!   ▲                                                     │  break: again from the newest token
//!   └──────────── the server has forgotten the token ◄────┘
//! ```
//! List and watch are joined by the token, so nothing is missed between them or in a break; at worst a change is told twice.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vmkeep_api::body::{VersionAnswer, WatchEvent};
use vmkeep_api::client::Call;
use vmkeep_api::follow::PATIENCE;
use vmkeep_types::error::Code;

use super::listed;
use crate::context::Ctx;
use crate::failure::Failure;

/// Between two tries to connect again.
const AGAIN: Duration = Duration::from_millis(500);

pub enum Change<T> {
    /// All there is: at the beginning, and after a break that the server's memory did not cover.
    All(Vec<T>),
    Put(Box<T>),
    Deleted(String),
}

/// Calls `on_change` with all rows and then every change, until the user ends it or the server is away too long. `call` is the
/// route of the list.
pub async fn watch<'a, T: DeserializeOwned>(
    ctx: &'a Ctx,
    call: impl Fn() -> Result<Call<'a>, Failure>,
    mut on_change: impl FnMut(Change<T>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (rows, mut token) = list(ctx, &call).await?;
    on_change(Change::All(rows))?;
    let mut heard = Instant::now();
    loop {
        match stream(ctx, call()?, &mut token, &mut heard, &mut on_change).await {
            Ok(()) => {}
            Err(Failure::Error(e)) if e.code.retryable() && heard.elapsed() < PATIENCE => {}
            Err(Failure::Error(e)) if e.code == Code::Stale => match list(ctx, &call).await {
                Ok((rows, now)) => {
                    token = now;
                    on_change(Change::All(rows))?;
                }
                Err(Failure::Error(e)) if e.code.retryable() && heard.elapsed() < PATIENCE => {}
                Err(failure) => return Err(failure),
            },
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// All rows, and the watch token `STORE:REVISION` of the moment they were read.
async fn list<'a, T: DeserializeOwned>(ctx: &'a Ctx, call: &impl Fn() -> Result<Call<'a>, Failure>) -> Result<(Vec<T>, String), Failure> {
    // Should the store be another one before the rows are read, the token is of none and the server says so.
    let version: VersionAnswer = ctx.call("version")?.answer().await?;
    let (rows, revision) = listed(ctx, call).await?;
    Ok((rows, format!("{}:{revision}", version.store)))
}

/// Reads one stream to its end, which may come at any time.
async fn stream<T: DeserializeOwned>(
    ctx: &Ctx,
    call: Call<'_>,
    token: &mut String,
    heard: &mut Instant,
    on_change: &mut impl FnMut(Change<T>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut events = call.watch(Some(token)).await?;
    *heard = Instant::now();
    while let Some(event) = events.next().await? {
        *heard = Instant::now();
        if let Some(change) = read::<T>(ctx, &event.data) {
            on_change(change)?;
        }
        if let Some(id) = events.last_id() {
            id.clone_into(token);
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(ctx: &Ctx, data: &str) -> Option<Change<T>> {
    let read = |object| serde_json::from_value(object).map(|t| Change::Put(Box::new(t)));
    let change = match serde_json::from_str(data) {
        Ok(WatchEvent::Put { object }) => read(object),
        Ok(WatchEvent::Deleted { name, .. }) => Ok(Change::Deleted(name.to_string())),
        Ok(WatchEvent::Bookmark) => return None,
        Err(e) => Err(e),
    };
    change.map_err(|e| ctx.printer.warn(&format!("an event of the server is not understood: {e}"))).ok()
}
