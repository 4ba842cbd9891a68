//! `event list|show`, `events`: what happened, in words.

use std::collections::BTreeSet;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use uuid::Uuid;
use vmkeep_api::body::EventView;
use vmkeep_api::client::Call;
use vmkeep_types::event::Level;
use vmkeep_types::units::Seconds;

use super::watch::{Change, watch};
use super::{or_dash, pages, show, word};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::plain::one_line;
use crate::printer::{Cell, Format, Row, Tone};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// List events
    #[command(visible_aliases = ["ls", "get"])]
    List(ListArgs),
    /// Show one event
    Show {
        /// Its id, from 'vmkeep event list -o wide'
        #[arg(value_parser = event_id)]
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Go on with new events until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    #[command(flatten)]
    chosen: Chosen,
}

/// Which of the events that there are.
#[derive(Debug, Default, Args)]
pub struct Chosen {
    /// Only the last N
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Only those of the last 90s, 10m, 2h
    #[arg(long, value_name = "AGO")]
    since: Option<Seconds>,
    /// Only of this level and above
    #[arg(long, value_enum)]
    level: Option<LevelArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LevelArg {
    Info,
    Warn,
    Error,
}

impl Chosen {
    fn has(&self, view: &EventView, now: Timestamp) -> bool {
        let high = |level: Level| match level {
            Level::Info => LevelArg::Info as u8,
            Level::Warn => LevelArg::Warn as u8,
            Level::Error => LevelArg::Error as u8,
        };
        let age_ms = now.duration_since(view.event.at).as_millis();
        self.level.is_none_or(|least| high(view.event.level) >= least as u8)
            && self.since.is_none_or(|since| age_ms <= i128::from(since.millis()))
    }

    /// In their order.
    fn of(&self, events: Vec<EventView>) -> Vec<EventView> {
        let now = Timestamp::now();
        let all: Vec<EventView> = events.into_iter().filter(|event| self.has(event, now)).collect();
        let passed = self.lines.map_or(0, |lines| all.len().saturating_sub(lines));
        all.into_iter().skip(passed).collect()
    }
}

/// It goes into a path.
fn event_id(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
    if fine { Ok(text.to_owned()) } else { Err("an event's id has letters, digits, '.' and '-'".into()) }
}

impl Row for EventView {
    const HEAD: &'static [&'static str] = &["TIME", "LEVEL", "OBJECT", "MESSAGE"];
    const WIDE: &'static [&'static str] = &["CODE", "NODE", "ID"];
    fn name(&self) -> String {
        format!("{}/{}", self.event.resource.kind, self.event.resource.name)
    }
    fn cells(&self) -> Vec<Cell> {
        let (level, tone) = match self.event.level {
            Level::Info => ("info", Tone::Plain),
            Level::Warn => ("warn", Tone::Warn),
            Level::Error => ("error", Tone::Bad),
        };
        vec![time::local(self.event.at).into(), Cell(level.into(), tone), self.name().into(), self.event.message.clone().into()]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.event.code.clone().into(), or_dash(self.event.node.as_ref()).into(), self.id.clone().into()]
    }
}

pub async fn run(ctx: &Ctx, command: EventCommand) -> Result<(), Failure> {
    match command {
        EventCommand::List(args) => list(ctx, args).await,
        EventCommand::Show { id } => show_one(ctx, &ctx.call("event.get")?.field("id", &id).answer().await?),
    }
}

pub async fn list(ctx: &Ctx, args: ListArgs) -> Result<(), Failure> {
    if args.watch {
        return follow(ctx, &args.chosen, || ctx.call("event.list")).await;
    }
    ctx.printer.list(&args.chosen.of(pages::<EventView>(ctx, "event.list", None).await?))
}

/// What there is and then new events, as lines; each once, however often the server tells it.
pub async fn follow<'a>(ctx: &'a Ctx, chosen: &Chosen, call: impl Fn() -> Result<Call<'a>, Failure>) -> Result<(), Failure> {
    let mut told = Told::default();
    watch::<EventView>(ctx, call, |change| match change {
        Change::All(events) => chosen.of(events.to_vec()).iter().filter(|e| told.is_new(e)).try_for_each(|e| line(ctx, e)),
        Change::Put(event) if told.is_new(&event) && chosen.has(&event, event.event.at) => line(ctx, &event),
        Change::Put(_) | Change::Deleted(_) => Ok(()),
    })
    .await
}

/// Events that are remembered as told. A list after a break may hold more; what is older than all of these is not told again.
const TOLD_MAX: usize = 20_000;

/// The newest events that were told: when, of what, which.
#[derive(Default)]
struct Told(BTreeSet<(Timestamp, Uuid, String)>);

impl Told {
    fn is_new(&mut self, view: &EventView) -> bool {
        let key = (view.event.at, view.event.resource.uid, view.event.code.clone());
        let full = self.0.len() == TOLD_MAX;
        if full && self.0.first().is_some_and(|oldest| key < *oldest) {
            return false;
        }
        let is_new = self.0.insert(key);
        if is_new && full {
            self.0.pop_first();
        }
        is_new
    }
}

fn show_one(ctx: &Ctx, view: &EventView) -> Result<(), Failure> {
    let event = &view.event;
    let card = [
        ("Time", time::local(event.at)),
        ("Level", word(&event.level)),
        ("Object", view.name()),
        ("Project", event.resource.project.to_string()),
        ("Code", event.code.clone()),
        ("Message", event.message.clone()),
        ("Node", event.node.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("Object id", event.resource.uid.to_string()),
        ("Id", view.id.clone()),
    ];
    show(ctx, view, &card)
}

/// One event as one line, in the format that was asked for.
pub fn line(ctx: &Ctx, event: &EventView) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Json => ctx.printer.out(&serde_json::to_string(event).map_err(|e| vmkeep_types::error::Error::internal(e.to_string()))?),
        Format::Yaml => ctx.printer.out(&format!("---\n{}", crate::printer::yaml(event)?.trim_end())),
        Format::Name => ctx.printer.out(&event.name()),
        Format::Table | Format::Wide => {
            let cells: Vec<String> = event.cells().into_iter().map(|c| ctx.printer.paint(&one_line(&c.0), c.1)).collect();
            ctx.printer.out(&cells.join("  "));
        }
    }
    Ok(())
}
