//! The control plane.
//!
//! ```text
//!  listener (vmkeepd) ── Caller ──► http/ (table of routes: role, audit, limits) ──► app/<noun> (intent + operation, one txn)
//!                                      └── node's own things ──► gate ──► the node's router (console, VNC, stats …)
//!  reconcile/ (leader) ◄── store ──► agent
//! ```
//! | module | owns |
//! |---|---|
//! | [`http`] | every row of the route table: who may, what is read, how it answers |
//! | [`app`] | what each noun can do: a listing of it is the feature list |
//! | [`view`] | records as they are shown; status is computed here and stored nowhere |
//! | [`cache`] | VMs ready to be answered, kept true by the store's watch |
//! | [`reconcile`] | the leader's loop |
//! | [`auth`], [`audit`] | tokens and the log of who changed what |
//! | [`gate`] | the way to a node's own router |

pub mod app;
pub mod audit;
pub mod auth;
pub mod cache;
pub mod context;
pub mod gate;
pub mod http;
pub mod metrics;
pub mod reconcile;
pub mod view;

pub use http::router;
