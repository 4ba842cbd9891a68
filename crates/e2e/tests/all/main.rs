//! The real programs on real hosts.

mod adopt;
mod apart;
mod bad_input;
mod bench;
mod cluster;
mod consoles;
mod crash;
mod dead_host;
mod debian;
mod full;
mod going;
mod ha;
mod hello;
mod kept_running;
mod lab;
mod live_changes;
mod many;
mod on_etcd;
mod play;
mod recover;
mod remote;
mod rights;
mod three_hosts;
mod tidy;
mod upgrade;
mod vip;
