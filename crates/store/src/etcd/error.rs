//! etcd's refusals in the store's words.

use std::future::Future;

use etcd_client::Error;
use tokio::time::timeout;
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

/// Waits for an answer, no longer than [`CALL_DEADLINE`]: a request to a frozen etcd hangs past the client's own time-out.
pub async fn outcome<T>(purpose: Purpose, call: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    match timeout(CALL_DEADLINE, call).await {
        Ok(answer) => answer.map_err(|error| told(purpose, &error)),
        Err(_) => Err(silent(purpose, format!("no answer from etcd within {CALL_DEADLINE:?}"))),
    }
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
        code::PERMISSION_DENIED | code::UNAUTHENTICATED => StoreError::Unavailable(format!("etcd refuses us: {words}")),
        _ => silent(purpose, format!("etcd: {words}")),
    }
}
