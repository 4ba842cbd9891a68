//! SIGKILL of the daemon at every store write and every libvirt call of a launch, a resize, a delete and a clone.
//!
//! A first run counts the crash points; then one daemon per point dies there and the next one carries on.

use std::time::Duration;

use vmkeep_e2e::host::{Host, Net, text};
use vmkeep_e2e::wait::until;

const SETTLE: Duration = Duration::from_secs(60);

fn wish(size: &str) -> String {
    format!(
        "kind: vm\nname: c\nfirmware: bios\nmemory: 16M\ncloud_init: {{hostname: c}}\ndisplay: null\nrng: false\nagent: false\nnics: []\n\
         disks: [{{name: root, empty: true, size: {size}}}]\n"
    )
}

/// The steps of the stories, and how each ends.
#[derive(Clone, Copy, Debug)]
enum Step {
    Launch,
    Resize,
    Delete,
    /// Of `c`, which is off and has [`PATTERN`] on its disk.
    Clone,
}

/// What the source's first 64 KiB hold.
const PATTERN: &str = "0x5a 0 64k";

impl Step {
    fn begin(self, host: &Host) {
        let args: Vec<String> = match self {
            Self::Launch | Self::Resize => {
                let file = host.path("crash.yaml");
                let size = if matches!(self, Self::Launch) { "1M" } else { "2M" };
                std::fs::write(&file, wish(size)).expect("a manifest");
                vec!["apply".into(), "--no-wait".into(), "-f".into(), file.to_string_lossy().into_owned()]
            }
            Self::Delete => ["vm", "delete", "c", "--yes", "--no-wait"].map(String::from).to_vec(),
            Self::Clone => ["vm", "clone", "c", "d", "--no-wait"].map(String::from).to_vec(),
        };
        // The daemon may die under this request: whether it was accepted shows afterwards.
        let _ = host.vmkeep(args);
    }

    /// Again after the crash, as a user would whose command failed; then wait for the end.
    fn finish(self, host: &Host) {
        until("the wish is accepted", SETTLE, || {
            self.begin(host);
            match self {
                Self::Launch | Self::Resize if host.vmkeep(["vm", "show", "c"]).status.success() => Ok(()),
                Self::Clone if host.vmkeep(["vm", "show", "d"]).status.success() => Ok(()),
                Self::Delete => Ok(()),
                _ => Err("not there".into()),
            }
        });
        until(&format!("{self:?} ends well"), SETTLE, || self.look(host));
    }

    fn look(self, host: &Host) -> Result<(), String> {
        let domains = host.virsh(["list", "--all", "--name"]);
        let files = text(&host.exec(["find", "/var/lib/libvirt/images/vmkeep", "-type", "f", "-not", "-path", "*/staging/*"]).stdout);
        let told = format!("domains {domains:?}, files {files:?}, vm {}", text(&host.vmkeep(["vm", "show", "c"]).stdout));
        let running = host.qemu_pids("c").len();
        let fine = match self {
            Self::Delete => {
                domains.trim().is_empty() && files.trim().is_empty() && host.vmkeep(["vm", "show", "c"]).status.code() == Some(3)
            }
            Self::Clone => {
                let ops = host.json(["op", "list", "-o", "json"]);
                let open = ops.as_array().is_none_or(|ops| ops.iter().any(|op| op["state"] == "pending" || op["state"] == "running"));
                !open
                    && domains.lines().any(|name| name == "d")
                    && host.vm("d")["status"]["phase"] == "stopped"
                    && has_pattern(host, "d-root")
            }
            Self::Launch => running == 1 && files.lines().count() == 2 && host.vm("c")["status"]["phase"] == "running",
            Self::Resize => {
                running == 1 && host.virsh(["domblkinfo", "c", "vda"]).contains("2097152") && host.vm("c")["status"]["phase"] == "running"
            }
        };
        if fine { Ok(()) } else { Err(told) }
    }
}

