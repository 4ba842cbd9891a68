//! Many at once, and many in a row.

use std::time::Duration;

use vmkeep_e2e::host::{Host, text};
use vmkeep_e2e::wait::until;

const CLIENTS: usize = 20;
const LAUNCHES_EACH: usize = 5;

fn empty_vm(name: &str) -> String {
    format!(
        "kind: vm\nname: {name}\nfirmware: bios\nmemory: 16M\ncloud_init: null\ndisplay: null\nrng: false\nagent: false\nnics: []\n\
         disks: [{{name: root, empty: true, size: 1M}}]\n"
    )
}

#[test]
fn a_hundred_launches_from_twenty_clients_all_succeed() {
    let host = Host::new("many");
    let threads = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let host = &host;
                scope.spawn(move || {
                    let mut failures = Vec::new();
                    for n in 0..LAUNCHES_EACH {
                        let file = host.path(&format!("m-{client}-{n}.yaml"));
                        std::fs::write(&file, empty_vm(&format!("vm-{client}-{n}"))).expect("a manifest");
                        let out = host.vmkeep(["apply".as_ref(), "--timeout".as_ref(), "540s".as_ref(), "-f".as_ref(), file.as_os_str()]);
                        if !out.status.success() {
                            failures.push(text(&out.stderr));
                        }
                    }
                    failures
                })
            })
            .collect();
        clients.into_iter().flat_map(|c| c.join().expect("a client")).collect::<Vec<_>>()
    });
    assert!(threads.is_empty(), "{} launches failed: {}", threads.len(), threads[0]);
    let running = host.virsh(["list", "--name"]);
    assert_eq!(running.split_whitespace().count(), CLIENTS * LAUNCHES_EACH);
}

/// Rounds before the daemon is weighed: caches and the allocator settle.
const WARM_ROUNDS: usize = 25;

/// `VMKEEP_SOAK=200` for the long soak.
fn soak_rounds() -> usize {
    std::env::var("VMKEEP_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// Resident memory of the daemon in KiB, and its open files.
fn weight(host: &Host) -> (u64, usize) {
    let pid = host.daemon_pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon lives");
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok()).expect("VmRSS");
    (rss, std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count())
}

#[test]
fn a_soak_of_launches_and_deletes_leaves_nothing() {
    let host = Host::new("soak");
    let round = |n: usize| {
        let file = host.path("soak.yaml");
        std::fs::write(&file, empty_vm(&format!("s{n}"))).expect("a manifest");
        host.ok(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]);
        host.ok(["vm", "delete", &format!("s{n}"), "--yes"]);
    };
    (0..WARM_ROUNDS).for_each(round);
    let (rss_before, fds_before) = weight(&host);
    (WARM_ROUNDS..soak_rounds()).for_each(round);
    until("the daemon is as light as before", Duration::from_secs(30), || {
        let (rss, fds) = weight(&host);
        let told = format!("{rss_before} -> {rss} KiB, {fds_before} -> {fds} files");
        if rss < rss_before + 8 * 1024 && fds <= fds_before + 3 { Ok(()) } else { Err(told) }
    });
    assert_eq!(host.virsh(["list", "--all", "--name"]).trim(), "");
    let left = text(&host.exec(["find", "/var/lib/libvirt/images/vmkeep", "/var/lib/libvirt/qemu/nvram", "-type", "f"]).stdout);
    assert_eq!(left.trim(), "", "files stay behind");
}
