//! Who changed what: one JSON line per mutating call, appended to a local file of mode 0600.
//!
//! Neither bodies nor secrets are written. A line that cannot be written is logged; the call goes on, because a full disk
//! must not lock an administrator out. After logrotate moved the file away, [`Audit::reopen`] begins a new one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::json;
use vmkeep_types::record::Caller;

/// The log; `Audit::default()` keeps none (tests).
#[derive(Default)]
pub struct Audit {
    file: Option<Mutex<Log>>,
}

struct Log {
    path: PathBuf,
    file: File,
}

impl Audit {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        Ok(Self { file: Some(Mutex::new(Log { path: path.to_owned(), file: append(path)? })) })
    }

    /// Goes on in the file that has the log's name now, made if there is none.
    ///
    /// # Errors
    /// It cannot be opened; the old file is kept then.
    pub fn reopen(&self) -> std::io::Result<()> {
        let Some(log) = &self.file else { return Ok(()) };
        let mut log = log.lock().expect("no panic holds this lock");
        log.file = append(&log.path)?;
        Ok(())
    }

    /// `caller` is None for one who did not say who it is.
    pub fn note(&self, caller: Option<&Caller>, route: &str, path: &str, status: u16) {
        let Some(log) = &self.file else { return };
        let line = json!({
            "at": jiff::Timestamp::now().to_string(), "by": caller.map_or("nobody", |c| c.name.as_str()),
            "via": caller.map(|c| c.via.to_string()), "role": caller.map(|c| c.role), "route": route, "path": path, "status": status,
        });
        // In one call: a line is never in pieces, and costs one.
        let line = format!("{line}\n");
        let written = log.lock().expect("no panic holds this lock").file.write_all(line.as_bytes());
        if let Err(error) = written {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_moved_away_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("audit.log");
        let log = Audit::open(&path).expect("a log");
        log.note(None, "vm.create", "/v1/vms", 401);
        std::fs::rename(&path, dir.path().join("audit.log.1")).expect("moved");
        log.reopen().expect("opened again");
        log.note(None, "vm.delete", "/v1/vms/web1", 401);
        let routes = |name: &str| {
            let text = std::fs::read_to_string(dir.path().join(name)).expect("text");
            text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["route"].clone()).collect::<Vec<_>>()
        };
        assert_eq!((routes("audit.log.1"), routes("audit.log")), (vec![json!("vm.create")], vec![json!("vm.delete")]));
    }
}
