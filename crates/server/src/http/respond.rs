//! Answers.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use vmkeep_api::body::{Accepted, PAGE_MAX, Page, ProblemBody};
use vmkeep_api::problem::CONTENT_TYPE;
use vmkeep_types::error::Error;
use vmkeep_types::ids::Revision;
use vmkeep_types::operation::Operation;

use super::call::Call;
use crate::page::Place;

fn body(status: StatusCode, kind: &'static str, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub fn problem(error: Error) -> Response {
    let problem = ProblemBody::from(error);
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    body(status, CONTENT_TYPE, serde_json::to_vec(&problem).expect("problems are plain data"))
}

pub fn json<T: Serialize>(value: &T) -> Response {
    body(StatusCode::OK, "application/json", serde_json::to_vec(value).expect("bodies are plain data"))
}

pub fn text(kind: &'static str, text: String) -> Response {
    body(StatusCode::OK, kind, text.into_bytes())
}

/// JSON that is there already.
pub fn ready(bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The `ETag` of a revision.
pub fn etag(response: &mut Response, revision: Revision) {
    let tag = HeaderValue::from_str(&format!("\"{revision}\"")).expect("digits in quotes");
    response.headers_mut().insert(header::ETAG, tag);
}

/// A problem that HTTP has a status of its own for.
pub fn problem_as(status: StatusCode, error: Error) -> Response {
    let body_of = ProblemBody { status: status.as_u16(), ..ProblemBody::from(error) };
    body(status, CONTENT_TYPE, serde_json::to_vec(&body_of).expect("problems are plain data"))
}

/// Somebody else was first: what is there now is in the ETag and in `extra.revision`.
pub fn stale(error: Error, now: Revision) -> Response {
    let mut told = ProblemBody::from(error);
    told.extra.insert("revision".into(), now.0.into());
    let status = StatusCode::from_u16(told.status).unwrap_or(StatusCode::CONFLICT);
    let mut response = body(status, CONTENT_TYPE, serde_json::to_vec(&told).expect("problems are plain data"));
    etag(&mut response, now);
    response
}

pub fn nothing() -> Response {
    body(StatusCode::NO_CONTENT, "application/json", Vec::new())
}

/// JSON of one object with its ETag.
pub fn tagged<T: Serialize>(value: &T, revision: Revision) -> Response {
    let mut response = json(value);
    etag(&mut response, revision);
    response
}

/// 202, or 200 when the operation is over already.
pub fn accepted(operation: Operation) -> Response {
    accepted_with(operation, Vec::new())
}

pub fn accepted_with(operation: Operation, warnings: Vec<String>) -> Response {
    let status = if operation.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let answer = Accepted { operation, note: None, warnings };
    body(status, "application/json", serde_json::to_vec(&answer).expect("bodies are plain data"))
}

/// Rows that the caller wants at most.
pub fn limit(call: &Call) -> Result<usize, Error> {
    let Some(text) = call.query("limit") else { return Ok(PAGE_MAX) };
    let number = text.parse::<usize>().ok().filter(|n| (1..=PAGE_MAX).contains(n));
    number.ok_or_else(|| Error::invalid(format!("limit '{}' is not between 1 and {PAGE_MAX}", text.escape_debug())))
}

/// Where the page before ended.
///
/// # Errors
/// `Invalid` for what is no place; `Stale` for one that has ended.
pub async fn after(call: &Call) -> Result<Option<Place>, Error> {
    match call.query("after") {
        Some(token) => Place::read(call.store(), token).await.map(Some),
        None => Ok(None),
    }
}

/// One page of a sorted list; `id` gives each row's place.
pub async fn page<T: Serialize>(call: &Call, rows: Vec<T>, revision: Revision, id: impl Fn(&T) -> String) -> Result<Response, Error> {
    let limit = limit(call)?;
    let after = after(call).await?;
    let begun = after.as_ref().map_or(revision, |place| place.begun);
    let mut rest = rows.into_iter().skip_while(|row| after.as_ref().is_some_and(|after| id(row) <= after.name));
    let items: Vec<T> = rest.by_ref().take(limit).collect();
    let next = rest.next().and_then(|_| items.last().map(|row| Place::token(&call.store().id(), begun, &id(row))));
    Ok(json(&Page { items, next, revision: begun }))
}
