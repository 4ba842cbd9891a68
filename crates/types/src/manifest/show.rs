//! A problem as people read it: place, object, field, message, and the line with a mark under it.

use std::fmt::Write as _;

use super::decode::Finding;
use super::tree::Place;
use crate::check::harmless;
use crate::error::{Code, Error, Problem};

/// Longest line of a snippet; longer ones are cut around the mark.
const LINE_CHARS_MAX: usize = 120;

/// `field` of the result begins with `FILE:LINE:COLUMN`, so that editors and terminals can jump there.
pub fn problem(file: &str, text: &str, what: &str, finding: &Finding) -> Problem {
    let mut field = file.to_owned();
    if finding.at.line > 0 {
        write!(field, ":{}:{}", finding.at.line, finding.at.column).expect("writing to a String cannot fail");
    }
    for part in [harmless(what.to_owned()), harmless(finding.field.clone())] {
        if !part.is_empty() {
            field.push_str(": ");
            field.push_str(&part);
        }
    }
    Problem { field, message: format!("{}{}", harmless(finding.message.clone()), snippet(text, finding.at)) }
}

/// The line, numbered, and marks under what is meant. Empty where there is no place.
fn snippet(text: &str, at: Place) -> String {
    let Some(line) = (at.line as usize).checked_sub(1).and_then(|n| text.lines().nth(n)) else { return String::new() };
    let line: Vec<char> = line.strip_prefix('\u{feff}').unwrap_or(line).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let column = (at.column.max(1) as usize - 1).min(line.len());
    let marks = (at.chars.max(1) as usize).min(line.len().saturating_sub(column).max(1));
    let from = if line.len() > LINE_CHARS_MAX { column.saturating_sub(LINE_CHARS_MAX / 2) } else { 0 };
    let shown: String = line[from..].iter().take(LINE_CHARS_MAX).collect();
    let number = at.line.to_string();
    let marks = marks.min(LINE_CHARS_MAX - (column - from).min(LINE_CHARS_MAX - 1));
    let pad = " ".repeat(number.len());
    format!("\n    {number} | {}\n    {pad} | {}{}", shown.trim_end(), " ".repeat(column - from), "^".repeat(marks))
}

pub fn error(file: &str, problems: Vec<Problem>, documents: usize) -> Error {
    let count = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    let of = if documents > 1 { format!(" in {documents} documents") } else { String::new() };
    Error { code: Code::Invalid, message: format!("{file}: {count}{of}; nothing was changed"), hint: None, problems }
}
