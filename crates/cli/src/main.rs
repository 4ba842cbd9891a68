//! `vmkeep`, the command line. No libvirt inside: it talks to the API and runs as well on a laptop.
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | the grammar `vmkeep NOUN VERB`, global options |
//! | [`commands`] | one file per verb or group of verbs: its arguments and what it does |
//! | [`context`] | what every command has: client, printer, waiting on operations, asking before destroying |
//! | [`printer`] | stdout is data, stderr is talk; colours, tables, `-o` |
//! | [`plain`] | text from guests, made harmless for a terminal |
//! | [`failure`] | errors and exit codes |
//! | [`files`] | manifests read from files, directories and stdin, and `@file` in them |
//! | [`terminal`] | raw mode that is always undone |

mod cli;
mod commands;
mod context;
mod failure;
mod fields;
mod files;
mod plain;
mod printer;
mod progress;
mod terminal;
mod time;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::context::Ctx;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ctx = Ctx::new(cli.global);
    let result = runtime.block_on(commands::run(&ctx, cli.command));
    // A thread may sit in a read of the terminal: it is left behind.
    runtime.shutdown_background();
    let code = match result {
        Ok(()) => 0,
        Err(failure) => failure.report(&ctx.printer),
    };
    ExitCode::from(code)
}
