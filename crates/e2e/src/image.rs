//! The `tiny` image, built once per machine and build recipe.

use std::fs::File;
use std::path::PathBuf;

use crate::host::{Host, Net, root};

/// A qcow2 of `tiny`; built if the cache has none for today's recipe. Other test processes wait.
pub fn tiny() -> PathBuf {
    built("tiny")
}

/// A qcow2 of a recipe.
pub fn built(recipe: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"), PathBuf::from);
    let cache = cache.join("vmkeep/images");
    std::fs::create_dir_all(&cache).expect("a cache folder");
    let lock = File::create(cache.join("lock")).expect("a lock file");
    lock.lock().expect("the lock");
    let file = cache.join(format!("{recipe}-{:016x}.qcow2", recipe_hash()));
    if !file.exists() {
        let mut host = Host::without_daemon("build");
        host.start_daemon_with(Net::Machine, &[]);
        host.ok(["image", "build", recipe, "--wait"]);
        let fresh = cache.join(format!("{recipe}-{}.new", std::process::id()));
        host.ok(["image".as_ref(), "export".as_ref(), recipe.as_ref(), fresh.as_os_str()]);
        std::fs::rename(&fresh, &file).expect("the image moves into the cache");
    }
    file
}

/// Changes when the builder's sources do.
fn recipe_hash() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut files = Vec::new();
    collect(&root().join("crates/agent/src/image"), &mut files);
    files.sort();
    for byte in files.iter().flat_map(|f| std::fs::read(f).unwrap_or_default()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

fn collect(dir: &std::path::Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
