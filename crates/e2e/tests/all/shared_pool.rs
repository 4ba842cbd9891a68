//! A host that has lost a shared pool: nothing is made in what lies in its place, and nothing new comes to the host.

use std::path::Path;
use std::time::Duration;

use vmkeep_e2e::cluster::{Cluster, Plan, Program, Signal};
use vmkeep_e2e::host::text;
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest};

/// Hosts look at their pools every ten seconds, and describe themselves then or once a minute.
const DESCRIBED: Duration = Duration::from_secs(150);
const NOT_THERE: &str = "pool 'default' is not reachable: what is at its path is not the pool (not mounted?)";

#[test]
fn a_host_without_the_shared_pool_gets_none_of_its_vms() {
    let shared = tempfile::tempdir().expect("a folder");
    let pool = shared.path().display().to_string();
    let mut cluster = Cluster::planned(
        "away",
        Plan { more: &format!("pool = \"{pool}\"\npool_shared = true"), shared: &[shared.path()], ..Plan::default() },
    );
    cluster.host(0).ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    until("two hosts have found the pool", DESCRIBED, || {
        let told = cluster.host(0).json(["pool", "show", "default", "-o", "json"]);
        if told["mark"].is_string() && told["not_on"].is_null() { Ok(()) } else { Err(format!("{told}\n{}", cluster.logs())) }
    });
    // It reads which folder is the pool's when it begins.
    cluster.members[1].signal(Program::Agent, Signal::Kill);
    cluster.members[1].start_compute();
    cluster.until_nodes(0, "online online online");
    let run = |words: &[&str]| cluster.host(0).ok(words);
    let made_by_node2 = || text(&cluster.host(1).exec(["find", &pool, "-mindepth", "1", "-printf", "%P\n"]).stdout);

    run(&["node", "cordon", "node1", "node3"]);
    cluster.host(0).apply(&manifest("a", "run: always\n"));
    cluster.host(0).apply(&manifest("c", "run: always\n"));
    run(&["vm", "stop", "a", "c", "--force"]);
    assert_eq!(disks(shared.path()), 2);

    // What the host would see had it come up without its mount; it does not know yet.
    let over = cluster.host(1).exec(["mount", "-t", "tmpfs", "none", &pool]);
    assert!(over.status.success(), "{}", text(&over.stderr));
    run(&["vm", "start", "a", "--no-wait"]);
    // Its disk would lie there for ever.
    run(&["vm", "delete", "c", "--yes", "--no-wait"]);
    until_told_what_is_wrong(&cluster, &pool, "a");
    until_told_what_is_wrong(&cluster, &pool, "c");
    until("it is known that the host has not the pool", DESCRIBED, || {
        let told = run(&["pool", "show", "default"]);
        if told.contains("node2: what is at its path is not the pool") { Ok(()) } else { Err(told) }
    });

    // Others have it, and none of its VMs comes here.
    let file = cluster.host(0).path("b.yaml");
    std::fs::write(&file, manifest("b", "run: always\n")).expect("a manifest");
    run(&["apply", "--no-wait", "-f", &file.display().to_string()]);
    until("nobody can have it", BOOT, || {
        let told = run(&["vm", "show", "b"]);
        if told.contains(NOT_THERE) { Ok(()) } else { Err(told) }
    });
    run(&["node", "uncordon", "node1", "node3"]);
    assert_ne!(cluster.host(0).phase("b", "running", BOOT)["status"]["node"], "node2");
    assert_eq!(run(&["vm", "explain", "b"]).matches(NOT_THERE).count(), 1);
    assert_eq!(made_by_node2().trim(), ".vmkeep-pool");

    assert_eq!(disks(shared.path()), 3, "the disk of the VM that is to go is not forgotten");

    // Mounted again, the host goes on with what it has; it had given up on the start, and not on the end.
    let back = cluster.host(1).exec(["umount", &pool]);
    assert!(back.status.success(), "{}", text(&back.stderr));
    until("the VM and its disk are gone", BOOT, || {
        match (cluster.host(0).vmkeep(["vm", "show", "c"]).status.success(), disks(shared.path())) {
            (false, 2) => Ok(()),
            (there, disks) => Err(format!("{there}, {disks} disks")),
        }
    });
    run(&["vm", "start", "a"]);
    assert_eq!(cluster.host(0).phase("a", "running", BOOT)["status"]["node"], "node2");
    until("the host is told to have it", DESCRIBED, || {
        let told = cluster.host(0).json(["pool", "show", "default", "-o", "json"]);
        if told["not_on"].is_null() { Ok(()) } else { Err(told.to_string()) }
    });
    run(&["vm", "migrate", "b", "--to", "node2"]);
    assert_eq!(cluster.host(0).phase("b", "running", BOOT)["status"]["node"], "node2");
}

fn until_told_what_is_wrong(cluster: &Cluster, pool: &str, vm: &str) {
    until("the host says what is wrong", BOOT, || {
        let told = cluster.host(0).ok(["vm", "show", vm]);
        if told.contains(&format!("what is at {pool} is not the shared pool")) {
            Ok(())
        } else {
            Err(format!("{told}\n{}", cluster.logs()))
        }
    });
}

fn disks(pool: &Path) -> usize {
    let files = std::fs::read_dir(pool).expect("a folder").map(|file| file.expect("an entry").path());
    files.filter(|file| file.extension().is_some_and(|kind| kind == "qcow2")).count()
}
