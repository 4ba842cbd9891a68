//! Reads over the unix socket: one VM, and the whole list; beside Incus with the same client, in turns, in one run.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::Value;

use crate::fill::PAGE;
use crate::http::{Connection, measure};
use crate::report::{Report, Samples, Wanted, milliseconds};

/// How often Incus' rate one VM is to be read.
const ONE_TIMES_INCUS: f64 = 8.0;
/// The same of the list.
const LIST_TIMES_INCUS: f64 = 10.0;
/// The list of a thousand.
const LIST_1000_P50_MS_MAX: f64 = 5.0;

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// The VM that is read; default: the first of the list.
    #[arg(long)]
    vm: Option<String>,
    /// Incus' socket, to measure it too.
    #[arg(long)]
    incus_socket: Option<PathBuf>,
    /// The instance that is read; default: the first of the list.
    #[arg(long)]
    instance: Option<String>,
    /// Reads of one VM.
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// Reads of the list.
    #[arg(long, default_value_t = 500)]
    lists: usize,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

/// One server, and where its VMs are.
struct Server {
    name: &'static str,
    socket: PathBuf,
    one: String,
    list: String,
    count: usize,
}

struct Rates {
    one: Samples,
    list: Samples,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let ours = Server::vmkeep(&args.socket, args.vm.as_deref()).await?;
    let theirs = match &args.incus_socket {
        Some(socket) => Some(Server::incus(socket, args.instance.as_deref()).await?),
        None => None,
    };
    if let Some(theirs) = &theirs
        && theirs.count != ours.count
    {
        bail!(
            "vmkeep lists {} VMs and Incus {}: make it the same number (vmkeep-bench fill, incus init --empty)",
            ours.count,
            theirs.count
        );
    }
    let our_rates = ours.measure(args).await?;
    let their_rates = match &theirs {
        Some(theirs) => Some(theirs.measure(args).await?),
        None => None,
    };
    let mut report = Report::default();
    compare(&mut report, ours.count, &our_rates, their_rates.as_ref());
    ours.rows(&mut report, our_rates);
    if let (Some(theirs), Some(rates)) = (theirs, their_rates) {
        theirs.rows(&mut report, rates);
    }
    Ok(report)
}

fn compare(report: &mut Report, count: usize, ours: &Rates, theirs: Option<&Rates>) {
    if count >= 1000 {
        let p50 = milliseconds(ours.list.percentile(50));
        report.number(format!("list of {count}, p50"), p50, "ms", Some(Wanted::AtMost(LIST_1000_P50_MS_MAX)));
    }
    let Some(theirs) = theirs else { return };
    let one = ours.one.per_second() / theirs.one.per_second();
    report.number("one VM, times Incus", one, "x", Some(Wanted::AtLeast(ONE_TIMES_INCUS)));
    let list = ours.list.per_second() / theirs.list.per_second();
    report.number(format!("list of {count}, times Incus"), list, "x", Some(Wanted::AtLeast(LIST_TIMES_INCUS)));
}

impl Server {
    async fn vmkeep(socket: &Path, vm: Option<&str>) -> anyhow::Result<Self> {
        let list = format!("/v1/vms?limit={PAGE}");
        let page = read(socket, &list).await?;
        let items = page["items"].as_array().context("a page has items")?;
        if !page["next"].is_null() {
            bail!("there are more than {PAGE} VMs: one page would not be the whole list");
        }
        let first = items.first().and_then(|vm| vm["spec"]["name"].as_str());
        let vm = vm.or(first).context("there is no VM to read: vmkeep-bench fill makes some")?;
        Ok(Self { name: "vmkeep", socket: socket.to_owned(), one: format!("/v1/vms/{vm}"), list, count: items.len() })
    }

    async fn incus(socket: &Path, instance: Option<&str>) -> anyhow::Result<Self> {
        let list = "/1.0/instances?recursion=1".to_owned();
        let page = read(socket, &list).await?;
        let items = page["metadata"].as_array().context("a list has metadata")?;
        let first = items.first().and_then(|instance| instance["name"].as_str());
        let instance = instance.or(first).context("there is no instance to read: incus init --empty makes one")?;
        Ok(Self { name: "incus", socket: socket.to_owned(), one: format!("/1.0/instances/{instance}"), list, count: items.len() })
    }

    async fn measure(&self, args: &Args) -> anyhow::Result<Rates> {
        let one = measure(&self.socket, &self.one, args.requests, args.connections).await?;
        let list = measure(&self.socket, &self.list, args.lists, args.connections).await?;
        Ok(Rates { one, list })
    }

    fn rows(&self, report: &mut Report, rates: Rates) {
        report.samples(format!("{}: one VM", self.name), rates.one);
        report.samples(format!("{}: list of {}", self.name, self.count), rates.list);
    }
}

async fn read(socket: &Path, path: &str) -> anyhow::Result<Value> {
    Connection::open(socket).await?.json(Method::GET, path, None).await
}
