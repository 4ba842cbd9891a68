//! The daemon with its store in a real etcd, which goes away and comes back.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vmkeep_e2e::host::{Host, root};
use vmkeep_e2e::image;
use vmkeep_e2e::wait::until;

use super::hello::{BOOT, manifest};

const BACK: Duration = Duration::from_secs(60);
const ENDPOINT: &str = "http://127.0.0.1:2379";

/// One member inside the host, on the host's own loopback.
struct Etcd(Child);

impl Etcd {
    fn start(host: &Host) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(host.path("etcd.log")).expect("a log");
        let mut command = Command::new(root().join("tests/lab/nshost"));
        command.args(["exec", &host.name, "etcd", "--name", "one", "--logger", "zap", "--grpc-keepalive-min-time", "1s", "--data-dir"]);
        command.arg(host.path("etcd")).args(["--listen-client-urls", ENDPOINT, "--advertise-client-urls", ENDPOINT]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        Self(command.spawn().expect("etcd runs (scripts/packages.sh test installs it)"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("our child");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn vms_go_on_while_etcd_is_away_and_are_cared_for_when_it_is_back() {
    let mut host = Host::without_daemon("etcd");
    host.configure(&format!("[etcd]\nendpoints = [\"{ENDPOINT}\"]\n"));
    // The daemon waits for its store, and can be told to stop meanwhile.
    host.spawn_daemon(vmkeep_e2e::host::Net::Host, &[]);
    until("the daemon waits", BACK, || {
        let log = host.daemon_log();
        if log.contains("waiting for etcd") { Ok(()) } else { Err(log) }
    });
    let mut etcd = Etcd::start(&host);
    until("vmkeepd answers", BACK, || if host.vmkeep(["version"]).status.success() { Ok(()) } else { Err(host.daemon_log()) });
    host.ok(["image".as_ref(), "import".as_ref(), image::tiny().as_os_str(), "--name".as_ref(), "tiny".as_ref()]);
    host.apply(&manifest("a", "run: always\n"));
    host.phase("a", "running", BOOT);
    let first = host.qemu_pids("a");

    etcd.kill();
    let away = host.vmkeep(["vm", "list"]);
    assert_eq!(away.status.code(), Some(5), "{}", String::from_utf8_lossy(&away.stderr));
    assert_eq!(host.qemu_pids("a"), first, "guests do not need the store");
    etcd = Etcd::start(&host);
    until("the list is there again", BACK, || {
        let list = host.vmkeep(["vm", "list"]);
        if list.status.success() { Ok(()) } else { Err(host.daemon_log()) }
    });

    // Nothing of it was in memory only: a new daemon goes on, and so does the watch that lay idle.
    host.kill_qemu("a");
    until("a runs again", BACK, || {
        let pids = host.qemu_pids("a");
        if !pids.is_empty() && pids != first { Ok(()) } else { Err(host.daemon_log()) }
    });
    host.restart_daemon();
    host.apply(&manifest("a", "run: always\ndescription: changed\n"));
    assert_eq!(host.vm("a")["spec"]["description"], "changed");
    host.ok(["vm", "delete", "a", "--yes"]);
    drop(etcd);
}
