//! Why a command ends without success, and the exit code that says so to scripts.
//!
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | the command line is wrong |
//! | 3 | the object does not exist |
//! | 4 | conflict: taken, in use, protected, or changed by somebody else meanwhile |
//! | 5 | the control plane cannot be reached |
//!
//! `vm exec` and `vm ssh` pass the guest program's code on; an interrupted wait ends with 130, as shells do it.

use vmkeep_types::error::{Code, Error};
use vmkeep_types::operation::{OpState, Operation};

use crate::printer::Printer;

#[derive(Debug)]
pub enum Failure {
    /// The server's or our own word.
    Error(Error),
    /// An operation ended without success.
    Operation(Box<Operation>),
    /// The command line is wrong in a way that clap cannot see.
    Usage { message: String, hint: String },
    /// All was said already.
    Code(u8),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}

/// An interrupted wait.
pub const INTERRUPTED: u8 = 130;

impl Failure {
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// A local failure, with what was tried and the system's reason.
    pub fn io(what: impl std::fmt::Display, e: &std::io::Error) -> Self {
        let text = e.to_string();
        Self::Error(Error::refused(format!("{what}: {}", text.split(" (os error").next().unwrap_or(&text))))
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Error(e) => match e.code {
                Code::NotFound => 3,
                Code::Conflict | Code::Stale => 4,
                Code::Unavailable => 5,
                Code::Invalid | Code::Unauthenticated | Code::Forbidden | Code::TooLarge => 1,
                Code::NoCapacity | Code::Refused | Code::Cancelled | Code::Internal => 1,
            },
            Self::Operation(op) => match op.error.as_ref().map(|e| e.code) {
                Some(Code::NotFound) => 3,
                Some(Code::Conflict | Code::Stale) => 4,
                _ => 1,
            },
            Self::Usage { .. } => 2,
            Self::Code(code) => *code,
        }
    }

    /// Says it on stderr; gives the exit code.
    pub fn report(&self, printer: &Printer) -> u8 {
        match self {
            Self::Error(e) => printer.error(e),
            Self::Operation(op) => printer.error(&operation_error(op)),
            Self::Usage { message, hint } => printer.error(&Error::invalid(message.clone()).hint(hint.clone())),
            Self::Code(_) => {}
        }
        self.exit_code()
    }
}

fn operation_error(op: &Operation) -> Error {
    let what = format!("{} {} '{}'", crate::progress::verb(&op.kind), op.resource.kind, op.resource.name);
    let id = op.id;
    match (&op.error, op.state) {
        (Some(e), _) => {
            let mut e = e.clone();
            e.message = format!("cannot {what}: {}{}", e.message, what_stays(op));
            e.hint = e.hint.or_else(|| Some(format!("see 'vmkeep op show {id}'")));
            e
        }
        (None, OpState::Cancelled) => Error::new(Code::Cancelled, format!("{what} was cancelled")),
        (None, _) => Error::internal(format!("cannot {what}: the server does not say why")).hint(format!("see 'vmkeep op show {id}'")),
    }
}

/// A wish outlives the failure of what was to come of it.
fn what_stays(op: &Operation) -> String {
    let name = &op.resource.name;
    match op.kind.as_str() {
        "vm.create" => format!("; '{name}' is there and is tried again, unless 'vmkeep vm delete {name}'"),
        "vm.update" => format!("; the wish is written, and 'vmkeep vm edit {name}' changes it"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_operation_is_no_refused_request() {
        let failed = |code| {
            let text = serde_json::json!({"id": uuid::Uuid::nil(), "project": "default", "kind": "vm.start", "state": "failed", "steps": [],
                "resource": {"kind": "vm", "project": "default", "name": "web1", "uid": uuid::Uuid::nil()}, "progress": null, "blocked": null,
                "error": Error::new(code, "x"), "wanted": {"is": "task"}, "by": "me", "created_at": "2026-01-01T00:00:00Z", "ended_at": null});
            Failure::Operation(serde_json::from_value(text).expect("an operation")).exit_code()
        };
        let codes = [Code::NotFound, Code::Conflict, Code::Stale, Code::Unavailable, Code::Refused].map(failed);
        assert_eq!(codes, [3, 4, 4, 1, 1]);
    }

    #[test]
    fn the_documented_codes_are_these() {
        let page = include_str!("../../../docs/errors/README.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let wanted = Code::ALL.map(|code| {
            let exit = Failure::Error(Error::new(code, "")).exit_code();
            format!("| `{}` | {} | {exit} |", code.as_str(), code.http_status())
        });
        assert_eq!(rows.len(), wanted.len());
        for (row, begin) in rows.iter().zip(wanted) {
            assert!(row.starts_with(&begin), "{row}\n{begin}");
        }
    }
}
