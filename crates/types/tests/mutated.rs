//! Mutated manifests on the stable compiler: what `fuzz/` does without end, here a fixed number of times from fixed seeds.
//!
//! Never a panic, never slow; every refusal has words and a place in the text; what is accepted reads back to itself.
//! `VMKEEP_MUTATIONS=200000 cargo test -p vmkeep-types --test mutated` looks longer.

use std::time::{Duration, Instant};

use serde_json::Value;
use vmkeep_types::manifest::{self, Manifest};

const CORPUS: [&str; 3] = [
    include_str!("../../../fuzz/corpus/manifest/small.yaml"),
    include_str!("../../../fuzz/corpus/manifest/whole.yaml"),
    include_str!("../../../fuzz/corpus/manifest/several.yaml"),
];

/// Pieces that break parsers, and those that our own fields are made of.
const PIECES: [&str; 64] = [
    "---\n",
    "...\n",
    "\n",
    "\t",
    "  ",
    "- ",
    ": ",
    "? ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "#",
    "&a ",
    "*a",
    "<<: *n",
    "!!str ",
    "!x ",
    "|\n  x\n",
    ">-\n",
    "'",
    "\"",
    "\\",
    "\u{0}",
    "\u{feff}",
    "ä",
    "😀",
    "\r\n",
    "%YAML 1.2\n",
    "~",
    "null",
    "true",
    "yes",
    "off",
    "0",
    "-1",
    "18446744073709551616",
    "1e999",
    ".inf",
    ".nan",
    "0x10",
    "0o7",
    "1_000",
    "20G",
    "0B",
    "99999999999T",
    "1h30m",
    "dhcp",
    "10.0.0.5/24",
    "::/0",
    "52:54:00:12:34:56",
    "kind: vm\n",
    "name: root",
    "image: x\n",
    "disks: ",
    "nics: ",
    "empty: true",
    "size: ",
    "@/etc/shadow",
    "${HOME}",
    "../..",
    "<x/>",
    "a b",
];

/// xorshift64*: repeatable, and good enough to choose pieces.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }
}

fn mutate(dice: &mut Dice, text: &mut Vec<char>) {
    let at = dice.roll(text.len() + 1);
    let end = (at + dice.roll(40)).min(text.len());
    match dice.roll(6) {
        0 => drop(text.drain(at..end)),
        1 => {
            let piece: Vec<char> = PIECES[dice.roll(PIECES.len())].chars().collect();
            text.splice(at..at, piece);
        }
        2 => {
            let piece: Vec<char> = PIECES[dice.roll(PIECES.len())].chars().collect();
            text.splice(at..end, piece);
        }
        3 => {
            let copy: Vec<char> = text[at..end].to_vec();
            let to = dice.roll(text.len() + 1);
            text.splice(to..to, copy);
        }
        4 if at < text.len() => text[at] = char::from(32 + dice.roll(95) as u8),
        _ => {
            let other: Vec<char> = CORPUS[dice.roll(CORPUS.len())].chars().collect();
            let from = dice.roll(other.len());
            text.splice(at..at, other[from..(from + dice.roll(80)).min(other.len())].iter().copied());
        }
    }
}

fn runs(default: u64) -> u64 {
    std::env::var("VMKEEP_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A text of a few KiB is read in milliseconds; this much means an endless or exponential loop.
const SLOW: Duration = Duration::from_secs(5);

#[test]
fn mutated_text() {
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=runs(2_500) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut text: Vec<char> = CORPUS[dice.roll(CORPUS.len())].chars().collect();
        for _ in 0..=dice.roll(3) {
            mutate(&mut dice, &mut text);
        }
        let text: String = text.into_iter().collect();
        let begun = Instant::now();
        match manifest::parse("a.yaml", &text) {
            Err(error) => {
                bad += 1;
                has_words_and_places(seed, &text, &error);
            }
            Ok(documents) => {
                good += 1;
                documents.into_iter().for_each(|d| reads_back(seed, d.manifest.normalized()));
            }
        }
        assert!(begun.elapsed() < SLOW, "seed {seed} took {:?}:\n{text}", begun.elapsed());
    }
    assert!(good > 50 && bad > 500, "the mutations are neither too mild nor too wild: {good} good, {bad} bad");
}

fn has_words_and_places(seed: u64, text: &str, error: &vmkeep_types::error::Error) {
    assert!(!error.message.is_empty(), "seed {seed}");
    assert!(!error.problems.is_empty() || error.hint.is_some(), "seed {seed}: {error}");
    let lines = text.lines().count() + 1;
    for problem in &error.problems {
        assert!(!problem.message.is_empty(), "seed {seed}: {problem:?}");
        assert!(!problem.message.chars().any(|c| c.is_control() && c != '\n'), "seed {seed}: {problem:?}");
        let line: usize = problem
            .field
            .split(':')
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("seed {seed}: no line in {problem:?}\n{text}"));
        assert!((1..=lines).contains(&line), "seed {seed}: {problem:?}");
    }
}

