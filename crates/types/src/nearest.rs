//! "Did you mean": the nearest of some known words.

/// The candidate that is close enough to be a slip of the pen.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower: String = word.chars().take(WORD_CHARS_MAX).flat_map(char::to_lowercase).collect();
    candidates
        .into_iter()
        .map(|c| (distance(&lower, c), c))
        .filter(|(d, c)| *d <= allowed(c.len().max(lower.len())))
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// `; did you mean 'cpus'?`, or the words to choose from, or nothing.
pub fn hint(word: &str, candidates: &[&str]) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(near) => format!("; did you mean '{near}'?"),
        None if candidates.is_empty() => String::new(),
        None => format!("; known are {}", list(candidates)),
    }
}

/// `a, b and c`
pub fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// A longer word is no slip of a known one; keeps the comparison cheap on hostile input.
const WORD_CHARS_MAX: usize = 64;

fn allowed(length: usize) -> usize {
    match length {
        0..=3 => 1,
        4..=8 => 2,
        _ => 3,
    }
}

/// A word that begins with the other counts as near: `mem` for `memory`, `cpu_count` for `cpu`.
fn distance(word: &str, candidate: &str) -> usize {
    let edits = strsim::damerau_levenshtein(word, candidate);
    let begins = word.len() >= 3 && candidate.starts_with(word) || candidate.len() >= 3 && word.starts_with(candidate);
    if begins { edits.min(2) } else { edits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let known = ["cpus", "cpu", "memory", "disks", "description"];
        for (word, near) in
            [("cpuz", Some("cpus")), ("memroy", Some("memory")), ("mem", Some("memory")), ("Disks", Some("disks")), ("banana", None)]
        {
            assert_eq!(nearest(word, known), near, "{word}");
        }
        assert_eq!(hint("banana", &["vm", "image"]), "; known are vm and image");
        assert_eq!(nearest(&"x".repeat(1 << 20), known), None);
    }
}
