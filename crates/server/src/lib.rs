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
//! | [`page`] | places in a list: what `next` says |
//! | [`view`] | records as they are shown; status is computed here and stored nowhere |
//! | [`feed`] | one watch of the store for all event streams |
//! | [`cache`] | VMs ready to be answered, kept true by the store's watch |
//! | [`reconcile`] | the leader's loop |
//! | [`auth`], [`audit`] | tokens and the log of who changed what |
//! | [`stonith`] | fence agents: a node's power, cut from outside |
//! | `clock` | how this host measures the silence of others |
//! | [`streams`] | how many event streams one caller has |
//! | [`gate`] | the way to a node's own router |

pub mod app;
pub mod audit;
pub mod auth;
pub mod cache;
mod clock;
pub mod cluster;
pub mod context;
pub mod feed;
pub mod gate;
pub mod http;
pub mod metrics;
pub mod page;
pub mod reconcile;
pub mod records;
pub mod stonith;
pub mod streams;
pub mod view;

pub use http::{router, to_its_end};
