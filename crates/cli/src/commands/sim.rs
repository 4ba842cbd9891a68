//! `sim FILE`: what happens to a cluster when its nodes fail. Offline: nothing of the host and no server is asked.

use clap::Args;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Format;

#[derive(Debug, Args)]
pub struct SimArgs {
    /// Scenario: nodes, VMs, rules and a script of what fails; - reads stdin
    #[arg(value_name = "FILE")]
    file: String,
    /// Delays, boot times and drifts of this number; the same one gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

pub fn run(ctx: &Ctx, args: &SimArgs) -> Result<(), Failure> {
    let text = match args.file.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()),
        file => std::fs::read_to_string(file),
    };
    let text =
        text.map_err(|e| Failure::usage(format!("cannot read {}: {e}", args.file), "name a scenario file; examples/sim has twenty"))?;
    let report = vmkeep_sim::scenario::run(&args.file, &text, args.seed)?;
    match ctx.printer.format {
        Format::Table | Format::Wide => ctx.printer.out_bytes(report.story().as_bytes()),
        Format::Json => ctx.printer.out_bytes(report.json().as_bytes()),
        Format::Yaml => ctx.printer.value(&report.facts)?,
        Format::Name => return Err(Failure::usage("a run has no name", "-o story or -o json")),
    }
    if report.facts.violations.is_empty() { Ok(()) } else { Err(Failure::Code(1)) }
}
