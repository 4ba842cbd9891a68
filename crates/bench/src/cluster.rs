//! A whole cluster on this machine: three etcd members, a control plane of its own, and agents with the fake hypervisor here.
//!
//! ```text
//!  this process: N agents (store + heartbeat connection each) ──► etcd × 3 ◄── vmkeepd --role control ◄── its unix socket ◄── we
//! ```
//! All is real but the hypervisor and the hosts. etcd speaks without TLS, on loopback, and syncs to the disk below `--dir`.

mod agents;
mod etcd;
mod lose;
mod plug;
mod timed;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use vmkeep_core::health::BEAT_MS;

use crate::daemon::Pid;
use crate::fill::finish;
use crate::http::Connection;
use crate::report::{Report, Samples, Wanted};
use agents::Agents;
use etcd::Etcds;

/// Wanted of control plane and etcd at rest, per cent of a core, at 1000 nodes.
const CPU_PERCENT_MAX: f64 = 60.0;
/// Wanted of a renewal, p99.
const RENEWAL_MS_MAX: f64 = 500.0;
/// Wanted from the request to the running VM, p99.
const RUNNING_MS_MAX: f64 = 1000.0;
/// Wanted from a control plane's start to the first VM that it made run.
const CAUGHT_UP_SECONDS_MAX: f64 = 5.0;
const DATABASE_MIB_MAX: f64 = 200.0;
/// Agents write their loads now and then, too.
const REST_TIMES_RENEWALS: f64 = 1.5;
/// VMs that are told of when some do not come up.
const LEFT_OVER_TOLD: usize = 3;
/// Requests on their way at once while the cluster is filled.
const CLIENTS: usize = 32;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// At all guests of all nodes, which costs what the agents need.
const COUNT_EVERY: Duration = Duration::from_millis(200);
/// While VMs come up.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// For one answer, or one more VM.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Args {
    /// Agents, each with 32 CPUs and 128 GiB.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// VMs that run before anything is measured.
    #[arg(long, default_value_t = 20_000)]
    vms: usize,
    /// VMs that are asked for and do not run yet, at most: this machine carries etcd's three members and all agents, too.
    #[arg(long, default_value_t = 20_000)]
    ahead: usize,
    /// VMs that are made one after the other, and measured.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// How long the cluster is watched at rest.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// Hosts that lose their power at once, before the others are measured; their VMs are highly available then.
    #[arg(long, default_value_t = 0)]
    lose: usize,
    /// The daemon's program.
    #[arg(long, default_value = "target/release/vmkeepd")]
    vmkeepd: PathBuf,
    /// Where etcd keeps its data; a folder of our own is made there and removed.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

/// Whatever ends it, etcd and the control plane end too.
pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        report = measure(args) => report,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let least = [args.nodes as u64, args.rounds as u64, args.ahead as u64, args.idle_seconds];
    anyhow::ensure!(!least.contains(&0), "one node, one round, one VM ahead and one second at least");
    anyhow::ensure!(2 * args.lose < args.nodes, "when more than half are lost, that is taken for a broken network: nothing runs again");
    let dir = tempfile::Builder::new().prefix("vmkeep-bench-").tempdir_in(&args.dir).context("no folder for etcd")?;
    let mut report = Report::default();
    let etcds = Etcds::start(dir.path()).await?;
    let mut control = Control::new(args, dir.path(), &etcds.endpoints())?;
    control.start()?;
    control.answers().await?;

    let begin = Instant::now();
    let agents = Agents::start(args.nodes, dir.path(), &etcds.endpoints()).await?;
    report.number(format!("{} nodes joined after", args.nodes), begin.elapsed().as_secs_f64(), "s", None);
    eprintln!("{} nodes after {:.1} s", args.nodes, begin.elapsed().as_secs_f64());

    let begin = Instant::now();
    let keep = if args.lose > 0 { Keep::Available } else { Keep::There };
    let (run, runs) = watch::channel(0);
    let filled = tokio::try_join!(fill(&control.socket, args, keep, runs), all_run(&agents, args.vms, run));
    if let Err(error) = filled {
        let left = left_over(&control.socket, args.vms).await.unwrap_or_else(|error| format!("and the control plane: {error}"));
        let log = std::fs::read_to_string(&control.log).unwrap_or_default();
        return Err(error.context(format!("{left}\nthe control plane's log:\n{log}")));
    }
    report.number(format!("{} VMs run after", args.vms), begin.elapsed().as_secs_f64(), "s", None);
    eprintln!("{} VMs run after {:.1} s", args.vms, begin.elapsed().as_secs_f64());

    let begin = Instant::now();
    comes_to_rest(args, &etcds).await?;
    report.number("… and what follows is written after", begin.elapsed().as_secs_f64(), "s", None);
    // A cluster of vmkeep's own etcd does that by itself when the file has grown by half.
    etcds.forget_history().await?;
    at_rest(args, &etcds, &control, &agents, &mut report).await?;
    if args.lose > 0 {
        lose::lose(&agents, args.lose, &mut report).await?;
    }
    let one = one_by_one(&control.socket, args.rounds, "one").await?;
    report.number("VM, request to running, p99", milliseconds(one.percentile(99)), "ms", Some(Wanted::AtMost(RUNNING_MS_MAX)));
    report.samples("VM, request to running", one);

    control.kill();
    let begin = Instant::now();
    control.start()?;
    control.answers().await?;
    report.number("control plane killed: answers after", begin.elapsed().as_secs_f64(), "s", None);
    one_by_one(&control.socket, 1, "after").await?;
    report.number("… a new VM runs after", begin.elapsed().as_secs_f64(), "s", Some(Wanted::AtMost(CAUGHT_UP_SECONDS_MAX)));
    report.number("control plane, resident", control.pid()?.resident()?, "MiB", None);
    let (file, used) = etcds.database_mib().await?;
    report.number("etcd's database, the file", file, "MiB", None);
    // Before that it holds what filling the cluster wrote.
    let over = Duration::from_secs(args.idle_seconds) >= 2 * etcd::RETENTION;
    report.number("… in use", used, "MiB", over.then_some(Wanted::AtMost(DATABASE_MIB_MAX)));
    etcds.forget_history().await?;
    report.number("… compacted", etcds.database_mib().await?.0, "MiB", Some(Wanted::AtMost(DATABASE_MIB_MAX)));
    agents.stop().await;
    Ok(report)
}

