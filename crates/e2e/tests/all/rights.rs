//! etcd holds each member to its own keys: a compute node and a witness do what they must, and nothing else.

use std::process::Output;

use vmkeep_e2e::host::{Host, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::adopt::foreign;
use super::cluster::{SETTLE, host, init, join, joins, token, until_healthy};
use super::hello::BOOT;

/// etcd's own client with the keys of this host's node.
pub(super) fn etcdctl(host: &Host, words: &str) -> Output {
    etcdctl_as(host, "node", words)
}

/// The same with another pair of its keys.
pub(super) fn etcdctl_as(host: &Host, pair: &str, words: &str) -> Output {
    let dir = "/var/lib/vmkeep/cluster";
    let files = format!("--cacert {dir}/ca.pem --cert {dir}/{pair}.pem --key {dir}/{pair}.key");
    host.exec(["sh", "-c", &format!("ETCDCTL_API=3 etcdctl --endpoints https://10.77.0.1:2379 {files} {words}")])
}

fn refused(host: &Host, words: &str) {
    let out = etcdctl(host, words);
    assert!(
        !out.status.success() && text(&out.stderr).contains("permission denied"),
        "{words}: {}",
        text(&out.stdout) + &text(&out.stderr)
    );
}

fn until_alone(host: &Host) {
    until("the host is alone", SETTLE, || {
        let out = host.vmkeep(["vm", "list"]);
        let has_folder = host.exec(["test", "-e", "/var/lib/vmkeep/cluster"]).status.success();
        if out.status.success() && !has_folder { Ok(()) } else { Err(text(&out.stderr) + &tail(&host.daemon_log())) }
    });
}

#[test]
fn a_node_that_is_no_control_node_writes_its_own_keys_alone_and_leaves_by_asking() {
    let switch = Switch::new("rights");
    let [one, two, three, four] = [1, 2, 3, 4].map(|n| host(&switch, n));
    init(&one);
    until_healthy(&one, "node1:member:follower");
    joins(&two, &one, &["--witness"]);
    joins(&three, &one, &["--witness"]);
    foreign(&four, "old");
    let joined = join(&four, &token(&one));
    let told = text(&joined.stderr);
    assert!(
        joined.status.success() && told.contains("domains run here that are not vmkeep's: old;"),
        "{told}\n{}",
        tail(&four.daemon_log())
    );
    until_healthy(&one, "node1:member:follower node2:member:follower node3:member:follower node4:member:-");

    for others in ["put n/node1/hb x", "put owner/x x", "put cluster/member/node4 x", "put vm/default/x x", "del --prefix n/node1/"] {
        refused(&four, others);
        refused(&two, others);
    }
    for others in ["get --prefix vm/", "get --prefix n/node1/", "get seal/ring", "get --prefix token/"] {
        refused(&four, others);
    }
    refused(&two, "put n/node4/hb x");
    refused(&four, "user list");
    assert!(etcdctl(&four, "get --prefix n/node4/").status.success(), "its own it may");
    assert!(etcdctl(&one, "user list").status.success(), "a control node may everything");

    // It runs VMs all the same.
    one.apply(
        "kind: vm\nname: c\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
         disks: [{name: root, empty: true, size: 1M}]\nplacement: {node_selector: {node: node4}}\n",
    );
    assert_eq!(one.phase("c", "running", BOOT)["status"]["node"], "node4");
    let kept = four.vmkeep(["cluster", "leave", "--yes"]);
    assert!(text(&kept.stderr).contains("'node4' owns 1 VMs"), "{}", text(&kept.stderr));
    one.ok(["vm", "delete", "c", "--yes"]);

    four.ok(["cluster", "leave", "--yes"]);
    until_alone(&four);
    three.ok(["cluster", "leave", "--yes"]);
    until_alone(&three);
    until_healthy(&one, "node1:member:follower node2:member:follower");
    // With the same name, and the rights of it.
    joins(&three, &one, &[]);
    until_healthy(&one, "node1:member:follower node2:member:follower node3:member:follower");
    assert!(etcdctl(&three, "user list").status.success(), "a control node this time");
}
