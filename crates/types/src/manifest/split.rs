//! One file into its documents, so that a broken one does not hide the problems of the others.
//!
//! YAML forbids a line that begins with `---` or `...` inside any scalar, so cutting there is exact.

/// A document's text and the number of lines before it.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    pub text: &'a str,
    pub lines_before: u32,
}

pub fn documents(text: &str) -> Vec<Chunk<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut chunks = Vec::new();
    let (mut start, mut lines_before) = (0, 0);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end_mark = is_mark(line, "...");
        if (is_mark(line, "---") || end_mark) && offset > start {
            chunks.push(Chunk { text: &text[start..offset], lines_before });
            (start, lines_before) = (offset, number as u32);
        }
        offset += line.len();
        if end_mark {
            (start, lines_before) = (offset, number as u32 + 1);
        }
    }
    chunks.push(Chunk { text: &text[start..], lines_before });
    chunks.retain(|c| c.text.lines().any(says_something));
    chunks
}

fn is_mark(line: &str, mark: &str) -> bool {
    line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Not blank, no comment, no directive, not a lone `---`.
fn says_something(line: &str) -> bool {
    let rest = if is_mark(line, "---") { &line[3..] } else { line }.trim();
    !(rest.is_empty() || rest.starts_with('#') || line.starts_with('%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[(&str, u32)]) {
        let got: Vec<_> = documents(text).into_iter().map(|c| (c.text, c.lines_before)).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn documents_are_cut_at_their_marks() {
        check("a: 1\n", &[("a: 1\n", 0)]);
        check("---\na: 1\n---\nb: 2", &[("---\na: 1\n", 0), ("---\nb: 2", 2)]);
        check("a: 1\n...\n# end\n---\nb: 2\n", &[("a: 1\n", 0), ("---\nb: 2\n", 3)]);
        check("%YAML 1.2\n--- {a: 1}\n", &[("--- {a: 1}\n", 1)]);
        check("a: |\n  ---\n  x\n", &[("a: |\n  ---\n  x\n", 0)]);
        check("\u{feff}a: 1\r\n---\r\n", &[("a: 1\r\n", 0)]);
        check("\n# nothing\n---\n---\n", &[]);
        check("", &[]);
    }
}
