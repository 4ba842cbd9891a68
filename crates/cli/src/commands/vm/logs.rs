//! `vm logs`, `vm events`.

use clap::{Args, ValueEnum};
use vmkeep_api::body::EventView;
use vmkeep_types::name::Name;

use crate::commands::{event, listed};
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
    /// On a terminal too, print escape sequences of the guest as they are
    #[arg(long)]
    raw: bool,
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
        Source::Vmkeep => {
            let (mut events, _) = listed::<EventView>(ctx, &|| Ok(ctx.call("vm.events")?.field("name", &args.name))).await?;
            let first = events.len().saturating_sub(usize::try_from(args.lines).unwrap_or(usize::MAX));
            return ctx.printer.list(&events.split_off(first));
        }
    };
    ctx.printer.text_only("a log", "'--source vmkeep' has a format")?;
    let text = ctx.call("vm.logs")?.field("name", &args.name).query("source", source).query("lines", args.lines).text().await?;
    if args.raw {
        ctx.printer.out_bytes(text.as_bytes());
    } else {
        ctx.printer.out_foreign(&text);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        ctx.printer.out("");
    }
    Ok(())
}

pub async fn events(ctx: &Ctx, args: EventsArgs) -> Result<(), Failure> {
    let call = || Ok(ctx.call("vm.events")?.field("name", &args.name));
    if args.watch {
        return event::follow(ctx, &event::Chosen::default(), call).await;
    }
    let (events, _) = listed::<EventView>(ctx, &call).await?;
    ctx.printer.list(&events)
}
