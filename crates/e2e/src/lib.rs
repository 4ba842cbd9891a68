//! Real hosts for tests: namespaces with their own libvirtd, our real daemon and CLI inside (tests/lab/nshost).
//!
//! A [`Host`] goes down with its process, even by SIGKILL. The `tiny` image is built once per machine by a daemon that has
//! the machine's network, and kept in the user's cache.

pub mod cluster;
pub mod ha;
pub mod host;
pub mod image;
pub mod net;
pub mod own_load;
pub mod ticks;
pub mod wait;
pub mod witness;
