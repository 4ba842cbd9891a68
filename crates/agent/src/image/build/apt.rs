//! The host's own package sources, rewritten for another Debian release at the same place.
//!
//! Nothing here names a mirror: where the host gets its packages, the image gets its own, now and later.

use std::fs;
use std::path::Path;

use vmkeep_types::error::Error;

/// Source files of a host that are read.
const FILES_MAX: usize = 64;

/// One source: where, which suite, and the key that signs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    uri: String,
    suite: String,
    signed_by: Option<String>,
}

/// `deb` lines for `release`, from the apt configuration below `etc` (`/etc`).
///
/// # Errors
/// The host's sources cannot be read, or none of them is of its own Debian release.
pub fn sources_for(release: &str, etc: &Path) -> Result<String, Error> {
    let host = host_release(etc)?;
    let lines: Vec<String> = read_all(&etc.join("apt"))?.iter().filter_map(|s| rewritten(s, &host, release)).collect();
    if lines.is_empty() {
        let message = format!("no apt source of Debian {host} was found in {}", etc.join("apt").display());
        return Err(Error::refused(message).hint("images are built from the host's own apt sources: it needs one for its own release"));
    }
    Ok(lines.concat())
}

fn host_release(etc: &Path) -> Result<String, Error> {
    let path = etc.join("os-release");
    let text = fs::read_to_string(&path).map_err(|e| Error::refused(format!("cannot read {}: {e}", path.display())))?;
    let named = text.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="));
    let hint = "images are built on Debian hosts, from their own apt sources";
    named
        .map(|n| n.trim_matches('"').to_owned())
        .ok_or_else(|| Error::refused("this host does not tell which Debian release it is").hint(hint))
}

fn read_all(apt: &Path) -> Result<Vec<Source>, Error> {
    let unreadable = |path: &Path, e: std::io::Error| Error::refused(format!("cannot read {}: {e}", path.display()));
    let parts = apt.join("sources.list.d");
    let mut files: Vec<_> = fs::read_dir(&parts).into_iter().flatten().flatten().map(|e| e.path()).take(FILES_MAX).collect();
    files.sort();
    files.insert(0, apt.join("sources.list"));
    let mut all = Vec::new();
    for file in files.iter().filter(|f| f.exists()) {
        let read = || fs::read_to_string(file).map_err(|e| unreadable(file, e));
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => all.extend(one_line_style(&read()?)),
            Some("sources") => all.extend(deb822(&read()?)),
            _ => {}
        }
    }
    Ok(all)
}

/// `deb [signed-by=/usr/share/keyrings/x.gpg] URI SUITE COMPONENT…` (sources.list(5)).
fn one_line_style(text: &str) -> Vec<Source> {
    let parse = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        let mut words = rest.split_whitespace();
        Some(Source { uri: words.next()?.into(), suite: words.next()?.into(), signed_by })
    };
    text.lines().filter_map(parse).collect()
}

/// Stanzas of `Key: value`; a line that begins with a blank continues the one above (sources.list(5)).
fn deb822(text: &str) -> Vec<Source> {
    let text: String = text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{}\n", l.trim_end())).collect();
    text.split("\n\n").flat_map(stanza).collect()
}

fn stanza(text: &str) -> Vec<Source> {
    let field = |key: &str| {
        let mut lines = text.lines().skip_while(|l| !l.split(':').next().is_some_and(|k| k.eq_ignore_ascii_case(key)));
        let first = lines.next().and_then(|l| l.split_once(':')).map_or("", |(_, v)| v);
        let more = lines.take_while(|l| l.starts_with([' ', '\t']));
        std::iter::once(first).chain(more).flat_map(str::split_whitespace).map(str::to_owned).collect::<Vec<_>>()
    };
    let off = field("Enabled").first().is_some_and(|v| v == "no");
    if off || !field("Types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    // A key written into the stanza itself is left out: apt then takes the trusted keyring of the host.
    let signed_by = field("Signed-By").into_iter().next().filter(|k| k.starts_with('/'));
    let each = |uri: &String| {
        field("Suites").into_iter().map(|suite| Source { uri: uri.clone(), suite, signed_by: signed_by.clone() }).collect::<Vec<_>>()
    };
    field("URIs").iter().flat_map(each).collect()
}

/// The same place for another release; other suites (backports, other vendors) are no part of an image.
fn rewritten(source: &Source, host: &str, release: &str) -> Option<String> {
    let kind = source.suite.strip_prefix(host).or_else(|| source.suite.strip_prefix("stable"))?;
    if !["", "-updates", "-security"].contains(&kind) || source.uri.starts_with("cdrom:") {
        return None;
    }
    let key = source.signed_by.as_ref().map_or(String::new(), |key| format!("[signed-by={key}] "));
    Some(format!("deb {key}{} {release}{kind} main\n", source.uri))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(name: &str, text: &str, release: &str, expected: Expect) {
        let etc = tempfile::tempdir().expect("a folder");
        let path = etc.path().join("apt").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(etc.path().join("os-release"), "ID=debian\nVERSION_CODENAME=bookworm\n").expect("written");
        fs::write(path, text).expect("written");
        let told = sources_for(release, etc.path()).unwrap_or_else(|e| format!("{e}\n"));
        expected.assert_eq(&told.replace(&etc.path().display().to_string(), "ETC"));
    }

    #[test]
    fn sources_of_another_release_lie_at_the_same_place() {
        let modern = "# a comment\nTypes: deb deb-src\nURIs: http://one.example/debian\nSuites: bookworm bookworm-updates\n bookworm-backports\n\
            Components: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nURIs: http://two.example/debian-security\n\
            Suites: bookworm-security\n\nEnabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\n";
        check(
            "sources.list.d/debian.sources",
            modern,
            "trixie",
            expect![[r#"
            deb [signed-by=/usr/share/keyrings/k.gpg] http://one.example/debian trixie main
            deb [signed-by=/usr/share/keyrings/k.gpg] http://one.example/debian trixie-updates main
            deb http://two.example/debian-security trixie-security main
        "#]],
        );
    }

    #[test]
    fn old_lists_are_read_too() {
        let old = "#deb http://off.example bookworm main\ndeb cdrom:[Debian]/ bookworm main\ndeb http://one.example/debian bookworm main\n\
            deb-src http://one.example/debian bookworm main\ndeb [arch=amd64 signed-by=/k.gpg] http://one.example/debian stable-security main\n";
        check(
            "sources.list",
            old,
            "bookworm",
            expect![[r#"
            deb http://one.example/debian bookworm main
            deb [signed-by=/k.gpg] http://one.example/debian bookworm-security main
        "#]],
        );
    }

    #[test]
    fn a_host_without_its_own_release_is_refused() {
        check(
            "sources.list",
            "deb http://one.example/x sid main\n",
            "trixie",
            expect![[r#"
            no apt source of Debian bookworm was found in ETC/apt
        "#]],
        );
    }
}
