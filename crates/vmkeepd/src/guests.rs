//! `vmkeepd guests-shutdown`: asks the running daemon by its socket. Used by vmkeep-guests.service.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// systemd is on its way down: not when a package stops the service.
pub fn host_is_stopping() -> bool {
    let answer = Command::new("systemctl").arg("is-system-running").env("LC_ALL", "C.UTF-8").output();
    answer.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).trim() == "stopping")
}

/// Posts to a node-local route on the first socket that answers, and waits for its end, however long VMs take.
pub fn ask(sockets: &[PathBuf], route: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(request(sockets, http::Request::post(route)))
}

/// Reads a route, to see that it answers.
pub fn look(socket: &Path, route: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(request(&[socket.to_owned()], http::Request::get(route)))
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
