//! A pool of its own per test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use vmkeep_agent::pool::{self, Pool};
use vmkeep_types::name::Name;
use vmkeep_types::order::Progress;
use vmkeep_types::pool::{PoolDriver, PoolSpec};

pub fn pool_in(dir: &Path) -> Arc<dyn Pool> {
    let spec = PoolSpec {
        name: Name::known("default"),
        description: String::new(),
        driver: PoolDriver::Dir { path: dir.display().to_string(), shared: false },
    };
    pool::open(&spec).expect("a pool")
}

pub fn silent(_: Option<Progress>, _: &str) {}

/// A tool that must succeed.
pub fn run(program: &str, args: &[&str], dir: &Path) {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Everything below a folder that is a file.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.flat_map(|p| if p.is_dir() { files_below(&p) } else { vec![p] }).collect()
}