fn reads_back(seed: u64, wish: Manifest) {
    for yaml in [manifest::to_yaml_minimal(&wish), manifest::to_yaml_full(&wish)] {
        let again = manifest::parse("again.yaml", &yaml).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{yaml}"));
        assert_eq!(again[0].manifest.clone().normalized(), wish, "seed {seed}:\n{yaml}");
    }
}

/// Replaces, removes or doubles one thing somewhere in the value.
fn mutate_value(dice: &mut Dice, value: &mut Value) {
    let odd = |dice: &mut Dice| match dice.roll(10) {
        0 => Value::Null,
        1 => Value::Bool(true),
        2 => Value::from(-1),
        3 => Value::from(u64::MAX),
        4 => Value::from(1.5),
        5 => Value::Array(vec![]),
        6 => serde_json::json!({"a": 1}),
        7 => Value::String(String::new()),
        _ => Value::String(PIECES[dice.roll(PIECES.len())].to_owned()),
    };
    match value {
        Value::Object(map) if !map.is_empty() && dice.roll(5) > 0 => {
            let key = map.keys().nth(dice.roll(map.len())).cloned().unwrap_or_default();
            match dice.roll(8) {
                0 => drop(map.remove(&key)),
                1 => {
                    let moved = map.remove(&key).unwrap_or_default();
                    map.insert(format!("{key}s"), moved);
                }
                _ => mutate_value(dice, map.entry(key).or_insert(Value::Null)),
            }
        }
        Value::Array(items) if !items.is_empty() && dice.roll(5) > 0 => {
            let at = dice.roll(items.len());
            match dice.roll(4) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                _ => mutate_value(dice, &mut items[at]),
            }
        }
        other => *other = odd(dice),
    }
}

#[test]
fn mutated_json() {
    let wishes: Vec<Value> = CORPUS
        .iter()
        .flat_map(|t| manifest::parse("a.yaml", t).expect("the corpus is well formed"))
        .map(|d| d.manifest.to_json())
        .collect();
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=runs(2_500) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut value = wishes[dice.roll(wishes.len())].clone();
        for _ in 0..=dice.roll(2) {
            mutate_value(&mut dice, &mut value);
        }
        match manifest::from_json(value.clone()) {
            Ok(wish) => {
                good += 1;
                assert_eq!(manifest::from_json(wish.to_json()).as_ref(), Ok(&wish), "seed {seed}");
                reads_back(seed, wish);
            }
            Err(error) => {
                bad += 1;
                assert!(!error.problems.is_empty(), "seed {seed}: {error}\n{value}");
            }
        }
    }
    assert!(good > 50 && bad > 500, "the mutations are neither too mild nor too wild: {good} good, {bad} bad");
}

/// Paths of everything in a value, as JSON pointers.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(k, v)| pointers(v, &format!("{at}/{}", k.replace('~', "~0").replace('/', "~1")), found))
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(n, v)| pointers(v, &format!("{at}/{n}"), found)),
        _ => {}
    }
    found.push(at.to_owned());
}

/// Not by chance: each field once with each kind of value that it does not expect.
#[test]
fn every_field_with_every_odd_value() {
    let odd = [
        Value::Null,
        Value::Bool(true),
        Value::from(-1),
        Value::from(u64::MAX),
        Value::from(1.5),
        serde_json::json!([]),
        serde_json::json!({}),
        serde_json::json!({"a": {"b": []}}),
        serde_json::json!([[{}]]),
        Value::String(String::new()),
        Value::String("\u{1b}]0;x\u{7}".repeat(200)),
    ];
    let mut refused = 0;
    for document in CORPUS.iter().flat_map(|t| manifest::parse("a.yaml", t).expect("the corpus is well formed")) {
        let whole = document.manifest.to_json();
        let mut found = Vec::new();
        pointers(&whole, "", &mut found);
        for pointer in found {
            for (number, odd) in odd.iter().enumerate() {
                let mut value = whole.clone();
                *value.pointer_mut(&pointer).expect("it was found there") = odd.clone();
                match manifest::from_json(value) {
                    Ok(wish) => reads_back(number as u64, wish),
                    Err(error) => {
                        refused += 1;
                        assert!(!error.problems.is_empty(), "{pointer} = {odd}: {error}");
                        assert!(!error.to_string().contains('\u{1b}'), "{pointer} = {odd}");
                    }
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
