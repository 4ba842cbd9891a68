//! Text from elsewhere made harmless for a terminal.
//!
//! Names, messages and logs may come from inside a guest. Escape sequences in them could retitle the administrator's window,
//! hide lines or type for him; bidirectional controls could make a text read as another one.

use std::borrow::Cow;
use std::fmt::Write;

/// The colours that [`crate::printer`] paints with; they change no more than a colour.
const OWN: [&str; 5] = ["\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"];

fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// Control characters as `\u001b`, which is what JSON and YAML take them for; line feeds, tabs and our own colours stay.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| is_hidden(c) && c != '\n' && c != '\t') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let own = OWN.iter().find(|own| rest.starts_with(**own));
        let taken = own.map_or(c.len_utf8(), |own| own.len());
        match own {
            None if is_hidden(c) && c != '\n' && c != '\t' => write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes everything"),
            _ => out.push_str(&rest[..taken]),
        }
        rest = &rest[taken..];
    }
    out.into()
}

/// For a cell of a table or the line of an event: what would break the line is a space.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect()
}

/// A log for reading: without the escape sequences that a boot loader or a shell paints with; line feeds and tabs stay.
pub fn stripped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\x1b', Some('[')) => {
                chars.next();
                // CSI: parameters, then one byte that ends it (ECMA-48, 5.4).
                while chars.next_if(|c| matches!(c, '\x20'..='\x3f')).is_some() {}
                chars.next_if(|c| matches!(c, '\x40'..='\x7e'));
            }
            // OSC: to BEL or ESC \; not over a line feed, so that half of one hides no more than its line.
            ('\x1b', Some(']')) => while chars.next_if(|c| !matches!(c, '\x07' | '\x1b' | '\n')).is_some() {},
            ('\x1b', Some(_)) => drop(chars.next_if(|c| matches!(c, '\x20'..='\x7e'))),
            ('\n' | '\t', _) => out.push(c),
            _ if is_hidden(c) => {}
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text_and_our_colours() {
        for (from, to) in [
            ("plain ä\n\tnext", "plain ä\n\tnext"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
            ("\x1b[2Jgone\r", "\\u001b[2Jgone\\u000d"),
            ("c1 \u{9b}31m \u{7f} \u{202e}txt", "c1 \\u009b31m \\u007f \\u202etxt"),
        ] {
            assert_eq!(escaped(from), to);
        }
        let json = serde_json::json!({"message": "a\u{9b}b"}).to_string();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped(&json)).expect("still JSON")["message"], "a\u{9b}b");
        assert_eq!(one_line("a\nb\x1b[0m"), "a b [0m");
    }

    #[test]
    fn logs_are_read_without_their_paint() {
        for (from, to) in [
            ("\x1b[0;1;31m[FAILED]\x1b[0m ssh\r\n\tok", "[FAILED] ssh\n\tok"),
            ("\x1b]0;title\x07text", "text"),
            ("\x1b]0;title\x1b\\text", "text"),
            ("\x1b]0;half\nnext", "\nnext"),
            ("\x1bcreset \x1b(B\u{9b}x \x08\x1b", "reset Bx "),
        ] {
            assert_eq!(stripped(from), to, "{from:?}");
        }
    }
}
