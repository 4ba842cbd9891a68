//! A member whose control plane and agent are two processes leaves its cluster, and recovers it, as one with one does.

use std::process::{Child, Stdio};

use vmkeep_e2e::host::{Host, bin, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, join, token, until_healthy};
use super::hello::BOOT;

/// The two processes of a host.
pub(super) struct Roles {
    control: Child,
    compute: Child,
}

fn role(host: &Host, role: &str, point: Option<&str>) -> Child {
    let (vmkeepd, config) = (bin("vmkeepd").display().to_string(), host.config_file().display().to_string());
    let point = format!("VMKEEP_CRASH_POINT={}", point.unwrap_or_default());
    host.spawn(&format!("{role}.log"), &["env", &point, &vmkeepd, "--config", &config, "--role", role])
}

impl Roles {
    pub(super) fn of(host: &mut Host) -> Self {
        host.kill_daemon();
        Self { control: role(host, "control", None), compute: role(host, "compute", None) }
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        for child in [&mut self.control, &mut self.compute] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(super) fn logs(host: &Host) -> String {
    ["control.log", "compute.log"].map(|log| tail(&std::fs::read_to_string(host.path(log)).unwrap_or_default())).join("\n")
}

fn ends(child: &mut Child, host: &Host, what: &str) {
    until(what, SETTLE, || if child.try_wait().expect("a child").is_some() { Ok(()) } else { Err(logs(host)) });
}

pub(super) fn two_members(switch: &Switch) -> (Host, Host) {
    let (one, two) = (host(switch, 1), host(switch, 2));
    init(&one);
    let joined = join(&two, &token(&one));
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&two.daemon_log()));
    until_healthy(&one, "node1:member:follower node2:member:follower");
    (one, two)
}

#[test]
fn both_processes_of_a_member_leave_together() {
    let switch = Switch::new("apartleave");
    let (one, mut two) = two_members(&switch);
    let mut roles = Roles::of(&mut two);
    until_healthy(&two, "node1:member:follower node2:member:follower");
    let mut asked = two.cli();
    asked.args(["cluster", "leave", "--yes"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut asked = asked.spawn().expect("vmkeep runs");
    // A host alone has one process: systemd begins that one.
    ends(&mut roles.control, &two, "the control plane has ended");
    ends(&mut roles.compute, &two, "the agent has ended");
    assert!(!two.exec(["test", "-e", "/var/lib/vmkeep/cluster"]).status.success(), "no key stays\n{}", logs(&two));
    two.start_daemon();
    assert!(asked.wait().expect("a child").success(), "who asked waits for the host to be back");
    assert!(two.json(["vm", "list", "-o", "json"]).as_array().is_some_and(Vec::is_empty));
    until_healthy(&one, "node1:member:follower");
}

/// Where the daemon is killed that recovers its cluster; each time it is started again it dies at the next one.
const RECOVERING: [&str; 5] = ["recover: restored", "recover: swapped", "recover: etcd alone", "recover: a new life", "recover: alone"];

#[test]
fn a_recovery_from_its_own_database_that_is_killed_at_every_step_goes_on() {
    let switch = Switch::new("apartrecover");
    let (mut one, mut two) = two_members(&switch);
    one.apply(
        "kind: vm\nname: c\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
         disks: [{name: root, empty: true, size: 1M}]\nplacement: {node_selector: {node: node1}}\n",
    );
    one.phase("c", "running", BOOT);
    let pids = one.qemu_pids("c");
    two.power_off();
    let mut roles = Roles::of(&mut one);
    roles.control.kill().expect("our child");
    roles.control.wait().expect("our child");
    roles.control = role(&one, "control", Some("recover: begun"));
    until("it waits for etcd", SETTLE, || {
        let told = text(&one.vmkeep(["vm", "list"]).stderr);
        if told.contains("waits for etcd") { Ok(()) } else { Err(told + &logs(&one)) }
    });
    let mut asked = one.cli();
    asked.args(["cluster", "recover", "--lost", "node2", "--yes"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut asked = asked.spawn().expect("vmkeep runs");
    ends(&mut roles.control, &one, "it is killed when it has noted what it is to do");
    let _ = asked.kill();
    let _ = asked.wait();
    for point in RECOVERING {
        roles.control = role(&one, "control", Some(point));
        ends(&mut roles.control, &one, point);
    }
    roles.control = role(&one, "control", None);
    until_healthy(&one, "node1:member:follower");
    one.phase("c", "running", BOOT);
    assert_eq!(one.qemu_pids("c"), pids, "the guest knows nothing of it");
    until("the recovery is over", SETTLE, || {
        let told = text(&one.vmkeep(["cluster", "status"]).stderr);
        if told.contains("was recovered") { Err(told + &logs(&one)) } else { Ok(()) }
    });
    one.ok(["vm", "set", "c", "description=changed"]);
    assert!(roles.compute.try_wait().expect("a child").is_none(), "the agent's process went on\n{}", logs(&one));
    one.ok(["vm", "delete", "c", "--yes"]);
}
