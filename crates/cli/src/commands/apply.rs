//! `apply`, `plan`: manifests to the server, all problems at once, then every operation to its end.

use std::path::PathBuf;

use clap::Args;
use vmkeep_api::body::{ApplyAction, ApplyAnswer, ApplyRequest, ApplyResult, ChangeWhen};
use vmkeep_types::error::{Error, Problem};
use vmkeep_types::manifest::{Document, Manifest};
use vmkeep_types::name::Name;
use vmkeep_types::operation::OpState;
use vmkeep_types::vm::VmSpec;

use crate::commands::vm::{self, power};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::files::read_manifests;
use crate::printer::{Format, Tone};

#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// File or directory of manifests, '-' = stdin; may be repeated
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Restart VMs (cold) where a change needs it
    #[arg(long)]
    restart: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// File or directory of manifests, '-' = stdin; may be repeated
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub async fn plan(ctx: &Ctx, args: PlanArgs) -> Result<(), Failure> {
    let answer = send(ctx, &read_manifests(&args.files)?, Write::Nothing).await?;
    print_plan(ctx, &answer)
}

pub async fn apply(ctx: &Ctx, args: ApplyArgs) -> Result<(), Failure> {
    let documents = read_manifests(&args.files)?;
    let write = match (ctx.global.dry_run, args.restart) {
        (true, _) => Write::Nothing,
        (false, true) => Write::AndRestart,
        (false, false) => Write::Wishes,
    };
    let answer = send(ctx, &documents, write).await?;
    if write == Write::Nothing {
        return print_plan(ctx, &answer);
    }
    finish(ctx, answer, write).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    Nothing,
    Wishes,
    AndRestart,
}

async fn send(ctx: &Ctx, documents: &[Document], write: Write) -> Result<ApplyAnswer, Failure> {
    let request = ApplyRequest {
        manifests: documents.iter().map(|d| d.manifest.to_json()).collect(),
        dry_run: write == Write::Nothing,
        restart: write == Write::AndRestart,
    };
    match ctx.call("apply")?.json(&request).answer().await {
        Ok(answer) => Ok(answer),
        Err(e) => Err(located(e, documents).into()),
    }
}

/// `--dry-run` of one VM's wish: what the server would do with it, or would refuse.
pub async fn rehearse(ctx: &Ctx, spec: &VmSpec, wanted: Wanted) -> Result<(), Failure> {
    let request = ApplyRequest { manifests: vec![Manifest::Vm(spec.clone()).to_json()], dry_run: true, restart: false };
    let answer: ApplyAnswer = ctx.call("apply")?.json(&request).answer().await.map_err(|e| without_index(e, spec))?;
    let is_new = answer.results.iter().any(|r| r.action == ApplyAction::Create);
    if wanted == Wanted::New && !is_new {
        let error = Error::conflict(format!("vm '{}' exists already", spec.name));
        return Err(error.hint(format!("change it with 'vmkeep vm set {}', or take another name", spec.name)).into());
    }
    print_plan(ctx, &answer)
}

/// What the wish is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    New,
    Changed,
}

/// Nobody wrote a list of manifests, so its index would tell nothing.
fn without_index(mut error: Error, spec: &VmSpec) -> Error {
    match error.problems.len() {
        0 => {}
        1 => error.message = format!("vm '{}' has 1 problem", spec.name),
        n => error.message = format!("vm '{}' has {n} problems", spec.name),
    }
    for problem in &mut error.problems {
        if let Some(field) = problem.field.strip_prefix("manifests[0]") {
            problem.field = field.trim_start_matches('.').to_owned();
        }
    }
    error
}

/// The server's problems, shown at the lines that the user wrote.
fn located(mut error: Error, documents: &[Document]) -> Error {
    error.problems = error.problems.iter().map(|p| locate(p, documents).unwrap_or_else(|| p.clone())).collect();
    error
}

/// `manifests[2].disks[root].size` is a field of the third document.
fn locate(problem: &Problem, documents: &[Document]) -> Option<Problem> {
    let (index, field) = problem.field.strip_prefix("manifests[")?.split_once(']')?;
    let document = documents.get(index.parse::<usize>().ok()?)?;
    let inner = Problem { field: field.trim_start_matches('.').to_owned(), message: problem.message.clone() };
    document.error(&[inner]).problems.pop()
}

fn print_plan(ctx: &Ctx, answer: &ApplyAnswer) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Json | Format::Yaml => return ctx.printer.value(answer),
        Format::Name => {
            changed(answer).for_each(|r| ctx.printer.out(&format!("{}/{}", r.kind, r.name)));
            return Ok(());
        }
        Format::Table | Format::Wide => {}
    }
    for result in &answer.results {
        for line in lines(ctx, result) {
            ctx.printer.out(&line);
        }
        result.warnings.iter().for_each(|w| ctx.printer.warn(&format!("{} '{}': {w}", result.kind, result.name)));
    }
    let count = |action| answer.results.iter().filter(|r| r.action == action).count();
    ctx.printer.say(&format!(
        "{} to create, {} to update, {} to mend, {} unchanged",
        count(ApplyAction::Create),
        count(ApplyAction::Update),
        count(ApplyAction::Mend),
        count(ApplyAction::Unchanged)
    ));
    Ok(())
}

