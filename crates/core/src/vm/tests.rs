//! Each test is a short story: what happened, and what the node does next.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use vmkeep_types::ids::{Epoch, Generation, Revision, VmId};
use vmkeep_types::name::Name;
use vmkeep_types::record::{Power, VmChoices, VmOrigin};
use vmkeep_types::vm::VmSpec;

use super::*;

/// A VM on a node, driven by words.
struct Story {
    order: Order,
    memory: VmMemory,
    domain: Observed<DomainNow>,
    host: HostPhase,
    boot_id: String,
    now_ms: u64,
    told: String,
}

impl Story {
    fn new(run: &str) -> Self {
        let mut spec = VmSpec::named(Name::known("web1"));
        spec.run = serde_json::from_value(run.into()).expect("a run policy");
        let order = Order {
            vm: VmId("11111111-1111-4111-8111-111111111111".parse().expect("a uuid")),
            project: Name::known("default"),
            spec,
            spec_revision: Revision(1),
            generation: Generation(1),
            epoch: Epoch(1),
            choices: VmChoices::default(),
            power: Power { want: PowerWish::On, cycle: 1, held: None, stop_timeout: None },
            origin: VmOrigin::Created,
            leaving: None,
            level: 0,
            instance: 0,
            volumes: BTreeMap::new(),
            images: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            moving: None,
            handed: None,
        };
        let (memory, domain) = (VmMemory::default(), Observed::Absent);
        Self { order, memory, domain, host: HostPhase::Up, boot_id: "boot-1".into(), now_ms: 0, told: String::new() }
    }

    fn look(&mut self) -> Decision {
        let decision = decide(&self.situation());
        self.memory = decision.memory.clone();
        decision
    }

