//! What cloud-init takes user-data for, by how it begins.

/// Beginnings and their MIME types, as in cloud-init's `cloudinit/handlers/__init__.py`; the longest that fits counts. Letters
/// may be of either case, and space before them is skipped.
pub const KINDS: [(&str, &str); 9] = [
    ("#cloud-config-archive", "text/cloud-config-archive"),
    ("#cloud-config-jsonp", "text/cloud-config-jsonp"),
    ("## template: jinja", "text/jinja2"),
    ("#cloud-boothook", "text/cloud-boothook"),
    ("#include-once", "text/x-include-once-url"),
    ("#part-handler", "text/part-handler"),
    ("#cloud-config", "text/cloud-config"),
    ("#include", "text/x-include-url"),
    ("#!", "text/x-shellscript"),
];

/// What user-data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserData {
    /// Of one of the [`KINDS`]; its MIME type.
    Plain(&'static str),
    /// A message with MIME headers of its own.
    Mime,
}

/// None: cloud-init would ignore it.
pub fn kind(text: &str) -> Option<UserData> {
    let text = text.trim_start();
    let begins = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    if begins("Content-Type:") || begins("MIME-Version:") {
        return Some(UserData::Mime);
    }
    KINDS.iter().find(|(prefix, _)| begins(prefix)).map(|(_, mime)| UserData::Plain(mime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_beginning_counts() {
        for (prefix, mime) in KINDS {
            for text in [format!("{prefix}\nx: 1"), format!("\n {}", prefix.to_uppercase())] {
                assert_eq!(kind(&text), Some(UserData::Plain(mime)), "{text}");
            }
        }
        for text in ["Content-Type: multipart/mixed", "mime-version: 1.0"] {
            assert_eq!(kind(text), Some(UserData::Mime), "{text}");
        }
        for text in ["", "#", "# a comment\n#cloud-config", "#clod-config", "runcmd: []", "ü"] {
            assert_eq!(kind(text), None, "{text}");
        }
    }
}
