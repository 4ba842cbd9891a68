//! One namespace host with our daemon.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::wait::until;

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate lies two folders deep").to_owned()
}

/// Where `vmkeep` and `vmkeepd` were built.
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("VMKEEP_BIN_DIR").map_or_else(|| root().join("target/debug"), PathBuf::from);
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run ./test, or cargo build --workspace --bins", path.display());
    path
}

/// The daemon of the version before, where one is at hand: `VMKEEP_OLD_BIN_DIR` names its folder.
pub fn old_daemon() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("VMKEEP_OLD_BIN_DIR")?).join("vmkeepd"))
}

/// Where the daemon's network is: the host's own, or the machine's (for image builds, which need apt).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Net {
    Host,
    Machine,
}

pub struct Host {
    pub name: String,
    daemon: Option<Child>,
    dir: tempfile::TempDir,
    config: String,
    boots: u32,
    /// The daemon's.
    program: PathBuf,
}

impl Host {
    /// A host that is up, with libvirt, and a daemon that answers.
    pub fn new(name: &str) -> Self {
        let mut host = Self::without_daemon(name);
        host.start_daemon();
        host
    }

    pub fn without_daemon(name: &str) -> Self {
        Self::sharing(name, &[])
    }

    /// Without a daemon; libvirt takes these folders for shared with other hosts.
    pub fn sharing(name: &str, folders: &[&Path]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut up = nshost();
        up.env("VMKEEP_LAB_SHARED", std::env::join_paths(folders).expect("no colon in a folder's name"));
        let up = up.args(["up", &name, &std::process::id().to_string()]).output().expect("nshost runs");
        assert!(up.status.success(), "nshost up: {}", String::from_utf8_lossy(&up.stderr));
        let mut host = Self { name, daemon: None, dir, config: String::new(), boots: 0, program: bin("vmkeepd") };
        host.boot();
        host.configure("");
        host
    }

    /// A new boot id: what the daemon takes for a reboot of the host.
    pub fn boot(&mut self) {
        self.boots += 1;
        std::fs::write(self.dir.path().join("boot_id"), format!("{}-{}\n", self.name, self.boots)).expect("a boot id");
    }

    /// Writes the daemon's configuration; `more` is added TOML.
    pub fn configure(&mut self, more: &str) {
        self.configure_as("node1", more);
    }

