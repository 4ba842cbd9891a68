//! Errors as problem+json (RFC 9457) and back, without loss of code, message, hint and problems.
//!
//! `status` and `title` follow from the code; a reader trusts `code` and not the HTTP status, which a proxy may have made.

use std::collections::BTreeMap;

use vmkeep_types::error::{Code, Error};

use crate::body::ProblemBody;

/// Content type of every error.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Begins `type`; the code follows. A name, not a place: docs/errors says what each means.
const TYPE_PREFIX: &str = "urn:vmkeep:error:";

/// Longest text of a foreign error that is passed on.
const FOREIGN_CHARS_MAX: usize = 500;

impl From<Error> for ProblemBody {
    fn from(e: Error) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{}", e.code.as_str()),
            title: title(e.code).into(),
            status: e.code.http_status(),
            detail: e.message,
            code: e.code,
            hint: e.hint,
            problems: e.problems,
            extra: BTreeMap::new(),
        }
    }
}

impl From<ProblemBody> for Error {
    fn from(p: ProblemBody) -> Self {
        Self { code: p.code, message: p.detail, hint: p.hint, problems: p.problems }
    }
}

/// The error in an answer with a bad status, whoever wrote it.
pub fn read(status: u16, body: &[u8]) -> Error {
    match serde_json::from_slice::<ProblemBody>(body) {
        Ok(problem) => problem.into(),
        Err(_) => foreign(status, body),
    }
}

/// An answer that is not ours: a proxy's page, or nothing.
fn foreign(status: u16, body: &[u8]) -> Error {
    let text: String =
        String::from_utf8_lossy(body).chars().take(FOREIGN_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    let said = if text.is_empty() { String::new() } else { format!(": {text}") };
    let error = Error::new(foreign_code(status), format!("the server answered {status}{said}"));
    if said.is_empty() || text.starts_with('<') { error.hint("this may be a proxy and not vmkeepd; look at the address") } else { error }
}

fn foreign_code(status: u16) -> Code {
    match status {
        401 => Code::Unauthenticated,
        403 => Code::Forbidden,
        404 | 410 => Code::NotFound,
        409 => Code::Conflict,
        412 => Code::Stale,
        413 => Code::TooLarge,
        408 | 429 | 502 | 503 | 504 => Code::Unavailable,
        507 => Code::NoCapacity,
        400..500 => Code::Invalid,
        _ => Code::Internal,
    }
}

fn title(code: Code) -> &'static str {
    match code {
        Code::Invalid => "The request is not valid",
        Code::Unauthenticated => "Who are you?",
        Code::Forbidden => "Not allowed",
        Code::NotFound => "Not found",
        Code::Conflict => "In conflict with what is there",
        Code::Stale => "Changed in between",
        Code::TooLarge => "Too large",
        Code::NoCapacity => "No room",
        Code::Refused => "Refused by the host",
        Code::Unavailable => "Not now",
        Code::Cancelled => "Cancelled",
        Code::Internal => "A bug of vmkeep",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use vmkeep_types::error::Problem;

    use super::*;

    const CODES: [Code; 12] = [
        Code::Invalid,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::NotFound,
        Code::Conflict,
        Code::Stale,
        Code::TooLarge,
        Code::NoCapacity,
        Code::Refused,
        Code::Unavailable,
        Code::Cancelled,
        Code::Internal,
    ];

    #[test]
    fn nothing_is_lost_on_the_wire() {
        for code in CODES {
            let error = Error {
                code,
                message: "what, where, why".into(),
                hint: Some("do this".into()),
                problems: vec![Problem { field: "disks[root].size".into(), message: "too small".into() }],
            };
            let body = serde_json::to_vec(&ProblemBody::from(error.clone())).expect("it is JSON");
            assert_eq!(read(code.http_status(), &body), error);
            assert_eq!(read(code.http_status(), b"").code.retryable(), code.retryable(), "{code:?}");
        }
    }

    fn check(status: u16, body: &str, expect: Expect) {
        let e = read(status, body.as_bytes());
        expect.assert_eq(&format!("{:?}: {e}\nhint: {:?}\n", e.code, e.hint));
    }

    #[test]
    fn the_form_on_the_wire() {
        let body = ProblemBody::from(Error::not_found("VM", "web1").hint("vmkeep vm list"));
        expect![[r#"
            {
              "type": "urn:vmkeep:error:not_found",
              "title": "Not found",
              "status": 404,
              "detail": "there is no VM 'web1'",
              "code": "not_found",
              "hint": "vmkeep vm list"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&body).expect("it is JSON"));
    }

    #[test]
    fn others_errors_are_told_from_ours() {
        check(
            502,
            "<html>Bad gateway</html>",
            expect![[r#"
            Unavailable: the server answered 502: <html>Bad gateway</html>
            hint: Some("this may be a proxy and not vmkeepd; look at the address")
        "#]],
        );
        check(
            404,
            "",
            expect![[r#"
            NotFound: the server answered 404
            hint: Some("this may be a proxy and not vmkeepd; look at the address")
        "#]],
        );
        check(
            400,
            "Failed to parse JSON\u{1b}[31m",
            expect![[r#"
            Invalid: the server answered 400: Failed to parse JSON [31m
            hint: None
        "#]],
        );
    }
}
