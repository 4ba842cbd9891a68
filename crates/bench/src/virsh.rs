//! `virsh`, the measure of what libvirt itself needs.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

pub struct Virsh {
    connect: String,
}

/// `virsh event`, one line per event.
pub struct Events {
    lines: Lines<BufReader<ChildStdout>>,
    /// Killed with this value.
    _child: Child,
}

impl Virsh {
    pub fn new(connect: &str) -> Self {
        Self { connect: connect.to_owned() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["-q", "-c", &self.connect]).args(args).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    pub async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let out = self.command(args).output().await.context("cannot run virsh")?;
        ensure!(out.status.success(), "virsh {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    pub async fn create(&self, xml: &Path) -> anyhow::Result<()> {
        self.run(&["create", xml.to_str().context("a path in UTF-8")?]).await.map(drop)
    }

    /// Lifecycle events of one domain.
    pub fn events(&self, domain: &str) -> anyhow::Result<Events> {
        let mut command = self.command(&["event", "--domain", domain, "--event", "lifecycle", "--loop"]);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().context("cannot run virsh")?;
        let stdout = child.stdout.take().expect("it was piped");
        Ok(Events { lines: BufReader::new(stdout).lines(), _child: child })
    }
}

impl Events {
    pub async fn next(&mut self) -> anyhow::Result<String> {
        self.lines.next_line().await?.context("virsh event has ended")
    }
}
