//! etcd's refusals in the store's words.

use std::time::Duration;

use etcd_client::Error;
use vmkeep_types::ids::Revision;

use crate::StoreError;

/// What an answer that never comes leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Read,
    /// A read of many keys.
    Listing,
    /// It may have been carried out.
    Write,
}

impl Purpose {
    /// Asked of another member, it does no harm.
    pub const fn is_read(self) -> bool {
        !matches!(self, Self::Write)
    }

    /// A member that has said nothing after this time is one that later calls need not wait for: etcd answers in milliseconds, on a slow
    /// disk in tens of them, and as long as many bytes take.
    pub const fn slow(self) -> Duration {
        match self {
            Self::Read | Self::Write => Duration::from_millis(200),
            Self::Listing => Duration::from_secs(2),
        }
    }
}

/// gRPC's status codes, as etcd uses them. They are numbers here because the crate that names them is not a dependency.
mod code {
    pub const CANCELLED: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const DEADLINE_EXCEEDED: i32 = 4;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const INTERNAL: i32 = 13;
    pub const UNAVAILABLE: i32 = 14;
    pub const UNAUTHENTICATED: i32 = 16;
}

/// The connection to a member did not come about, or etcd's users changed while it was on its way: it was not carried out.
pub fn never_left(error: &Error) -> bool {
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

/// The members elect their leader: the one that was asked refuses until they have one, before it does anything with what it is asked
/// (`newUnaryInterceptor` in etcd's `api/v3rpc/interceptor.go`, for requests that require a leader). Or they are handing the lead over, or
/// have just lost it: raft takes no proposal meanwhile, and `Propose` says that this one was dropped (`ErrProposalDropped` in
/// `raft/raft.go`, returned as it is by `processInternalRaftRequestOnce`).
pub fn is_election(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    matches!(status.message(), "etcdserver: no leader" | "raft proposal dropped")
}

/// Another member may answer: one that is behind does not know yet whom the others know.
pub fn is_silence(error: &Error) -> bool {
    matches!(told(Purpose::Read, error), StoreError::Unavailable(_) | StoreError::Denied(_))
}

/// The member itself has said something, be it a refusal; what says nothing of the kind is a connection that failed, or an etcd without
/// a majority.
pub fn is_answer(error: &Error) -> bool {
    let broken = [code::CANCELLED, code::UNKNOWN, code::DEADLINE_EXCEEDED, code::INTERNAL, code::UNAVAILABLE];
    match error {
        Error::GRpcStatus(status) => !broken.contains(&i32::from(status.code())),
        Error::TransportError(_) | Error::IoError(_) => false,
        _ => true,
    }
}

pub fn silent(purpose: Purpose, why: String) -> StoreError {
    match purpose {
        Purpose::Read | Purpose::Listing => StoreError::Unavailable(why),
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
