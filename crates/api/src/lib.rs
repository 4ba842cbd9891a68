//! The HTTP contract of vmkeep: routes and bodies of `/v1`, the OpenAPI document made from them, a typed client, and
//! waiting on operations.
//!
//! | module | owns |
//! |---|---|
//! | [`routes`] | the route table, as data: server, client, OpenAPI and the route tests read the same rows |
//! | [`body`] | request and answer bodies that are not plain records |
//! | [`place`] | bodies about placement |
//! | [`secret`] | bodies about the keys of secrets |
//! | [`problem`] | errors as problem+json (RFC 9457) |
//! | [`openapi`] | the OpenAPI 3.1 document |
//! | [`client`] | typed client over unix socket or HTTPS; [`follow`] waits on operations |

pub mod body;
pub mod client;
pub mod follow;
pub mod ha;
pub mod openapi;
pub mod place;
pub mod problem;
pub mod routes;
pub mod secret;
