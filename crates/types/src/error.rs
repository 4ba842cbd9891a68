//! The one error at the border: a stable code, words for people, a hint.
//!
//! Variants of [`Code`] exist only where a program acts differently. The HTTP form is problem+json (RFC 9457); the CLI maps
//! codes to exit codes (docs/errors).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request itself is wrong; repeating it is no use.
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    /// The name is taken, the object is in use or protected.
    Conflict,
    /// If-Match: somebody changed it in between.
    Stale,
    /// Body, list or queue over its limit.
    TooLarge,
    /// No room: CPU, memory, disk.
    NoCapacity,
    /// The outside world (libvirt, QEMU, a disk) refused; its words are in the message.
    Refused,
    /// Not now: starting, leader away, time-out. Worth a retry.
    Unavailable,
    Cancelled,
    /// A bug of ours.
    Internal,
}

impl Code {
    /// In the order of docs/errors.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Stale,
        Self::TooLarge,
        Self::NoCapacity,
        Self::Refused,
        Self::Unavailable,
        Self::Cancelled,
        Self::Internal,
    ];

    pub fn retryable(self) -> bool {
        match self {
            Self::Unavailable => true,
            Self::Invalid | Self::Unauthenticated | Self::Forbidden | Self::NotFound | Self::Conflict | Self::Stale | Self::TooLarge => {
                false
            }
            Self::NoCapacity | Self::Refused | Self::Cancelled | Self::Internal => false,
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            // Stale is RFC 9110's 412 by the letter, but clients were promised one answer for "somebody else was first": 409.
            Self::Conflict | Self::Stale | Self::Cancelled | Self::Refused => 409,
            Self::TooLarge => 413,
            Self::NoCapacity => 507,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Stale => "stale",
            Self::TooLarge => "too_large",
            Self::NoCapacity => "no_capacity",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// An error as it is stored, sent and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    pub code: Code,
    /// What, where, why; one or more sentences without the hint.
    pub message: String,
    /// What to do now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// All problems of a request at once, each with its field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `disks[root].size`
    pub field: String,
    pub message: String,
}

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, problems: Vec::new() }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    pub fn not_found(kind: &str, name: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("there is no {kind} '{name}'"))
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Code::Conflict, message)
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Code::Refused, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for p in &self.problems {
            write!(f, "\n  {}: {}", p.field, p.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
