//! Who is renewed lives; who is not is killed, then reset; only a disarm ends it otherwise.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use vmkeep_agent::fenced::{GuardError, Why, last_reset};
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::fenced::wire::Standing;
use vmkeep_core::ha::timers::Timers;
use vmkeep_types::ha::WatchdogKind;

use super::lab::{Lab, long, now, short, until};

#[test]
fn it_pets_while_renewals_come_and_lets_go_after_a_disarm() {
    let lab = Lab::new(&[]);
    let idle = lab.guard.state().expect("it answers");
    assert_eq!((idle.standing, idle.watchdog_ms), (Standing::Idle, 0));
    let armed = lab.guard.arm(now(), &long()).expect("armed");
    assert_eq!((armed.standing, armed.watchdog, armed.watchdog_ms), (Standing::Armed, Some(WatchdogKind::Hardware), 8_000));
    assert_eq!(armed.identity, "lab dog");
    lab.seen.until("open pet");
    let again = lab.guard.arm(now(), &long()).expect("armed already");
    assert_eq!(again.standing, Standing::Armed);
    lab.guard.renewed(now()).expect("heard");
    let disarmed = lab.guard.disarm().expect("disarmed");
    assert_eq!((disarmed.standing, disarmed.kills, disarmed.allocations), (Standing::Idle, 0, 0));
    lab.seen.until("open pet close");
    lab.guard.arm(now(), &long()).expect("armed once more");
    lab.seen.until("open pet close open pet");
    lab.guard.disarm().expect("disarmed");
    lab.seen.until("open pet close open pet close");
}

#[test]
fn silence_kills_and_then_the_watchdog_bites() {
    let lab = Lab::new(&[]);
    lab.guard.arm(now(), &short()).expect("armed");
    lab.seen.until("open pet bite");
    let state = lab.guard.state().expect("it answers to the end");
    assert!(state.kills > 0 && state.silent_ms >= 1_000 && state.allocations == 0, "{state:?}");
    let why = until("the reason is on the disk", || last_reset(&lab.path("state/reason.json"), "the-next-boot"));
    assert_eq!(why.boot_id, "this-boot");
    assert!(matches!(why.why, Why::Silent { silent_ms: 1_000.. }), "{why:?}");
    assert!(lab.log().contains("VMs killed"), "{}", lab.log());
}

#[test]
fn a_seal_is_the_end_whatever_comes_after_it() {
    let lab = Lab::new(&[]);
    lab.guard.arm(now(), &short()).expect("armed");
    assert_eq!(lab.guard.sealed().expect("heard").standing, Standing::Sealed);
    lab.renewed_until("the watchdog bites", || {
        let _ = lab.guard.disarm();
        lab.seen.words().ends_with("bite")
    });
    assert!(!lab.seen.words().contains("close"));
    let why = until("the reason is on the disk", || last_reset(&lab.path("state/reason.json"), "the-next-boot"));
    assert_eq!(why.why, Why::Sealed);
}

#[test]
fn its_own_death_or_standstill_is_a_reset() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let lab = Lab::new(&[]);
        lab.guard.arm(now(), &Timers { watchdog_ms: 1_000, pet_every_ms: 200, ..long() }).expect("armed");
        lab.signal(signal);
        lab.seen.until("open pet bite");
        assert!(lab.guard.state().is_err(), "{signal}");
    }
}

#[test]
fn it_ends_when_told_to_only_while_idle() {
    let mut lab = Lab::new(&[]);
    lab.guard.arm(now(), &long()).expect("armed");
    lab.signal(Signal::SIGTERM);
    lab.renewed_until("it says that it stays", || lab.log().contains("does not end"));
    lab.guard.disarm().expect("it lives");
    lab.signal(Signal::SIGTERM);
    assert!(lab.child.wait().expect("our child").success());
    assert!(!lab.path("fenced.sock").exists());
    lab.seen.until("open pet close");
}

#[test]
fn a_new_program_takes_over_and_the_watchdog_does_not_notice() {
    let lab = Lab::new(&[]);
    lab.guard.arm(now(), &long()).expect("armed");
    let arguments = || std::fs::read_to_string(format!("/proc/{}/cmdline", lab.child.id())).expect("it runs");
    for _ in 0..2 {
        lab.signal(Signal::SIGHUP);
        lab.renewed_until("the new program answers", || arguments().matches("--inherit").count() == 1 && lab.guard.state().is_ok());
    }
    let state = lab.guard.renewed(now()).expect("heard");
    assert_eq!((state.standing, state.kills, state.identity.as_str()), (Standing::Armed, 0, "lab dog"));
    assert_eq!(state.watchdog_ms, 8_000);
    lab.guard.disarm().expect("disarmed");
    lab.seen.until("open pet close");
}

#[test]
fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
    let lab = Lab::with(&[], "ok 9000 lab dog");
    let slow = lab.guard.arm(now(), &long()).expect_err("too slow");
    assert_eq!(slow.to_string(), "the watchdog 'lab dog' bites after 9000 ms at the earliest, which is too late for these timers");
    lab.seen.until("open close");
    let late = Now { boottime_ms: u64::MAX, ..now() };
    assert!(matches!(lab.guard.arm(late, &long()), Err(GuardError::Future)));
    assert!(matches!(lab.guard.renewed(late), Err(GuardError::Future)));
    assert!(matches!(lab.guard.arm(now(), &Timers { kill_ms: 19_000, ..long() }), Err(GuardError::BadTimers)));
    assert_eq!(lab.guard.state().expect("it answers").standing, Standing::Idle);
    std::fs::remove_file(lab.path("dog.sock")).expect("it was there");
    let gone = lab.guard.arm(now(), &long()).expect_err("no watchdog");
    assert!(matches!(gone, GuardError::NotOpened { why: "No such file or directory", .. }), "{gone}");
}

#[test]
fn timers_do_not_change_while_armed() {
    let lab = Lab::with(&[], "ok MS Software Watchdog");
    assert_eq!(lab.guard.arm(now(), &long()).expect("armed").watchdog, Some(WatchdogKind::Software));
    assert!(matches!(lab.guard.arm(now(), &short()), Err(GuardError::BadTimers)));
    lab.guard.disarm().expect("disarmed");
}

/// What apt would do: the package's script, which finds this guard as the host's, and no service to stop.
fn removal(lab: &Lab) -> Output {
    let guard = format!("exec {} --socket {} \"$@\"", env!("CARGO_BIN_EXE_vmkeep-fenced"), lab.path("fenced.sock").display());
    for (name, does) in [("vmkeep-fenced", guard.as_str()), ("deb-systemd-invoke", "exit 0")] {
        std::fs::write(lab.path(name), format!("#!/bin/sh\n{does}\n")).expect("written");
        std::fs::set_permissions(lab.path(name), Permissions::from_mode(0o755)).expect("ours");
    }
    let prerm = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/debian/prerm");
    let path = format!("{}:/usr/bin:/bin", lab.dir.path().display());
    Command::new("sh").args([prerm, "remove"]).env("PATH", path).output().expect("sh runs")
}

#[test]
fn the_package_is_not_removed_from_an_armed_host() {
    let lab = Lab::new(&[]);
    lab.guard.arm(now(), &long()).expect("armed");
    let refused = removal(&lab);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("its watchdog is armed") && words.contains("vmkeep node drain"), "{words}");
    lab.guard.disarm().expect("disarmed");
    let status = Command::new(lab.path("vmkeep-fenced")).arg("--status").output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&status.stdout), "idle\n");
    assert!(removal(&lab).status.success());
}
