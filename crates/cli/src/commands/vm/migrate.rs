//! `vm migrate`: to another host, while it runs.

use clap::Args;
use vmkeep_api::body::{ActionRequest, MovableAnswer};
use vmkeep_types::migration::{MigrateOptions, MoveManner};
use vmkeep_types::name::Name;
use vmkeep_types::units::ByteCount;

use super::power;
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// VMs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
    /// Node to move to; default: the one that placement chooses
    #[arg(long, value_name = "NODE")]
    to: Option<Name>,
    /// Bytes per second at most, like 100M
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<ByteCount>,
    /// Slow the guest down when it writes faster than its memory can be copied
    #[arg(long)]
    auto_converge: bool,
    /// Shut down, moved, started again
    #[arg(long, conflicts_with = "or_cold")]
    cold: bool,
    /// Live if that can be, else cold
    #[arg(long)]
    or_cold: bool,
}

pub async fn run(ctx: &Ctx, args: MigrateArgs) -> Result<(), Failure> {
    let manner = match (args.cold, args.or_cold) {
        (true, _) => MoveManner::Cold,
        (false, true) => MoveManner::LiveOrCold,
        (false, false) => MoveManner::Live,
    };
    let options =
        MigrateOptions { to: args.to, manner, bandwidth: args.bandwidth, auto_converge: args.auto_converge, timeout: ctx.global.timeout };
    let request = ActionRequest { migrate: Some(options), ..ActionRequest::default() };
    power::all(ctx, "migrate", &args.names, &request).await
}

/// For `vm show`: in one line per way.
pub fn words(movable: &MovableAnswer) -> String {
    if movable.live.why_not.is_empty() {
        let warnings: String = movable.warnings.iter().map(|w| format!("\n{w}")).collect();
        return format!("yes{warnings}");
    }
    let because = movable.live.why_not.join("\n");
    let cold = if movable.cold.why_not.is_empty() { "\ncold it can move: vm migrate --cold" } else { "" };
    format!("no, because {because}{cold}")
}
