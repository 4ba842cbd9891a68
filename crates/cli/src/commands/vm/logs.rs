//! `vm logs`, `vm events`.

use clap::{Args, ValueEnum};
use vmkeep_api::body::Page;
use vmkeep_types::event::Event;
use vmkeep_types::name::Name;

use crate::commands::event;
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// VM
    name: Name,
    /// Which log
    #[arg(long, value_enum, default_value = "serial")]
    source: Source,
    /// Last lines
    #[arg(short = 'n', long, default_value = "200", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    lines: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Source {
    /// What the guest wrote to its serial console
    Serial,
    /// What QEMU wrote
    Qemu,
    /// What vmkeep did with the VM
    Vmkeep,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// VM
    name: Name,
    /// Go on with new events until Ctrl-C
    #[arg(short, long)]
    watch: bool,
}

pub async fn logs(ctx: &Ctx, args: LogsArgs) -> Result<(), Failure> {
    let source = match args.source {
        Source::Serial => "serial",
        Source::Qemu => "qemu",
        Source::Vmkeep => return events(ctx, EventsArgs { name: args.name, watch: false }).await,
    };
    let text = ctx.call("vm.logs")?.field("name", &args.name).query("source", source).query("lines", args.lines).text().await?;
    ctx.printer.out_bytes(text.as_bytes());
    if !text.is_empty() && !text.ends_with('\n') {
        ctx.printer.out("");
    }
    Ok(())
}

pub async fn events(ctx: &Ctx, args: EventsArgs) -> Result<(), Failure> {
    let call = || Ok(ctx.call("vm.events")?.field("name", &args.name));
    let page: Page<Event> = call()?.answer().await?;
    if !args.watch {
        return ctx.printer.list(&page.items);
    }
    page.items.iter().try_for_each(|e| event::line(ctx, e))?;
    event::follow(ctx, call).await
}
