//! `vm exec`: a program in the guest, run by the guest agent. Its output and exit code are passed on.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use clap::Args;
use vmkeep_api::body::{ExecAnswer, ExecRequest};
use vmkeep_api::client::ANSWER_PATIENCE;
use vmkeep_types::error::Error;
use vmkeep_types::name::Name;
use vmkeep_types::units::Seconds;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

/// What is sent as the program's input at most.
const STDIN_BYTES_MAX: u64 = 1 << 20;

/// How long a guest command may take when nothing is said.
const DEFAULT_PATIENCE: Seconds = Seconds::new(60);

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// VM
    name: Name,
    /// Send this command's stdin to the program
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Program and arguments; no shell: for pipes use 'sh -c'
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(ctx: &Ctx, args: ExecArgs) -> Result<(), Failure> {
    if ctx.is_rehearsal(&format!("run {:?} in vm '{}'", args.command, args.name)) {
        return Ok(());
    }
    let stdin = if args.stdin { Some(read_input()?) } else { None };
    let timeout = ctx.global.timeout.unwrap_or(DEFAULT_PATIENCE);
    let request = ExecRequest { command: args.command, stdin, timeout: Some(timeout) };
    let patience = ANSWER_PATIENCE + Duration::from_secs(timeout.get());
    let answer: ExecAnswer = ctx.call("vm.exec")?.field("name", &args.name).json(&request).patience(patience).answer().await?;
    if matches!(ctx.printer.format, Format::Json | Format::Yaml) {
        ctx.printer.value(&answer)?;
    } else {
        ctx.printer.out_foreign(&answer.stdout);
        ctx.printer.err_foreign(&answer.stderr);
    }
    if answer.truncated {
        ctx.printer.warn("the output was cut at 1 MiB");
    }
    match (answer.exit_code, answer.signal) {
        (Some(0), _) => Ok(()),
        // 128 + signal, and the low byte of a code, as shells do it.
        (Some(code), _) => Err(Failure::Code(u8::try_from(code & 0xff).unwrap_or(1).max(1))),
        (None, Some(signal)) => Err(Failure::Code(u8::try_from(128 + signal).unwrap_or(u8::MAX))),
        (None, None) => Err(Error::refused("the guest does not say how the program ended").into()),
    }
}

fn read_input() -> Result<String, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::usage("--stdin reads a file or pipe", "like: vmkeep vm exec -i web -- tee /tmp/x < file"));
    }
    let mut text = String::new();
    std::io::stdin().lock().take(STDIN_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| Failure::io("cannot read stdin", &e))?;
    if text.len() as u64 > STDIN_BYTES_MAX {
        return Err(Failure::usage(format!("stdin is larger than {STDIN_BYTES_MAX} bytes"), "copy large files with ssh"));
    }
    Ok(text)
}
