//! `-w`: a list that goes on as lines.
//!
//! The stream's token is kept, so that after a break nothing is missed; a server that has forgotten it (`gone`) is asked anew.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use vmkeep_api::body::WatchEvent;
use vmkeep_api::client::Call;
use vmkeep_api::follow::PATIENCE;
use vmkeep_types::error::Code;

use crate::context::Ctx;
use crate::failure::Failure;

/// Between two tries to connect again.
const AGAIN: Duration = Duration::from_millis(500);

pub enum Change<T> {
    Put(Box<T>),
    Deleted(String),
}

/// Calls `on_change` for every change until the user ends it or the server is away too long.
pub async fn watch<'a, T: DeserializeOwned>(
    ctx: &'a Ctx,
    call: impl Fn() -> Result<Call<'a>, Failure>,
    mut on_change: impl FnMut(Change<T>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut last_id = None::<String>;
    let mut heard = Instant::now();
    loop {
        match call()?.watch(last_id.as_deref()).await {
            Ok(mut events) => loop {
                match events.next().await {
                    Ok(Some(event)) if event.event == "gone" => {
                        last_id = None;
                        break;
                    }
                    Ok(Some(event)) => {
                        heard = Instant::now();
                        if let Some(change) = read::<T>(ctx, &event.data) {
                            on_change(change)?;
                        }
                        last_id = events.last_id().map(str::to_owned);
                    }
                    Ok(None) => break,
                    Err(e) if e.code.retryable() => break,
                    Err(e) => return Err(e.into()),
                }
            },
            Err(e) if e.code.retryable() && heard.elapsed() < PATIENCE && last_id.is_some() => {}
            Err(e) if e.code == Code::NotFound && last_id.is_some() => last_id = None,
            Err(e) => return Err(e.into()),
        }
        tokio::time::sleep(AGAIN).await;
    }
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
