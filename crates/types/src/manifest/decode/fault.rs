//! serde's errors with the way to where they arose, in words of ours.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

/// An error on its way up; `trail` holds positions within each list or map, innermost first.
#[derive(Debug)]
pub struct Fault(pub Box<FaultBody>);

#[derive(Debug)]
pub struct FaultBody {
    pub kind: Kind,
    pub trail: Vec<usize>,
    /// The trail ends at a key that is wrong itself.
    pub keyed: bool,
}

#[derive(Debug)]
pub enum Kind {
    UnknownField { name: String, known: &'static [&'static str] },
    UnknownVariant { name: String, known: &'static [&'static str] },
    Missing(&'static str),
    Other(String),
}

impl Fault {
    fn of(kind: Kind) -> Self {
        Self(Box::new(FaultBody { kind, trail: Vec::new(), keyed: false }))
    }

    pub fn below(mut self, position: usize) -> Self {
        self.0.trail.push(position);
        self
    }

    pub fn at_key(mut self, position: usize) -> Self {
        self.0.keyed = true;
        self.below(position)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        Self::of(Kind::Other(msg.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::of(Kind::Other(format!("expected {}, found {}", wanted_words(&wanted.to_string()), found_words(found))))
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::of(Kind::Other(format!("{} is out of range; expected {}", found_words(found), wanted_words(&wanted.to_string()))))
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self::of(Kind::UnknownField { name: clip(name), known })
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::of(Kind::UnknownVariant { name: clip(name), known })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::of(Kind::Missing(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::of(Kind::Other(format!("'{field}' is written twice")))
    }
}

/// Text of others in our messages is cut to this.
const CLIP_CHARS: usize = 60;

pub fn clip(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    match text.char_indices().nth(CLIP_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]).chars().map(clean).collect(),
        None => text.chars().map(clean).collect(),
    }
}

fn found_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(b) => format!("{b}"),
        Unexpected::Unsigned(n) => format!("the number {n}"),
        Unexpected::Signed(n) => format!("the number {n}"),
        Unexpected::Float(n) => format!("the number {n}"),
        Unexpected::Str("") => "an empty text".into(),
        Unexpected::Str(s) => format!("'{}'", clip(s)),
        Unexpected::Unit | Unexpected::Option => "nothing (null)".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a map".into(),
        other => other.to_string(),
    }
}

/// serde's words for what it wanted, in ours.
fn wanted_words(wanted: &str) -> String {
    let range = |max: u64| format!("a whole number from 0 to {max}");
    match wanted {
        "a boolean" => "true or false".into(),
        "a string" => "text".into(),
        "a sequence" => "a list".into(),
        "u8" => range(u8::MAX.into()),
        "u16" => range(u16::MAX.into()),
        "u32" => range(u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".into(),
        "i32" | "i64" => "a whole number".into(),
        "a map" => "a map (`key: value`)".into(),
        w if w.starts_with("struct ") || w.starts_with("internally tagged enum ") => "a map of fields (`key: value`)".into(),
        w => w.into(),
    }
}
