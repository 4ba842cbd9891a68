//! `vmkeep-bench`: how fast vmkeep is, as ratios to its peers in the same run on the same machine.
//!
//! ```text
//! vmkeep-bench store                                    commits, reads, watch latency of the embedded store; needs nothing
//! vmkeep-bench fill   --socket S --count 100            VMs that never run, to have something to read
//! vmkeep-bench api    --socket S [--incus-socket S]     one VM, the whole list: requests per second, p50, p99
//! vmkeep-bench rss    --socket S                        memory and idle CPU of the daemon behind the socket
//! vmkeep-bench watch  --socket S --vm NAME              libvirt event -> our watch's event
//! vmkeep-bench cli    --socket S --vm NAME              start of `vmkeep` -> its output, above the request
//! vmkeep-bench place  --nodes 1000 --vms 20000          the planner alone, in memory; needs nothing
//! vmkeep-bench cluster --nodes 1000 --vms 20000         real etcd and control plane, fake hypervisors; needs Debian's etcd-server
//! vmkeep-bench cluster … --lose 1                       the same, and hosts that lose their power at once
//! vmkeep-bench launch --socket S --image NAME           launch -> running, against `virsh create` of the same XML
//! vmkeep-bench migrate --vm NAME --to NODE …            a live migration, against `virsh migrate --live --p2p` of the same guest
//! ```
//! Each prints what it measured, and what was wanted of it where something was; `--check` makes a missed wish exit code 1.
//! It measures from outside: sockets, `/proc`, `virsh`. Build it, and what it measures, with `--release`.

mod api;
mod cli;
mod cluster;
mod daemon;
mod fill;
mod http;
mod launch;
mod migrate;
mod place;
mod report;
mod rss;
mod store;
#[cfg(test)]
mod tests;
mod virsh;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use report::{Format, Report};

#[derive(Parser)]
#[command(name = "vmkeep-bench", version, about = "Measures vmkeep, as ratios in one run")]
struct Cli {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, global = true)]
    output: Format,
    /// Exit with 1 when something wanted was missed.
    #[arg(long, global = true)]
    check: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Commits, reads and watch latency of the embedded store.
    Store(store::Args),
    /// Make VMs that never run, or remove them.
    Fill(fill::Args),
    /// Read one VM and the whole list, beside Incus if it is there.
    Api(api::Args),
    /// Memory and idle CPU of the daemon.
    Rss(rss::Args),
    /// From a libvirt event to the client.
    Watch(watch::Args),
    /// From the start of the CLI to its output.
    Cli(cli::Args),
    /// Choosing nodes in a large cluster that is in memory only.
    Place(place::Args),
    /// A whole cluster on this machine, with hypervisors that are fakes.
    Cluster(cluster::Args),
    /// From a launch to a running domain, against `virsh create`.
    Launch(launch::Args),
    /// A live migration, against `virsh migrate --live --p2p`.
    Migrate(migrate::Args),
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if cfg!(debug_assertions) {
        eprintln!("vmkeep-bench: a debug build; its numbers say little");
    }
    match run(cli.command).await {
        Ok(report) => {
            print!("{}", report.show(cli.output));
            if cli.check && report.missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("vmkeep-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(command: Command) -> anyhow::Result<Report> {
    match command {
        Command::Store(args) => store::run(&args).await,
        Command::Fill(args) => fill::run(&args).await,
        Command::Api(args) => api::run(&args).await,
        Command::Rss(args) => rss::run(&args).await,
        Command::Watch(args) => watch::run(&args).await,
        Command::Cli(args) => cli::run(&args).await,
        Command::Place(args) => place::run(&args),
        Command::Cluster(args) => cluster::run(&args).await,
        Command::Launch(args) => launch::run(&args).await,
        Command::Migrate(args) => migrate::run(&args).await,
    }
}
