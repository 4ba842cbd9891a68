//! Every row of the route table, served.
//!
//! ```text
//!  request ──► route row: role ──► Call (project, fields, query, body with limit) ──► handler ──► audit, metrics
//! ```
//! Handlers are thin: they read, call `app`, and answer. Errors are problem+json everywhere, unknown paths included.

mod call;
mod handlers;
mod respond;
mod watch;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use futures_util::FutureExt;
use vmkeep_api::routes::{Method, ROUTES, Route, Shape};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::nearest::nearest;
use vmkeep_types::record::Caller;

use crate::context::Server;
use call::Call;
use respond::problem;

/// Until the head of an answer; event streams and consoles go on behind it. Longer than the body may take to arrive.
const REQUEST_PATIENCE: Duration = Duration::from_secs(60);
/// Of a path in a message.
const PATH_CHARS_SHOWN: usize = 200;

/// The API. The listener in front puts the [`Caller`] into the request's extensions.
pub fn router(server: Arc<Server>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let serve = move |State(server): State<Arc<Server>>, request: Request| serve(server, route, request);
        router = router.route(route.path, on(filter(route.method), serve));
        if let Some(path) = route.project_path() {
            router = router.route(&path, on(filter(route.method), serve));
        }
    }
    router.fallback(unknown).method_not_allowed_fallback(wrong_method).with_state(server)
}

fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Put => MethodFilter::PUT,
        Method::Post => MethodFilter::POST,
        Method::Delete => MethodFilter::DELETE,
        Method::Patch => MethodFilter::PATCH,
    }
}

async fn unknown(request: Request) -> Response {
    let path = printable(request.uri().path());
    let hint = match nearest_route(&path) {
        Some(near) => format!("did you mean {near}? GET /v1/openapi.json lists all routes"),
        None => "GET /v1/openapi.json lists all routes".into(),
    };
    problem(Error::new(Code::NotFound, format!("there is no route {path}")).hint(hint))
}

async fn wrong_method(request: Request) -> Response {
    let path = printable(request.uri().path());
    let methods: Vec<&str> = ROUTES.iter().filter(|r| fits(r, &path)).map(|r| r.method.as_str()).collect();
    let told = Error::new(Code::NotFound, format!("{} is not for {path}", request.method()));
    let mut response = respond::problem_as(StatusCode::METHOD_NOT_ALLOWED, told.hint(format!("it takes {}", methods.join(", "))));
    if let Ok(allow) = HeaderValue::from_str(&methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// What a stranger sent, short and without control characters.
fn printable(path: &str) -> String {
    path.chars().take(PATH_CHARS_SHOWN).filter(|c| !c.is_control()).collect()
}

/// The path without `/projects/NAME`.
fn short(path: &str) -> String {
    match path.strip_prefix("/v1/projects/").and_then(|rest| rest.split_once('/')) {
        Some((_, rest)) => format!("/v1/{rest}"),
        None => path.to_owned(),
    }
}

/// Same segments, fields filled by whatever stands there.
fn fits(route: &Route, path: &str) -> bool {
    filled(route, &short(path)).is_some_and(|own| own == short(path))
}

/// A route's path with its fields taken from `path`; None when it is longer or shorter.
fn filled(route: &Route, path: &str) -> Option<String> {
    let (own, theirs): (Vec<&str>, Vec<&str>) = (route.path.split('/').collect(), path.split('/').collect());
    let same = own.len() == theirs.len();
    let segments = own.iter().zip(theirs).map(|(own, theirs)| if own.starts_with('{') { theirs } else { own });
    same.then(|| segments.collect::<Vec<_>>().join("/"))
}

fn nearest_route(path: &str) -> Option<String> {
    let path = short(path);
    let routes: Vec<String> = ROUTES.iter().filter_map(|route| filled(route, &path)).collect();
    nearest(&path, routes.iter().map(String::as_str)).map(str::to_owned)
}

async fn serve(server: Arc<Server>, route: &'static Route, request: Request) -> Response {
    let begin = Instant::now();
    let path = request.uri().path().to_owned();
    let caller = request.extensions().get::<Caller>().cloned();
    let response = match caller.clone() {
        None => problem(Error::new(Code::Unauthenticated, "who are you?").hint("send `Authorization: Bearer TOKEN`")),
        Some(caller) if caller.role < route.role => problem(forbidden(&caller, route)),
        Some(caller) => answer(server.clone(), route, caller, request).await,
    };
    let status = response.status().as_u16();
    server.metrics.note(route.id, status, begin.elapsed());
    if route.method != Method::Get || route.shape == Shape::WebSocket {
        let nobody = || Caller { name: "nobody".into(), role: vmkeep_types::record::Role::Viewer };
        server.audit.note(&caller.unwrap_or_else(nobody), route.id, &path, status);
    }
    response
}

/// Within its time, and whatever happens.
async fn answer(server: Arc<Server>, route: &'static Route, caller: Caller, request: Request) -> Response {
    let handled = AssertUnwindSafe(async move { handlers::handle(Call::new(server, route, caller, request).await?).await });
    let patience = if lasts_as_long_as_it_must(route) { Duration::MAX } else { REQUEST_PATIENCE };
    match tokio::time::timeout(patience, handled.catch_unwind()).await {
        Ok(Ok(answered)) => answered.unwrap_or_else(problem),
        // The panic's own words are in the log.
        Ok(Err(_)) => problem(Error::internal(format!("{} failed inside vmkeepd", route.id)).hint("journalctl -u vmkeepd shows where")),
        Err(_) => problem(Error::new(Code::Unavailable, format!("{} took longer than {} s", route.id, REQUEST_PATIENCE.as_secs()))),
    }
}

/// Uploads last as long as their bytes do, programs in guests as long as the caller lets them.
fn lasts_as_long_as_it_must(route: &Route) -> bool {
    route.id == "vm.exec" || matches!(route.shape, Shape::Bytes | Shape::WebSocket)
}

fn forbidden(caller: &Caller, route: &Route) -> Error {
    let needed = format!("{:?}", route.role).to_lowercase();
    Error::new(Code::Forbidden, format!("'{}' may not do this: it needs the role {needed}", caller.name))
}

#[cfg(test)]
mod tests;
