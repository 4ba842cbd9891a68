//! The nouns of vmkeep: typed ids, units, names, specs, stored records and errors.
//!
//! No I/O, no clock, no randomness. Every other crate speaks in these types; what is decided from them lives in
//! `vmkeep-core`, where they are stored in `vmkeep-store`, how they travel in `vmkeep-api`.
//!
//! | module | owns |
//! |---|---|
//! | [`units`] | byte counts and durations as people write them |
//! | [`name`], [`ids`] | names of objects, typed uids, generations and revisions |
//! | [`vm`], [`image`], [`network`], [`pool`] | the wishes (`Spec`) |
//! | [`record`], [`order`], [`observed`] | what is stored: the wish, our decision, the agent's word |
//! | [`migration`], [`drain`] | a VM on its way to another node, a node that all leave |
//! | [`operation`], [`event`] | long work and history |
//! | [`host`] | facts of a host and the rows of `host check` |
//! | [`cluster`] | members of a cluster, joining and its state |
//! | [`ha`] | deaths of nodes and what came of them |
//! | [`node`], [`placement`] | what people decide about nodes, what is measured on them, where VMs may run |
//! | [`stonith`] | how a node's power is cut from outside |
//! | [`error`] | the one error at the border |
//! | [`manifest`], [`check`], [`explain`] | text to specs, all problems at once, and help on fields |
//! | [`user_data`] | what cloud-init takes a text for |
//! | [`nearest`] | "did you mean" |

pub mod addresses;
pub mod check;
pub mod cluster;
pub mod drain;
pub mod error;
pub mod event;
pub mod explain;
pub mod ha;
pub mod hash;
pub mod host;
pub mod ids;
pub mod image;
pub mod manifest;
pub mod migration;
pub mod name;
pub mod nearest;
pub mod network;
pub mod node;
pub mod observed;
pub mod operation;
pub mod order;
pub mod placement;
pub mod pool;
pub mod record;
pub mod scalar;
pub mod secret;
pub mod stonith;
pub mod units;
pub mod user_data;
pub mod vm;
