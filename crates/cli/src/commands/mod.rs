//! The commands, one file per verb or small group of verbs; a listing of this directory is the list of what `vmkeep` can do.

pub mod apply;
pub mod cluster;
pub mod delete;
pub mod event;
pub mod explain;
pub mod export;
pub mod fence;
pub mod ha;
pub mod host;
pub mod image;
pub mod launch;
pub mod network;
pub mod node;
pub mod op;
pub mod pool;
pub mod secret;
pub mod shell;
pub mod sim;
pub mod token;
pub mod top;
pub mod version;
pub mod vm;
pub mod volume;
pub mod watch;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmkeep_api::body::Page;
use vmkeep_api::client::Call;
use vmkeep_types::ids::Revision;
use vmkeep_types::manifest::{Manifest, to_yaml_minimal};
use vmkeep_types::name::Name;

use crate::cli::Command;
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::{Format, Row};

/// Pages of one list; 1000 rows each. More objects than that are no list for people.
const PAGES_MAX: usize = 100;

pub async fn run(ctx: &Ctx, command: Command) -> Result<(), Failure> {
    match command {
        Command::Apply(args) => apply::apply(ctx, args).await,
        Command::Plan(args) => apply::plan(ctx, args).await,
        Command::Delete(args) => delete::run(ctx, args).await,
        Command::Export(args) => export::run(ctx, args).await,
        Command::Explain(args) => explain::run(ctx, &args),
        Command::Launch(args) => launch::run(ctx, args).await,
        Command::Top(args) => top::run(ctx, args).await,
        Command::Console(args) => vm::console::run(ctx, args).await,
        Command::Events(args) => event::list(ctx, args).await,
        Command::Vm(command) => vm::run(ctx, command).await,
        Command::Image(command) => image::run(ctx, command).await,
        Command::Volume(command) => volume::run(ctx, command).await,
        Command::Network(command) => network::run(ctx, command).await,
        Command::Pool(command) => pool::run(ctx, command).await,
        Command::Cluster(command) => cluster::run(ctx, command).await,
        Command::Node(command) => node::run(ctx, command).await,
        Command::Ha(command) => ha::run(ctx, command).await,
        Command::Host(command) => host::run(ctx, command).await,
        Command::Op(command) => op::run(ctx, command).await,
        Command::Event(command) => event::run(ctx, command).await,
        Command::Token(command) => token::run(ctx, command).await,
        Command::Secret(command) => secret::run(ctx, command).await,
        Command::Sim(args) => sim::run(ctx, &args),
        Command::Version => version::run(ctx).await,
        Command::Completions(args) => shell::completions(ctx, &args),
        Command::Man(args) => shell::man(ctx, &args),
    }
}

/// All rows of a paged list, filtered by labels.
pub async fn pages<T: DeserializeOwned>(ctx: &Ctx, route_id: &str, label: Option<&str>) -> Result<Vec<T>, Failure> {
    Ok(listed(ctx, &|| Ok(ctx.call(route_id)?.query_opt("label", label))).await?.0)
}

/// All rows of the list that `call` asks for, and the revision of its first page: what changed since is still to come.
pub async fn listed<'a, T: DeserializeOwned>(
    ctx: &'a Ctx,
    call: &impl Fn() -> Result<Call<'a>, Failure>,
) -> Result<(Vec<T>, Revision), Failure> {
    let mut page: Page<T> = call()?.answer().await?;
    let (mut rows, revision) = (page.items, page.revision);
    for _ in 1..PAGES_MAX {
        let Some(after) = &page.next else { return Ok((rows, revision)) };
        page = call()?.query("after", after).answer().await?;
        rows.append(&mut page.items);
    }
    if page.next.is_some() {
        ctx.printer.warn(&format!("only the first {} are shown", rows.len()));
    }
    Ok((rows, revision))
}

/// One object: as a card for people, as it is for programs.
pub fn show<T: Row + Serialize>(ctx: &Ctx, object: &T, card: &[(&str, String)]) -> Result<(), Failure> {
    match ctx.printer.format {
        Format::Table | Format::Wide => ctx.printer.card(card),
        Format::Name => ctx.printer.out(&object.name()),
        Format::Json | Format::Yaml => ctx.printer.value(object)?,
    }
    Ok(())
}

/// [`show`] of something that is applied: its YAML is the manifest, shortest form, as 'apply' takes it.
pub fn show_wish<T: Row + Serialize>(ctx: &Ctx, object: &T, wish: Manifest, card: &[(&str, String)]) -> Result<(), Failure> {
    if ctx.printer.format == Format::Yaml {
        ctx.printer.out(to_yaml_minimal(&wish).trim_end());
        return Ok(());
    }
    show(ctx, object, card)
}

/// Makes a change to each of these, past those where it fails; the last failure ends the command, those before it are said here.
pub async fn each_of(ctx: &Ctx, names: &[Name], change: impl AsyncFn(&Name) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut last: Option<Failure> = None;
    for name in names {
        match change(name).await {
            Ok(()) => {}
            // Ctrl-C is meant for all of them.
            Err(Failure::Code(code)) => return Err(Failure::Code(code)),
            Err(failure) => {
                if let Some(before) = last.replace(failure) {
                    before.report(&ctx.printer);
                }
            }
        }
    }
    last.map_or(Ok(()), Err)
}

/// A list of words for a card or a cell.
pub fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The word that serde writes for a unit variant.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// `-` where there is nothing.
pub fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".into(), ToString::to_string)
}
