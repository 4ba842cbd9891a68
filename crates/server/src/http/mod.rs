//! Every row of the route table, served.
//!
//! ```text
//!  request ──► route row: role ──► Call (project, fields, query, body with limit) ──► handler ──► audit, metrics
//!                                  └────── in a task of its own when it changes something ──────┘
//! ```
//! A client that hangs up, or the time for an answer, ends no change half-way: it is carried out and noted all the same.
//! Handlers are thin: they read, call `app`, and answer. Errors are problem+json everywhere, unknown paths included.

mod call;
mod cluster;
mod found;
mod ha;
mod handlers;
mod host;
mod relay;
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
use vmkeep_api::routes::{Method, ROUTES, Route, Scope, Shape};
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
    let caller = request.extensions().get::<Caller>().cloned();
    let path = request.uri().path().to_owned();
    let work = answer(server.clone(), route, caller.clone(), request);
    let response = if route.is_audited() {
        in_time(route, to_its_end(&server, caller, route.id, path, work)).await
    } else {
        in_time(route, work).await
    };
    server.metrics.note(route.id, response.status().as_u16(), begin.elapsed());
    response
}

/// Carries a change out to its end and notes it, whoever still waits for the answer: hyper drops the future of a request
/// whose client hung up.
pub async fn to_its_end(
    server: &Arc<Server>,
    caller: Option<Caller>,
    route: &'static str,
    path: String,
    work: impl Future<Output = Response> + Send + 'static,
) -> Response {
    let (noting, done) = (server.clone(), AssertUnwindSafe(work).catch_unwind());
    let noted = async move {
        // The panic's own words are in the log.
        let broke = |_| problem(Error::internal(format!("{route} failed inside vmkeepd")).hint("journalctl -u vmkeepd shows where"));
        let response = done.await.unwrap_or_else(broke);
        noting.audit.note(caller.as_ref(), route, &path, response.status().as_u16());
        response
    };
    let cut = |_| problem(Error::new(Code::Unavailable, "vmkeepd is ending"));
    server.changes.spawn(noted).await.unwrap_or_else(cut)
}

/// The head of an answer within its time.
async fn in_time(route: &'static Route, work: impl Future<Output = Response>) -> Response {
    let patience = if lasts_as_long_as_it_must(route) { Duration::MAX } else { REQUEST_PATIENCE };
    let late = |_| {
        let late = Error::new(Code::Unavailable, format!("{} took longer than {} s", route.id, REQUEST_PATIENCE.as_secs()));
        problem(if route.is_audited() { late.hint("it goes on: see vmkeep op list") } else { late })
    };
    let broke = |_| problem(Error::internal(format!("{} failed inside vmkeepd", route.id)).hint("journalctl -u vmkeepd shows where"));
    let whatever_happens = AssertUnwindSafe(work).catch_unwind();
    tokio::time::timeout(patience, whatever_happens).await.map_or_else(late, |done| done.unwrap_or_else(broke))
}

async fn answer(server: Arc<Server>, route: &'static Route, caller: Option<Caller>, request: Request) -> Response {
    let caller = match caller {
        None => return problem(Error::new(Code::Unauthenticated, "who are you?").hint("send `Authorization: Bearer TOKEN`")),
        Some(caller) if caller.role < route.role => return problem(forbidden(&caller, route)),
        Some(caller) if caller.projects.is_some() && !is_for_everybody(route) => return problem(all_projects_only(&caller)),
        Some(caller) => caller,
    };
    let handled = async { handlers::handle(Call::new(server, route, caller, request).await?).await };
    match handled.await {
        // A place in a list that has ended, as an event token has.
        Err(error) if error.code == Code::Stale && route.method == Method::Get => respond::problem_as(StatusCode::GONE, error),
        answered => answered.unwrap_or_else(problem),
    }
}

/// What a caller with a few projects may use: those, and what tells nothing of the others.
fn is_for_everybody(route: &Route) -> bool {
    route.scope == Scope::Project
        || matches!(route.id, "version" | "schema" | "openapi" | "pool.list" | "pool.get" | "node.list" | "host.check")
}

fn all_projects_only(caller: &Caller) -> Error {
    let only: Vec<&str> = caller.projects.iter().flatten().map(|p| p.as_str()).collect();
    Error::new(Code::Forbidden, format!("'{}' may work in project {} only, and this is of all projects", caller.name, only.join(", ")))
}

/// Uploads last as long as their bytes do, programs in guests as long as the caller lets them.
fn lasts_as_long_as_it_must(route: &Route) -> bool {
    matches!(route.id, "vm.exec" | "cluster.defrag") || matches!(route.shape, Shape::Bytes | Shape::WebSocket)
}

fn forbidden(caller: &Caller, route: &Route) -> Error {
    let needed = format!("{:?}", route.role).to_lowercase();
    Error::new(Code::Forbidden, format!("'{}' may not do this: it needs the role {needed}", caller.name))
}

#[cfg(test)]
mod tests;
