//! A rolling upgrade: the daemons of three hosts begin anew one after the other, and the store's level is raised, while a guest ticks.
//!
//! Where `VMKEEP_OLD_BIN_DIR` names a folder with the `vmkeepd` of the version before, the hosts begin with that one. Else the same
//! program begins with a store as that version left it.

use std::path::Path;

use vmkeep_e2e::host::{Host, bin, old_daemon, tail, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::ticks;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, init, join, token, until_healthy};
use super::formed::libvirt_listens;
use super::hello::{BOOT, manifest};
use super::rights::{etcdctl, etcdctl_as};

fn host(switch: &Switch, n: u8, shared: &Path) -> Host {
    let mut host = Host::sharing(&format!("upgrade{n}"), &[shared]);
    host.configure_as(&format!("node{n}"), &format!("pool = \"{}\"\npool_shared = true\n", shared.display()));
    host.link(switch, &format!("10.77.0.{n}/24"));
    if let Some(old) = old_daemon() {
        host.install(old);
    }
    host.start_daemon();
    host
}

/// As the version before left it: its level, and everybody may do everything.
fn as_before(host: &Host) {
    for words in ["put cluster/level 3", "del --prefix cluster/word/", "auth disable"] {
        until(words, SETTLE, || {
            let out = etcdctl(host, words);
            if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
        });
    }
}

/// The last tick of the only boot that there was.
fn until_ticks_past(disk: &Path, n: u64) -> u64 {
    until("the guest ticks on", SETTLE, || {
        let runs = ticks::runs(disk)?;
        match &runs[..] {
            [only] if only.last.0 > n => Ok(only.last.0),
            _ => Err(format!("{runs:?}")),
        }
    })
}

fn until_nothing_is_in_the_way(asked: &Host) {
    until("nothing is in the way of the next one", SETTLE, || {
        let out = asked.vmkeep(["cluster", "upgrade-check"]);
        if out.status.success() { Ok(()) } else { Err(text(&out.stdout) + &text(&out.stderr) + &tail(&asked.daemon_log())) }
    });
}

#[test]
fn daemons_begin_anew_one_after_the_other_and_the_level_is_raised_while_a_guest_ticks() {
    let (switch, shared) = (Switch::new("upgrade"), tempfile::tempdir().expect("a folder"));
    let mut hosts = [1, 2, 3].map(|n| host(&switch, n, shared.path()));
    hosts[0].ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    let disks = "disks: [{name: root, image: tiny}, {name: log, empty: true, size: 8M}]\n";
    hosts[0].apply(&manifest("tick", &format!("run: always\nnics: []\n{disks}")));
    hosts[0].phase("tick", "running", BOOT);
    hosts[0].apply(&manifest("moves", "run: always\nnics: []\n"));
    let volumes = hosts[0].json(["volume", "list", "-o", "json"]);
    let log = volumes.as_array().into_iter().flatten().find(|volume| volume["name"] == "tick-log").expect("its second disk");
    let disk = shared.path().join(format!("{}.qcow2", log["id"].as_str().expect("an id")));
    let pids = hosts[0].qemu_pids("tick");
    init(&hosts[0]);
    for n in [1, 2] {
        let joined = join(&hosts[n], &token(&hosts[0]));
        assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&hosts[n].daemon_log()));
    }
    let all = "node1:member:follower node2:member:follower node3:member:follower";
    until_healthy(&hosts[0], all);
    libvirt_listens(&hosts);

    // One of level 4 or 5 has rights of each node already.
    if old_daemon().is_none() {
        as_before(&hosts[0]);
        assert!(etcdctl_as(&hosts[0], "etcd", "get cluster/id").status.success(), "nobody is asked who he is");
    }
    let mut tick = until_ticks_past(&disk, 0);
    for n in 0..3 {
        until_nothing_is_in_the_way(&hosts[(n + 1) % 3]);
        hosts[n].install(bin("vmkeepd"));
        hosts[n].restart_daemon();
        until_healthy(&hosts[n], all);
        tick = until_ticks_past(&disk, tick);
        // Of two versions, while the upgrade goes on.
        let (new, other) = (format!("node{}", n + 1), format!("node{}", (n + 1) % 3 + 1));
        for to in [&new, &other].into_iter().filter(|to| hosts[n].vm("moves")["status"]["node"] != to.as_str()) {
            hosts[n].ok(["vm", "migrate", "moves", "--to", to]);
            assert_eq!(hosts[n].phase("moves", "running", BOOT)["status"]["node"], to.as_str());
        }
    }
    until_nothing_is_in_the_way(&hosts[0]);
    let told = text(&hosts[1].vmkeep(["cluster", "upgrade-check"]).stderr);
    assert!(told.contains("next: every member can write level 8: vmkeep cluster raise-level"), "{told}");
    hosts[1].ok(["cluster", "raise-level", "--yes"]);
    until("etcd asks who somebody is", SETTLE, || {
        let out = etcdctl_as(&hosts[0], "etcd", "get cluster/id");
        if out.status.success() { Err(tail(&hosts[0].daemon_log())) } else { Ok(()) }
    });
    until_healthy(&hosts[2], all);
    until_nothing_is_in_the_way(&hosts[2]);
    hosts[2].apply(&manifest("tick", &format!("run: always\nnics: []\ndescription: changed\n{disks}")));
    until_ticks_past(&disk, tick);
    assert_eq!(hosts[0].qemu_pids("tick"), pids, "the guest knows nothing of it");
    hosts[0].ok(["vm", "delete", "tick", "moves", "--yes"]);
}
