//! What a run leaves behind: the story for people, and the facts for programs.

use serde::Serialize;

/// True time in ms, as seconds with three digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(pub u64);

impl Serialize for At {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // Exact to the ms, and printed the same everywhere.
        s.serialize_f64(self.0 as f64 / 1000.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub at: At,
    /// `I1` to `I10`, `L1` to `L4`.
    pub invariant: &'static str,
    pub what: String,
}

/// One epoch of a node that was ended by others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fenced {
    pub node: String,
    pub silent_at: At,
    pub sealed_at: At,
    pub confirmed_at: Option<At>,
    pub by: Option<&'static str>,
}

/// One QEMU, from its start to its end (or the end of the run).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    pub vm: String,
    pub node: String,
    pub from: At,
    pub to: At,
    pub generation: u64,
}

/// A VM that lost its node and runs again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recovery {
    pub vm: String,
    pub from: String,
    pub to: String,
    pub silent_at: At,
    pub running_at: At,
}

/// Is anybody going to read the story?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    Story,
    Silent,
}

#[derive(Clone, Debug)]
pub struct Log {
    telling: Telling,
    pub lines: Vec<(u64, String)>,
    pub violations: Vec<Violation>,
}

/// Violations that are kept of one run; the first one is what matters.
const VIOLATIONS_MAX: usize = 20;

impl Log {
    pub fn new(telling: Telling) -> Self {
        Self { telling, lines: Vec::new(), violations: Vec::new() }
    }

    /// Has a run that nobody listens to broken something?
    pub fn is_over(&self) -> bool {
        self.telling == Telling::Silent && !self.violations.is_empty()
    }

    pub fn tell(&mut self, now: u64, words: impl FnOnce() -> String) {
        if self.telling == Telling::Story {
            self.lines.push((now, words()));
        }
    }

    pub fn violation(&mut self, now: u64, invariant: &'static str, what: String) {
        if self.violations.len() >= VIOLATIONS_MAX {
            return;
        }
        self.tell(now, || format!("!! {invariant}: {what}"));
        self.violations.push(Violation { at: At(now), invariant, what });
    }
}

/// `  123.4  words`, one a line; the same words at once are told once.
pub fn story(lines: &[(u64, String)]) -> String {
    let mut out = String::new();
    for (at, words) in lines {
        out.push_str(&format!("{:>5}.{}  {words}\n", at / 1000, at % 1000 / 100));
    }
    out
}
