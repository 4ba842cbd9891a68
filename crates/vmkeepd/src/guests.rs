//! `vmkeepd guests-shutdown` and `check-api`: ask the running daemon by its socket. Used by vmkeep-guests.service and keepalived.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use vmkeep_types::ha::Farewell;

/// A healthy API answers in milliseconds. keepalived's own time-outs are whole seconds, and two of them in a row keep the API's address
/// at a daemon that hangs for longer than the 3 s in which it is to move.
const ANSWER: Duration = Duration::from_millis(600);

/// systemd is on its way down: not when a package stops the service.
pub fn host_is_stopping() -> bool {
    let answer = Command::new("systemctl").arg("is-system-running").env("LC_ALL", "C.UTF-8").output();
    answer.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).trim() == "stopping")
}

/// Why the host goes down, as systemd's jobs tell it; for longer, where they do not.
pub fn farewell() -> Farewell {
    let answer = Command::new("systemctl").args(["--full", "--no-legend", "--no-pager", "list-jobs"]).env("LC_ALL", "C.UTF-8").output();
    answer.map_or_else(|_| Farewell::default(), |out| told_by_jobs(&String::from_utf8_lossy(&out.stdout)))
}

/// A line is number, unit, type, state.
fn told_by_jobs(jobs: &str) -> Farewell {
    let comes_back = |unit: &str| matches!(unit, "reboot.target" | "kexec.target" | "soft-reboot.target");
    let reboots = jobs.lines().any(|line| line.split_whitespace().nth(1).is_some_and(comes_back));
    if reboots { Farewell::Reboot } else { Farewell::Shutdown }
}

/// The route that shuts all VMs down.
pub fn shutdown_route(why: Farewell) -> String {
    format!("/n/guests/shutdown?why={}", why.as_str())
}

/// Posts to a node-local route on the first socket that answers, and waits for its end, however long VMs take.
pub fn ask(sockets: &[PathBuf], route: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(request(sockets, http::Request::post(route)))
}

/// Reads a route, to see that it answers, and soon.
pub fn look(socket: &Path, route: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = async { tokio::time::timeout(ANSWER, request(&[socket.to_owned()], http::Request::get(route))).await };
    runtime.block_on(answer).with_context(|| format!("no answer within {ANSWER:?}"))?
}

async fn connect(sockets: &[PathBuf]) -> anyhow::Result<UnixStream> {
    let mut failed = anyhow::anyhow!("no socket was named");
    for socket in sockets {
        match UnixStream::connect(socket).await.with_context(|| format!("vmkeepd does not answer on {}", socket.display())) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn request(sockets: &[PathBuf], request: http::request::Builder) -> anyhow::Result<()> {
    let stream = connect(sockets).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = request.header(http::header::HOST, "vmkeep").body(Empty::<hyper::body::Bytes>::new())?;
    let response = sender.send_request(request).await.context("vmkeepd went away")?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.into_body().collect().await?.to_bytes();
    bail!("{}", vmkeep_api::problem::read(status.as_u16(), &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_hangs_is_told_before_the_next_look() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("socket");
        // Whoever connects waits in its queue.
        let hangs = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let told = look(&socket, "/v1/version").expect_err("nobody answers");
        assert_eq!(told.to_string(), "no answer within 600ms");
        drop(hangs);
        assert!(look(&socket, "/v1/version").expect_err("nobody listens").to_string().starts_with("vmkeepd does not answer on"));
    }

    #[test]
    fn jobs_tell_whether_the_host_comes_back() {
        let shutdown =
            " 1371 vmkeep-guests.service stop  running\n 1203 poweroff.target  start waiting\n 1290 shutdown.target start waiting\n";
        let reboot = " 1203 reboot.target start waiting\n 1290 shutdown.target start waiting\n";
        let named = "12 not-reboot.target start waiting\n13 reboot.target.wants start waiting\n";
        let told = [shutdown, reboot, "1 kexec.target start waiting", "1 soft-reboot.target start waiting", named, "", "No jobs running."];
        use Farewell::{Reboot, Shutdown};
        assert_eq!(told.map(told_by_jobs), [Shutdown, Reboot, Reboot, Reboot, Shutdown, Shutdown, Shutdown]);
    }
}
