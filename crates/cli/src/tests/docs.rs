//! Each `vmkeep …` that the documentation tells people to type is one that the program takes.

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::cli::Cli;

const PAGES: [(&str, &str); 29] = [
    ("README.md", include_str!("../../../../README.md")),
    ("docs/guide/README.md", include_str!("../../../../docs/guide/README.md")),
    ("docs/guide/install.md", include_str!("../../../../docs/guide/install.md")),
    ("docs/guide/vms.md", include_str!("../../../../docs/guide/vms.md")),
    ("docs/guide/images.md", include_str!("../../../../docs/guide/images.md")),
    ("docs/guide/networks.md", include_str!("../../../../docs/guide/networks.md")),
    ("docs/guide/cloud-init.md", include_str!("../../../../docs/guide/cloud-init.md")),
    ("docs/guide/consoles.md", include_str!("../../../../docs/guide/consoles.md")),
    ("docs/guide/keeping-running.md", include_str!("../../../../docs/guide/keeping-running.md")),
    ("docs/guide/drift-and-adopt.md", include_str!("../../../../docs/guide/drift-and-adopt.md")),
    ("docs/guide/remote-and-tokens.md", include_str!("../../../../docs/guide/remote-and-tokens.md")),
    ("docs/guide/monitoring.md", include_str!("../../../../docs/guide/monitoring.md")),
    ("docs/guide/backup-of-the-store.md", include_str!("../../../../docs/guide/backup-of-the-store.md")),
    ("docs/guide/troubleshooting.md", include_str!("../../../../docs/guide/troubleshooting.md")),
    ("docs/guide/coming-from.md", include_str!("../../../../docs/guide/coming-from.md")),
    ("docs/guide/scripting.md", include_str!("../../../../docs/guide/scripting.md")),
    ("docs/guide/many-hosts.md", include_str!("../../../../docs/guide/many-hosts.md")),
    ("docs/guide/cluster.md", include_str!("../../../../docs/guide/cluster.md")),
    ("docs/guide/ha.md", include_str!("../../../../docs/guide/ha.md")),
    ("docs/guide/sim.md", include_str!("../../../../docs/guide/sim.md")),
    ("docs/concepts/ha.md", include_str!("../../../../docs/concepts/ha.md")),
    ("docs/errors/README.md", include_str!("../../../../docs/errors/README.md")),
    ("docs/errors/messages.md", include_str!("../../../../docs/errors/messages.md")),
    ("docs/errors/events.md", include_str!("../../../../docs/errors/events.md")),
    ("docs/concepts/wish-and-fact.md", include_str!("../../../../docs/concepts/wish-and-fact.md")),
    ("docs/concepts/files.md", include_str!("../../../../docs/concepts/files.md")),
    ("docs/concepts/placement.md", include_str!("../../../../docs/concepts/placement.md")),
    ("docs/concepts/run-policy.md", include_str!("../../../../docs/concepts/run-policy.md")),
    ("docs/concepts/ownership.md", include_str!("../../../../docs/concepts/ownership.md")),
];

/// Spans of code, lines of code blocks and quoted hints that begin with the program's name; `NOUN`, `…` and drawings are no commands.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (n, part) in page.split("```").enumerate() {
        let texts: Vec<&str> = if n % 2 == 0 {
            part.split('`').skip(1).step_by(2).collect()
        } else {
            part.lines().map(|line| line.split(" #").next().unwrap_or(line)).chain(part.split('\'').skip(1).step_by(2)).collect()
        };
        found.extend(texts.into_iter().map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    found.retain(|text| text.starts_with("vmkeep ") && !text.contains("NOUN") && text.is_ascii());
    found
}

#[test]
fn the_commands_of_the_documentation_are_commands() {
    let (mut checked, mut wrong) = (0, Vec::new());
    for (file, page) in PAGES {
        for command in commands(page) {
            checked += 1;
            let words = command.split(' ').map(|word| word.trim_matches(['\'', '"']));
            let Err(error) = Cli::command().try_get_matches_from(words) else { continue };
            // A page may name a verb without its arguments, or with NAME for one.
            let is_short = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::ValueValidation
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    | ErrorKind::MissingSubcommand
            );
            if !is_short {
                wrong.push(format!("{file}: {command}\n{error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 60, "{checked}");
}
