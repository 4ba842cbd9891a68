//! The watchdog, which resets a host that the cluster no longer hears of. Nothing is opened: that would start it.

use std::fs;
use std::path::Path;

use vmkeep_types::host::CheckRow;

use super::row::{ok, warn};

const ROOT: &str = "/sys/class/watchdog";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchdogFacts {
    /// `watchdog0`
    pub device: String,
    /// The driver's name for it.
    pub identity: String,
    /// It is open and counts.
    pub active: bool,
    /// Seconds, now.
    pub timeout_s: u32,
    /// Seconds; 0 = the driver has no limit.
    pub shortest_s: u32,
}

/// All that there are, and whether vmkeep-fenced is the one that has one open.
#[derive(Clone, Debug)]
pub struct Watchdogs {
    pub found: Vec<WatchdogFacts>,
    pub ours: bool,
}

/// The longest time-out that the timers of high availability bear, s.
const TIMEOUT_S_MAX: u32 = 8;
/// The kernel's own.
const SOFTWARE: &str = "Software Watchdog";

pub fn gather(ours: bool) -> Watchdogs {
    Watchdogs { found: all(Path::new(ROOT)), ours }
}

fn all(class: &Path) -> Vec<WatchdogFacts> {
    let there = fs::read_dir(class).into_iter().flatten().flatten();
    let mut found: Vec<WatchdogFacts> = there.map(|entry| read(&entry.path())).collect();
    found.sort();
    found
}

/// The earliest that any hardware watchdog bites, s; None: there is none, or a driver that says nothing: it may be quick enough.
pub fn shortest_s(sys: &Path) -> Option<u32> {
    let hardware = all(&sys.join("class/watchdog")).into_iter().filter(|dog| dog.identity != SOFTWARE);
    hardware.map(|dog| dog.shortest_s).min().filter(|shortest| *shortest > 0)
}

fn read(at: &Path) -> WatchdogFacts {
    let text = |file: &str| fs::read_to_string(at.join(file)).unwrap_or_default().trim().to_owned();
    WatchdogFacts {
        device: at.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        identity: text("identity"),
        active: text("state") == "active",
        timeout_s: text("timeout").parse().unwrap_or(0),
        shortest_s: text("min_timeout").parse().unwrap_or(0),
    }
}

pub fn judge(facts: &Watchdogs) -> Vec<CheckRow> {
    let hardware = facts.found.iter().find(|dog| dog.identity != SOFTWARE);
    vec![match (hardware, facts.found.first()) {
        (Some(dog), _) => hard(dog, facts.ours),
        (None, Some(dog)) => {
            let found = format!("/dev/{}: software (softdog)", dog.device);
            let why = "the kernel's own watchdog stands still while the whole host does: it proves to no other host that this one is off, so its \
                       highly available VMs wait for a fence agent or a person";
            warn(
                "watchdog",
                found,
                why,
                Some("switch the hardware watchdog on in the firmware setup, or vmkeep node set NAME --fence AGENT …".into()),
            )
        }
        (None, None) => {
            let why = "a host that the cluster no longer hears of cannot reset itself: its highly available VMs wait for a fence agent or a person; \
                       a host alone needs none";
            warn(
                "watchdog",
                "none",
                why,
                Some("modprobe the watchdog driver of this board (iTCO_wdt, sp5100_tco, ipmi_watchdog, …)".into()),
            )
        }
    }]
}

fn hard(dog: &WatchdogFacts, ours: bool) -> CheckRow {
    let found = format!("/dev/{}: {} (hardware)", dog.device, dog.identity);
    if dog.shortest_s > TIMEOUT_S_MAX {
        let why = format!("it bites after {} s at the earliest; high availability needs {TIMEOUT_S_MAX} s or less", dog.shortest_s);
        return warn("watchdog", found, why, Some("use another watchdog: --watchdog in /etc/default/vmkeep-fenced".into()));
    }
    if dog.active && !ours {
        let why = format!("another program has it open (time-out {} s), and vmkeep-fenced cannot", dog.timeout_s);
        let mend = "systemctl disable --now watchdog; unset RuntimeWatchdogSec in /etc/systemd/system.conf; systemctl daemon-reexec";
        return warn("watchdog", found, why, Some(mend.into()));
    }
    ok("watchdog", found)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::host::check::show;

    fn dog(identity: &str) -> WatchdogFacts {
        WatchdogFacts { device: "watchdog0".into(), identity: identity.into(), active: false, timeout_s: 60, shortest_s: 1 }
    }

    fn check(found: &[WatchdogFacts], ours: bool, expect: Expect) {
        expect.assert_eq(&show(&judge(&Watchdogs { found: found.to_vec(), ours })));
    }

    #[test]
    fn hardware_is_what_counts() {
        let mut soft = dog(SOFTWARE);
        check(
            &[soft.clone(), WatchdogFacts { device: "watchdog1".into(), ..dog("iTCO_wdt") }],
            false,
            expect![[r#"
                ok watchdog: /dev/watchdog1: iTCO_wdt (hardware)
            "#]],
        );
        soft.active = true;
        check(
            &[soft],
            true,
            expect![[r#"
                warn watchdog: /dev/watchdog0: software (softdog)
                  the kernel's own watchdog stands still while the whole host does: it proves to no other host that this one is off, so its highly available VMs wait for a fence agent or a person
                  $ switch the hardware watchdog on in the firmware setup, or vmkeep node set NAME --fence AGENT …
            "#]],
        );
        check(
            &[],
            false,
            expect![[r#"
                warn watchdog: none
                  a host that the cluster no longer hears of cannot reset itself: its highly available VMs wait for a fence agent or a person; a host alone needs none
                  $ modprobe the watchdog driver of this board (iTCO_wdt, sp5100_tco, ipmi_watchdog, …)
            "#]],
        );
    }

    #[test]
    fn hardware_that_cannot_be_had() {
        let open = WatchdogFacts { active: true, ..dog("i6300ESB timer") };
        check(
            std::slice::from_ref(&open),
            true,
            expect![[r#"
                ok watchdog: /dev/watchdog0: i6300ESB timer (hardware)
            "#]],
        );
        check(
            &[open],
            false,
            expect![[r#"
                warn watchdog: /dev/watchdog0: i6300ESB timer (hardware)
                  another program has it open (time-out 60 s), and vmkeep-fenced cannot
                  $ systemctl disable --now watchdog; unset RuntimeWatchdogSec in /etc/systemd/system.conf; systemctl daemon-reexec
            "#]],
        );
        check(
            &[WatchdogFacts { shortest_s: 30, ..dog("slow") }],
            false,
            expect![[r#"
                warn watchdog: /dev/watchdog0: slow (hardware)
                  it bites after 30 s at the earliest; high availability needs 8 s or less
                  $ use another watchdog: --watchdog in /etc/default/vmkeep-fenced
            "#]],
        );
    }
}
