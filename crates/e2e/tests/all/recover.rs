//! Two of three members are lost for good: the third lives on from a backup, and nothing runs twice.

use std::path::Path;

use vmkeep_e2e::host::{Host, Net, tail, text};
use vmkeep_e2e::image::tiny;
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, join, refusal, token, until_healthy, until_it_knows_all_etcd};
use super::hello::{BOOT, manifest};

fn told(host: &Host) -> String {
    let out = host.vmkeep(["cluster", "status"]);
    text(&out.stdout) + &text(&out.stderr)
}

fn until_told(host: &Host, what: &str, wanted: impl Fn(&str) -> bool) {
    until(what, SETTLE, || {
        let told = told(host);
        if wanted(&told) { Ok(()) } else { Err(format!("{told}\n{}", tail(&host.daemon_log()))) }
    });
}

fn joins(host: &Host, token: &str) {
    let joined = join(host, token);
    assert!(joined.status.success(), "{}\n{}", text(&joined.stderr), tail(&host.daemon_log()));
}

#[test]
fn a_lost_majority_is_recovered_from_a_backup() {
    let switch = Switch::new("recover");
    let (mut one, mut two, mut three) = (host(&switch, 1), host(&switch, 2), host(&switch, 3));
    one.ok(["image".as_ref(), "import".as_ref(), tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    one.apply(&manifest("a", "run: always\n"));
    one.phase("a", "running", BOOT);
    let pids = one.qemu_pids("a");
    init(&one);
    joins(&two, &token(&one));
    joins(&three, &token(&one));
    until_healthy(&one, "node1:member:follower node2:member:follower node3:member:follower");
    let backup = one.ok(["cluster", "backup"]).trim().to_owned();
    assert!(refusal(&one.vmkeep(["cluster", "recover", "--from", &backup, "--yes"])).contains("etcd has a majority"));
    // The backup knows neither this host nor its VM.
    let four = host(&switch, 4);
    joins(&four, &token(&one));
    one.apply(
        "kind: vm\nname: late\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
         disks: [{name: root, empty: true, size: 1M}]\nplacement: {node_selector: {node: node4}}\n",
    );
    one.phase("late", "running", BOOT);
    let late = four.qemu_pids("late");

    until_it_knows_all_etcd(&one);
    two.power_off();
    three.power_off();
    until_told(&one, "a daemon that runs says who is silent", |told| {
        let silent = |n: u8| told.contains(&format!("etcd at https://10.77.0.{n}:2379 does not answer"));
        told.contains("the cluster's store cannot be read")
            && told.contains("vmkeep cluster recover")
            && silent(2)
            && silent(3)
            && !silent(1)
    });
    // What waits for etcd says so, and takes no wish but this.
    one.kill_daemon();
    one.spawn_daemon(Net::Host, &[]);
    until_told(&one, "it waits", |told| told.contains("waits for etcd"));
    assert!(refusal(&one.vmkeep(["vm", "list"])).contains("waits for etcd"));
    let nonsense =
        one.vmkeep(["cluster".as_ref(), "recover".as_ref(), "--from".as_ref(), Path::new("/etc/hostname").as_os_str(), "--yes".as_ref()]);
    assert!(refusal(&nonsense).contains("is no backup of etcd"));
    one.ok(["cluster", "recover", "--from", &backup, "--yes"]);
    assert_eq!(one.qemu_pids("a"), pids, "the guest knows nothing of it");
    assert_eq!(one.vm("a")["spec"]["name"], "a", "its VMs are known");

    // Nothing is placed before all have told what they run.
    until_told(&one, "it waits for two nodes", |told| told.contains("'node2' has said") && told.contains("'node3' has said"));
    let wish = one.path("b.yaml");
    std::fs::write(&wish, manifest("b", "run: always\n")).expect("a manifest");
    one.ok(["apply".as_ref(), "-f".as_ref(), wish.as_os_str(), "--no-wait".as_ref()]);
    assert_eq!(one.vm("b")["status"]["node"], serde_json::Value::Null);

    until_told(&four, "it is told that nobody knows it", |told| told.contains("does not know 'node4'") && told.contains("leave --forget"));
    assert!(refusal(&four.vmkeep(["cluster", "leave", "--yes"])).contains("does not know 'node4'"));
    let recovered = four.vmkeep(["cluster", "recover", "--yes"]);
    assert!(!recovered.status.success(), "a second cluster of the same hosts");
    four.ok(["cluster", "leave", "--forget", "--yes"]);
    joins(&four, &token(&one));

    // One comes back as it was: it is no member, and joins anew.
    two.power_on();
    two.spawn_daemon(Net::Host, &[]);
    until_told(&two, "it is told", |told| told.contains("'node2' is no member"));
    two.ok(["cluster", "leave", "--forget", "--yes"]);
    joins(&two, &token(&one));
    until_told(&one, "only one is missing", |told| !told.contains("'node2' has said") && told.contains("'node3' has said"));
    assert_eq!(one.vm("b")["status"]["node"], serde_json::Value::Null);
    one.ok(["cluster", "lost", "node3", "--yes"]);
    one.phase("b", "running", BOOT);
    one.phase("a", "running", BOOT);
    assert_eq!(one.qemu_pids("a"), pids);
    until_told(&one, "it is over", |told| !told.contains("was recovered"));
    until_healthy(&one, "node1:member:follower node2:member:follower node4:member:follower");
    one.ok(["vm", "adopt", "late", "--node", "node4"]);
    assert_eq!(one.phase("late", "running", BOOT)["status"]["node"], "node4");
    assert_eq!(four.qemu_pids("late"), late, "the guest knows nothing of it");
    one.ok(["vm", "delete", "a", "b", "late", "--yes"]);
}

/// Its guest has no disk: on hosts of one kernel QEMU's lock would keep the second one from running.
#[test]
fn a_host_that_was_taken_for_lost_does_not_bring_back_what_runs_elsewhere() {
    let switch = Switch::new("lost");
    let (one, mut two) = (host(&switch, 1), host(&switch, 2));
    init(&one);
    joins(&two, &token(&one));
    until_healthy(&one, "node1:member:follower node2:member:follower");
    one.ok(["node", "cordon", "node1"]);
    one.apply("kind: vm\nname: a\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\ndisks: []\n");
    assert_eq!(one.phase("a", "running", BOOT)["status"]["node"], "node2");
    one.ok(["node", "uncordon", "node1"]);
    let stays = two.qemu_pids("a");

    two.cut();
    one.ok(["cluster", "recover", "--lost", "node2", "--yes"]);
    until("it runs elsewhere", SETTLE, || {
        let out = text(&one.vmkeep(["vm", "show", "a", "-o", "json"]).stdout);
        let there = one.qemu_pids("a").len() == 1 && out.contains("\"node\": \"node1\"");
        if there { Ok(()) } else { Err(out + &tail(&one.daemon_log())) }
    });
    assert_eq!(two.qemu_pids("a"), stays, "and there, as nobody can know");

    two.join();
    two.kill_daemon();
    two.spawn_daemon(Net::Host, &[]);
    until_told(&two, "it is told", |told| told.contains("'node2' is no member"));
    two.ok(["cluster", "leave", "--forget", "--yes"]);
    let good = token(&one);
    let refused = refusal(&join(&two, &good));
    assert!(refused.contains("VMs that the cluster runs elsewhere run on 'node2': 'a' (of 'node1')"), "{refused}");
    assert!(refused.contains("virsh destroy"), "{refused}");
    assert!(!two.exec(["test", "-e", "/var/lib/vmkeep/cluster"]).status.success(), "nothing stays of it");
    assert_eq!(two.qemu_pids("a"), stays, "nothing was done to it");
    two.virsh(["destroy", "a"]);
    joins(&two, &good);
    until_healthy(&one, "node1:member:follower node2:member:follower");
    assert_eq!((one.qemu_pids("a").len(), two.qemu_pids("a").len()), (1, 0));
    one.ok(["vm", "delete", "a", "--yes"]);
}
