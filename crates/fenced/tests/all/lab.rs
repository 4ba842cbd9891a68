//! A running guard, its watchdog, and cgroups to kill in.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv, send, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use vmkeep_agent::fenced::Fenced;
use vmkeep_core::ha::clock::Now;
use vmkeep_core::ha::timers::{Profile, Timers};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Until `look` gives a value.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: never");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn now() -> Now {
    let ms = |clock: ClockId| {
        let time = clock_gettime(clock).expect("a clock");
        u64::try_from(time.tv_sec()).expect("after the boot") * 1000 + u64::try_from(time.tv_nsec() / 1_000_000).expect("ms")
    };
    Now { boottime_ms: ms(ClockId::CLOCK_BOOTTIME), raw_ms: ms(ClockId::CLOCK_MONOTONIC_RAW) }
}

/// So that a silence is over soon.
pub fn short() -> Timers {
    Timers { kill_ms: 1_000, pet_ms: 2_000, pet_every_ms: 200, watchdog_ms: 1_000, ..Timers::of(Profile::Fast) }
}

pub fn long() -> Timers {
    Timers::of(Profile::Standard)
}

/// What a watchdog saw, in order, equal words once.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<Vec<&'static str>>>);

impl Seen {
    fn add(&self, word: &'static str) {
        let mut words = self.0.lock().expect("no panic holds this lock");
        if words.last() != Some(&word) {
            words.push(word);
        }
    }

    pub fn words(&self) -> String {
        self.0.lock().expect("no panic holds this lock").join(" ")
    }

    pub fn until(&self, words: &str) {
        until(&format!("the watchdog saw '{words}'; {}", self.words()), || (self.words() == words).then_some(()));
    }
}

/// A watchdog that answers an opening with `answer`.
fn watchdog(path: &Path, answer: &'static str) -> Seen {
    let flags = SockFlag::SOCK_CLOEXEC;
    let door = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    bind(door.as_raw_fd(), &UnixAddr::new(path).expect("a short path")).expect("bound");
    listen(&door, Backlog::new(4).expect("few")).expect("it listens");
    let seen = Seen::default();
    let told = seen.clone();
    std::thread::spawn(move || {
        while let Ok(line) = accept4(door.as_raw_fd(), flags) {
            // SAFETY: just accepted, and nobody else's.
            watch(&unsafe { OwnedFd::from_raw_fd(line) }, answer, &told);
        }
    });
    seen
}

/// A line that breaks is no polite close: it goes on counting.
fn watch(line: &OwnedFd, answer: &str, told: &Seen) {
    let mut limit: Option<Duration> = None;
    let mut broken = false;
    loop {
        let ms = limit.map_or(PollTimeout::NONE, |limit| PollTimeout::try_from(limit).expect("seconds"));
        if broken {
            std::thread::sleep(limit.expect("it was open"));
            return told.add("bite");
        }
        if poll(&mut [PollFd::new(line.as_fd(), PollFlags::POLLIN)], ms).expect("polled") == 0 {
            return told.add("bite");
        }
        let mut bytes = [0; 64];
        match recv(line.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(length @ 1..) => match std::str::from_utf8(&bytes[..length]).expect("words") {
                "pet" => told.add("pet"),
                "close" => return told.add("close"),
                word => {
                    let ms = word.strip_prefix("open ").and_then(|ms| ms.parse().ok()).expect("open MS");
                    limit = Some(Duration::from_millis(ms));
                    told.add("open");
                    let answer = answer.replace("MS", &ms.to_string());
                    send(line.as_raw_fd(), answer.as_bytes(), MsgFlags::MSG_NOSIGNAL).expect("answered");
                }
            },
            _ if limit.is_some() => broken = true,
            _ => return,
        }
    }
}

/// `vmkeep-fenced`, and what is around it.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub seen: Seen,
    pub guard: Fenced,
    pub child: Child,
}

impl Lab {
    pub fn new(cgroups: &[&Path]) -> Self {
        Self::with(cgroups, "ok MS lab dog")
    }

    pub fn with(cgroups: &[&Path], answer: &'static str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("boot_id"), "this-boot\n").expect("written");
        let seen = watchdog(&path("dog.sock"), answer);
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmkeep-fenced"));
        command.arg("--socket").arg(path("fenced.sock")).arg("--watchdog").arg(format!("unix:{}", path("dog.sock").display()));
        command.arg("--reason").arg(path("state/reason.json")).arg("--boot-id").arg(path("boot_id"));
        let nothing = path("no-cgroup");
        let cgroups: Vec<&OsStr> =
            if cgroups.is_empty() { vec![nothing.as_os_str()] } else { cgroups.iter().map(|c| c.as_os_str()).collect() };
        for cgroup in cgroups {
            command.arg("--cgroup").arg(cgroup);
        }
        let log = std::fs::File::create(path("log")).expect("a file");
        let child = command.stdin(Stdio::null()).stderr(log).spawn().expect("it starts");
        let guard = Fenced::new(&path("fenced.sock"));
        let mut lab = Self { dir, seen, guard, child };
        until("the guard answers", || {
            assert!(lab.child.try_wait().expect("a child").is_none(), "it ended: {}", lab.log());
            lab.guard.state().ok()
        });
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("our child");
    }

    /// Renewed all the time until then.
    pub fn renewed_until(&self, what: &str, mut look: impl FnMut() -> bool) {
        until(what, || {
            let _ = self.guard.renewed(now());
            look().then_some(())
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- the watchdog saw: {}\n-- the guard said:\n{}", self.seen.words(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup of the test's own.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    /// In the first hierarchy of this kind; None: this machine has none that we may write to.
    pub fn new(kind: &str, option: &str, name: &str) -> Option<Self> {
        let mut mounts = String::new();
        std::fs::File::open("/proc/self/mounts").and_then(|mut file| file.read_to_string(&mut mounts)).expect("mounts");
        let fits = |line: &&str| {
            let fields: Vec<&str> = line.split(' ').collect();
            fields[2] == kind && (option.is_empty() || fields[3].split(',').any(|o| o == option))
        };
        let at = mounts.lines().find(fits)?.split(' ').nth(1)?;
        let path = Path::new(at).join(format!("vmkeep-fenced-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("one/two")).ok()?;
        Some(Self(path))
    }

    /// A process that runs two folders below.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Child {
        let child = Command::new(program).args(args).stdin(Stdio::null()).spawn().expect("it starts");
        std::fs::write(self.0.join("one/two/cgroup.procs"), child.id().to_string()).expect("it moves there");
        child
    }

    pub fn is_empty(&self) -> bool {
        ["", "one", "one/two"]
            .iter()
            .all(|sub| std::fs::read_to_string(self.0.join(sub).join("cgroup.procs")).is_ok_and(|list| list.is_empty()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for sub in ["one/two", "one", ""] {
            let _ = std::fs::remove_dir(self.0.join(sub));
        }
    }
}
