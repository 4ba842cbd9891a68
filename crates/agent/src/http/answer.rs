//! Errors as problem+json, bodies and queries read with our own words.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use vmkeep_api::body::ProblemBody;
use vmkeep_api::problem;
use vmkeep_types::error::{Code, Error};

use crate::hypervisor::HvError;

pub type Answer<T> = Result<T, Failure>;

/// An error on its way out.
#[derive(Debug)]
pub struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<HvError> for Failure {
    fn from(error: HvError) -> Self {
        let words = error.to_string();
        Self(match error {
            HvError::NoDomain(_) => Error::new(Code::NotFound, words),
            HvError::WrongState(_) => Error::conflict(words),
            HvError::Refused(_) | HvError::Unsupported(_) => Error::refused(words),
            HvError::Disconnected(_) => Error::new(Code::Unavailable, words).hint("`vmkeep host check` says what is wrong with libvirt"),
            HvError::TimedOut { .. } => Error::new(Code::Unavailable, words),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&ProblemBody::from(self.0)).expect("a problem is plain data");
        (status, [(header::CONTENT_TYPE, problem::CONTENT_TYPE)], body).into_response()
    }
}

pub async fn no_route(uri: Uri) -> Failure {
    Error::new(Code::NotFound, format!("this node has no {}", uri.path())).into()
}

/// A JSON body.
pub fn parse<T: DeserializeOwned>(body: &Bytes) -> Answer<T> {
    serde_json::from_slice(body).map_err(|e| Error::invalid(format!("the body does not parse: {e}")).into())
}

/// A query, refused in our own form.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(e) => Err(Error::invalid(format!("the query does not parse: {}", e.body_text())).into()),
        }
    }
}

/// What a file's failure means to the caller.
pub fn io_failure(what: &str, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::NoCapacity,
        _ => Code::Refused,
    };
    Error::new(code, format!("{what}: {error}")).into()
}
