//! Several hosts on one switch, and what may befall them: power off and on, standing still, a cable pulled.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::host::{Host, nshost, text};

/// A bridge in a namespace of its own; only the hosts plugged into it reach each other. Goes with its test process.
pub struct Switch {
    name: String,
}

impl Switch {
    pub fn new(name: &str) -> Self {
        let switch = Self { name: format!("{name}-sw-{}", std::process::id()) };
        done(nshost().args(["switch", &switch.name, &std::process::id().to_string()]));
        switch
    }

    /// A command in the switch's network; what it printed.
    pub fn exec<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        done(nshost().args(["on", &self.name]).args(args))
    }

    /// All that passes while `work` is done, frame by frame.
    pub fn hears(&self, work: impl FnOnce()) -> Heard {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut command = nshost();
        command.args(["on", &self.name, "tcpdump", "-i", "lan", "-s", "0", "-U", "-w", "-"]);
        command.stdin(Stdio::null()).stdout(file.reopen().expect("the file")).stderr(Stdio::piped());
        let mut ear = command.spawn().expect("nshost runs");
        let told = BufReader::new(ear.stderr.take().expect("it was asked for")).lines().map_while(Result::ok);
        // Until it hears, it says nothing else.
        let first: Vec<String> = told.take(1).collect();
        assert!(first.iter().any(|line| line.contains("listening on lan")), "{first:?}");
        work();
        done(Command::new("kill").args(["-INT", &ear.id().to_string()]));
        ear.wait().expect("our child");
        Heard(std::fs::read(file.path()).expect("the frames"))
    }
}

/// Frames, and what is in them.
pub struct Heard(pub Vec<u8>);

impl Heard {
    pub fn has(&self, word: &str) -> bool {
        self.0.windows(word.len()).any(|at| at == word.as_bytes())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = nshost().args(["down", &self.name]).output();
    }
}

fn done(command: &mut Command) -> String {
    let out = command.output().expect("nshost runs");
    assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

impl Host {
    /// Plugs the host into a switch, with an address like `10.77.0.1/24`. Once per host.
    pub fn link(&self, switch: &Switch, address: &str) {
        done(nshost().args(["link", &self.name, &switch.name, address]));
    }

    /// The port of the switch that it is plugged into.
    pub fn port(&self) -> String {
        done(nshost().args(["port", &self.name])).trim().to_owned()
    }

    /// Pulls the cable.
    pub fn cut(&self) {
        done(nshost().args(["cut", &self.name]));
    }

    /// Plugs it in again.
    pub fn join(&self) {
        done(nshost().args(["join", &self.name]));
    }

    /// Every process stands still, until [`Host::thaw`].
    pub fn freeze(&self) {
        done(nshost().args(["freeze", &self.name]));
    }

    pub fn thaw(&self) {
        done(nshost().args(["thaw", &self.name]));
    }

    /// SIGKILL to every process; what is on its disks stays.
    pub fn power_off(&mut self) {
        done(nshost().args(["kill", &self.name]));
        self.kill_daemon();
    }

    /// libvirt comes up in a new boot; the daemon is started by the test.
    pub fn power_on(&mut self) {
        done(nshost().args(["boot", &self.name]));
        self.boot();
    }

    /// A watchdog outside of the host: once opened it kills every process of the host when it is not petted in time.
    pub fn give_watchdog(&self) {
        done(nshost().args(["watchdog", &self.name]));
    }

    /// Where the host's watchdog listens.
    pub fn watchdog_socket(&self) -> PathBuf {
        self.lab_folder().join("watchdog.sock")
    }

    /// What the host's watchdog saw: `SECONDS open MS`, `bite`, …
    pub fn watchdog_log(&self) -> String {
        std::fs::read_to_string(self.lab_folder().join("watchdog.log")).unwrap_or_default()
    }

    /// The lab's folder of this host.
    pub fn lab_folder(&self) -> PathBuf {
        let out = nshost().args(["dir", &self.name]).output().expect("nshost runs");
        PathBuf::from(text(&out.stdout).trim())
    }

    /// Which mount namespace it is; the same over power off and on.
    pub fn namespace(&self) -> PathBuf {
        let out = nshost().args(["pid", &self.name]).output().expect("nshost runs");
        std::fs::read_link(format!("/proc/{}/ns/mnt", text(&out.stdout).trim())).expect("the host is up")
    }

    /// Does anything run there?
    pub fn has_power(&self) -> bool {
        let out = nshost().args(["power", &self.name]).output().expect("nshost runs");
        text(&out.stdout).trim() == "on"
    }

    /// A program inside the host that goes on; dies with the host, or by its owner.
    pub fn spawn(&self, log: &str, args: &[&str]) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.path(log)).expect("a log");
        let mut command = nshost();
        command.args(["exec", &self.name]).args(args);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file handle")).stderr(log);
        command.spawn().expect("nshost runs")
    }
}
