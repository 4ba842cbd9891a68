//! docs/reference/cli.md is made from the grammar; this test fails when they drift apart. `UPDATE_EXPECT=1` writes it anew.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command, CommandFactory};
use expect_test::expect_file;

use crate::cli::Cli;

/// `list | show | create | edit | delete` for every noun, but for these.
const MISSING: &str = "## Verbs that a noun does not have

- `volume edit`: nothing of a volume can be changed afterwards. A disk grows by its VM (`vm resize-disk`).
- `event create`, `edit`, `delete`, `op create`, `edit`, `token edit`: events and operations come from other commands; a token is
  withdrawn and another one made.
- `secret list`, `create`, `edit`, `delete`: a secret is a field of its VM, and written with it.

";

#[test]
fn the_reference_is_what_the_grammar_says() {
    let mut root = Cli::command();
    root.build();
    let mut out = String::from(
        "# vmkeep, the command line\n\nMade from the program's own grammar; `vmkeep man DIR` writes the same as man pages.\n\n",
    );
    let _ = writeln!(out, "```text\n{}\n```\n", root.get_after_help().map(ToString::to_string).unwrap_or_default());
    out.push_str(MISSING);
    out.push_str("## Options that hold everywhere\n\n");
    arguments(&mut out, root.get_arguments().filter(|a| a.is_global_set()));
    for command in root.get_subcommands().filter(|c| !c.is_hide_set()) {
        section(&mut out, command, "vmkeep", 2);
    }
    expect_file!["../../../../docs/reference/cli.md"].assert_eq(&out);
}

fn section(out: &mut String, command: &Command, parent: &str, level: usize) {
    let name = format!("{parent} {}", command.get_name());
    let _ = writeln!(out, "{} {name}\n", "#".repeat(level));
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let aliases: Vec<&str> = command.get_visible_aliases().collect();
    let aliases = if aliases.is_empty() { String::new() } else { format!(" Also: `{}`.", aliases.join("`, `")) };
    let _ = writeln!(out, "{about}.{aliases}\n");
    if command.has_subcommands() {
        command.get_subcommands().for_each(|c| section(out, c, &name, (level + 1).min(4)));
        return;
    }
    let positional: String = command.get_positionals().map(usage).collect();
    let options = if command.get_opts().any(|a| !a.is_global_set()) { " [OPTIONS]" } else { "" };
    let _ = writeln!(out, "```text\n{name}{options}{positional}\n```\n");
    arguments(out, command.get_arguments().filter(|a| !a.is_global_set()));
}

fn usage(arg: &Arg) -> String {
    let name = values(arg);
    let dots = if matches!(arg.get_action(), ArgAction::Append) { "..." } else { "" };
    let dashes = if arg.is_last_set() { "-- " } else { "" };
    if arg.is_required_set() { format!(" {dashes}<{name}>{dots}") } else { format!(" [{dashes}{name}{dots}]") }
}

fn values(arg: &Arg) -> String {
    let names = arg.get_value_names().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    names.unwrap_or_else(|| arg.get_id().to_string().to_uppercase())
}

fn arguments<'a>(out: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let mut any = false;
    for arg in arguments.filter(|a| !a.is_hide_set() && a.get_id() != "help" && a.get_id() != "version") {
        any = true;
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(out, "- `{}`: {help}{}", written(arg), more(arg));
    }
    if any {
        out.push('\n');
    }
}

fn written(arg: &Arg) -> String {
    let value = if arg.get_action().takes_values() { format!(" {}", values(arg)) } else { String::new() };
    match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}{value}"),
        (Some(short), None) => format!("-{short}{value}"),
        (None, Some(long)) => format!("--{long}{value}"),
        (None, None) => values(arg),
    }
}

fn more(arg: &Arg) -> String {
    let mut notes = Vec::new();
    let possible = arg.get_possible_values();
    if arg.get_action().takes_values() && !possible.is_empty() {
        notes.push(format!("one of {}", possible.iter().map(|p| format!("`{}`", p.get_name())).collect::<Vec<_>>().join(", ")));
    }
    let defaults = arg.get_default_values();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        notes.push(format!("default `{}`", defaults.iter().map(|d| d.to_string_lossy()).collect::<Vec<_>>().join(" ")));
    }
    if let Some(env) = arg.get_env() {
        notes.push(format!("also from `{}`", env.to_string_lossy()));
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) }
}
