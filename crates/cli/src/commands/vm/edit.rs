//! `vm edit`: the manifest in the user's editor.
//!
//! What does not parse, or what the server refuses, comes back in the editor with the reason above it. Nothing that was typed
//! is lost: when the user gives up, the file stays and its name is said.

use std::io::Write;
use std::process::Command;

use clap::Args;
use vmkeep_types::error::{Code, Error};
use vmkeep_types::manifest::vm_to_yaml_minimal;
use vmkeep_types::name::Name;

use super::{get, put};
use crate::context::Ctx;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub struct EditArgs {
    /// VM to change
    name: Name,
}

pub async fn run(ctx: &Ctx, args: EditArgs) -> Result<(), Failure> {
    let view = get(ctx, &args.name).await?;
    edit_text(ctx, &format!("vm-{}", args.name), &vm_to_yaml_minimal(&view.spec), async |file, text| {
        let spec = crate::files::read_vm(file, text)?;
        if spec.name != args.name {
            return Err(Error::invalid("the name cannot be changed here").hint(format!("'vmkeep vm rename {}'", args.name)).into());
        }
        put(ctx, &spec, view.spec_revision).await
    })
    .await
}

/// Times that the editor opens anew for one change; an editor that is a script must come to an end.
const EDITS_MAX: usize = 50;

/// Lines of ours in the editor; they are taken out again.
const NOTE: &str = "#! ";

/// Opens `text` in an editor until `take(file, text)` accepts it, nothing was changed, or the user gives up.
pub async fn edit_text(ctx: &Ctx, stem: &str, text: &str, take: impl AsyncFn(&str, &str) -> Result<(), Failure>) -> Result<(), Failure> {
    let file = tempfile::Builder::new().prefix(&format!("vmkeep-{stem}-")).suffix(".yaml").tempfile();
    let (_, path) = file.and_then(|f| Ok(f.keep()?)).map_err(|e| Failure::io("cannot make a file to edit", &e))?;
    let shown = path.display().to_string();
    let unusable = |e: std::io::Error| Failure::io(format!("cannot edit {shown}"), &e);
    std::fs::write(&path, text).map_err(unusable)?;
    let mut before = text.to_owned();
    for _ in 0..EDITS_MAX {
        run_editor(&path)?;
        let typed: String = std::fs::read_to_string(&path)
            .map_err(unusable)?
            .lines()
            .filter(|l| !l.starts_with(NOTE.trim_end()))
            .fold(String::new(), |all, line| all + line + "\n");
        if typed.trim_end() == before.trim_end() {
            return unchanged(ctx, &path, text, &typed);
        }
        match take(stem, &typed).await {
            Ok(()) => {
                let _ = std::fs::remove_file(&path);
                return Ok(());
            }
            Err(Failure::Error(e)) if matches!(e.code, Code::Invalid | Code::TooLarge | Code::NotFound) => {
                ctx.printer.error(&e);
                std::fs::write(&path, annotated(&e, &typed)).map_err(unusable)?;
                before = typed;
            }
            Err(failure) => {
                ctx.printer.say(&format!("your text is kept in {shown}"));
                return Err(failure);
            }
        }
    }
    ctx.printer.say(&format!("your text is kept in {shown}"));
    Err(Failure::Code(1))
}

fn unchanged(ctx: &Ctx, path: &std::path::Path, text: &str, typed: &str) -> Result<(), Failure> {
    if typed.trim_end() == text.trim_end() {
        let _ = std::fs::remove_file(path);
        ctx.printer.say("nothing was changed");
        return Ok(());
    }
    ctx.printer.say(&format!("given up; your text is kept in {}", path.display()));
    Err(Failure::Code(1))
}

fn annotated(error: &Error, typed: &str) -> String {
    let mut out = String::new();
    let hint = error.hint.as_ref().map(|h| format!("hint: {h}"));
    for line in error.to_string().lines().chain(hint.iter().flat_map(|h| h.lines())) {
        out += &format!("{NOTE}{line}\n");
    }
    out + NOTE + "(save without a change to give up; your text is kept)\n" + typed
}

fn run_editor(path: &std::path::Path) -> Result<(), Failure> {
    let editor = ["VISUAL", "EDITOR"].iter().find_map(|v| std::env::var(v).ok().filter(|e| !e.trim().is_empty()));
    let editor = editor.unwrap_or_else(|| "editor".into());
    // `EDITOR="code --wait"`: words, as every program reads it; no shell.
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("editor");
    let _ = std::io::stderr().flush();
    let status = Command::new(program).args(words).arg(path).status().map_err(|e| {
        let error = Error::refused(format!("cannot start the editor '{program}': {e}"));
        Failure::Error(error.hint("set EDITOR, or use 'vmkeep vm set'"))
    })?;
    if !status.success() {
        return Err(Error::refused(format!("the editor ended with {status}")).hint(format!("your text is in {}", path.display())).into());
    }
    Ok(())
}
