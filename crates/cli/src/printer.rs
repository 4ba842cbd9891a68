//! What is said, and where: stdout carries data, stderr carries talk. All output of all commands goes through here.
//!
//! Colours only on a terminal without `NO_COLOR`; our own words are ASCII always, and bars are drawn with it when the locale is
//! not UTF-8. Control characters are escaped in all that is printed ([`crate::plain`]), because a guest may have written them;
//! raw bytes go through [`Printer::out_bytes`] only. A closed pipe (`vmkeep vm list | head -1`) ends the program quietly.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;
use vmkeep_types::error::Error;

use crate::failure::Failure;
use crate::plain::{escaped, one_line, stripped};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    #[value(alias = "story")]
    Table,
    /// More columns.
    Wide,
    /// What the API says, times in UTC.
    Json,
    Yaml,
    /// Names only, one a line.
    Name,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warn,
    Bad,
    Dim,
    Plain,
}

/// A cell of a table: its text and how it is meant.
#[derive(Clone, Debug)]
pub struct Cell(pub String, pub Tone);

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(text.to_string(), Tone::Plain)
    }
}

/// Something that is listed.
pub trait Row: Serialize {
    const HEAD: &'static [&'static str];
    /// Added by `-o wide`.
    const WIDE: &'static [&'static str];
    fn name(&self) -> String;
    fn cells(&self) -> Vec<Cell>;
    fn wide(&self) -> Vec<Cell>;
}

pub struct Printer {
    pub format: Format,
    /// stdout is a terminal.
    pub out_tty: bool,
    /// stderr is a terminal.
    pub err_tty: bool,
    pub utf8: bool,
    color_out: bool,
    color_err: bool,
    quiet: bool,
}

impl Printer {
    pub fn new(format: Format, color: ColorChoice, quiet: bool) -> Self {
        let (out_tty, err_tty) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let wanted = |tty| match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => tty && !set("NO_COLOR") && std::env::var("TERM").as_deref() != Ok("dumb"),
        };
        Self { format, out_tty, err_tty, utf8: utf8_locale(), color_out: wanted(out_tty), color_err: wanted(err_tty), quiet }
    }

    /// Data, with its newline.
    pub fn out(&self, text: &str) {
        self.out_bytes(format!("{}\n", escaped(text)).as_bytes());
    }

    /// What a guest or QEMU wrote: as it is into a file or pipe, readable on a terminal.
    pub fn out_foreign(&self, text: &str) {
        if self.out_tty {
            self.out_bytes(stripped(text).as_bytes());
        } else {
            self.out_bytes(text.as_bytes());
        }
    }

    pub fn out_bytes(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
            // The reader has gone: nothing more can be told to anybody.
            std::process::exit(0);
        }
    }

    /// The same for what a guest's program complains of.
    pub fn err_foreign(&self, text: &str) {
        let text = if self.err_tty { stripped(text) } else { text.to_owned() };
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// Talk: progress, results in words. Not with `--quiet`.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{}", escaped(text));
        }
    }

    pub fn warn(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{} {}", self.paint_err("warning:", Tone::Warn), escaped(text));
    }

    pub fn hint(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{} {}", self.paint_err("hint:", Tone::Good), escaped(text));
        }
    }

    pub fn error(&self, error: &Error) {
        let mut stderr = std::io::stderr().lock();
        let _ = writeln!(stderr, "{} {}", self.paint_err("error:", Tone::Bad), escaped(&error.message));
        for p in &error.problems {
            let _ = writeln!(stderr, "  {}: {}", escaped(&p.field), escaped(&p.message));
        }
        if let Some(hint) = &error.hint {
            let _ = writeln!(stderr, "{} {}", self.paint_err("hint:", Tone::Good), escaped(hint));
        }
    }

    /// Refuses `-o json` and its like for what is nothing but text.
    pub fn text_only(&self, what: &str, hint: &str) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Wide => Ok(()),
            Format::Json | Format::Yaml | Format::Name => Err(Failure::usage(format!("{what} is plain text: it takes no -o"), hint)),
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    fn paint_err(&self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.color_err)
    }

    /// Coloured for stdout.
    pub fn paint(&self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.color_out)
    }

    /// A list in the format that was asked for.
    pub fn list<T: Row>(&self, rows: &[T]) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.table(T::HEAD, rows.iter().map(Row::cells).collect()),
            Format::Wide => {
                let head: Vec<&str> = T::HEAD.iter().chain(T::WIDE).copied().collect();
                self.table(&head, rows.iter().map(|r| r.cells().into_iter().chain(r.wide()).collect()).collect());
            }
            Format::Name => rows.iter().for_each(|r| self.out(&r.name())),
            Format::Json | Format::Yaml => self.value(&rows)?,
        }
        Ok(())
    }

    /// One object, as JSON or YAML; `table` formats are the caller's.
    pub fn value(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = match self.format {
            Format::Yaml => yaml(value)?,
            _ => serde_json::to_string_pretty(value).map_err(|e| Error::internal(format!("the answer cannot be written as JSON: {e}")))?,
        };
        self.out(text.trim_end());
        Ok(())
    }

    pub fn table(&self, head: &[&str], rows: Vec<Vec<Cell>>) {
        for line in layout(head, &rows, self.color_out) {
            self.out(&line);
        }
    }

    /// `Key:  value` lines; empty values are left out.
    pub fn card(&self, pairs: &[(&str, String)]) {
        let shown: Vec<_> = pairs.iter().filter(|(_, v)| !v.is_empty()).collect();
        let width = shown.iter().map(|(k, _)| k.len() + 1).max().unwrap_or(0);
        for (key, value) in shown {
            let mut lines = value.lines();
            self.out(&format!("{:<width$}  {}", format!("{key}:"), lines.next().unwrap_or_default()));
            for line in lines {
                self.out(&format!("{:<width$}  {line}", ""));
            }
        }
    }
}

