//! Invariants of the source, as negatives: crate edges, sizes, banned words.

use std::path::{Path, PathBuf};

use vmkeep_e2e::host::root;

const FILE_LINES_MAX: usize = 1000;
const FUNCTION_LINES_MAX: usize = 70;

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    collect(&root().join("crates"), &mut files);
    assert!(files.len() > 50, "the walk finds the sources");
    files
}

fn collect(dir: &Path, files: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            files.push((path.strip_prefix(root()).expect("under the root").to_owned(), text));
        }
    }
}

/// The part of a file that ships: tests may take time, tell long stories and name what is banned.
fn production() -> Vec<(PathBuf, String)> {
    let is_test =
        |path: &Path| path.components().any(|c| c.as_os_str() == "tests") || path.ends_with("tests.rs") || path.starts_with("crates/e2e");
    let ships = |text: String| text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
    sources().into_iter().filter(|(path, _)| !is_test(path)).map(|(path, text)| (path, ships(text))).collect()
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_depend_only_along_the_allowed_edges() {
    let allowed: &[(&str, &[&str])] = &[
        ("types", &[]),
        ("core", &["types"]),
        ("store", &["types"]),
        ("api", &["types"]),
        ("server", &["types", "core", "store", "api"]),
        ("agent", &["types", "core", "store", "api"]),
        ("fenced", &["types", "core"]),
        ("sim", &["types", "core"]),
        ("cli", &["types", "api", "sim"]),
    ];
    let mut found = Vec::new();
    for (name, edges) in allowed {
        let manifest = std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).expect("a manifest");
        let normal = manifest.split("[dev-dependencies]").next().expect("a first part");
        for line in normal.lines().filter_map(|l| l.trim().strip_prefix("vmkeep-")) {
            let to = line.split(['.', ' ', '=']).next().expect("a name");
            if !edges.contains(&to) {
                found.push(format!("{name} -> {to}"));
            }
        }
    }
    assert_none("edges that architecture.md does not allow", &found);
}

#[test]
fn core_has_no_clock_no_randomness_no_async() {
    let banned = ["SystemTime", "Instant::now", "Timestamp::now", "Uuid::new_v", "async fn", "tokio", "rand::"];
    let found: Vec<String> = production()
        .iter()
        .filter(|(path, _)| path.starts_with("crates/core/src") || path.starts_with("crates/types/src"))
        .flat_map(|(path, text)| {
            banned.iter().filter(|word| text.contains(**word)).map(|word| format!("{}: {word}", path.display())).collect::<Vec<_>>()
        })
        .collect();
    assert_none("decisions must be repeatable", &found);
}

#[test]
fn files_and_functions_stay_readable() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        if text.lines().count() > FILE_LINES_MAX {
            found.push(format!("{}: {} lines", path.display(), text.lines().count()));
        }
    }
    for (path, text) in production() {
        let mut begin: Option<(usize, usize, String)> = None;
        for (n, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let head = line
                .trim_start()
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub ")
                .trim_start_matches("async ")
                .trim_start_matches("unsafe ");
            if head.starts_with("fn ") && begin.is_none() && !line.trim_end().ends_with([';', '}']) {
                begin = Some((n, indent, head.chars().take(50).collect()));
            } else if let Some((from, depth, name)) = &begin
                && line.starts_with(&format!("{}}}", " ".repeat(*depth)))
                && indent == *depth
            {
                if n - from > FUNCTION_LINES_MAX {
                    found.push(format!("{}:{}: {} lines: {name}", path.display(), from + 1, n - from));
                }
                begin = None;
            }
        }
    }
    assert_none("too long to read", &found);
}

#[test]
fn nothing_unfinished_and_no_shell() {
    let words = ["todo!", "unimplemented!", "#[ignore", "\"sh\", \"-c\"", "Command::new(\"sh\")", "Command::new(\"bash\")"];
    let found: Vec<String> = production()
        .iter()
        .flat_map(|(path, text)| {
            words.iter().filter(|word| text.contains(**word)).map(|word| format!("{}: {word}", path.display())).collect::<Vec<_>>()
        })
        .collect();
    assert_none("unfinished, switched off, or through a shell", &found);
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let listed = std::process::Command::new("git").args(["ls-files", "*.md"]).current_dir(root()).output().expect("git runs");
    let pages = String::from_utf8(listed.stdout).expect("names");
    let mut broken = Vec::new();
    for page in pages.lines() {
        let text = std::fs::read_to_string(root().join(page)).expect("a page");
        let here = root().join(page).parent().expect("a folder").to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !link.is_empty() && !link.contains("://") && !here.join(link).exists() {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(pages.lines().count() > 8, "{pages}");
    assert_none("broken links", &broken);
}
