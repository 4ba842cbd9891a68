//! `host check`: what is right and wrong with the host, why, and what mends it. Fails when a row does.

use clap::Subcommand;
use vmkeep_api::body::HostCheck;
use vmkeep_types::host::{CheckLevel, CheckRow};

use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row, Tone};

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// What is right and wrong with the host; exit code 1 when a row fails
    Check,
}

impl Row for CheckRow {
    const HEAD: &'static [&'static str] = &["CHECK", "STATE", "FOUND"];
    const WIDE: &'static [&'static str] = &["WHY", "MEND"];
    fn name(&self) -> String {
        self.id.clone()
    }
    fn cells(&self) -> Vec<Cell> {
        vec![self.id.clone().into(), state(self.level), self.found.clone().into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.why.clone().into(), self.mend.clone().unwrap_or_default().into()]
    }
}

fn state(level: CheckLevel) -> Cell {
    match level {
        CheckLevel::Ok => Cell("ok".into(), Tone::Good),
        CheckLevel::Warn => Cell("warn".into(), Tone::Warn),
        CheckLevel::Fail => Cell("fail".into(), Tone::Bad),
    }
}

pub async fn run(ctx: &Ctx, command: HostCommand) -> Result<(), Failure> {
    let HostCommand::Check = command;
    let check: HostCheck = ctx.call("host.check")?.answer().await?;
    print(ctx, &check)?;
    let count = |level| check.rows.iter().filter(|r| r.level == level).count();
    let (warn, fail) = (count(CheckLevel::Warn), count(CheckLevel::Fail));
    ctx.printer.say(&format!("{} checks: {} ok, {warn} warn, {fail} fail", check.rows.len(), check.rows.len() - warn - fail));
    if fail > 0 { Err(Failure::Code(1)) } else { Ok(()) }
}

fn print(ctx: &Ctx, check: &HostCheck) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Json | Format::Yaml => return ctx.printer.value(check),
        _ => ctx.printer.list(&check.rows)?,
    }
    if ctx.printer.format != Format::Table {
        return Ok(());
    }
    // Below the table, so that a long reason does not spoil its columns.
    for row in check.rows.iter().filter(|r| r.level != CheckLevel::Ok) {
        let Cell(word, tone) = state(row.level);
        ctx.printer.out("");
        ctx.printer.out(&format!(
            "{} {}: {}",
            ctx.printer.paint(&word, tone),
            row.id,
            if row.why.is_empty() { &row.found } else { &row.why }
        ));
        if let Some(mend) = &row.mend {
            ctx.printer.out(&format!("     {mend}"));
        }
    }
    Ok(())
}
