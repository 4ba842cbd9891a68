//! What the daemon costs: memory before and after requests, CPU while nobody asks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Method;

use crate::daemon::Pid;
use crate::fill::PAGE;
use crate::http::{Connection, measure};
use crate::report::{Report, Wanted};

/// A daemon that nobody has asked anything yet.
const IDLE_MIB_MAX: f64 = 40.0;
/// With 100 VMs, after 10 000 requests.
const BUSY_MIB_MAX: f64 = 80.0;
/// Of one core.
const IDLE_CPU_PERCENT_MAX: f64 = 0.5;
/// After requests the daemon may still put things away; that is not idle.
const SETTLE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// The daemon's pid, where the socket does not tell it.
    #[arg(long)]
    pid: Option<u32>,
    /// Requests to make: reads of one VM, and a list for every hundred of them.
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// How long to watch the idle daemon.
    #[arg(long, default_value_t = 20)]
    idle_seconds: u64,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let pid = match args.pid {
        Some(pid) => Pid::new(pid),
        None => Pid::behind(&args.socket).await?,
    };
    let mut report = Report::default();
    let before = pid.resident()?;
    let vms = names(&args.socket).await?;
    report.number("VMs", vms.len() as f64, "", None);
    // With VMs the daemon has read them: it was never in the state that this wish is about.
    let wanted = vms.is_empty().then_some(Wanted::AtMost(IDLE_MIB_MAX));
    report.number("resident, before", before, "MiB", wanted);
    if args.requests > 0 {
        ask(&args.socket, &vms, args.requests).await?;
        report.number(format!("resident, after {} requests", args.requests), pid.resident()?, "MiB", Some(Wanted::AtMost(BUSY_MIB_MAX)));
    }
    tokio::time::sleep(SETTLE).await;
    report.number("CPU while idle", idle_cpu(pid, args.idle_seconds).await?, "% of a core", Some(Wanted::AtMost(IDLE_CPU_PERCENT_MAX)));
    Ok(report)
}

async fn names(socket: &Path) -> anyhow::Result<Vec<String>> {
    let page = Connection::open(socket).await?.json(Method::GET, &format!("/v1/vms?limit={PAGE}"), None).await?;
    let items = page["items"].as_array().context("a page has items")?;
    items.iter().map(|vm| Ok(vm["spec"]["name"].as_str().context("a VM has a name")?.to_owned())).collect()
}

async fn ask(socket: &Path, vms: &[String], requests: usize) -> anyhow::Result<()> {
    let list = format!("/v1/vms?limit={PAGE}");
    let one = vms.first().map_or_else(|| "/v1/version".to_owned(), |name| format!("/v1/vms/{name}"));
    let lists = requests / 100;
    if lists > 0 {
        measure(socket, &list, lists, 4).await?;
    }
    measure(socket, &one, requests - lists, 4).await?;
    Ok(())
}

async fn idle_cpu(pid: Pid, seconds: u64) -> anyhow::Result<f64> {
    let (before, begin) = (pid.cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds.max(1))).await;
    let used = pid.cpu()?.saturating_sub(before);
    Ok(100.0 * used.as_secs_f64() / begin.elapsed().as_secs_f64())
}