fn file_of(host: &Host, volume: &str) -> String {
    let id = host.json(["volume", "show", volume, "-o", "json"])["id"].as_str().expect("an id").to_owned();
    format!("/var/lib/libvirt/images/vmkeep/{id}.qcow2")
}

fn has_pattern(host: &Host, volume: &str) -> bool {
    let out = host.exec(["qemu-io", "-r", "-f", "qcow2", "-c", &format!("read -P {PATTERN}"), &file_of(host, volume)]);
    out.status.success() && !text(&out.stdout).contains("failed")
}

/// Names of the points that one step passes, in order.
fn points(host: &mut Host, step: Step) -> Vec<String> {
    let log = host.path("points");
    let _ = std::fs::remove_file(&log);
    host.kill_daemon();
    host.start_daemon_with(Net::Host, &[("VMKEEP_CRASH_LOG", log.to_str().expect("a path"))]);
    std::thread::sleep(Duration::from_millis(500));
    let before = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    step.finish(host);
    let all = std::fs::read_to_string(&log).unwrap_or_default();
    all.lines().skip(before).map(str::to_owned).collect()
}

fn count(host: &mut Host, step: Step) -> usize {
    let named = points(host, step);
    assert!(named.len() >= 4, "{step:?} passes too few points to prove anything: {named:?}");
    println!("{step:?}: {} points", named.len());
    named.len()
}

/// The daemon dies at the `n`th point of a step, and the next one carries on.
fn die_at(host: &mut Host, step: Step, n: usize) {
    host.kill_daemon();
    // Counting begins after the daemon's own start: it is told so by a file that appears when the step begins.
    let gate = host.path("gate");
    let _ = std::fs::remove_file(&gate);
    let at = n.to_string();
    host.start_daemon_with(Net::Host, &[("VMKEEP_CRASH_AT", &at), ("VMKEEP_CRASH_GATE", gate.to_str().expect("a path"))]);
    std::fs::write(&gate, b"").expect("the gate");
    step.begin(host);
    let died = host.wait_for_daemon_death(Duration::from_secs(5));
    if !died {
        host.kill_daemon();
    }
    host.start_daemon();
    step.finish(host);
}

/// Each step is what the next one needs.
#[test]
fn killed_at_every_point_of_a_launch_a_resize_and_a_delete() {
    let mut host = Host::new("crash");
    let story = [Step::Launch, Step::Resize, Step::Delete];
    let counts = story.map(|step| count(&mut host, step));
    for n in 1..=counts.into_iter().max().expect("three") {
        for (step, count) in story.into_iter().zip(counts) {
            if n <= count { die_at(&mut host, step, n) } else { step.finish(&host) }
        }
    }
}

#[test]
fn killed_at_every_point_of_a_clone() {
    let mut host = Host::new("crash-clone");
    let file = host.path("crash.yaml");
    std::fs::write(&file, format!("{}run: manual\n", wish("1M"))).expect("a manifest");
    host.ok(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]);
    let written = host.exec(["qemu-io", "-f", "qcow2", "-c", &format!("write -P {PATTERN}"), &file_of(&host, "c-root")]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let files = |host: &Host| {
        let found = host.exec(["find", "/var/lib/libvirt/images/vmkeep", "-type", "f", "-name", "*.qcow2*"]);
        text(&found.stdout).lines().count()
    };
    for n in 1..=count(&mut host, Step::Clone) {
        host.vmkeep(["vm", "delete", "d", "--yes"]);
        until("the clone is gone, and every part of it", SETTLE, || {
            let gone = host.vmkeep(["vm", "show", "d"]).status.code() == Some(3) && files(&host) == 1;
            if gone { Ok(()) } else { Err(format!("{} files", files(&host))) }
        });
        die_at(&mut host, Step::Clone, n);
    }
    assert!(has_pattern(&host, "c-root"), "the source is as it was");
}