    /// As [`Host::configure`], for another node of a cluster.
    pub fn configure_as(&mut self, node: &str, more: &str) {
        let dir = self.dir.path().display();
        // The machine's own /etc/machine-id would make clones of all hosts.
        std::fs::write(self.dir.path().join("machine-id"), format!("{}\n", self.name)).expect("a machine id");
        self.config = format!(
            "node = \"{node}\"\nsocket = \"{dir}/vmkeep.sock\"\nboot_id_file = \"{dir}/boot_id\"\nmachine_id_file = \"{dir}/machine-id\"\n{more}"
        );
        std::fs::write(self.config_file(), &self.config).expect("a configuration");
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("vmkeepd.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vmkeep.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    /// What libvirtd warned of, and which of its processes a signal ended.
    pub fn libvirtd_log(&self) -> String {
        let read = |path| std::fs::read_to_string(self.lab_folder().join(path)).unwrap_or_default();
        let pid = read("run/libvirt/libvirtd.pid");
        let runs = pid.trim().parse().is_ok_and(|pid| self.is_mine(pid));
        let (log, lab) = (read("var/log/libvirt/libvirtd.log"), read("log"));
        format!("-- libvirtd of {}, {} {}:\n{}\n{}", self.name, pid.trim(), if runs { "runs" } else { "is gone" }, tail(&log), tail(&lab))
    }

    /// From its next start on the daemon is this program.
    pub fn install(&mut self, program: PathBuf) {
        self.program = program;
    }

    pub fn start_daemon(&mut self) {
        self.start_daemon_with(Net::Host, &[]);
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon_with(&mut self, net: Net, env: &[(&str, &str)]) {
        self.spawn_daemon(net, env);
        until("vmkeepd answers", Duration::from_secs(30), || {
            let out = self.vmkeep(["version"]);
            if out.status.success() { Ok(()) } else { Err(format!("{}\n{}", text(&out.stderr), tail(&self.daemon_log()))) }
        });
    }

    /// Starts the daemon without waiting.
    pub fn spawn_daemon(&mut self, net: Net, env: &[(&str, &str)]) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("daemon.log")).expect("a log");
        let mut command = self.enter(net);
        command.arg("env").args(env.iter().map(|(k, v)| format!("{k}={v}"))).arg(&self.program).arg("--config").arg(self.config_file());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file handle")).stderr(log);
        self.daemon = Some(command.spawn().expect("vmkeepd starts"));
    }

    fn enter(&self, net: Net) -> Command {
        if net == Net::Host {
            let mut command = nshost();
            command.args(["exec", &self.name]);
            return command;
        }
        let pid = nshost().args(["pid", &self.name]).output().expect("nshost runs");
        let mut command = Command::new("nsenter");
        command.args(["-t", text(&pid.stdout).trim(), "-m", "-u", "--"]);
        command
    }

    /// SIGKILL, as a crash.
    pub fn kill_daemon(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until the daemon ended by itself (a crash point).
    pub fn wait_for_daemon_death(&mut self, within: Duration) -> bool {
        let Some(child) = self.daemon.as_mut() else { return true };
        let begin = std::time::Instant::now();
        while begin.elapsed() < within {
            if child.try_wait().expect("a child").is_some() {
                self.daemon = None;
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    pub fn restart_daemon(&mut self) {
        self.kill_daemon();
        self.start_daemon();
    }

    pub fn restart_libvirtd(&self) {
        let out = nshost().args(["restart", &self.name]).output().expect("nshost runs");
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// A command inside the host.
    pub fn exec<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        nshost().args(["exec", &self.name]).args(args).stdin(Stdio::null()).output().expect("nshost runs")
    }

    pub fn virsh<const N: usize>(&self, args: [&str; N]) -> String {
        let out = self.exec(["virsh", "-q", "-c", "qemu:///system"].iter().chain(args.iter()));
        assert!(out.status.success(), "virsh {args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// Our CLI, as a user would type it.
    pub fn vmkeep<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let mut command = self.cli();
        command.args(args).stdin(Stdio::null()).output().expect("vmkeep runs")
    }

    /// The CLI inside the host, its arguments still to come.
    pub fn cli(&self) -> Command {
        let mut command = nshost();
        command.args(["exec", &self.name]).arg(bin("vmkeep")).arg("--socket").arg(self.socket());
        command
    }

    /// The CLI must succeed; what it printed.
    pub fn ok<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let args: Vec<_> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let out = self.vmkeep(&args);
        let mut told = format!("vmkeep {args:?}: {}\n{}", text(&out.stdout), text(&out.stderr));
        if !out.status.success() {
            let _ = write!(told, "\n-- daemon:\n{}", tail(&self.daemon_log()));
        }
        assert!(out.status.success(), "{told}");
        text(&out.stdout)
    }

    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let out = self.ok(args);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("no JSON ({e}): {out}"))
    }

    pub fn vm(&self, name: &str) -> Value {
        self.json(["vm", "show", name, "-o", "json"])
    }

    /// The same while the control plane may be away.
    ///
    /// # Errors
    /// What it said instead, and its daemon's log.
    pub fn shown(&self, name: &str) -> Result<Value, String> {
        let out = self.vmkeep(["vm", "show", name, "-o", "json"]);
        serde_json::from_slice(&out.stdout).map_err(|_| format!("{}\n{}", text(&out.stderr), tail(&self.daemon_log())))
    }

    /// Waits until the VM's phase is this one; the control plane may be away for a while.
    pub fn phase(&self, name: &str, phase: &str, within: Duration) -> Value {
        until(&format!("{name} is {phase}"), within, || {
            let vm = self.shown(name)?;
            if vm["status"]["phase"] == phase { Ok(vm) } else { Err(format!("{}\n{}", vm["status"], tail(&self.daemon_log()))) }
        })
    }

    /// Applies a manifest and waits for its operations; what was told on the way.
    pub fn apply(&self, manifest: &str) -> String {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest).expect("a manifest");
        let out = self.vmkeep(["apply".as_ref(), "-f".as_ref(), file.as_os_str(), "--wait".as_ref()]);
        let told = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.success(), "apply: {told}\n-- daemon:\n{}", tail(&self.daemon_log()));
        told
    }

    /// Pids of QEMU in this host.
    pub fn qemu_pids(&self, vm: &str) -> Vec<u32> {
        self.pids(&format!("guest={vm},"))
    }

    /// When the one QEMU of `vm` began, in ticks of the machine's clock.
    pub fn began(&self, vm: &str, within: Duration) -> u64 {
        until("its QEMU runs", within, || {
            let pids = self.qemu_pids(vm);
            let [pid] = pids.as_slice() else { return Err(format!("{pids:?}")) };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
            let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace().collect::<Vec<_>>()).ok_or("no fields")?;
            fields.get(19).and_then(|began| began.parse().ok()).ok_or_else(|| stat.clone())
        })
    }

    /// Signals (`-KILL`) the etcd that this host's daemon keeps; how many processes that were.
    pub fn signal_etcd(&self, signal: &str) -> usize {
        let pids = self.pids("^etcd --data-dir /var/lib/vmkeep/cluster");
        for pid in &pids {
            assert!(Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill runs").success());
        }
        pids.len()
    }

    /// Of this host alone: pids are the machine's.
    fn pids(&self, words: &str) -> Vec<u32> {
        let out = self.exec(["pgrep", "-f", words]);
        text(&out.stdout).lines().filter_map(|l| l.trim().parse().ok()).filter(|pid| self.is_mine(*pid)).collect()
    }

    /// Only processes of this host's mount namespace are ours to kill.
    fn is_mine(&self, pid: u32) -> bool {
        let holder = text(&nshost().args(["pid", &self.name]).output().expect("nshost runs").stdout);
        let ns = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        ns(&pid.to_string()).is_some() && ns(&pid.to_string()) == ns(holder.trim())
    }

    pub fn kill_qemu(&self, vm: &str) {
        let pids = self.qemu_pids(vm);
        assert!(!pids.is_empty(), "no QEMU of {vm}");
        for pid in pids {
            assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs").success());
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_daemon();
        if std::thread::panicking() {
            eprintln!("-- daemon of {}:\n{}\n{}", self.name, tail(&self.daemon_log()), self.libvirtd_log());
        }
        let _ = nshost().args(["down", &self.name]).output();
    }
}

pub(crate) fn nshost() -> Command {
    Command::new(root().join("tests/lab/nshost"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last lines of a log.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
