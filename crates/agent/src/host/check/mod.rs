//! `vmkeep host check`: is this host fit, what is wrong, why it matters and the command that mends it.
//!
//! ```text
//!  gather(…) ── files, /proc, /sys, a few tools ──► XFacts ──► judge(&XFacts) ──► rows
//! ```
//! One file per group. Judging is pure, so every bad state has a test that needs no such host. Gathering never fails: what
//! cannot be read is a finding of its own or counts as absent.

mod cpu;
mod disk;
mod firmware;
mod kernel;
mod libvirt;
mod logs;
mod machines;
mod memory;
mod network;
pub mod ports;
mod row;
mod security;
mod time;
mod tools;
mod versions;
pub mod watchdog;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use vmkeep_api::body::PoolSpace;
use vmkeep_types::host::CheckRow;
use vmkeep_types::name::Name;

use crate::fenced::{Fenced, SOCKET};
use crate::hypervisor::Hypervisor;

/// What the checks are about, from the daemon's configuration.
#[derive(Clone, Debug)]
pub struct CheckInput {
    /// Folder of pool `default`.
    pub pool: PathBuf,
    /// Folder of the store.
    pub store: PathBuf,
    /// Where the API listens on TCP, when it does.
    pub tls_listen: Option<SocketAddr>,
    /// Where libvirt must listen for guests of other hosts, on a member of a cluster.
    pub migration_port: Option<u16>,
}

/// All rows, in the order in which a person would look. `pools`: those of this node that are in use.
pub async fn run(input: &CheckInput, pools: Vec<(Name, PoolSpace)>, hypervisor: &dyn Hypervisor) -> Vec<CheckRow> {
    let versions = hypervisor.versions().await.map_err(|e| e.to_string());
    let firewall = network::Firewall::gather().await;
    let machines = machines::gather(hypervisor).await;
    let gather = {
        let input = input.clone();
        move || {
            let mut rows = cpu::judge(&cpu::gather());
            rows.extend(memory::judge(&memory::gather()));
            rows.extend(kernel::judge(&kernel::gather()));
            rows.extend(versions::judge(&versions));
            rows.extend(machines.iter().flat_map(machines::judge));
            rows.extend(libvirt::judge(&libvirt::gather(versions.err())));
            rows.extend(firmware::judge(&firmware::gather()));
            rows.extend(disk::judge(&disk::gather(&input.pool, &input.store)));
            rows.extend(pools.iter().filter(|(name, _)| name.as_str() != "default").map(|(name, space)| disk::pool(name, *space)));
            rows.extend(security::judge(&security::gather(&input.pool)));
            rows.extend(network::judge(&network::gather(firewall)));
            rows.extend(ports::judge(&ports::gather(input.tls_listen, input.migration_port)));
            rows.extend(logs::judge(&logs::gather()));
            rows.extend(time::judge(&time::gather()));
            rows.extend(watchdog::judge(&watchdog::gather(guarded())));
            rows.extend(tools::judge(&tools::gather()));
            rows
        }
    };
    tokio::task::spawn_blocking(gather)
        .await
        .unwrap_or_else(|e| vec![row::fail("host-check", format!("the check stopped: {e}"), "this is a bug of vmkeep", None)])
}

/// Is the watchdog that is open ours? Asked where vmkeep-fenced listens when nothing else is said.
fn guarded() -> bool {
    Fenced::new(Path::new(SOCKET)).state().is_ok_and(|guard| guard.watchdog_ms > 0)
}

#[cfg(test)]
fn show(rows: &[CheckRow]) -> String {
    let mut out = String::new();
    for row in rows {
        let level = format!("{:?}", row.level).to_lowercase();
        out += &format!("{level} {}: {}\n", row.id, row.found);
        if !row.why.is_empty() {
            out += &format!("  {}\n", row.why);
        }
        if let Some(mend) = &row.mend {
            out += &format!("  $ {mend}\n");
        }
    }
    out
}

#[cfg(test)]
mod tests;
