//! Crash points for tests: the process kills itself by SIGKILL at the N-th point it passes, or at one by its name.
//!
//! | variable | meaning |
//! |---|---|
//! | `VMKEEP_CRASH_AT=N` | die at the N-th point |
//! | `VMKEEP_CRASH_POINT=NAME` | die at the point of this name |
//! | `VMKEEP_CRASH_GATE=FILE` | points count only once this file exists |
//! | `VMKEEP_CRASH_LOG=FILE` | each point is appended to it as a line |
//!
//! Unset, a point costs one load of a `OnceLock`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Plan {
    at: Option<u64>,
    name: Option<String>,
    gate: Option<PathBuf>,
    log: Option<PathBuf>,
    passed: AtomicU64,
}

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

fn plan() -> Option<&'static Plan> {
    let read = || {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let at = std::env::var("VMKEEP_CRASH_AT").ok().and_then(|n| n.parse().ok());
        let name = std::env::var("VMKEEP_CRASH_POINT").ok();
        let log = path("VMKEEP_CRASH_LOG");
        (at.is_some() || name.is_some() || log.is_some()).then(|| Plan {
            at,
            name,
            gate: path("VMKEEP_CRASH_GATE"),
            log,
            passed: AtomicU64::new(0),
        })
    };
    PLAN.get_or_init(read).as_ref()
}

/// A place where a crash must do no harm.
pub fn point(name: &str) {
    let Some(plan) = plan() else { return };
    if plan.gate.as_ref().is_some_and(|gate| !gate.exists()) {
        return;
    }
    if let Some(log) = &plan.log
        && let Ok(mut file) = std::fs::File::options().create(true).append(true).open(log)
    {
        let _ = writeln!(file, "{name}");
    }
    let passed = plan.passed.fetch_add(1, Ordering::SeqCst) + 1;
    if plan.at == Some(passed) || plan.name.as_deref() == Some(name) {
        // SAFETY: kill with our own pid and a valid signal has no memory effects.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}
