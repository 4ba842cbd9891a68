//! `op list|show|cancel`: long work.

use clap::Subcommand;
use vmkeep_types::ids::OperationId;
use vmkeep_types::migration::MoveProgress;
use vmkeep_types::operation::{OpState, Operation};
use vmkeep_types::units::ByteCount;

use super::{pages, show};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Cell, Row, Tone};
use crate::time;

#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// List operations, the newest last
    #[command(visible_aliases = ["ls", "get"])]
    List,
    /// Show one operation; with --wait follow it to its end
    Show {
        /// Operation to show
        id: OperationId,
    },
    /// Stop an operation that has not begun or can stop
    #[command(visible_alias = "delete", visible_alias = "rm")]
    Cancel {
        /// Operation to cancel
        id: OperationId,
    },
}

impl Row for Operation {
    const HEAD: &'static [&'static str] = &["ID", "KIND", "OBJECT", "STATE", "AGE", "LAST"];
    const WIDE: &'static [&'static str] = &["BY", "STARTED"];
    fn name(&self) -> String {
        self.id.to_string()
    }
    fn cells(&self) -> Vec<Cell> {
        let (word, tone) = state(self.state);
        let last = self.error.as_ref().map(|e| &e.message).or(self.blocked.as_ref()).or(self.steps.last());
        vec![
            self.id.into(),
            self.kind.clone().into(),
            format!("{}/{}", self.resource.kind, self.resource.name).into(),
            Cell(word.into(), tone),
            time::age(self.created_at, jiff::Timestamp::now()).into(),
            last.cloned().unwrap_or_default().into(),
        ]
    }
    fn wide(&self) -> Vec<Cell> {
        vec![self.by.clone().into(), time::local(self.created_at).into()]
    }
}

fn state(state: OpState) -> (&'static str, Tone) {
    match state {
        OpState::Pending => ("pending", Tone::Warn),
        OpState::Running => ("running", Tone::Plain),
        OpState::Done => ("done", Tone::Good),
        OpState::Failed => ("failed", Tone::Bad),
        OpState::Cancelled => ("cancelled", Tone::Dim),
    }
}

pub async fn run(ctx: &Ctx, command: OpCommand) -> Result<(), Failure> {
    match command {
        OpCommand::List => ctx.printer.list(&pages::<Operation>(ctx, "op.list", None).await?),
        OpCommand::Show { id } => {
            let mut op: Operation = ctx.call("op.get")?.field("id", id).answer().await?;
            if ctx.global.wait {
                op = ctx.follow_all(vec![op], ctx.global.timeout).await?.pop().expect("one went in");
            }
            print(ctx, &op)
        }
        OpCommand::Cancel { id } => {
            if ctx.is_rehearsal(&format!("cancel operation {id}")) {
                return Ok(());
            }
            let op: Operation = ctx.call("op.cancel")?.field("id", id).answer().await?;
            ctx.printer.say(&format!("operation {id} is {}", state(op.state).0));
            Ok(())
        }
    }
}

/// What a migration has against it: a guest that writes faster than the link carries never comes to its end.
pub fn guest_writes(copying: &MoveProgress) -> String {
    let rate = ByteCount::from_bytes(copying.dirty_rate).human();
    format!("writes {rate}/s to its memory; would stand still for {} ms now", copying.expected_downtime_ms)
}

fn print(ctx: &Ctx, op: &Operation) -> Result<(), Failure> {
    let error = op.error.as_ref();
    let card = [
        ("Id", op.id.to_string()),
        ("Kind", op.kind.clone()),
        ("Object", format!("{}/{}", op.resource.kind, op.resource.name)),
        ("State", state(op.state).0.into()),
        ("Waits for", op.blocked.clone().unwrap_or_default()),
        ("Progress", op.progress.map(|p| format!("{} of {}", p.done, p.total)).unwrap_or_default()),
        ("Guest", op.copying.as_ref().map(guest_writes).unwrap_or_default()),
        ("Steps", op.steps.join("\n")),
        ("Error", error.map(ToString::to_string).unwrap_or_default()),
        ("Hint", error.and_then(|e| e.hint.clone()).unwrap_or_default()),
        ("By", op.by.clone()),
        ("Started", time::local(op.created_at)),
        ("Ended", op.ended_at.map(time::local).unwrap_or_default()),
    ];
    show(ctx, op, &card)
}
