//! `cluster balance`: proposals; nothing is moved.

use clap::Args;
use vmkeep_api::place::{BalanceAnswer, ProposedMove};

use crate::commands::joined;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format};

#[derive(Debug, Args)]
#[command(
    after_help = "Needs --dry-run: vmkeep proposes, and people move. Pressure is the worse of CPU and memory, with the time in which programs waited."
)]
pub struct BalanceArgs {}

pub async fn run(ctx: &Ctx, BalanceArgs {}: BalanceArgs) -> Result<(), Failure> {
    if !ctx.global.dry_run {
        return Err(Failure::usage("vmkeep does not move VMs by itself", "'vmkeep cluster balance --dry-run' shows what would help"));
    }
    let answer: BalanceAnswer = ctx.call("place.balance")?.answer().await?;
    if !matches!(ctx.printer.format, Format::Table | Format::Wide) {
        return ctx.printer.value(&answer);
    }
    if !answer.not_measured.is_empty() {
        ctx.printer.warn(&format!("no fresh measurement from {}: nothing is moved from or to them", joined(&answer.not_measured)));
    }
    if answer.moves.is_empty() {
        ctx.printer.say("no move would help enough");
        let rows = answer.pressure.iter().map(|(node, pressure)| vec![node.to_string().into(), percent(*pressure).into()]).collect();
        ctx.printer.table(&["NODE", "PRESSURE"], rows);
        return Ok(());
    }
    ctx.printer.table(&["VM", "FROM", "PRESSURE", "TO", "PRESSURE", "GAIN"], answer.moves.iter().map(row).collect());
    Ok(())
}

fn row(found: &ProposedMove) -> Vec<Cell> {
    let change = |before, after| format!("{} -> {}", percent(before), percent(after));
    vec![
        found.vm.to_string().into(),
        found.from.to_string().into(),
        change(found.from_before, found.from_after).into(),
        found.to.to_string().into(),
        change(found.to_before, found.to_after).into(),
        percent(found.gain).into(),
    ]
}

fn percent(permille: u32) -> String {
    format!("{}.{}%", permille / 10, permille % 10)
}
