//! A cluster in an etcd of its operator's, which runs on a member's own host and ports: it is used, and its members are let alone.

use std::process::{Child, Output};

use vmkeep_e2e::host::{Host, Net, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, joins, refusal, token, until_healthy, until_no_api};
use super::hello::BOOT;

/// Their authority, server and client; the client has to be one that this authority signed.
const CERTIFICATES: &str = "mkdir -p /var/lib/vmkeep/theirs && cd /var/lib/vmkeep/theirs && \
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.pem -subj /CN=theirs -days 2 && \
    for who in server client; do openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $who.key -out $who.csr -subj /CN=$who && \
    printf 'subjectAltName=IP:10.77.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' > ext && \
    openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out $who.pem -days 2 -extfile ext || exit 1; done";
const URL: &str = "https://10.77.0.1:2379";
const FILES: [&str; 6] = [
    "--etcd-ca",
    "/var/lib/vmkeep/theirs/ca.pem",
    "--etcd-cert",
    "/var/lib/vmkeep/theirs/client.pem",
    "--etcd-key",
    "/var/lib/vmkeep/theirs/client.key",
];

struct Theirs(Child);

impl Theirs {
    fn start(host: &Host) -> Self {
        let peer = "https://10.77.0.1:2380";
        let words = [
            "exec",
            "etcd",
            "--name",
            "theirs",
            "--logger",
            "zap",
            "--grpc-keepalive-min-time",
            "1s",
            "--data-dir",
            "/var/lib/vmkeep/theirs/data",
            "--listen-client-urls",
            URL,
            "--advertise-client-urls",
            URL,
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            "theirs=https://10.77.0.1:2380",
            "--trusted-ca-file ca.pem --cert-file server.pem --key-file server.key",
            "--client-cert-auth --peer-trusted-ca-file ca.pem --peer-cert-file server.pem --peer-key-file server.key --peer-client-cert-auth",
        ];
        Self(host.spawn("theirs.log", &["sh", "-c", &format!("cd /var/lib/vmkeep/theirs && {}", words.join(" "))]))
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn etcdctl_of(host: &Host, words: &str) -> Output {
    let files = "--cacert ca.pem --cert client.pem --key client.key";
    let script = format!("cd /var/lib/vmkeep/theirs && ETCDCTL_API=3 etcdctl --endpoints {URL} {files} {words}");
    host.exec(["sh", "-c", &script])
}

fn etcdctl(host: &Host, words: &str) -> String {
    let out = etcdctl_of(host, words);
    assert!(out.status.success(), "{words}: {}", text(&out.stderr));
    text(&out.stdout)
}

fn init(host: &Host) -> Output {
    let words = ["cluster", "init", "--address", "10.77.0.1", "--yes", "--etcd", URL];
    host.vmkeep([&words[..], &FILES].concat())
}

fn status(host: &Host) -> String {
    let out = host.vmkeep(["cluster", "status"]);
    text(&out.stdout) + &text(&out.stderr)
}

fn until_api(host: &Host) {
    until("it has the API", SETTLE, || {
        let out = host.vmkeep(["vm", "list"]);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr) + &tail(&host.daemon_log())) }
    });
}

#[test]
fn a_cluster_lives_in_an_etcd_of_its_operators() {
    let switch = Switch::new("theirs");
    let [one, two, mut three, four] = [1, 2, 3, 4].map(|n| host(&switch, n));
    let made = one.exec(["sh", "-c", CERTIFICATES]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    one.apply(
        "kind: vm\nname: c\nrun: always\nfirmware: bios\nmemory: 16M\nnics: []\ncloud_init: null\n\
         disks: [{name: root, empty: true, size: 1M}]\n",
    );
    one.phase("c", "running", BOOT);
    let pids = one.qemu_pids("c");

    let theirs = Theirs::start(&one);
    until("their etcd answers", SETTLE, || {
        let out = etcdctl_of(&one, "put somebody here");
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
    });
    let taken = refusal(&init(&one));
    assert!(taken.contains("holds keys already"), "{taken}");
    assert!(etcdctl(&one, "get somebody").contains("here"), "nothing of it is touched");
    assert_eq!(one.vm("c")["status"]["phase"], "running", "the host goes on alone");
    etcdctl(&one, "del somebody");
    let begun = init(&one);
    assert!(begun.status.success(), "{}\n{}", text(&begun.stderr), tail(&one.daemon_log()));
    assert!(text(&begun.stderr).contains("every host may write every key"), "{}", text(&begun.stderr));
    assert_eq!(one.qemu_pids("c"), pids);

    joins(&two, &one, &[]);
    let refused = refusal(&three.vmkeep(["cluster", "join", "10.77.0.1", "--token", &token(&one), "--witness"]));
    assert!(refused.contains("a witness adds no vote"), "{refused}");
    joins(&three, &two, &[]);
    joins(&four, &one, &[]);
    let all = "node1:member:- node2:member:- node3:member:- node4:member:-";
    until_healthy(&three, all);
    assert!(status(&three).contains("etcd https://10.77.0.1:2379: leader, 3."), "{}", status(&three));
    assert!(!two.exec(["sh", "-c", "ss -ltn | grep -q ':2379 '"]).status.success(), "no other etcd runs");
    for (words, what) in [("backup", "a backup is for"), ("defrag", "defragmentation is for")] {
        assert!(refusal(&one.vmkeep(["cluster", words])).contains(what), "{words}");
    }

    // Roles come and go without a vote.
    two.ok(["cluster", "promote", "node4"]);
    until_api(&four);
    two.ok(["cluster", "demote", "node4", "--yes"]);
    until_no_api(&four);
    four.ok(["cluster", "leave", "--yes"]);
    until("it has left", SETTLE, || {
        let gone = !four.exec(["test", "-e", "/var/lib/vmkeep/cluster"]).status.success();
        if gone { Ok(()) } else { Err(tail(&four.daemon_log())) }
    });

    // Away and back: guests do not need it.
    drop(theirs);
    until("it is told", SETTLE, || {
        let told = status(&two);
        if told.contains("etcd at https://10.77.0.1:2379 does not answer") { Ok(()) } else { Err(told) }
    });
    let _theirs = Theirs::start(&one);
    until_healthy(&two, "node1:member:- node2:member:- node3:member:-");
    assert_eq!(one.qemu_pids("c"), pids);

    their_member_stays_when_its_host_goes(&one, &two, &mut three);
}

/// It has the address of ours.
fn their_member_stays_when_its_host_goes(one: &Host, two: &Host, three: &mut Host) {
    three.power_off();
    one.ok(["cluster", "remove", "node3", "--yes"]);
    assert!(refusal(&one.vmkeep(["cluster", "leave", "--yes"])).contains("'node1' owns 1 VMs"));
    one.ok(["vm", "delete", "c", "--yes"]);
    one.ok(["cluster", "leave", "--yes"]);
    until_healthy(two, "node2:member:-");
    assert!(etcdctl(one, "member list").contains("theirs"), "it is theirs");
    two.ok(["node", "list"]);
    three.power_on();
    three.spawn_daemon(Net::Host, &[]);
    until("it is told that it was removed", SETTLE, || {
        let told = status(three);
        if told.contains("'node3' is no member") { Ok(()) } else { Err(told + &tail(&three.daemon_log())) }
    });
}
