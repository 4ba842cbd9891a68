//! etcd of formed hosts, asked by hand.

use serde_json::Value;
use vmkeep_e2e::host::{Host, text};

pub(super) const FOLDER: &str = "/var/lib/vmkeep/cluster";

/// What a script prints in the folder of this host's keys; in it `ctl` is etcdctl, at the first one's etcd.
pub(super) fn shell(host: &Host, script: &str) -> String {
    shell_at(host, &[0], script)
}

/// The same at these hosts' etcd, counted from 0.
fn shell_at(host: &Host, at: &[usize], script: &str) -> String {
    let urls: Vec<String> = at.iter().map(|n| format!("https://10.77.0.{}:2379", n + 1)).collect();
    let files = "--cacert ca.pem --cert node.pem --key node.key";
    let ctl = format!("ctl() {{ ETCDCTL_API=3 etcdctl --endpoints {} {files} \"$@\"; }}", urls.join(","));
    let out = host.exec(["sh", "-c", &format!("cd {FOLDER} && {ctl} && {script}")]);
    assert!(out.status.success(), "{script}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

/// Bytes of the databases there, and which of them leads.
pub(super) fn sizes(asked: &Host, at: &[usize]) -> (Vec<u64>, Option<usize>) {
    let told: Value = serde_json::from_str(&shell_at(asked, at, "ctl endpoint status -w json")).expect("JSON of etcdctl");
    let all: Vec<&Value> = told.as_array().into_iter().flatten().map(|one| &one["Status"]).collect();
    let leads = all.iter().position(|one| one["leader"] == one["header"]["member_id"]);
    (all.iter().filter_map(|one| one["dbSize"].as_u64()).collect(), leads.map(|n| at[n]))
}
