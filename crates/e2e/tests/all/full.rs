//! etcd that has grown, and etcd over its quota: the cluster makes room by itself; where that did not last, nothing is changed and nothing
//! is lost, it is told with the command that mends it, and that mends it.

use vmkeep_e2e::host::{Host, tail, text};
use vmkeep_e2e::net::Switch;
use vmkeep_e2e::wait::until;

use super::cluster::{SETTLE, host, init, refusal, until_healthy};
use super::etcdctl::{shell, sizes};

const QUOTA: &str = "s/^ETCD_QUOTA_BACKEND_BYTES=.*/ETCD_QUOTA_BACKEND_BYTES=16777216/";
/// Values of 1 MB over each other: what fills it is history.
const FILL: &str =
    "for n in $(seq 80); do head -c 1000000 /dev/urandom | base64 -w 0 | head -c 1000000 | ctl put zz/junk || exit 0; done; exit 1";
/// Says that it was an hour ago and more.
const REST: &str = r#"ctl put cluster/defragmented '"2026-01-01T00:00:00Z"'"#;

/// How often it has made room.
fn times(host: &Host) -> usize {
    host.daemon_log().matches("etcd has room again").count()
}

fn until_it_has_room(host: &Host, times_before: usize) {
    until("room is made", SETTLE, || {
        let log = host.daemon_log();
        if times(host) > times_before { Ok(()) } else { Err(tail(&log)) }
    });
}

/// By a file of 64 MiB, of which next to nothing is needed.
fn grows_and_is_made_small(host: &Host) {
    let some = FILL.replace("seq 80", "seq 10").replace("exit 1", "exit 0");
    for _ in 0..30 {
        if times(host) > 0 || sizes(host, &[0]).0[0] > 70 << 20 {
            break;
        }
        shell(host, &some);
    }
    until_it_has_room(host, 0);
    let now: u64 = shell(host, "ctl get --print-value-only cluster/defragmented-to").trim().parse().expect("bytes");
    assert!(now < 16 << 20, "its gaps are gone: {now}");
    // What came after that, too.
    host.ok(["cluster", "defrag"]);
}

fn wish(description: &str) -> String {
    format!(
        "kind: vm\nname: c\nrun: manual\ndescription: {description}\nfirmware: bios\nmemory: 16M\nnics: []\n\
         disks: [{{name: root, empty: true, size: 1M}}]\n"
    )
}

fn status(host: &Host) -> String {
    let out = host.vmkeep(["cluster", "status"]);
    text(&out.stdout) + &text(&out.stderr)
}

#[test]
fn a_full_etcd_takes_no_wish_and_loses_none() {
    let switch = Switch::new("full");
    let mut one = host(&switch, 1);
    init(&one);
    one.apply(&wish("before"));
    grows_and_is_made_small(&one);
    shell(&one, REST);
    shell(&one, &format!("sed -i '{QUOTA}' etcd.env"));
    assert_eq!(one.signal_etcd("-KILL"), 1);
    until_healthy(&one, "node1:member:follower");
    // By itself, once: nobody is asked.
    shell(&one, FILL);
    until_it_has_room(&one, 1);
    one.apply(&wish("before, again"));
    one.apply(&wish("before"));
    // Filled up again within minutes, which is no history any more, it is a person's affair.
    shell(&one, FILL);

    let file = one.path("wish.yaml");
    std::fs::write(&file, wish("refused")).expect("a manifest");
    let apply = |one: &Host| one.vmkeep(["apply".as_ref(), "-f".as_ref(), file.as_os_str(), "--wait".as_ref()]);
    let refused = refusal(&apply(&one));
    assert!(refused.contains("quota") || refused.contains("space"), "{refused}");
    assert_eq!(one.vm("c")["spec"]["description"], "before", "reading goes on");
    let told = status(&one);
    assert!(told.contains("over its quota") && told.contains("vmkeep cluster defrag"), "{told}");

    // A daemon that begins anew meanwhile serves what is there, and takes the command that mends it.
    one.restart_daemon();
    assert_eq!(one.vm("c")["spec"]["description"], "before");
    one.ok(["cluster", "defrag"]);
    until("writes are let in", SETTLE, || {
        let out = apply(&one);
        if out.status.success() { Ok(()) } else { Err(text(&out.stderr)) }
    });
    assert_eq!(one.vm("c")["spec"]["description"], "refused", "the same wish is taken now");
    let told = status(&one);
    assert!(!told.contains("over its quota"), "{told}");
}