pub fn yaml(value: &impl Serialize) -> Result<String, Error> {
    serde_saphyr::to_string(value).map_err(|e| Error::internal(format!("the answer cannot be written as YAML: {e}")))
}

fn set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|v| !v.is_empty())
}

fn utf8_locale() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|v| std::env::var(v).ok().filter(|v| !v.is_empty())).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

fn paint(text: &str, tone: Tone, color: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31",
        Tone::Dim => "2",
        Tone::Plain => return text.to_owned(),
    };
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Columns two spaces apart, as wide as their widest cell; the last one is not padded.
fn layout(head: &[&str], rows: &[Vec<Cell>], color: bool) -> Vec<String> {
    let rows: Vec<Vec<Cell>> = rows.iter().map(|r| r.iter().map(|c| Cell(one_line(&c.0), c.1)).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.0.width());
        }
    }
    let line = |cells: Vec<(String, usize)>| {
        let mut out = String::new();
        let last = cells.len() - 1;
        for (i, ((text, width), column)) in cells.into_iter().zip(&widths).enumerate() {
            out.push_str(&text);
            if i < last {
                out.push_str(&" ".repeat(column - width + 2));
            }
        }
        out.trim_end().to_owned()
    };
    let head = line(head.iter().map(|h| ((*h).to_owned(), h.len())).collect());
    let body = rows.iter().map(|row| line(row.iter().map(|c| (paint(&c.0, c.1, color), c.0.width())).collect()));
    std::iter::once(head).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn tables_align_by_what_is_seen() {
        let rows = vec![
            vec![Cell::from("web1"), Cell("running".into(), Tone::Good), "a\nb".into()],
            vec!["größer-als".into(), Cell("off".into(), Tone::Plain), "".into()],
        ];
        expect![[r#"
            NAME        STATE    NOTE
            web1        running  a b
            größer-als  off"#]]
        .assert_eq(&layout(&["NAME", "STATE", "NOTE"], &rows, false).join("\n"));
        assert_eq!(layout(&["A", "B"], &[vec![Cell("x".into(), Tone::Bad), "y".into()]], true)[1], "\x1b[31mx\x1b[0m  y");
    }
}
