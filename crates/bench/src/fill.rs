//! VMs that never run: something to read. They carry a label, by which they are found again and removed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Value, json};

use crate::http::Connection;
use crate::report::{Report, Samples};

const LABEL: &str = "made-by";
const MADE_BY: &str = "vmkeep-bench";
/// As many as one page may hold.
pub const PAGE: usize = 1000;
/// Short against everything that an operation does, long against a request.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// For all operations together.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// How many there shall be.
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Remove all that a fill has made, instead.
    #[arg(long)]
    remove: bool,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let mut connection = Connection::open(&args.socket).await?;
    let names = match args.remove {
        true => made(&mut connection).await?,
        false => (0..args.count).map(|n| format!("bench-{n:05}")).collect(),
    };
    let mut report = Report::default();
    if names.is_empty() {
        report.number("nothing to remove", 0.0, "VMs", None);
        return Ok(report);
    }
    let begin = Instant::now();
    let (mut latencies, mut operations) = (Vec::new(), Vec::new());
    for name in &names {
        let sent = Instant::now();
        let path = format!("/v1/vms/{name}");
        let answer = match args.remove {
            true => connection.json(Method::DELETE, &path, None).await?,
            false => connection.json(Method::PUT, &path, Some(&halted(name))).await?,
        };
        latencies.push(sent.elapsed());
        operations.push(answer);
    }
    report.samples("accepted", Samples::new(latencies, begin.elapsed()));
    for accepted in &operations {
        finish(&mut connection, accepted, begin + PATIENCE).await?;
    }
    report.number("all done after", begin.elapsed().as_secs_f64(), "s", None);
    Ok(report)
}

/// No disk, no NIC, no seed: nothing on the host but the definition.
fn halted(name: &str) -> Value {
    json!({ "name": name, "run": "halted", "nics": [], "cloud_init": null, "labels": { LABEL: MADE_BY } })
}

async fn made(connection: &mut Connection) -> anyhow::Result<Vec<String>> {
    let page = connection.json(Method::GET, &format!("/v1/vms?limit={PAGE}&label={LABEL}={MADE_BY}"), None).await?;
    let items = page["items"].as_array().context("a page has items")?;
    items.iter().map(|vm| Ok(vm["spec"]["name"].as_str().context("a VM has a name")?.to_owned())).collect()
}

/// Waits until the operation of a 202 answer is done. One that was over when it was answered (nothing changed) is not kept.
pub async fn finish(connection: &mut Connection, accepted: &Value, until: Instant) -> anyhow::Result<()> {
    let mut now = accepted["operation"].clone();
    let id = now["id"].as_str().context("the answer names no operation")?.to_owned();
    loop {
        match now["state"].as_str() {
            Some("done") => return Ok(()),
            Some("failed" | "cancelled") => bail!("operation {id}: {}: {}", now["state"], now["error"]),
            _ if Instant::now() > until => bail!("operation {id} does not end: {now}"),
            _ => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = connection.json(Method::GET, &format!("/v1/operations/{id}"), None).await?;
    }
}