    fn situation(&self) -> Situation<'_> {
        Situation {
            order: &self.order,
            domain: self.domain.clone(),
            memory: self.memory.clone(),
            host: self.host,
            turn: Turn::Mine,
            boot_id: &self.boot_id,
            now_ms: self.now_ms,
            now: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn off(&mut self, exit: ExitCause) {
        self.domain = Observed::Known(DomainNow { state: DomainState::Off, exit: Some(exit) });
    }

    /// Carries out decisions until nothing is left to do; a guest obeys AskDown only when the story says so.
    fn settle(&mut self) {
        for _ in 0..10 {
            let decision = self.look();
            let wake = decision.wake_at_ms.map(|at| format!(", again in {} ms", at - self.now_ms)).unwrap_or_default();
            self.told += &format!("  {:?} ({:?}{wake})\n", decision.act, decision.why);
            match decision.act {
                Act::Nothing | Act::AskDown => return,
                Act::Apply => {
                    applied(&mut self.memory, &self.order);
                    if self.domain == Observed::Absent {
                        self.domain = Observed::Known(DomainNow { state: DomainState::Off, exit: None });
                    }
                }
                Act::Start => {
                    started(&mut self.memory, &self.order);
                    self.domain = Observed::Known(DomainNow { state: DomainState::Running, exit: None });
                }
                Act::Kill => self.off(ExitCause::Destroyed),
                Act::Remove(_) => {
                    self.domain = Observed::Absent;
                    self.memory.removed = true;
                }
            }
        }
        panic!("does not settle:\n{}", self.told);
    }

    fn when(&mut self, what: &str) {
        self.told += &format!("{what}\n");
        match what.split(' ').collect::<Vec<_>>()[..] {
            ["look"] => {}
            ["QEMU", "is", "killed"] => self.off(ExitCause::Crashed),
            ["guest", "powers", "off"] => self.off(ExitCause::Shutdown),
            ["virsh", "destroy"] => self.off(ExitCause::Destroyed),
            ["virsh", "shutdown"] => {
                asked_down_outside(&mut self.memory, self.now_ms);
                self.off(ExitCause::Shutdown);
            }
            ["SIGTERM"] => self.off(ExitCause::Killed),
            ["shutdown", "called", "off"] => self.host = HostPhase::Up,
            ["edit", "in", "vain"] => {
                self.order.spec_revision = self.order.spec_revision.next();
                let before = self.look();
                assert_eq!(before.act, Act::Apply);
                let mut memory = self.memory.clone();
                apply_failed(&self.situation(), &mut memory);
                self.memory = memory;
            }
            ["virsh", "start"] => self.domain = Observed::Known(DomainNow { state: DomainState::Running, exit: None }),
            ["guest", "panics"] => self.domain = Observed::Known(DomainNow { state: DomainState::Crashed, exit: None }),
            ["libvirt", "is", "silent"] => self.domain = Observed::Unknown,
            ["host", "boots"] => {
                self.boot_id += "+";
                self.now_ms = 0;
                self.host = HostPhase::Up;
                self.off(ExitCause::Unknown);
            }
            ["host", "goes", "down"] => self.host = HostPhase::GoingDown,
            ["start", "fails"] => {
                let before = self.look();
                assert_eq!(before.act, Act::Start);
                let mut memory = self.memory.clone();
                start_failed(&self.situation(), &mut memory, "no space left");
                self.memory = memory;
            }
            ["wait", ms] => self.now_ms += ms.parse::<u64>().expect("milliseconds"),
            ["vm", verb] => self.command(verb),
            ["vm", verb, "within", seconds] => {
                self.order.power.stop_timeout = Some(vmkeep_types::units::Seconds::new(seconds.parse().expect("seconds")));
                self.command(verb);
            }
            ["edit"] => self.order.spec_revision = self.order.spec_revision.next(),
            ["delete"] => self.order.leaving = Some(Leaving::Delete),
            ["release"] => self.order.leaving = Some(Leaving::Release),
            _ => panic!("no such thing: {what}"),
        }
        self.settle();
    }

    fn command(&mut self, verb: &str) {
        let want = match verb {
            "start" => PowerWish::On,
            "stop" => PowerWish::Off,
            "kill" => PowerWish::Killed,
            "restart" => PowerWish::Restart,
            _ => panic!("no verb {verb}"),
        };
        let stop_timeout = self.order.power.stop_timeout.take();
        self.order.power = Power { want, cycle: self.order.power.cycle + 1, held: None, stop_timeout };
    }
}

fn check(run: &str, script: &[&str], story: Expect) {
    let mut s = Story::new(run);
    for line in script {
        s.when(line);
    }
    story.assert_eq(&s.told);
}

#[test]
fn a_stop_may_have_a_time_of_its_own() {
    check(
        "on-failure",
        &["look", "vm stop within 5", "wait 5000"],
        expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        vm stop within 5
          AskDown (Stopping { kill_at_ms: Some(5000) }, again in 5000 ms)
        wait 5000
          Kill (Stopping { kill_at_ms: Some(5000) })
          Nothing (AsWished)
    "#]],
    );
}

#[test]
fn created_then_stopped_gently_and_killed_at_the_timeout() {
    check(
        "on-failure",
        &["look", "vm stop", "wait 10000", "wait 110000", "wait 1"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            vm stop
              AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
            wait 10000
              AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
            wait 110000
              Kill (Stopping { kill_at_ms: Some(120000) })
              Nothing (AsWished)
            wait 1
              Nothing (AsWished)
        "#]],
    );
}

#[test]
fn a_killed_qemu_comes_back_with_back_off() {
    check(
        "on-failure",
        &["look", "QEMU is killed", "wait 1000", "QEMU is killed", "wait 1999", "wait 1"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            QEMU is killed
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            wait 1000
              Start (ToStart)
              Nothing (AsWished)
            QEMU is killed
              Nothing (Backoff { at_ms: 3000, attempt: 2, max: 5 }, again in 2000 ms)
            wait 1999
              Nothing (Backoff { at_ms: 3000, attempt: 2, max: 5 }, again in 1 ms)
            wait 1
              Start (ToStart)
              Nothing (AsWished)
        "#]],
    );
}

#[test]
fn the_limit_ends_in_giving_up_until_a_person_starts_it() {
    let mut s = Story::new("always");
    s.when("look");
    for _ in 0..6 {
        s.when("QEMU is killed");
        s.when("wait 60000");
    }
    assert!(s.memory.gave_up, "{}", s.told);
    s.told.clear();
    s.when("wait 60000");
    s.when("vm start");
    expect![[r#"
        wait 60000
          Nothing (GaveUp { max: 5 })
        vm start
          Start (ToStart)
          Nothing (AsWished)
    "#]]
    .assert_eq(&s.told);
}

#[test]
fn a_guests_own_power_off_is_respected_unless_always() {
    check(
        "on-failure",
        &["look", "guest powers off", "host boots"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            guest powers off
              Nothing (AsWished)
            host boots
              Nothing (AsWished)
        "#]],
    );
    check(
        "always",
        &["look", "guest powers off", "wait 1000"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            guest powers off
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            wait 1000
              Start (ToStart)
              Nothing (AsWished)
        "#]],
    );
}

#[test]
fn virsh_stops_are_holds_over_boots_and_virsh_start_ends_them() {
    for stop in ["virsh destroy", "virsh shutdown"] {
        let mut s = Story::new("always");
        s.when("look");
        s.when(stop);
        assert!(matches!(s.memory.rest, Some(Rest::Held(_))), "{stop}: {}", s.told);
        s.told.clear();
        s.when("host boots");
        s.when("virsh start");
        s.when("QEMU is killed");
        expect![[r#"
            host boots
              Nothing (AsWished)
            virsh start
              Nothing (AsWished)
            QEMU is killed
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
        "#]]
        .assert_eq(&s.told);
    }
}

#[test]
fn the_host_goes_down_and_boots() {
    let script = ["look", "host goes down", "guest powers off", "host boots"];
    check(
        "on-failure",
        &script,
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            host goes down
              AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
            guest powers off
              Nothing (HostGoingDown)
            host boots
              Start (ToStart)
              Nothing (AsWished)
        "#]],
    );
    check(
        "manual",
        &script,
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            host goes down
              AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
            guest powers off
              Nothing (HostGoingDown)
            host boots
              Nothing (AsWished)
        "#]],
    );
}

#[test]
fn a_stop_by_us_is_kept_over_a_boot() {
    for run in ["always", "on-failure"] {
        let mut s = Story::new(run);
        for line in ["look", "vm kill", "host boots"] {
            s.when(line);
        }
        assert_eq!(s.domain.known().map(|d| d.state), Some(DomainState::Off), "{run}: {}", s.told);
    }
}

#[test]
fn restart_goes_through_off_exactly_once() {
    check(
        "manual",
        &["look", "vm restart", "guest powers off", "look"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            vm restart
              AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
            guest powers off
              Start (ToStart)
              Nothing (AsWished)
            look
              Nothing (AsWished)
        "#]],
    );
}

#[test]
fn a_failed_start_ends_the_command_and_is_tried_again_by_policy() {
    check(
        "on-failure",
        &["start fails", "wait 1000"],
        expect![[r#"
            start fails
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            wait 1000
              Start (ToStart)
              Nothing (AsWished)
        "#]],
    );
    check(
        "manual",
        &["start fails", "wait 1000"],
        expect![[r#"
            start fails
              Nothing (ToApply, again in 15000 ms)
            wait 1000
              Nothing (ToApply, again in 14000 ms)
        "#]],
    );
}

#[test]
fn an_unknown_state_is_never_acted_upon() {
    check(
        "always",
        &["look", "libvirt is silent", "vm stop"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            libvirt is silent
              Nothing (Unknown, again in 1000 ms)
            vm stop
              Nothing (Unknown, again in 1000 ms)
        "#]],
    );
}

#[test]
fn a_panicked_guest_is_killed_and_started_again() {
    check(
        "on-failure",
        &["look", "guest panics", "wait 1000"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            guest panics
              Kill (ToStart)
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            wait 1000
              Start (ToStart)
              Nothing (AsWished)
        "#]],
    );
}

#[test]
fn edits_are_applied_and_deletion_kills_first() {
    check(
        "always",
        &["look", "edit", "delete"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            edit
              Apply (ToApply)
              Nothing (AsWished)
            delete
              Kill (Leaving)
              Remove(Delete) (Leaving)
              Nothing (Leaving)
        "#]],
    );
    check(
        "always",
        &["look", "release"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            release
              Remove(Release) (Leaving)
              Nothing (Leaving)
        "#]],
    );
}

#[test]
fn a_stop_that_was_called_off_leaves_its_patience_behind() {
    check(
        "on-failure",
        &["look", "vm stop", "vm start", "wait 3600000", "vm stop"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            vm stop
              AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
            vm start
              Nothing (AsWished)
            wait 3600000
              Nothing (AsWished)
            vm stop
              AskDown (Stopping { kill_at_ms: Some(3720000) }, again in 10000 ms)
        "#]],
    );
}

#[test]
fn a_guest_that_obeys_a_stop_that_was_called_off_is_started_again() {
    check(
        "on-failure",
        &["look", "vm stop", "vm start", "wait 60000", "guest powers off"],
        expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        vm stop
          AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
        vm start
          Nothing (AsWished)
        wait 60000
          Nothing (AsWished)
        guest powers off
          Start (ToStart)
          Nothing (AsWished)
    "#]],
    );
}

#[test]
fn long_after_a_stop_that_was_called_off_an_exit_is_what_it_is() {
    let stopped_once = ["look", "vm stop", "vm start"];
    let then = |what: &[&'static str]| [&stopped_once[..], what].concat();
    check(
        "on-failure",
        &then(&["virsh destroy"]),
        expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        vm stop
          AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
        vm start
          Nothing (AsWished)
        virsh destroy
          Nothing (AsWished)
    "#]],
    );
    check(
        "on-failure",
        &then(&["wait 300000", "guest powers off"]),
        expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        vm stop
          AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
        vm start
          Nothing (AsWished)
        wait 300000
          Nothing (AsWished)
        guest powers off
          Nothing (AsWished)
    "#]],
    );
    check(
        "on-failure",
        &then(&["QEMU is killed"]),
        expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        vm stop
          AskDown (Stopping { kill_at_ms: Some(120000) }, again in 10000 ms)
        vm start
          Nothing (AsWished)
        QEMU is killed
          Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
    "#]],
    );
}

#[test]
fn each_host_shutdown_has_its_own_patience() {
    check(
        "on-failure",
        &["look", "vm stop within 0", "wait 3600000", "host goes down", "shutdown called off", "vm start", "wait 60000", "host goes down"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            vm stop within 0
              AskDown (Stopping { kill_at_ms: None }, again in 10000 ms)
            wait 3600000
              AskDown (Stopping { kill_at_ms: None }, again in 10000 ms)
            host goes down
              AskDown (Stopping { kill_at_ms: Some(3720000) }, again in 10000 ms)
            shutdown called off
              AskDown (Stopping { kill_at_ms: None }, again in 10000 ms)
            vm start
              Nothing (AsWished)
            wait 60000
              Nothing (AsWished)
            host goes down
              AskDown (Stopping { kill_at_ms: Some(3780000) }, again in 10000 ms)
        "#]],
    );
}

#[test]
fn a_wish_does_not_wait_for_a_vm_that_waits_or_gave_up() {
    check(
        "on-failure",
        &["look", "QEMU is killed", "edit", "edit in vain", "wait 1000"],
        expect![[r#"
            look
              Start (ToStart)
              Nothing (AsWished)
            QEMU is killed
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            edit
              Apply (ToApply)
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            edit in vain
              Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
            wait 1000
              Start (ToStart)
              Nothing (AsWished)
        "#]],
    );
    let mut s = Story::new("on-failure");
    s.order.spec.restart.max = 0;
    for line in ["look", "QEMU is killed", "edit", "edit in vain", "wait 15000", "vm start"] {
        s.when(line);
    }
    expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        QEMU is killed
          Nothing (GaveUp { max: 0 })
        edit
          Apply (ToApply)
          Nothing (GaveUp { max: 0 })
        edit in vain
          Nothing (GaveUp { max: 0 }, again in 15000 ms)
        wait 15000
          Apply (ToApply)
          Nothing (GaveUp { max: 0 })
        vm start
          Start (ToStart)
          Nothing (AsWished)
    "#]]
    .assert_eq(&s.told);
}

#[test]
fn a_qemu_that_was_told_to_quit_is_started_again() {
    check(
        "on-failure",
        &["look", "SIGTERM", "wait 1000", "vm stop", "SIGTERM"],
        expect![[r#"
        look
          Start (ToStart)
          Nothing (AsWished)
        SIGTERM
          Nothing (Backoff { at_ms: 1000, attempt: 1, max: 5 }, again in 1000 ms)
        wait 1000
          Start (ToStart)
          Nothing (AsWished)
        vm stop
          AskDown (Stopping { kill_at_ms: Some(121000) }, again in 10000 ms)
        SIGTERM
          Nothing (AsWished)
    "#]],
    );
}
