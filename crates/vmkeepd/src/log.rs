//! Structured logs: to journald when systemd started us, else to stderr. Secrets are never logged: no bodies, no headers.

use std::os::linux::fs::MetadataExt;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::{Config, LogFormat};

pub fn begin(config: &Config) {
    let filter = std::env::var("VMKEEP_LOG").ok().and_then(|f| f.parse::<EnvFilter>().ok());
    let filter = filter.unwrap_or_else(|| EnvFilter::new(&config.log_filter));
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match config.log {
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
        LogFormat::Auto if stderr_is_the_journal() => match tracing_journald::layer() {
            Ok(journal) => journal.boxed(),
            Err(_) => text(),
        },
        LogFormat::Auto | LogFormat::Text => text(),
    };
    // A second call (tests) keeps the first.
    let _ = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
}

fn text() -> Box<dyn Layer<Registry> + Send + Sync> {
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).boxed()
}

/// systemd names the journal's stream in the environment, which a child with another stderr would inherit.
fn stderr_is_the_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|meta| stream == format!("{}:{}", meta.st_dev(), meta.st_ino()))
}
