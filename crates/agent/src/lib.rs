//! One node: its hypervisor, volumes, networks and host, driven by the orders that the control plane wrote for it.
//!
//! ```text
//!  store n/NODE/order/* ──watch──► runtime ──► core::vm::plan ──► executor ──► Hypervisor / pool / net
//!        n/NODE/task/*  ──watch──►    │                              │
//!        n/NODE/seen/*  ◄─────────────┴────────── Observed ◄─────────┘  (libvirt events wake the runtime)
//! ```
//! Only this crate knows libvirt. What libvirt says wins over memory: at start-up the agent reads the domains that exist; it
//! never touches a domain without vmkeep metadata.

pub mod domain;
pub mod fenced;
pub mod host;
pub mod http;
pub mod hypervisor;
pub mod image;
pub mod net;
pub mod pool;
#[doc(hidden)]
pub mod probe;
pub mod runtime;
pub mod seed;
