//! From the start of `vmkeep` to its output, beside the same request by a client that runs already.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::http;
use crate::report::{Report, Samples, Wanted, milliseconds};

const ABOVE_MS_MAX: f64 = 15.0;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// A VM that is there.
    #[arg(long)]
    vm: String,
    /// The program.
    #[arg(long, default_value = "vmkeep")]
    vmkeep: PathBuf,
    /// How many times.
    #[arg(long, default_value_t = 100)]
    runs: usize,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let path = format!("/v1/vms/{}", args.vm);
    let requests = http::measure(&args.socket, &path, args.runs.max(1), 1).await?;
    let shown = measure(args, &["vm", "show", &args.vm, "-o", "json"]).await?;
    // Starts a process, reads its arguments, and needs no daemon.
    let bare = measure(args, &["--version"]).await?;
    let mut report = Report::default();
    let (whole, request) = (milliseconds(shown.percentile(50)), milliseconds(requests.percentile(50)));
    report.number("vmkeep vm show, p50", whole, "ms", None);
    report.number("vmkeep --version, p50", milliseconds(bare.percentile(50)), "ms", None);
    report.number("the request alone, p50", request, "ms", None);
    report.number("vmkeep vm show above the request, p50", whole - request, "ms", Some(Wanted::AtMost(ABOVE_MS_MAX)));
    Ok(report)
}

async fn measure(args: &Args, words: &[&str]) -> anyhow::Result<Samples> {
    let begin = Instant::now();
    let mut runs = Vec::new();
    for _ in 0..args.runs.max(1) {
        let started = Instant::now();
        say(&args.vmkeep, &args.socket, words).await?;
        runs.push(started.elapsed());
    }
    Ok(Samples::new(runs, begin.elapsed()))
}

async fn say(vmkeep: &Path, socket: &Path, words: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(vmkeep);
    command.arg("--socket").arg(socket).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.context("vmkeep does not end")?;
    let ended = ended.with_context(|| format!("cannot start {}", vmkeep.display()))?;
    ensure!(ended.status.success(), "vmkeep {}: {}", words.join(" "), String::from_utf8_lossy(&ended.stderr).trim());
    Ok(())
}
