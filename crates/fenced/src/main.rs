//! `vmkeep-fenced`: owns the watchdog, and pets it only while the cluster has heard of this host.
//!
//! ```text
//!  agent ── unix socket ──► desk ──► guard ── core::ha::fenced ──► cgroup (SIGKILL to the VMs)
//!            (same user)              │                       └──► dog (/dev/watchdogN)
//!  SIGHUP ─► succession (exec)        └─ pipe ─► recorder (a thread: file, kernel log, pstore)
//! ```
//! One thread decides and acts. It is locked in memory, runs before everything else (SCHED_FIFO), allocates nothing after its
//! start and calls nothing that waits for a disk: what is written goes through a pipe to the recorder. Its death while armed is a
//! reset of the host, because nobody closes the watchdog; so is any error that it cannot help.

mod args;
mod cgroup;
mod clock;
mod desk;
mod dog;
mod guard;
mod realtime;
mod recorder;
mod succession;

use std::process::ExitCode;

use clap::Parser;

use args::Args;

#[global_allocator]
static ALLOCATOR: realtime::Counting = realtime::Counting;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.status {
        guard::status(&args);
        return ExitCode::SUCCESS;
    }
    let ended = if args.check { guard::look(&args) } else { guard::run(&args) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("vmkeep-fenced: {why}");
            ExitCode::FAILURE
        }
    }
}
