//! etcd's refusals in the store's words.

use std::future::Future;
use std::time::Duration;

use etcd_client::Error;
use tokio::time::{sleep, timeout};
use vmkeep_types::ids::Revision;

use super::CALL_DEADLINE;
use crate::StoreError;

/// What an answer that never comes leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Read,
    /// It may have been carried out.
    Write,
}

/// gRPC's status codes, as etcd uses them. They are numbers here because the crate that names them is not a dependency.
mod code {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const UNAUTHENTICATED: i32 = 16;
}

/// The client picks a member for each request, a dead one as readily as the others: with one of three dead, so many picks in a
/// row meet it less than once in ten million times. All of them are refused within milliseconds.
const TRIES_MAX: u32 = 40;
const REST: Duration = Duration::from_millis(5);

/// Waits for an answer, no longer than [`CALL_DEADLINE`]: a request to a frozen etcd hangs past the client's own time-out.
/// What never left, because a member cannot be reached, goes to the next one; so does a read that got no answer.
pub async fn outcome<T, F>(purpose: Purpose, call: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, Error>>,
{
    outcome_within(CALL_DEADLINE, purpose, call).await
}

/// The same for what takes etcd longer, however well it is.
pub async fn outcome_within<T, F>(deadline: Duration, purpose: Purpose, mut call: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut refusal = None;
    let answered = async {
        for _ in 1..TRIES_MAX {
            match call().await {
                Err(error) if never_left(&error) || (purpose == Purpose::Read && is_silence(&error)) => {
                    refusal = refusal.take().or(Some(told(purpose, &error)).filter(|told| matches!(told, StoreError::Denied(_))));
                    sleep(REST).await;
                }
                answer => return answer,
            }
        }
        call().await
    };
    let answer = timeout(deadline, answered).await;
    let error = match answer {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => told(purpose, &error),
        Err(_) => silent(purpose, format!("no answer from etcd within {deadline:?}")),
    };
    // Where one refused and the others are silent, the refusal says more. An unknown outcome stays unknown.
    Err(refusal.filter(|_| matches!(error, StoreError::Unavailable(_))).unwrap_or(error))
}

/// The connection to a member did not come about, or etcd's users changed while it was on its way: it was not carried out.
fn never_left(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    if status.message().contains("revision of auth store is old") {
        return true;
    }
    let connecting = status.message() == "tcp connect error";
    // The connector's own patience; a time-out of the system (with its number) may be one of a connection that was used.
    let mut cause = std::error::Error::source(status);
    let mut late = false;
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        late |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut && io.raw_os_error().is_none());
        cause = error.source();
    }
    connecting || (late && status.message().contains("deadline has elapsed"))
}

fn is_silence(error: &Error) -> bool {
    // A member that is behind does not know yet whom the others know.
    matches!(told(Purpose::Read, error), StoreError::Unavailable(_) | StoreError::Denied(_))
}

fn silent(purpose: Purpose, why: String) -> StoreError {
    match purpose {
        Purpose::Read => StoreError::Unavailable(why),
        Purpose::Write => StoreError::Unknown(why),
    }
}

pub fn told(purpose: Purpose, error: &Error) -> StoreError {
    let Error::GRpcStatus(status) = error else { return silent(purpose, format!("etcd: {error}")) };
    let words = status.message();
    match i32::from(status.code()) {
        code::OUT_OF_RANGE if words.contains("compacted") => StoreError::Compacted { asked: Revision(0), oldest: Revision(0) },
        code::RESOURCE_EXHAUSTED if words.contains("database space exceeded") => {
            StoreError::Full(format!("etcd is over its quota ({words}); on a control node run: vmkeep cluster defrag"))
        }
        code::INVALID_ARGUMENT if words.contains("too large") => StoreError::TooLarge(words.to_owned()),
        code::INVALID_ARGUMENT => StoreError::Invalid(words.to_owned()),
        code::PERMISSION_DENIED => StoreError::Denied(words.to_owned()),
        code::UNAUTHENTICATED => StoreError::Unavailable(format!("etcd refuses us: {words}")),
        _ => silent(purpose, format!("etcd: {words}")),
    }
}
