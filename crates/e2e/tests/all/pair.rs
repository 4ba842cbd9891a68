//! Two hosts and a witness: any one of the three may be lost, also the first.

use vmkeep_e2e::host::{Host, bin, tail, text};
use vmkeep_e2e::net::Switch;

use super::cluster::{host, init, join, token, until_healthy, until_it_knows_all_etcd};
use super::hello::BOOT;

const ALL: &str = "node1:member:follower node2:member:follower node3:member:follower";

/// It is made, started, changed, stopped and deleted.
fn a_vm_lives_here(host: &Host, n: usize) {
    let name = format!("on{n}");
    let wish = |description: &str| {
        format!(
            "kind: vm\nname: {name}\nrun: manual\ndescription: {description}\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
             disks: [{{name: root, empty: true, size: 1M}}]\nplacement: {{node_selector: {{node: node{n}}}}}\n"
        )
    };
    host.apply(&wish("first"));
    host.ok(["vm", "start", &name]);
    host.phase(&name, "running", BOOT);
    host.apply(&wish("second"));
    assert_eq!(host.vm(&name)["spec"]["description"], "second");
    host.ok(["vm", "kill", &name]);
    host.ok(["vm", "delete", &name, "--yes"]);
}

/// It names both, whichever of them is there.
fn any_control_node_serves_who_has_a_token(host: &Host, secret: &str) {
    let vmkeep = bin("vmkeep").display().to_string();
    let words = [
        "env",
        &format!("VMKEEP_TOKEN={secret}"),
        "VMKEEP_SERVER=https://10.77.0.1:7443,https://10.77.0.2:7443",
        &vmkeep,
        "--ca-file",
        "/var/lib/vmkeep/cluster/ca.pem",
        "node",
        "list",
        "-o",
        "name",
    ];
    let out = host.exec(words);
    assert!(out.status.success() && text(&out.stdout).contains("node2"), "{}{}", text(&out.stdout), text(&out.stderr));
}

#[test]
fn two_hosts_and_a_witness_survive_the_loss_of_any() {
    let switch = Switch::new("pair");
    let mut hosts = [1, 2, 3].map(|n| host(&switch, n));
    init(&hosts[0]);
    until_healthy(&hosts[0], "node1:member:follower");
    let second = join(&hosts[1], &token(&hosts[0]));
    assert!(second.status.success(), "{}\n{}", text(&second.stderr), tail(&hosts[1].daemon_log()));
    let third = hosts[2].vmkeep(["cluster", "join", "10.77.0.1", "--token", &token(&hosts[0]), "--witness"]);
    assert!(third.status.success(), "{}\n{}", text(&third.stderr), tail(&hosts[2].daemon_log()));
    for host in &hosts[..2] {
        until_healthy(host, ALL);
        until_it_knows_all_etcd(host);
    }
    let secret =
        hosts[0].json(["token", "create", "ci", "--role", "operator", "-o", "json"])["secret"].as_str().expect("a secret").to_owned();
    for (lost, left) in [(0, 1), (1, 0), (2, 0)] {
        hosts[lost].power_off();
        let silent = ALL.replace(&format!("node{}:member:follower", lost + 1), &format!("node{}:member:silent", lost + 1));
        until_healthy(&hosts[left], &silent);
        a_vm_lives_here(&hosts[left], left + 1);
        if lost < 2 {
            any_control_node_serves_who_has_a_token(&hosts[left], &secret);
        }
        hosts[lost].power_on();
        hosts[lost].spawn_daemon(vmkeep_e2e::host::Net::Host, &[]);
        until_healthy(&hosts[left], ALL);
    }
}