/// Operations that end and events that are filed: until little more is written than the agents' renewals.
async fn comes_to_rest(args: &Args, etcds: &Etcds) -> anyhow::Result<()> {
    let window = Duration::from_millis(2 * BEAT_MS);
    let renewals = args.nodes as f64 * window.as_secs_f64() * 1000.0 / BEAT_MS as f64;
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let before = etcds.revision().await?;
        tokio::time::sleep(window).await;
        let written = etcds.revision().await? - before;
        if (written as f64) < renewals * REST_TIMES_RENEWALS {
            return Ok(());
        }
    }
    bail!("the cluster does not come to rest")
}

/// Heartbeats and loads, and nothing else to do.
async fn at_rest(args: &Args, etcds: &Etcds, control: &Control, agents: &Agents, report: &mut Report) -> anyhow::Result<()> {
    agents.take_renewals();
    let cpu = || anyhow::Ok((etcds.pids().iter().map(|pid| pid.cpu()).collect::<anyhow::Result<Vec<_>>>()?, control.pid()?.cpu()?));
    let ((etcd_before, control_before), begin) = (cpu()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(args.idle_seconds)).await;
    let ((etcd_after, control_after), wall) = (cpu()?, begin.elapsed());
    let renewals = agents.take_renewals();
    let percent = |used: Duration| 100.0 * used.as_secs_f64() / wall.as_secs_f64();
    let each: Vec<f64> = etcd_after.iter().zip(&etcd_before).map(|(after, before)| percent(after.saturating_sub(*before))).collect();
    let (busiest, all) = (each.iter().copied().fold(0.0, f64::max), each.iter().sum::<f64>());
    let own = percent(control_after.saturating_sub(control_before));
    report.number("at rest: control plane", own, "% of a core", None);
    report.number("at rest: busiest etcd member", busiest, "% of a core", None);
    report.number("at rest: both", own + busiest, "% of a core", Some(Wanted::AtMost(CPU_PERCENT_MAX)));
    report.number("at rest: control plane and all three members", own + all, "% of a core", None);
    anyhow::ensure!(!renewals.is_empty(), "no heartbeat in {} s", args.idle_seconds);
    let per_renewal = (own + busiest) / 100.0 * wall.as_secs_f64() * 1e6 / renewals.len() as f64;
    report.number("at rest: CPU per renewal, both", per_renewal, "µs", None);
    let renewals = Samples::new(renewals, wall);
    report.number("renewal, p99", milliseconds(renewals.percentile(99)), "ms", Some(Wanted::AtMost(RENEWAL_MS_MAX)));
    report.samples("renewal", renewals);
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// As long as it takes, if only one more comes up now and then.
async fn all_run(agents: &Agents, vms: usize, run: watch::Sender<usize>) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (mut most, mut since, mut told) = (0, begin, begin);
    while most < vms {
        if told.elapsed() >= TOLD_EVERY {
            told = Instant::now();
            eprintln!("{most} VMs run after {:.0} s", begin.elapsed().as_secs_f64());
        }
        tokio::time::sleep(COUNT_EVERY).await;
        let now = agents.running();
        if now > most {
            (most, since) = (now, Instant::now());
            run.send_replace(most);
        }
        anyhow::ensure!(since.elapsed() < PATIENCE, "{most} of {vms} VMs run, and no more come up");
    }
    Ok(())
}

