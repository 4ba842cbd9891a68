//! Mutated domain and network XML on the stable compiler: what `fuzz/` does without end, here a fixed number of times from
//! fixed seeds, beginning at the XML that libvirt really stored.
//!
//! Never a panic, never slow; a refusal has words without control characters; a description equals itself.
//! `VMKEEP_MUTATIONS=20000 cargo test -p vmkeep-agent --test mutated` looks longer.

use std::path::Path;
use std::time::{Duration, Instant};

use vmkeep_agent::probe;
use vmkeep_types::error::Error;

/// Pieces that break XML readers, and those that our own descriptions are made of.
const PIECES: [&str; 40] = [
    "<",
    ">",
    "</",
    "/>",
    "&",
    "&amp;",
    "&#0;",
    "&#x1b;",
    "&lt",
    "&x;",
    "'",
    "\"",
    "=",
    " ",
    "\n",
    "\u{0}",
    "\u{1b}[2J",
    "\u{feff}",
    "😀",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<?xml version='1.0'?>",
    "<!DOCTYPE d [<!ENTITY x 'y'>]>",
    "xmlns:v='v'",
    "<a><a><a><a>",
    "</domain>",
    "<domain type='kvm'>",
    "<disk type='file'><source file='/a'/></disk>",
    "<target dev='vda' bus='virtio'/>",
    "<interface type='network'>",
    "<mac address='52:54:00:00:00:01'/>",
    "<alias name='ua-disk-root'/>",
    "<uuid>no</uuid>",
    "<memory unit='KiB'>18446744073709551615</memory>",
    "<memory unit='EiB'>99</memory>",
    "<vcpu current='0'>-1</vcpu>",
    "<ip address='10.77.3.1' prefix='99'/>",
    "<backingStore/>",
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

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

fn corpus() -> Vec<String> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain/testdata/golden");
    let mut files: Vec<_> = std::fs::read_dir(golden).expect("the golden files").map(|f| f.expect("a file").path()).collect();
    files.sort();
    let mut texts: Vec<String> = files.iter().map(|f| std::fs::read_to_string(f).expect("text")).collect();
    texts.push(include_str!("../../../fuzz/corpus/domain_xml/small.xml").into());
    assert!(texts.len() > 10, "{} texts", texts.len());
    texts
}

fn mutate(dice: &mut Dice, text: &mut Vec<char>, corpus: &[String]) {
    let at = dice.roll(text.len() + 1);
    let end = (at + dice.roll(60)).min(text.len());
    match dice.roll(7) {
        0 => drop(text.drain(at..end)),
        1 => drop(text.splice(at..at, dice.pick(&PIECES).chars())),
        2 => drop(text.splice(at..end, dice.pick(&PIECES).chars())),
        3 => {
            let copy = text[at..end].to_vec();
            let to = dice.roll(text.len() + 1);
            text.splice(to..to, copy);
        }
        4 if at < text.len() => text[at] = char::from(32 + dice.roll(95) as u8),
        // A line of the same text, gone or doubled: mostly still well formed.
        5 => {
            let lines: Vec<String> = text.iter().collect::<String>().lines().map(str::to_owned).collect();
            let chosen = dice.roll(lines.len());
            let times = if dice.roll(2) == 0 { 0 } else { 2 };
            let kept = lines.iter().enumerate().flat_map(|(n, line)| std::iter::repeat_n(line, if n == chosen { times } else { 1 }));
            *text = kept.flat_map(|line| line.chars().chain(['\n'])).collect();
        }
        _ => {
            let other: Vec<char> = dice.pick(corpus).chars().collect();
            let from = dice.roll(other.len());
            text.splice(at..at, other[from..(from + dice.roll(200)).min(other.len())].iter().copied());
        }
    }
}

fn has_words(seed: u64, error: &Error) {
    assert!(!error.message.is_empty(), "seed {seed}");
    assert!(!error.to_string().chars().any(|c| c.is_control() && c != '\n'), "seed {seed}: {error:?}");
}

/// Ten readers of some 10 KiB, unoptimised and beside other tests; this much means an endless or exponential loop.
const SLOW: Duration = Duration::from_secs(10);

#[test]
fn mutated_xml() {
    let corpus = corpus();
    let runs = std::env::var("VMKEEP_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(250);
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=runs {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let wanted = dice.pick(&corpus).clone();
        let mut text: Vec<char> = wanted.chars().collect();
        for _ in 0..=dice.roll(3) {
            mutate(&mut dice, &mut text, &corpus);
        }
        let xml: String = text.into_iter().collect();
        let begun = Instant::now();
        let taken = probe::read(&xml, &wanted);
        match &taken.adopted {
            Ok(()) => good += 1,
            Err(error) => {
                bad += 1;
                has_words(seed, error);
            }
        }
        match taken.compared {
            Err(error) => has_words(seed, &error),
            Ok(_) => {
                let itself = probe::read(&xml, &xml).compared.expect("it parsed a moment ago");
                assert!(itself.drift.is_empty() && itself.conflicts.is_empty(), "seed {seed}: {itself:?}");
            }
        }
        assert!(begun.elapsed() < SLOW, "seed {seed} took {:?}:\n{xml}", begun.elapsed());
    }
    assert!(good > 20 && bad > 50, "the mutations are neither too mild nor too wild: {good} good, {bad} bad");
}

/// Deeper or larger than any real description.
#[test]
fn endless_xml_is_refused() {
    let deep = "<domain>".repeat(20_000);
    let wide = format!("<domain>{}</domain>", "<b/>".repeat(100_000));
    let long = format!("<domain>{}</domain>", "x".repeat(5 << 20));
    for xml in [deep, wide, long] {
        let taken = probe::read(&xml, "<domain/>");
        has_words(0, &taken.adopted.expect_err("it is no domain"));
        has_words(0, &taken.compared.expect_err("it is no domain"));
    }
}
