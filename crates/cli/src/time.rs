//! Times as people read them: local, with the offset; ages in the largest two units.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `2026-01-31 14:05:09+01:00`
pub fn local(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
}

/// `45s`, `7m`, `3h12m`, `5d4h`
pub fn age(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m"),
        () if days == 0 => two(hours, "h", minutes % 60, "m"),
        () => two(days, "d", hours % 24, "h"),
    }
}

/// A sentence of the server's, which tells times in UTC, with them as [`local`] has them.
pub fn localized(text: &str) -> String {
    localized_to(text, local)
}

fn localized_to(text: &str, told: impl Fn(Timestamp) -> String) -> String {
    let word = |word: &str| {
        let end = word.find('Z').map_or(0, |z| z + 1);
        let (time, rest) = word.split_at(end);
        let (open, time) = time.strip_prefix('(').map_or(("", time), |time| ("(", time));
        // A date alone is a time to nobody.
        let at = time.contains('T').then(|| time.parse::<Timestamp>().ok()).flatten();
        at.map_or_else(|| word.to_owned(), |at| format!("{open}{}{rest}", told(at)))
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn two(big: i64, big_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_a_sentence() {
        let told = |at: Timestamp| at.strftime("<%H:%M:%S>").to_string();
        for (text, wanted) in [
            ("restart at 2026-01-31T14:05:09.123Z (2 of 5): crashed", "restart at <14:05:09> (2 of 5): crashed"),
            ("stopping (killed at 2026-01-31T14:05:09Z)", "stopping (killed at <14:05:09>)"),
            ("offline since 2026-01-31T14:05:09Z; before that: Zed runs", "offline since <14:05:09>; before that: Zed runs"),
            ("Z TZ (T1Z no time", "Z TZ (T1Z no time"),
        ] {
            assert_eq!(localized_to(text, told), wanted);
        }
    }

    #[test]
    fn ages() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        for (ago, text) in [(0, "0s"), (59, "59s"), (61, "1m"), (3600, "1h"), (11_520, "3h12m"), (446_400, "5d4h"), (-5, "0s")] {
            assert_eq!(age(Timestamp::from_second(1_000_000 - ago).expect("in range"), now), text);
        }
    }
}
