//! The real programs on real hosts.

mod adopt;
mod bad_input;
mod crash;
mod debian;
mod hello;
mod kept_running;
mod live_changes;
mod many;
mod remote;
mod tidy;