/// What becomes of a VM whose host is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    There,
    Available,
}

/// On the network that every store has, as most are; no disk and no seed: it runs, as far as a fake can.
fn wish(name: &str, keep: Keep) -> Value {
    let wish = json!({ "name": name, "firmware": "bios", "memory": "1GiB", "cloud_init": null });
    match (keep, wish) {
        (Keep::Available, Value::Object(mut fields)) => {
            fields.extend([("ha".to_owned(), json!({})), ("run".to_owned(), json!("always"))]);
            Value::Object(fields)
        }
        (_, wish) => wish,
    }
}

fn path(name: &str) -> String {
    format!("/v1/vms/{name}")
}

/// Asks for all VMs, those that `runs` tells of and so many ahead; whether they run is seen at the hypervisors.
async fn fill(socket: &Path, args: &Args, keep: Keep, runs: watch::Receiver<usize>) -> anyhow::Result<()> {
    let (vms, ahead) = (args.vms, args.ahead);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let mut connection = Connection::open(socket).await?;
        let mut runs = runs.clone();
        clients.spawn(async move {
            for n in (client..vms).step_by(CLIENTS) {
                runs.wait_for(|run| n < run + ahead).await.context("nobody looks any more")?;
                let name = format!("fill-{n:05}");
                connection.json(Method::PUT, &path(&name), Some(&wish(&name, keep))).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done.context("a client failed")??;
    }
    Ok(())
}

/// What the control plane says of some VMs that do not run.
async fn left_over(socket: &Path, vms: usize) -> anyhow::Result<String> {
    let mut connection = Connection::open(socket).await?;
    let mut told = Vec::new();
    for n in 0..vms {
        let vm = connection.json(Method::GET, &path(&format!("fill-{n:05}")), None).await?;
        if vm["status"]["phase"] != "running" {
            told.push(vm.to_string());
        }
        if told.len() == LEFT_OVER_TOLD {
            break;
        }
    }
    Ok(told.join("\n"))
}

async fn one_by_one(socket: &Path, rounds: usize, word: &str) -> anyhow::Result<Samples> {
    let mut connection = Connection::open(socket).await?;
    let (begin, mut latencies) = (Instant::now(), Vec::new());
    for n in 0..rounds {
        let name = format!("{word}-{n:05}");
        let sent = Instant::now();
        let accepted = connection.json(Method::PUT, &path(&name), Some(&wish(&name, Keep::There))).await?;
        finish(&mut connection, &accepted, sent + PATIENCE).await?;
        latencies.push(sent.elapsed());
    }
    Ok(Samples::new(latencies, begin.elapsed()))
}

/// The control plane: a process of its own, as in a cluster.
struct Control {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    child: Option<Child>,
}

impl Control {
    fn new(args: &Args, dir: &Path, endpoints: &[String]) -> anyhow::Result<Self> {
        let (config, socket) = (dir.join("vmkeepd.toml"), dir.join("vmkeepd.sock"));
        // JSON's strings and lists are TOML's.
        let text = [
            ("node", json!("control")),
            ("roles", json!(["control"])),
            ("store", json!(dir.join("store"))),
            ("socket", json!(socket)),
            ("pool", json!(dir.join("pool"))),
            ("run_dir", json!(dir.join("run"))),
            ("audit", json!(dir.join("audit.log"))),
        ];
        let mut text = text.iter().fold(String::new(), |text, (key, value)| text + &format!("{key} = {value}\n"));
        text += &format!("[etcd]\nendpoints = {}\n", json!(endpoints));
        for folder in ["store", "pool", "run"] {
            std::fs::create_dir(dir.join(folder))?;
        }
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(Self { program: args.vmkeepd.clone(), config, log: dir.join("control.log"), socket, child: None })
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(["--role", "control", "--config"]).arg(&self.config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {} (--vmkeepd names it)", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it answers.
    async fn answers(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            if let Ok(mut connection) = Connection::open(&self.socket).await
                && connection.json(Method::GET, "/v1/version", None).await.is_ok()
            {
                return Ok(());
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()?;
            if ended.is_some() || begin.elapsed() > PATIENCE {
                bail!("the control plane does not answer: {}", std::fs::read_to_string(&self.log).unwrap_or_default());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::new(self.child.as_ref().context("it was started")?.id()))
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.kill();
    }
}
