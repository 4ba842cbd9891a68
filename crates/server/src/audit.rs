//! Who changed what: one JSON line per mutating call, appended to a local file of mode 0600.
//!
//! Neither bodies nor secrets are written. A line that cannot be written is logged; the call goes on, because a full disk
//! must not lock an administrator out.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use serde_json::json;
use vmkeep_types::record::Caller;

/// The log; `Audit::default()` keeps none (tests).
#[derive(Default)]
pub struct Audit {
    file: Option<Mutex<File>>,
}

impl Audit {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        Ok(Self { file: Some(Mutex::new(file)) })
    }

    pub fn note(&self, caller: &Caller, route: &str, path: &str, status: u16) {
        let Some(file) = &self.file else { return };
        let line = json!({
            "at": jiff::Timestamp::now().to_string(), "by": caller.name, "role": caller.role, "route": route, "path": path, "status": status,
        });
        let written = writeln!(file.lock().expect("no panic holds this lock"), "{line}");
        if let Err(error) = written {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}
