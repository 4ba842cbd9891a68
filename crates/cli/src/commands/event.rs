//! `event list`, `events`: what happened, in words.

use clap::{Args, Subcommand};
use vmkeep_types::event::{Event, Level};

use super::watch::{Change, watch};
use super::{or_dash, pages};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Format, Row, Tone};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// List events
    #[command(visible_aliases = ["ls", "get"])]
    List(ListArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Go on with new events until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

impl Row for Event {
    const HEAD: &'static [&'static str] = &["TIME", "LEVEL", "OBJECT", "MESSAGE"];
    const WIDE: &'static [&'static str] = &["CODE", "NODE"];
    fn name(&self) -> String {
        format!("{}/{}", self.resource.kind, self.resource.name)
    }
    fn cells(&self) -> Vec<Cell> {
        let (level, tone) = match self.level {
            Level::Info => ("info", Tone::Plain),
            Level::Warn => ("warn", Tone::Warn),
            Level::Error => ("error", Tone::Bad),
        };
        vec![time::local(self.at).into(), Cell(level.into(), tone), self.name().into(), self.message.clone().into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.code.clone().into(), or_dash(self.node.as_ref()).into()]
    }
}

pub async fn run(ctx: &Ctx, command: EventCommand) -> Result<(), Failure> {
    match command {
        EventCommand::List(args) => list(ctx, args).await,
    }
}

pub async fn list(ctx: &Ctx, args: ListArgs) -> Result<(), Failure> {
    let events = pages::<Event>(ctx, "event.list", None).await?;
    if !args.watch {
        return ctx.printer.list(&events);
    }
    events.iter().try_for_each(|e| line(ctx, e))?;
    follow(ctx, || ctx.call("event.list")).await
}

/// New events as lines.
pub async fn follow<'a>(ctx: &'a Ctx, call: impl Fn() -> Result<vmkeep_api::client::Call<'a>, Failure>) -> Result<(), Failure> {
    watch::<Event>(ctx, call, |change| match change {
        Change::Put(event) => line(ctx, &event),
        Change::Deleted(_) => Ok(()),
    })
    .await
}

/// One event as one line, in the format that was asked for.
pub fn line(ctx: &Ctx, event: &Event) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Json => ctx.printer.out(&serde_json::to_string(event).map_err(|e| vmkeep_types::error::Error::internal(e.to_string()))?),
        Format::Yaml => ctx.printer.out(&format!("---\n{}", crate::printer::yaml(event)?.trim_end())),
        Format::Name => ctx.printer.out(&event.name()),
        Format::Table | Format::Wide => {
            let cells: Vec<String> = event.cells().into_iter().map(|c| ctx.printer.paint(&c.0, c.1)).collect();
            ctx.printer.out(&cells.join("  "));
        }
    }
    Ok(())
}
