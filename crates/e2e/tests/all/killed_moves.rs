//! Agents and the leader are killed, without a word, while a real guest moves between real hosts, and a host's only cable is out for a
//! while. The move ends one way or the other, and the guest ran on all the time, on one host after the other.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use vmkeep_e2e::cluster::{Cluster, Program, Signal};
use vmkeep_e2e::ha::{Home, RECOVERED};
use vmkeep_e2e::host::text;
use vmkeep_e2e::wait::until;

use super::play::Play;

/// No watchdog bites before 15 s.
const CUT: Duration = Duration::from_secs(7);
/// 128 MiB of a guest take long enough to be met in the middle.
const SLOW: &str = "4M";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    Source,
    Destination,
    Leader,
    /// Nobody: the destination's line, over which its etcd is reached too.
    Line,
}

fn migrations(cluster: &Cluster, asked: usize) -> Vec<Value> {
    let out = cluster.host(asked).vmkeep(["op", "list", "-o", "json"]);
    let all: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    all.as_array().into_iter().flatten().filter(|op| op["kind"] == "vm.migrate").cloned().collect()
}

/// Begins to move it, does something to somebody while its data goes, and waits for the end: the operation.
pub(super) fn struck(
    cluster: &mut Cluster,
    (vm, bandwidth): (&str, &str),
    (from, to): (usize, usize),
    whom: Whom,
    meanwhile: impl FnOnce(&Cluster),
) -> Value {
    let asked = cluster.beside(from);
    let known: Vec<Value> = migrations(cluster, asked).iter().map(|op| op["id"].clone()).collect();
    cluster.host(asked).ok(["vm", "migrate", vm, "--to", &format!("node{}", to + 1), "--bandwidth", bandwidth, "--no-wait"]);
    let find = |cluster: &Cluster| migrations(cluster, asked).into_iter().find(|op| !known.contains(&op["id"])).unwrap_or_default();
    until("it copies", RECOVERED, || {
        let op = find(cluster);
        let copies = op["copying"]["done"].as_u64().is_some_and(|done| done > 0);
        if copies { Ok(()) } else { Err(format!("{op}\n{}", cluster.logs())) }
    });
    meanwhile(cluster);
    match whom {
        Whom::Source | Whom::Destination => {
            let host = if whom == Whom::Source { from } else { to };
            cluster.members[host].signal(Program::Agent, Signal::Kill);
            std::thread::sleep(Duration::from_secs(1));
            cluster.members[host].start_compute();
        }
        Whom::Leader => {
            let leader = cluster.leader();
            cluster.members[leader].kill_control();
            std::thread::sleep(Duration::from_secs(1));
            cluster.members[leader].start_control();
        }
        Whom::Line => {
            cluster.members[to].host.cut();
            std::thread::sleep(CUT);
            cluster.members[to].host.join();
        }
    }
    until("the move ends", RECOVERED, || {
        let op = find(cluster);
        let ended = ["done", "failed"].iter().any(|state| op["state"] == *state);
        if ended { Ok(op) } else { Err(format!("{op}\n{}", cluster.logs())) }
    })
}

fn until_it_runs(cluster: &Cluster, asked: usize) -> Home {
    until("it runs, and is known to", RECOVERED, || {
        let vm = cluster.host(asked).shown("tick")?;
        Home::of(&vm).ok_or_else(|| format!("{}\n{}", vm["status"], cluster.logs()))
    })
}

/// Moves it, kills in the middle, and waits for the end.
fn killed(cluster: &mut Cluster, before: Home, whom: Whom) -> Home {
    let to = (before.host + 1) % 3;
    let asked = cluster.beside(before.host);
    let op = struck(cluster, ("tick", SLOW), (before.host, to), whom, |_| {});
    let state = op["state"].as_str().unwrap_or_default().to_owned();
    let now = until_it_runs(cluster, asked);
    println!("{whom:?} harmed: the move is {state}, the guest is on {}", now.node());
    let moved = now.host == to && now.generation == before.generation + 1;
    let stayed = now == before;
    assert!(if state == "done" { moved } else { stayed }, "{state}: from {before:?} to {now:?}\n{}", cluster.logs());
    now
}

/// The destination's libvirt dies as it hears of the guest, and is started again: nothing had gone, so the guest is sent again.
fn hung_up_on(cluster: &mut Cluster, before: Home) -> Home {
    let to = (before.host + 1) % 3;
    let (asked, host) = (cluster.beside(before.host), cluster.host(to));
    let hook = host.lab_folder().join("etc/libvirt/hooks/qemu.d/dies-once");
    let dies = "#!/bin/sh\n[ \"$2\" = migrate ] || exit 0\nrm \"$0\"\nkill -KILL \"$(cat /run/libvirt/libvirtd.pid)\"\n";
    std::fs::write(&hook, dies).expect("a hook");
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("it may run");
    let mut moves = cluster.host(asked).cli();
    let moves = moves.args(["vm", "migrate", "tick", "--to", &format!("node{}", to + 1)]).stdin(Stdio::null());
    let moves = moves.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vmkeep runs");
    until("libvirt there has died", RECOVERED, || if hook.exists() { Err(cluster.logs()) } else { Ok(()) });
    host.restart_libvirtd();
    let out = moves.wait_with_output().expect("our child");
    assert!(out.status.success(), "{}\n{}", text(&out.stderr), cluster.logs());
    // Its libvirt has just begun: it may not have told what it runs.
    let now = until_it_runs(cluster, asked);
    assert_eq!(now, Home { host: to, generation: before.generation + 1 });
    now
}

#[test]
fn who_is_killed_while_a_guest_moves_breaks_nothing() {
    let mut play = Play::begin("moves");
    for whom in [Whom::Source, Whom::Destination, Whom::Leader, Whom::Line] {
        play.moves(|cluster, before| killed(cluster, before, whom));
        play.cluster.until_nodes(play.home().host, "online online online");
    }
    play.moves(hung_up_on);
    play.ends();
}
