//! `explain KIND.FIELD`: what a field of a manifest means, from the same schema that checks it. Needs no server.

use clap::Args;

use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Kind, or a field in it: vm, vm.disks, vm.disks.cache
    #[arg(value_name = "KIND[.FIELD]")]
    path: String,
}

pub fn run(ctx: &Ctx, args: &ExplainArgs) -> Result<(), Failure> {
    ctx.printer.text_only("an explanation", "for programs: GET /v1/schema, the same as docs/reference/manifest.schema.json")?;
    ctx.printer.out(vmkeep_types::explain::explain(&args.path)?.trim_end());
    Ok(())
}
