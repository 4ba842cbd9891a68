//! `vm logs`, `vm events`.

use clap::{Args, ValueEnum};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use vmkeep_api::body::EventView;
use vmkeep_api::client::Call;
use vmkeep_types::name::Name;

use crate::commands::{event, listed};
use crate::context::Ctx;
use crate::failure::Failure;

const PIPE_BYTES: usize = 64 << 10;

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
    /// Go on with what is written until Ctrl-C
    #[arg(short, long)]
    follow: bool,
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
        Source::Vmkeep if args.follow => return events(ctx, EventsArgs { name: args.name, watch: true }).await,
        Source::Vmkeep => {
            let (mut events, _) = listed::<EventView>(ctx, &|| Ok(ctx.call("vm.events")?.field("name", &args.name))).await?;
            let first = events.len().saturating_sub(usize::try_from(args.lines).unwrap_or(usize::MAX));
            return ctx.printer.list(&events.split_off(first));
        }
    };
    ctx.printer.text_only("a log", "'--source vmkeep' has a format")?;
    let call = ctx.call("vm.logs")?.field("name", &args.name).query("source", source).query("lines", args.lines);
    if args.follow {
        return follow(ctx, call.query("follow", true), args.raw).await;
    }
    let text = call.text().await?;
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

/// Line by line, so that no escape sequence is torn; `raw` as it comes.
async fn follow(ctx: &Ctx, call: Call<'_>, raw: bool) -> Result<(), Failure> {
    let (mut into, from) = tokio::io::duplex(PIPE_BYTES);
    let download = async move { call.download(&mut into, &|_, _| {}).await };
    let print = async {
        let (mut from, mut piece) = (BufReader::new(from), Vec::new());
        loop {
            let read = if raw { from.read_buf(&mut piece).await } else { from.read_until(b'\n', &mut piece).await };
            // The end of the pipe, which does not fail.
            if read.unwrap_or(0) == 0 {
                return;
            }
            if raw {
                ctx.printer.out_bytes(&piece)
            } else {
                ctx.printer.out_foreign(&String::from_utf8_lossy(&piece))
            }
            piece.clear();
        }
    };
    let (downloaded, ()) = tokio::join!(download, print);
    Ok(downloaded.map(drop)?)
}

pub async fn events(ctx: &Ctx, args: EventsArgs) -> Result<(), Failure> {
    let call = || Ok(ctx.call("vm.events")?.field("name", &args.name));
    if args.watch {
        return event::follow(ctx, &event::Chosen::default(), call).await;
    }
    let (events, _) = listed::<EventView>(ctx, &call).await?;
    ctx.printer.list(&events)
}
