//! What was measured and what was wanted, for people or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Latencies of one kind of call, and how long all of them took together.
pub struct Samples {
    sorted: Vec<Duration>,
    wall: Duration,
}

impl Samples {
    pub fn new(mut latencies: Vec<Duration>, wall: Duration) -> Self {
        assert!(!latencies.is_empty(), "something was measured");
        latencies.sort_unstable();
        Self { sorted: latencies, wall }
    }

    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest latency that `percent` of the calls do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted[rank - 1]
    }

    pub fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.wall.as_secs_f64().max(f64::EPSILON)
    }
}

/// A number that somebody wished for.
#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

enum Row {
    Samples { what: String, samples: Samples },
    Number { what: String, value: f64, unit: &'static str, wanted: Option<Wanted> },
}

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn samples(&mut self, what: impl Into<String>, samples: Samples) {
        self.rows.push(Row::Samples { what: what.into(), samples });
    }

    pub fn number(&mut self, what: impl Into<String>, value: f64, unit: &'static str, wanted: Option<Wanted>) {
        self.rows.push(Row::Number { what: what.into(), value, unit, wanted });
    }

    /// Something wanted was not reached.
    pub fn missed(&self) -> bool {
        self.rows.iter().any(|row| matches!(row, Row::Number { value, wanted: Some(wanted), .. } if !wanted.met(*value)))
    }

    pub fn show(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Json => format!("{:#}\n", Value::Array(self.rows.iter().map(Row::json).collect())),
        }
    }

    fn text(&self) -> String {
        let width = self.rows.iter().map(|row| row.what().chars().count()).max().unwrap_or(0);
        self.rows.iter().fold(String::new(), |mut text, row| {
            let _ = writeln!(text, "{:width$}  {}", row.what(), row.told());
            text
        })
    }
}

impl Wanted {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl Row {
    fn what(&self) -> &str {
        match self {
            Self::Samples { what, .. } | Self::Number { what, .. } => what,
        }
    }

    fn told(&self) -> String {
        match self {
            Self::Samples { samples, .. } => {
                let (p50, p99) = (milliseconds(samples.percentile(50)), milliseconds(samples.percentile(99)));
                format!("{:>9.0} /s  p50 {p50:>8.3} ms  p99 {p99:>8.3} ms  n {}", samples.per_second(), samples.count())
            }
            Self::Number { value, unit, wanted, .. } => {
                let wish = match wanted {
                    None => String::new(),
                    Some(Wanted::AtLeast(least)) => format!("  wanted ≥ {least}"),
                    Some(Wanted::AtMost(most)) => format!("  wanted ≤ {most}"),
                };
                let verdict = wanted.map_or("", |wanted| if wanted.met(*value) { "  ok" } else { "  MISSED" });
                format!("{value:>9.2} {unit}{wish}{verdict}")
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Samples { what, samples } => json!({
                "what": what,
                "per_second": samples.per_second(),
                "p50_ms": milliseconds(samples.percentile(50)),
                "p99_ms": milliseconds(samples.percentile(99)),
                "count": samples.count(),
            }),
            Self::Number { what, value, unit, wanted } => {
                let (least, most) = match wanted {
                    Some(Wanted::AtLeast(least)) => (Some(*least), None),
                    Some(Wanted::AtMost(most)) => (None, Some(*most)),
                    None => (None, None),
                };
                json!({ "what": what, "value": value, "unit": unit, "at_least": least, "at_most": most, "met": wanted.map(|w| w.met(*value)) })
            }
        }
    }
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(latencies: impl IntoIterator<Item = u64>, wanted: Wanted, format: Format, text: Expect) {
        let mut report = Report::default();
        let latencies: Vec<Duration> = latencies.into_iter().map(Duration::from_millis).collect();
        report.samples("get", Samples::new(latencies, Duration::from_secs(2)));
        report.number("one VM, times Incus", 8.5, "x", Some(wanted));
        text.assert_eq(&format!("{}missed: {}\n", report.show(format), report.missed()));
    }

    #[test]
    fn percentiles_are_ranks() {
        check(
            (1..=200).rev(),
            Wanted::AtLeast(8.0),
            Format::Text,
            expect![[r"
                get                        100 /s  p50  100.000 ms  p99  198.000 ms  n 200
                one VM, times Incus       8.50 x  wanted ≥ 8  ok
                missed: false
            "]],
        );
    }

    #[test]
    fn one_sample_is_every_percentile() {
        check(
            [7],
            Wanted::AtMost(8.0),
            Format::Text,
            expect![[r"
                get                          0 /s  p50    7.000 ms  p99    7.000 ms  n 1
                one VM, times Incus       8.50 x  wanted ≤ 8  MISSED
                missed: true
            "]],
        );
    }

    #[test]
    fn json_says_the_same() {
        check(
            [1, 3],
            Wanted::AtMost(8.0),
            Format::Json,
            expect![[r#"
                [
                  {
                    "count": 2,
                    "p50_ms": 1.0,
                    "p99_ms": 3.0,
                    "per_second": 1.0,
                    "what": "get"
                  },
                  {
                    "at_least": null,
                    "at_most": 8.0,
                    "met": false,
                    "unit": "x",
                    "value": 8.5,
                    "what": "one VM, times Incus"
                  }
                ]
                missed: true
            "#]],
        );
    }
}
