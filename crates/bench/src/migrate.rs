//! A live migration of ours, against bare `virsh migrate --live --p2p` of the same guest between the same hosts, in one run.
//!
//! The VM goes there and back so many times; it is killed, and a twin of its domain (another name and UUID, not marked as ours, the same
//! disk) goes there and back by virsh; the twin goes and the VM is started again. Its disks must be in a shared pool.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Method;
use serde_json::{Value, json};

use crate::http::Connection;
use crate::launch::{between, call, twin_of};
use crate::report::{Report, Samples, Wanted, milliseconds};
use crate::virsh::Virsh;

/// A migration may take this much longer than one by virsh.
const TIMES_VIRSH: f64 = 1.1;

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket, on the host where the VM runs.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// The VM; it runs.
    #[arg(long)]
    vm: String,
    /// The node that it goes to and comes back from.
    #[arg(long)]
    to: String,
    /// libvirt of the VM's host, as virsh reaches it.
    #[arg(long, default_value = "qemu:///system")]
    connect: String,
    /// libvirt of the other host, as this one reaches it.
    #[arg(long)]
    there: String,
    /// libvirt of this host, as the other one reaches it.
    #[arg(long)]
    back: String,
    /// Where the other host takes memory in, when its name does not resolve: `tcp://10.0.0.2`.
    #[arg(long)]
    there_data: Option<String>,
    /// The same of this host, on the way back.
    #[arg(long)]
    back_data: Option<String>,
    /// More for `virsh migrate`: `--with=--tls` where ours is encrypted too.
    #[arg(long, value_name = "FLAG")]
    with: Vec<String>,
    /// How often there and back, each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let mut connection = Connection::open(&args.socket).await?;
    let path = format!("/v1/vms/{}", args.vm);
    let vm = connection.json(Method::GET, &path, None).await?;
    let from = vm["status"]["node"].as_str().context("the VM has no node")?.to_owned();
    let (mut ours, begin) = (Vec::new(), Instant::now());
    for _ in 0..args.rounds.max(1) {
        for node in [&args.to, &from] {
            let sent = Instant::now();
            call(&mut connection, Method::POST, &format!("{path}/actions/migrate"), Some(&json!({ "migrate": { "to": node } }))).await?;
            ours.push(sent.elapsed());
        }
    }
    let ours = Samples::new(ours, begin.elapsed());
    let xml = Virsh::new(&args.connect).run(&["dumpxml", "--inactive", &args.vm]).await?;
    act(&mut connection, &path, "kill").await?;
    let measured = by_virsh(args, &xml).await;
    act(&mut connection, &path, "start").await?;
    let theirs = measured?;
    let (migrate, virsh) = (milliseconds(ours.percentile(50)), milliseconds(theirs.percentile(50)));
    let mut report = Report::default();
    report.number("virsh migrate --live --p2p, p50", virsh, "ms", None);
    report.number("migrate, p50", migrate, "ms", None);
    report.number("migrate, times virsh", migrate / virsh, "x", Some(Wanted::AtMost(TIMES_VIRSH)));
    Ok(report)
}

async fn act(connection: &mut Connection, path: &str, action: &str) -> anyhow::Result<()> {
    call(connection, Method::POST, &format!("{path}/actions/{action}"), Some(&Value::Object(Default::default()))).await
}

async fn by_virsh(args: &Args, xml: &str) -> anyhow::Result<Samples> {
    let (here, there) = (Virsh::new(&args.connect), Virsh::new(&args.there));
    let twin = format!("{}-by-virsh", args.vm);
    let uuid = between(xml, "<uuid>", "</uuid>").context("a domain has a UUID")?;
    let file = tempfile::Builder::new().suffix(".xml").tempfile()?;
    std::fs::write(file.path(), twin_of(xml, &args.vm, &twin, uuid))?;
    here.create(file.path()).await?;
    let (mut taken, begin) = (Vec::new(), Instant::now());
    let went = async {
        for _ in 0..args.rounds.max(1) {
            for (at, to, data) in [(&here, &args.there, &args.there_data), (&there, &args.back, &args.back_data)] {
                let data = data.as_ref().map(|data| ["--migrateuri", data]);
                let more: Vec<&str> = data.into_iter().flatten().chain(args.with.iter().map(String::as_str)).collect();
                taken.push(moved(at, &twin, to, &more).await?);
            }
        }
        anyhow::Ok(())
    };
    let went = went.await;
    // Wherever it is by now.
    let (_, _) = (here.run(&["destroy", &twin]).await, there.run(&["destroy", &twin]).await);
    went?;
    Ok(Samples::new(taken, begin.elapsed()))
}

async fn moved(at: &Virsh, twin: &str, to: &str, more: &[&str]) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    at.run(&[&["migrate", "--live", "--p2p", twin, to], more].concat()).await?;
    Ok(begin.elapsed())
}
