//! Every decision of vmkeep, as sync functions over values: no clock, no randomness, no async, no I/O.
//!
//! | module | decides |
//! |---|---|
//! | [`vm`] | what a node does next with one VM |
//! | [`boot`] | whose turn it is to start after a host boot |
//! | [`place`] | which node owns a VM, and what the leader writes next |
//! | [`ha`] | who is dead, and where its VMs run again |
//! | [`migrate`] | how a VM gets to another node, and what keeps it from that |
//! | [`change`] | how two wishes differ, and what a change costs |
//! | [`upgrade`] | may a rolling upgrade go on, and with whom |
//! | [`warn`] | what a wish will not do as it may be meant |
//!
//! Callers gather a view, call a function, carry out what it says, and look again. Doing the same thing twice does no harm.

pub mod boot;
pub mod change;
pub mod ha;
pub mod health;
pub mod migrate;
pub mod place;
pub mod upgrade;
pub mod vm;
pub mod warn;
