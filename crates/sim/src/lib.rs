//! A deterministic simulator of a whole cluster, around the state machines of `vmkeep_core::ha`.
//!
//! | module | is |
//! |---|---|
//! | [`world`] | the queue of events and the processes |
//! | [`store`], [`net`], [`host`], [`virt`], [`power`] | models: etcd, its network, a host, libvirt, power and watchdogs |
//! | [`check`] | invariants I1 to I10, looked at with every change |
//! | [`scenario`] | `vmkeep sim FILE`: a cluster, a script, the story |
//! | [`seeds`] | one number, one run of random faults |
//!
//! One u64 seed is one run: no clock, no hash order, no thread. docs/guide/sim.md is for users.

pub mod check;
pub mod dice;
pub mod host;
pub mod log;
pub mod net;
pub mod power;
pub mod scenario;
pub mod seeds;
pub mod store;
pub mod virt;
pub mod world;
