//! High availability: who is dead, and where its VMs run again. Never two copies of one VM, whatever fails.
//!
//! ```text
//!                 store (transactions are the only truth)
//!        renew, claim, promise ▲   ▲ seal, prove, place
//!                              │   │
//!  fenced ◄── t_send ── agent ─┘   └─ candidate (3 to 5; one leads)
//!    │ pets, kills        │ calls
//!  watchdog             libvirt
//! ```
//! | module | is |
//! |---|---|
//! | [`agent`] | the node's part |
//! | [`fenced`] | the watchdog's guard: fixed-size, allocation-free |
//! | [`candidate`] | the leader's part, and what every candidate hears |
//! | [`life`] | of an agent: may it live on, or begin anew |
//! | [`ready`] | of a node: may it be given VMs, or must it arm first |
//! | [`vigil`] | of a candidate: silence, seals, proofs |
//! | [`brake`] | how many may be silent at once |
//! | [`attempts`] | of a candidate: what is tried on nodes from elsewhere |
//! | [`pings`] | who answers pings while many are silent |
//! | [`turns`] | whose turn it is when many VMs have lost their nodes |
//! | [`timers`] | profiles, and the inequality that carries the promise |
//! | [`record`] | keys, values and transactions |
//! | [`clock`] | how a host measures time |
//! | [`weakness`] | guards that the simulator can take away |
//!
//! All three are `step(now, event) -> actions`: no clock, no I/O, no randomness. The simulator (`vmkeep-sim`) and the daemon
//! drive the same code. docs/concepts/ha.md tells the protocol.

pub mod agent;
pub mod attempts;
pub mod brake;
pub mod candidate;
pub mod clock;
pub mod fenced;
pub mod life;
pub mod pings;
pub mod ready;
pub mod record;
pub mod timers;
pub mod turns;
pub mod vigil;
pub mod weakness;
