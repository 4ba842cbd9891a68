//! The host itself: what it has ([`facts`]), what VMs may need of it ([`offers`]) and whether it is fit to run VMs ([`check`]).
//!
//! Everything here reads `/proc`, `/sys` and files; nothing is changed. What cannot be read counts as absent, so that a
//! strange host still gets an answer.

pub mod check;
pub mod facts;
pub mod offers;
