//! From a libvirt event to the client of `GET /v1/vms?watch=true`.
//!
//! A domain is paused and resumed by virsh. Two clients wait for each change: `virsh event`, and a watch of ours. What is
//! measured is how much later than the first the second has it; a watch that is first counts as zero.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde_json::Value;

use crate::http::Connection;
use crate::report::{Report, Samples, Wanted, milliseconds};
use crate::virsh::Virsh;

const P50_MS_MAX: f64 = 20.0;
const PATIENCE: Duration = Duration::from_secs(20);
/// `virsh event` does not say when it has begun to listen.
const LISTENS_AFTER: Duration = Duration::from_millis(700);

#[derive(clap::Args)]
pub struct Args {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/vmkeep/vmkeepd.sock")]
    socket: PathBuf,
    /// A running VM that may be paused for moments.
    #[arg(long)]
    vm: String,
    /// libvirt, as virsh reaches it.
    #[arg(long, default_value = "qemu:///system")]
    connect: String,
    /// How many changes to cause.
    #[arg(long, default_value_t = 20)]
    events: usize,
}

pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let virsh = Virsh::new(&args.connect);
    let measured = measure(args, &virsh).await;
    // Whatever went wrong, the guest goes on. Resuming one that runs is an error of no interest.
    let _ = virsh.run(&["resume", &args.vm]).await;
    let samples = measured?;
    let mut report = Report::default();
    let p50 = milliseconds(samples.percentile(50));
    report.number("libvirt event to watch event, p50", p50, "ms", Some(Wanted::AtMost(P50_MS_MAX)));
    report.number("libvirt event to watch event, p99", milliseconds(samples.percentile(99)), "ms", None);
    report.number("events", samples.count() as f64, "", None);
    Ok(report)
}

async fn measure(args: &Args, virsh: &Virsh) -> anyhow::Result<Samples> {
    let mut libvirt = virsh.events(&args.vm)?;
    let mut phases = Phases::open(&args.socket, &args.vm).await?;
    tokio::time::sleep(LISTENS_AFTER).await;
    let mut delays = Vec::new();
    let begin = Instant::now();
    for (verb, phase) in [("suspend", "paused"), ("resume", "running")].into_iter().cycle().take(args.events.max(1)) {
        let command = [verb, args.vm.as_str()];
        let both = async {
            let heard = async { libvirt.next().await.map(|_| Instant::now()) };
            let shown = async { phases.until(phase).await.map(|()| Instant::now()) };
            let caused = virsh.run(&command);
            tokio::try_join!(heard, shown, caused)
        };
        let (heard, shown, _) = tokio::time::timeout(PATIENCE, both).await.with_context(|| format!("'{phase}' was not told"))??;
        delays.push(shown.saturating_duration_since(heard));
    }
    Ok(Samples::new(delays, begin.elapsed()))
}

/// The phases of one VM, as the watch tells them.
struct Phases {
    body: Incoming,
    text: Vec<u8>,
    vm: String,
    /// The connection lasts as long as this.
    _connection: Connection,
}

impl Phases {
    async fn open(socket: &Path, vm: &str) -> anyhow::Result<Self> {
        let mut connection = Connection::open(socket).await?;
        let answer = connection.stream(Method::GET, "/v1/vms?watch=true", None).await?;
        Ok(Self { body: answer.into_body(), text: Vec::new(), vm: vm.to_owned(), _connection: connection })
    }

    async fn until(&mut self, wanted: &str) -> anyhow::Result<()> {
        loop {
            while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                if phase(&line, &self.vm).is_some_and(|phase| phase == wanted) {
                    return Ok(());
                }
            }
            match self.body.frame().await {
                Some(frame) => self.text.extend(frame?.into_data().ok().into_iter().flatten()),
                None => bail!("the watch has ended"),
            }
        }
    }
}

/// The phase in one line of server-sent events, if the line is about this VM.
fn phase(line: &[u8], vm: &str) -> Option<String> {
    let event: Value = serde_json::from_slice(line.strip_prefix(b"data:")?).ok()?;
    let object = &event["object"];
    (object["spec"]["name"] == vm).then(|| object["status"]["phase"].as_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_of_this_vm_is_read() {
        let line = br#"data: {"type":"put","object":{"spec":{"name":"a"},"status":{"phase":"paused"}}}"#;
        assert_eq!(phase(line, "a").as_deref(), Some("paused"));
        assert_eq!(phase(line, "b"), None);
        assert_eq!(phase(br#"data: {"type":"bookmark"}"#, "a"), None);
        assert_eq!(phase(b"id: x:7\n", "a"), None);
        assert_eq!(phase(b": keep-alive\n", "a"), None);
    }
}
