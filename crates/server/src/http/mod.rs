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

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use vmkeep_api::routes::{Method, ROUTES, Route};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::record::Caller;

use crate::context::Server;
use call::Call;
use respond::problem;

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
    let path = request.uri().path();
    problem(Error::new(Code::NotFound, format!("there is no route {path}")).hint("GET /v1/openapi.json lists them"))
}

async fn wrong_method(request: Request) -> Response {
    let told = format!("{} is not for {}", request.method(), request.uri().path());
    problem(Error::new(Code::NotFound, told).hint("GET /v1/openapi.json lists the methods of each route"))
}

async fn serve(server: Arc<Server>, route: &'static Route, request: Request) -> Response {
    let begin = Instant::now();
    let path = request.uri().path().to_owned();
    let caller = request.extensions().get::<Caller>().cloned();
    let response = match caller.clone() {
        None => problem(Error::new(Code::Unauthenticated, "who are you?").hint("send `Authorization: Bearer TOKEN`")),
        Some(caller) if caller.role < route.role => problem(forbidden(&caller, route)),
        Some(caller) => match Call::new(server.clone(), route, caller, request).await {
            Ok(call) => handlers::handle(call).await.unwrap_or_else(problem),
            Err(error) => problem(error),
        },
    };
    let status = response.status().as_u16();
    server.metrics.note(route.id, status, begin.elapsed());
    if route.method != Method::Get || route.shape == vmkeep_api::routes::Shape::WebSocket {
        let nobody = || Caller { name: "nobody".into(), role: vmkeep_types::record::Role::Viewer };
        server.audit.note(&caller.unwrap_or_else(nobody), route.id, &path, status);
    }
    response
}

fn forbidden(caller: &Caller, route: &Route) -> Error {
    let needed = format!("{:?}", route.role).to_lowercase();
    Error::new(Code::Forbidden, format!("'{}' may not do this: it needs the role {needed}", caller.name))
}

#[cfg(test)]
mod tests;
