//! Making rows.

use vmkeep_types::host::{CheckLevel, CheckRow};

pub fn ok(id: &str, found: impl Into<String>) -> CheckRow {
    CheckRow { id: id.into(), level: CheckLevel::Ok, found: found.into(), why: String::new(), mend: None }
}

pub fn warn(id: &str, found: impl Into<String>, why: impl Into<String>, mend: Option<String>) -> CheckRow {
    CheckRow { id: id.into(), level: CheckLevel::Warn, found: found.into(), why: why.into(), mend }
}

pub fn fail(id: &str, found: impl Into<String>, why: impl Into<String>, mend: Option<String>) -> CheckRow {
    CheckRow { id: id.into(), level: CheckLevel::Fail, found: found.into(), why: why.into(), mend }
}
