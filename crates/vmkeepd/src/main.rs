//! `vmkeepd`: control plane and node agent, beside libvirt. One process on a host alone, one each (`--role`) in a cluster.
//!
//! ```text
//!  unix socket ─ peer credentials ─┐          same process: a call
//!  TCP + TLS ── bearer token ──────┴► server router ─gate─► node router
//!                                        │    other host: mutual TLS │
//!                                      store ◄─ reconcile    agent runtime ─► libvirt
//! ```
//! Its end, orderly or not, never touches a VM: guests are libvirt's children and the next start goes on from the store and
//! from what libvirt says.

mod cluster;
mod config;
mod daemon;
mod gate;
mod guests;
mod lease;
mod listen;
mod log;
mod member;
mod mtls;
mod notify;
mod peer;
mod seal;
mod tls;
mod users;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use vmkeep_types::ha::Farewell;

use config::{Config, NodeRole};
use daemon::Ended;

#[derive(Debug, Parser)]
#[command(name = "vmkeepd", version, about = "Keeps this host's virtual machines as they are wished for")]
pub struct Args {
    /// Configuration file; a missing one at the default place means all defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
    /// Run this role alone: in a cluster each has a process of its own. Without it: all roles of the host in one process
    #[arg(long)]
    role: Option<NodeRole>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Host shutdown (vmkeep-guests.service): stop restarts, shut all VMs down in order, kill what is left
    GuestsShutdown {
        /// Only when systemd says that the host is going down: a removed or upgraded package must stop no VM
        #[arg(long)]
        if_host_stops: bool,
        /// What the cluster is told, instead of what systemd's jobs say
        #[arg(long, value_name = "WHY")]
        why: Option<Why>,
    },
    /// Call a host shutdown off: VMs may start again
    GuestsResume,
    /// Does the API answer on this host's socket? For keepalived
    CheckApi,
}

/// Why the host goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Why {
    /// For longer
    Shutdown,
    /// It comes back by itself
    Reboot,
}

impl From<Why> for Farewell {
    fn from(why: Why) -> Self {
        match why {
            Why::Shutdown => Self::Shutdown,
            Why::Reboot => Self::Reboot,
        }
    }
}

fn main() -> ExitCode {
    // One that began anew is `exe` to ps and pidof else.
    let _ = nix::sys::prctl::set_name(c"vmkeepd");
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmkeepd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The same program with the same arguments in the same process: systemd sees no end. Comes back only with an error.
fn anew() -> anyhow::Error {
    let mut args = std::env::args_os();
    let mut program = std::process::Command::new("/proc/self/exe");
    if let Some(name) = args.next() {
        program.arg0(name);
    }
    let error = program.args(args).exec();
    anyhow::Error::new(error).context("cannot begin anew")
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config { only: args.role, ..Config::load(args.config.as_deref())? };
    if args.check_config {
        println!("{}: fine", config.source.display());
        return Ok(());
    }
    match args.command {
        None => match daemon::run(config)? {
            Ended::Stopped => Ok(()),
            Ended::Restart => Err(anew()),
        },
        Some(Command::GuestsShutdown { if_host_stops, why }) => {
            if if_host_stops && !guests::host_is_stopping() {
                println!("the host is not going down: VMs go on");
                return Ok(());
            }
            let why = why.map_or_else(guests::farewell, Farewell::from);
            guests::ask(&[config.node_socket(), config.socket], &guests::shutdown_route(why)).context("VMs were not shut down")
        }
        Some(Command::CheckApi) => guests::look(&config.socket, "/v1/version"),
        Some(Command::GuestsResume) => guests::ask(&[config.node_socket(), config.socket], "/n/guests/resume"),
    }
}