fn changed(answer: &ApplyAnswer) -> impl Iterator<Item = &ApplyResult> {
    answer.results.iter().filter(|r| r.action != ApplyAction::Unchanged)
}

fn lines(ctx: &Ctx, result: &ApplyResult) -> Vec<String> {
    let (word, tone) = match result.action {
        ApplyAction::Create => ("create", Tone::Good),
        ApplyAction::Update => ("update", Tone::Warn),
        ApplyAction::Mend => ("mend", Tone::Warn),
        ApplyAction::Unchanged => ("unchanged", Tone::Dim),
    };
    let head = format!("{}/{}: {}", result.kind, result.name, ctx.printer.paint(word, tone));
    let changes = result.changes.iter().map(|c| {
        let when = match c.when {
            ChangeWhen::Live => "live",
            ChangeWhen::Restart => "after restart",
            ChangeWhen::Pending => "waits for a restart",
            ChangeWhen::Reinit => "in a first boot only: 'vmkeep vm reinit', then a restart",
            ChangeWhen::Drift => "changed outside of vmkeep; put back",
            ChangeWhen::Conflict => "changed outside of vmkeep; kept, see 'vmkeep vm adopt --disks'",
        };
        let blank = |text: &str| if text.is_empty() { "(none)".to_owned() } else { text.to_owned() };
        format!("  {}: {} -> {}  ({when})", c.change.field, blank(&c.change.from), blank(&c.change.to))
    });
    std::iter::once(head).chain(changes).collect()
}

/// VMs of the answer whose changes wait for a cold start: as planned, or as they are once the work is done.
async fn waiting(ctx: &Ctx, answer: &ApplyAnswer) -> Result<Vec<Name>, Failure> {
    let mut names = Vec::new();
    for result in answer.results.iter().filter(|result| result.kind == "vm") {
        let planned = result.changes.iter().any(|c| matches!(c.when, ChangeWhen::Restart | ChangeWhen::Pending));
        let waits = match &result.operation {
            Some(_) if !ctx.global.no_wait => !vm::get(ctx, &result.name).await?.status.pending.is_empty(),
            _ => planned,
        };
        names.extend(waits.then(|| result.name.clone()));
    }
    Ok(names)
}

async fn finish(ctx: &Ctx, answer: ApplyAnswer, write: Write) -> Result<(), Failure> {
    let human = matches!(ctx.printer.format, Format::Table | Format::Wide);
    for result in &answer.results {
        if human {
            lines(ctx, result).iter().for_each(|l| ctx.printer.say(l));
        }
        result.warnings.iter().for_each(|w| ctx.printer.warn(&format!("{} '{}': {w}", result.kind, result.name)));
    }
    let operations: Vec<_> = answer.results.iter().filter_map(|r| r.operation.clone()).collect();
    let ends = if operations.is_empty() { Vec::new() } else { ctx.follow_all(operations, ctx.global.timeout).await? };
    match ctx.printer.format {
        Format::Json | Format::Yaml => {
            let mut answer = answer.clone();
            let mut left = ends.clone().into_iter();
            answer.results.iter_mut().filter(|r| r.operation.is_some()).for_each(|r| r.operation = left.next());
            ctx.printer.value(&answer)?;
        }
        Format::Name => answer.results.iter().for_each(|r| ctx.printer.out(&format!("{}/{}", r.kind, r.name))),
        Format::Table | Format::Wide => {}
    }
    let waiting = waiting(ctx, &answer).await?;
    match (write, waiting.is_empty()) {
        (_, true) | (Write::Nothing, _) => {}
        (Write::Wishes, false) => ctx.printer.hint(&format!(
            "some changes wait for a restart: 'vmkeep vm restart {}'",
            waiting.iter().map(Name::as_str).collect::<Vec<_>>().join(" ")
        )),
        // The guest was asked, and did not let go: the plan could not know.
        (Write::AndRestart, false) if ctx.global.no_wait => {}
        (Write::AndRestart, false) => power::each(ctx, "restart", &waiting).await?,
    }
    let mut failures =
        ends.into_iter().filter(|op| op.state.is_over() && op.state != OpState::Done).map(|op| Failure::Operation(Box::new(op)));
    let Some(mut last) = failures.next() else { return Ok(()) };
    for next in failures {
        last.report(&ctx.printer);
        last = next;
    }
    Err(last)
}
