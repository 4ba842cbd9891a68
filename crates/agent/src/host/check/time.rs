//! Whether the clock is kept right.

use std::fs;

use vmkeep_types::host::CheckRow;

use super::row::{ok, warn};

/// adjtimex: nothing disciplines the clock.
const STA_UNSYNC: i32 = 0x40;

#[derive(Clone, Debug)]
pub struct TimeFacts {
    /// None = the kernel does not say.
    pub synced: Option<bool>,
    /// The kernel's bound on the error, while it is synchronised.
    pub error_bound_us: i64,
    pub clocksource: String,
}

pub fn gather() -> TimeFacts {
    // SAFETY: timex is plain data, zero is a valid value of every field, and modes = 0 only reads.
    let (answer, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex)
    };
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    TimeFacts {
        synced: (answer >= 0).then_some(timex.status & STA_UNSYNC == 0),
        error_bound_us: timex.maxerror,
        clocksource: source.trim().to_owned(),
    }
}

pub fn judge(facts: &TimeFacts) -> Vec<CheckRow> {
    vec![sync(facts), clocksource(facts)]
}

fn sync(facts: &TimeFacts) -> CheckRow {
    match facts.synced {
        Some(true) => ok("time-sync", format!("synchronised, within {} ms", (facts.error_bound_us + 999) / 1000)),
        Some(false) => {
            let why = "TLS certificates, tokens and logs depend on the time, and guests begin with the host's";
            warn("time-sync", "not synchronised", why, Some("apt-get install systemd-timesyncd".into()))
        }
        None => warn("time-sync", "unknown", "the kernel does not say whether its clock is synchronised", None),
    }
}

fn clocksource(facts: &TimeFacts) -> CheckRow {
    match facts.clocksource.as_str() {
        "acpi_pm" | "hpet" | "jiffies" => {
            let why = "each look at the time is a slow device access, in guests too: the kernel found the TSC unstable";
            warn("clocksource", facts.clocksource.clone(), why, Some("dmesg | grep -i -e tsc -e clocksource".into()))
        }
        "" => ok("clocksource", "unknown"),
        good => ok("clocksource", good),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn check(synced: Option<bool>, clocksource: &str, expect: Expect) {
        expect.assert_eq(&show(&judge(&TimeFacts { synced, error_bound_us: 4_200, clocksource: clocksource.into() })));
    }

    #[test]
    fn clocks() {
        check(
            Some(true),
            "tsc",
            expect![[r#"
                ok time-sync: synchronised, within 5 ms
                ok clocksource: tsc
            "#]],
        );
        check(
            Some(false),
            "hpet",
            expect![[r#"
                warn time-sync: not synchronised
                  TLS certificates, tokens and logs depend on the time, and guests begin with the host's
                  $ apt-get install systemd-timesyncd
                warn clocksource: hpet
                  each look at the time is a slow device access, in guests too: the kernel found the TSC unstable
                  $ dmesg | grep -i -e tsc -e clocksource
            "#]],
        );
        check(
            None,
            "",
            expect![[r#"
                warn time-sync: unknown
                  the kernel does not say whether its clock is synchronised
                ok clocksource: unknown
            "#]],
        );
    }
}
